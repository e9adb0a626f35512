"""The drawings with a row for each method or family: every gap as a dot, and the optima found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.bench.report._axes import Plot, Styles, gap_axis, largest_gap
from osscar_opt.bench.report._style import INK, MUTED, PALETTE, SURFACE, Style, canvas, percent, room, short
from osscar_opt.bench.report.reference import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from osscar_opt.bench.report.evaluation import Evaluation
    from osscar_opt.bench.report.summary import Cell
    from osscar_opt.bench.store import Run

__all__ = ["distribution", "families"]

_DOTS = 250
"""Dots drawn for a method at most, so that a page with thousands of pairs stays small."""
_LARGEST = 10.0


def distribution(evaluation: Evaluation, styles: Styles) -> Plot:
    """Every pair's gap as a dot, a row for each method."""
    if not any(cell.answered for cell in evaluation.cells.values()):
        return Plot(None, "")
    labels = evaluation.labels
    right = min(max(largest_gap(evaluation) * 1.6, 1e-2), _LARGEST)
    figure, axis = canvas(0.98 + 0.34 * len(labels), left=room(styles, 0.3), right=1.0, top=0.4)
    gap_axis(axis, right)
    axis.set_xlabel("gap to the best known value")
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    for row, label in enumerate(labels):
        _draw_row(
            axis, row, label, [c for (name, _), c in evaluation.cells.items() if name == label], styles[label]
        )
    axis.text(1.03, 1.04, "no gap", transform=axis.transAxes, color=MUTED, fontsize=9.5)
    return Plot(
        figure,
        "A dot for each pair with a gap above 1e-6, a bar at their median; on the right, how many of the answered "
        f"pairs have none. At most {_DOTS} dots a method, evenly chosen; gaps above {percent(_LARGEST)} lie on the "
        "right edge.",
    )


def _draw_row(axis: Axes, row: int, label: str, cells: Sequence[Cell], style: Style) -> None:
    answered = [cell.gap for cell in cells if cell.answered]
    gaps = np.sort([value for value in answered if value > TOLERANCE])
    shown = gaps[np.linspace(0, len(gaps) - 1, _DOTS).round().astype(int)] if len(gaps) > _DOTS else gaps
    scatter = 0.26 * _jitter(len(shown))
    dots = axis.plot(
        np.minimum(shown, _LARGEST),
        row + scatter,
        "o",
        markersize=4.2,
        markerfacecolor=style.color,
        markeredgewidth=0.0,
        alpha=0.55,
        clip_on=False,
    )[0]
    dots.set_gid(style.gid)
    if len(gaps):
        middle = min(float(np.median(gaps)), _LARGEST)
        bar = axis.plot([middle, middle], [row - 0.36, row + 0.36], color=style.color, linewidth=2.2)[0]
        bar.set_gid(style.gid)
    across = axis.get_yaxis_transform()
    for x, text, align, color in (
        (-0.03, short(label), "right", style.color),
        (1.03, f"{len(answered) - len(gaps)} of {len(answered)}", "left", INK),
    ):
        written = axis.text(x, row, text, transform=across, ha=align, va="center", color=color, fontsize=9.5)
        written.set_gid(style.gid)


def families(evaluation: Evaluation, styles: Styles) -> Plot:
    """Proved optima found: a row for each family, share kept and size, a column for each method."""
    counts: dict[tuple[str, str], list[int]] = {}
    for (label, pair), cell in evaluation.cells.items():
        if pair in evaluation.references and evaluation.references[pair].proved:
            for row in _rows_of(cell, evaluation.pairs[pair]):
                count = counts.setdefault((row, label), [0, 0])
                count[0] += cell.reached
                count[1] += 1
    groups = [
        [row for row in group if any((row, label) in counts for label in evaluation.labels)]
        for group in (evaluation.families, _KEPT, _SIZES)
    ]
    rows, places, at = [], [], 0.0
    for group in groups:
        rows += group
        places += [at + index for index in range(len(group))]
        at += len(group) + 0.4 * bool(group)
    if not rows:
        return Plot(None, "")
    columns = evaluation.labels
    head, last = 0.82 * room(columns, 0.05) + 0.2, 0.57 * room(columns[-2:], 0.05)
    left = room(rows, 0.15)
    figure, axis = canvas(
        head + 0.2 + 0.265 * (places[-1] + 1), left=left, right=max(last - 0.1, 0.2), top=head, bottom=0.12
    )
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(places[-1] + 0.5, -0.5)
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xticks([])
    axis.set_yticks(places, rows, color=INK)
    for column, label in enumerate(columns):
        cells = [
            (place, counts[row, label])
            for place, row in zip(places, rows, strict=True)
            if (row, label) in counts
        ]
        _draw_column(axis, column, label, cells, styles[label])
    return Plot(
        figure,
        "How many of the proved optima each method found (median over seeds): by family, by the share of groups kept, "
        "by the number of groups n. Full colour: all of them; in per cent from 100 pairs on. Pairs that a method "
        "refuses or fails on count as not found.",
    )


_KEPT = ("keep up to 1/3", "keep 1/3 to 2/3", "keep above 2/3")
_SIZES = ("n up to 16", "n 17 to 64", "n above 64")


def _rows_of(cell: Cell, run: Run) -> list[str]:
    rows = [cell.family, _SIZES[(run.n > 16) + (run.n > 64)]]
    if run.keep is not None and run.n:
        share = run.keep / run.n
        rows.append(_KEPT[(share > 1 / 3) + (share > 2 / 3)])
    return rows


def _draw_column(
    axis: Axes, column: int, label: str, counts: Sequence[tuple[float, list[int]]], style: Style
) -> None:
    from matplotlib.patches import Rectangle

    head = axis.text(
        column,
        -0.62,
        short(label),
        rotation=55,
        ha="left",
        va="bottom",
        rotation_mode="anchor",
        color=style.color,
        fontsize=9.5,
    )
    head.set_gid(style.gid)
    columns = axis.get_xlim()[1] + 0.5
    for row, count in counts:
        share = count[0] / count[1]
        cell = Rectangle(
            (column - 0.47, row - 0.45), 0.94, 0.9, facecolor=MUTED if share == 0 else PALETTE[0], linewidth=0
        )
        faint = 0.1 + 0.35 * share  # at most 0.45, for the text to be read
        cell.set_alpha(1.0 if share == 1 else faint)
        cell.set_gid(style.gid)
        axis.add_patch(cell)
        written = axis.text(
            column,
            row,
            f"{count[0]}/{count[1]}" if count[1] < 100 else f"{int(100 * share)} %",
            ha="center",
            va="center",
            fontsize=min(8.5, 8.5 * 8 / columns),
            color=SURFACE if share == 1 else INK,
        )
        written.set_gid(style.gid)


def _jitter(count: int) -> FloatArray:
    """Numbers in [-1, 1] that fill it evenly however many there are: the golden ratio's multiples."""
    return np.array([2.0 * (turn * 0.6180339887498949 % 1.0) - 1.0 for turn in range(count)])
