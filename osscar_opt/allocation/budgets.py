r"""Budgets of several resources at once, and limits on single layers.

With B_r the limit on resource r, c_rj(k) what layer j uses with k units kept, and c_r0 what nothing prunable changes,

.. math:: \sum_j c_{rj}(k_j) \le B_r \;\text{(of the prunable part)} \qquad\text{or}\qquad
          c_{r0} + \sum_j c_{rj}(k_j) \le B_r \;\text{(of the whole)} ,

B_r an absolute number, or a share of the left side with nothing removed.
"""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.posed import Posed, require_distinct
from osscar_opt.errors import InfeasibleError, InputError
from osscar_opt.formulations import _validate

__all__ = ["Budget", "pose"]


@dataclass(frozen=True, eq=False)
class Budget:
    """Limits on resources, and on the widths of single layers.

    Attributes
    ----------
    limits : mapping of str to number
        By resource.  A float up to 1.0 is a share of what the dense model uses; an integer, or a float above 1, is in
        the resource's own unit (parameters, FLOPs, bytes, seconds).
    of : {"prunable", "whole"}
        What the limits are on: the use that goes with the units of the curves, or that of the whole model, for which
        `fixed` says what else it uses.
    fixed : mapping of str to float
        Use of each resource that no width changes (embeddings, norms, ...); needed for ``of="whole"`` alone.
    least, most : number or mapping of str to number, optional
        Fewest and most units that a layer keeps; a float up to 1.0 is a share of its units.  A mapping's keys are names
        of curves, or of layers, or patterns such as ``"*.mlp"``; a later key overrides an earlier one.
    absolute : bool
        Whether every number of `limits` is in the resource's own unit, a latency of 0.8 seconds, say.

    Examples
    --------
    >>> curves = [Curve("a", 4, [1, 2, 3, 4], [9.0, 4.0, 1.0, 0.0], {"parameters": 10, "latency": 0.25})]
    >>> budget = Budget({"parameters": 0.75, "latency": 0.5}, least=2)
    >>> posed = budget.resolve(curves)
    >>> posed.limits, posed.curves[0].widths
    ({'parameters': 30.0, 'latency': 0.5}, array([2, 3, 4]))
    >>> Budget({"parameters": 0.75}, of="whole", fixed={"parameters": 60}).resolve(curves).limits
    {'parameters': 75.0}
    """

    limits: Mapping[str, float]
    of: Literal["prunable", "whole"] = "prunable"
    fixed: Mapping[str, float] = field(default_factory=dict)
    least: Any = None
    most: Any = None
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.of not in ("prunable", "whole"):
            raise InputError(f"of = {self.of!r} is neither 'prunable' nor 'whole'.")
        for resource, limit in self.limits.items():
            if _validate.scalar(limit, f"the budget of {resource}") < 0.0:
                raise InputError(f"the budget of {resource} = {limit} must not be negative.")
        for resource, used in self.fixed.items():
            if _validate.scalar(used, f"the fixed use of {resource}") < 0.0:
                raise InputError(f"the fixed use of {resource} = {used} must not be negative.")

    def resolve(self, curves: Sequence[Curve]) -> Posed:
        """Apply the limits to curves: widths restricted, budgets in absolute numbers.

        Raises
        ------
        InputError
            If a resource is unknown to a curve, a key of `least` or `most` names no layer, or a share has nothing to
            refer to.
        InfeasibleError
            If a layer has no width left, or a budget is below what the narrowest widths use, with the smallest that is
            feasible.

        Examples
        --------
        >>> Budget({"units": 2}).resolve([Curve("a", 4, [3, 4], [1.0, 0.0], {"units": 1})])
        Traceback (most recent call last):
        osscar_opt.errors.InfeasibleError: the budget units = 2 cannot be met: the widths allowed use at least 3, which
        is the smallest feasible budget (0.75 of the dense 4).
        """
        require_distinct(curves)
        least = _by_curve(self.least, curves, "least", 0, math.ceil)
        most = _by_curve(self.most, curves, "most", None, math.floor)
        restricted = []
        for curve, low, high in zip(curves, least, most, strict=True):
            if not any(low <= width <= high for width in curve.widths):
                raise InfeasibleError(
                    f"{curve.name} has no width between least = {low} and most = {high}; it may keep "
                    f"{curve.widths[0]} to {curve.widths[-1]} of its {curve.n} units."
                )
            restricted.append(curve.restricted(low, high))
        fixed = {key: float(used) for key, used in self.fixed.items()} if self.of == "whole" else {}
        if self.of == "whole":
            unknown = [key for key in self.limits if key not in fixed]
            if unknown:
                raise InputError(
                    f"a budget of the whole model needs what is not prunable: pass fixed={{{unknown[0]!r}: ...}}."
                )
        posed = Posed(tuple(restricted), {}, fixed)
        limits = {key: self._limit(posed, key) for key in self.limits}
        posed = posed.with_limits(limits)
        for resource, limit in limits.items():
            smallest = posed.least(resource)
            if smallest > limit + posed.slop(resource):
                raise InfeasibleError(
                    f"the budget {resource} = {number(limit)} cannot be met: the widths allowed use at least "
                    f"{number(smallest)}, which is the smallest feasible budget{share(posed, resource, smallest)}."
                )
        return posed

    def _limit(self, posed: Posed, resource: str) -> float:
        given = self.limits[resource]
        for curve in posed.curves:
            if resource not in curve.costs:
                known = ", ".join(posed.resources) or "none"
                raise InputError(
                    f"{curve.name} has no costs in {resource!r}: give every curve some, or choose among {known}."
                )
        limit = float(given)
        if not self.absolute and _is_share(given):
            dense = posed.dense(resource)
            if dense is None:
                raise InputError(
                    f"the budget {resource} = {limit:.6g} is a share, but what the dense layers use is not known: pass "
                    "dense_costs to the curves that may not keep all units, or give an absolute number."
                )
            limit *= dense
        if posed.whole(resource):
            return float(math.floor(limit + posed.with_limits({resource: limit}).slop(resource)))
        return limit


def pose(curves: Sequence[Curve], budgets: Budget | Mapping[str, float]) -> Posed:
    """Resolve a budget, or a plain mapping of limits, against curves.

    Examples
    --------
    >>> pose([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})], {"units": 0.5}).limits
    {'units': 1.0}
    """
    budget = budgets if isinstance(budgets, Budget) else Budget(budgets)
    return budget.resolve(curves)


def number(value: float) -> str:
    """To all its digits, so that it can be given back.

    Examples
    --------
    >>> number(123456789012.0), number(0.1)
    ('123456789012', '0.1')
    """
    return str(int(value)) if value == math.floor(value) else repr(float(value))


def share(posed: Posed, resource: str, value: float) -> str:
    """``" (0.75 of the dense 4)"``, rounded up so that it is no less than the value; "" where that is not known.

    Examples
    --------
    >>> share(Posed((Curve("a", 3, [1, 3], [4.0, 0.0], {"units": 1}),), {}, {}), "units", 1.0)
    ' (0.333334 of the dense 3)'
    """
    dense = posed.dense(resource)
    if dense is None or not 0.0 < value <= dense:
        return ""
    millionths = round(value / dense * 1e6)
    if millionths / 1e6 * dense * (1.0 + 2.0**-50) < value:  # 0.58 * 100 is 57.99999999999999
        millionths += 1
    return f" ({min(1.0, millionths / 1e6):.6g} of the dense {number(dense)})"


def _is_share(value: Any) -> bool:
    return not isinstance(value, numbers.Integral) and float(value) <= 1.0


def _by_curve(given: Any, curves: Sequence[Curve], what: str, default: int | None, rounded: Any) -> list[int]:
    """A limit in units for each curve."""
    values: list[Any] = [curve.n if default is None else default for curve in curves]
    if given is None:
        return values
    for key, value in given.items() if isinstance(given, Mapping) else [("*", given)]:
        found = [
            j
            for j, curve in enumerate(curves)
            if any(name == key or fnmatch.fnmatchcase(name, key) for name in (curve.name, *curve.layers))
        ]
        if not found:
            names = ", ".join(curve.name for curve in curves)
            raise InputError(f"{what} has {key!r}, which is none of the layers: {names[:200]}.")
        limit = _validate.scalar(value, f"{what} of {key}")
        if limit < 0.0 or (not _is_share(value) and limit != math.floor(limit)):
            raise InputError(
                f"{what} of {key} = {value} must be a whole number of units, or a share from 0.0 to 1.0."
            )
        for j in found:
            # 1e-9: 0.1 * 30 is 3.0000000000000004
            units = limit * curves[j].n if _is_share(value) else limit
            values[j] = int(rounded(units - 1e-9 if rounded is math.ceil else units + 1e-9))
    return values
