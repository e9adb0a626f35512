"""Cholesky factorisation of a symmetric positive definite matrix, equilibrated, with one step of refinement.

Scaling row and column i of a Gram matrix by a_i > 0 changes nothing that matters: it is the choice of units for
input i.  Real layers hold inputs of size 2000 beside inputs of size 1, so every factorisation here is of

    D H D,    D = diag(H)^(-1/2),

whose diagonal is one.  This is within a factor n of the best diagonal scaling (van der Sluis, Numer. Math. 14, 1969).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import blas, lapack

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.linalg.blas import NotPositiveDefinite, cholesky_lower

__all__ = ["Factor", "equilibrating_scale", "factor", "product"]

_REFINE_BELOW = 1e-7
"""Reciprocal condition below which a solve is refined, which more than doubles its cost.

Above it, the first solution is right to some 1e-9, and the objective, in which its error enters squared, to rounding.
"""

_ROWS_AT_ONCE = 256


def product(a: FloatArray, b: FloatArray) -> FloatArray:
    """A @ B by scipy's BLAS.

    numpy and scipy each bring a BLAS with threads of its own, which get in each other's way for as long as those of
    the one wait for work; next to a factorisation (scipy's) products had better be scipy's too.

    Examples
    --------
    >>> product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    array([[11.]])
    """
    if 0 in a.shape or 0 in b.shape:
        return np.zeros((a.shape[0], b.shape[1]))
    (gemm,) = blas.get_blas_funcs(("gemm",), (a, b))
    left, right = (a.T if a.flags.c_contiguous else a), (b.T if b.flags.c_contiguous else b)
    return np.asarray(gemm(1.0, left, right, trans_a=left is not a, trans_b=right is not b))


def equilibrating_scale(matrix: FloatArray, rows: IntArray | None = None) -> FloatArray:
    """Scale d with which diag(d) @ matrix @ diag(d) has unit diagonal.

    Parameters
    ----------
    matrix : (m, m) array
        Symmetric, its diagonal positive.
    rows : (p,) array of int, optional
        Of these rows only; all p = m by default.

    Returns
    -------
    (p,) array

    Raises
    ------
    numpy.linalg.LinAlgError
        If an entry of the diagonal is not positive and finite.

    Examples
    --------
    >>> equilibrating_scale(np.diag([4.0, 0.25]))
    array([0.5, 2. ])
    """
    diagonal = matrix.diagonal() if rows is None else matrix.diagonal()[rows]
    if not (np.all(diagonal > 0.0) and np.all(np.isfinite(diagonal))):
        raise np.linalg.LinAlgError("the diagonal is not positive")
    return 1.0 / np.sqrt(diagonal)


@dataclass(frozen=True, eq=False)
class Factor:
    """Factorisation diag(d) H diag(d) = L L' of a matrix H, or of a principal submatrix; made by `factor`.

    Attributes
    ----------
    matrix : (m, m) array
        H, or the matrix that it is part of: needed for refinement, not copied.
    scale : (p,) array
        The scale d.
    lower : (p, p) array
        The factor L.  Above its diagonal stand unspecified numbers.
    rows : (p,) array of int or None
        The rows and columns of `matrix` that make up H; None if it is all of them.

    Examples
    --------
    >>> f = factor(np.array([[4.0, 2.0], [2.0, 3.0]]))
    >>> np.round(f.solve(np.array([[8.0], [7.0]])), 12)
    array([[1.25],
           [1.5 ]])
    """

    matrix: FloatArray = field(repr=False)
    scale: FloatArray = field(repr=False)
    lower: FloatArray = field(repr=False)
    rows: IntArray | None = field(default=None, repr=False)

    @property
    def smallest_pivot(self) -> float:
        """Smallest squared diagonal entry of L, in (0, 1]; near machine epsilon the matrix is singular in effect.

        Examples
        --------
        >>> round(factor(np.array([[1.0, 0.6], [0.6, 1.0]])).smallest_pivot, 12)
        0.64
        """
        return float(np.min(self.lower.diagonal() ** 2, initial=1.0))

    def solve(self, rhs: FloatArray) -> FloatArray:
        """Solve H x = rhs, with one step of iterative refinement where the condition calls for it.

        Parameters
        ----------
        rhs : (p, q) array

        Returns
        -------
        (p, q) array

        Examples
        --------
        >>> factor(np.diag([2.0, 4.0])).solve(np.array([[2.0], [2.0]]))
        array([[1. ],
               [0.5]])
        """
        solution = self._solve_once(rhs)
        if self.reciprocal_condition < _REFINE_BELOW:
            solution += self._solve_once(self._residual(rhs, solution))
        return solution

    @cached_property
    def reciprocal_condition(self) -> float:
        """LAPACK's estimate of ``1 / (norm(A) norm(inv(A)))`` in the 1-norm, for A = diag(d) H diag(d).

        Examples
        --------
        >>> factor(np.diag([1.0, 1e6])).reciprocal_condition  # equilibrated, it is the identity
        1.0
        """
        if self.lower.size == 0:
            return 1.0
        norm = max(
            float(np.max(product(np.abs(block), self.scale[:, None])[:, 0] * self.scale[own]))
            for own, block in self._row_blocks()
        )
        estimate, info = lapack.dpocon(self.lower, norm, uplo="L")
        _require_success(info)
        return float(estimate)

    def whiten(self, rhs: FloatArray) -> FloatArray:
        """Return Z = L^-1 diag(d) rhs, so that Z'Z = rhs' H^-1 rhs.

        Parameters
        ----------
        rhs : (p, q) array

        Returns
        -------
        (p, q) array

        Examples
        --------
        >>> z = factor(np.diag([4.0, 4.0])).whiten(np.array([[2.0], [4.0]]))
        >>> (z.T @ z).item()
        5.0
        """
        scaled = np.multiply(rhs, self.scale[:, None], order="F")
        if scaled.size == 0:
            return scaled
        whitened, info = lapack.dtrtrs(self.lower, scaled, lower=1, overwrite_b=1)
        _require_success(info)
        return whitened  # type: ignore[no-any-return]

    def _row_blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Some rows of H after the other: a submatrix is gathered again, so that it need not be kept."""
        for start in range(0, len(self.scale), _ROWS_AT_ONCE):
            own = slice(start, start + _ROWS_AT_ONCE)
            yield own, _part(self.matrix, self.rows, own, slice(None))

    def _residual(self, rhs: FloatArray, solution: FloatArray) -> FloatArray:
        residual = np.empty(rhs.shape, order="F")
        for own, block in self._row_blocks():
            residual[own] = rhs[own] - product(block, solution)
        return residual

    def _solve_once(self, rhs: FloatArray) -> FloatArray:
        scaled = np.multiply(rhs, self.scale[:, None], order="F")
        if scaled.size == 0:
            return scaled
        solution, info = lapack.dpotrs(self.lower, scaled, lower=1, overwrite_b=1)
        _require_success(info)
        solution *= self.scale[:, None]
        return solution  # type: ignore[no-any-return]


def factor(matrix: FloatArray, rows: IntArray | None = None) -> Factor:
    """Factorise a symmetric positive definite matrix, or a principal submatrix, after scaling it to unit diagonal.

    One array is allocated, for the factor, and one triangle of it written; `matrix` is neither changed nor copied.

    Parameters
    ----------
    matrix : (m, m) float64 array
        Symmetric; only one triangle enters the factorisation.  m = 0 is allowed.
    rows : (p,) array of int, optional
        Factorise ``matrix[np.ix_(rows, rows)]``, gathered straight into the array of the factor.

    Returns
    -------
    Factor

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite in float64 arithmetic.

    Examples
    --------
    >>> factor(np.array([[4.0, 9.0], [9.0, 4.0]]), np.array([1])).solve(np.array([[8.0]]))
    array([[2.]])
    >>> factor(np.array([[1.0, 2.0], [2.0, 1.0]]))
    Traceback (most recent call last):
    numpy.linalg.LinAlgError: not positive definite: pivot 2 of 2 is not positive
    """
    scale = equilibrating_scale(matrix, rows)
    scaled = np.empty((len(scale), len(scale)), order="F")
    mirrored = scaled.T  # row-major as `matrix` is: what is its upper triangle is the lower one of `scaled`
    for start in range(0, len(scale), _ROWS_AT_ONCE):
        own, later = slice(start, start + _ROWS_AT_ONCE), slice(start, None)
        np.multiply(_part(matrix, rows, own, later), scale[later], out=mirrored[own, later])
        mirrored[own, later] *= scale[own, None]
    if scaled.size == 0:
        return Factor(matrix, scale, scaled, rows)
    try:
        cholesky_lower(scaled)
    except NotPositiveDefinite as error:
        raise np.linalg.LinAlgError(
            f"not positive definite: pivot {error.minor} of {len(scale)} is not positive"
        ) from None
    return Factor(matrix, scale, scaled, rows)


def _part(matrix: FloatArray, rows: IntArray | None, i: slice, j: slice) -> FloatArray:
    """The block of H, which is the rows and columns `rows` of `matrix`, in its rows i and columns j."""
    return matrix[i, j] if rows is None else matrix[rows[i]].take(rows[j], axis=1)


def _require_success(info: int) -> None:
    if info != 0:
        raise np.linalg.LinAlgError(f"LAPACK refused argument {-info}")
