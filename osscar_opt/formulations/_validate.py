"""Checks on what a caller hands to `Problem`, each failing in one sentence; blocked, so that p may be large."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray, BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError, NotPositiveDefiniteError
from osscar_opt.linalg.factor import Factor, factor

__all__ = [
    "count",
    "group_mask",
    "live_rows",
    "matrix",
    "nonnegative_vector",
    "positive_definite",
    "scalar",
    "symmetric",
    "vector",
]

_BLOCK = 512

_ASYMMETRY = {2: 1e-2, 4: 1e-4, 8: 1e-8}
"""Largest |H_ij - H_ji| / sqrt(H_ii H_jj) read as rounding, by the width in bytes of the type handed in."""

_PIVOT_FLOOR = 16 * np.finfo(float).eps
"""A pivot of the unit-diagonal matrix below this holds no correct digit: the matrix is singular in effect."""


def matrix(value: Any, name: str, *, rows: int | None = None, copy: bool = True) -> tuple[FloatArray, int]:
    """Return a finite 2-d float64 array and the item size it came with; a new array if `copy` or converted."""
    given = _as_array(value, name)
    if given.ndim != 2:
        raise InputError(f"{name} must be a matrix, but its shape is {given.shape}.")
    if rows is not None and given.shape[0] != rows:
        raise InputError(
            f"{name} has {given.shape[0]} rows, but gram has {rows}; "
            "rows are the inputs of the layer (torch stores weights transposed)."
        )
    result = np.array(given, dtype=np.float64, order="C", copy=True if copy else None)
    _require_finite(result, name)
    return result, given.dtype.itemsize if given.dtype.kind == "f" else 8


def symmetric(gram: FloatArray, itemsize: int, *, owned: bool) -> FloatArray:
    """Return `gram` exactly symmetric: itself, or (in place if `owned`, else in a copy) the mean with its transpose."""
    if gram.shape[0] != gram.shape[1]:
        raise InputError(f"gram must be a square matrix, but its shape is {gram.shape}.")
    asymmetry, i, j = _asymmetry(gram)
    if asymmetry == 0.0:
        return gram
    allowed = _ASYMMETRY.get(itemsize, _ASYMMETRY[8])
    if asymmetry > allowed:
        raise InputError(
            f"gram is not symmetric: entries ({i}, {j}) and ({j}, {i}) are {gram[i, j]:.6g} and {gram[j, i]:.6g}, "
            f"apart by {asymmetry:.1e} of the diagonal there, where {allowed:.0e} is tolerated; pass X'X/N itself."
        )
    if not owned:
        gram = gram.copy()
    for upper, lower in _block_pairs(gram):
        upper += lower.T
        upper *= 0.5
        lower[...] = upper.T
    return gram


def live_rows(gram: FloatArray, cross: FloatArray) -> BoolArray:
    """Mask of the rows that are not dead; dead are rows whose gram and cross rows are all zero."""
    suspects = np.flatnonzero(gram.diagonal() == 0.0)
    live = np.ones(len(gram), dtype=bool)
    for row in suspects:
        live[row] = bool(np.any(gram[row]) or np.any(cross[row]))
    return live


def positive_definite(gram: FloatArray, live: BoolArray) -> Factor:
    """Return the factorisation of the live part of gram, or raise saying how much damping would do."""
    rows = None if live.all() else np.flatnonzero(live)
    try:
        result = factor(gram, rows)
    except np.linalg.LinAlgError:
        pass
    else:
        if result.smallest_pivot > _PIVOT_FLOOR:
            return result
        del result
    part = gram if rows is None else gram[np.ix_(rows, rows)]
    smallest = float(_smallest_eigenvalue(part))
    damping = _sufficient_damping(part, smallest, float(gram.diagonal().mean()))
    advice = (
        f"add damping of at least {damping:.1e} (1e-2 is usual), that is {damping:.1e} * gram.diagonal().mean() "
        "on the diagonal"
        if damping is not None
        else "its diagonal has no positive mean, so no relative damping would help: check that it is X'X/N"
    )
    raise NotPositiveDefiniteError(
        f"gram is not positive definite: its smallest eigenvalue is {smallest:.3g}; {advice}.",
        suggested_damping=damping,
    )


def count(value: Any, name: str, upper: int) -> int:
    """Return `value` as an integer between 0 and `upper`, the number of groups."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r} must be a whole number of groups.") from None
    if not 0 <= number <= upper:
        raise InputError(
            f"{name} = {number} is out of range: it must lie between 0 and the number of groups, {upper}."
        )
    return number


def scalar(value: Any, name: str) -> float:
    """Return `value` as a finite float."""
    try:
        if isinstance(value, (bool, np.bool_, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} = {value!r} must be a number.") from None
    if not math.isfinite(number):
        raise InputError(f"{name} = {number} must be finite.")
    return number


def nonnegative_vector(value: Any, name: str, n: int) -> FloatArray:
    """Return `value` as n finite numbers, none negative."""
    given = _as_array(value, name)
    if given.shape != (n,):
        raise InputError(
            f"{name} must hold one number for each of the {n} groups, but its shape is {given.shape}."
        )
    result = given.astype(np.float64)
    _require_finite(result, name)
    if np.any(result < 0.0):
        worst = int(np.argmin(result))
        raise InputError(f"{name} must not be negative, but {name}[{worst}] = {result[worst]:.6g}.")
    return result


def vector(value: Any, name: str, n: int) -> FloatArray:
    """Return a new array of n finite float64 numbers."""
    given = _as_array(value, name)
    if given.shape != (n,):
        raise InputError(f"{name} must hold {n} numbers, but its shape is {given.shape}.")
    result = given.astype(np.float64)
    _require_finite(result, name)
    return result


def group_mask(value: Any, name: str, n: int) -> BoolArray:
    """Return a boolean mask over n groups from a mask or from a list of group indices."""
    if value is None:
        return np.zeros(n, dtype=bool)
    given = np.asarray(value)
    if given.dtype == bool:
        if given.shape != (n,):
            raise InputError(f"{name} is a mask of shape {given.shape}, but there are {n} groups.")
        return given.copy()
    mask = np.zeros(n, dtype=bool)
    mask[_indices(given, name, n)] = True
    return mask


def _indices(given: AnyArray, name: str, n: int) -> IntArray:
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"{name} must be a boolean mask over the groups or a list of group indices.")
    if given.min() < 0 or given.max() >= n:
        raise InputError(
            f"{name} names group {given[(given < 0) | (given >= n)][0]}, but groups are 0..{n - 1}."
        )
    if len(np.unique(given)) < len(given):
        raise InputError(f"{name} names a group twice; a mask over the groups must be boolean.")
    return given.astype(np.int64)


def _as_array(value: Any, name: str) -> AnyArray:
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read as an array of numbers: {error}.") from error
    if given.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, but its type is {given.dtype}.")
    return given


def _require_finite(array: AnyArray, name: str) -> None:
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            where = np.argwhere(~finite)[0]
            value = block[tuple(where)]
            where[0] += start
            position = ", ".join(map(str, where))
            raise InputError(f"{name}[{position}] is {value}: every entry must be finite.")


def _block_pairs(square: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Views of the blocks on and above the diagonal, each with its mirror image."""
    starts = range(0, len(square), _BLOCK)
    for i in starts:
        for j in starts[i // _BLOCK :]:
            yield square[i : i + _BLOCK, j : j + _BLOCK], square[j : j + _BLOCK, i : i + _BLOCK]


def _asymmetry(gram: FloatArray) -> tuple[float, int, int]:
    """Largest |H_ij - H_ji| / sqrt(H_ii H_jj) and where."""
    tiny = np.finfo(float).tiny
    root = np.sqrt(np.maximum(np.abs(gram.diagonal()), tiny))
    worst = (0.0, 0, 0)
    for i in range(0, len(gram), _BLOCK):
        for j in range(i, len(gram), _BLOCK):
            upper, lower = gram[i : i + _BLOCK, j : j + _BLOCK], gram[j : j + _BLOCK, i : i + _BLOCK]
            if np.array_equal(upper, lower.T):
                continue
            apart = np.abs(upper - lower.T) / (root[i : i + _BLOCK, None] * root[None, j : j + _BLOCK])
            at = np.unravel_index(int(np.argmax(apart)), apart.shape)
            worst = max(worst, (float(apart[at]), i + int(at[0]), j + int(at[1])))
    return worst


def _smallest_eigenvalue(part: FloatArray) -> float:
    from scipy.linalg import eigh  # only on the way to an error

    return float(eigh(part, eigvals_only=True, subset_by_index=[0, 0])[0])


def _sufficient_damping(part: FloatArray, smallest: float, mean_diagonal: float) -> float | None:
    """Smallest damping found, rounded up to two digits, with which the check is seen to pass."""
    if mean_diagonal <= 0.0:
        return None
    damping = max(-1.1 * smallest / mean_diagonal, len(part) * np.finfo(float).eps)
    damped = part.copy()
    for _ in range(60):
        damping = _round_up(damping)
        np.fill_diagonal(damped, part.diagonal() + damping * mean_diagonal)
        try:
            if factor(damped).smallest_pivot > 2 * _PIVOT_FLOOR:
                return damping
        except np.linalg.LinAlgError:
            pass
        damping *= 2.0
    return None


def _round_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.1e}")
