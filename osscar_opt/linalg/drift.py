"""When a tableau has lost accuracy: what is measured, and how much is too much."""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import FloatArray, IntArray

__all__ = ["backward_error", "digits_tolerance", "drift_tolerance"]

_DRIFT, _DRIFT_UNITS = 1e-8, 50.0
_DIGITS, _DIGITS_UNITS = 1e-6, 1e4

_SAMPLED = 8


def drift_tolerance(epsilon: float) -> float:
    """Componentwise backward error of inv(H_SS), estimated at every flush, beyond which a tableau is refactored.

    1e-8, but not below 50 units of rounding: 6e-6 in float32.

    Examples
    --------
    >>> drift_tolerance(2.2e-16), round(drift_tolerance(1.2e-7), 12)
    (1e-08, 6e-06)
    """
    return max(_DRIFT, _DRIFT_UNITS * epsilon)


def digits_tolerance(epsilon: float) -> float:
    """Shrinkage of a diagonal entry since the last factorisation (cancellation) beyond which it is refactored.

    1e-6, but not below 10,000 units of rounding: 1e-3 in float32.

    Examples
    --------
    >>> digits_tolerance(2.2e-16), round(digits_tolerance(1.2e-7), 12)
    (1e-06, 0.0012)
    """
    return max(_DIGITS, _DIGITS_UNITS * epsilon)


def backward_error(gram: FloatArray, scale: FloatArray, rows: IntArray, column: FloatArray, at: int) -> float:
    """Componentwise backward error (Oettli and Prager 1964) of one column of an inverse, in a few of its rows.

    The column a should solve H_SS a = e; the error is the largest of ``abs(h.a - e) / (abs(h).abs(a) + e)`` over some
    rows h of H_SS, the column's own among them. O(p), since few rows of H are read.

    Parameters
    ----------
    gram : (p, p) array
    scale : (p,) array
        Rows and columns of H are scaled by it.
    rows : (m,) int array
        S, rows of gram.
    column : (m,) array
        The column a, of the inverse of the scaled H_SS.
    at : int
        Which column it is.

    Examples
    --------
    >>> gram = np.diag([4.0, 1.0])
    >>> backward_error(gram, np.ones(2), np.arange(2), np.array([0.25, 0.0]), 0)
    0.0
    >>> backward_error(gram, np.ones(2), np.arange(2), np.array([0.5, 0.0]), 0) > 0.3
    True
    """
    sample = np.append(np.arange(0, len(rows), max(1, len(rows) // _SAMPLED)), at)
    part = gram[rows[sample]][:, rows] * scale[rows] * scale[rows[sample], None]
    identity = (sample == at).astype(float)
    magnitude = abs(part) @ abs(column) + identity  # zero for rows the column has nothing to do with
    return float((abs(part @ column - identity) / np.maximum(magnitude, np.finfo(float).tiny)).max())
