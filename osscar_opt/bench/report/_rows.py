"""What the script of the report's page makes tables of: columns, and rows of plain numbers and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from osscar_opt.bench.report._style import Style

if TYPE_CHECKING:
    from osscar_opt.bench.report.evaluation import Evaluation, Scored

Styles = Mapping[str, Style]


def data(evaluation: Evaluation, styles: Styles) -> dict[str, Any]:
    """What the page's script makes tables of."""
    methods = [
        {"label": label, "slot": styles[label].slot, "dash": styles[label].dash}
        for label in evaluation.labels
    ]
    return {"methods": methods, "pairs": _pairs(evaluation), "runs": _runs(evaluation, styles)}


def _pairs(evaluation: Evaluation) -> dict[str, Any]:
    columns = [
        _column("instance", "Instance", "text", head=True),
        _column("family", "Family", "text", filter=True),
        _column("n", "n", "int", title="Groups"),
        _column("p", "p", "int", title="Rows"),
        _column("keep", "Keep", "int"),
        _column("best", "Best known", "real"),
        _column("status", "Status", "tag", filter=True),
        _column("left", "Open gap", "gap", title="Between the best known value and the best certified bound"),
    ]
    columns += [
        _column(f"gap-{index}", label, "gap", series=index, heat=True)
        for index, label in enumerate(evaluation.labels)
    ]
    family = {scored.pair: scored.family for scored in evaluation.scored}
    rows = []
    for pair, run in evaluation.pairs.items():
        known = evaluation.references.get(pair)
        gaps = [
            None if cell is None else _finite(cell.gap)
            for cell in (evaluation.cells.get((label, pair)) for label in evaluation.labels)
        ]
        status = "no value" if known is None else "proved" if known.proved else "open"
        numbers = [None, None] if known is None else [_finite(known.value), _finite(known.gap)]
        rows.append(
            [run.instance, family[pair], run.n, run.p, run.keep, numbers[0], status, numbers[1], *gaps]
        )
    return {"columns": columns, "rows": rows}


def _runs(evaluation: Evaluation, styles: Styles) -> dict[str, Any]:
    columns = [
        _column("instance", "Instance", "text", head=True),
        _column("family", "Family", "text", filter=True),
        _column("n", "n", "int", title="Groups"),
        _column("p", "p", "int", title="Rows"),
        _column("keep", "Keep", "int"),
        _column("method", "Method", "method", filter=True),
        _column("seed", "Seed", "int"),
        _column("outcome", "Outcome", "tag", filter=True),
        _column("gap", "Gap", "gap", title="To the best known value"),
        _column("objective", "Objective", "real"),
        _column("time", "Time", "time"),
        _column("target", "To best known", "time", title="Time until the best known value was held"),
        _column("integral", "Primal integral", "time"),
        _column("bound", "Bound", "tag", title="Whether the run brought a lower bound", filter=True),
        _column("memory", "MiB", "int", title="Peak memory"),
        _column("ended", "Ended", "text", filter=True),
        _column("reason", "Reason", "text", wide=True),
    ]
    return {"columns": columns, "rows": [_run_row(scored, styles) for scored in evaluation.scored]}


def _run_row(scored: Scored, styles: Styles) -> list[Any]:
    run = scored.run
    return [
        run.instance,
        scored.family,
        run.n,
        run.p,
        run.keep,
        styles[run.label].index,
        run.seed,
        run.outcome,
        _finite(scored.gap, 9),
        _finite(run.objective, 12),
        _finite(run.wall, 4),
        _finite(scored.target, 4),
        _finite(scored.integral, 4),
        run.bound_kind,
        run.peak_memory,
        run.termination.replace("_", " "),
        run.reason or None,
    ]


def _column(key: str, label: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "label": label, "kind": kind, **more}


def _finite(value: float | None, digits: int = 12) -> float | None:
    """A number with so many significant digits; None for what JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
