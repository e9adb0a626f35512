"""A layer in the coordinates its lower bound is sought in: every group by itself is uncoupled.

With M = inv(H) and W0 = M G, removing the groups P costs 1/2 tr(W0_P' inv(M_PP) W0_P).  An invertible transform of the
rows of each group changes no value; here M_gg = L_g L_g' becomes the identity,

    M <- inv(L) M inv(L)',    W0 <- inv(L) W0,    L = blockdiag(L_g).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from osscar_opt._typing import AnyArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.blas import cholesky_lower, inverse_from_cholesky_lower
from osscar_opt.linalg.factor import equilibrating_scale

__all__ = ["Blocks", "Layer", "mirror", "whitened"]

_TILE = 512


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of n groups, one group after another.

    Attributes
    ----------
    sizes : (n,) array of int

    Examples
    --------
    >>> Blocks(np.array([1, 2])).sums(np.arange(9.0).reshape(3, 3))
    array([[ 0.,  3.],
           [ 9., 24.]])
    """

    sizes: IntArray

    @property
    def n(self) -> int:
        """Number of groups.

        Examples
        --------
        >>> Blocks(np.array([1, 2])).n
        2
        """
        return len(self.sizes)

    @property
    def starts(self) -> IntArray:
        """First row of every group.

        Examples
        --------
        >>> Blocks(np.array([1, 2])).starts
        array([0, 1])
        """
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    def rows(self, per_group: AnyArray) -> AnyArray:
        """Give every row the number of its group.

        Examples
        --------
        >>> Blocks(np.array([1, 2])).rows(np.array([5.0, 7.0]))
        array([5., 7., 7.])
        """
        return per_group if self._single else np.repeat(per_group, self.sizes, axis=0)

    def totals(self, per_row: AnyArray) -> AnyArray:
        """Sum of the numbers of every group's rows.

        Examples
        --------
        >>> Blocks(np.array([1, 2])).totals(np.ones(3))
        array([1., 2.])
        """
        return per_row if self._single else np.add.reduceat(per_row, self.starts)

    def sums(self, matrix: AnyArray) -> AnyArray:
        """Sum of every block of a (p, p) matrix, shape (n, n); the matrix itself where all groups are single rows."""
        if self._single:
            return matrix
        return np.add.reduceat(np.add.reduceat(matrix, self.starts, axis=0), self.starts, axis=1)

    def scaled(self, matrix: AnyArray, factors: AnyArray, out: AnyArray) -> AnyArray:
        """Multiply block (g, h) of a (p, p) matrix by factors[g, h], into `out`."""
        return np.multiply(matrix, self.rows(self.rows(factors).T).T, out=out)

    @property
    def _single(self) -> bool:
        return bool(np.all(self.sizes == 1))


@dataclass(frozen=True, eq=False)
class Layer:
    """The layer in these coordinates.

    Attributes
    ----------
    blocks : Blocks
    order : (p,) array of int
        The problem's rows, group by group.
    inverse : (p, p) array
        M; the diagonal blocks are identities.
    dense : (p, q) array
        W0.
    rounding : float
        What rounding may do to entries of M.
    scale : (p,) array
        With the factors, the way back to the rows of the problem.
    factors : tuple of (s, s) arrays
        L_g of the equilibrated inverse, for groups of more than one row.
    """

    blocks: Blocks
    order: IntArray
    inverse: FloatArray
    dense: FloatArray
    rounding: float
    scale: FloatArray
    factors: tuple[FloatArray, ...]

    def outward(self, multipliers: FloatArray) -> FloatArray:
        """Multipliers Lambda for the rows of the problem, in `order`, from those in these coordinates.

        Examples
        --------
        >>> layer = whitened(Problem(4.0 * np.eye(2), np.ones((2, 1)), groups=2))
        >>> layer.outward(np.ones((2, 1))).ravel()
        array([2., 2.])
        """
        return _by_group(self, multipliers, "T") / self.scale[:, None]

    def inward(self, multipliers: FloatArray) -> FloatArray:
        """Undo `outward`.

        Examples
        --------
        >>> layer = whitened(Problem(4.0 * np.eye(2), np.ones((2, 1)), groups=2))
        >>> layer.inward(layer.outward(np.ones((2, 1)))).ravel()
        array([1., 1.])
        """
        result = multipliers * self.scale[:, None]
        for start, lower in zip(self.blocks.starts, self.factors, strict=bool(self.factors)):
            rows = slice(start, start + len(lower))
            result[rows] = lower.T @ result[rows]
        return result


def whitened(problem: Problem) -> Layer:
    """Bring a problem without dead rows into these coordinates: one Cholesky inverse.

    Raises
    ------
    numpy.linalg.LinAlgError
        If gram is not positive definite in float64 arithmetic.

    Examples
    --------
    >>> layer = whitened(Problem([[4.0, 2.0], [2.0, 4.0]], np.ones((2, 1))))
    >>> layer.inverse.round(12)
    array([[ 1. , -0.5],
           [-0.5,  1. ]])
    """
    order = np.argsort(problem.groups.group_of_row, kind="stable")
    blocks = Blocks(problem.groups.sizes)
    gram = problem.gram[np.ix_(order, order)]
    scale = equilibrating_scale(gram)
    gram *= scale[:, None]
    gram *= scale
    norm = _norm(gram)
    inverse = gram.T  # symmetric; column-major, as the kernels want it
    cholesky_lower(inverse)
    inverse_from_cholesky_lower(inverse)
    mirror(inverse)
    rounding = 4.0 * np.finfo(float).eps * norm * _norm(inverse)
    dense = problem.optimum[order] / scale[:, None]
    factors: tuple[FloatArray, ...] = ()
    if blocks.n == len(order):
        own = np.sqrt(inverse.diagonal())
        inverse /= own[:, None]
        inverse /= own
        dense /= own[:, None]
        scale = scale * own
    else:
        factors = tuple(
            np.asarray(
                np.linalg.cholesky(inverse[start : start + size, start : start + size]), dtype=np.float64
            )
            for start, size in zip(blocks.starts, blocks.sizes, strict=True)
        )
        for start, lower in zip(blocks.starts, factors, strict=True):
            rows = slice(start, start + len(lower))
            inverse[rows] = solve_triangular(lower, inverse[rows], lower=True)
            inverse[:, rows] = solve_triangular(lower, inverse[:, rows].T, lower=True).T
            dense[rows] = solve_triangular(lower, dense[rows], lower=True)
    return Layer(blocks, order, inverse.T, np.ascontiguousarray(dense), rounding, scale, factors)


def mirror(matrix: AnyArray) -> None:
    """Copy the lower triangle of a square matrix to the upper one, in place, a tile at a time.

    Examples
    --------
    >>> a = np.array([[1.0, 9.0], [2.0, 3.0]])
    >>> mirror(a)
    >>> a
    array([[1., 2.],
           [2., 3.]])
    """
    p = len(matrix)
    for low in range(0, p, _TILE):
        high = min(p, low + _TILE)
        matrix[:low, low:high] = matrix[low:high, :low].T
        tile = matrix[low:high, low:high]
        upper = np.triu_indices(high - low, 1)
        tile[upper] = tile.T[upper]


def _norm(matrix: FloatArray) -> float:
    """The 1-norm of a symmetric matrix, a row at a time."""
    return max((float(np.abs(row).sum()) for row in matrix), default=0.0)


def _by_group(layer: Layer, matrix: FloatArray, transpose: str) -> FloatArray:
    """Solve with every L_g (or its transpose) on the rows of its group; a copy."""
    result = np.array(matrix, dtype=np.float64)
    for start, lower in zip(layer.blocks.starts, layer.factors, strict=bool(layer.factors)):
        rows = slice(start, start + len(lower))
        result[rows] = solve_triangular(lower, result[rows], lower=True, trans=transpose)
    return result
