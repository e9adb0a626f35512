"""Cholesky factorisation of a symmetric positive definite matrix, equilibrated, with one step of refinement.

Scaling row and column i of a Gram matrix by a_i > 0 changes nothing that matters: it is the choice of units for
input i.  Real layers hold inputs of size 2000 beside inputs of size 1, so every factorisation here is of

    D H D,    D = diag(H)^(-1/2),

whose diagonal is one.  This is within a factor n of the best diagonal scaling (van der Sluis, Numer. Math. 14, 1969).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import blas, lapack

from osscar_opt._typing import FloatArray

__all__ = ["Factor", "equilibrating_scale", "factor", "product"]

_REFINE_BELOW = 1e-5
"""Reciprocal condition below which a solve is refined; above it, the first solution is right to 1e-10."""


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


def equilibrating_scale(matrix: FloatArray) -> FloatArray:
    """Scale d with which diag(d) @ matrix @ diag(d) has unit diagonal.

    Parameters
    ----------
    matrix : (p, p) array
        Symmetric, its diagonal positive.

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
    diagonal = matrix.diagonal()
    if not (np.all(diagonal > 0.0) and np.all(np.isfinite(diagonal))):
        raise np.linalg.LinAlgError("the diagonal is not positive")
    return 1.0 / np.sqrt(diagonal)


@dataclass(frozen=True, eq=False)
class Factor:
    """Factorisation diag(d) H diag(d) = L L' of a matrix H; made by `factor`.

    Attributes
    ----------
    matrix : (p, p) array
        H itself, needed for refinement; not copied.
    scale : (p,) array
        The scale d.
    lower : (p, p) array
        The factor L.  Above its diagonal stand unspecified numbers.

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
            solution += self._solve_once(rhs - product(self.matrix, solution))
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
            float(abs(column) @ self.scale) * d for column, d in zip(self.matrix, self.scale, strict=True)
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

    def _solve_once(self, rhs: FloatArray) -> FloatArray:
        scaled = np.multiply(rhs, self.scale[:, None], order="F")
        if scaled.size == 0:
            return scaled
        solution, info = lapack.dpotrs(self.lower, scaled, lower=1, overwrite_b=1)
        _require_success(info)
        solution *= self.scale[:, None]
        return solution  # type: ignore[no-any-return]


def factor(matrix: FloatArray) -> Factor:
    """Factorise a symmetric positive definite matrix after scaling it to unit diagonal.

    One p x p array is allocated, for the factor; `matrix` is neither changed nor copied.

    Parameters
    ----------
    matrix : (p, p) float64 array
        Symmetric; only one triangle enters the factorisation.  p = 0 is allowed.

    Returns
    -------
    Factor

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite in float64 arithmetic.

    Examples
    --------
    >>> factor(np.array([[1.0, 2.0], [2.0, 1.0]]))
    Traceback (most recent call last):
    numpy.linalg.LinAlgError: not positive definite: pivot 2 of 2 is not positive
    """
    scale = equilibrating_scale(matrix)
    scaled = np.empty(matrix.shape, order="F")
    np.multiply(
        matrix.T, scale[:, None], out=scaled
    )  # matrix.T: same numbers, in the memory order of `scaled`
    scaled *= scale[None, :]
    if scaled.size == 0:
        return Factor(matrix, scale, scaled)
    lower, info = lapack.dpotrf(scaled, lower=1, clean=0, overwrite_a=1)
    if info > 0:
        raise np.linalg.LinAlgError(f"not positive definite: pivot {info} of {len(scale)} is not positive")
    _require_success(info)
    return Factor(matrix, scale, lower)


def _require_success(info: int) -> None:
    if info != 0:
        raise np.linalg.LinAlgError(f"LAPACK refused argument {-info}")
