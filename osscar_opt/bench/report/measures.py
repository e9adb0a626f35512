"""Numbers that say how good an answer is and how soon it came: gaps, primal integrals, shifted geometric means.

The primal gap and the primal integral are those of Berthold, "Measuring the impact of primal heuristics", Operations
Research Letters 41 (2013); the shifted geometric mean is the usual one of mixed-integer programming (Achterberg,
"Constraint Integer Programming", 2007, appendix A.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.bench.report.reference import TOLERANCE, Reference

if TYPE_CHECKING:
    from osscar_opt.bench.store import Run

__all__ = [
    "GAP_SHIFT",
    "TIME_SHIFT",
    "gap",
    "horizon",
    "improvements",
    "median",
    "primal_gap",
    "primal_gaps_at",
    "primal_integral",
    "shifted_geometric_mean",
    "time_charged",
    "time_to_target",
]

TIME_SHIFT = 10.0
"""Seconds added before the geometric mean of times, and taken off after it."""

GAP_SHIFT = 1e-4
"""The same for gaps: 0.01 %."""


def gap(objective: float | None, reference: Reference | None) -> float:
    """How far an objective lies above its reference, as a part of the reference.

    ``(objective - value) / max(abs(value), floor)``, and never below 0; inf where there is no objective, NaN where
    there is no reference.

    Examples
    --------
    >>> gap(1.04, Reference(1.0, 1.0, True, "record"))
    0.04
    """
    if reference is None:
        return math.nan
    if objective is None or not math.isfinite(objective):
        return math.inf
    apart = max(objective - reference.value, 0.0)
    size = max(abs(reference.value), reference.floor)
    if apart == 0.0:
        return 0.0
    return apart / size if size > 0.0 else math.inf


def primal_gap(objective: float | None, value: float) -> float:
    """Berthold's primal gap, between 0 and 1; 1 where there is no objective.

    0 if both numbers are 0, 1 if their signs differ, otherwise
    ``abs(objective - value) / max(abs(objective), abs(value))``.

    Examples
    --------
    >>> primal_gap(4.0, 3.0), primal_gap(None, 3.0), primal_gap(0.0, 0.0)
    (0.25, 1.0, 0.0)
    """
    if objective is None or not math.isfinite(objective):
        return 1.0
    if objective == value:
        return 0.0
    if objective * value < 0.0:
        return 1.0
    return abs(objective - value) / max(abs(objective), abs(value))


def primal_integral(trace: Sequence[tuple[float, float]], value: float, until: float) -> float:
    """Integral of the primal gap over time, in seconds: what is lost by stopping at a random moment, times `until`.

    The gap is 1 before the first entry of the trace, and stays at its last value to the end.

    Parameters
    ----------
    trace : sequence of (float, float)
        Seconds and objective of each improvement, oldest first.
    value : float
        The reference.
    until : float
        Where the integral ends; later improvements do not count.

    Examples
    --------
    >>> primal_integral([(1.0, 4.0), (3.0, 3.0)], 3.0, 10.0)  # 1 s at 1, 2 s at 1/4, then nothing
    1.5
    """
    total, since, height = 0.0, 0.0, 1.0
    for moment, objective in trace:
        now = min(max(moment, since), until)
        total += height * (now - since)
        since, height = now, primal_gap(objective, value)
    return total + height * max(until - since, 0.0)


def primal_gaps_at(moments: FloatArray, trace: Sequence[tuple[float, float]], value: float) -> FloatArray:
    """Primal gap at each moment.

    Examples
    --------
    >>> primal_gaps_at(np.array([0.5, 1.0, 2.0, 5.0]), [(1.0, 4.0), (3.0, 3.0)], 3.0)
    array([1.  , 0.25, 0.25, 0.  ])
    """
    times = np.maximum.accumulate(np.array([moment for moment, _ in trace], float))
    heights = np.array([1.0, *(primal_gap(objective, value) for _, objective in trace)])
    return np.asarray(heights[np.searchsorted(times, moments, side="right")], float)


def shifted_geometric_mean(values: Iterable[float], shift: float) -> float:
    """Geometric mean of values + shift, less the shift: the mean that neither the largest nor the smallest rule.

    Parameters
    ----------
    values : iterable of float
        Not negative.
    shift : float
        Differences far below it count little.

    Returns
    -------
    float
        NaN of nothing, inf if a value is.

    Examples
    --------
    >>> shifted_geometric_mean([0.0, 30.0], shift=10.0)
    10.0
    """
    listed = np.fromiter(values, float)
    if not listed.size:
        return math.nan
    return float(np.exp(np.mean(np.log(listed + shift))) - shift)


def time_charged(run: Run) -> float:
    """Seconds a run is charged with: its own by the runner's clock; a failed one its time limit if that is longer.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> time_charged(Fake(outcome="failed", wall=0.2, time_limit=10.0))
    10.0
    """
    if run.outcome == "ok" or run.time_limit is None:
        return run.wall
    return max(run.wall, run.time_limit)


def horizon(runs: Iterable[Run]) -> float:
    """When the primal integrals of a pair end: the longest time limit of its runs, or their longest time without one.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> horizon([Fake(wall=0.2, time_limit=10.0), Fake(wall=3.0, time_limit=10.0)])
    10.0
    """
    listed = list(runs)
    limits = [run.time_limit for run in listed if run.time_limit is not None]
    return max(limits) if limits else max((run.wall for run in listed), default=0.0)


def time_to_target(run: Run, reference: Reference | None, target: float = TOLERANCE) -> float:
    """Seconds until a run had a value within a gap of the reference; inf if it never did.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> run = Fake(outcome="ok", objective=3.0, wall=5.0, trace=[(1.0, 4.0), (3.0, 3.0)])
    >>> time_to_target(run, Reference(3.0, 3.0, True, "record"))
    3.0
    """
    for moment, objective in improvements(run):
        if gap(objective, reference) <= target:
            return moment
    return math.inf


def median(values: Sequence[float]) -> float:
    """Median of a few numbers: infinite if the one or one of the two in the middle is, NaN if any is.

    Examples
    --------
    >>> median([3.0, 1.0, math.inf]), median([1.0, math.inf]), median([2.0, 1.0])
    (3.0, inf, 1.5)
    """
    if any(math.isnan(value) for value in values):
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def improvements(run: Run) -> list[tuple[float, float]]:
    """A run's trace, or its answer at its end where nothing was traced; nothing if it has no answer.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> improvements(Fake(outcome="ok", objective=3.0, wall=5.0, trace=[]))
    [(5.0, 3.0)]
    """
    if run.outcome != "ok" or run.objective is None:
        return []
    return list(run.trace) or [(run.wall, run.objective)]
