"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from osscar_opt.bench.report import _parts, _rows
from osscar_opt.bench.report._style import DARK_PALETTE, INK, MUTED, PALETTE, RULE, SURFACE, method_styles
from osscar_opt.bench.report.figures import COUNT, Drawing, draw

if TYPE_CHECKING:
    from osscar_opt.bench.report.evaluation import Evaluation

__all__ = ["page", "write_page"]

_LIGHT = {
    "paper": "#ffffff",
    "ink": INK,
    "muted": MUTED,
    "rule": RULE,
    "edge": "#c3cad2",
    "hover": "#f2f5f8",
    "field": "#ffffff",
    "accent": "#0b5cb8",
    "good": "#0a6b4c",
    "bad": "#b3261e",
    "warn": "#8a5a00",
    "surface": "#ffffff",
}
_DARK = {
    "paper": "#12161b",
    "ink": "#e8ecf1",
    "muted": "#9aa5b1",
    "rule": "#29313a",
    "edge": "#414c58",
    "hover": "#1b2129",
    "field": "#1b2129",
    "accent": "#7db4ff",
    "good": "#5fd3a6",
    "bad": "#ff8a80",
    "warn": "#f0bd62",
    "surface": "#12161b",
}


def page(
    evaluation: Evaluation,
    *,
    title: str = "Benchmark report",
    source: str = "",
    made: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Make the page.

    Parameters
    ----------
    evaluation : Evaluation
    title : str
    source : str
        Name of the store, for the line under the title.
    made : datetime, optional
        Now by default.
    progress : callable, optional
        Called with figures drawn and figures in all.

    Returns
    -------
    str
        HTML in which everything that comes from the runs is escaped, and which forbids the browser to load anything.

    Raises
    ------
    UnavailableError
        If matplotlib is not installed.

    Examples
    --------
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> text = page(evaluate([]), title="<script>alert(1)</script>")
    >>> "<script>alert" in text, "&lt;script&gt;alert" in text
    (False, True)
    """
    from osscar_opt import __version__

    styles = method_styles(evaluation.labels)
    script = _asset("page.js")
    drawings = []
    for done, drawing in enumerate(draw(evaluation, styles)):
        if progress is not None:
            progress(done, COUNT)
        drawings.append(_figure(drawing))
    moment = (made or datetime.now(UTC)).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
    parts = {
        "title": escape(title),
        "subtitle": escape(" · ".join(part for part in (source, moment, _parts.machine(evaluation)) if part)),
        "facts": _parts.facts(evaluation),
        "chips": _parts.chips(evaluation, styles),
        "findings": _parts.findings_list(evaluation, styles),
        "summary": _parts.summary_table(evaluation, styles),
        "summary_note": _parts.text(_parts.SUMMARY_NOTE),
        "figures": "\n".join(drawings) or '<p class="note">There is nothing to draw.</p>',
        "failures": _parts.failures(evaluation),
        "environment": _parts.environment(evaluation),
        "definitions": _parts.definitions(evaluation),
        "footer": escape(
            f"Made by osscar_opt {__version__} on {moment}. This page is one file and loads nothing."
        ),
    }
    return Template(_asset("page.html")).substitute(
        parts,
        version=escape(__version__),
        script_hash=_digest(script),
        script=script,
        style=_asset("page.css"),
        palette=_palette(),
        data=_embedded(_rows.data(evaluation, styles)),
    )


def write_page(evaluation: Evaluation, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write the page to a file; what was there is replaced only when the new one is complete.

    Parameters
    ----------
    evaluation : Evaluation
    path : path
    **options
        As for `page`.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.bench.report.evaluation import evaluate
    >>> write_page(evaluate([]), Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    from osscar_opt.instances.container import replacing

    text = page(evaluation, **options)
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(path)


def _asset(name: str) -> str:
    return resources.files("osscar_opt.bench.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Hash by which the page's own script, and no other, may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embedded(document: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _palette() -> str:
    """Colours as custom properties, for light and dark, chosen by the system or by the page's button."""

    def block(colors: Mapping[str, str], series: tuple[str, ...], scheme: str) -> str:
        entries = [f"--{name}:{value}" for name, value in colors.items()]
        entries += [f"--c{slot}:{value}" for slot, value in enumerate(series)]
        return f"{{color-scheme:{scheme};{';'.join(entries)}}}"

    light, dark = block(_LIGHT, PALETTE, "light"), block(_DARK, DARK_PALETTE, "dark")
    return (
        f":root{light}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){dark}}}\n"
        f"@media screen{{:root[data-theme=dark]{dark}}}"
    )


def _figure(drawing: Drawing) -> str:
    return (
        f'<figure id="figure-{drawing.name}"><h3>{escape(drawing.title)}</h3>\n'
        f"{inline_svg(drawing)}\n<figcaption>{_parts.text(drawing.caption)}</figcaption></figure>"
    )


def inline_svg(drawing: Drawing) -> str:
    """Turn a figure into SVG for a page: colours of the page's theme, names that are unique in it, series marked.

    Examples
    --------
    >>> from osscar_opt.bench.report._style import canvas, look
    >>> with look():
    ...     figure, axis = canvas()
    >>> inline_svg(Drawing("empty", "Nothing", "", figure))[:40]
    '<svg role="img" aria-label="Nothing" vie'
    """
    from osscar_opt.bench.report._style import look

    buffer = io.StringIO()
    with look():
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    head = f'<svg role="img" aria-label="{escape(drawing.title)}" viewBox="{box.group(1) if box else ""}">'
    text = re.sub(r"<svg[^>]*>", head, text, count=1)
    text = re.sub(r' id="series-(\d+)"', r' data-series="\1"', text)
    for pattern in (r'id="', r'href="#', r"url\(#"):
        text = re.sub(pattern, lambda match: f"{match.group(0)}{drawing.name}-", text)
    for color, name in _themed().items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _themed() -> dict[str, str]:
    series = {color: f"c{slot}" for slot, color in enumerate(PALETTE)}
    return series | {INK: "ink", MUTED: "muted", RULE: "rule", SURFACE: "surface"}
