"""What the drawings share: a figure with its caption, axes for gaps, ticks at powers of ten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osscar_opt.bench.report._style import Style, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from osscar_opt.bench.report.evaluation import Evaluation

__all__ = ["SMALLEST", "Plot", "Styles", "decades", "gap_axis", "largest_gap", "no_ticks"]

Styles = Mapping[str, Style]
SMALLEST = 1e-6
"""Where axes of gaps begin."""


@dataclass(frozen=True)
class Plot:
    """A figure, and one or two sentences that say how to read it.

    Examples
    --------
    >>> Plot(None, "Higher is better.").caption
    'Higher is better.'
    """

    figure: Figure | None
    caption: str


def gap_axis(axis: Axes, right: float) -> None:
    """Make the horizontal axis one of gaps, in per cent, on a logarithmic scale."""
    axis.set_xscale("log")
    axis.set_xlim(SMALLEST, right)
    decades(axis.xaxis, percent, SMALLEST, right, most=5)


def largest_gap(evaluation: Evaluation) -> float:
    """Find the largest gap there is; 1 without any."""
    return max((cell.gap for cell in evaluation.cells.values() if cell.answered), default=1.0)


def decades(axis: Any, formatter: Any, low: float, high: float, most: int = 6) -> None:
    """Ticks at powers of ten, not more of them than can be read."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    ticks = [10.0**power for power in range(last, first - 1, -every)]
    if len(ticks) < 2:  # little more than a decade
        steps = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
        ticks = [tick for tick in steps if low <= tick <= high]
    axis.set_ticks(ticks)
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(no_ticks())


def no_ticks() -> Any:
    """Make the locator of an axis without small ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()
