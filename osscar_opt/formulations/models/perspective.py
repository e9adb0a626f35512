r"""The split H = (H - D) + D with D block-diagonal, and the lower bound that it gives at any z.

Everything is in normal form (`osscar_opt.formulations.models.normal`), over the groups that may stay. For every D with
:math:`0 \prec D \preceq H`, every W and every V,
:math:`V'(H-D)V \ge V'(H-D)W + W'(H-D)V - W'(H-D)W`; what is left over of f separates by groups, so that

.. math:: f(S) \ge base + unit \Bigl( |L'U^*|^2 - \mathrm{tr}(W'(H-D)W) - \sum_{g \in S} R_g' D_g^{-1} R_g \Bigr),
          \qquad R = G - (H-D)W ,

whatever W is. The best W for the relaxation at z is :math:`(H + D(1/z - 1))^{-1} G`.  Sources: Frangioni and Gentile,
Math. Program. 106 (2006) for the cuts; Dong, Chen and Linderoth, arXiv 1510.06083, for the choice of D.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, solve_triangular
from scipy.optimize import linprog

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import NotPositiveDefiniteError
from osscar_opt.formulations.models.normal import NormalForm
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.factor import factor

__all__ = ["blended_split", "eigenvalue_split", "most", "perspective_bound"]

_EPS = float(np.finfo(float).eps)
_LEAST_Z = 1e-7
_SHRINK = (1e-9, 1e-6, 1e-4, 1e-2, 0.1, 0.5)
"""How much smaller D is made than rounding says is just possible, until H - D passes a Cholesky factorisation."""


def eigenvalue_split(form: NormalForm) -> FloatArray:
    """D = lambda blockdiag(H_gg), lambda the largest number with D <= H: valid, and quick to find.

    Returns
    -------
    (p, p) array
        Block-diagonal.

    Examples
    --------
    >>> from osscar_opt.formulations.models.normal import normal_form
    >>> np.round(eigenvalue_split(normal_form(Problem([[1.0, 0.5], [0.5, 1.0]], [[1.0], [1.0]]))), 6)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    blocks = np.where(_same_group(form.problem), form.gram, 0.0)
    least = float(eigh(form.gram, blocks, eigvals_only=True, subset_by_index=[0, 0])[0])
    return _below_gram(form, max(least, _EPS) * blocks)


def blended_split(form: NormalForm, wanted: FloatArray, share: float) -> FloatArray:
    """Scale a positive semidefinite D as far as D <= H allows, and mix in a share of `eigenvalue_split`.

    The share keeps every block positive definite, which `perspective_bound` needs.

    Examples
    --------
    >>> from osscar_opt.formulations.models.normal import normal_form
    >>> form = normal_form(Problem([[1.0, 0.5], [0.5, 1.0]], [[1.0], [1.0]]))
    >>> np.round(blended_split(form, np.diag([4.0, 2.0]), 1e-6).diagonal(), 4)
    array([0.6340, 0.3170])
    """
    fallback = eigenvalue_split(form)
    blocks = np.where(_same_group(form.problem), 0.5 * (wanted + wanted.T), 0.0)
    inner = solve_triangular(form.root, blocks, lower=True)
    inner = solve_triangular(form.root, inner.T, lower=True)
    most_of_gram = float(np.linalg.eigvalsh(0.5 * (inner + inner.T))[-1])
    if not most_of_gram > 0.0:
        return fallback
    return _below_gram(form, (1.0 - share) / most_of_gram * blocks + share * fallback)


def perspective_bound(form: NormalForm, z: FloatArray, split: FloatArray) -> float:
    r"""Lower bound on the objective of every feasible support, from any z in [0, 1]; the better z, the better it is.

    W is computed from z; the bound then holds for this W as it is, so that neither z nor W has to be accurate. What
    the products can lose to rounding is subtracted, by the standard bound :math:`\gamma |A||B|` on their errors.

    Parameters
    ----------
    form : NormalForm
    z : (n,) array
        How much of each group stays.
    split : (p, p) array
        D, block-diagonal, positive definite and at most H.

    Returns
    -------
    float
        In the units of the problem.

    Examples
    --------
    >>> from osscar_opt.formulations.models.normal import normal_form
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[4.0], [5.0]], keep=1)
    >>> form = normal_form(problem)
    >>> bound = perspective_bound(form, np.array([0.2, 0.8]), eigenvalue_split(form))
    >>> round(bound, 2), round(problem.value([1]), 2)
    (0.74, 0.75)
    """
    problem = form.problem
    may_stay = ~problem.always_remove
    rows = np.flatnonzero(problem.groups.row_mask(may_stay))
    kept = np.where(problem.always_keep, 1.0, np.clip(z, _LEAST_Z, 1.0))[problem.groups.group_of_row[rows]]
    gram, blocks, cross = form.gram[np.ix_(rows, rows)], split[np.ix_(rows, rows)], form.cross[rows]
    weights = factor(gram + blocks * (1.0 / kept - 1.0)[:, None]).solve(cross)
    rest = gram - blocks
    gamma = (len(rows) + 4) * _EPS
    residual = cross - rest @ weights
    scaled = factor(blocks).solve(residual)
    size = np.abs(rest) @ np.abs(weights)
    rounding = 2.0 * gamma * (np.abs(cross) + size)  # of the residual, and of H U* in it
    scores = np.zeros(problem.p)
    scores[rows] = np.sum(residual * scaled + 2.0 * np.abs(scaled) * rounding, axis=1)
    smooth = float(np.vdot(weights, rest @ weights) + gamma * np.vdot(np.abs(weights), size))
    energy = float(np.sum((form.root.T @ form.optimum) ** 2))
    explained = smooth + most(problem, np.maximum(problem.groups.total(scores), 0.0))
    return form.objective(energy - explained - gamma)


def most(problem: Problem, scores: FloatArray) -> float:
    r"""Bound the sum of nonnegative scores over any feasible support.

    For multipliers :math:`\lambda \ge 0` of the limits, with K the groups that must stay,

    .. math:: \sum_{g \in S} score_g \le \lambda' limit + \sum_{g \in K} (score_g - \lambda' usage_g)
              + \sum_{g \notin K} \max(0, score_g - \lambda' usage_g) ;

    the multipliers are those of the linear relaxation. For a plain keep this is the sum of the largest scores.

    Examples
    --------
    >>> most(Problem(np.eye(3), np.ones((3, 1)), keep=2), np.array([3.0, 1.0, 2.0]))
    5.0
    """
    limits, must_stay = problem.limits, problem.always_keep
    may_stay = ~problem.always_remove
    if not limits.names:
        return float(scores[may_stay].sum())
    keep = limits.cardinality
    if keep is not None and not must_stay.any():
        ranked = np.sort(scores[may_stay])[::-1]
        return float(ranked[:keep].sum())
    multipliers = _multipliers(problem, scores, may_stay)
    reduced = scores - multipliers @ limits.usage
    slop = 1.0 + 2e-9  # a support passes as feasible with 1e-9 of a limit to spare
    total = slop * float(multipliers @ limits.limit)
    return float(total + reduced[must_stay].sum() + np.maximum(reduced[may_stay & ~must_stay], 0.0).sum())


def _multipliers(problem: Problem, scores: FloatArray, may_stay: BoolArray) -> FloatArray:
    """(m,) dual values of the limits in the linear relaxation; any nonnegative numbers would do."""
    scale = float(scores.max(initial=0.0)) or 1.0
    bounds = np.stack([problem.always_keep, may_stay], axis=1).astype(np.float64)
    solved = linprog(
        -scores / scale, A_ub=problem.limits.usage, b_ub=problem.limits.limit, bounds=bounds, method="highs"
    )
    if solved.status != 0:
        return np.zeros(len(problem.limits.limit))
    return np.asarray(np.maximum(0.0, -solved.ineqlin.marginals) * scale)


def _below_gram(form: NormalForm, blocks: FloatArray) -> FloatArray:
    """D, shrunk until H - D is positive definite beyond rounding."""
    rounding = 4.0 * len(blocks) * _EPS
    for shrink in _SHRINK:
        shrunk = (1.0 - shrink) * blocks
        try:
            np.linalg.cholesky(form.gram - shrunk - rounding * np.eye(len(blocks)))
        except np.linalg.LinAlgError:
            continue
        return shrunk
    raise NotPositiveDefiniteError(
        "gram is too close to singular to split it: use form='big_m', or add damping."
    )


def _same_group(problem: Problem) -> BoolArray:
    labels = problem.groups.group_of_row
    return np.asarray(labels[:, None] == labels[None, :])
