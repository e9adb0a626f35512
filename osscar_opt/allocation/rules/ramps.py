r"""Shares that follow from where a layer stands, or from how much its block changes what goes through it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import highest, numbers_by_curve
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate

__all__ = ["cfsp", "slimgpt"]

_MARGIN = 1.05
"""CFSP keeps the most important block this far from its whole width."""


def slimgpt(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    first: float = 0.5,
    depths: Any = None,
) -> Allocation:
    r"""SlimGPT's incremental pruning ratio: it rises with the logarithm of the depth.

    The share removed at depth i = 0, ..., L - 1 is

    .. math:: r_i = r_0 + (r_{L-1} - r_0) \frac{\log (i + 1)}{\log L} , \qquad r_0 = \phi\, r_{L-1} ,

    at most 1, with the smallest r_{L-1} for which the budget holds: errors of early layers pass through all later ones.
    The paper sets both ends by hand for each budget; that r_0 is a given part of r_{L-1} is ours.

    G. Ling, Z. Wang, Y. Yan, Q. Liu, *SlimGPT: Layer-wise Structured Pruning for Large Language Models*, NeurIPS 2024.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    first : float, optional
        phi, from 0 (the first layer stays whole) to 1 (uniform).
    depths : mapping of str to int, or sequence, optional
        Depth of each curve's block, from 0; the order of the curves by default.

    Raises
    ------
    InputError
        If `first` is out of range, or a depth is negative.

    Examples
    --------
    >>> curves = [Curve(name, 8, np.arange(1, 9), np.zeros(8), {"units": 1}) for name in "abcd"]
    >>> slimgpt(curves, {"units": 0.5}, first=0.5).widths
    {'a': 5, 'b': 4, 'c': 4, 'd': 3}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    phi = _validate.scalar(first, "first")
    if not 0.0 <= phi <= 1.0:
        raise InputError(f"first = {phi:.6g} is out of range: it is a part of the last ratio, from 0 to 1.")
    order = range(len(posed.curves)) if depths is None else depths
    depth = numbers_by_curve(order, posed, "depths")
    if np.any(depth < 0.0):
        raise InputError("depths must not be negative: the first block has depth 0.")
    deepest = float(depth.max())
    rise = np.log(depth + 1.0) / np.log(deepest + 1.0) if deepest > 0.0 else np.ones(len(depth))
    ramp = phi + (1.0 - phi) * rise
    n = np.array([curve.n for curve in posed.curves])
    return highest(
        posed,
        lambda level: n * (1.0 - np.minimum(1.0, -level * ramp)),
        -1.0 / float(ramp[ramp > 0.0].min()),
        0.0,
        "slimgpt",
        began,
        {"first": phi},
    )


def cfsp(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    distances: Any,
    intensity: float = 13.1072,
) -> Allocation:
    r"""CFSP's coarse level: blocks that turn what goes through them keep more, by a sigmoid.

    With d_j the mean over tokens of the angular distance of a block's input and output,

    .. math:: d_j = \frac1T \sum_t \frac1\pi \arccos \frac{x_t' y_t}{|x_t| |y_t|} , \qquad
              \sigma_j = \frac{1}{1 + e^{-a (d_j - \bar d)}} , \qquad
              \frac{k_j}{n_j} = s\, \frac{\sigma_j}{\bar\sigma} ,

    with the largest s for which the budget holds.  Where that would give the most important block its whole width or
    more, the sigmoids are drawn towards their mean until it has 1 / 1.05 of the way there, as in the authors' code:
    k_j / n_j = s + (1 - s) (sigma_j - mean) / (1.05 (max - mean)).

    Y. Wang, M. Ma, Z. Wang, J. Chen, L. Shan, Q. Yang, D. Xu, M. Liu, B. Qin, *CFSP: An Efficient Structured Pruning
    Framework for LLMs with Coarse-to-Fine Activation Information*, COLING 2025 (arXiv 2409.13199).  The authors' code
    sums the distances over 128 x 1024 tokens and divides by 10,000, which makes its a = 1 the intensity 13.1072.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    distances : mapping of str to float, or sequence
        Mean angular distance of each curve's block, from 0 to 1.
    intensity : float, optional
        a, at least 0; 0 is uniform.

    Raises
    ------
    InputError
        If the intensity is negative.

    Examples
    --------
    >>> curves = [Curve(name, 8, np.arange(1, 9), np.zeros(8), {"units": 1}) for name in "ab"]
    >>> cfsp(curves, {"units": 0.5}, distances=[0.3, 0.1]).widths
    {'a': 7, 'b': 1}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    strength = _validate.scalar(intensity, "intensity")
    if strength < 0.0:
        raise InputError(f"intensity = {strength:.6g} must not be negative.")
    distance = numbers_by_curve(distances, posed, "distances")
    sigmoid = 0.5 * (1.0 + np.tanh(0.5 * strength * (distance - distance.mean())))  # does not overflow
    mean, most = float(sigmoid.mean()), float(sigmoid.max())
    n = np.array([curve.n for curve in posed.curves])

    def targets(share: float) -> FloatArray:
        if share * most < mean or most <= mean:
            return np.asarray(n * np.minimum(1.0, share * sigmoid / mean))
        return np.asarray(n * (share + (1.0 - share) * (sigmoid - mean) / (_MARGIN * (most - mean))))

    return highest(posed, targets, 0.0, 1.0, "cfsp", began, {"intensity": strength})
