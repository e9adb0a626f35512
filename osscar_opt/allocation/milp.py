r"""The exact allocation: one width for each layer under any number of budgets, as a 0-1 program for HiGHS.

A multiple-choice knapsack with several constraints (H. Kellerer, U. Pferschy, D. Pisinger, *Knapsack Problems*, 2004,
chapters 9 and 11).  `osscar_opt.allocation.program` drops the columns that no best choice needs and proves a bound by
multipliers; HiGHS's branch and bound chooses among the rest, and its own bound, which is a claim, is taken where it is
the higher one.

HiGHS keeps to a row within a tolerance.  A choice that passes a limit by it is cut off by itself, by
``sum_j x[j, k_j] <= J - 1``, and the program solved again: every budget holds, and nothing else is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.allocation.budgets import Budget, number, pose, share
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.posed import Posed
from osscar_opt.allocation.program import Program, Relaxed
from osscar_opt.allocation.result import Allocation
from osscar_opt.errors import InfeasibleError, SolverError
from osscar_opt.formulations.outcome import Bound
from osscar_opt.formulations.solution import BoundKind, Termination

__all__ = ["best_widths", "exactly", "smallest_feasible"]

_GAP = 1e-9
_VALUE = 1e3
"""What the linear program's value is scaled to: HiGHS also stops at an absolute gap of 1e-6, which scipy hides."""

_CUTS = 100


def best_widths(
    curves: Sequence[Curve], budgets: Budget | Mapping[str, float], *, time_limit: float | None = None
) -> Allocation:
    """The widths of least summed loss under all budgets.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
        As in `Budget`.
    time_limit : float, optional
        Seconds for HiGHS; the best widths found by then are returned with the gap that is left.

    Raises
    ------
    InfeasibleError
        If the budgets cannot be met, each by itself or all together, with the smallest that can.
    SolverError
        If HiGHS finds nothing within the time limit.

    Examples
    --------
    >>> curves = [
    ...     Curve("a", 2, [0, 1, 2], [9.0, 4.0, 0.0], {"parameters": 10, "latency": 2.0}),
    ...     Curve("b", 2, [0, 1, 2], [9.0, 1.0, 0.0], {"parameters": 30, "latency": 1.0}),
    ... ]
    >>> best_widths(curves, {"parameters": 55, "latency": 5.5}).widths
    {'a': 2, 'b': 1}
    >>> wide_is_fast = Curve("c", 2, [1, 2], [4.0, 0.0], {"parameters": 10, "latency": [3.0, 2.0]})
    >>> best_widths([wide_is_fast], {"parameters": 10, "latency": 2})
    Traceback (most recent call last):
    osscar_opt.errors.InfeasibleError: the budgets of parameters and latency can each be met, but not together: with
    latency = 2, the smallest feasible budget of parameters is 20 (1 of the dense 20), not 10.
    """
    return exactly(pose(curves, budgets), time_limit=time_limit)


def exactly(posed: Posed, *, time_limit: float | None = None) -> Allocation:
    """As `best_widths`, for what is posed already.

    Examples
    --------
    >>> exactly(Budget({"units": 1}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})])).objective
    4.0
    """
    began = time.perf_counter()
    found = _solve(posed, time_limit)
    if found is None:
        raise InfeasibleError(_conflict(posed, list(posed.limits)))
    at, bound, termination, stats = found
    return posed.allocation(
        at,
        "milp",
        began,
        bound=bound,
        termination=termination,
        options={"time_limit": time_limit},
        stats=stats,
    )


def smallest_feasible(
    curves: Sequence[Curve], resource: str, budgets: Budget | Mapping[str, float] | None = None
) -> float:
    """The least use of a resource that the widths allow under the budgets of the *other* resources.

    It is given as a budget would be: of the prunable part, or of the whole, fixed part included.

    Raises
    ------
    InfeasibleError
        If the other budgets cannot be met together.

    Examples
    --------
    >>> curve = Curve("a", 2, [1, 2], [4.0, 0.0], {"parameters": 10, "latency": [3.0, 2.0]})
    >>> smallest_feasible([curve], "parameters"), smallest_feasible([curve], "parameters", {"latency": 2})
    (10.0, 20.0)
    """
    budget = budgets if isinstance(budgets, Budget) else Budget(budgets or {})
    others = {key: limit for key, limit in budget.limits.items() if key != resource}
    posed = Budget(others, budget.of, budget.fixed, budget.least, budget.most, budget.absolute).resolve(
        curves
    )
    least = _least_use(posed, resource)
    if least is None:
        raise InfeasibleError(_conflict(posed, list(posed.limits)))
    return least


# ------------------------------------------------------------------------------------------------- the program


def _solve(
    posed: Posed, time_limit: float | None
) -> tuple[IntArray, Bound, Termination, dict[str, Any]] | None:
    """Places, bound, why it ended, and counts; None if there is no choice."""
    if any(posed.least(key) > limit + posed.slop(key) for key, limit in posed.limits.items()):
        return None
    program = Program.of(posed)
    stats: dict[str, Any] = {
        "columns": sum(len(curve.widths) for curve in posed.curves),
        "undominated": len(program.part),
    }
    relaxed = program.relaxed()
    if relaxed is None:
        return None
    stats["relaxation"] = program.offset + relaxed.bound
    certified = Bound(program.offset + relaxed.bound, BoundKind.CERTIFIED)
    rounding = 1e-9 * max(
        relaxed.value if relaxed.chosen is not None else 0.0, 1e-6 * float(program.loss.max())
    )
    if relaxed.chosen is not None and relaxed.value <= relaxed.bound + 1e-6 * rounding:
        return program.places(relaxed.chosen), certified, Termination.COMPLETED, stats
    if relaxed.chosen is not None:
        stays = relaxed.bound + relaxed.reduced <= relaxed.value + rounding
        stays[relaxed.chosen] = True
        incumbent: IntArray | None = program.places(relaxed.chosen)
        program = program.only(stays)
    else:
        incumbent = None
    stats["solved"] = len(program.part)
    at, claimed, termination, cuts = _branch_and_bound(posed, program, relaxed, time_limit)
    stats["cuts"] = cuts
    if at is None or (incumbent is not None and posed.objective(incumbent) < posed.objective(at)):
        if incumbent is None:
            if termination is Termination.COMPLETED:
                return None
            raise SolverError("HiGHS found no widths within the time limit: allow more time.")
        at = incumbent
    claim = min(
        program.offset + claimed, posed.objective(at)
    )  # what was dropped is no better than the choice
    return at, certified.better(Bound(claim, BoundKind.CLAIMED)), termination, stats


def _branch_and_bound(
    posed: Posed, program: Program, relaxed: Relaxed, time_limit: float | None
) -> tuple[IntArray | None, float, Termination, int]:
    """Places (or None), HiGHS's bound without the offset, why it ended, and how many choices were cut off."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count = len(program.part)
    scale = (
        relaxed.bound if relaxed.bound > 1e-9 * float(program.loss.max()) else float(program.loss.max())
    ) / _VALUE
    scale = scale or 1.0
    one = csr_array((np.ones(count), (program.part, np.arange(count))), shape=(program.parts, count))
    constraints = [LinearConstraint(one, 1.0, 1.0)]
    if len(program.room):
        constraints.append(LinearConstraint(program.use, -np.inf, program.room))
    ends = math.inf if time_limit is None else time.perf_counter() + time_limit
    bound = -math.inf
    for cuts in range(_CUTS + 1):
        options: dict[str, float] = {"mip_rel_gap": _GAP}
        if time_limit is not None:
            options["time_limit"] = max(ends - time.perf_counter(), 0.0)
        found = milp(
            program.loss / scale,
            integrality=np.ones(count),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options=options,
        )
        ended = Termination.COMPLETED if found.status in (0, 2) else Termination.TIME_LIMIT
        if found.x is None:
            return None, math.inf if found.status == 2 else bound, ended, cuts
        bound = max(bound, scale * float(found.mip_dual_bound))
        at = program.places(np.flatnonzero(found.x > 0.5))
        if np.any(at < 0):
            raise SolverError("HiGHS left a layer without a width; please report the problem.")
        if not posed.violation(at):
            return at, bound, ended, cuts
        if ended is Termination.TIME_LIMIT:
            break
        constraints.append(LinearConstraint(_indicator(program, at), -np.inf, program.parts - 1.0))
    return None, bound, Termination.TIME_LIMIT if cuts < _CUTS else Termination.ITERATION_LIMIT, cuts


def _indicator(program: Program, at: IntArray) -> FloatArray:
    return np.asarray(program.place == at[program.part], dtype=np.float64)[None, :]


# ------------------------------------------------------------------------------------------- what is not feasible


def _least_use(posed: Posed, resource: str) -> float | None:
    """The least use of a resource under the limits of the others; None if these cannot be met."""
    others = {key: limit for key, limit in posed.limits.items() if key != resource}
    free = posed.with_limits(others)
    if not others:
        return posed.least(resource)
    cheapest = free.with_losses([curve.costs[resource] for curve in posed.curves])
    found = _solve(cheapest, None)
    least = None if found is None else free.usage(resource, found[0])
    # HiGHS's gap is relative: ask for less until there is none.
    while least is not None and posed.whole(resource) and least > posed.least(resource):
        tighter = _solve(cheapest.with_limits(others | {resource: least - 1.0}), None)
        if tighter is None:
            break
        least = free.usage(resource, tighter[0])
    return least


def _conflict(posed: Posed, resources: list[str]) -> str:
    """A sentence on budgets that can be met by themselves, but not together."""
    for resource in resources:
        others = [key for key in resources if key != resource]
        least = _least_use(posed.with_limits({key: posed.limits[key] for key in others}), resource)
        if least is not None:
            given = ", ".join(f"{key} = {number(posed.limits[key])}" for key in others)
            together = " and ".join([", ".join(resources[:-1]), resources[-1]])
            return (
                f"the budgets of {together} can each be met, but not together: with {given}, the smallest feasible "
                f"budget of {resource} is {number(least)}{share(posed, resource, least)}, not "
                f"{number(posed.limits[resource])}."
            )
    return _conflict(posed, resources[1:])
