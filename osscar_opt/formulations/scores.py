"""Scores of single groups, computed without a factorisation, and the support that ranking by them gives."""

from __future__ import annotations

from typing import Literal

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.formulations.problem import Problem

__all__ = ["diagonal_scores", "magnitude_scores", "masked_weights", "ranked_support", "reference_weights"]


def reference_weights(problem: Problem) -> FloatArray:
    """Dense weights, or the unconstrained optimum where none are given.

    Examples
    --------
    >>> reference_weights(Problem(2 * np.eye(1), [[2.0]]))
    array([[1.]])
    """
    return problem.optimum if problem.dense_weights is None else problem.dense_weights


def masked_weights(problem: Problem, support: BoolArray) -> FloatArray:
    """Dense weights with the rows outside the support set to zero.

    Examples
    --------
    >>> masked_weights(Problem(np.eye(2), [[1.0], [3.0]]), np.array([False, True])).ravel()
    array([0., 3.])
    """
    return np.where(problem.groups.row_mask(support)[:, None], reference_weights(problem), 0.0)


def magnitude_scores(problem: Problem, norm: Literal["l1", "l2"]) -> FloatArray:
    """Sum of |W0_ij| (l1) or W0_ij^2 (l2) over the rows of each group, shape (n,).

    Examples
    --------
    >>> problem = Problem(np.eye(3), dense_weights=[[1.0], [-2.0], [3.0]], groups=[0, 0, 1])
    >>> magnitude_scores(problem, "l1"), magnitude_scores(problem, "l2")
    (array([3., 3.]), array([5., 9.]))
    """
    weights = reference_weights(problem)
    per_row = np.abs(weights).sum(axis=1) if norm == "l1" else np.einsum("ij,ij->i", weights, weights)
    return problem.groups.total(per_row)


def diagonal_scores(problem: Problem) -> FloatArray:
    """What each group would explain alone if its rows were uncorrelated: sum of |G_i|^2 / (2 H_ii), shape (n,).

    Examples
    --------
    >>> diagonal_scores(Problem(2 * np.eye(2), [[2.0], [4.0]]))
    array([1., 4.])
    """
    diagonal = problem.gram.diagonal()
    energy = np.einsum("ij,ij->i", problem.cross, problem.cross)
    per_row = np.divide(energy, 2.0 * diagonal, out=np.zeros(problem.p), where=diagonal > 0.0)
    return problem.groups.total(per_row)


def ranked_support(problem: Problem, scores: FloatArray) -> BoolArray:
    """Feasible support made by taking groups in order of decreasing score, each that still fits every limit.

    Examples
    --------
    >>> ranked_support(Problem(np.eye(3), np.ones((3, 1)), keep=2, always_remove=[0]), np.array([3.0, 1.0, 2.0]))
    array([False,  True,  True])
    """
    order = np.argsort(-scores, kind="stable")
    return problem.limits.fill(order[~problem.always_remove[order]], problem.always_keep)
