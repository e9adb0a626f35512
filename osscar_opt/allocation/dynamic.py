r"""The exact allocation under one budget of whole numbers, by a dynamic program over the budget.

With d_j(k) = (c_j(k) - min c_j) / u, u the greatest common divisor of all these differences, and b the room that is
left above the least use, in units of u,

.. math:: F_j(s) = \min_{k :\, d_j(k) \le s} \; F_{j-1}(s - d_j(k)) + f_j(k) , \qquad F_0(s) = 0 ,

and F_J(b) is the least loss (H. Kellerer, U. Pferschy, D. Pisinger, *Knapsack Problems*, 2004, section 11.5).  Time is
b + 1 times the number of all widths; the table of choices has b + 1 columns and a row for each layer.

On a grid d_j is rounded *up* to steps of b / grid: the budget holds, while the best widths may be missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from osscar_opt._typing import IntArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.posed import Posed
from osscar_opt.allocation.result import Allocation
from osscar_opt.errors import CapabilityError, InputError
from osscar_opt.formulations.outcome import Bound
from osscar_opt.formulations.solution import BoundKind

__all__ = ["dynamic_program", "dynamically"]

_MEMORY = 256 * 2**20


def dynamic_program(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    grid: int | None = None,
    memory: int = _MEMORY,
) -> Allocation:
    """The widths of least summed loss under one budget, without a solver.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
        Of one resource.
    grid : int, optional
        Steps that the room is divided into; by default none, and every use must be a whole number.
    memory : int, optional
        Bytes that the table of choices may take.

    Raises
    ------
    CapabilityError
        If there is not exactly one budget, a use is no whole number and there is no grid, or the table is too large.
    InfeasibleError
        If the budget cannot be met.

    Examples
    --------
    >>> curves = [
    ...     Curve("a", 2, [0, 1, 2], [9.0, 4.0, 0.0], {"parameters": 10}),
    ...     Curve("b", 2, [0, 1, 2], [9.0, 1.0, 0.0], {"parameters": 30}),
    ... ]
    >>> dynamic_program(curves, {"parameters": 55}).widths
    {'a': 2, 'b': 1}
    """
    return dynamically(pose(curves, budgets), grid=grid, memory=memory)


def dynamically(posed: Posed, *, grid: int | None = None, memory: int = _MEMORY) -> Allocation:
    """As `dynamic_program`, for what is posed already.

    Examples
    --------
    >>> dynamically(Budget({"units": 1}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})])).objective
    4.0
    """
    began = time.perf_counter()
    if len(posed.limits) != 1:
        raise CapabilityError(
            f"the dynamic program takes one budget, not {len(posed.limits)}: use rule='milp' for several."
        )
    resource = next(iter(posed.limits))
    room = posed.limits[resource] - posed.least(resource)
    above = [curve.costs[resource] - curve.costs[resource].min() for curve in posed.curves]
    if grid is None:
        if not posed.whole(resource):
            raise CapabilityError(
                f"the dynamic program counts in whole numbers, which the costs in {resource} are not: pass grid=10000, "
                "say, or use rule='milp'."
            )
        step = float(math.gcd(*(int(value) for array in above for value in array)) or 1)
        size = math.floor(room / step)
        steps = [np.rint(array / step).astype(np.int64) for array in above]
    else:
        if isinstance(grid, bool) or grid < 1:
            raise InputError(f"grid = {grid!r} must be a whole number, at least 1.")
        step, size = (room / grid, grid) if room > 0.0 else (1.0, 0)
        steps = [np.ceil(np.minimum(array / step, 2.0 * grid)).astype(np.int64) for array in above]
    size = min(size, sum(int(array.max()) for array in steps))
    kind = np.int16 if all(len(array) < 2**15 for array in steps) else np.int32
    takes = len(steps) * (size + 1) * np.dtype(kind).itemsize
    if takes > memory:
        raise CapabilityError(
            f"the table would take {takes / 2**20:.0f} MiB for {size} steps of the budget, more than memory allows "
            f"({memory / 2**20:.0f} MiB): pass grid=10000, say, or use rule='milp'."
        )
    at = _places(posed, steps, size, np.zeros((len(steps), size + 1), dtype=kind))
    proved = Bound() if grid else Bound(posed.objective(at), BoundKind.CLAIMED)
    message = (
        f"uses were rounded up to a grid of {grid} steps: the budget holds, better widths may exist."
        if grid
        else ""
    )
    return posed.allocation(
        at,
        "dynamic",
        began,
        bound=proved,
        message=message,
        options={"grid": grid, "memory": memory},
        stats={"steps": size, "step": step},
    )


def _places(posed: Posed, steps: list[IntArray], size: int, chosen: IntArray) -> IntArray:
    best = np.zeros(size + 1)
    for j, (curve, used) in enumerate(zip(posed.curves, steps, strict=True)):
        following = np.full(size + 1, np.inf)
        for i, spent in enumerate(map(int, used)):
            if spent > size:
                continue
            candidate = best[: size + 1 - spent] + curve.losses[i]
            better = candidate < following[spent:]
            following[spent:][better] = candidate[better]
            chosen[j, spent:][better] = i
        best = following
    at = np.zeros(len(steps), dtype=np.int64)
    left = size
    for j in reversed(range(len(steps))):
        at[j] = chosen[j, left]
        left -= int(steps[j][at[j]])
    return at
