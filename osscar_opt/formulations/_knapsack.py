"""The three ways to choose a point on each of several curves under one budget; see `osscar_opt.formulations.counts`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import CapabilityError, InfeasibleError, SolverError
from osscar_opt.formulations.outcome import Bound
from osscar_opt.formulations.solution import BoundKind, Termination

__all__ = ["Hull", "Room", "dynamic", "fits", "marginal", "program"]

_STEPS = 4_000_000_000
_TABLE = 200_000_000
_NOTHING_EXACT = "no counts spend the budget exactly: change the budget, or pass exactly=False."


class Room(NamedTuple):
    """The budget, what is read as rounding, and whether all of it must be spent.

    Examples
    --------
    >>> Room(3.0, 1e-9, True).exactly
    True
    """

    budget: float
    slop: float
    exactly: bool


class Hull(NamedTuple):
    """The lower convex hull of a curve: where each of its steps ends, and its slope per unit of cost.

    Examples
    --------
    >>> Hull.of(np.array([4.0, 3.0, 0.0]), 1.0).ends
    array([2])
    """

    ends: IntArray
    slopes: FloatArray

    @classmethod
    def of(cls, curve: FloatArray, cost: float) -> Hull:
        """Build the hull of the finite points of a curve.

        Examples
        --------
        >>> Hull.of(np.array([4.0, 1.0, 0.0]), 0.5).slopes
        array([-6., -2.])
        """
        corners: list[int] = []
        for k in map(int, np.flatnonzero(np.isfinite(curve))):
            while len(corners) > 1 and _slope(curve, corners[-1], k) <= _slope(
                curve, corners[-2], corners[-1]
            ):
                corners.pop()
            corners.append(k)
        slopes = [_slope(curve, a, b) / cost for a, b in itertools.pairwise(corners)]
        return cls(np.array(corners[1:], dtype=np.int64), np.array(slopes, dtype=np.float64))


def marginal(curves: Sequence[FloatArray], costs: FloatArray, hulls: Sequence[Hull], room: Room) -> IntArray:
    """Hull steps, the steepest first, up to the first that does not fit; then jumps that do.

    For convex curves and equal costs this is marginal analysis, and optimal.

    Examples
    --------
    >>> curves = [np.array([4.0, 1.0, 0.0]), np.array([9.0, 4.0, 1.0])]
    >>> marginal(curves, np.ones(2), [Hull.of(curve, 1.0) for curve in curves], Room(3.0, 1e-9, False))
    array([1, 2])
    """
    counts = np.array([np.flatnonzero(np.isfinite(curve))[0] for curve in curves], dtype=np.int64)
    left = room.budget - float(costs @ counts)
    part = np.concatenate([np.full(len(hull.slopes), j) for j, hull in enumerate(hulls)])
    target = np.concatenate([hull.ends for hull in hulls])
    slope = np.concatenate([hull.slopes for hull in hulls])
    for index in np.lexsort((target, part, slope)):
        j = part[index]
        cost = costs[j] * (target[index] - counts[j])
        if cost > left + room.slop or (slope[index] >= 0.0 and not room.exactly):
            break
        counts[j] = target[index]
        left -= cost
    return _filled(curves, costs, counts, left, room)


def _filled(
    curves: Sequence[FloatArray], costs: FloatArray, counts: IntArray, left: float, room: Room
) -> IntArray:
    """Jumps of one part to a larger count that fits, the steepest first, until none helps or nothing is left."""
    while left > room.slop:
        best, chosen = np.inf, None
        for j, curve in enumerate(curves):
            ahead = curve[counts[j] + 1 : counts[j] + 1 + int((left + room.slop) // costs[j])]
            if len(ahead):
                rate = (ahead - curve[counts[j]]) / (costs[j] * np.arange(1, len(ahead) + 1))
                step = int(np.argmin(rate))
                if rate[step] < best:
                    best, chosen = float(rate[step]), (j, step + 1)
        if chosen is None or (best >= 0.0 and not room.exactly):
            break
        counts[chosen[0]] += chosen[1]
        left -= costs[chosen[0]] * chosen[1]
    if room.exactly and left > room.slop:
        raise CapabilityError(
            "marginal steps do not spend this budget exactly; use method='dynamic' or 'milp'."
        )
    return counts


def dynamic(curves: Sequence[FloatArray], costs: FloatArray, room: Room) -> IntArray:
    """The dynamic program over the budget: the least loss of the first parts at every cost.

    Examples
    --------
    >>> dynamic([np.array([4.0, 3.0, 0.0]), np.array([4.0, 2.0, 1.5])], np.ones(2), Room(2.0, 1e-9, False))
    array([2, 0])
    """
    if np.any(costs != np.rint(costs)):
        raise CapabilityError(
            "the dynamic program needs costs that are whole numbers; use method='milp', or scale the costs."
        )
    whole = costs.astype(np.int64)
    budget = int(np.floor(room.budget + room.slop))
    budget = min(budget, int(sum(c * (len(curve) - 1) for c, curve in zip(whole, curves, strict=True))))
    if room.exactly and budget < room.budget - room.slop:
        raise InfeasibleError(_NOTHING_EXACT)
    if not fits(curves, budget):
        raise CapabilityError(
            f"a dynamic program over a budget of {budget} for {len(curves)} such curves is too large; use "
            "method='milp', or count in larger units."
        )
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    chosen = np.zeros((len(curves), budget + 1), dtype=np.int32)
    for j, curve in enumerate(curves):
        best = _with_one_more(best, curve, int(whole[j]), chosen[j])
    at = budget if room.exactly else int(np.argmin(best))
    if not np.isfinite(best[at]):
        raise InfeasibleError(_NOTHING_EXACT)
    counts = np.zeros(len(curves), dtype=np.int64)
    for j in reversed(range(len(curves))):
        counts[j] = chosen[j, at]
        at -= int(whole[j] * counts[j])
    return counts


def fits(curves: Sequence[FloatArray], budget: float) -> bool:
    """Whether the dynamic program's table and steps are few enough.

    Examples
    --------
    >>> fits([np.zeros(10)], 1e12)
    False
    """
    points = sum(len(curve) for curve in curves)
    return points * (budget + 1) <= _STEPS and len(curves) * (budget + 1) <= _TABLE


def _with_one_more(best: FloatArray, curve: FloatArray, cost: int, chosen: IntArray) -> FloatArray:
    following = np.full(len(best), np.inf)
    for k in map(int, np.flatnonzero(np.isfinite(curve))):
        spent = cost * k
        if spent >= len(best):
            break
        candidate, target = best[: len(best) - spent] + curve[k], following[spent:]
        better = candidate < target
        target[better] = candidate[better]
        chosen[spent:][better] = k
    return following


def program(
    curves: Sequence[FloatArray], costs: FloatArray, room: Room, time_limit: float | None
) -> tuple[IntArray, Bound, Termination]:
    """The 0-1 program with a variable for each point of each curve, by HiGHS.

    Examples
    --------
    >>> curves = [np.array([4.0, 3.0, 0.0]), np.array([4.0, 2.0, 1.5])]
    >>> program(curves, np.array([1.5, 0.5]), Room(1.6, 1e-9, False), None)[0]
    array([0, 2])
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    part = np.concatenate([np.full(len(curve), j) for j, curve in enumerate(curves)])
    count = np.concatenate([np.arange(len(curve)) for curve in curves])
    loss = np.concatenate(curves)
    allowed = np.isfinite(loss)
    part, count, loss = part[allowed], count[allowed], loss[allowed]
    columns = np.arange(len(part))
    one = csr_array((np.ones(len(part)), (part, columns)), shape=(len(curves), len(part)))
    spent = csr_array((costs[part] * count, (np.zeros(len(part), int), columns)), shape=(1, len(part)))
    lower = np.append(np.ones(len(curves)), room.budget - room.slop if room.exactly else -np.inf)
    upper = np.append(np.ones(len(curves)), room.budget + room.slop)
    scale = float(np.ptp(loss)) or 1.0
    found = milp(
        loss / scale,
        integrality=np.ones(len(part)),
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(vstack([one, spent]), lower, upper),
        options={"mip_rel_gap": 1e-9} | ({} if time_limit is None else {"time_limit": time_limit}),
    )
    if found.status == 2:
        raise InfeasibleError(_NOTHING_EXACT)
    if found.x is None:
        raise SolverError(f"HiGHS ended without any counts: {found.message}")
    counts = np.zeros(len(curves), dtype=np.int64)
    taken = found.x > 0.5
    counts[part[taken]] = count[taken]
    claimed = Bound(scale * float(found.mip_dual_bound) - 1e-9 * scale, BoundKind.CLAIMED)
    return counts, claimed, Termination.COMPLETED if found.status == 0 else Termination.TIME_LIMIT


def _slope(curve: FloatArray, a: int, b: int) -> float:
    return float(curve[b] - curve[a]) / (b - a)
