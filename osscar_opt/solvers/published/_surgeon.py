"""Weights and inverse of H while groups are taken out by optimal brain surgery.

With A = inv(H) over the rows that are left and W their weights, taking out the rows g costs
1/2 tr(W_g' inv(A_gg) W_g) and asks for

    W <- W - A_:g inv(A_gg) W_g,      A <- A - A_:g inv(A_gg) A_g:

(Hassibi and Stork 1993 for one row). Everything is kept in units in which H has a unit diagonal, which changes none
of the scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.linalg.factor import equilibrating_scale
from osscar_opt.linalg.layout import rows_by_group

__all__ = ["Surgeon", "scaled_gram"]

_COMPACT_BELOW = 0.875
"""Share of stored rows alive below which the others are dropped from the arrays."""


def scaled_gram(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Return diag(d) H diag(d) of unit diagonal, and d; the diagonal of dead inputs counts as 1.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> scaled_gram(Problem([[4.0, 1.0], [1.0, 1.0]], [[1.0], [1.0]]))
    (array([[1. , 0.5],
           [0.5, 1. ]]), array([0.5, 1. ]))
    """
    gram = problem.gram
    if not problem.live_rows.all():
        gram = gram + np.diag((~problem.live_rows).astype(np.float64))
    scale = equilibrating_scale(gram)
    return scale[:, None] * gram * scale, scale


class Surgeon:
    """Takes groups out, one block or several at once, and compensates in the weights of the rest.

    Parameters
    ----------
    problem : Problem
        Its dense weights are what is operated on (the unconstrained optimum, if there are none).

    Attributes
    ----------
    restarts : int
        How often the inverse was computed anew because rounding had made it indefinite.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> surgeon = Surgeon(Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]]))
    >>> surgeon.losses()
    array([0.75, 3.  ])
    >>> surgeon.remove(np.array([0]))
    >>> surgeon.weights().ravel()
    array([0. , 2.5])
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._gram, self._scale = scaled_gram(problem)
        weights = reference_weights(problem) * problem.live_rows[:, None]
        self._weights: FloatArray = np.ascontiguousarray(weights / self._scale[:, None])
        self._rows = np.arange(problem.p)  # which row of the problem stands at which place
        self._inverse = _inverse(self._gram)
        self._alive = np.ones(problem.p, dtype=bool)  # by place
        self._rows_of_group = rows_by_group(problem.groups.group_of_row, problem.n)
        self._classes = _classes(self._rows_of_group, problem.groups.sizes)
        self._left = np.ones(problem.n, dtype=bool)
        self.restarts = 0

    def losses(self) -> FloatArray:
        """What taking out each group costs after compensation, shape (n,); inf for those that are gone."""
        return self._scored(self._block_losses, 0.5)

    def head_errors(self) -> FloatArray:
        """SlimGPT's estimate of the same, sum over j of |W_j|^2 / L_jj^2 with L L' = A_gg, shape (n,).

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Surgeon(Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]])).head_errors()
        array([1.5, 6. ])
        """
        return self._scored(self._block_errors, 1.0)

    def remove(self, groups: IntArray) -> None:
        """Take groups out at once."""
        place_of = np.empty(self._problem.p, dtype=np.int64)
        place_of[self._rows] = np.arange(len(self._rows))
        gone = place_of[np.concatenate([self._rows_of_group[g] for g in groups])]
        self._left[groups] = False
        columns = self._inverse[:, gone]
        try:
            factor = scipy.linalg.cho_factor(columns[gone], lower=True)
        except np.linalg.LinAlgError:
            self._restart()
            columns = self._inverse[:, gone]
            factor = scipy.linalg.cho_factor(columns[gone], lower=True)
        _subtract(self._weights, columns, scipy.linalg.cho_solve(factor, self._weights[gone]))
        _subtract(self._inverse, columns, scipy.linalg.cho_solve(factor, columns.T))
        self._alive[gone] = False
        self._weights[gone] = 0.0
        self._inverse[gone] = self._inverse[:, gone] = 0.0
        if np.count_nonzero(self._alive) < _COMPACT_BELOW * len(self._rows):
            self._compact()

    def weights(self) -> FloatArray:
        """The weights now, shape (p, q), exactly zero on the rows taken out."""
        weights = np.zeros(self._problem.cross.shape)
        stay = self._rows[self._alive]
        weights[stay] = self._scale[stay, None] * self._weights[self._alive]
        weights[~self._problem.live_rows] = 0.0
        return weights

    def _by_size(self) -> list[tuple[IntArray, IntArray]]:
        """For each size of group: the groups left, and the (groups, size) places of their rows."""
        place_of = np.empty(self._problem.p, dtype=np.int64)
        place_of[self._rows] = np.arange(len(self._rows))
        found = []
        for groups, rows in self._classes:
            left = self._left[groups]
            if left.any():
                found.append((groups[left], place_of[rows[left]]))
        return found

    def _scored(self, of_blocks: Callable[[IntArray], FloatArray], factor_of_rows: float) -> FloatArray:
        """A score for each group that is left, of all groups of one size at a time; single rows have a short cut."""
        scores = np.full(self._problem.n, np.inf)
        try:
            for groups, places in self._by_size():
                if places.shape[1] == 1:
                    scores[groups] = factor_of_rows * self._row_errors()[places[:, 0]]
                else:
                    scores[groups] = of_blocks(places)
        except np.linalg.LinAlgError:
            self._restart()
            return self._scored(of_blocks, factor_of_rows)
        return scores

    def _row_errors(self) -> FloatArray:
        """|W_j|^2 / A_jj for every stored row."""
        squares = np.einsum("ij,ij->i", self._weights, self._weights)
        diagonal = np.where(self._alive, self._inverse.diagonal(), 1.0)
        if np.any(diagonal <= 0.0):
            raise np.linalg.LinAlgError("the inverse is not positive definite any more")
        return np.asarray(squares / diagonal)

    def _block_losses(self, places: IntArray) -> FloatArray:
        weights, blocks = self._weights[places], self._blocks(places)
        np.linalg.cholesky(blocks)  # an indefinite one would go unnoticed
        return np.asarray(0.5 * np.einsum("gsq,gsq->g", weights, np.linalg.solve(blocks, weights)))

    def _block_errors(self, places: IntArray) -> FloatArray:
        pivots = np.linalg.cholesky(self._blocks(places)).diagonal(axis1=-2, axis2=-1)
        weights = self._weights[places]
        return np.asarray(np.sum(np.einsum("gsq,gsq->gs", weights, weights) / pivots**2, axis=1))

    def _blocks(self, places: IntArray) -> FloatArray:
        return self._inverse[places[:, :, None], places[:, None, :]]

    def _compact(self) -> None:
        keep = np.flatnonzero(self._alive)
        self._inverse = self._inverse[np.ix_(keep, keep)]
        self._weights, self._rows = self._weights[keep], self._rows[keep]
        self._alive = np.ones(len(keep), dtype=bool)

    def _restart(self) -> None:
        self.restarts += 1
        if self.restarts > self._problem.n:
            raise np.linalg.LinAlgError("the inverse of the gram matrix stays indefinite")
        self._compact()
        self._inverse = _inverse(self._gram[np.ix_(self._rows, self._rows)])


def _classes(rows_of_group: list[IntArray], sizes: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Groups of each size, and their rows, (groups, size)."""
    found = []
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        found.append((groups, np.stack([rows_of_group[g] for g in groups])))
    return found


def _subtract(target: FloatArray, left: FloatArray, right: FloatArray) -> None:
    """Target -= left @ right without a temporary array; the target is row-major."""
    result = scipy.linalg.blas.dgemm(-1.0, right.T, left.T, beta=1.0, c=target.T, overwrite_c=True)
    if not np.may_share_memory(result, target):
        target[:] = result.T


def _inverse(gram: FloatArray) -> FloatArray:
    """Inverse of a positive definite matrix by Cholesky, symmetric to the last bit."""
    if not len(gram):
        return np.zeros((0, 0))
    lower = scipy.linalg.cholesky(gram, lower=True)
    inverse, info = scipy.linalg.lapack.dpotri(lower, lower=True)
    if info:
        raise np.linalg.LinAlgError("the gram matrix is singular")
    return np.ascontiguousarray(np.tril(inverse) + np.tril(inverse, -1).T)
