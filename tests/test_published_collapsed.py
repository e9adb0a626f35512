"""The collapsed problem and the rules that live on it; convex and statistical peers, against literal computations."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.formulations.collapsed import collapse, scaled_weights
from osscar_opt.instances import random_instance
from osscar_opt.instances.generators import FAMILIES

KINDS: dict[str, tuple[list[int], int]] = {
    "single rows": (list(range(8)), 3),
    "groups of 3": ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], 4),
    "unequal groups": ([0, 1, 2, 0, 1, 3, 0, 4, 3, 5], 2),
    "more outputs than inputs": (list(range(6)), 11),
}
DAMPING = 0.02

Array = np.ndarray[Any, Any]
kinds = pytest.mark.parametrize("kind", KINDS)


class Data:
    """Samples with the ridge as further samples, so that the gram is design' design / N, and what each group adds."""

    def __init__(self, kind: str, seed: int = 0, *, targets: bool = False) -> None:
        labels, q = KINDS[kind]
        rng, p = np.random.default_rng(seed), len(labels)
        inputs = rng.normal(size=(50, p)) @ (rng.normal(size=(p, p)) + np.eye(p))
        self.weights = rng.normal(size=(p, q)) * rng.lognormal(size=(p, 1))
        goal = inputs @ self.weights + (rng.normal(size=(50, q)) if targets else 0.0)
        ridge = DAMPING * np.mean(np.diag(inputs.T @ inputs / 50))
        self.design = np.vstack([inputs, np.sqrt(50 * ridge) * np.eye(p)])
        self.goal = np.vstack([goal, np.sqrt(50 * ridge) * self.weights])
        self.labels, self.n = labels, max(labels) + 1
        self.rows = [[j for j, label in enumerate(labels) if label == g] for g in range(self.n)]
        self.parts = [self.design[:, rows] @ self.weights[rows] for rows in self.rows]
        self._inputs, self._targets = inputs, goal if targets else None

    def problem(self, keep: int | None = None, **rest: Any) -> Problem:
        return Problem.from_data(
            self._inputs,
            self.weights,
            targets=self._targets,
            damping=DAMPING,
            groups=self.labels,
            keep=keep,
            **rest,
        )

    def loss(self, outputs: Array) -> float:
        return float(np.sum((self.goal - outputs) ** 2) / 100)

    def least_squares(self, kept: list[int]) -> Array:
        weights = np.zeros_like(self.weights)
        rows = [j for g in kept for j in self.rows[g]]
        if rows:
            weights[rows] = np.linalg.lstsq(self.design[:, rows], self.goal, rcond=None)[0]
        return weights


# ------------------------------------------------------------------------------------------------ the collapsed problem


@kinds
@pytest.mark.parametrize("targets", [False, True])
def test_collapsing_keeps_every_objective(kind: str, targets: bool) -> None:
    data = Data(kind, targets=targets)
    problem = data.problem(2)
    collapsed = collapse(problem)
    assert (collapsed.p, collapsed.q, collapsed.n, collapsed.keep) == (data.n, 1, data.n, 2)
    rng = np.random.default_rng(3)
    for beta in [np.ones(data.n), np.zeros(data.n), *rng.normal(size=(4, data.n))]:
        outputs = sum(b * part for b, part in zip(beta, data.parts, strict=True))
        assert collapsed.objective(beta[:, None]) == pytest.approx(data.loss(outputs), rel=1e-9, abs=1e-12)
        assert problem.objective(scaled_weights(problem, beta)) == pytest.approx(
            data.loss(outputs), rel=1e-9, abs=1e-12
        )
    for i, j in itertools.product(range(data.n), repeat=2):
        block = problem.gram[np.ix_(data.rows[i], data.rows[j])]
        literal = np.trace(data.weights[data.rows[i]].T @ block @ data.weights[data.rows[j]])
        assert collapsed.gram[i, j] == pytest.approx(literal, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_collapsed_problem_has_the_same_limits_and_is_never_better(family: str) -> None:
    problem = random_instance(3, family, n=8, q=3)
    collapsed = collapse(problem)
    assert collapsed.limits.names == problem.limits.names
    best = collapsed.solve("exact", time_limit=20)
    assert best.status == "optimal"
    assert problem.feasible(best.support)
    optimum = problem.solve("exhaustive").objective
    assert best.objective >= optimum - 1e-9 * problem.constant
    scaled = scaled_weights(problem, best.weights)
    assert problem.objective(scaled) == pytest.approx(best.objective, rel=1e-8, abs=1e-11 * problem.constant)


def test_groups_without_weights_are_dead_in_the_collapsed_problem() -> None:
    problem = Problem(np.eye(3) + 1, dense_weights=[[1.0], [0.0], [2.0]], keep=1)
    assert collapse(problem).live_rows.tolist() == [True, False, True]
    assert collapse(Problem(2 * np.eye(2), [[2.0], [4.0]], keep=1)).optimum.ravel() == pytest.approx(
        [1.0, 1.0]
    )


# ------------------------------------------------------------------------------------------------ ThiNet


def literal_thinet(data: Data, keep: int) -> list[int]:
    """Algorithm 1 on the channels' contributions."""
    removed: list[int] = []
    while len(removed) < data.n - keep:
        best, value = -1, np.inf
        for i in range(data.n):
            if i not in removed:
                trial = np.sum(sum(data.parts[j] for j in [*removed, i]) ** 2)
                if trial < value:
                    best, value = i, trial
        removed.append(best)
    return removed


@kinds
@pytest.mark.parametrize("targets", [False, True])
def test_thinet_is_its_algorithm_1_and_equation_7(kind: str, targets: bool) -> None:
    data = Data(kind, 1, targets=targets)
    for keep in (1, data.n // 2, data.n - 1):
        solution = data.problem(keep).solve("thinet")
        removed = literal_thinet(data, keep)
        assert np.flatnonzero(~solution.support).tolist() == sorted(removed)
        kept = [g for g in range(data.n) if g not in removed]
        columns = np.stack([data.parts[g].ravel() for g in kept], axis=1)
        scale = np.linalg.lstsq(columns, data.goal.ravel(), rcond=None)[0]
        for g, factor in zip(kept, scale, strict=True):
            np.testing.assert_allclose(
                solution.weights[data.rows[g]], factor * data.weights[data.rows[g]], rtol=1e-7, atol=1e-10
            )
        collapsed = collapse(solution.problem)
        assert solution.objective == pytest.approx(collapsed.value(solution.support), rel=1e-9)
        unscaled = data.loss(sum(data.parts[g] for g in kept))
        assert solution.objective <= unscaled * (1 + 1e-12)


def test_thinet_sees_contributions_that_cancel() -> None:
    gram = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    problem = Problem(gram, dense_weights=[[5.0], [-5.0], [1.0]], keep=1)
    assert problem.solve("thinet").objective < problem.solve("wanda").objective


# ------------------------------------------------------------------------------------------------ LASSO on channels


def literal_lasso(data: Data, penalty: float, beta: Array, steps: int = 100_000) -> Array:
    """Equation 3 with weights of norm 1, by proximal gradient steps."""
    norms = np.array([np.linalg.norm(data.weights[rows]) for rows in data.rows])
    columns = np.stack([part.ravel() for part in data.parts], axis=1) / norms
    gram, cross = columns.T @ columns / 50, columns.T @ data.goal.ravel() / 50
    step = 1.0 / np.linalg.eigvalsh(gram)[-1]
    for _ in range(steps):
        moved = beta - step * (gram @ beta - cross)
        fresh = np.sign(moved) * np.maximum(np.abs(moved) - step * penalty, 0.0)
        if np.max(np.abs(fresh - beta)) < 1e-13 * np.max(np.abs(norms)):
            break
        beta = fresh
    return np.asarray(beta)


@kinds
@pytest.mark.parametrize("targets", [False, True])
def test_channel_lasso_is_equation_3_then_least_squares(kind: str, targets: bool) -> None:
    data = Data(kind, 2, targets=targets)
    norms = np.array([np.linalg.norm(data.weights[rows]) for rows in data.rows])
    for keep in (1, data.n // 2, data.n - 1):
        solution = data.problem(keep).solve("channel_lasso", accuracy=1e-9)
        penalty = solution.stats["penalty"]
        active = np.flatnonzero(literal_lasso(data, penalty, norms))
        assert len(active) == solution.stats["active"] <= keep
        assert set(active) <= set(solution.kept)
        if len(active) == keep:
            assert solution.kept.tolist() == active.tolist()
        # a little less of a penalty lets too many in
        assert len(np.flatnonzero(literal_lasso(data, penalty / 1.01, norms))) > keep
        np.testing.assert_allclose(
            solution.weights, data.least_squares(solution.kept.tolist()), rtol=1e-6, atol=1e-9
        )


# ------------------------------------------------------------------------------------------------ the group lasso


@kinds
@pytest.mark.parametrize("targets", [False, True])
def test_the_group_lasso_meets_its_optimality_conditions(kind: str, targets: bool) -> None:
    data = Data(kind, 3, targets=targets)
    gram, cross = data.design.T @ data.design / 50, data.design.T @ data.goal / 50
    for keep in (1, data.n // 2, data.n - 1):
        solution = data.problem(keep).solve("group_lasso", accuracy=1e-10)
        penalty, weights = solution.stats["penalty"], solution.weights
        gradient = gram @ weights - cross
        active = [g for g in range(data.n) if np.any(weights[data.rows[g]])]
        assert len(active) == solution.stats["active"] <= keep
        assert set(active) <= set(solution.kept)
        for g, rows in enumerate(data.rows):
            own = gram[np.ix_(rows, rows)]
            lower = np.linalg.cholesky(own)
            bound = penalty * np.sqrt(len(rows))
            if g in active:  # the gradient balances that of the norm |L' W_g|
                norm = np.linalg.norm(lower.T @ weights[rows])
                np.testing.assert_allclose(
                    gradient[rows], -bound * own @ weights[rows] / norm, atol=1e-7 * penalty, rtol=1e-6
                )
            else:  # and is within its subdifferential
                assert np.linalg.norm(np.linalg.solve(lower, gradient[rows])) <= bound * (1 + 1e-7)


def test_the_group_lasso_on_uncorrelated_groups_is_a_soft_threshold() -> None:
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(12, 2)) * np.repeat(rng.lognormal(size=4), 3)[:, None]
    problem = Problem(np.eye(12), dense_weights=weights, groups=3, keep=2)
    solution = problem.solve("group_lasso", accuracy=1e-12)
    norms = np.linalg.norm(weights.reshape(4, -1), axis=1)
    assert solution.kept.tolist() == sorted(np.argsort(-norms)[:2].tolist())
    threshold = solution.stats["penalty"] * np.sqrt(3)
    assert threshold == pytest.approx(np.sort(norms)[1], rel=2e-3)  # where the third becomes active
    for g in range(4):
        rows = slice(3 * g, 3 * g + 3)
        expected = max(0.0, 1 - threshold / norms[g]) * weights[rows]
        np.testing.assert_allclose(solution.weights[rows], expected, atol=1e-12)


def test_the_group_lasso_does_not_mind_how_inputs_are_turned_within_a_group() -> None:
    data = Data("groups of 3", 5)
    before = data.problem(2).solve("group_lasso", accuracy=1e-9)
    rng, turn = np.random.default_rng(0), np.zeros((15, 15))
    for rows in data.rows:
        turn[np.ix_(rows, rows)] = rng.normal(size=(3, 3))
    gram = turn.T @ before.problem.gram @ turn
    turned = Problem(
        (gram + gram.T) / 2, dense_weights=np.linalg.solve(turn, data.weights), groups=data.labels, keep=2
    )
    after = turned.solve("group_lasso", accuracy=1e-9)
    assert after.kept.tolist() == before.kept.tolist()
    np.testing.assert_allclose(turn @ after.weights, before.weights, rtol=1e-4, atol=1e-6)


def test_groups_forced_to_stay_are_not_penalised() -> None:
    data = Data("single rows", 6)
    problem = data.problem(3, always_keep=[1], always_remove=[4])
    for method in ("group_lasso", "channel_lasso"):
        solution = problem.solve(method, accuracy=1e-10)
        assert solution.support[1]
        assert not solution.support[4]
    weights = problem.solve("group_lasso", accuracy=1e-10).weights
    residual = problem.cross - problem.gram @ weights
    np.testing.assert_allclose(residual[1], 0.0, atol=1e-7)
    assert not weights[4].any()


# ------------------------------------------------------------------------------------------------ abess


def literal_splicing(data: Data, keep: int, most: int) -> list[int]:
    """Splicing of Zhu et al. with least squares from scratch on the samples."""
    samples = 50

    def sacrifices(active: list[int]) -> tuple[Array, float]:
        weights = data.least_squares(active)
        residual = data.goal - data.design @ weights
        found = np.empty(data.n)
        for g, rows in enumerate(data.rows):
            own = data.design[:, rows].T @ data.design[:, rows] / samples
            if g in active:
                found[g] = 0.5 * np.trace(weights[rows].T @ own @ weights[rows])
            else:
                slope = data.design[:, rows].T @ residual / samples
                found[g] = 0.5 * np.trace(slope.T @ np.linalg.inv(own) @ slope)
        return found, float(np.sum(residual**2) / (2 * samples))

    first, _ = sacrifices([])
    active = sorted(np.argsort(-first)[:keep].tolist())
    while True:
        worth, loss = sacrifices(active)
        inside = sorted(active, key=lambda g: worth[g])
        outside = sorted(set(range(data.n)) - set(active), key=lambda g: -worth[g])
        trials = []
        for k in range(1, min(most, len(inside), len(outside)) + 1):
            trial = sorted((set(active) - set(inside[:k])) | set(outside[:k]))
            trials.append((sacrifices(trial)[1], trial))
        if not trials or min(trials)[0] >= loss * (1 - 1e-10):
            return active
        active = min(trials)[1]


@kinds
@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("most", [1, 2, 99])
def test_abess_is_splicing(kind: str, targets: bool, most: int) -> None:
    for seed in range(3):
        data = Data(kind, seed, targets=targets)
        for keep in range(1, data.n):
            solution = data.problem(keep).solve("abess", most_exchanged=most)
            kept = literal_splicing(data, keep, most)
            assert solution.kept.tolist() == kept
            np.testing.assert_allclose(solution.weights, data.least_squares(kept), rtol=1e-6, atol=1e-9)
            assert solution.termination == "local_optimum"


def test_abess_recovers_the_groups_that_made_the_targets() -> None:
    # exact recovery without noise is what the PNAS paper proves to happen with high probability
    for seed in range(10):
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(400, 40)) + 0.7 * rng.normal(size=(400, 1))
        truth = np.sort(rng.choice(20, size=6, replace=False))
        weights = np.zeros((40, 3))
        for g in truth:
            weights[2 * g : 2 * g + 2] = rng.choice([-1, 1], size=(2, 3)) * rng.uniform(0.5, 2, size=(2, 3))
        problem = Problem.from_data(inputs, targets=inputs @ weights, damping=1e-9, groups=2, keep=6)
        assert problem.solve("abess").kept.tolist() == truth.tolist()


def test_the_convex_and_statistical_peers_are_near_the_optimum_where_it_is_easy() -> None:
    problem = random_instance(0, "planted", n=12, q=3)
    best = problem.solve("exhaustive").objective
    for method in ("abess", "group_lasso"):
        assert problem.solve(method, refit=True).objective == pytest.approx(
            best, rel=1e-6, abs=1e-9 * problem.constant
        )


def test_time_up_gives_a_feasible_support() -> None:
    problem = random_instance(1, "correlated", n=30, q=3)
    for method in ("thinet", "channel_lasso", "group_lasso", "abess"):
        assert problem.feasible(problem.solve(method, time_limit=0.0).support)
