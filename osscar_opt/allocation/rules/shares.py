r"""Shares fixed in advance, without looking at weights or data: uniform, and Erdős-Rényi-Kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import by_curve, highest
from osscar_opt.errors import InputError

__all__ = ["erk", "uniform"]


def uniform(curves: Sequence[Curve], budgets: Budget | Mapping[str, float]) -> Allocation:
    r"""The same share for every layer: the largest s for which the budget holds.

    .. math:: k_j = \max \{ k \in K_j : k \le s\, n_j \} ,

    and the narrowest width where that is none.  What rounding leaves of the budget is not spent.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number

    Raises
    ------
    InfeasibleError
        If the budget cannot be met.

    Examples
    --------
    >>> curves = [Curve(name, n, np.arange(1, n + 1), np.zeros(n), {"units": 1}) for name, n in [("a", 4), ("b", 8)]]
    >>> uniform(curves, {"units": 0.5}).widths
    {'a': 2, 'b': 4}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    n = np.array([curve.n for curve in posed.curves])
    return highest(posed, lambda share: share * n, 0.0, 1.0, "uniform", began, {})


def erk(curves: Sequence[Curve], budgets: Budget | Mapping[str, float], *, shapes: Any) -> Allocation:
    r"""Erdős-Rényi-Kernel: layers with many weights for their inputs and outputs keep a smaller share.

    .. math:: \frac{k_j}{n_j} = \min\Bigl(1,\; \epsilon\, \frac{\sum_d s_{jd}}{\prod_d s_{jd}} \Bigr) ,

    s_j the dimensions of the layer's weights: (inputs, outputs), or (inputs, outputs, height, width) of a convolution.
    Layers that would pass 1 stay whole, and epsilon grows for the others, as in the paper.  There the share is that of
    single weights, drawn at random; here it is that of units.

    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, *Rigging the Lottery: Making All Tickets Winners*, ICML 2020,
    after D. C. Mocanu et al., Nature Communications 2018.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    shapes : mapping of str to sequence of int, or sequence
        Dimensions of the weights of each curve's layer.

    Raises
    ------
    InputError
        If a shape is no list of positive numbers.

    Examples
    --------
    >>> curves = [Curve(name, 8, np.arange(1, 9), np.zeros(8), {"units": 1}) for name in "ab"]
    >>> erk(curves, {"units": 0.5}, shapes=[(8, 8), (8, 32)]).widths
    {'a': 5, 'b': 3}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    raw = []
    for curve, shape in zip(posed.curves, by_curve(shapes, posed, "shapes"), strict=True):
        if len(shape) == 0 or min(shape) < 1:
            raise InputError(f"the shape of {curve.name} must hold positive numbers, but is {tuple(shape)}.")
        raw.append(sum(shape) / math.prod(shape))
    density, n = np.array(raw), np.array([curve.n for curve in posed.curves])
    return highest(
        posed,
        lambda epsilon: np.minimum(1.0, epsilon * density) * n,
        0.0,
        1.0 / float(density.min()),
        "erk",
        began,
        {},
    )
