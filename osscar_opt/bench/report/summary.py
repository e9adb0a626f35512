"""A method on a pair, and a method in all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from osscar_opt.bench.report.measures import GAP_SHIFT, TIME_SHIFT, shifted_geometric_mean
from osscar_opt.bench.report.reference import TOLERANCE, Pair, Reference

__all__ = ["Cell", "MethodSummary", "merit", "summarise"]


@dataclass(frozen=True)
class Cell:
    """A method on a pair: medians over its seeds, a failed run counting as infinitely bad.

    Attributes
    ----------
    label : str
    pair : (str, int or None)
    instance, family : str
    refused : bool
        The method does not handle the problem.
    failed, runs : int
        Of how many runs failed, and how many there were.
    gap, time, target, integral : float
    proved : bool
        Most of its runs brought a certified bound that meets their value.

    Examples
    --------
    >>> cell = Cell("greedy", ("a1", 3), "i", "planted", False, 0, 1, 0.02, 0.1, float("inf"), 0.3, False)
    >>> cell.reached, cell.answered
    (False, True)
    """

    label: str
    pair: Pair
    instance: str
    family: str
    refused: bool
    failed: int
    runs: int
    gap: float
    time: float
    target: float
    integral: float
    proved: bool

    @property
    def reached(self) -> bool:
        """Whether the median gap is within `TOLERANCE` of the reference.

        Examples
        --------
        >>> Cell("greedy", ("a1", 3), "i", "planted", False, 0, 1, 0.0, 0.1, 0.1, 0.1, False).reached
        True
        """
        return self.gap <= TOLERANCE

    @property
    def answered(self) -> bool:
        """Whether most of its runs have a value.

        Examples
        --------
        >>> Cell("greedy", ("a1", 3), "i", "x", True, 0, 1, float("inf"), 0.0, 0.1, 0.1, False).answered
        False
        """
        return math.isfinite(self.gap)


@dataclass(frozen=True)
class MethodSummary:
    """A method on all pairs it was asked for.

    Attributes
    ----------
    label : str
    pairs : int
        Pairs it was run on.
    answered : int
        Pairs it has a value for.
    refused : int
        Pairs it does not handle.
    runs, failed : int
        Its runs, and those among them that failed.
    proved_pairs, found : int
        Pairs whose optimum is proved, refused and failed ones included, and those of them where it found it.
    reached : int
        Pairs, proved or open, where it has the best known value.
    certified : int
        Pairs where it proved its own value optimal, checked by the runner.
    mean_gap, geometric_gap, worst_gap : float
        Over the answered pairs; the geometric mean with a shift of 0.01 %.  NaN if there are none.
    worst_pair : (str, int or None) or None
    geometric_time, median_time, longest_time : float
        Seconds over the pairs not refused; the geometric mean with a shift of 10 s, a failed run at its time limit.
    integral : float
        Mean primal integral, in seconds.
    memory : int or None
        Largest peak of memory, in MiB.

    Examples
    --------
    >>> summarise("greedy", [], {}).runs
    0
    """

    label: str
    pairs: int
    answered: int
    refused: int
    runs: int
    failed: int
    proved_pairs: int
    found: int
    reached: int
    certified: int
    mean_gap: float
    geometric_gap: float
    worst_gap: float
    worst_pair: Pair | None
    geometric_time: float
    median_time: float
    longest_time: float
    integral: float
    memory: int | None

    @property
    def share(self) -> float:
        """Share of certified optima found; NaN if nothing is proved.

        Examples
        --------
        >>> summarise("greedy", [], {}).share
        nan
        """
        return self.found / self.proved_pairs if self.proved_pairs else math.nan


def summarise(
    label: str, cells: Sequence[Cell], known: Mapping[Pair, Reference], memory: int | None = None
) -> MethodSummary:
    """Sum up a method from its pairs.

    Examples
    --------
    >>> summarise("greedy", [], {}).pairs
    0
    """
    answered = [cell for cell in cells if cell.answered]
    gaps = [cell.gap for cell in answered]
    worst = max(answered, key=lambda cell: cell.gap, default=None)
    tried = [cell for cell in cells if not cell.refused]
    times = [cell.time for cell in tried]
    integrals = [cell.integral for cell in tried if math.isfinite(cell.integral)]
    proved = [cell for cell in cells if cell.pair in known and known[cell.pair].proved]
    return MethodSummary(
        label=label,
        pairs=len(cells),
        answered=len(answered),
        refused=sum(cell.refused for cell in cells),
        runs=sum(cell.runs for cell in cells),
        failed=sum(cell.failed for cell in cells),
        proved_pairs=len(proved),
        found=sum(cell.reached for cell in proved),
        reached=sum(cell.reached for cell in cells),
        certified=sum(cell.proved for cell in cells),
        mean_gap=float(np.mean(gaps)) if gaps else math.nan,
        geometric_gap=shifted_geometric_mean(gaps, GAP_SHIFT),
        worst_gap=worst.gap if worst else math.nan,
        worst_pair=worst.pair if worst else None,
        geometric_time=shifted_geometric_mean(times, TIME_SHIFT),
        median_time=float(np.median(times)) if times else math.nan,
        longest_time=max(times, default=math.nan),
        integral=float(np.mean(integrals)) if integrals else math.nan,
        memory=memory,
    )


def merit(summary: MethodSummary) -> tuple[float, float, float, str]:
    """Key to sort methods by, the best first.

    Examples
    --------
    >>> merit(summarise("greedy", [], {}))
    (-0.0, inf, inf, 'greedy')
    """

    def last(value: float) -> float:
        return math.inf if math.isnan(value) else value

    share = summary.share if summary.proved_pairs else summary.reached / max(summary.pairs, 1)
    return -share, last(summary.mean_gap), last(summary.geometric_time), summary.label
