"""From calibration data to the quadratic program: second moments, damping, and the constant.

With X (N x p) inputs, W0 (p x q) dense weights, Y (N x q) targets and ridge = damping * mean diag(X'X/N):

    gram     = X'X/N + ridge I
    cross    = X'Y/N + ridge W0               (X W0 in place of Y gives gram @ W0)
    constant = tr(Y'Y)/(2N) + ridge/2 |W0|^2

so that the objective is  |Y - X W|^2 / (2N) + ridge/2 |W - W0|^2, half the mean squared error of the outputs plus a
pull towards the dense weights, as in OSSCAR (Meng et al., ICML 2024), which damps by 1e-2.

With an intercept, X and Y stand for X - mean(X) and Y - mean(Y): the best intercept of any W is
mean(Y) - W' mean(X), and what is left to minimise is |(Y - mean) - (X - mean) W|^2 / (2N).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray, read_only
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate
from osscar_opt.linalg.blas import mirror_lower, square_update

__all__ = ["column_means", "fields_from_moments", "keep_at_sparsity", "moments"]

_ROWS_AT_ONCE = 8192


def column_means(inputs: Any, targets: Any = None) -> tuple[FloatArray, FloatArray | None]:
    """Means of the columns of X, and of Y where it is given, in float64.

    Raises
    ------
    InputError
        As for `moments`.

    Examples
    --------
    >>> column_means([[1.0, 0.0], [1.0, 2.0]], [[2.0], [4.0]])
    (array([1., 1.]), array([3.]))
    """
    x = _samples(inputs, "inputs")
    mean = x.mean(axis=0, dtype=np.float64)
    return mean, None if targets is None else _samples(targets, "targets").mean(axis=0, dtype=np.float64)


def moments(
    inputs: Any, targets: Any = None, *, about: tuple[FloatArray | None, FloatArray | None] = (None, None)
) -> tuple[FloatArray, FloatArray | None, float | None]:
    """Return X'X/N, X'Y/N and tr(Y'Y)/N in float64, upcasting a block of rows at a time.

    Parameters
    ----------
    inputs : (N, p) array
    targets : (N, q) array, optional
    about : pair of (p,) and (q,) array or None, optional
        What is subtracted from every row of X and of Y first.

    Raises
    ------
    InputError
        If the arrays are not matrices with the same number N > 0 of rows, or hold NaN or infinity.

    Examples
    --------
    >>> second, cross, energy = moments([[1.0, 0.0], [1.0, 2.0]], [[2.0], [4.0]])
    >>> second
    array([[1., 1.],
           [1., 2.]])
    >>> cross.ravel(), energy
    (array([3., 4.]), 10.0)
    """
    x = _samples(inputs, "inputs")
    y = None if targets is None else _samples(targets, "targets")
    if y is not None and len(y) != len(x):
        raise InputError(f"inputs have {len(x)} rows and targets {len(y)}: they must hold the same samples.")
    second = np.zeros((x.shape[1], x.shape[1]))
    cross = None if y is None else np.zeros((x.shape[1], y.shape[1]))
    energy = 0.0
    for start in range(0, len(x), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        x_rows, _ = _validate.matrix(x[rows], "inputs", copy=False)
        x_rows = x_rows if about[0] is None else x_rows - about[0]
        square_update(second.T, x_rows.T, 1.0 / len(x))
        if y is not None and cross is not None:
            y_rows, _ = _validate.matrix(y[rows], "targets", copy=False)
            y_rows = y_rows if about[1] is None else y_rows - about[1]
            cross += x_rows.T @ y_rows
            energy += float(np.vdot(y_rows, y_rows))
    mirror_lower(second.T)
    if cross is None:
        return second, None, None
    cross /= len(x)
    return second, cross, energy / len(x)


def fields_from_moments(
    second_moment: Any,
    weights: Any,
    cross_moment: Any,
    target_energy: Any,
    damping: Any,
    *,
    copy: bool = True,
) -> dict[str, Any]:
    """Turn moments into the arguments gram, cross, dense_weights and constant of `Problem`.

    The moments are damped in a copy, or, without `copy`, in place where they are float64 arrays that may be changed.

    Raises
    ------
    InputError
        If neither weights nor cross_moment is given, damping is negative, or an array is malformed.

    Examples
    --------
    >>> fields_from_moments([[2.0]], [[3.0]], None, None, 0.5)["gram"]
    array([[3.]])
    """
    if weights is None and cross_moment is None:
        raise InputError("nothing to approximate: pass weights (the dense layer), targets, or both.")
    damping = _validate.scalar(damping, "damping")
    if damping < 0.0:
        raise InputError(f"damping = {damping:.6g} must not be negative.")
    second, itemsize = _validate.matrix(second_moment, "second_moment", copy=copy or _frozen(second_moment))
    gram = _validate.symmetric(second, itemsize, owned=True)
    p = len(gram)
    ridge = damping * float(gram.diagonal().mean()) if p else 0.0
    gram[np.diag_indices(p)] += ridge
    dense = None if weights is None else _validate.matrix(weights, "weights", rows=p)[0]
    cross = None
    if cross_moment is not None:
        cross, _ = _validate.matrix(cross_moment, "cross_moment", rows=p, copy=copy or _frozen(cross_moment))
    constant = None
    if cross is not None and target_energy is not None:
        constant = 0.5 * _validate.scalar(target_energy, "target_energy")
    if cross is not None and dense is not None:
        if dense.shape != cross.shape:
            raise InputError(f"weights have shape {dense.shape}, but the targets ask for {cross.shape}.")
        cross += ridge * dense
        if constant is not None:
            constant += 0.5 * ridge * float(np.vdot(dense, dense))
    arrays = {"gram": gram, "cross": cross, "dense_weights": dense}
    frozen = {name: None if array is None else read_only(array) for name, array in arrays.items()}
    return {**frozen, "constant": constant}


def keep_at_sparsity(sparsity: Any, n: int) -> int:
    """Groups that stay when a fraction of n is removed: n - floor(sparsity * n).

    Raises
    ------
    InputError
        If sparsity is not between 0 and 1.

    Examples
    --------
    >>> keep_at_sparsity(0.29, 100)
    71
    """
    fraction = _validate.scalar(sparsity, "sparsity")
    if not 0.0 <= fraction <= 1.0:
        raise InputError(
            f"sparsity = {fraction:.6g} is out of range: it is the fraction removed, from 0 to 1."
        )
    return n - math.floor(fraction * n + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _frozen(array: Any) -> bool:
    return isinstance(array, np.ndarray) and not array.flags.writeable


def _samples(value: Any, name: str) -> Any:
    array = np.asarray(value)
    if array.ndim != 2 or len(array) == 0:
        raise InputError(f"{name} must be a matrix with one row per sample, but its shape is {array.shape}.")
    return array
