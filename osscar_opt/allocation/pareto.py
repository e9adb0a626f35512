r"""Loss against one resource: the best allocations under a range of its budgets, the others held at their limits.

For budgets B between the least use that is feasible and the use of the best widths without this budget,

.. math:: v(B) = \min_k \sum_j f_j(k_j) \quad\text{with}\quad c_r(k) \le B ,\; c_{r'}(k) \le B_{r'}
          \;\text{for the others},

each by the exact program (the epsilon-constraint method; Y. Y. Haimes, L. S. Lasdon, D. A. Wismer, *On a bicriterion
formulation of the problems of integrated system identification and system optimization*, IEEE Trans. SMC 1, 1971).
What uses no less than another and loses no less is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike
from osscar_opt.allocation.budgets import Budget
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.milp import exactly, smallest_feasible
from osscar_opt.allocation.result import Allocation, aligned
from osscar_opt.errors import InputError
from osscar_opt.formulations.solution import new_axis

__all__ = ["Front", "pareto_front"]


@dataclass(frozen=True, eq=False, repr=False)
class Front:
    """Allocations from the least use of a resource to the least loss, none of them beaten by another.

    Attributes
    ----------
    resource : str
    allocations : tuple of Allocation
        Ascending in use, descending in loss.

    Examples
    --------
    >>> curves = [Curve(name, 2, [1, 2], [loss, 0.0], {"units": 1}) for name, loss in [("a", 4.0), ("b", 1.0)]]
    >>> pareto_front(curves, "units", points=3)
    Front(units, 3 allocations, used 2 to 4, loss 5 to 0)
    """

    resource: str
    allocations: tuple[Allocation, ...]

    def table(self) -> str:
        """Use, its share of the dense model's, and loss, as text.

        Examples
        --------
        >>> curves = [Curve(name, 2, [1, 2], [loss, 0.0], {"units": 1}) for name, loss in [("a", 4.0), ("b", 1.0)]]
        >>> print(pareto_front(curves, "units", points=3).table())
        units  share  loss  gap
        2       50.0%     5    0
        3       75.0%     1    0
        4      100.0%     0    0
        """
        rows = []
        for allocation in self.allocations:
            used, dense = allocation.usage[self.resource], allocation.dense.get(self.resource, math.nan)
            shown = f"{used / dense:.1%}" if math.isfinite(dense) and dense > 0.0 else ""
            rows.append((f"{used:.9g}", shown, f"{allocation.objective:.6g}", f"{allocation.gap:.2g}"))
        return aligned((self.resource, "share", "loss", "gap"), rows)

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss against the use; returns the matplotlib axis.

        Examples
        --------
        >>> curve = Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})
        >>> axis = pareto_front([curve], "units").plot()  # doctest: +SKIP
        """
        axis = new_axis() if ax is None else ax
        axis.plot(
            [allocation.usage[self.resource] for allocation in self.allocations],
            [allocation.objective for allocation in self.allocations],
            marker="o",
        )
        axis.set_xlabel(self.resource)
        axis.set_ylabel("loss")
        return axis

    def __repr__(self) -> str:
        first, last = self.allocations[0], self.allocations[-1]
        return (
            f"Front({self.resource}, {len(self.allocations)} allocations, used {first.usage[self.resource]:.6g} to "
            f"{last.usage[self.resource]:.6g}, loss {first.objective:.6g} to {last.objective:.6g})"
        )


def pareto_front(
    curves: Sequence[Curve],
    resource: str,
    budgets: Budget | Mapping[str, float] | None = None,
    *,
    points: int = 20,
    at: ArrayLike | None = None,
    time_limit: float | None = None,
) -> Front:
    """The best allocations under a range of budgets of one resource.

    Parameters
    ----------
    curves : sequence of Curve
    resource : str
        Whose budget varies; a limit on it in `budgets` is not used.
    budgets : Budget, or mapping of str to number, optional
        Limits on the other resources and on single layers.
    points : int, optional
        Budgets evenly apart, from the least feasible use to that of the best widths without a limit.
    at : (number of points,) array, optional
        The budgets themselves, in the resource's own unit, in place of `points`.
    time_limit : float, optional
        Seconds for each.

    Raises
    ------
    InfeasibleError
        If the other budgets cannot be met.
    InputError
        If `points` is less than 2, or all budgets `at` are below the least feasible use.

    Examples
    --------
    >>> curves = [Curve(name, 2, [1, 2], [loss, 0.0], {"units": 1}) for name, loss in [("a", 4.0), ("b", 1.0)]]
    >>> [allocation.widths for allocation in pareto_front(curves, "units", at=[2, 3]).allocations]
    [{'a': 1, 'b': 1}, {'a': 2, 'b': 1}]
    """
    given = budgets if isinstance(budgets, Budget) else Budget(budgets or {})
    others = {key: limit for key, limit in given.limits.items() if key != resource}

    least = smallest_feasible(curves, resource, given)
    held = Budget(others, given.of, given.fixed, given.least, given.most, given.absolute).resolve(curves)
    free = exactly(held, time_limit=time_limit)
    if at is None:
        if isinstance(points, bool) or points < 2:
            raise InputError(f"points = {points!r} must be a whole number, at least 2.")
        most = max(free.usage[resource], least)
        levels = np.linspace(least, most, points)
        levels[-1] = most
    else:
        levels = np.unique(np.asarray(at, dtype=np.float64))
        levels = levels[levels >= least]
        if len(levels) == 0:
            raise InputError(f"no budget of {resource} is feasible below {least:.12g}.")
    if held.whole(resource):
        levels = np.unique(np.floor(levels))
    found = [
        exactly(held.with_limits({**held.limits, resource: float(level)}), time_limit=time_limit)
        for level in levels
    ]
    front: list[Allocation] = []
    for allocation in sorted(found, key=lambda each: (each.usage[resource], each.objective)):
        if not front or allocation.objective < front[-1].objective - allocation.rounding:
            front.append(allocation)
    return Front(resource, tuple(front))
