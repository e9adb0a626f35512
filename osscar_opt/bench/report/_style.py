"""How figures look: one colour and dash for each method everywhere, sizes, axes, labels at the ends of curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osscar_opt.bench.report.reference import TOLERANCE
from osscar_opt.errors import UnavailableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "RULE",
    "SURFACE",
    "Style",
    "canvas",
    "label_ends",
    "method_styles",
    "percent",
    "seconds",
]

PALETTE = ("#134ab7", "#cc5715", "#398a62", "#4b0d77", "#6a4f00", "#1a7eb7", "#962967", "#2b313a")
DARK_PALETTE = ("#7390ff", "#ea8164", "#84d3bc", "#e9a2fb", "#f1cf7d", "#2ca3c8", "#f75aa4", "#dde5f2")
"""For white and for dark paper, the same hues; searched for so that any two can be told apart with the common colour
deficiencies too, and that text in them can be read."""
INK, MUTED, RULE, SURFACE = "#14181d", "#5f6974", "#e2e6eb", "#fefefe"
"""The colours of text, of axes, of grids and of the paper; the page puts its own in their places."""

_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_SLOTS = {
    "greedy": 0,
    "osscar": 1,
    "search": 2,
    "swap": 3,
    "forward": 4,
    "exact": 5,
    "magnitude_refit": 6,
    "random": 7,
}
"""Methods met in nearly every report keep their colour from one report to the next."""


@dataclass(frozen=True)
class Style:
    """Colour and dash of a method.

    Attributes
    ----------
    index : int
        Number of the method in the report; its artists carry it in their names.
    slot : int
        Number of its colour in `PALETTE`.
    dash : int
        Number of its dash.

    Examples
    --------
    >>> method_styles(["greedy", "osscar"])["osscar"].color
    '#cc5715'
    """

    index: int
    slot: int
    dash: int

    @property
    def color(self) -> str:
        """The colour, as figures outside the page have it.

        Examples
        --------
        >>> Style(0, 0, 0).color
        '#134ab7'
        """
        return PALETTE[self.slot]

    @property
    def linestyle(self) -> Any:
        """The dash, as matplotlib has it.

        Examples
        --------
        >>> Style(0, 0, 0).linestyle
        'solid'
        """
        return _DASHES[self.dash]

    @property
    def gid(self) -> str:
        """Name of the method's artists in an SVG file.

        Examples
        --------
        >>> Style(3, 0, 0).gid
        'series-3'
        """
        return f"series-{self.index}"


def method_styles(labels: Sequence[str]) -> dict[str, Style]:
    """Give each method a colour and a dash: well-known ones theirs, the others what is free.

    Examples
    --------
    >>> styles = method_styles(["mine", "greedy"])
    >>> styles["greedy"].slot, styles["mine"].slot, styles["mine"].dash
    (0, 1, 0)
    """
    taken: dict[tuple[int, int], str] = {}
    for label in labels:
        if label in _SLOTS:
            taken[_SLOTS[label], 0] = label
    free = ((slot, dash) for dash in range(len(_DASHES)) for slot in range(len(PALETTE)))
    for label in (label for label in labels if label not in _SLOTS):
        place = next(
            (place for place in free if place not in taken), (len(taken) % len(PALETTE), len(_DASHES) - 1)
        )
        taken.setdefault(place, label)
    places = {label: place for place, label in taken.items()}
    return {
        label: Style(index, *places.get(label, (index % len(PALETTE), len(_DASHES) - 1)))
        for index, label in enumerate(labels)
    }


@contextmanager
def look() -> Iterator[None]:
    """Set what matplotlib draws with: text stays text in SVG, ids do not change from one run to the next.

    Raises
    ------
    UnavailableError
        If matplotlib is not installed.

    Examples
    --------
    >>> with look():
    ...     pass
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "the report's figures need matplotlib, which is not installed; run: pip install 'osscar-opt[bench]'."
        ) from error
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "osscar_opt",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10.0,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "xtick.major.size": 3.0,
        "ytick.major.size": 0.0,
        "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0,
        "axes.unicode_minus": True,
    }
    with mpl.rc_context(settings):
        yield


def canvas(
    height: float = 3.5,
    *,
    width: float = 5.1,
    left: float = 0.7,
    right: float = 1.34,
    top: float = 0.36,
    bottom: float = 0.56,
) -> tuple[Figure, Axes]:
    """Make a figure with one axis; sizes in inches, `right` being the room for labels.

    Examples
    --------
    >>> with look():
    ...     figure, axis = canvas()
    >>> figure.get_size_inches().tolist()
    [5.1, 3.5]
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


_LONGEST = 26


def room(labels: Iterable[str], extra: float = 0.42) -> float:
    """Inches that the longest of some names takes, and a little more.

    Examples
    --------
    >>> room(["exact"]) < room(["search patience=1"])
    True
    """
    return extra + 0.077 * max(min(max((len(label) for label in labels), default=0), _LONGEST), 8)


def short(label: str) -> str:
    """Cut a name that is too long for a figure.

    Examples
    --------
    >>> short("greedy"), short("search precision=float32 patience=3")
    ('greedy', 'search precision=float32 …')
    """
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def heading(axis: Axes, text: str) -> None:
    """Name the vertical axis above it, where it can be read without turning one's head."""
    axis.annotate(
        text,
        (0, 1),
        xytext=(-axis.bbox.x0 * 72 / axis.figure.dpi + 4, 9),
        xycoords="axes fraction",
        textcoords="offset points",
        color=MUTED,
        fontsize=9.5,
        annotation_clip=False,
    )


def label_ends(
    axis: Axes,
    ends: Sequence[tuple[str, Style, float]],
    *,
    starts: Sequence[float] | None = None,
    size: float = 9.5,
) -> None:
    """Write each curve's name beside its end, moved apart where they would touch, with a thin line to the end.

    Parameters
    ----------
    axis : Axes
        With its limits set.
    ends : sequence of (label, style, value)
        Where the curve leaves the axis on the right, in data coordinates.
    starts : sequence of float, optional
        Where the thin lines begin, for points inside the axis; at its right edge by default.
    size : float
        Of the text, in points.

    Examples
    --------
    >>> with look():
    ...     figure, axis = canvas()
    ...     label_ends(axis, [("greedy", Style(0, 0, 0), 0.5), ("osscar", Style(1, 1, 0), 0.5)])
    >>> [text.get_text() for text in axis.texts]
    ['osscar', 'greedy']
    """
    transform = axis.transData + axis.transAxes.inverted()
    low, high = axis.get_ylim()
    begins = [axis.get_xlim()[1]] * len(ends) if starts is None else starts
    listed = []
    for (label, style, value), begin in zip(ends, begins, strict=True):
        x, y = transform.transform((begin, min(max(value, low), high)))
        listed.append((round(float(y), 4), float(x), label, style))
    listed.sort(key=lambda end: (end[0], -end[3].index))  # among equals, the better method above
    step = 1.28 * size * axis.figure.dpi / 72 / axis.bbox.height
    places = spread([end[0] for end in listed], step)
    for (y, x, label, style), place in zip(listed, places, strict=True):
        line = axis.annotate(
            short(label),
            (x, y),
            xytext=(1.055, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=style.color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style.color,
                "linewidth": 0.7,
                "shrinkA": 1.0,
                "shrinkB": 0.0,
                "relpos": (0.0, 0.5),
            },
        )
        line.set_gid(style.gid)


def spread(positions: Sequence[float], step: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Move ascending positions at least `step` apart, as little as that takes, within bounds if they all fit.

    Examples
    --------
    >>> spread([0.5, 0.5], 0.1)
    [0.45, 0.55]
    >>> spread([0.2, 0.95, 1.0, 1.0], 0.1)
    [0.2, 0.8, 0.9, 1.0]
    """
    blocks: list[
        list[float]
    ] = []  # [sum of the wanted positions of the first label, count]: neighbours that touch
    for position in positions:
        blocks.append([position, 1.0])
        while len(blocks) > 1 and _start(blocks[-2], step, low, high) + blocks[-2][1] * step > (
            _start(blocks[-1], step, low, high) + 1e-12
        ):
            total, count = blocks.pop()
            blocks[-1][0] += total - count * blocks[-1][1] * step
            blocks[-1][1] += count
    return [
        _start(block, step, low, high) + index * step for block in blocks for index in range(int(block[1]))
    ]


def _start(block: Sequence[float], step: float, low: float, high: float) -> float:
    wanted = block[0] / block[1]
    return max(min(wanted, high - (block[1] - 1) * step), low)


def percent(value: float, _: object = None) -> str:
    """Write a share as a percentage with no more digits than it needs.

    Examples
    --------
    >>> [percent(value) for value in (1e-6, 1e-4, 0.0123, 0.5, 1.0, 12.0)]
    ['0.0001 %', '0.01 %', '1.23 %', '50 %', '100 %', '1200 %']
    """
    if not math.isfinite(value):
        return "none"
    if value >= 10:
        return f"{100 * value:.0f} %"
    return f"{float(f'{100 * value:.3g}'):.9f}".rstrip("0").rstrip(".") + " %"


def times_best(value: float) -> str:
    """Write a gap: as a percentage, as 0 where it is rounding, as a multiple of the best known value where it is vast.

    Examples
    --------
    >>> [times_best(value) for value in (1e-9, 0.015, 44.0, float("nan"))]
    ['0', '1.5 %', '45×', '–']
    """
    if math.isnan(value):
        return "–"
    if value <= TOLERANCE:
        return "0"
    return f"{value + 1:,.0f}×" if value >= 10 else percent(value)


def seconds(value: float, _: object = None) -> str:
    """Write a time with its unit.

    Examples
    --------
    >>> [seconds(value) for value in (0.0004, 0.01, 1.0, 30.0, 600.0)]
    ['0.4 ms', '10 ms', '1 s', '30 s', '600 s']
    """
    if not math.isfinite(value):
        return "never"
    return f"{1000 * value:.3g} ms" if value < 0.9995 else f"{float(f'{value:.3g}'):g} s"
