r"""The lifted bound: a lower bound that dominates every perspective bound, and is nearly tight for many outputs.

With M = inv(H), W0 = M G the unconstrained optimum and base its value, removing the groups P costs

    loss(P) = 1/2 tr(W0_P' inv(M_PP) W0_P)  =  max over Lambda of  <Lambda_P, W0_P> - 1/2 tr(Lambda_P' M_PP Lambda_P).

**Multipliers.** Fix any Lambda (p x q). With y = 1 on the removed groups and 0 elsewhere,

    objective  >=  base + b.y - 1/2 y' Q y,      b_g = <Lambda_g, W0_g>,      Q_gh = tr(Lambda_g' M_gh Lambda_h).

**Diagonal.** Take any delta for which P = Diag(delta) - Q is positive semidefinite. Since y_g^2 = y_g, and a convex
quadratic lies above its tangent at any ybar,

    objective  >=  base - 1/2 ybar' P ybar + sum_{g removed} score_g,      score = b - delta / 2 + P ybar,

whose minimum over the feasible supports is a matter of sorting:

    LB = base - 1/2 ybar' P ybar + sum_g score_g - max over feasible S of sum_{g in S} max(0, score_g).

**It dominates.** The perspective bound LB(D, W) at the best W for some z is this bound with Lambda = R = D W / z,
ybar = 1 - z and delta_g = tr(R_g' inv(D_g) R_g) = 2 score_g: that delta is allowed because inv(D) - M is positive
semidefinite and so is its Hadamard product with R R' (Schur). The same holds when the outputs are split among several
D. But delta is then far from the best: Q is the Hadamard product of M with Lambda Lambda', and with many outputs the
signs of the two have little to do with each other. So Q is nearly diagonal, and delta near to its diagonal is
feasible, where D < H forces the D of a perspective bound down to the small eigenvalues of H.

This is reference code, clear rather than fast, and no rounding taken care of; `lower_bound` maximises the same
bound over Lambda, delta and ybar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations._prices import most_kept
from osscar_opt.formulations.perspective import require_presolved
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.factor import factor, product

__all__ = ["LiftedBound", "lifted_bound", "quadratic"]


@dataclass(frozen=True, eq=False)
class LiftedBound:
    """The bound, and the linear function that proves it.

    Attributes
    ----------
    value : float
    constant : float
    scores : (n,) array
        The objective of any support is at least ``constant + scores[removed].sum()``.

    Examples
    --------
    >>> problem = Problem(np.eye(2), [[1.0], [3.0]], keep=1)
    >>> bound = lifted_bound(problem, problem.cross, np.array([1.0, 9.0]), np.array([1.0, 0.0]))
    >>> bound.value, bound.scores
    (0.5, array([0.5, 4.5]))
    """

    value: float
    constant: float
    scores: FloatArray


def quadratic(problem: Problem, multipliers: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What Lambda makes of the problem: b and Q of ``objective >= base + b.y - 1/2 y' Q y``.

    Parameters
    ----------
    problem : Problem
        Without forced groups and dead rows: presolved.
    multipliers : (p, q) array
        Lambda.

    Returns
    -------
    (n,) array
        b.
    (n, n) array
        Q.

    Raises
    ------
    InputError
        If Lambda is not (p, q), or the problem is not presolved.

    Examples
    --------
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[3.0], [3.0]], keep=1)
    >>> b, q = quadratic(problem, problem.cross)
    >>> b, q.round(12)
    (array([3., 3.]), array([[ 6., -3.],
           [-3.,  6.]]))
    """
    require_presolved(problem)
    lam = np.asarray(multipliers, dtype=np.float64)
    if lam.shape != problem.cross.shape:
        raise InputError(f"multipliers must have shape {problem.cross.shape}, but theirs is {lam.shape}.")
    inverse = factor(problem.gram).solve(np.eye(problem.p))
    entries = 0.5 * (inverse + inverse.T) * product(lam, lam.T)
    member = problem.groups.group_of_row[:, None] == np.arange(problem.n)
    return problem.groups.total(np.sum(lam * problem.optimum, axis=1)), member.T @ entries @ member


def lifted_bound(
    problem: Problem, multipliers: FloatArray, delta: FloatArray, removed: FloatArray
) -> LiftedBound:
    """Evaluate the bound.

    Parameters
    ----------
    problem : Problem
        Without forced groups and dead rows: presolved.
    multipliers : (p, q) array
        Lambda; anything.
    delta : (n,) array
        With Diag(delta) - Q positive definite.
    removed : (n,) array
        ybar: the share of each group that is removed, in [0, 1]; anything.

    Raises
    ------
    InputError
        If delta is too small, sizes disagree, or the problem is not presolved.

    Examples
    --------
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[3.0], [3.0]], keep=1)
    >>> lam = np.array([[1.5], [1.5]])
    >>> round(lifted_bound(problem, lam, np.array([2.25, 2.25]), np.array([0.5, 0.5])).value, 12)
    0.75
    >>> problem.value([True, False])
    0.75
    """
    b, q = quadratic(problem, multipliers)
    d, y = (np.asarray(a, dtype=np.float64) for a in (delta, removed))
    if d.shape != b.shape or y.shape != b.shape or not np.all((y >= 0.0) & (y <= 1.0)):
        raise InputError(f"delta and removed must be {problem.n} numbers each, those of removed in [0, 1].")
    slack = np.diag(d) - q
    if float(np.linalg.eigvalsh(slack)[0]) < -1e-12 * float(np.abs(d).max()):
        raise InputError("delta is too small: Diag(delta) - Q is not positive semidefinite.")
    scores = b - 0.5 * d + slack @ y
    constant = problem.base - 0.5 * float(y @ slack @ y)
    most, _ = most_kept(scores, problem.limits.usage, problem.limits.limit)
    return LiftedBound(constant + float(scores.sum()) - most, constant, scores)
