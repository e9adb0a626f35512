"""Solvers against oracles that share no code with them: least squares, enumeration, a literal greedy."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import osscar_opt
from osscar_opt import Problem
from osscar_opt.instances.generators import FAMILIES, random_instance
from osscar_opt.solvers import solvers

METHODS = [
    info.name
    for info in solvers()
    if info.available
    and not info.required_options  # scores and filters from elsewhere: tests/test_scores_solver.py
    and info.source.startswith("osscar_opt.")
    and info.name not in ("cvxpy", "highs")  # hours on some of these; they have tests of their own
]
PUBLISHED = [
    name for name in METHODS if ".published." in solvers()[name].source
]  # as published: without a refit
REFITTED = [name for name in METHODS if name not in ("magnitude", *PUBLISHED)]
REAL = sorted((Path(__file__).parent / "data").glob("*.safetensors"))


def all_supports(problem):
    """Every support that meets the limits, by trying all."""
    for bits in itertools.product([False, True], repeat=problem.n):
        support = np.array(bits)
        if problem.keep is not None and support.sum() > problem.keep:
            continue
        if problem.budget is not None and support @ problem.costs > problem.budget * (1 + 1e-12):
            continue
        if problem.blocks is not None and any(
            support[problem.blocks == b].sum() > k for b, k in enumerate(problem.block_keep)
        ):
            continue
        if (problem.always_keep & ~support).any() or (problem.always_remove & support).any():
            continue
        yield support


def least_squares_value(problem, support):
    """Objective of the refit by an orthogonal factorisation of a square root of the gram, not by normal equations."""
    values, vectors = np.linalg.eigh(problem.gram)
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T  # H = root' root
    target = root @ problem.dense_weights
    rows = support[problem.groups.group_of_row]
    if not rows.any():
        return 0.5 * float(np.sum(target**2))
    weights = np.linalg.lstsq(root[:, rows], target, rcond=None)[0]
    return 0.5 * float(np.sum((root[:, rows] @ weights - target) ** 2))


def precise_value(problem, support):
    """The same in extended precision: 1/2 tr(D' H D), D = W - W0, with W from a Cholesky factor written out here."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is double on this machine")
    gram, dense = (array.astype(np.longdouble) for array in (problem.gram, problem.dense_weights))
    rows = support[problem.groups.group_of_row]
    difference = -dense
    if rows.any():
        lower = gram[np.ix_(rows, rows)].copy()
        weights = gram[rows] @ dense
        for j in range(len(lower)):
            lower[j:, j] -= lower[j:, :j] @ lower[j, :j]
            lower[j:, j] /= np.sqrt(lower[j, j])
            weights[j] = (weights[j] - lower[j, :j] @ weights[:j]) / lower[j, j]
        for j in reversed(range(len(lower))):
            weights[j] = (weights[j] - lower[j + 1 :, j] @ weights[j + 1 :]) / lower[j, j]
        difference[rows] += weights
    return float(0.5 * np.sum(difference * (gram @ difference)))


def plain_value(problem, support):
    """Objective by a solve from scratch, for problems whose constant matters."""
    rows = support[problem.groups.group_of_row]
    if not rows.any():
        return problem.constant
    cross = problem.cross[rows]
    return problem.constant - 0.5 * float(
        np.trace(cross.T @ np.linalg.solve(problem.gram[np.ix_(rows, rows)], cross))
    )


def dense_problem(seed, n, sizes, q, exponent):
    """Targets from the same inputs, and a gram of condition about 10**exponent."""
    rng = np.random.default_rng(seed)
    per_group = np.full(n, sizes) if isinstance(sizes, int) else rng.choice(sizes, n)
    p = int(per_group.sum())
    basis = np.linalg.qr(rng.normal(size=(p, p)))[0]
    gram = basis @ np.diag(10.0 ** np.linspace(0.0, -exponent, p)) @ basis.T
    group_of_row = rng.permutation(np.repeat(np.arange(n), per_group))
    return Problem((gram + gram.T) / 2, dense_weights=rng.normal(size=(p, q)), groups=group_of_row)


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.parametrize("method", REFITTED)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 7),
    sizes=st.sampled_from([1, 3, (1, 2, 4)]),
    q=st.integers(1, 9),
    exponent=st.sampled_from([1, 4]),
)
@settings(max_examples=25)
def test_the_objective_is_that_of_an_independent_least_squares_refit(method, seed, n, sizes, q, exponent):
    problem = dense_problem(seed, n, sizes, q, exponent).with_keep((n + 1) // 2)
    solution = problem.solve(method)
    assert solution.support.sum() <= problem.keep
    assert solution.objective == pytest.approx(least_squares_value(problem, solution.support), rel=1e-9)


@pytest.mark.parametrize("sizes", [1, 3, 9, (1, 2, 4)], ids=str)
@pytest.mark.parametrize("method", REFITTED)
def test_the_objective_is_right_at_condition_1e10(method, sizes):
    problem = dense_problem(4, 10, sizes, 3, 10).with_keep(6)
    solution = problem.solve(method)
    assert solution.objective == pytest.approx(precise_value(problem, solution.support), rel=1e-9)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", [name for name in REFITTED if name not in ("exhaustive", "auto")])
def test_the_objective_on_real_layers(method, path):
    problem = osscar_opt.load(path)
    solution = problem.solve(method)
    assert solution.objective == pytest.approx(least_squares_value(problem, solution.support), rel=1e-9)


def test_magnitude_keeps_the_dense_weights():
    problem = dense_problem(1, 6, 3, 4, 1).with_keep(3)
    solution = problem.solve("magnitude")
    rows = solution.support[problem.groups.group_of_row]
    np.testing.assert_array_equal(solution.weights[rows], problem.dense_weights[rows])
    difference = solution.weights - problem.dense_weights
    assert solution.objective == pytest.approx(
        0.5 * np.trace(difference.T @ problem.gram @ difference), rel=1e-9
    )
    assert solution.objective > problem.solve("magnitude_refit").objective


def test_outputs_given_as_weights_are_noticed():
    with pytest.raises(osscar_opt.errors.InputError, match="as targets="):
        Problem.from_data(np.random.default_rng(0).normal(size=(30, 4)), np.ones((30, 3)))


# ------------------------------------------------------------------------------------------------ exhaustive


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_is_plain_enumeration(family, seed):
    problem = random_instance(seed, family, n=7, q=2 + seed)
    solution = problem.solve("exhaustive")
    best = min(plain_value(problem, support) for support in all_supports(problem))
    assert problem.feasible(solution.support)
    assert solution.objective == pytest.approx(best, rel=1e-9, abs=1e-10 * problem.constant)
    assert solution.status == "optimal"


def test_exhaustive_refuses_what_it_cannot_finish():
    problem = Problem(np.eye(60), np.ones((60, 1)), keep=30)
    with pytest.raises(osscar_opt.errors.CapabilityError, match="max_supports"):
        problem.solve("exhaustive")


# ------------------------------------------------------------------------------------------------ greedy


def literal_greedy(problem, keep):
    """Remove the group whose removal, after a refit from scratch, costs least; with each choice's relative lead."""
    support, order, margins = np.ones(problem.n, bool), [], []
    while support.sum() > keep:
        costs = np.full(problem.n, np.inf)
        for group in np.flatnonzero(support):
            without = support.copy()
            without[group] = False
            costs[group] = precise_value(problem, without)
        order.append(int(np.argmin(costs)))
        ranked = np.sort(costs)
        margins.append((ranked[1] - ranked[0]) / ranked[1] if len(ranked) > 1 and ranked[1] > 0 else 0.0)
        support[order[-1]] = False
    return order, margins


def assert_same_choices(problem, keep, tie):
    """The choices agree up to the first tie: where two groups cost the same to `tie`, either may go."""
    order, margins = literal_greedy(problem, keep)
    chosen = list(problem.path("greedy").order[: problem.n - keep])
    for step, (expected, margin) in enumerate(zip(order, margins, strict=True)):
        if margin < tie:
            return step
        assert chosen[step] == expected, (
            f"choice {step}: {chosen[step]}, not {expected} (margin {margin:.1e})"
        )
    assert set(np.flatnonzero(~problem.with_keep(keep).solve("greedy").support)) == set(order)
    return len(order)


@pytest.mark.parametrize("sizes", [1, 3, 9, (1, 2, 4)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_makes_exactly_the_one_at_a_time_choices(sizes, seed):
    problem = dense_problem(seed, 12, sizes, 5, 2)
    assert assert_same_choices(problem, 2, tie=1e-9) == 10


@pytest.mark.parametrize("sizes", [1, 3, 9, (1, 2, 4)], ids=str)
def test_greedy_at_condition_1e10(sizes):
    problem = dense_problem(7, 12, sizes, 5, 10)
    assert assert_same_choices(problem, 2, tie=1e-7) == 10


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_greedy_on_real_layers(path):
    problem = osscar_opt.load(path)
    keep = problem.n // 4
    assert assert_same_choices(problem, keep, tie=1e-7) == problem.n - keep


def test_the_path_has_the_greedy_value_for_every_keep():
    problem = dense_problem(2, 9, (1, 2, 4), 4, 1)
    path = problem.path()
    for keep in range(10):
        solution = problem.with_keep(keep).solve("greedy")
        assert path.objective(keep) == pytest.approx(solution.objective, rel=1e-9, abs=1e-14)
        np.testing.assert_array_equal(path.support(keep), solution.support)


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("osscar", {"stage": 0}),
        ("osscar", {"exchange": -1}),
        ("swap", {"per_evaluation": 0}),
        ("search", {"seed": -1}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(method, option):
    with pytest.raises(osscar_opt.errors.OptionError, match="must be at least"):
        Problem(np.eye(3), np.ones((3, 2)), keep=1).solve(method, **option)


def test_a_device_or_precision_that_is_not_there_is_refused():
    problem = Problem(np.eye(3), np.ones((3, 2)), keep=1)
    with pytest.raises(osscar_opt.errors.UnavailableError, match="use device='cpu'"):
        problem.solve("greedy", device="abacus")
    with pytest.raises(osscar_opt.errors.OptionError, match="precision"):
        problem.solve("greedy", precision="float16")


# ------------------------------------------------------------------------------------------------ local optima


@pytest.mark.parametrize("seed", range(6))
def test_no_exchange_improves_on_swap(seed):
    problem = random_instance(seed, n=9, q=3)
    solution = problem.solve("swap")
    assert solution.termination == "local_optimum"
    for out in np.flatnonzero(solution.support & ~problem.always_keep):
        for new in np.flatnonzero(~solution.support & ~problem.always_remove):
            other = solution.support.copy()
            other[[out, new]] = False, True
            if problem.feasible(other):
                assert plain_value(problem, other) >= solution.objective - 1e-8 * problem.constant


def test_better_methods_are_never_worse_than_where_they_start():
    for seed in range(20):
        problem = random_instance(seed, n=10, q=3)
        greedy = problem.solve("greedy").objective
        for method in ("osscar", "swap", "search"):
            assert problem.solve(method).objective <= greedy + 1e-12 * problem.constant


@pytest.mark.parametrize("method", ["greedy", "forward", "osscar", "swap", "search"])
@pytest.mark.parametrize("family", ["correlated", "unequal_groups", "knapsack", "blocks"])
def test_torch_gives_the_same_answers(method, family):
    problem = random_instance(3, family, n=8, q=3)
    here = problem.solve(method)
    there = problem.solve(method, device="torch:cpu")
    assert there.objective == pytest.approx(here.objective, rel=1e-9)


def hits(seeds):
    """How many of the random instances `search` solves to the value of `exhaustive`."""
    families = sorted(FAMILIES)
    found, missed = 0, []
    for seed in seeds:
        family = families[seed % len(families)]
        problem = random_instance(seed, family, n=6 + seed % 11, q=1 + seed % 7)
        best = problem.solve("exhaustive").objective
        value = problem.solve("search", seed=seed).objective
        assert value >= best - 1e-9 * problem.constant
        if value <= best * (1 + 1e-7) + 1e-11 * problem.constant:
            found += 1
        else:
            missed.append((seed, family))
    return found, missed


def test_search_finds_the_optimum_of_small_problems():
    found, missed = hits(range(60))
    assert found >= 59, missed


@pytest.mark.slow
def test_search_finds_the_optimum_of_500_problems():
    found, missed = hits(range(500))
    assert found >= 495, missed
