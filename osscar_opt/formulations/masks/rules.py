r"""Published rules that choose all masks of a layer at once, with the weights that they leave.

========== ==================================================================== =========================
rule       score of weight W_ij, the N highest of each M inputs stay            what it does to the others
========== ==================================================================== =========================
magnitude  :math:`|W_{ij}|`                                                     nothing
wanda      :math:`|W_{ij}| \, \lVert X_i \rVert_2`                              nothing
sparsegpt  :math:`W_{ij}^2 / U_{ii}^2`, with the weights as updated so far      optimal brain surgery, in order
========== ==================================================================== =========================

wanda: M. Sun, Z. Liu, A. Bair, J. Z. Kolter, *A Simple and Effective Pruning Approach for Large Language Models*, ICLR
2024, equation 1.  The norm is the root of ``gram``'s diagonal, which includes the ridge of the problem.  The squares
are compared, which orders the weights of an output in the same way.  Where H is diagonal and the dense weights are its
optimum, what the rule keeps is optimal: the loss is the sum of :math:`W_{ij}^2 H_{ii} / 2` over what goes.

sparsegpt: E. Frantar, D. Alistarh, *SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot*, ICML
2023, algorithm 1 with the mask chosen M inputs at a time.  With :math:`H^{-1} = U' U`, U upper triangular, input i is
passed in order and the weights from it on, j >= i, become :math:`W_j - U_{ij} (W_i - M_i \circ W_i) / U_{ii}`, which
is the exact repair of later weights with the earlier ones fixed.  Left out: the lazy batches, which change nothing but
speed, and quantisation.

Weights that share a mask have their scores added up: that is ours, not the papers'.
"""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.masks.pattern import Pattern
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.linalg.factor import factor

__all__ = ["RULES", "magnitude", "sparsegpt", "wanda"]


def magnitude(problem: Problem, pattern: Pattern) -> tuple[BoolArray, FloatArray]:
    """Mask and weights by magnitude.

    Examples
    --------
    >>> problem = Problem(np.diag([9.0, 1.0]), dense_weights=[[1.0], [2.0]])
    >>> magnitude(problem, Pattern(1, 2))[1].ravel()
    array([0., 2.])
    """
    weights = reference_weights(problem)
    mask = pattern.best(np.abs(weights))
    return mask, np.where(mask, weights, 0.0)


def wanda(problem: Problem, pattern: Pattern) -> tuple[BoolArray, FloatArray]:
    """Mask and weights by Wanda's product of weight and input norm.

    Examples
    --------
    >>> problem = Problem(np.diag([9.0, 1.0]), dense_weights=[[1.0], [2.0]])
    >>> wanda(problem, Pattern(1, 2))[1].ravel()
    array([1., 0.])
    """
    weights = reference_weights(problem)
    mask = pattern.best(weights**2 * problem.gram.diagonal()[:, None])
    return mask, np.where(mask, weights, 0.0)


def sparsegpt(problem: Problem, pattern: Pattern) -> tuple[BoolArray, FloatArray]:
    """Mask and weights by SparseGPT's sequence.

    Examples
    --------
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [3.0]])
    >>> sparsegpt(problem, Pattern(1, 2))[1].ravel()
    array([0. , 3.5])
    """
    if not problem.live_rows.all():
        raise InputError(
            "the layer has dead inputs, and its gram no inverse: add damping, or leave them out."
        )
    inverse = factor(problem.gram).solve(np.eye(problem.p))
    upper = np.linalg.cholesky(0.5 * (inverse + inverse.T)).T
    weights = np.array(reference_weights(problem))
    pattern.blocks(problem.p)
    pivots = upper.diagonal()[:, None]
    mask = np.ones(weights.shape, dtype=bool)
    for first in range(0, problem.p, pattern.of):
        own = slice(first, first + pattern.of)
        mask[own] = pattern.best((weights[own] / pivots[own]) ** 2)
        for i in range(first, first + pattern.of):
            error = np.where(mask[i], 0.0, weights[i]) / upper[i, i]
            weights[i:] -= upper[i, i:, None] * error
    return mask, np.where(mask, weights, 0.0)


RULES = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}
