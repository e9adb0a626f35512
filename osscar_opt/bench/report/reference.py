"""What runs are measured against: the best value known of each pair of instance and keep, and whether it is proved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from osscar_opt.bench.store import Run

__all__ = ["FLOOR", "TOLERANCE", "Pair", "Reference", "floor_of", "pair_of", "references"]

Pair: TypeAlias = "tuple[str, int | None]"
"""An instance's hash, and its keep (None where the instance has limits of its own)."""

TOLERANCE = 1e-6
"""Relative difference up to which two values are the same: at this gap to its bound a value is called optimal."""

FLOOR = 1e-8
"""Part of the loss of keeping nothing below which references are not divided by.

At the floor a gap of `TOLERANCE` is 1e-14 of that loss, which the library takes for rounding when it compares
objectives.
"""


class Best(Protocol):
    """What is needed of a record: `osscar_opt.instances.Best` has it."""

    @property
    def value(self) -> float: ...

    @property
    def bound(self) -> float: ...

    @property
    def proved(self) -> bool: ...


@dataclass(frozen=True)
class Reference:
    """The best value known of a pair.

    Attributes
    ----------
    value : float
        The lowest objective among the record and the runs.
    bound : float
        The highest certified bound among the record and the runs; -inf if there is none.
    proved : bool
        Whether the bound meets the value: no support does better.
    source : str
        "record" or "best of the runs": where the value comes from.
    floor : float
        The least that gaps of this pair are divided by.
    conflict : str
        One sentence if a value lies below a bound that was certified, which cannot be; otherwise "".

    Examples
    --------
    >>> Reference(2.0, 2.0, True, "record").gap
    0.0
    """

    value: float
    bound: float
    proved: bool
    source: str
    floor: float = 0.0
    conflict: str = ""

    @property
    def gap(self) -> float:
        """What is left to prove, as a part of the value: 0 if proved, inf without a bound.

        Examples
        --------
        >>> Reference(2.0, 1.5, False, "best of the runs").gap
        0.25
        """
        if self.proved:
            return 0.0
        size = max(abs(self.value), self.floor)
        return (self.value - self.bound) / size if size > 0 else math.inf


def references(
    runs: Iterable[Run],
    records: Mapping[Pair, Best] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> dict[Pair, Reference]:
    """Find the reference of every pair that has an answer in `runs` or a record.

    Only pairs that occur in `runs` are in the result.  The value is the lower of the record's and the best run's, the
    bound the higher of the record's and those that the runner has certified: bounds that methods claim do not count.

    Parameters
    ----------
    runs : iterable of Run
    records : mapping, optional
        (hash, keep) to the best known, as `osscar_opt.instances.best_known` returns it.
    tolerance : float
        Relative distance of value and bound at which the value is proved.

    Examples
    --------
    >>> references([])
    {}
    """
    known = records or {}
    by_pair: dict[Pair, list[Run]] = {}
    for run in runs:
        by_pair.setdefault(pair_of(run), []).append(run)
    found: dict[Pair, Reference] = {}
    for pair, group in by_pair.items():
        reference = _reference(group, known.get(pair), tolerance)
        if reference is not None:
            found[pair] = reference
    return found


def pair_of(run: Run) -> Pair:
    """Key of the pair a run was on; an instance that could not be read, and has no hash, goes by its name.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> pair_of(Fake(hash="a1", keep=3)), pair_of(Fake(hash="", instance="lost", keep=3))
    (('a1', 3), ('lost', 3))
    """
    return run.hash or run.instance, run.keep


def floor_of(runs: Iterable[Run]) -> float:
    """The least that gaps of a pair are divided by: `FLOOR` times the loss of keeping nothing, 0 if that is unknown.

    Examples
    --------
    >>> floor_of([])
    0.0
    """
    for run in runs:
        if run.objective and run.relative and math.isfinite(run.relative):
            return FLOOR * abs(run.objective / run.relative)
    return 0.0


def _reference(runs: list[Run], record: Best | None, tolerance: float) -> Reference | None:
    answers = [run.objective for run in runs if run.outcome == "ok" and run.objective is not None]
    best = min(answers, default=math.inf)
    source = "best of the runs"
    if record is not None and record.value <= best:
        best, source = record.value, "record"
    if not math.isfinite(best):
        return None
    bound = max(
        (run.bound for run in runs if run.bound_kind == "certified" and run.bound is not None),
        default=-math.inf,
    )
    if record is not None:
        bound = max(bound, record.value if record.proved else record.bound)
    floor = floor_of(runs)
    slack = tolerance * max(abs(best), floor)
    conflict = ""
    if bound > best + slack:
        conflict = (
            f"{runs[0].instance} at keep {runs[0].keep}: a value of {best:.9g} lies below the certified bound "
            f"{bound:.9g}; one of them is wrong: check the record and the certificate."
        )
    return Reference(best, bound, not conflict and best - bound <= slack, source, floor, conflict)
