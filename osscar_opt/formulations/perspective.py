r"""The perspective relaxation: a convex function of relaxed supports that equals the objective at supports.

For D = blockdiag(D_g), 0 < D < H, and z in (0, 1]^n,

    phi(z) = c - 1/2 tr(G' inv(H + D (1/z - 1)) G)

is convex, equals the objective at every support (z_g -> 0 where g is removed), and has the derivatives

    dphi/dz_g = -1/2 tr(W_g' D_g W_g) / z_g^2,      W = inv(H + D (1/z - 1)) G.

Its tangent at any z is a lower bound. More generally, for *any* W (p x q),

    LB(D, W) = c - 1/2 tr(W' (H - D) W) - max over feasible S of sum_{g in S} score_g,
    score_g = 1/2 tr(R_g' inv(D_g) R_g),    R = G - (H - D) W,

since 1/2 tr(V' (H - D) V) >= tr(V' (H - D) W) - 1/2 tr(W' (H - D) W) for every V, and what is left splits into
groups. With W as above, R = D W / z and score = -dphi/dz: the tangent.

This is reference code, clear rather than fast: one Cholesky factorisation a call, and no rounding taken care of. The
bound of `osscar_opt.formulations.lifted` is never below it, and is the one that `lower_bound` maximises.

Perspective of separable quadratics: Frangioni and Gentile, Math. Program. 106 (2006); the best D: Dong, Chen and
Linderoth (2015), Zheng, Sun and Li (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations._prices import most_kept
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.factor import factor, product

__all__ = ["Tangent", "perspective_bound", "tangent"]


@dataclass(frozen=True, eq=False)
class Tangent:
    """Value and gradient of phi at a point, and the weights W there.

    Attributes
    ----------
    value : float
    gradient : (n,) array
        Nowhere positive: keeping more never hurts.
    weights : (p, q) array

    Examples
    --------
    >>> problem = Problem(np.eye(2), [[1.0], [3.0]], keep=1)
    >>> tangent(problem, np.array([1.0, 1.0]), [np.array([[0.5]])] * 2).gradient
    array([-0.25, -2.25])
    """

    value: float
    gradient: FloatArray
    weights: FloatArray


def tangent(problem: Problem, z: FloatArray, blocks: Sequence[FloatArray]) -> Tangent:
    """Evaluate phi, its gradient, and the weights that give them.

    Parameters
    ----------
    problem : Problem
        Without forced groups and dead rows: presolved.
    z : (n,) array
        In (0, 1].
    blocks : sequence of n arrays, (s_g, s_g)
        D; symmetric positive definite. That D < H is not checked here.

    Raises
    ------
    InputError
        If sizes disagree, z leaves (0, 1], or the problem is not presolved.

    Examples
    --------
    >>> problem = Problem(np.eye(2), [[1.0], [3.0]], keep=1)
    >>> round(tangent(problem, np.array([0.5, 0.5]), [np.array([[0.5]])] * 2).value, 9)
    1.666666667
    """
    d = _checked(problem, blocks)
    z = np.asarray(z, dtype=np.float64)
    if z.shape != (problem.n,) or not np.all((z > 0.0) & (z <= 1.0)):
        raise InputError(f"z must be {problem.n} numbers in (0, 1].")
    system = problem.gram.copy()
    for group, block in enumerate(d):
        rows = problem.groups.rows(group)
        system[np.ix_(rows, rows)] += block * (1.0 / z[group] - 1.0)
    weights = factor(system).solve(problem.cross)
    energy = np.array(
        [
            float(np.vdot(mine := weights[problem.groups.rows(group)], block @ mine))
            for group, block in enumerate(d)
        ]
    )
    value = problem.constant - 0.5 * float(np.vdot(problem.cross, weights))
    return Tangent(value, -0.5 * energy / z**2, weights)


def perspective_bound(problem: Problem, blocks: Sequence[FloatArray], weights: FloatArray) -> float:
    """LB(D, W): a lower bound on the objective of every feasible support.

    Parameters
    ----------
    problem : Problem
        Without forced groups and dead rows: presolved.
    blocks : sequence of n arrays, (s_g, s_g)
        D; symmetric, with 0 < D < H.
    weights : (p, q) array
        W; anything, but best is that of `tangent`.

    Raises
    ------
    InputError
        If D is not below H, sizes disagree, or the problem is not presolved.

    Examples
    --------
    >>> problem = Problem(2.0 * np.eye(2), [[2.0], [6.0]], keep=1)
    >>> d = [np.array([[1.9]])] * 2
    >>> weights = tangent(problem, np.array([1e-9, 1.0]), d).weights
    >>> problem.value([False, True]), round(perspective_bound(problem, d, weights), 6)
    (1.0, 1.0)
    """
    d = _checked(problem, blocks)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != problem.cross.shape:
        raise InputError(f"weights must have shape {problem.cross.shape}, but theirs is {weights.shape}.")
    rest = problem.gram.copy()
    for group, block in enumerate(d):
        rows = problem.groups.rows(group)
        rest[np.ix_(rows, rows)] -= block
    try:
        factor(rest)
    except np.linalg.LinAlgError:
        raise InputError("D is not below gram: make its blocks smaller.") from None
    pushed = product(rest, weights)
    residual = problem.cross - pushed
    scores = np.empty(problem.n)
    for group, block in enumerate(d):
        mine = residual[problem.groups.rows(group)]
        scores[group] = 0.5 * float(np.vdot(mine, np.linalg.solve(block, mine)))
    most, _ = most_kept(scores, problem.limits.usage, problem.limits.limit)
    return problem.constant - 0.5 * float(np.vdot(weights, pushed)) - most


def _checked(problem: Problem, blocks: Sequence[FloatArray]) -> list[FloatArray]:
    require_presolved(problem)
    if len(blocks) != problem.n:
        raise InputError(f"D needs {problem.n} blocks, one for every group, but {len(blocks)} were given.")
    checked = []
    for group, (block, size) in enumerate(zip(blocks, problem.groups.sizes, strict=True)):
        matrix = np.asarray(block, dtype=np.float64)
        if matrix.shape != (size, size):
            raise InputError(f"block {group} of D must be {size} x {size}, but its shape is {matrix.shape}.")
        checked.append(matrix)
    return checked


def require_presolved(problem: Problem) -> None:
    """Refuse a problem with forced groups, dead rows or no limit.

    Raises
    ------
    InputError

    Examples
    --------
    >>> require_presolved(Problem(np.eye(2), np.ones((2, 1)), keep=1, always_keep=[0]))
    Traceback (most recent call last):
    osscar_opt.errors.InputError: forced groups and dead inputs come first: pass presolve(problem).problem.
    """
    if np.any(problem.always_keep | problem.always_remove) or not problem.live_rows.all():
        raise InputError("forced groups and dead inputs come first: pass presolve(problem).problem.")
    if not problem.limits.names:
        raise InputError("this problem has no limit on what may stay: pose it with keep, a budget or blocks.")
