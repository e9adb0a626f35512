"""The problem in units without units: unit diagonal, loss at most one, and as few outputs as its rank.

With d = diag(H)^(-1/2), unit = c - base, sigma = sqrt(2 unit) and V orthonormal columns that span the rows of G,

    W V = sigma diag(d) U,      H~ = diag(d) H diag(d) = L L',      f(W) = base + unit |L'(U - U*)|^2,

for every W with W V V' = W, and the refit on any support is one.  Supports keep their values because only G G' enters
them: tr(G_S' A G_S) = tr(A (G V)_S (G V)_S').
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.factor import factor

__all__ = ["NormalForm", "normal_form"]

_DROPPED = 1e-14
"""Outputs that together explain less than this part of c - base are left out; nobody could measure the difference."""


@dataclass(frozen=True, eq=False)
class NormalForm:
    """A problem in normal form; made by `normal_form`.

    Attributes
    ----------
    problem : Problem
    gram : (p, p) array
        H~, with unit diagonal (dead inputs too, which are decoupled from the others).
    root : (p, p) array
        The lower triangular factor L.
    optimum : (p, r) array
        The unconstrained optimum; the sum of squares of L'U* is 1, or 0 where there is nothing to explain.
    scale : (p,) array
        The scale d.
    directions : (q, r) array
        V.
    unit : float
        c - base, or 1 where that is 0.

    Examples
    --------
    >>> form = normal_form(Problem([[4.0]], [[8.0]]))
    >>> form.gram, form.optimum, form.unit
    (array([[1.]]), array([[1.]]), 8.0)
    """

    problem: Problem
    gram: FloatArray
    root: FloatArray
    optimum: FloatArray
    scale: FloatArray
    directions: FloatArray
    unit: float

    @property
    def cross(self) -> FloatArray:
        """H~ U*, shape (p, r).

        Examples
        --------
        >>> normal_form(Problem(np.eye(2), [[3.0], [4.0]])).cross.ravel()
        array([0.6, 0.8])
        """
        return self.gram @ self.optimum

    @property
    def sigma(self) -> float:
        """What a weight of 1 in normal form is in the units of the problem, before the scale of its row.

        Examples
        --------
        >>> normal_form(Problem([[2.0]], [[2.0]])).sigma
        1.4142135623730951
        """
        return float(np.sqrt(2.0 * self.unit))

    def objective(self, excess: float) -> float:
        """Objective of weights whose loss is ``excess`` in normal form.

        Examples
        --------
        >>> normal_form(Problem([[2.0]], [[2.0]], constant=1.5)).objective(1.0)
        1.5
        """
        return self.problem.base + self.unit * excess

    def excess(self, objective: float) -> float:
        """Loss in normal form of weights of a given objective.

        Examples
        --------
        >>> normal_form(Problem([[2.0]], [[2.0]], constant=1.5)).excess(1.0)
        0.5
        """
        return (objective - self.problem.base) / self.unit


def normal_form(problem: Problem) -> NormalForm:
    """Bring a problem into normal form.

    Examples
    --------
    >>> form = normal_form(Problem([[4.0, 0.0], [0.0, 1.0]], [[4.0, 4.0], [2.0, 2.0]]))
    >>> form.optimum.shape, round(float(np.sum((form.root.T @ form.optimum) ** 2)), 12)
    ((2, 1), 1.0)
    """
    dead = ~problem.live_rows
    gram = problem.gram + np.diag(dead.astype(np.float64)) if dead.any() else problem.gram
    factorisation = factor(gram)
    root = np.tril(factorisation.lower)
    scale = factorisation.scale
    unit = problem.constant - problem.base
    if not unit > 0.0:
        unit = 1.0
    optimum = problem.optimum / (np.sqrt(2.0 * unit) * scale[:, None])
    _, strength, rows = np.linalg.svd(root.T @ optimum, full_matrices=False)
    left_out = np.cumsum(strength[::-1] ** 2)[::-1]  # [t]: what is left out when directions t, t + 1, ... are
    rank = max(1, int(np.count_nonzero(left_out > _DROPPED)))
    directions = np.ascontiguousarray(rows[:rank].T)
    scaled = gram * scale[:, None] * scale[None, :]
    np.fill_diagonal(scaled, 1.0)
    return NormalForm(problem, scaled, root, optimum @ directions, scale, directions, unit)
