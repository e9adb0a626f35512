"""A store's runs, measured: each run, each method on each pair (medians over seeds), each method in all."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from osscar_opt.bench.report.measures import (
    gap,
    horizon,
    improvements,
    median,
    primal_integral,
    time_charged,
    time_to_target,
)
from osscar_opt.bench.report.reference import TOLERANCE, Best, Pair, Reference, pair_of, references
from osscar_opt.bench.report.summary import Cell, MethodSummary, merit, summarise

if TYPE_CHECKING:
    from osscar_opt.bench.store import Run

__all__ = ["Evaluation", "Scored", "evaluate", "family_in_name"]


@dataclass(frozen=True)
class Scored:
    """A run and what it is worth.

    Attributes
    ----------
    run : Run
    family : str
    gap : float
        inf without an answer, NaN without a reference.
    integral : float
        Primal integral in seconds up to the pair's horizon; NaN for a refused run or without a reference.
    target : float
        Seconds until the reference was reached; inf if never.

    Examples
    --------
    >>> Scored.__dataclass_fields__.keys() >= {"gap", "integral", "target"}
    True
    """

    run: Run
    family: str
    gap: float
    integral: float
    target: float

    @property
    def pair(self) -> Pair:
        """Key of the pair it ran on.

        Examples
        --------
        >>> from types import SimpleNamespace as Fake
        >>> Scored(Fake(hash="a1", keep=3), "planted", 0.0, 0.0, 0.0).pair
        ('a1', 3)
        """
        return pair_of(self.run)


@dataclass(frozen=True)
class Evaluation:
    """Everything a report is made of; `evaluate` makes it.

    Attributes
    ----------
    scored : tuple of Scored
        One for each run, in the store's order.
    references : mapping
        Pair to its `Reference`.

    Examples
    --------
    >>> evaluate([]).labels
    ()
    """

    scored: tuple[Scored, ...]
    references: Mapping[Pair, Reference]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs, in the store's order.

        Examples
        --------
        >>> evaluate([]).runs
        ()
        """
        return tuple(scored.run for scored in self.scored)

    @cached_property
    def pairs(self) -> dict[Pair, Run]:
        """Every pair, and a run on it that knows its name and sizes.

        Examples
        --------
        >>> evaluate([]).pairs
        {}
        """
        found: dict[Pair, Run] = {}
        for run in self.runs:
            found.setdefault(pair_of(run), run)
        return found

    @cached_property
    def cells(self) -> dict[tuple[str, Pair], Cell]:
        """Each method on each pair it was asked for.

        Examples
        --------
        >>> evaluate([]).cells
        {}
        """
        groups: dict[tuple[str, Pair], list[Scored]] = {}
        for scored in self.scored:
            groups.setdefault((scored.run.label, scored.pair), []).append(scored)
        return {key: _cell(group) for key, group in groups.items()}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The methods: most certified optima found first, then the smaller mean gap, then the faster.

        Examples
        --------
        >>> evaluate([]).labels
        ()
        """
        return tuple(summary.label for summary in self.summaries)

    @cached_property
    def summaries(self) -> tuple[MethodSummary, ...]:
        """Each method in all, in the order of `labels`.

        Examples
        --------
        >>> evaluate([]).summaries
        ()
        """
        by_label: dict[str, list[Cell]] = {}
        for (label, _), cell in self.cells.items():
            by_label.setdefault(label, []).append(cell)
        memory: dict[str, int] = {}
        for run in self.runs:
            if run.peak_memory is not None:
                memory[run.label] = max(run.peak_memory, memory.get(run.label, 0))
        made = [
            summarise(label, cells, self.references, memory.get(label)) for label, cells in by_label.items()
        ]
        return tuple(sorted(made, key=merit))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The families there are, in alphabetical order.

        Examples
        --------
        >>> evaluate([]).families
        ()
        """
        return tuple(sorted({scored.family for scored in self.scored}))

    def common(self, labels: Sequence[str] | None = None) -> list[Pair]:
        """Pairs that every one of the methods was asked for and that have a reference.

        Examples
        --------
        >>> evaluate([]).common()
        []
        """
        wanted = self.labels if labels is None else labels
        return [
            pair
            for pair in self.pairs
            if pair in self.references and all((label, pair) in self.cells for label in wanted)
        ]


def evaluate(
    runs: Iterable[Run],
    records: Mapping[Pair, Best] | None = None,
    *,
    family: Callable[[Run], str] | None = None,
) -> Evaluation:
    """Measure runs against the best known values.

    Parameters
    ----------
    runs : iterable of Run
        As `osscar_opt.bench.store.read_runs` returns them.
    records : mapping, optional
        (hash, keep) to the best known, as `osscar_opt.instances.best_known` returns it.
    family : callable, optional
        Gives a run's family; by default what its instance's name begins with, ``planted`` for ``planted-32-s3``.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> evaluate([]).scored
    ()
    """
    listed = _told_apart(list(runs))
    known = references(listed, records)
    by_pair: dict[Pair, list[Run]] = {}
    for run in listed:
        by_pair.setdefault(pair_of(run), []).append(run)
    ends = {pair: horizon(group) for pair, group in by_pair.items()}
    named = family or family_in_name
    return Evaluation(
        tuple(_score(run, known.get(pair_of(run)), ends[pair_of(run)], named(run)) for run in listed),
        known,
    )


def _told_apart(runs: list[Run]) -> list[Run]:
    """Add the limits to the labels of methods that were run with several: such runs are no seeds of one another."""
    limits: dict[str, set[tuple[float | None, int | None]]] = {}
    for run in runs:
        limits.setdefault(run.label, set()).add((run.time_limit, run.memory_limit))
    if all(len(found) == 1 for found in limits.values()):
        return runs
    return [
        run if len(limits[run.label]) == 1 else dataclasses.replace(run, label=f"{run.label} {_limits(run)}")
        for run in runs
    ]


def _limits(run: Run) -> str:
    time = "" if run.time_limit is None else f"{run.time_limit:g} s"
    memory = "" if run.memory_limit is None else f"{run.memory_limit} MiB"
    return f"({', '.join(part for part in (time, memory) if part) or 'no limit'})"


def family_in_name(run: Run) -> str:
    """Take the family from an instance's name: the part before the first hyphen or underscore and a number.

    Examples
    --------
    >>> from types import SimpleNamespace as Fake
    >>> [family_in_name(Fake(instance=name)) for name in ("planted-32-s3", "greedy_trap_8", "near-duplicates-16")]
    ['planted', 'greedy_trap', 'near-duplicates']
    """
    return re.split(r"[-_](?=[a-z]*\d)", run.instance, maxsplit=1)[0] or run.instance


def _score(run: Run, reference: Reference | None, until: float, family: str) -> Scored:
    integral = math.nan
    if reference is not None and run.outcome != "refused":
        integral = primal_integral(improvements(run), reference.value, until)
    found = gap(run.objective if run.outcome == "ok" else None, reference)
    return Scored(run, family, found, integral, time_to_target(run, reference))


def _cell(group: list[Scored]) -> Cell:
    first = group[0]
    runs = [scored.run for scored in group]
    proofs = [_proves(scored) for scored in group]
    return Cell(
        label=first.run.label,
        pair=first.pair,
        instance=first.run.instance,
        family=first.family,
        refused=all(run.outcome == "refused" for run in runs),
        failed=sum(run.outcome == "failed" for run in runs),
        runs=len(runs),
        gap=median([scored.gap for scored in group]),
        time=median([time_charged(run) for run in runs]),
        target=median([scored.target for scored in group]),
        integral=median([scored.integral for scored in group]),
        proved=2 * sum(proofs) > len(proofs),
    )


def _proves(scored: Scored) -> bool:
    """Whether the run's own certified bound meets its value."""
    run = scored.run
    if run.bound_kind != "certified" or run.bound is None or run.objective is None:
        return False
    return run.objective - run.bound <= TOLERANCE * abs(run.objective) or run.status == "optimal"
