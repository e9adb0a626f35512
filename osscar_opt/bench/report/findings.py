"""What the numbers of an evaluation say, in sentences; every one is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from osscar_opt.bench.report._style import percent, seconds
from osscar_opt.bench.report.evaluation import Evaluation
from osscar_opt.bench.report.profiles import performance_profile
from osscar_opt.bench.report.reference import Pair
from osscar_opt.bench.report.summary import Cell, MethodSummary

__all__ = ["Finding", "findings", "pair_name"]

_NAMED = 4
"""Families or pairs listed by name at most."""


@dataclass(frozen=True)
class Finding:
    """A sentence or two.

    Attributes
    ----------
    label : str
        The method it is about, or "".
    text : str
        For a method, what follows its name.

    Examples
    --------
    >>> Finding("greedy", "found all.").sentence
    'greedy found all.'
    """

    label: str
    text: str

    @property
    def sentence(self) -> str:
        """The whole of it, beginning with the method's name.

        Examples
        --------
        >>> Finding("", "There are no runs.").sentence
        'There are no runs.'
        """
        return f"{self.label} {self.text}" if self.label else self.text


def findings(evaluation: Evaluation) -> list[Finding]:
    """Say what the runs show: what is proved, what each method found and where it falls short, who is quick.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> [finding.sentence for finding in findings(evaluate([]))]
    ['There are no runs.']
    """
    if not evaluation.runs:
        return [Finding("", "There are no runs.")]
    made = [Finding("", _ground(evaluation))]
    made += [Finding("", f"Conflict: {r.conflict}") for r in evaluation.references.values() if r.conflict]
    made += [Finding(summary.label, _about(evaluation, summary)) for summary in evaluation.summaries]
    made += [
        Finding("", text) for text in (_quickest(evaluation), _missed(evaluation), _lost(evaluation)) if text
    ]
    return made


def pair_name(evaluation: Evaluation, pair: Pair) -> str:
    """Name a pair: its instance, and its keep if it has one.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> pair_name(evaluate([]), ("a1", 3))
    'a1 at keep 3'
    """
    run = evaluation.pairs.get(pair)
    return (run.instance if run else pair[0]) + ("" if pair[1] is None else f" at keep {pair[1]}")


def _ground(evaluation: Evaluation) -> str:
    known = evaluation.references
    proved = sum(reference.proved for reference in known.values())
    opened = [reference.gap for reference in known.values() if not reference.proved]
    instances = len({pair[0] for pair in evaluation.pairs})
    text = (
        f"{_count(len(evaluation.pairs), 'pair')} of an instance and a keep, from {_count(instances, 'instance')}: the "
        f"optimum is proved for {proved}"
    )
    if opened:
        bounded = [gap for gap in opened if math.isfinite(gap)]
        text += f", {len(opened)} {'is' if len(opened) == 1 else 'are'} open"
        if bounded:
            text += f" ({len(bounded)} with a certified bound, {_range(bounded)} below the best known value)"
    nothing = len(evaluation.pairs) - len(known)
    return text + (f"; {nothing} have no value at all." if nothing else ".")


def _about(evaluation: Evaluation, summary: MethodSummary) -> str:
    found, total = summary.found, summary.proved_pairs
    if total and found == total:
        text = f"found every one of the {_count(total, 'certified optimum', 'certified optima')}"
    elif total:
        text = f"found {found} of {total} certified optima ({percent(summary.share)})"
    else:
        text = f"has the best known value of {summary.reached} of {_count(summary.pairs, 'pair')}"
    if summary.answered and summary.worst_gap > 1e-6 and summary.worst_pair is not None:
        where = pair_name(evaluation, summary.worst_pair)
        text += (
            f"; its mean gap is {_gap(summary.mean_gap)} (shifted geometric mean {_gap(summary.geometric_gap)}), the "
            f"worst {_gap(summary.worst_gap)} on {where}"
        )
    notes = [
        f"{_count(summary.refused, 'pair')} it does not handle" * bool(summary.refused),
        f"{_count(summary.failed, 'run')} failed" * bool(summary.failed),
    ]
    text += "".join(f"; {note}" for note in notes if note) + "."
    return text + _where(evaluation, summary)


def _where(evaluation: Evaluation, summary: MethodSummary) -> str:
    """Families in which a method finds every proved optimum, and the one in which it finds the least."""
    if summary.found in (0, summary.proved_pairs):
        return ""
    by_family: dict[str, list[Cell]] = {}
    for (label, pair), cell in evaluation.cells.items():
        if label == summary.label and pair in evaluation.references and evaluation.references[pair].proved:
            by_family.setdefault(cell.family, []).append(cell)
    shares = {name: sum(cell.reached for cell in cells) / len(cells) for name, cells in by_family.items()}
    if len(shares) < 2:
        return ""
    always = sorted(name for name, share in shares.items() if share == 1)
    weakest = min(shares, key=lambda name: (shares[name], -len(by_family[name]), name))
    count = sum(cell.reached for cell in by_family[weakest])
    text = (
        f" Optimal throughout in {_listed(always)};" if always else " In no family is it optimal throughout;"
    )
    return f"{text} weakest in {weakest}, {count} of {len(by_family[weakest])}."


def _quickest(evaluation: Evaluation) -> str:
    pairs, labels = evaluation.common(), evaluation.labels
    if not pairs or len(labels) < 2:
        return ""
    times = {label: [evaluation.cells[label, pair].target for pair in pairs] for label in labels}
    profiles = performance_profile(times)
    first = max(labels, key=lambda label: profiles[label].at(1.0))
    most = max(labels, key=lambda label: profiles[label].at(math.inf))
    text = f"{first} was the first to the best known value on {percent(round(profiles[first].at(1.0), 3))} of the pairs"
    if first != most:
        median = next(summary.median_time for summary in evaluation.summaries if summary.label == most)
        share = percent(round(profiles[most].at(math.inf), 3))
        text += f"; {most} reached it on most, {share}, with a median time of {seconds(median)}"
    return text + "."


def _missed(evaluation: Evaluation) -> str:
    found = {pair for (_, pair), cell in evaluation.cells.items() if cell.reached}
    missed = [
        pair for pair, reference in evaluation.references.items() if reference.proved and pair not in found
    ]
    if not missed:
        return ""
    return (
        f"The proved optimum of {_count(len(missed), 'pair')} was found by none of these methods: "
        f"{_listed([pair_name(evaluation, pair) for pair in missed])}."
    )


def _lost(evaluation: Evaluation) -> str:
    failed = sum(run.outcome == "failed" for run in evaluation.runs)
    refused = sum(run.outcome == "refused" for run in evaluation.runs)
    if not failed and not refused:
        return ""
    parts = [f"{_count(failed, 'run')} failed"] * bool(failed)
    parts += [f"{_count(refused, 'run')} were refused" if refused > 1 else "1 run was refused"] * bool(
        refused
    )
    return f"Of {_count(len(evaluation.runs), 'run')}, {' and '.join(parts)}; each counts as not solved."


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    shown, more = listed[:_NAMED], len(listed) - _NAMED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _gap(value: float) -> str:
    """Write a gap so that it can be read aloud: a factor where a percentage would be silly."""
    return percent(value) if value < 10 else f"{value + 1:,.0f} times the best known value"


def _range(values: Iterable[float]) -> str:
    low, high = min(listed := list(values)), max(listed)
    return percent(low) if low == high else f"{percent(low)} to {percent(high)}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
