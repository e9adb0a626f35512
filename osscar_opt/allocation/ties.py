"""Layers that must have one width, as a residual stream or a group of heads makes them: one curve for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.allocation.curves import Curve
from osscar_opt.errors import InputError

__all__ = ["tie"]


def tie(curves: Sequence[Curve], name: str | None = None) -> Curve:
    """One curve for layers that must have one width: errors, losses and costs added, at the widths all of them allow.

    Parameters
    ----------
    curves : sequence of Curve
        With the same n and the same resources.
    name : str, optional
        The names joined by ``+`` by default.

    Raises
    ------
    InputError
        If the curves differ in n or in resources, or allow no width in common.

    Examples
    --------
    >>> a = Curve("a", 4, [1, 2, 4], [6.0, 1.0, 0.0], {"parameters": 10})
    >>> b = Curve("b", 4, [2, 4], [2.0, 0.0], {"parameters": 5})
    >>> both = tie([a, b])
    >>> both.name, both.widths, both.losses, both.costs["parameters"]
    ('a+b', array([2, 4]), array([3., 0.]), array([30., 60.]))
    """
    if not curves:
        raise InputError("there are no curves to tie.")
    first = curves[0]
    common = first.widths
    for other in curves[1:]:
        if other.n != first.n or set(other.costs) != set(first.costs):
            raise InputError(
                f"{first.name} and {other.name} differ in their units or resources: they cannot be tied."
            )
        common = np.intersect1d(common, other.widths)
    if len(common) == 0:
        raise InputError(f"{', '.join(curve.name for curve in curves)} allow no width in common.")
    places = [np.searchsorted(curve.widths, common) for curve in curves]
    empty = [curve.empty_error for curve in curves]
    known = [key for key in first.dense_costs if all(key in curve.dense_costs for curve in curves)]

    def total(arrays: list[FloatArray]) -> FloatArray:
        return np.asarray(sum(array[at] for array, at in zip(arrays, places, strict=True)))

    return Curve(
        "+".join(curve.name for curve in curves) if name is None else name,
        first.n,
        common,
        total([curve.errors for curve in curves]),
        {key: total([curve.costs[key] for curve in curves]) for key in first.costs},
        losses=total([curve.losses for curve in curves]),
        dense_error=math.fsum(curve.dense_error for curve in curves),
        empty_error=math.fsum(e for e in empty if e is not None) if None not in empty else None,
        dense_costs={key: math.fsum(curve.dense_costs[key] for curve in curves) for key in known},
        layers=[layer for curve in curves for layer in curve.layers],
    )
