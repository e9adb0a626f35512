r"""The collapsed problem: one number for each group, which scales its dense weights.

With beta in R^n and W(beta) the dense weights W whose rows in group g are multiplied by beta_g,

.. math::

    \tfrac12 \mathrm{tr}(W(\beta)' H W(\beta)) - \mathrm{tr}(G' W(\beta)) + c
    = \tfrac12 \beta' H^c \beta - \beta' g^c + c, \qquad
    H^c_{ij} = \mathrm{tr}(W_i' H_{ij} W_j), \quad g^c_i = \mathrm{tr}(W_i' G_i),

a problem of n rows and one output in which every row is a group of its own. Z_i = X_i W_i being what channel i adds
to the outputs, H^c holds the inner products of the Z_i: this is the problem in which ThiNet (Luo, Wu, Lin, ICCV 2017)
and the LASSO channel selection (He, Zhang, Sun, ICCV 2017) choose channels. The solvers of the library solve it
exactly.

Its best value on a support is never below that of the problem itself, where all weights are free; it is the better
the less the weights of a group need to turn.
"""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights

__all__ = ["collapse", "scaled_weights"]

_ROWS_AT_ONCE = 512


def collapse(problem: Problem) -> Problem:
    """Pose the problem of scaling the dense weights of each group by one number.

    Parameters
    ----------
    problem : Problem
        With p rows in n groups; its dense weights, or the unconstrained optimum where there are none, are scaled.

    Returns
    -------
    Problem
        With n rows in n groups, one output, and the same limits.  The objective of beta (n, 1) in it is the objective
        of ``scaled_weights(problem, beta)`` in `problem`.  It has no means: what was centred stays centred, but the
        inputs of different outputs have different ones.

    Raises
    ------
    NotPositiveDefiniteError
        If the groups' contributions are linearly dependent up to rounding.

    Examples
    --------
    >>> problem = Problem(np.eye(3), dense_weights=[[1.0], [2.0], [3.0]], groups=[0, 0, 1], keep=1)
    >>> collapsed = collapse(problem)
    >>> collapsed.gram.diagonal(), collapsed.keep
    (array([5., 9.]), 1)
    >>> collapsed.solve("exact").objective == problem.objective([[0.0], [0.0], [3.0]])
    True
    """
    weights = reference_weights(problem)
    optimal = problem.dense_is_optimal or problem.dense_weights is None  # scaling by 1 is then the best
    constant = None if problem.base_is_given and optimal and problem.base == 0.0 else problem.constant
    cross = problem.groups.total(np.einsum("ij,ij->i", weights, problem.cross))
    return Problem(
        _contracted(problem, weights),
        None if problem.dense_is_optimal else cross[:, None],
        dense_weights=np.ones((problem.n, 1)),
        constant=constant,
        keep=problem.keep,
        costs=problem.costs,
        budget=problem.budget,
        always_keep=problem.always_keep,
        always_remove=problem.always_remove,
        blocks=problem.blocks,
        block_keep=problem.block_keep,
        name=f"{problem.name}, collapsed" if problem.name else "collapsed",
        provenance={"collapsed_from": problem.hash},
        copy=False,
    )


def scaled_weights(problem: Problem, factors: FloatArray) -> FloatArray:
    """Dense weights with the rows of each group multiplied by the group's factor, shape (p, q).

    Examples
    --------
    >>> problem = Problem(np.eye(3), dense_weights=[[1.0], [2.0], [3.0]], groups=[0, 0, 1])
    >>> scaled_weights(problem, np.array([2.0, 0.0])).ravel()
    array([2., 4., 0.])
    """
    per_row = np.asarray(factors, dtype=np.float64).reshape(problem.n)[problem.groups.group_of_row]
    return np.where(per_row[:, None] != 0.0, per_row[:, None] * reference_weights(problem), 0.0)


def _contracted(problem: Problem, weights: FloatArray) -> FloatArray:
    """Sums of the entries of H * (W W') over blocks of groups, (n, n), a panel of rows at a time."""
    labels, n = problem.groups.group_of_row, problem.n
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(problem.groups.sizes)[:-1]]).astype(np.int64)
    by_column = np.zeros((problem.p, n))
    for start in range(0, problem.p, _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        entries = problem.gram[np.ix_(rows, order)] * (weights[rows] @ weights[order].T)
        by_column[start : start + _ROWS_AT_ONCE] = np.add.reduceat(entries, starts, axis=1) if n else 0.0
    contracted = np.add.reduceat(by_column, starts, axis=0) if n else by_column
    return np.asarray(contracted + contracted.T) / 2.0
