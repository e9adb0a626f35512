"""The report's figures: profiles, distributions, anytime curves, growth with the size, families; as files too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from osscar_opt.bench.report import _grids, _plots
from osscar_opt.bench.report._axes import Plot
from osscar_opt.bench.report._style import Style, look, method_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from osscar_opt.bench.report.evaluation import Evaluation

__all__ = ["Drawing", "draw", "save_figures"]

_PLOTS: tuple[tuple[str, str, Callable[..., Plot]], ...] = (
    ("tradeoff", "Quality against time", _plots.tradeoff),
    ("quality", "How near to the best known value", _plots.quality),
    ("gaps", "The gaps themselves", _grids.distribution),
    ("families", "Optima found, by family, share kept and size", _grids.families),
    ("performance", "How soon the best known value", _plots.performance),
    ("performance-one-percent", "How soon within 1 %", partial(_plots.performance, target=0.01)),
    ("anytime", "How good at any moment", _plots.anytime),
    ("growth", "How time grows with the size", _plots.growth),
)


COUNT = len(_PLOTS)


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes
    ----------
    name : str
        For files.
    title, caption : str
        What it shows, and how to read it.
    figure : matplotlib.figure.Figure

    Examples
    --------
    >>> list(Drawing.__dataclass_fields__)
    ['name', 'title', 'caption', 'figure']
    """

    name: str
    title: str
    caption: str
    figure: Figure


def draw(evaluation: Evaluation, styles: dict[str, Style] | None = None) -> Iterator[Drawing]:
    """Draw every figure there is data for.

    Parameters
    ----------
    evaluation : Evaluation
    styles : dict, optional
        Label to `Style`; the usual ones by default.

    Yields
    ------
    Drawing

    Raises
    ------
    UnavailableError
        If matplotlib is not installed.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> list(draw(evaluate([])))
    []
    """
    chosen = styles or method_styles(evaluation.labels)
    for name, title, plot in _PLOTS:
        with look():
            made = plot(evaluation, chosen)
        if made.figure is not None:
            yield Drawing(name, title, made.caption, made.figure)


def save_figures(
    evaluation: Evaluation, folder: str | os.PathLike[str], formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write every figure to a folder, which is made if need be.

    Parameters
    ----------
    evaluation : Evaluation
    folder : path
    formats : sequence of str
        Of those matplotlib writes: "svg", "png", "pdf".

    Returns
    -------
    list of Path

    Raises
    ------
    UnavailableError
        If matplotlib is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> save_figures(evaluate([]), tempfile.mkdtemp())
    []
    """
    from osscar_opt.instances.container import replacing

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for drawing in draw(evaluation):
        for kind in formats:
            path = target / f"{drawing.name}.{kind}"
            with replacing(path) as aside, look():
                drawing.figure.savefig(
                    aside,
                    format=kind,
                    dpi=200,
                    facecolor="white",
                    metadata={"Date": None} if kind == "svg" else None,
                )
            written.append(path)
    return written
