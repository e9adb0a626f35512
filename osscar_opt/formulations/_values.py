"""Products of the gram matrix with weights: what given weights lose, and the best weights on given rows.

The gram matrix is read a block at a time and gathered once, into the array of the factor, so that a problem whose
gram takes a quarter of the memory can be valued and refitted.
"""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import FloatArray, read_only
from osscar_opt.linalg.factor import Factor, product

__all__ = ["cross_of", "excess", "solved"]

_ROWS_AT_ONCE = 256
_COLUMNS_AT_ONCE = 256


def excess(gram: FloatArray, weights: FloatArray, optimum: FloatArray) -> float:
    """The quadratic form tr(D' H D) of D = W - W*, never negative.

    It is the sum of all entries of H times those of D D', taken block by block in the lower triangle: half the
    operations of H D, and each block of D D' is dropped once it is summed. With the sum goes an error of at most about
    p q units of rounding of the sum of ``|D|' |H| |D|``, as with H D.

    Examples
    --------
    >>> excess(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0], [2.0]]), np.zeros((2, 1)))
    14.0
    """
    total = 0.0
    for i in range(0, len(gram), _ROWS_AT_ONCE):
        own = slice(i, i + _ROWS_AT_ONCE)
        apart = weights[own] - optimum[own]
        if not apart.any():
            continue
        total += _weighed(gram[own, own], apart, apart)
        for j in range(0, i, _ROWS_AT_ONCE):
            other = slice(j, j + _ROWS_AT_ONCE)
            total += 2.0 * _weighed(gram[own, other], apart, weights[other] - optimum[other])
    return max(total, 0.0)


def _weighed(block: FloatArray, left: FloatArray, right: FloatArray) -> float:
    inner = product(right, left.T).T  # transposed twice, so that it is row-major as the block is
    inner *= block
    return float(inner.sum())


def solved(factorisation: Factor, cross: FloatArray) -> FloatArray:
    """Solve H_RR W_R = G_R for the rows R of a factorisation, all by default; a (p, q) array, zero outside R.

    Examples
    --------
    >>> from osscar_opt.linalg.factor import factor
    >>> solved(factor(np.diag([1.0, 2.0]), np.array([1])), np.array([[5.0], [6.0]]))
    array([[0.],
           [3.]])
    """
    weights = np.zeros(cross.shape)
    rows = slice(None) if factorisation.rows is None else factorisation.rows
    for start in range(0, cross.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        weights[rows, columns] = factorisation.solve(cross[rows, columns])
    return weights


def cross_of(gram: FloatArray, weights: FloatArray) -> FloatArray:
    """G = H W0, row-major and read-only.

    Examples
    --------
    >>> cross_of(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0], [2.0]]))
    array([[4.],
           [5.]])
    """
    return read_only(product(weights.T, gram)).T  # H is symmetric, and what BLAS returns is column-major
