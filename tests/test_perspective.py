"""Perspective and lifted bounds against enumeration; the second is never below the first; the parts of the ascent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import linprog

from osscar_opt import Problem
from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations._ascent import Ascent
from osscar_opt.formulations._layer import whitened
from osscar_opt.formulations._prices import Market, most_kept
from osscar_opt.formulations.lifted import lifted_bound, quadratic
from osscar_opt.formulations.perspective import perspective_bound, tangent

SEEDS = range(40)


def drawn(seed: int) -> tuple[Problem, np.random.Generator]:
    """A small problem with groups of 1 to 3 rows in any order, and a limit or two."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    labels = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, size=rng.integers(0, n + 1))]))
    p = len(labels)
    q = int(rng.choice([1, 2, 3 * p]))
    q += q == p
    x = rng.normal(size=(p + 3, p)) * 10.0 ** rng.uniform(-1, 1, p)
    gram = x.T @ x / len(x)
    gram += 10.0 ** rng.uniform(-3, -1) * np.diag(np.diag(gram))
    limits = [
        {"keep": int(rng.integers(0, n + 1))},
        {"costs": rng.uniform(0.5, 2.0, n), "budget": float(rng.uniform(0.0, n))},
        {"keep": int(rng.integers(0, n + 1)), "blocks": np.arange(n) % 2, "block_keep": [1, (n + 1) // 2]},
    ][seed % 3]
    return Problem(gram, rng.normal(size=(p, q)), groups=labels, constant=float(rng.normal()), **limits), rng


def supports(problem: Problem) -> list[np.ndarray]:
    every = (np.array(bits, dtype=bool) for bits in itertools.product([False, True], repeat=problem.n))
    return [support for support in every if problem.feasible(support)]


def value(problem: Problem, support: np.ndarray) -> float:
    """The objective of the refitted weights, from its definition and by nothing of the library."""
    rows = support[problem.groups.group_of_row]
    g = problem.cross[rows]
    return problem.constant - 0.5 * np.sum(g * np.linalg.solve(problem.gram[np.ix_(rows, rows)], g))


def below_gram(problem: Problem, rng: np.random.Generator) -> list[FloatArray]:
    """Random blocks D, scaled to just below H."""
    blocks = []
    for size in problem.groups.sizes:
        a = rng.normal(size=(size, size + 1))
        blocks.append(a @ a.T + 0.1 * np.eye(size))
    dense = np.zeros((problem.p, problem.p))
    for group, block in enumerate(blocks):
        rows = problem.groups.rows(group)
        dense[np.ix_(rows, rows)] = block
    largest = np.linalg.eigvals(np.linalg.solve(problem.gram, dense)).real.max()
    return [block * rng.uniform(0.5, 0.999) / largest for block in blocks]


@pytest.mark.parametrize("seed", SEEDS)
def test_phi_is_the_objective_at_supports_and_its_gradient_is_its_derivative(seed: int) -> None:
    problem, rng = drawn(seed)
    blocks = below_gram(problem, rng)
    support = rng.random(problem.n) < 0.6
    assert_allclose(
        tangent(problem, np.where(support, 1.0, 1e-12), blocks).value,
        value(problem, support),
        rtol=1e-6,
        atol=1e-9 * (problem.constant - problem.base),
    )
    z = rng.uniform(0.2, 0.8, problem.n)
    at, step = tangent(problem, z, blocks), 1e-5
    for group in range(problem.n):
        shift = step * (np.arange(problem.n) == group)
        ahead, back = (tangent(problem, z + s, blocks).value for s in (shift, -shift))
        assert_allclose(
            at.gradient[group],
            (ahead - back) / (2 * step),
            rtol=1e-4,
            atol=1e-6 * (problem.constant - problem.base),
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_no_bound_is_above_a_support_and_the_lifted_one_is_not_below_the_perspective_one(seed: int) -> None:
    problem, rng = drawn(seed)
    best = min(value(problem, support) for support in supports(problem))
    slack = 1e-9 * (problem.constant - problem.base)
    blocks, z = below_gram(problem, rng), rng.uniform(0.1, 1.0, problem.n)
    at = tangent(problem, z, blocks)
    perspective = perspective_bound(problem, blocks, at.weights)
    most, _ = most_kept(-at.gradient, problem.limits.usage, problem.limits.limit)
    assert_allclose(perspective, at.value - at.gradient @ z - most, atol=slack)  # its tangent, linearised
    assert perspective <= best + slack
    assert perspective_bound(problem, blocks, rng.normal(size=problem.cross.shape)) <= best + slack

    residual, delta = np.empty(problem.cross.shape), np.empty(problem.n)
    for group, block in enumerate(blocks):
        rows = problem.groups.rows(group)
        residual[rows] = block @ at.weights[rows] / z[group]
        delta[group] = np.vdot(residual[rows], np.linalg.solve(block, residual[rows]))
    assert_allclose(lifted_bound(problem, residual, delta, 1.0 - z).value, perspective, atol=slack)
    _, q = quadratic(problem, residual)
    better = delta * np.linalg.eigvalsh(q / np.sqrt(np.outer(delta, delta)))[-1] * (1 + 1e-9)
    assert np.all(better <= delta * (1 + 1e-9))
    bound = lifted_bound(problem, residual, better, 1.0 - z)
    assert bound.value <= best + slack
    for support in supports(problem):
        assert bound.constant + bound.scores[~support].sum() <= value(problem, support) + slack


@pytest.mark.parametrize("seed", SEEDS)
def test_any_multipliers_give_a_bound(seed: int) -> None:
    problem, rng = drawn(seed)
    best = min(value(problem, support) for support in supports(problem))
    lam = rng.normal(size=problem.cross.shape) * np.abs(problem.cross)
    _, q = quadratic(problem, lam)
    delta = np.abs(q).sum(axis=1)  # diagonally dominant
    bound = lifted_bound(problem, lam, delta, rng.random(problem.n)).value
    assert bound <= best + 1e-9 * (problem.constant - problem.base)
    with pytest.raises(InputError, match="delta is too small"):
        lifted_bound(problem, lam, 0.5 * np.diag(q), rng.random(problem.n))


def test_what_does_not_fit_is_refused() -> None:
    problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
    blocks = [np.array([[0.5]])] * 2
    with pytest.raises(InputError, match="D is not below gram"):
        perspective_bound(problem, [np.array([[1.5]])] * 2, np.ones((2, 1)))
    with pytest.raises(InputError, match="needs 2 blocks"):
        tangent(problem, np.ones(2), blocks[:1])
    with pytest.raises(InputError, match="block 1 of D must be 1 x 1"):
        tangent(problem, np.ones(2), [blocks[0], np.eye(2)])
    with pytest.raises(InputError, match=r"z must be 2 numbers in \(0, 1\]"):
        tangent(problem, np.zeros(2), blocks)
    with pytest.raises(InputError, match="weights must have shape"):
        perspective_bound(problem, blocks, np.ones((2, 2)))
    with pytest.raises(InputError, match="forced groups and dead inputs"):
        tangent(problem.with_limits(always_keep=[0]), np.ones(2), blocks)
    with pytest.raises(InputError, match="no limit"):
        tangent(problem.with_keep(None), np.ones(2), blocks)
    with pytest.raises(InputError, match="multipliers must have shape"):
        quadratic(problem, np.ones((2, 2)))
    with pytest.raises(InputError, match="delta and removed must be 2 numbers"):
        lifted_bound(problem, np.ones((2, 1)), np.ones(3), np.ones(2))


@pytest.mark.parametrize("seed", range(60))
def test_prices_give_the_linear_program_s_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    usage = rng.random((m, n)) * (rng.random((m, n)) < 0.7)
    if seed % 2:
        usage[0] = 1.0
    limit = usage.sum(axis=1) * rng.random(m)
    scores = rng.normal(size=n) + 0.5
    bound, prices = most_kept(scores, usage, limit)
    relaxed = -linprog(-np.maximum(scores, 0.0), A_ub=usage, b_ub=limit, bounds=(0, 1)).fun
    assert_allclose(bound, relaxed, atol=1e-7)
    assert_allclose(bound, prices @ limit + np.maximum(scores - prices @ usage, 0.0).sum())
    choices = (np.array(bits) for bits in itertools.product([0.0, 1.0], repeat=n))
    assert bound >= max(scores @ s for s in choices if np.all(usage @ s <= limit + 1e-12)) - 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_a_market_fills_its_limits_and_no_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    usage = np.vstack([np.ones(n), np.arange(n) % 2, 1 - np.arange(n) % 2, rng.uniform(0.5, 1.0, n)])
    limit = usage.sum(axis=1) * rng.uniform(0.2, 1.2, 4)
    worth = rng.uniform(0.5, 5.0, n)

    def kept_at(pi: FloatArray) -> FloatArray:
        return np.clip(worth / (1.0 + pi), 0.0, 1.0)

    pi = Market(usage, limit).fitted(kept_at, 1.0)
    used = usage @ kept_at(pi)
    assert np.all(used <= limit * 1.02)
    if np.any(usage @ kept_at(np.zeros(n)) > limit):
        assert np.max(used / limit) > 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_whitening_changes_no_quadratic(seed: int) -> None:
    problem, rng = drawn(seed)
    layer = whitened(problem)
    for start, size in zip(layer.blocks.starts, layer.blocks.sizes, strict=True):
        assert_allclose(layer.inverse[start : start + size, start : start + size], np.eye(size), atol=1e-9)
    inner = rng.normal(size=problem.cross.shape)
    outer = np.empty_like(inner)
    outer[layer.order] = layer.outward(inner)
    assert_allclose(layer.inward(layer.outward(inner)), inner, rtol=1e-9, atol=1e-12)
    b, q = quadratic(problem, outer)
    assert_allclose(layer.blocks.sums(layer.inverse * (inner @ inner.T)), q, atol=1e-8 * np.abs(q).max())
    assert_allclose(layer.blocks.totals(np.sum(inner * layer.dense, axis=1)), b, atol=1e-8 * np.abs(b).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_ascent_finds_is_what_its_numbers_prove(seed: int) -> None:
    problem, _ = drawn(seed)
    if problem.feasible(np.ones(problem.n, dtype=bool)):
        pytest.skip("all groups may stay")
    layer = whitened(problem)
    ascent = Ascent(layer, problem.limits.usage, problem.limits.limit)
    for _ in range(12):
        ascent.step()
    found = ascent.evaluate(4)
    multipliers = np.empty(problem.cross.shape)
    multipliers[layer.order] = found.multipliers
    proved = lifted_bound(problem, multipliers, found.delta, np.clip(found.removed, 0.0, 1.0))
    slack = 1e-7 * (problem.constant - problem.base)
    assert_allclose(problem.base + found.value, proved.value, atol=slack)
    assert proved.value <= min(value(problem, support) for support in supports(problem)) + slack


@pytest.mark.parametrize("seed", range(40))
def test_projections_are_the_nearest_points_within_the_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    use = rng.uniform(0.5, 2.0, n) * (rng.random(n) < 0.8) if seed % 2 else np.ones(n)
    use[0] = 1.0
    limit = float(use.sum() * rng.random())
    at, weight = rng.normal(size=n), rng.uniform(0.5, 3.0, n)
    y = Market(use[None], np.array([limit])).projected(at, weight)
    assert np.all((y >= 0.0) & (y <= 1.0))
    assert use @ (1.0 - y) <= limit * (1 + 1e-9) + 1e-12
    for _ in range(50):  # no feasible point is nearer: the angle to each is not acute
        other = rng.random(n)
        other = 1.0 - (1.0 - other) * min(1.0, limit / (use @ (1.0 - other)))
        assert (weight * (at - y)) @ (other - y) <= 1e-9
