"""Counts under a budget: marginal steps, dynamic program and 0-1 program against enumeration; clusters of examples."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.errors import CapabilityError, InfeasibleError, InputError, OptionError, SolverError
from osscar_opt.formulations.clusters import (
    cluster_problem,
    complexities,
    density_targets,
    hardest_examples,
    rounded_counts,
)
from osscar_opt.formulations.counts import CountProblem, CountSolution
from osscar_opt.formulations.solution import BoundKind, Status


def best_of_all(problem):
    allowed = (
        counts
        for counts in itertools.product(*(range(len(curve)) for curve in problem.curves))
        if problem.violation(np.array(counts)) == ""
    )
    return min((problem.objective(np.array(counts)) for counts in allowed), default=np.inf)


def convex_curves(rng, parts, length):
    falls = -np.sort(-rng.exponential(size=(parts, length)), axis=1)
    return [np.append(f.sum(), f.sum() - np.cumsum(f)) for f in falls]


# ------------------------------------------------------------------------------------------------ exact methods


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exactly", [False, True])
def test_marginal_steps_are_optimal_for_convex_curves_and_proved(seed, exactly):
    rng = np.random.default_rng(seed)
    curves = convex_curves(rng, 4, 3)
    if exactly:
        curves = [curve + 0.7 * np.arange(len(curve)) for curve in curves]  # too many items cost
    for budget in range(13):
        problem = CountProblem(curves, budget, exactly=exactly)
        solution = problem.solve("marginal")
        assert solution.objective == pytest.approx(best_of_all(problem), abs=1e-12)
        assert solution.status is Status.OPTIMAL
        assert solution.bound_kind is BoundKind.CERTIFIED
        assert problem.solve("auto").method == "marginal"


@given(data=st.data())
def test_all_methods_against_enumeration(data):
    parts = data.draw(st.integers(1, 4))
    loss = st.one_of(st.integers(0, 9).map(float), st.just(np.inf))
    curves = [
        data.draw(st.lists(loss, min_size=1, max_size=4).filter(lambda c: np.isfinite(c).any()))
        for _ in range(parts)
    ]
    costs = data.draw(st.lists(st.integers(1, 4), min_size=parts, max_size=parts))
    exactly = data.draw(st.booleans())
    try:
        problem = CountProblem(curves, data.draw(st.integers(0, 20)), costs=costs, exactly=exactly)
    except InfeasibleError:
        return
    best = best_of_all(problem)
    assert problem.bound().value <= best + 1e-9
    if not np.isfinite(best):
        for method in ("dynamic", "milp"):
            with pytest.raises(InfeasibleError):
                problem.solve(method)
        return
    for method in ("dynamic", "milp"):
        solution = problem.solve(method)
        solution.verify()
        assert solution.objective == pytest.approx(best, abs=1e-7)
        assert solution.status is Status.OPTIMAL
    try:
        heuristic = problem.solve("marginal")
    except CapabilityError:
        assert exactly  # it says so rather than return counts that miss the budget
    else:
        heuristic.verify()
        assert heuristic.objective >= best - 1e-9


def test_marginal_steps_need_not_be_optimal_for_other_curves():
    problem = CountProblem([[4.0, 4.0, 4.0, 0.0], [2.0, 1.0, 0.5, 0.0]], budget=3)
    assert not problem.convex
    assert problem.solve("dynamic").counts.tolist() == [3, 0]
    costly = CountProblem([[10.0, 0.0], [6.0, 0.0], [6.0, 0.0]], 2.0, costs=[1.6, 1.0, 1.0])
    greedy, exact = costly.solve("marginal"), costly.solve("milp")
    assert greedy.objective > exact.objective
    assert greedy.status is Status.FEASIBLE
    assert exact.counts.tolist() == [0, 1, 1]


def test_bound_is_that_of_the_best_multiplier():
    curves = [[4.0, 3.0, 0.0], [4.0, 2.0, 1.5]]
    problem = CountProblem(curves, 3)
    lagrangian = [
        sum(min(f + m * k for k, f in enumerate(curve)) for curve in curves) - 3 * m
        for m in np.linspace(0, 5, 5001)
    ]
    assert problem.bound().value == pytest.approx(max(lagrangian), abs=2e-3)
    assert problem.bound().value >= max(lagrangian) - 1e-12


def test_what_cannot_be_posed_or_solved_is_refused():
    with pytest.raises(InfeasibleError, match="fewest items"):
        CountProblem([[np.inf, 1.0]] * 3, 2)
    with pytest.raises(InfeasibleError, match="exactly=False"):
        CountProblem([[1.0, 0.0]], 5, exactly=True)
    with pytest.raises(InputError, match="1-d array"):
        CountProblem([[np.nan]], 1)
    with pytest.raises(InputError, match="no count at all"):
        CountProblem([[np.inf]], 1)
    with pytest.raises(InputError, match="positive"):
        CountProblem([[1.0]], 1, costs=[0.0])
    with pytest.raises(InputError, match="there are no curves"):
        CountProblem([], 1)
    with pytest.raises(CapabilityError, match="whole numbers"):
        CountProblem([[1.0, 0.0]], 1, costs=[0.5]).solve("dynamic")
    with pytest.raises(OptionError, match="not one of"):
        CountProblem([[1.0, 0.0]], 1).solve("best")
    with pytest.raises(InputError, match="beyond the end"):
        CountProblem([[1.0, 0.0]], 1).objective([2])
    problem = CountProblem([[1.0, 0.0]] * 2, 1)
    lie = CountSolution(problem=problem, counts=np.array([1, 1]), method="", problem_hash="", objective=0.0)
    with pytest.raises(SolverError, match="not feasible"):
        lie.verify()


# ----------------------------------------------------------------------------------------------------- clusters


def points(seed=0, n=90, clusters=5):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.append(np.arange(clusters), rng.integers(0, clusters, n - clusters)))
    centres = rng.normal(size=(clusters, 6))
    return centres[labels] + rng.uniform(0.1, 1.0, size=clusters)[labels, None] * rng.normal(
        size=(n, 6)
    ), labels


def test_complexities_and_targets_literally():
    x, labels = points()
    unit = [row / np.sqrt(sum(v * v for v in row)) for row in x]
    centroids = []
    for j in range(5):
        total = sum(u for u, label in zip(unit, labels, strict=True) if label == j)
        centroids.append(total / np.sqrt(total @ total))
    expected = []
    for j in range(5):
        own = [1.0 - u @ centroids[j] for u, label in zip(unit, labels, strict=True) if label == j]
        others = sorted(1.0 - centroids[j] @ centroids[k] for k in range(5) if k != j)
        expected.append((sum(others[:2]) / 2) * (sum(own) / len(own)))
    found = complexities(x, labels, neighbours=2)
    np.testing.assert_allclose(found, expected)
    weights = [np.exp(c / 0.1) for c in expected]
    np.testing.assert_allclose(density_targets(found, 30), [30 * w / sum(weights) for w in weights])


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_the_best_whole_numbers_and_rounding_may_miss_the_budget(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=4)
    budget = int(rng.integers(4, sizes.sum() + 1))
    targets = density_targets(rng.uniform(size=4), budget, temperature=0.3)
    problem = cluster_problem(targets, sizes, budget)
    solution = problem.solve()
    assert solution.counts.sum() == budget
    assert solution.objective == pytest.approx(best_of_all(problem))
    assert solution.status is Status.OPTIMAL
    assert problem.solve("dynamic").objective == pytest.approx(solution.objective)
    rounded = rounded_counts(targets, sizes, budget)
    assert np.all((rounded >= 1) & (rounded <= sizes))
    if rounded.sum() == budget:
        assert problem.objective(rounded) >= solution.objective - 1e-9


def test_rounded_counts_solve_the_papers_quadratic_program_before_they_round():
    """KKT: every count strictly between its limits is its target plus one and the same shift."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(200, 60_000, size=30)
    budget = int(0.4 * sizes.sum())
    targets = density_targets(rng.uniform(size=30), budget, temperature=0.3)
    counts = rounded_counts(targets, sizes, budget, least=50)
    inside = (counts > 50) & (counts < sizes)
    shifts = (counts - targets)[inside]
    assert np.ptp(shifts) <= 1.0 + 1e-6
    assert np.all((targets - sizes)[counts == sizes] >= -shifts.min() - 1.0)
    assert np.all((targets - 50)[counts == 50] <= -shifts.max() + 1.0)
    assert abs(counts.sum() - budget) <= 15


def test_rounding_misses_budgets_somewhere():
    missed = 0
    for seed in range(20):
        targets = density_targets(np.random.default_rng(seed).uniform(size=20), 500, temperature=1.0)
        missed += rounded_counts(targets, np.full(20, 500), 500).sum() != 500
    assert missed > 5


def test_hardest_examples_literally():
    x, labels = points(1)
    counts = np.array([3, 1, 4, 0, 2])
    stays = hardest_examples(x, labels, counts)
    np.testing.assert_array_equal(np.bincount(labels[stays], minlength=5), counts)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for j in range(5):
        centre = unit[labels == j].sum(axis=0)
        centre /= np.linalg.norm(centre)
        apart = 1 - unit @ centre
        if 0 < counts[j] < np.sum(labels == j):
            assert apart[(labels == j) & stays].min() >= apart[(labels == j) & ~stays].max()


def test_clusters_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="gaps"):
        complexities(np.eye(3), [0, 2, 2])
    with pytest.raises(InputError, match="zero"):
        complexities(np.zeros((2, 2)), [0, 1])
    with pytest.raises(InputError, match="only one cluster"):
        complexities(np.eye(2), [0, 0])
    with pytest.raises(InfeasibleError):
        cluster_problem([1.0, 1.0], [1, 1], budget=3)
    with pytest.raises(InfeasibleError):
        rounded_counts([1.0, 1.0], [1, 1], budget=3)
    with pytest.raises(InputError, match="cannot stay"):
        hardest_examples(np.eye(2), [0, 1], [2, 0])


def test_a_solution_as_json():
    solution = cluster_problem([2.4, 2.4, 1.2], [9, 9, 9], budget=6).solve()
    told = json.loads(json.dumps(solution.to_dict()))
    assert told["counts"] == [3, 2, 1]
    assert told["bound_kind"] == "certified"
