"""The checker and the builder: what is refused and why, tolerances, limits on work, files."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt import Problem
from osscar_opt.certificates import Certificate, ProofTree, check, checker
from osscar_opt.errors import FormatError, InputError

# ------------------------------------------------------------------------------------------------- the checker


def small(seed: int = 0, **options: Any) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem.from_data(rng.normal(size=(60, 8)), rng.normal(size=(8, 3)), **{"keep": 4, **options})


def enumerated(problem: Problem, **claims: Any) -> Certificate:
    tree = ProofTree.of(problem)
    tree.close_enumerated(0)
    return Certificate.of(problem, tree, **{"bound": problem.solve("exhaustive").objective, **claims})


def relaxed(problem: Problem, factor: float, bound: float = 0.0) -> Certificate:
    tree = ProofTree.of(problem)
    least = np.linalg.eigvalsh(problem.gram)[0]
    blocks = np.concatenate([factor * least * np.eye(s).ravel() for s in problem.groups.sizes])
    tree.close(0, relaxation=tree.relax(0, np.full(problem.n, 0.5), [blocks]))
    return Certificate.of(problem, tree, bound=bound)


def test_what_is_proved() -> None:
    problem = small()
    best = problem.solve("exhaustive")
    proof = enumerated(problem)
    assert proof.check().proved == "bound"  # there is no support whose value it could meet
    assert proof.claiming(bound=best.objective, support=best.support).check().proved == "optimal"
    report = proof.claiming(bound=best.objective * (1 - 1e-5), support=best.support).check()
    assert report.proved == "optimal"  # by what the leaves prove, which is more than is claimed
    assert report.value == pytest.approx(best.objective, rel=1e-12)
    tree = ProofTree.of(problem.with_keep(0))
    tree.close_infeasible(tree.branch(0, 0)[1])
    tree.close_superset(1)
    assert Certificate.of(problem.with_keep(0), tree, bound=0.0).check().proved == "bound"


def test_nothing_is_proved_of_a_problem_without_feasible_supports_but_that() -> None:
    problem = small(keep=None, costs=np.ones(8), budget=1.0)
    posed = dataclasses.replace(enumerated(problem, bound=0.0).posed, always_keep=np.arange(8) < 2)
    tree = ProofTree(8, kept=posed.always_keep)
    tree.close_infeasible(0)
    proof = dataclasses.replace(
        enumerated(problem, bound=1.0), posed=posed, proof=tree.packed(np.ones(8, int), 1)
    )
    assert proof.check().proved == "infeasible"


@pytest.mark.parametrize("claim", [2e-9, 1e-7, 1e-3, 10.0])
def test_a_claim_above_what_is_proved_is_refused(claim: float) -> None:
    best = small().solve("exhaustive").objective
    report = enumerated(small(), bound=best * (1 + claim)).check()
    assert not report.valid
    assert report.bound == pytest.approx(best, rel=1e-9)
    assert "proves only" in report.reasons[0]
    assert enumerated(small(), bound=best * (1 + 1e-10)).check().valid


def test_d_must_lie_below_the_gram_matrix() -> None:
    problem = small(groups=2, keep=2)
    assert relaxed(problem, 1 - 1e-9, bound=-1e9).check().valid
    for factor in (1.0, 1.001, 10.0):
        report = relaxed(problem, factor, bound=-1e9).check()
        assert report.reasons == (
            "The D of the relaxation at node 0 is not less than the Gram matrix there.",
        )
        assert report.bound == -np.inf
    for factor in (0.0, -0.1):
        assert "not positive definite" in relaxed(problem, factor, bound=-1e9).check().reasons[0]


def test_work_is_limited() -> None:
    proof = relaxed(small(), 0.5)
    report = check(proof, max_operations=1000.0)
    assert report.given_up
    assert "operations" in report.reasons[0]
    rng = np.random.default_rng(0)
    wide = Problem.from_data(rng.normal(size=(60, 30)), rng.normal(size=(30, 3)), keep=15)
    tree = ProofTree.of(wide)
    tree.close_enumerated(0)
    report = Certificate.of(wide, tree, bound=0.0).check()
    assert report.reasons == ("The leaf at node 0 stands for more than 4096 supports.",)


def test_a_matrix_that_float64_cannot_hold_is_given_up() -> None:
    gram = np.array([[1.0, 1 - 1e-15], [1 - 1e-15, 1.0]])
    posed = dataclasses.replace(enumerated(small(), bound=0.0).posed, gram=np.kron(np.eye(4), gram))
    report = dataclasses.replace(enumerated(small(), bound=0.0), posed=posed).check()
    assert report.given_up
    assert "float64" in report.reasons[0]


def test_units_of_rows_change_nothing() -> None:
    rng, problem = np.random.default_rng(5), small(groups=2, keep=2)
    units = 10.0 ** rng.uniform(-60, 60, problem.p)
    scaled = Problem(problem.gram * np.outer(units, units), problem.cross * units[:, None], groups=2, keep=2)
    tree, other = ProofTree.of(problem), ProofTree.of(scaled)
    z, least = rng.uniform(0.1, 1, 4), 0.9 * np.linalg.eigvalsh(problem.gram)[0]
    tree.close(0, relaxation=tree.relax(0, z, [np.tile(least * np.eye(2).ravel(), 4)]))
    blocks = [
        np.diag(least * units[rows] ** 2).ravel()
        for rows in problem.groups.group_of_row.argsort().reshape(4, 2)
    ]
    other.close(0, relaxation=other.relax(0, z, [np.concatenate(blocks)]))
    bounds = [Certificate.of(p, t, bound=-1e9).check().bound for p, t in ((problem, tree), (scaled, other))]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9, abs=1e-9)


def test_it_needs_numpy_and_nothing_else(tmp_path: Path) -> None:
    source = Path(checker.__file__).read_text()
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported - sys.stdlib_module_names == {"numpy"}
    (tmp_path / "alone.py").write_text(source)
    problem = small()
    for name, proof in (("good", enumerated(problem)), ("bad", enumerated(problem, bound=1e9))):
        proof.save(tmp_path / name)
        done = subprocess.run(
            [sys.executable, "-I", "alone.py", name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout.startswith(f"{name}: {'holds' if name == 'good' else 'does not hold'}")
        assert done.returncode == (name == "bad")
    module = [sys.executable, "-W", "error", "-m", "osscar_opt.certificates.checker", str(tmp_path / "good")]
    assert subprocess.run(module, capture_output=True, check=False).returncode == 0
    assert checker.main([]) == 2


# --------------------------------------------------------------------------------------------- files and builder


def test_files(tmp_path: Path) -> None:
    problem = small(always_keep=[2], groups=2, keep=3)
    proof = enumerated(problem)
    proof.save(tmp_path / "a")
    again = Certificate.load(tmp_path / "a")
    assert again.to_bytes() == proof.to_bytes() == (tmp_path / "a").read_bytes()
    assert check(tmp_path / "a", problem).valid
    proof.save(tmp_path / "b", embed=False)
    assert (tmp_path / "b").stat().st_size < (tmp_path / "a").stat().st_size
    assert "together with the problem" in check(tmp_path / "b").reasons[0]
    assert check(tmp_path / "b", problem).valid
    assert Certificate.load(tmp_path / "b", problem).check().valid
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OSError, match="no"):
        proof.save(tmp_path / "no" / "c")
    with pytest.raises(FormatError, match=r"cannot be opened"):
        Certificate.load(tmp_path / "c")


@pytest.mark.parametrize("change", [{"keep": 3}, {"always_keep": [0]}, {"groups": None}, {"seed": 1}])
def test_the_problem_must_be_the_one(change: dict[str, Any]) -> None:
    proof = enumerated(small(groups=2))
    report = proof.check(small(**{"groups": 2, **change}))
    assert not report.valid
    assert "problem" in report.reasons[0]
    with pytest.raises(FormatError, match="problem"):
        Certificate.load(proof.to_bytes(embed=False), small(**{"groups": 2, **change}))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    for source in (raw, len(raw).to_bytes(8, "little") + raw):
        (reason,) = check(source).reasons
        assert "evaluated" not in reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@given(st.dictionaries(st.sampled_from(["__metadata__", "gram", "z", "tree"]), JSON | ENTRY, max_size=4))
def test_arbitrary_headers_are_refused(header: dict[str, Any]) -> None:
    meta = header.get("__metadata__")
    if isinstance(meta, dict):
        meta |= {"format": "osscar-opt/certificate", "version": "1.0", "seal": "0" * 64}
    text = json.dumps(header).encode()
    seal = checker.header_seal(len(text).to_bytes(8, "little") + text, "0" * 64)
    (reason,) = check(len(text).to_bytes(8, "little") + text.replace(b"0" * 64, seal.encode())).reasons
    assert "evaluated" not in reason


def test_the_builder_refuses_what_is_no_proof() -> None:
    tree = ProofTree(3, kept=np.array([True, False, False]))
    one, d = np.ones(2), [np.full(2, 0.5)]
    at_root = tree.relax(0, one, d)
    without, with_it = tree.branch(0, 1)
    below = tree.relax(without, np.ones(1), [np.full(1, 0.5)])
    tree.close_superset(without)
    for mistake, says in (
        (lambda: tree.branch(with_it, 0), "group 0 is not free"),
        (lambda: tree.branch(with_it, 1), "group 1 is not free"),
        (lambda: tree.branch(with_it, 3), "group 3 is not free"),
        (lambda: tree.branch(0, 2), "not an open leaf"),
        (lambda: tree.close_enumerated(without), "not an open leaf"),
        (lambda: tree.close(9, relaxation=at_root), "not an open leaf"),
        (lambda: tree.close(with_it, relaxation=7), "no relaxation 7"),
        (lambda: tree.close(with_it, relaxation=below), "not at or below node 1"),
        (lambda: tree.relax(0, np.ones(3), d), "z needs 2 numbers"),
        (lambda: tree.relax(0, one * 0, d), "must lie in"),
        (lambda: tree.relax(0, one, d * 2), "equally many terms"),
        (lambda: tree.relax(0, one, [np.array([np.nan, 1])]), "must be finite"),
        (lambda: tree.relax(0, one, d, np.array([-1.0])), "not negative"),
        (lambda: tree.relax_dual(0, -one, one, np.ones((2, 1))), "y must lie in"),
        (lambda: tree.relax_dual(0, one, np.ones(3), np.ones((2, 1))), "delta needs 2 numbers"),
        (lambda: tree.relax_dual(0, one, one, np.ones(2)), "must be a matrix"),
        (lambda: tree.relax_dual(0, one, one * np.inf, np.ones((2, 1))), "must be finite"),
        (lambda: tree.state(12), "no node 12"),
        (lambda: ProofTree(2, removed=np.ones(2, bool), kept=np.ones(2, bool)), "share none"),
    ):
        with pytest.raises(InputError, match=says):
            mistake()
    problem = small()
    with pytest.raises(InputError, match="does not start where"):
        Certificate.of(problem, ProofTree(8, removed=np.arange(8) == 0), bound=0.0)
    with pytest.raises(InputError, match="finite"):
        Certificate.of(problem, ProofTree.of(problem), bound=np.inf)
    four, pairs = np.ones(4), small(groups=2)
    for relax, says in (
        (lambda tree: tree.relax(0, four, [np.ones(9)]), "need 16 numbers"),
        (lambda tree: tree.relax(0, four, [np.arange(16.0)]), "not symmetric"),
        (lambda tree: tree.relax(0, four, [np.ones(16)], np.ones(2)), "prices must be 1 numbers"),
        (lambda tree: tree.relax_dual(0, four, four, np.ones((4, 3))), "needs 8 rows"),
        (lambda tree: tree.relax_dual(0, four, four, np.ones((8, 5))), "must have 3 columns"),
    ):
        tree = ProofTree.of(pairs)
        relax(tree)
        with pytest.raises(InputError, match=says):
            Certificate.of(pairs, tree, bound=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multipliers_are_kept_exactly(dtype: type) -> None:
    problem = small()
    lam = np.random.default_rng(0).normal(size=(8, 3)).astype(dtype)
    tree = ProofTree.of(problem)
    tree.relax_dual(0, np.full(8, 0.5), np.full(8, 1e6), lam)
    kept = Certificate.load(Certificate.of(problem, tree, bound=-1e300).to_bytes()).proof.lam
    assert kept.dtype == dtype
    assert np.array_equal(kept, lam)
    assert Certificate.of(problem, tree, bound=-1e300).check().valid


def test_delta_must_be_large_enough() -> None:
    problem = small()
    lam = np.random.default_rng(0).normal(size=(8, 3))
    form = np.linalg.inv(problem.gram) * (lam @ lam.T)
    scale = np.sqrt(form.diagonal())
    largest = np.linalg.eigvalsh(form / np.outer(scale, scale))[-1] * scale**2
    for factor, valid in ((1 + 1e-11, True), (1 - 1e-8, False), (0.5, False), (-1.0, False)):
        tree = ProofTree.of(problem)
        tree.relax_dual(0, np.full(8, 0.5), factor * largest, lam)
        report = Certificate.of(problem, tree, bound=-1e300).check()
        assert report.valid == valid
        assert valid or "is too small" in report.reasons[0]


def test_an_open_leaf_is_bounded_by_the_deepest_relaxation_above_it() -> None:
    problem = small()
    least = 0.9 * np.linalg.eigvalsh(problem.gram)[0]
    tree = ProofTree.of(problem)
    tree.relax(0, np.full(8, 0.5), [np.full(8, least)])
    without, _ = tree.branch(0, 0)
    tree.relax(without, np.full(7, 0.5), [np.full(7, least)])
    packed = tree.packed(np.ones(8, dtype=int), 1)
    assert packed.relaxed_at[packed.cites[1:]].tolist() == [1, 0]
    open_ended = Certificate.of(problem, tree, bound=-1e9).check()
    assert open_ended.leaves == {"open": 2}
    assert open_ended.bound >= problem.base * (1 - 1e-9)
