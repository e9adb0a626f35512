"""Curves and limits in absolute numbers: what every way to allocate starts from, and what recomputes its numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.errors import InputError, SolverError
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations.outcome import Bound, judged
from osscar_opt.formulations.solution import Termination

__all__ = ["Posed"]

_SLOP = 2.0**-49
"""Relative to a limit: what 0.29 * 100 falls short of 29 by, and far below one unit of any resource that is counted."""


@dataclass(frozen=True, eq=False)
class Posed:
    """One width for each curve, under a limit on each resource.

    Choices are arrays of places: ``at[j]`` is the position of curve j's width among those it allows.

    Attributes
    ----------
    curves : tuple of Curve
        Restricted to the widths allowed.
    limits : mapping of str to float
        On the use of all curves and the fixed part together; whole numbers where every use is one.
    fixed : mapping of str to float
        Use that no width changes; 0 where the budget is of the prunable part alone.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> curves = [Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}), Curve("b", 2, [1, 2], [1.0, 0.0], {"units": 1})]
    >>> posed = Budget({"units": 0.75}).resolve(curves)
    >>> posed.limits, posed.usage("units", [1, 0]), posed.violation([1, 1])
    ({'units': 3.0}, 3.0, 'uses 4 of units = 3')
    """

    curves: tuple[Curve, ...]
    limits: Mapping[str, float]
    fixed: Mapping[str, float]

    @cached_property
    def resources(self) -> tuple[str, ...]:
        """Resources that every curve knows.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {}).resources
        ('units',)
        """
        first, *others = self.curves
        return tuple(key for key in first.costs if all(key in curve.costs for curve in others))

    def objective(self, at: Sequence[int] | IntArray) -> float:
        """Sum of the losses.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {}).objective([0])
        4.0
        """
        return math.fsum(float(curve.losses[i]) for curve, i in zip(self.curves, at, strict=True))

    def usage(self, resource: str, at: Sequence[int] | IntArray) -> float:
        """Use of a resource, the fixed part included, correctly rounded.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {"units": 5.0}).usage("units", [0])
        6.0
        """
        used = [float(curve.costs[resource][i]) for curve, i in zip(self.curves, at, strict=True)]
        return math.fsum([*used, self.fixed.get(resource, 0.0)])

    def violation(self, at: Sequence[int] | IntArray) -> str:
        """One clause saying which limit a choice passes, or "".

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {"units": 1.0}, {}).violation([1])
        'uses 2 of units = 1'
        """
        for resource, limit in self.limits.items():
            used = self.usage(resource, at)
            if used > limit + self.slop(resource):
                return f"uses {used:.12g} of {resource} = {limit:.12g}"
        return ""

    def slop(self, resource: str) -> float:
        """How far above its limit a use may lie by rounding.

        Examples
        --------
        >>> Posed((), {"units": 0.0}, {}).slop("units")
        0.0
        """
        return _SLOP * abs(self.limits[resource])

    def whole(self, resource: str) -> bool:
        """Whether every use of a resource is a whole number.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {}).whole("units")
        True
        """
        fixed = self.fixed.get(resource, 0.0)
        return fixed == math.floor(fixed) and all(
            bool(np.all(curve.costs[resource] == np.rint(curve.costs[resource]))) for curve in self.curves
        )

    def dense(self, resource: str) -> float | None:
        """Use with nothing removed, the fixed part included; None if a curve does not know it.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {}).dense("units")
        2.0
        """
        if any(resource not in curve.dense_costs for curve in self.curves):
            return None
        return math.fsum(
            [*(curve.dense_costs[resource] for curve in self.curves), self.fixed.get(resource, 0.0)]
        )

    def least(self, resource: str) -> float:
        """The least use of a resource that the widths allow, whatever the other limits.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {}, {}).least("units")
        1.0
        """
        return self.usage(resource, [int(np.argmin(curve.costs[resource])) for curve in self.curves])

    def with_limits(self, limits: Mapping[str, float]) -> Posed:
        """The same under other limits, in absolute numbers.

        Examples
        --------
        >>> Posed((), {"units": 3.0}, {}).with_limits({"units": 4.0}).limits
        {'units': 4.0}
        """
        return replace(self, limits=dict(limits))

    def with_losses(self, losses: Sequence[FloatArray]) -> Posed:
        """The same with other losses, one array for each curve.

        Examples
        --------
        >>> Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {}),), {}, {}).with_losses([[1.0, 0.0]]).objective([0])
        1.0
        """
        return replace(
            self,
            curves=tuple(curve.with_losses(loss) for curve, loss in zip(self.curves, losses, strict=True)),
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of widths, losses and uses; not of the limits.

        Examples
        --------
        >>> posed = Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {}),), {}, {})
        >>> posed.hash == posed.with_limits({"units": 1.0}).hash
        True
        """
        arrays: dict[str, Any] = {}
        for j, curve in enumerate(self.curves):
            arrays |= {f"widths {j}": curve.widths, f"losses {j}": curve.losses}
            arrays |= {f"{key} {j}": curve.costs[key] for key in sorted(self.resources)}
        return content_hash(**arrays)

    def allocation(
        self,
        at: Sequence[int] | IntArray,
        method: str,
        began: float,
        *,
        bound: Bound | None = None,
        termination: Termination = Termination.COMPLETED,
        message: str = "",
        options: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> Allocation:
        """Recompute objective and use of a choice, check the limits, and judge the bound.

        Parameters
        ----------
        at : (number of curves,) array of int
        method : str
        began : float
            `time.perf_counter` when the work began.
        bound : Bound, optional
        termination : Termination, optional
        message : str, optional
        options, stats : mapping, optional

        Raises
        ------
        SolverError
            If the choice passes a limit, or the bound is above its objective.

        Examples
        --------
        >>> posed = Posed((Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1}),), {"units": 1.0}, {})
        >>> posed.allocation([0], "by hand", 0.0)
        Allocation(by hand, objective=4, feasible, completed, units 1 of 1)
        """
        violation = self.violation(at)
        if violation:
            raise SolverError(f"the widths that {method!r} found are not feasible: it {violation}.")
        scale = math.fsum(float(np.abs(curve.losses).max()) for curve in self.curves)
        dense = {key: self.dense(key) for key in self.resources}
        return Allocation(
            method=method,
            problem_hash=self.hash,
            widths={
                layer: int(curve.widths[i])
                for curve, i in zip(self.curves, at, strict=True)
                for layer in curve.layers
            },
            units={layer: curve.n for curve in self.curves for layer in curve.layers},
            usage={key: self.usage(key, at) for key in self.resources},
            limits=dict(self.limits),
            dense={key: value for key, value in dense.items() if value is not None},
            termination=termination,
            message=message,
            options=dict(options or {}),
            stats=dict(stats or {}),
            solve_time=time.perf_counter() - began,
            **judged(self.objective(at), bound or Bound(), 1e-12 * scale),
        )


def require_distinct(curves: Sequence[Curve]) -> None:
    """Refuse curves of which two share a name or a layer.

    Raises
    ------
    InputError
        Naming what occurs twice, or if there are no curves.

    Examples
    --------
    >>> require_distinct([Curve("a", 2, [1, 2], [4.0, 0.0], {})])
    """
    if not curves:
        raise InputError("there are no curves: pass one for each layer, or each set of tied layers.")
    for names in ([curve.name for curve in curves], [layer for curve in curves for layer in curve.layers]):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"{twice[0]!r} occurs twice: each curve needs a name, and layers, of its own.")
