r"""A loss measured at a few widths, for all widths: interpolated along the layer's error.

What the model loses (KL to the dense model, say) with only layer j pruned to k units costs a pass over data for each k,
while the layer's error e_j(k) is known for all k from one path.  Between two measured widths the loss is taken to be a
power of the error above its dense value, x = e - e(n), a straight line in log x and log L:

.. math:: L(x) = L_a (x / x_a)^{b}, \qquad b = \frac{\log (L_b / L_a)}{\log (x_b / x_a)}, \qquad x_a \le x \le x_b .

- Below the smallest measured error L is proportional to x: to second order in the change of a layer's outputs the
  model's loss is a quadratic form of it, as the error is.  So L(0) = 0.
- Above the largest, the last power goes on, with an exponent from 1 to 2: never less than proportional, so that widths
  narrower than any measured do not look cheap, and not so steep that they become infinite.
- Where L is 0 at one of the two, the line is straight in x and L.
- Measurements that fall while the error rises are noise: they are pooled into their mean until none does (pool adjacent
  violators; R. E. Barlow et al., *Statistical Inference under Order Restrictions*, 1972).  So are those at one error.

L passes through all measured points that rise with the error, never falls with it, and is nowhere negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike, FloatArray
from osscar_opt.allocation.curves import Curve
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate

__all__ = ["interpolated", "with_measured"]

_STEEPEST = 2.0


def interpolated(errors: ArrayLike, measured_errors: ArrayLike, measured_losses: ArrayLike) -> FloatArray:
    """Loss at every error, from losses measured at some.

    Parameters
    ----------
    errors : (w,) array
        Errors above the dense one; what is below zero counts as zero.
    measured_errors : (m,) array
        Positive, in any order.
    measured_losses : (m,) array
        What is below zero, by the measurement's noise, counts as zero.

    Returns
    -------
    (w,) array

    Raises
    ------
    InputError
        If nothing was measured, or an error is not positive.

    Examples
    --------
    >>> interpolated([0.0, 0.5, 1.0, 2.0, 4.0, 8.0], [1.0, 4.0], [3.0, 6.0])
    array([ 0.        ,  1.5       ,  3.        ,  4.24264069,  6.        , 12.        ])
    """
    wanted = np.asarray(errors, dtype=np.float64)
    wanted = np.maximum(_validate.vector(wanted, "errors", wanted.size), 0.0)
    size = np.size(measured_errors)
    x = _validate.vector(measured_errors, "measured_errors", size)
    y = np.maximum(_validate.vector(measured_losses, "measured_losses", size), 0.0)
    if size == 0 or np.any(x <= 0.0):
        raise InputError("measured_errors must hold at least one error, all of them positive.")
    x, y = _pooled(x, y)
    found = y[0] * (wanted / x[0])
    for a in range(len(x) - 1):
        inside = (wanted > x[a]) & (wanted <= x[a + 1])
        found[inside] = _between(wanted[inside], x[a : a + 2], y[a : a + 2])
    beyond = wanted > x[-1]
    power = 1.0
    if len(x) > 1 and y[-2] > 0.0:
        slope = (np.log(y[-1]) - np.log(y[-2])) / _log_ratio(x[-1], x[-2])
        power = float(np.clip(slope, 1.0, _STEEPEST))
    found[beyond] = y[-1] * (wanted[beyond] / x[-1]) ** power
    return np.asarray(found)


def with_measured(curve: Curve, measured: Mapping[int, float]) -> Curve:
    """The curve with losses interpolated from those measured at some of its widths.

    Parameters
    ----------
    curve : Curve
        Its errors must not rise with the width, as `Curve.monotone` makes them.
    measured : mapping of int to float
        The model's loss above that of the dense model, by width of this layer, all other layers dense.

    Raises
    ------
    InputError
        If a width is none of the curve's, or the error there is no larger than the dense one.

    Examples
    --------
    >>> curve = Curve("ffn", 4, [1, 2, 3, 4], [8.0, 4.0, 1.0, 0.0], {})
    >>> with_measured(curve, {3: 0.25, 1: 2.0}).losses
    array([2.  , 1.  , 0.25, 0.  ])
    """
    if np.any(np.diff(curve.errors) > 0.0):
        raise InputError(
            f"the errors of {curve.name} rise with its width somewhere: use curve.monotone() first."
        )
    above = curve.errors - curve.dense_error
    at = [curve.place(width) for width in measured]
    flat = [curve.widths[i] for i in at if above[i] <= 0.0]
    if flat:
        raise InputError(
            f"{curve.name} loses nothing with {flat[0]} units kept: measure at widths where its error is positive."
        )
    return curve.with_losses(interpolated(above, above[at], list(measured.values())))


def _between(x: FloatArray, ends: FloatArray, values: FloatArray) -> FloatArray:
    if values[0] <= 0.0:
        return np.asarray(np.interp(x, ends, values))
    along = _log_ratio(x, ends[0]) / _log_ratio(ends[1], ends[0])
    low, high = np.log(values)
    # Rounding of the logarithms may pass the ends of the segment by a digit.
    return np.asarray(np.clip(np.exp(low + along * (high - low)), values[0], values[1]))


def _log_ratio(x: Any, least: float) -> Any:
    """log(x / least) for x >= least, to all digits where they are close, and where their ratio overflows."""
    near = np.log1p((np.minimum(x, 2.0 * least) - least) / least)
    return np.where(x <= 2.0 * least, near, np.log(x) - np.log(least))


def _pooled(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Points sorted by x, one for each x, with y made to rise by pooling."""
    once, which = np.unique(x, return_inverse=True)
    weights = np.bincount(which).astype(np.float64)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of points
    for mean, weight in zip(np.bincount(which, y) / weights, weights, strict=True):
        block = (float(mean), float(weight), 1)
        while blocks and blocks[-1][0] > block[0]:
            before = blocks.pop()
            weight_of_both = before[1] + block[1]
            both = (before[0] * before[1] + block[0] * block[1]) / weight_of_both
            block = (both, weight_of_both, before[2] + block[2])
        blocks.append(block)
    return once, np.repeat([block[0] for block in blocks], [block[2] for block in blocks])
