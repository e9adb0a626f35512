"""Certificates in use: the referee lifts and checks them, solutions carry them, commands write and verify them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy
from test_certificates import Maker, all_values, random_problem, slack
from test_cli import failed
from test_cli import run as run_command
from test_instances_format import reseal

from osscar_opt import Problem
from osscar_opt.certificates import Certificate, ProofTree, check
from osscar_opt.errors import CapabilityError, FormatError, SolverError
from osscar_opt.formulations.presolve import presolve
from osscar_opt.formulations.solution import BoundKind, Status
from osscar_opt.instances import FAMILIES, file_kind, load_solution, random_instance
from osscar_opt.solvers.base import Proposal, Solver
from osscar_opt.testing import check_solver


@dataclass(frozen=True)
class Prover(Solver):
    """Keeps what fits, and hands over whatever certificate its `prove` makes of the problem it sees."""

    name: ClassVar[str] = "prover"
    prove: Callable[[Problem, np.ndarray], Any] | None = None
    claim: float | None = None

    def propose(self, problem: Problem, *, start: Any, deadline: Any, report: Any) -> Proposal:
        support = problem.limits.fill(range(problem.n), problem.always_keep & ~problem.always_remove)
        support &= ~problem.always_remove
        proof = None if self.prove is None else self.prove(problem, support)
        return Proposal(support, lower_bound=self.claim, certificate=proof)


def random_proof(seed: int) -> Callable[[Problem, np.ndarray], Certificate]:
    return lambda problem, _: (
        Maker(np.random.default_rng(seed), problem, tight=seed % 2 == 0).make().certificate
    )


# ------------------------------------------------------------------------------------------------ the referee


@pytest.mark.parametrize("seed", range(60))
def test_a_proof_of_the_presolved_problem_holds_for_the_problem_as_posed(seed: int) -> None:
    """Forced groups, dead inputs, more outputs than inputs (and directions of theirs), in every combination."""
    problem = random_problem(np.random.default_rng(seed), limits=["keep", "blocks", "both"][seed % 3])
    reductions: Any = [True, ["forced"], ["rank"], ["dead_inputs", "rank"]][seed % 4]
    presolved = presolve(problem, reductions)
    if presolved.problem.n == 0 or presolved.problem.features & {"forced"}:
        pytest.skip("nothing is left to decide, or the method would not be given this")
    own = random_proof(seed)(presolved.problem, np.zeros(0)).claiming(bound=-1e300).check()
    solution = problem.solve(Prover(prove=random_proof(seed)), presolve=reductions)
    assert solution.bound_kind is BoundKind.CERTIFIED, solution.message
    solution.verify()
    best = min(all_values(problem).values())
    assert solution.bound <= best + slack(problem, best)
    proof = solution.certificate
    assert isinstance(proof, Certificate)
    assert proof.check(problem).valid
    reached = min(own.bound, solution.objective)
    by_search = solution.objective > presolved.problem.base * (1 + 1e-6) + slack(problem, 0.0)
    if np.isfinite(own.bound) and by_search and problem.live_rows.all():  # on dead rows D may change
        assert proof.bound == pytest.approx(reached, rel=1e-8, abs=slack(problem, reached) * 10)
    assert check(proof.to_bytes()).valid


def test_a_partial_proof_gives_the_bound_it_proves() -> None:
    problem = random_instance(3, "correlated", n=8, q=3)
    solution = problem.solve(Prover(prove=lambda p, _: Certificate.of(p, ProofTree.of(p), bound=-1.0)))
    assert solution.bound == pytest.approx(problem.base, abs=1e-12)
    assert solution.bound_kind is BoundKind.CERTIFIED
    assert solution.status is Status.FEASIBLE
    assert solution.message == ""
    assert solution.stats["check_time"] > 0


def enumerate_all(problem: Problem, support: np.ndarray, bound: float = 0.0) -> Certificate:
    tree = ProofTree.of(problem)
    tree.close_enumerated(0)
    return Certificate.of(problem, tree, bound=bound, support=support)


def too_large_d(problem: Problem, support: np.ndarray) -> Certificate:
    tree = ProofTree.of(problem)
    tree.close(0, relaxation=tree.relax(0, np.full(problem.n, 0.5), [1.1 * problem.gram.diagonal()]))
    return Certificate.of(problem, tree, bound=0.4)


def of_another_problem(problem: Problem, support: np.ndarray) -> Certificate:
    return enumerate_all(random_instance(1, "correlated", n=problem.n + 1, q=2), support)


def scrambled(problem: Problem, support: np.ndarray) -> Certificate:
    proof = enumerate_all(problem, support)
    return dataclasses.replace(proof, proof=proof.proof._replace(tree=np.array([0, -3])))


@pytest.mark.parametrize("prove", [too_large_d, of_another_problem, scrambled])
def test_a_proof_that_does_not_hold_takes_the_claim_with_it(prove: Callable[..., Certificate]) -> None:
    problem = random_instance(3, "correlated", n=8, q=3)
    solution = problem.solve(Prover(prove=prove, claim=0.4))
    assert solution.bound_kind is BoundKind.NONE
    assert solution.bound == -np.inf
    assert solution.certificate is None
    assert "the certificate of method 'prover'" in solution.message
    assert solution.stats["findings"]


def test_a_claim_above_the_proof_is_replaced_by_what_is_proved() -> None:
    problem = random_instance(3, "correlated", n=8, q=3)
    best = problem.solve("exhaustive").objective
    lie = problem.solve(Prover(prove=lambda p, s: enumerate_all(p, s, bound=best * 1.01), claim=best * 1.01))
    assert lie.bound == pytest.approx(best, rel=1e-9)
    assert lie.bound_kind is BoundKind.CERTIFIED
    assert "but its certificate proves" in lie.message
    assert isinstance(lie.certificate, Certificate)
    assert lie.certificate.bound == lie.bound


def test_a_proof_that_cannot_be_checked_leaves_the_claim_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    from osscar_opt.certificates import checker

    monkeypatch.setattr(checker.check, "__kwdefaults__", {"max_operations": 10.0})
    problem = random_instance(3, "correlated", n=8, q=3)
    solution = problem.solve(Prover(prove=enumerate_all, claim=0.1))
    assert solution.bound_kind is BoundKind.CLAIMED
    assert solution.bound == 0.1
    assert "could not be checked" in solution.message
    assert isinstance(solution.certificate, Certificate)


def test_what_is_no_certificate_of_the_library_passes_through() -> None:
    problem = random_instance(3, "correlated", n=8, q=3)
    assert problem.solve(Prover(prove=lambda *_: {"mine": 1}, claim=0.1)).certificate == {"mine": 1}


# ------------------------------------------------------------------------------------------------- exhaustive


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_exhaustive_writes_certificates(family: str) -> None:
    for seed in range(3):
        solution = random_instance(seed, family).solve("exhaustive", certificate=True)
        assert solution.bound_kind is BoundKind.CERTIFIED
        assert solution.status is Status.OPTIMAL
        assert solution.message == ""
        solution.verify()


@pytest.mark.parametrize(
    "family", ["correlated", "unequal_groups", "knapsack", "blocks", "forced", "rank_deficient"]
)
def test_exact_writes_certificates(family: str) -> None:
    problem = random_instance(1, family, n=16)
    solution = problem.solve("exact", certificate=True)
    assert solution.bound_kind is BoundKind.CERTIFIED
    assert solution.status is Status.OPTIMAL
    assert solution.message == ""
    solution.verify()


def test_an_interrupted_search_proves_the_bound_it_reached() -> None:
    problem = random_instance(2, "correlated", n=30, group_sizes=2, q=20)
    solution = problem.solve("exact", certificate=True, node_limit=3)
    assert solution.bound_kind is BoundKind.CERTIFIED
    assert problem.base < solution.bound <= solution.objective
    solution.verify()


def test_exhaustive_divides_what_one_leaf_cannot_hold() -> None:
    rng = np.random.default_rng(0)
    for limits in ({"keep": 8}, {"costs": rng.uniform(size=16), "budget": 3.0}):
        problem = Problem.from_data(rng.normal(size=(60, 16)), rng.normal(size=(16, 3)), **limits)
        if "budget" in limits:
            problem = problem.with_limits(always_remove=[1, 2])
        solution = problem.solve("exhaustive", certificate=True)
        assert solution.status is Status.OPTIMAL
        assert solution.bound_kind is BoundKind.CERTIFIED
        report = solution.certificate.check()  # type: ignore[union-attr]
        assert report.leaves["enumerated"] > 1
        assert report.bound == pytest.approx(problem.solve("exhaustive").objective, rel=1e-9)


def test_exhaustive_refuses_to_certify_too_many() -> None:
    with pytest.raises(CapabilityError, match="at most 50000"):
        random_instance(0, "correlated", n=20, q=3, keep=10).solve("exhaustive", certificate=True)


def test_a_problem_that_presolve_decides_has_a_certificate() -> None:
    problem = random_instance(0, "correlated", n=4, q=3).with_limits(always_keep=[0], always_remove=[1, 2, 3])
    solution = problem.solve("exhaustive", certificate=True)
    assert isinstance(solution.certificate, Certificate)
    assert solution.certificate.check(problem).proved == "optimal"
    assert problem.solve("exhaustive").certificate is None


def test_exhaustive_with_certificates_keeps_the_contract() -> None:
    check_solver("exhaustive", options={"certificate": True})


def test_a_certificate_comes_back_from_a_child_process() -> None:
    solution = random_instance(0, "forced").solve("exhaustive", certificate=True, isolation="process")
    assert solution.bound_kind is BoundKind.CERTIFIED


# --------------------------------------------------------------------------------------------- solution files


def test_a_solution_file_carries_its_certificate(tmp_path: Path) -> None:
    for family in ("forced", "knapsack", "planted"):
        problem = random_instance(2, family)
        solution = problem.solve("exhaustive", certificate=True)
        solution.save(tmp_path / "a")
        again = load_solution(tmp_path / "a", problem)
        assert isinstance(again.certificate, Certificate)
        assert again.certificate.to_bytes() == solution.certificate.to_bytes()  # type: ignore[union-attr]
        again.verify()


def test_a_damaged_certificate_in_a_solution_file_is_noticed(tmp_path: Path) -> None:
    problem = random_instance(2, "correlated")
    problem.solve("exhaustive", certificate=True).save(tmp_path / "a")

    raw = (tmp_path / "a").read_bytes()
    damaged = safetensors.numpy.load(raw)["certificate"].copy()
    damaged[-1] ^= 1
    (tmp_path / "a").write_bytes(reseal(raw, arrays={"certificate": damaged}))
    with pytest.raises(FormatError, match="certificate is damaged"):
        load_solution(tmp_path / "a", problem)


def test_verify_checks_the_certificate() -> None:
    problem = random_instance(2, "correlated")
    solution = problem.solve("exhaustive", certificate=True)
    proof = solution.certificate
    assert isinstance(proof, Certificate)
    false = dataclasses.replace(solution, certificate=proof.claiming(bound=solution.bound * 1.1))
    with pytest.raises(SolverError, match="certificate does not hold"):
        false.verify()
    partial = Certificate.of(problem, ProofTree.of(problem), bound=-1.0)
    with pytest.raises(SolverError, match="certificate proves only"):
        dataclasses.replace(solution, certificate=partial).verify()
    other = random_instance(3, "correlated").solve("exhaustive", certificate=True)
    with pytest.raises(SolverError, match="certificate does not hold: It is for problem"):
        dataclasses.replace(solution, certificate=other.certificate).verify()


# ------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    random_instance(3, "correlated", n=9, group_sizes=2, q=4).save(path)
    return path


def test_solve_and_verify(instance: Path, tmp_path: Path) -> None:
    proof, out = tmp_path / "proof", tmp_path / "out"
    shown = run_command("solve", instance, "-m", "exhaustive", "--certificate", proof, "--output", out)
    assert shown.exit_code == 0, shown.output
    assert "certified" in shown.stdout
    assert file_kind(proof) == "certificate"
    alone = run_command("verify", proof)
    assert alone.exit_code == 0
    assert "holds: 1 leaves" in alone.stdout
    for words in ((proof, instance), (instance, proof)):
        document = json.loads(run_command("verify", *words, "--json").stdout)
        assert document["holds"] is True
        assert document["proved"] == "optimal"
    assert run_command("verify", out, instance).exit_code == 0
    document = json.loads(run_command("info", proof, "--json").stdout)
    assert document["kind"] == "certificate"
    assert document["embedded"] is True
    assert "osscar-opt verify" in run_command("info", proof).stdout
    solved = run_command("solve", instance, "-m", "exhaustive", "--certificate", proof, "--json")
    assert json.loads(solved.stdout)["certificate"] == str(proof)


def test_verify_says_what_does_not_hold(instance: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    run_command("solve", instance, "-m", "exhaustive", "--certificate", proof)
    good = Certificate.load(proof)
    good.claiming(bound=good.bound * 2).save(proof)
    failed(run_command("verify", proof), 1, "does not hold", "claimed")
    refused = run_command("verify", proof, "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["holds"] is False
    good.save(proof)
    random_instance(4, "correlated", n=9, group_sizes=2, q=4).save(instance)
    failed(run_command("verify", proof, instance), 1, "for problem")


def test_wrong_calls(instance: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    failed(run_command("verify", instance), 2, "verify takes")
    failed(run_command("verify", instance, instance), 2, "verify takes")
    failed(
        run_command("solve", instance, "-m", "greedy", "--certificate", proof), 2, "no option 'certificate'"
    )
    failed(run_command("solve", instance, "-m", "exhaustive", "--certificate", tmp_path), 2, "is a directory")
    late = run_command("solve", instance, "-m", "exhaustive", "--certificate", proof, "--time-limit", "0")
    assert late.exit_code == 1
    assert "no certificate was written" in late.stderr
    assert not proof.exists()
