"""Commands that look at a benchmark's store, and the export to benchopt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osscar_opt.cli._console import print_json, progress_bar, require_writable, say, stdout, table

if TYPE_CHECKING:
    from osscar_opt.bench.report.evaluation import Evaluation
    from osscar_opt.bench.store import Run

__all__ = ["export_benchopt", "report"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def report(
    store: Annotated[Path, typer.Argument(help="A benchmark's store.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page; beside the store by default.", show_default=False),
    ] = None,
    instance: Annotated[
        list[str] | None,
        typer.Option(
            "--instance",
            "-i",
            help="Only these: a name, a pattern, real, generated, a family; repeatable.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Heuristics against certified optima",
    figures: Annotated[
        Path | None, typer.Option(help="Write the figures too, as SVG and PNG, to this folder.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the runs too, and the methods to NAME-methods.csv.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="The same as Parquet.")] = None,
    records: Annotated[
        bool, typer.Option(help="Measure against the catalogue's records, or against these runs alone.")
    ] = True,
    json: Json = False,
) -> None:
    """Make a report of a benchmark: one HTML page that needs no network, figures, tables."""
    from osscar_opt.bench.report.evaluation import evaluate
    from osscar_opt.bench.report.page import write_page
    from osscar_opt.bench.store import read_runs

    target = store.with_suffix(".html") if out is None else out
    for path in (target, csv, parquet):
        require_writable(path)
    known: Any = None
    if records:
        from osscar_opt.instances.ledger import best_known

        known = best_known()
    found = evaluate(_chosen(read_runs(store), instance), known, family=_families())
    written: dict[str, Any] = {"page": str(target)}
    with progress_bar("Drawing the report") as advance:
        write_page(found, target, title=title, source=store.name, progress=advance)
    if figures is not None:
        from osscar_opt.bench.report.figures import save_figures

        with progress_bar("Writing the figures"):
            written["figures"] = [str(path) for path in save_figures(found, figures)]
    if csv is not None or parquet is not None:
        from osscar_opt.bench.report.tables import write_csv, write_parquet

        for name, path, write in (("csv", csv, write_csv), ("parquet", parquet, write_parquet)):
            if path is not None:
                written[name] = [str(file) for file in write(found, path)]
    _tell(found, written, store, json)


def export_benchopt(
    folder: Annotated[Path, typer.Argument(help="Where to; must be empty or not exist.", show_default=False)],
    method: Annotated[
        list[str],
        typer.Option("--method", "-m", help="A method, with options: search:patience=3. Repeatable."),
    ],
    instance: Annotated[
        list[str],
        typer.Option("--instance", "-i", help="A file, or a name or pattern of the catalogue. Repeatable."),
    ],
    time_limit: Annotated[float, typer.Option(help="Seconds for each run.")] = 60.0,
    json: Json = False,
) -> None:
    """Write a benchmark as a folder that benchopt runs."""
    from osscar_opt.bench.report.benchopt import export

    files = export(folder, methods=method, instances=instance, time_limit=time_limit)
    if json:
        print_json({"folder": str(folder), "files": [str(path) for path in files]})
    else:
        typer.echo(f"{folder}: {len(files)} files. Run it: benchopt run {folder}")


def _chosen(runs: list[Run], patterns: list[str] | None) -> list[Run]:
    """Return the runs on instances that a pattern names, as the catalogue understands it, or by their own names."""
    from fnmatch import fnmatchcase

    from osscar_opt.errors import InputError
    from osscar_opt.instances import catalogue

    if not patterns:
        return runs
    entries = {entry.hash: entry for entry in catalogue() if entry.hash}

    def fits(run: Run, pattern: str) -> bool:
        entry = entries.get(run.hash)
        return fnmatchcase(run.instance, pattern) or (entry is not None and entry.matches(pattern))

    for pattern in patterns:
        if not any(fits(run, pattern) for run in runs):
            raise InputError(f"no run of the store is on an instance that fits {pattern!r}.")
    return [run for run in runs if any(fits(run, pattern) for pattern in patterns)]


def _families() -> Callable[[Run], str]:
    """The catalogue's families; instances it does not have go by their names."""
    from osscar_opt.bench.report.evaluation import family_in_name
    from osscar_opt.instances.listing import catalogue

    known = {entry.hash: entry.family for entry in catalogue() if entry.hash}
    return lambda run: known.get(run.hash) or family_in_name(run)


def _tell(found: Evaluation, written: dict[str, Any], store: Path, json: bool) -> None:
    from osscar_opt.bench.report.findings import findings
    from osscar_opt.bench.report.tables import method_rows

    conflicts = [reference.conflict for reference in found.references.values() if reference.conflict]
    if json:
        outcomes = {
            name: sum(run.outcome == name for run in found.runs) for name in ("ok", "refused", "failed")
        }
        proved = sum(reference.proved for reference in found.references.values())
        pairs = {"pairs": len(found.pairs), "proved": proved, "open": len(found.pairs) - proved}
        sentences = [finding.sentence for finding in findings(found)]
        rows = {
            "runs": outcomes,
            **pairs,
            "conflicts": conflicts,
            "findings": sentences,
            "methods": method_rows(found),
        }
        print_json({"store": str(store), "written": written, **rows})
        return
    _print_methods(found)
    for conflict in conflicts:
        say(conflict)
    for kind, paths in written.items():
        listed = (
            paths if isinstance(paths, str) else ", ".join(paths) if len(paths) < 4 else Path(paths[0]).parent
        )
        typer.echo(f"{kind}: {listed}")


def _print_methods(found: Evaluation) -> None:
    from osscar_opt.bench.report._style import seconds, times_best

    names = ["optima", "mean gap", "worst gap", "median time"]
    names += [name for name in ("refused", "failed") if any(getattr(row, name) for row in found.summaries)]
    made = table("", [("method", "left"), *((name, "right") for name in names)])
    for row in found.summaries:
        optima = f"{row.found}/{row.proved_pairs}" if row.proved_pairs else "-"
        gaps = [times_best(gap) for gap in (row.mean_gap, row.worst_gap)]
        time = seconds(row.median_time) if row.median_time == row.median_time else "-"
        made.add_row(row.label, optima, *gaps, time, *(str(getattr(row, name) or "") for name in names[4:]))
    stdout().print(made)
