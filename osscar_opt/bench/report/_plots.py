"""The drawings of a report, one function each: from an evaluation and styles to a figure and its caption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.bench.report._axes import SMALLEST, Plot, Styles, decades, gap_axis, largest_gap, no_ticks
from osscar_opt.bench.report._style import (
    RULE,
    SURFACE,
    canvas,
    heading,
    label_ends,
    percent,
    room,
    seconds,
    short,
)
from osscar_opt.bench.report.measures import horizon, improvements, median, primal_gaps_at, time_to_target
from osscar_opt.bench.report.profiles import CLOCK, Profile, performance_profile, quality_profile
from osscar_opt.bench.report.reference import TOLERANCE, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from osscar_opt.bench.report.evaluation import Evaluation
    from osscar_opt.bench.store import Run

__all__ = ["anytime", "growth", "performance", "quality", "tradeoff"]

_MOMENTS = 160


def tradeoff(evaluation: Evaluation, styles: Styles) -> Plot:
    """Share of the pairs on which a method has the best known value, against its median time."""
    rows = [row for row in evaluation.summaries if row.pairs and math.isfinite(row.median_time)]
    if not rows:
        return Plot(None, "")
    times = [max(row.median_time, CLOCK / 10) for row in rows]
    shares = [row.reached / row.pairs for row in rows]
    low, high = min(times) / 1.8, max(times) * 1.8
    figure, axis = canvas(right=room(styles))
    _share_axis(axis, "share of pairs with the best known value")
    axis.set_ylim(-0.03, 1.03)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    decades(axis.xaxis, seconds, low, high, most=5)
    axis.grid(visible=True)
    axis.set_xlabel("median time")
    for row, time, share in zip(rows, times, shares, strict=True):
        dot = axis.plot([time], [share], "o", color=styles[row.label].color, markersize=8, clip_on=False)[0]
        dot.set_gid(styles[row.label].gid)
    label_ends(
        axis,
        [(row.label, styles[row.label], share) for row, share in zip(rows, shares, strict=True)],
        starts=times,
    )
    return Plot(
        figure,
        "Higher and further left is better. Over all pairs of each method, refused and failed ones counting as not "
        "found; median over seeds.",
    )


def performance(evaluation: Evaluation, styles: Styles, target: float = TOLERANCE) -> Plot:
    """Dolan and Moré's performance profile of the time until a value within `target` of the reference was held."""
    pairs = evaluation.common()
    if not pairs:
        return Plot(None, "")
    reached = _times_to(evaluation, target)
    times = {label: [reached[label, pair] for pair in pairs] for label in evaluation.labels}
    profiles = performance_profile(times)
    largest = max((profile.x[-1] for profile in profiles.values() if profile.x.size), default=1.0)
    right = max(largest * 1.3, 10.0)
    figure, axis = canvas(right=room(styles))
    _share_axis(axis, "share of pairs solved")
    axis.set_xscale("log")
    axis.set_xlim(1.0, right)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}×")
    axis.set_xlabel("time, relative to the fastest method on the pair")
    _draw_profiles(axis, profiles, styles, (1.0, right))
    unsolved = sum(1 for row in zip(*times.values(), strict=True) if not np.isfinite(row).any())
    aim = "the best known value" if target <= TOLERANCE else f"{percent(target)} of the best known value"
    return Plot(
        figure,
        f"Higher and further left is better. Solved: within {'1e-6 of ' if target <= TOLERANCE else ''}{aim}. "
        f"{_count(len(pairs), 'pair')}, each counted for all methods"
        + (f"; nobody solved {unsolved}" if unsolved else "")
        + f". Times below {seconds(CLOCK)} count as {seconds(CLOCK)}.",
    )


def quality(evaluation: Evaluation, styles: Styles) -> Plot:
    """Share of pairs whose value is within a gap of the reference."""
    pairs = evaluation.common()
    if not pairs:
        return Plot(None, "")
    gaps = {label: [evaluation.cells[label, pair].gap for pair in pairs] for label in evaluation.labels}
    profiles = quality_profile(gaps)
    right = min(max(largest_gap(evaluation) * 1.3, 1e-2), 1.0)
    figure, axis = canvas(right=room(styles))
    _share_axis(axis, "share of pairs")
    gap_axis(axis, right)
    axis.set_xlabel("gap to the best known value, at most")
    _draw_profiles(axis, profiles, styles, (SMALLEST, right))
    return Plot(
        figure,
        f"Higher and further left is better; at the left edge, the share where the best known value itself was found. "
        f"{_count(len(pairs), 'pair')}; a method that refuses or fails has no value.",
    )


def anytime(evaluation: Evaluation, styles: Styles) -> Plot:
    """Mean primal gap against time."""
    cells = evaluation.cells
    pairs = [
        pair
        for pair in evaluation.common()
        if not any(cells[label, pair].refused for label in evaluation.labels)
    ]
    if not pairs:
        return Plot(None, "")
    end = max(horizon(evaluation.runs), 10 * CLOCK)
    moments = np.geomspace(CLOCK, end, _MOMENTS)
    curves = _mean_gaps(evaluation, pairs, moments)
    least = min(
        (float(curve[curve > 0].min()) for curve in curves.values() if (curve > 0).any()), default=1e-4
    )
    low = min(max(least / 2, 1e-5), 1e-2)
    figure, axis = canvas(right=room(styles))
    heading(axis, "mean primal gap")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(CLOCK, end)
    axis.set_ylim(low, 1.35)
    decades(axis.yaxis, percent, low, 1.35)
    decades(axis.xaxis, seconds, CLOCK, end)
    axis.set_xlabel("time")
    for label, curve in curves.items():
        line = axis.step(
            moments,
            np.maximum(curve, low / 10),
            where="post",
            color=styles[label].color,
            linestyle=styles[label].linestyle,
            linewidth=1.9,
        )[0]
        line.set_gid(styles[label].gid)
    label_ends(axis, [(label, styles[label], float(curve[-1])) for label, curve in curves.items()])
    return Plot(
        figure,
        "Lower and further left is better. Berthold's primal gap, 100 % before the first value; mean over the "
        f"{_count(len(pairs), 'pair')} that every method handles, median over seeds. A method that has ended keeps its "
        "last value.",
    )


def _mean_gaps(evaluation: Evaluation, pairs: Sequence[Pair], moments: FloatArray) -> dict[str, FloatArray]:
    wanted = set(pairs)
    curves: dict[tuple[str, Pair], list[FloatArray]] = {}
    for scored in evaluation.scored:
        if scored.pair in wanted:
            value = evaluation.references[scored.pair].value
            curve = primal_gaps_at(moments, improvements(scored.run), value)
            curves.setdefault((scored.run.label, scored.pair), []).append(curve)
    return {
        label: np.mean([_middle(curves[label, pair]) for pair in pairs], axis=0)
        for label in evaluation.labels
    }


def _middle(curves: list[FloatArray]) -> FloatArray:
    return curves[0] if len(curves) == 1 else np.asarray(np.median(curves, axis=0), float)


def growth(evaluation: Evaluation, styles: Styles) -> Plot:
    """Time against the number of rows p, with the slope of a line through the medians."""
    series = {label: _medians_by_size(evaluation, label) for label in evaluation.labels}
    series = {label: rows for label, rows in series.items() if len(rows) >= 3}
    if not series:
        return Plot(None, "")
    figure, axis = canvas(right=room(styles, 0.85))
    heading(axis, "median time")
    axis.set_xscale("log")
    axis.set_yscale("log")
    sizes = sorted({row[0] for rows in series.values() for row in rows})
    times = [row[1] for rows in series.values() for row in rows]
    bounds = (min(times) / 1.6, max(times) * 1.6)
    axis.set_xlim(sizes[0] / 1.12, sizes[-1] * 1.12)
    axis.set_ylim(*bounds)
    decades(axis.yaxis, seconds, *bounds)
    _size_ticks(axis, sizes)
    axis.set_xlabel("rows p")
    ends = []
    for label, rows in series.items():
        style = styles[label]
        x, y, free = (np.array(column) for column in zip(*rows, strict=True))
        line = axis.plot(x, y, color=style.color, linestyle=style.linestyle, linewidth=1.7)[0]
        dots = axis.plot(x[free], y[free], "o", color=style.color, markersize=4.2)[0]
        stopped = axis.plot(
            x[~free], y[~free], "o", color=style.color, markersize=4.2, markerfacecolor=SURFACE
        )[0]
        for artist in (line, dots, stopped):
            artist.set_gid(style.gid)
        slope = _slope(x, y, free)
        ends.append(
            (short(label) if slope is None else f"{label[:20]}  p{_raised(slope)}", style, float(y[-1]))
        )
    label_ends(axis, ends)
    return Plot(
        figure,
        "Median over all pairs of about a size (steps of a factor 1.4). The exponent is the slope of a least-squares "
        "line through the larger half of the sizes, where no limit interfered; hollow dots: a limit ended most runs. "
        "Small sizes show the cost of a call rather than of the work.",
    )


def _medians_by_size(evaluation: Evaluation, label: str) -> list[tuple[float, float, bool]]:
    """Size, median seconds, and whether most runs ended by themselves, in steps of half an octave."""
    by_size: dict[int, list[Run]] = {}
    for run in evaluation.runs:
        if run.label == label and run.outcome == "ok" and run.p > 0:
            by_size.setdefault(round(2 * math.log2(run.p)), []).append(run)
    rows = []
    for _, runs in sorted(by_size.items()):
        stopped = sum(run.termination == "time_limit" for run in runs)
        size = math.exp(np.mean([math.log(run.p) for run in runs]))
        rows.append((size, max(float(np.median([run.wall for run in runs])), 1e-5), 2 * stopped <= len(runs)))
    return rows


def _slope(sizes: FloatArray, times: FloatArray, free: FloatArray) -> float | None:
    """Exponent of a power law through the larger half of the sizes; None for fewer than three, or where a limit is."""
    count = max(3, (len(sizes) + 1) // 2)
    if len(sizes) < count or not free[-count:].all():
        return None
    x, y = np.log(sizes[-count:]), np.log(times[-count:])
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _times_to(evaluation: Evaluation, target: float) -> dict[tuple[str, Pair], float]:
    """Median seconds to a target, for each method and pair."""
    if target == TOLERANCE:
        return {key: cell.target for key, cell in evaluation.cells.items()}
    times: dict[tuple[str, Pair], list[float]] = {}
    for scored in evaluation.scored:
        reached = time_to_target(scored.run, evaluation.references.get(scored.pair), target)
        times.setdefault((scored.run.label, scored.pair), []).append(reached)
    return {key: median(values) for key, values in times.items()}


def _draw_profiles(
    axis: Axes, profiles: Mapping[str, Profile], styles: Styles, limits: tuple[float, float]
) -> None:
    for label, profile in profiles.items():
        start = profile.at(limits[0])
        inside = (profile.x > limits[0]) & (profile.x <= limits[1])
        x = np.concatenate([[limits[0]], profile.x[inside], [limits[1]]])
        y = np.concatenate([[start], profile.share[inside], [profile.at(limits[1])]])
        line = axis.step(
            x, y, where="post", color=styles[label].color, linestyle=styles[label].linestyle, linewidth=1.9
        )[0]
        line.set_gid(styles[label].gid)
    label_ends(axis, [(label, styles[label], profile.at(limits[1])) for label, profile in profiles.items()])


def _share_axis(axis: Axes, name: str) -> None:
    heading(axis, name)
    axis.set_ylim(-0.005, 1.012)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.yaxis.set_major_formatter(percent)
    axis.grid(visible=False, axis="x")


def _size_ticks(axis: Axes, sizes: Sequence[float]) -> None:
    """Ticks at powers of two, not more of them than can be read."""
    first, last = math.ceil(math.log2(sizes[0]) - 0.2), math.floor(math.log2(sizes[-1]) + 0.2)
    chosen = [2.0**power for power in range(first, last + 1, max(1, math.ceil((last - first + 1) / 8)))]
    axis.set_xticks(chosen)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_minor_locator(no_ticks())
    axis.grid(visible=True, color=RULE)


def _raised(exponent: float) -> str:
    return f"{exponent:.1f}".translate(str.maketrans("0123456789.-", "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻"))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
