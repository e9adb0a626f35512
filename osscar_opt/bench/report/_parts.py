"""The parts of the report's page: pieces of HTML, everything from the runs escaped, and the rows of its tables."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from osscar_opt.bench.report._style import Style, percent, seconds, times_best
from osscar_opt.bench.report.findings import findings, pair_name
from osscar_opt.bench.report.measures import GAP_SHIFT, TIME_SHIFT
from osscar_opt.bench.report.reference import FLOOR, TOLERANCE

if TYPE_CHECKING:
    from osscar_opt.bench.report.evaluation import Evaluation
    from osscar_opt.bench.report.summary import MethodSummary

Styles = Mapping[str, Style]
SUMMARY_NOTE = (
    "Most certified optima first. Medians over seeds; a pair that a method refuses or fails on counts as not found. "
    "Gaps are over the answered pairs, times over the pairs that are not refused."
)
_REASONS = 200
"""Different reasons listed at most; the table of runs has them all."""


def machine(evaluation: Evaluation) -> str:
    """Name the machine and the library's version, where all runs agree on them."""
    found = [run.environment for run in evaluation.runs]
    processors = {str(one["cpu"]) for one in found if one.get("cpu")}
    versions = {
        str(one["versions"]["osscar-opt"]) for one in found if "osscar-opt" in one.get("versions", {})
    }
    parts = [
        next(iter(processors)) if len(processors) == 1 else f"{len(processors)} machines" * bool(processors)
    ]
    parts.append(f"osscar_opt {', '.join(sorted(versions))}" * bool(versions))
    return " · ".join(part for part in parts if part)


def facts(evaluation: Evaluation) -> str:
    """Numbers to begin with."""
    known = evaluation.references.values()
    proved = sum(reference.proved for reference in known)
    outcomes = Counter(run.outcome for run in evaluation.runs)
    lost = [f"{outcomes[name]:,} {name}" for name in ("failed", "refused") if outcomes[name]]
    limits = sorted({run.time_limit for run in evaluation.runs if run.time_limit is not None})
    cpu = sum(run.wall for run in evaluation.runs)
    tiles = [
        ("Pairs", f"{len(evaluation.pairs):,}", f"of {len({p[0] for p in evaluation.pairs}):,} instances"),
        ("Optimum proved", f"{proved:,}", f"{len(evaluation.pairs) - proved:,} open"),
        ("Methods", f"{len(evaluation.labels):,}", f"{len(evaluation.families):,} families of instances"),
        ("Runs", f"{len(evaluation.runs):,}", ", ".join(lost) or "none failed, none refused"),
        ("Time limit", _limits(limits), f"{_duration(cpu)} of solving"),
    ]
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def chips(evaluation: Evaluation, styles: Styles) -> str:
    """A box to tick for every method."""
    return "\n".join(
        f'<label class="chip" style="--series:var(--c{styles[label].slot})">'
        f'<input type="checkbox" value="{styles[label].index}" checked>{_line(styles[label])}{escape(label)}</label>'
        for label in evaluation.labels
    )


def findings_list(evaluation: Evaluation, styles: Styles) -> str:
    """The findings, those about a method under its name and colour."""
    items: list[tuple[bool, str]] = []
    for finding in findings(evaluation):
        style = styles.get(finding.label)
        if style is not None:
            name = f'<span class="name">{_line(style)}{escape(finding.label)}</span>'
            row = f'<div data-series="{style.index}"><dt>{name}</dt><dd>{text(finding.text)}</dd></div>'
            items.append((True, row))
        else:
            kind = ' class="warn"' if finding.text.startswith("Conflict") else ""
            items.append((False, f"<p{kind}>{text(finding.text)}</p>"))
    parts = []
    for about_methods, group in groupby(items, key=lambda item: item[0]):
        rows = "\n".join(row for _, row in group)
        parts.append(f"<dl>\n{rows}\n</dl>" if about_methods else rows)
    return "\n".join(parts)


def summary_table(evaluation: Evaluation, styles: Styles) -> str:
    """A row for every method."""
    heads = [
        ("Method", "first", ""),
        ("Certified optima found", "num", "Pairs with a proved optimum on which the method found it"),
        ("Best known", "num", "Pairs, proved or open, on which the method has the best known value"),
        ("Mean gap", "num", "Over the pairs it answered"),
        ("Geometric gap", "num", f"Geometric mean with a shift of {percent(GAP_SHIFT)}"),
        ("Worst gap", "num", "And where"),
        ("Time", "num", f"Geometric mean with a shift of {seconds(TIME_SHIFT)}"),
        ("Median time", "num", ""),
        ("Primal integral", "num", "Mean over the pairs it handles, in seconds"),
        ("Proofs", "num", "Pairs on which its own certificate, checked, proves its value"),
        ("Memory", "num", "Largest peak"),
        ("Refused", "num", "Pairs it does not handle"),
        ("Failed", "num", "Runs"),
    ]
    head = "".join(
        f'<th scope="col" class="{kind}" title="{escape(title)}">{escape(name)}</th>'
        for name, kind, title in heads
    )
    body = "\n".join(_summary_row(evaluation, row, styles[row.label]) for row in evaluation.summaries)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def _summary_row(evaluation: Evaluation, row: MethodSummary, style: Style) -> str:
    share = 0.0 if math.isnan(row.share) else row.share
    bar = f'<span class="bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'
    found = f'<span class="share"><span>{row.found} of {row.proved_pairs}</span>{bar}</span>'
    worst = times_best(row.worst_gap)
    if row.worst_pair is not None and row.worst_gap > TOLERANCE:
        worst += f"<small>{escape(pair_name(evaluation, row.worst_pair))}</small>"
    cells = [
        _cell(found, row.share),
        _cell(f"{row.reached} of {row.pairs}", row.reached),
        _cell(times_best(row.mean_gap), row.mean_gap),
        _cell(times_best(row.geometric_gap), row.geometric_gap),
        _cell(worst, row.worst_gap),
        _cell(_time(row.geometric_time), row.geometric_time),
        _cell(_time(row.median_time), row.median_time),
        _cell(_time(row.integral), row.integral),
        _cell(str(row.certified or "–"), row.certified),
        _cell("–" if row.memory is None else f"{row.memory:,} MiB", row.memory),
        _cell(str(row.refused or "–"), row.refused),
        _cell(str(row.failed or "–"), row.failed),
    ]
    name = f'<span class="name">{_line(style)}{escape(row.label)}</span>'
    return (
        f'<tr data-series="{style.index}" style="--series:var(--c{style.slot})">'
        f'<th scope="row" class="first">{name}</th>{"".join(cells)}</tr>'
    )


def failures(evaluation: Evaluation) -> str:
    """Every reason, and how often it was given."""
    counted: Counter[tuple[str, str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for run in evaluation.runs:
        if run.outcome != "ok":
            key = run.outcome, run.label, run.reason
            counted[key] += 1
            example.setdefault(key, run.instance)
    if not counted:
        return '<p class="note">No run failed, and none was refused.</p>'
    ranked = sorted(counted.items(), key=lambda item: (item[0][0], -item[1], item[0]))
    rows = [
        f'<tr><td><span class="tag {escape(outcome)}">{escape(outcome)}</span></td><td>{escape(label)}</td>'
        f'<td class="num">{count:,}</td><td>{escape(example[outcome, label, reason])}</td>'
        f'<td class="wide">{text(reason)}</td></tr>'
        for (outcome, label, reason), count in ranked[:_REASONS]
    ]
    heads = (("Outcome", ""), ("Method", ""), ("Runs", "num"), ("For one", ""), ("Reason", ""))
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in heads)
    more = len(ranked) - _REASONS
    note = f'<p class="note">{more} more reasons are in the table of runs.</p>' if more > 0 else ""
    return (
        '<div class="scroll" role="region" aria-labelledby="failures-title" tabindex="0"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def environment(evaluation: Evaluation) -> str:
    """What the runs were made with, once for each that differs."""
    seen: dict[str, tuple[Mapping[str, Any], int]] = {}
    for run in evaluation.runs:
        key = repr(run.environment)
        seen[key] = run.environment, seen.get(key, ({}, 0))[1] + 1
    parts = []
    for found, count in seen.values():
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in _flat(found))
        title = f"<h3>{count:,} runs</h3>" if len(seen) > 1 else ""
        parts.append(
            f'{title}<dl class="kv">{rows}</dl>' if rows else f"{title}<p class='note'>Not recorded.</p>"
        )
    started = sorted(run.started for run in evaluation.runs if run.started)
    if started:
        parts.append(f'<p class="note">First run {escape(started[0])}, last run {escape(started[-1])}.</p>')
    return "\n".join(parts) or '<p class="note">Nothing was recorded.</p>'


def definitions(evaluation: Evaluation) -> str:
    """What each number means."""
    sources = Counter(reference.source for reference in evaluation.references.values())
    origin = ", ".join(f"{count:,} from the {_ORIGINS[name]}" for name, count in sources.most_common())
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{text(meaning)}</dd>" for name, meaning in _DEFINITIONS.items()
    )
    note = f'<p class="note">The best known values: {escape(origin)}.</p>' if origin else ""
    return f'<dl class="definitions">{rows}</dl>{note}'


_DEFINITIONS = {
    "Best known value": (
        "The lower of the catalogue's record and the best of these runs, for each instance and keep. Proved: a "
        "certified lower bound is within 1e-6 of it. Bounds that methods only claim do not count."
    ),
    "Objective": "Recomputed by the runner from the groups kept; never a number that a method reports.",
    "Gap": (
        "(objective − best known) / max(|best known|, floor); the floor is 1e-8 of the loss of keeping nothing. A gap "
        "up to 1e-6 is shown as 0 and counts as found; one above 1000 % is shown as a multiple of the best known value."
    ),
    "Shifted geometric mean": (
        "exp(mean(log(x + s))) − s, with s = 10 s for times and 0.01 % for gaps (Achterberg 2007). A failed run is "
        "charged its time limit."
    ),
    "Primal gap and primal integral": (
        "|x − x*| / max(|x|, |x*|), and 1 before the first value; integrated over time up to the longest time limit of "
        "the pair's runs (Berthold 2013). In seconds; smaller is better."
    ),
    "Performance profile": (
        "The share of pairs on which a method reaches the target within so many times the time of the fastest method "
        "on that pair (Dolan and Moré 2002). Hiding a method does not change the ratios of the others."
    ),
    "Time": "By the runner's clock, from handing over the problem to the answer, in a process of its own.",
    "Seeds": "The median over a pair's seeds stands for the pair; a failed run is infinitely bad.",
}
assert (TOLERANCE, FLOOR, TIME_SHIFT, GAP_SHIFT) == (
    1e-6,
    1e-8,
    10.0,
    1e-4,
)  # as the sentences above have them
_ORIGINS = {"record": "records", "best of the runs": "runs"}


def text(words: str) -> str:
    """Escape, and keep a number on one line with its unit."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|min|MiB)(?!\w))", "\u00a0", escape(words))


def _line(style: Style) -> str:
    return (
        f'<span class="line d{style.dash}" style="--series:var(--c{style.slot})" aria-hidden="true"></span>'
    )


def _cell(html: str, value: float | None) -> str:
    known = "" if value is None or math.isnan(value) else f"{value:.9g}"
    return f'<td class="num" data-value="{known}">{html}</td>'


def _time(value: float) -> str:
    return "–" if math.isnan(value) else seconds(value)


def _limits(limits: Iterable[float]) -> str:
    return ", ".join(seconds(limit) for limit in limits) or "none"


def _duration(value: float) -> str:
    """Write a long time in the unit that suits it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return seconds(value)


def _flat(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of an environment; what is nested becomes one line."""
    rows = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            said = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list | tuple):
            said = ", ".join(map(str, value))
        else:
            said = str(value)
        rows.append((name.replace("_", " "), said))
    return rows
