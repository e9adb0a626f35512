"""An allocation: how many units each layer keeps, what that uses of each resource, and what is proved of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osscar_opt.formulations.outcome import Outcome

__all__ = ["Allocation"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Allocation(Outcome):
    """Widths of all layers, with the numbers and words of `osscar_opt.formulations.outcome.Outcome`.

    Attributes
    ----------
    widths : mapping of str to int
        Units kept, by layer; layers that are tied have the same width.
    units : mapping of str to int
        Units of each layer when nothing is removed.
    usage : mapping of str to float
        Use of each resource, in its own unit: of the prunable part, or of the whole model if the budget is of it.
    limits : mapping of str to float
        What the budget allows, in the same unit; only resources that have a budget.
    dense : mapping of str to float
        Use of each resource with nothing removed; where that is known.

    Examples
    --------
    >>> from osscar_opt.allocation import Curve, allocate
    >>> curves = [Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}), Curve("b", 2, [1, 2], [1.0, 0.0], {"units": 1})]
    >>> allocation = allocate(curves, {"units": 3})
    >>> allocation
    Allocation(milp, objective=1, gap=0, optimal, completed, units 3 of 3)
    >>> print(allocation.table())
    layer  kept  of   share
    a         2   2  100.0%
    b         1   2   50.0%
    <BLANKLINE>
    resource  used  budget  dense  share
    units        3       3      4  75.0%
    """

    widths: Mapping[str, int]
    units: Mapping[str, int]
    usage: Mapping[str, float]
    limits: Mapping[str, float]
    dense: Mapping[str, float]

    def table(self) -> str:
        """Widths by layer, and use by resource, as text.

        Examples
        --------
        >>> from osscar_opt.allocation import Curve, allocate
        >>> curve = Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})
        >>> print(allocate([curve], {"units": 0.5}).table())
        layer  kept  of  share
        a         1   2  50.0%
        <BLANKLINE>
        resource  used  budget  dense  share
        units        1       1      2  50.0%
        """
        layers = [
            (layer, str(width), str(self.units[layer]), f"{width / self.units[layer]:.1%}")
            for layer, width in self.widths.items()
        ]
        resources = []
        for resource, used in self.usage.items():
            dense = self.dense.get(resource, math.nan)
            resources.append(
                (
                    resource,
                    f"{used:.9g}",
                    f"{self.limits[resource]:.9g}" if resource in self.limits else "",
                    f"{dense:.9g}" if math.isfinite(dense) else "",
                    f"{used / dense:.1%}" if math.isfinite(dense) and dense > 0.0 else "",
                )
            )
        parts = [aligned(("layer", "kept", "of", "share"), layers)]
        if resources:
            parts.append(aligned(("resource", "used", "budget", "dense", "share"), resources))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """As `Outcome.to_dict`, with widths and use.

        Examples
        --------
        >>> from osscar_opt.allocation import Curve, allocate
        >>> curve = Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})
        >>> allocate([curve], {"units": 0.5}).to_dict()["widths"]
        {'a': 1}
        """
        return super().to_dict() | {
            "widths": dict(self.widths),
            "units": dict(self.units),
            "usage": dict(self.usage),
            "limits": dict(self.limits),
            "dense": dict(self.dense),
        }

    def __repr__(self) -> str:
        uses = "".join(f", {key} {self.usage[key]:.6g} of {limit:.6g}" for key, limit in self.limits.items())
        return super().__repr__()[:-1] + uses + ")"


def aligned(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns under a header, the first to the left, the others to the right.

    Examples
    --------
    >>> print(aligned(("a", "number"), [("x", "1")]))
    a  number
    x       1
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )
