"""Outer approximation with HiGHS: its cuts, its bound and its answers against plain enumeration."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import osscar_opt
from osscar_opt import Problem
from osscar_opt.errors import InputError, SolverError
from osscar_opt.formulations.cuts import Cuts, Separator, Terms
from osscar_opt.formulations.outer import Master
from osscar_opt.instances.generators import FAMILIES, random_instance
from osscar_opt.solvers.base import Deadline, Report
from osscar_opt.solvers.highs import Highs
from osscar_opt.testing import check_solver

REAL = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
FAMILY_NAMES = sorted(FAMILIES)


# ------------------------------------------------------------------------- the oracle: no code of the library's


def value(problem, support):
    """base + 1/2 tr((W* - W)'H(W* - W)) by solves from scratch, in units in which the gram has unit diagonal."""
    live = problem.gram.diagonal() > 0
    rows = live & support[problem.groups.group_of_row]
    scale = 1 / np.sqrt(np.where(live, problem.gram.diagonal(), 1.0))
    gram, cross = problem.gram * scale[:, None] * scale, problem.cross * scale[:, None]

    def fitted(chosen):
        weights = np.zeros(cross.shape)
        weights[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], cross[chosen])
        return weights

    apart = fitted(live) - fitted(rows)
    return problem.base + 0.5 * float(np.sum(apart * (gram @ apart)))


def all_supports(n):
    return np.array(list(itertools.product([False, True], repeat=n)))


def feasible(problem, support):
    met = [not (problem.always_keep & ~support).any(), not (problem.always_remove & support).any()]
    if problem.keep is not None:
        met.append(support.sum() <= problem.keep)
    if problem.costs is not None:
        met.append(problem.costs[support].sum() <= problem.budget * (1 + 1e-9))
    if problem.blocks is not None:
        met += [support[problem.blocks == b].sum() <= k for b, k in enumerate(problem.block_keep)]
    return all(met)


def best_value(problem):
    return min(value(problem, s) for s in all_supports(problem.n) if feasible(problem, s))


def instance(seed):
    """A problem of any family: n <= 9, group sizes 1 to 4 or mixed, q from 1 to 3n, damping 1e-3 to 1e-1."""
    rng = np.random.default_rng([20, seed])
    family = FAMILY_NAMES[seed % len(FAMILY_NAMES)]
    n = int(rng.integers(5, 10))
    options = {"n": n, "q": int(rng.integers(1, 3 * n + 1))}
    try:
        return random_instance(
            seed,
            family,
            group_sizes=[1, 2, 3, 4, "mixed"][seed % 5],
            damping=float(10.0 ** rng.uniform(-3, -1)),
            **options,
        )
    except (InputError, TypeError):
        return random_instance(seed, family, **options)


def tolerance(problem, best):
    return 1e-6 * abs(best) + 1e-9 * abs(problem.constant - problem.base) + 1e-12 * abs(problem.base)


def assert_proved(problem):
    """Bound <= enumeration <= value, and all three equal where the method says so."""
    best = best_value(problem)
    solution = problem.solve("highs")
    assert problem.feasible(solution.support)
    assert solution.bound <= best + tolerance(problem, best)
    assert solution.objective >= best - tolerance(problem, best)
    assert (solution.status, solution.termination) == ("optimal", "completed"), solution.message
    assert solution.objective <= best + tolerance(problem, best)


# ------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("seed", range(40))
def test_the_answer_is_that_of_enumeration(seed):
    assert_proved(instance(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 2000))
def test_the_answer_is_that_of_enumeration_2000_times(seed):
    assert_proved(instance(seed))


def test_conformance():
    check_solver("highs")


@pytest.mark.parametrize("matrices", [1, 3])
def test_terms_that_share_a_matrix_give_the_same_answer(matrices):
    problem = random_instance(5, "correlated", n=9, q=7)
    expected = problem.solve("exhaustive").objective
    solution = problem.solve("highs", matrices=matrices)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("path", [path for path in REAL if "ffn" in path.stem], ids=lambda path: path.stem)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_first_16_neurons_of_real_layers(path, ratio):
    layer = osscar_opt.load(path)
    first = np.arange(16)
    problem = Problem(
        layer.gram[np.ix_(first, first)], dense_weights=layer.optimum[first], keep=round(ratio * 16)
    )
    solution = problem.solve("highs", time_limit=60)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(problem.solve("exhaustive").objective, rel=1e-6)


@pytest.mark.parametrize("time_limit", [0.0, 0.01, 0.2])
def test_a_time_limit_gives_an_incumbent_and_a_bound(time_limit):
    problem = random_instance(1, "correlated", n=60, q=40)
    began = time.monotonic()
    solution = problem.solve("highs", time_limit=time_limit)
    assert time.monotonic() - began < time_limit + 2.0
    assert problem.feasible(solution.support)
    assert solution.bound <= solution.objective
    assert solution.bound >= problem.base or solution.termination == "time_limit"


def test_a_stopped_run_keeps_what_it_has():
    problem = random_instance(1, "correlated", n=60, q=40)
    deadline, report = Deadline(), Report(problem)
    timer = threading.Timer(1.0, deadline.stop)
    timer.start()
    began = time.monotonic()
    proposal = Highs().propose(problem, start=None, deadline=deadline, report=report)
    assert time.monotonic() - began < 10.0
    assert proposal.termination == "time_limit"
    assert problem.base < report.best_bound == proposal.lower_bound < report.incumbents[0].claim
    assert problem.value(proposal.support) == pytest.approx(report.incumbents[0].claim, rel=1e-9)


def test_rounds_are_limited():
    problem = random_instance(1, "correlated", n=30, q=20)
    solution = problem.solve("highs", relaxations=1, rounds=0)
    assert solution.termination == "iteration_limit"
    assert problem.base < solution.bound < solution.objective


def test_highs_used_before_in_this_thread_with_other_threads():
    other = highspy.Highs()
    other.silent()
    other.setOptionValue("threads", 2)
    other.addBinary(obj=1.0)
    other.run()
    problem = random_instance(1, "correlated", n=8, q=3)
    proposal = Highs().propose(problem, start=None, deadline=Deadline(), report=Report(problem))
    assert proposal.termination == "completed"


# --------------------------------------------------------------------------------------------------------- the cuts


def assert_valid(problem, cuts, terms):
    """No cut above the loss of its term, and the terms add up to the loss; for every subset, feasible or not."""
    for support in all_supports(problem.n):
        losses = terms.losses(support)
        lost = value(problem, support) - problem.base
        slack = 1e-8 * (problem.constant - problem.base)
        assert losses.sum() == pytest.approx(lost, abs=slack)
        assert np.all(cuts.at(support.astype(float)) <= losses[cuts.term] + slack)


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=25)
def test_cuts_are_valid_for_every_subset(seed, data):
    problem = instance(seed).with_limits(always_keep=None, always_remove=None)
    if problem.n > 7:
        problem = random_instance(seed, "correlated", n=6, q=5, group_sizes="mixed")
    terms = Terms(problem, data.draw(st.sampled_from([None, 1, 2])))
    separator = Separator(terms)
    z = np.array(data.draw(st.lists(st.floats(0, 1), min_size=problem.n, max_size=problem.n)))
    assert_valid(problem, separator.inside(z), terms)
    assert_valid(problem, separator.corner(z > 0.5), terms)


def test_cuts_touch_the_loss_at_a_corner():
    problem = random_instance(3, "correlated", n=8, q=5)
    terms = Terms(problem)
    for bits in (0, 5, 77, 255):
        support = np.array([bool(bits >> g & 1) for g in range(8)])
        cuts = terms.cuts_at(support.astype(float))
        np.testing.assert_allclose(
            cuts.at(support.astype(float)), terms.losses(support), rtol=1e-7, atol=1e-9
        )


def test_a_cut_that_cuts_off_a_support_is_found():
    """Plant a wrong cut: it stands above the loss of the optimum, and every check has to see it."""
    problem = random_instance(3, "correlated", n=6, q=4)
    terms = Terms(problem)
    best = problem.solve("exhaustive").support
    good = terms.cuts_at(np.full(6, 0.5))
    wrong = Cuts(good.term, good.level + 0.2 * problem.constant, good.slopes)
    with pytest.raises(AssertionError):
        assert_valid(problem, wrong, terms)
    master = Master(problem, terms, scale=1.0)
    master.add(wrong)
    with pytest.raises(SolverError, match="on a support where it is"):
        master.require_valid(best, terms.losses(best))


def test_a_run_with_wrong_cuts_does_not_call_its_answer_optimal(monkeypatch):
    right = Separator.inside

    def inside(self, z):
        cuts = right(self, z)
        return Cuts(cuts.term, 3.0 * cuts.level, cuts.slopes)

    monkeypatch.setattr(Separator, "inside", inside)
    problem = random_instance(3, "correlated", n=10, q=4)
    solution = problem.solve("highs")
    assert solution.status == "feasible"
    assert "failed" in solution.message


def test_the_relaxation_bounds_every_support_and_the_integer_master_every_feasible_one():
    problem = random_instance(4, "correlated", n=8, q=5)
    terms = Terms(problem)
    separator, values = Separator(terms), {}
    for support in all_supports(8):
        if feasible(problem, support):
            values[support.tobytes()] = value(problem, support)
    best = min(values.values())
    master = Master(problem, terms, scale=best - problem.base)
    for z in (np.full(8, 0.5), np.linspace(0.1, 0.9, 8)):
        master.add(separator.inside(z))
    relaxed, solved = master.relax(), master.solve()
    assert relaxed.bound <= solved.bound + 1e-6
    assert master.objective(solved.bound) <= best * (1 + 1e-9)
    for group in range(8):
        for kept, bound in ((True, relaxed.if_kept), (False, relaxed.if_removed)):
            having = [v for s, v in values.items() if np.frombuffer(s, bool)[group] == kept]
            assert master.objective(bound[group]) <= min(having) * (1 + 1e-9)


# --------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("suffix", [".mps", ".lp"])
@pytest.mark.parametrize("family", ["correlated", "knapsack", "blocks", "forced"])
def test_the_file_has_the_optimum_of_the_master_in_memory(suffix, family, tmp_path):
    problem = random_instance(2, family, n=7, q=4)
    terms = Terms(problem)
    master = Master(problem, terms, scale=0.1 * problem.constant)
    master.add(Separator(terms).inside(np.full(7, 0.5)))
    master.write(str(tmp_path / f"master{suffix}"))
    in_memory = master.objective(master.solve().bound)
    read = highspy.Highs()
    read.silent()
    read.setOptionValue("threads", 1)
    read.readModel(str(tmp_path / f"master{suffix}"))
    read.run()
    assert read.getInfo().objective_function_value == pytest.approx(in_memory, rel=1e-5)
    assert in_memory <= best_value(problem) * (1 + 1e-9)
    names = {read.getColName(column)[1] for column in range(read.getNumCol())}
    assert {f"keep_{g}" for g in range(7)} <= names
    assert "cut_0" in {read.getRowName(row)[1] for row in range(read.getNumRow())}
