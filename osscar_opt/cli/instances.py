"""The catalogue of common instances and their records: osscar-opt instances ..."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osscar_opt.cli._console import (
    Threads,
    grid,
    print_json,
    progress_bar,
    say,
    stdout,
    table,
)

if TYPE_CHECKING:
    from osscar_opt.instances.ledger import Best
    from osscar_opt.instances.listing import Catalogue, Entry

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Patterns = Annotated[
    list[str] | None,
    typer.Argument(help="Names, with * if need be, or real, generated, shipped, recipe, or a family."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Records = Annotated[
    Path | None, typer.Option("--records", help="Folder of the records; your own by default.")
]
TimeLimit = Annotated[float, typer.Option(help="Seconds for a pair of instance and keep.")]


@app.callback()
def _root() -> None:
    """Common instances, their best known values, and the proofs of these."""


@app.command("list")
def list_(patterns: Patterns = None, json: Json = False) -> None:
    """List the instances, with what is known of each."""
    from osscar_opt.instances.ledger import best_known

    known, chosen = best_known(), _select(patterns)
    if json:
        print_json([_document(entry, known) for entry in chosen])
        return
    columns = [("instance", "left"), ("n", "right"), ("p", "right"), ("q", "right")]
    made = table("", [*columns, ("keep", "left"), ("gap", "left")])
    for entry in chosen:
        sizes = (str(entry.features.get(size, "")) for size in ("n", "p", "q"))
        gaps = ", ".join(_gap(known.get((entry.hash, keep))) for keep in entry.pairs)
        made.add_row(entry.name, *sizes, _keeps(entry), gaps)
    stdout().print(made)
    pairs = [known.get((entry.hash, keep)) for entry in chosen for keep in entry.pairs]
    proved = sum(best is not None and best.proved for best in pairs)
    typer.echo(f"{len(chosen)} instances, {len(pairs)} pairs of instance and keep, {proved} proved optimal.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An instance.", show_default=False)], json: Json = False
) -> None:
    """Show one instance: where it comes from, its features, its records."""
    from osscar_opt.instances.ledger import best_known, records
    from osscar_opt.instances.listing import catalogue

    entry, known = catalogue()[name], best_known()
    history = [record for record in records() if record.hash == entry.hash]
    if json:
        print_json(_document(entry, known) | {"records": [record.to_dict() for record in history]})
        return
    rows: list[tuple[str, object]] = [
        ("instance", entry.name),
        ("source", entry.source),
        ("file", entry.path if entry.path.exists() else f"not here; osscar-opt instances build {name}"),
        ("hash", entry.hash or "-"),
        ("keeps", _keeps(entry)),
        *((key.replace("_", " "), _plain(value)) for key, value in entry.features.items()),
    ]
    stdout().print(grid(rows))
    columns = [("keep", "right"), ("value", "right"), ("bound", "right"), ("gap", "right"), ("proof", "left")]
    made = table("", [*columns, ("by", "left")])
    for record in history:
        bound = "-" if record.bound is None else f"{record.bound:.9g}"
        gap = "0" if record.proved else _percent(record.gap)
        who = ", ".join(filter(None, (record.method, record.by, record.date)))
        keep = "-" if record.keep is None else str(record.keep)
        made.add_row(keep, f"{record.value:.9g}", bound, gap, record.proof, who)
    stdout().print(made)


@app.command()
def get(
    patterns: Annotated[list[str], typer.Argument(help="Instances, or patterns.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write them to.")] = Path(),
    json: Json = False,
) -> None:
    """Write instances to files of a folder, checked."""
    import shutil

    from osscar_opt.instances.container import replacing

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for entry in _select(patterns):
        entry.load()
        target = out / entry.path.name
        with replacing(target) as aside:
            shutil.copyfile(entry.path, aside)
        written.append(target)
    if json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            typer.echo(path)


@app.command()
def verify(
    patterns: Patterns = None,
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="Prove again where the certificate was not kept.")
    ] = False,
    time_limit: TimeLimit = 600.0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Recompute every recorded value, and check every proof at hand."""
    from osscar_opt.instances.verification import verify as checks_of

    found = []
    with progress_bar("Verifying") as progress:
        for entry in _counted(_select(patterns), progress):
            for check in checks_of(entry, regenerate=regenerate, time_limit=time_limit):
                found.append(check)
                if not json:
                    keep = "" if check.keep is None else f" at keep {check.keep}"
                    typer.echo(f"{check.state:8s} {check.instance}{keep}: {check.sentence}")
    counts = {
        state: sum(check.state == state for check in found)
        for state in ("proved", "bounded", "value", "missing", "wrong")
    }
    if json:
        print_json({"counts": counts, "checks": [vars(check) for check in found]})
    else:
        typer.echo(", ".join(f"{count} {state}" for state, count in counts.items() if count) + ".")
    if not all(check.holds for check in found):
        say(f"{counts['wrong']} of {len(found)} checks failed.")
        raise typer.Exit(1)


@app.command()
def build(
    patterns: Annotated[list[str], typer.Argument(help="Instances, or patterns.", show_default=False)],
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Make instances again from their models or seeds: recipes are kept, shipped ones compared with their files."""
    from osscar_opt.instances import recipes

    documents = []
    for entry in _select(patterns):
        with progress_bar(f"Building {entry.name}") as progress:
            problem = recipes.build(entry, progress)
        if entry.shipped:
            comparison = recipes.compare(entry, problem)
            outcome: str = comparison.outcome
            sentence = comparison.sentence
        else:
            recipes.keep_built(entry, problem)
            outcome, sentence = "built", f"built: {entry.path}"
        documents.append({"instance": entry.name, "outcome": outcome, "sentence": sentence})
        if not json:
            typer.echo(f"{entry.name}: {sentence}")
    if json:
        print_json(documents)
    if any(document["outcome"] == "different" for document in documents):
        raise typer.Exit(1)


@app.command()
def submit(
    solution: Annotated[Path, typer.Argument(help="A solution file of an instance.", show_default=False)],
    by: Annotated[str, typer.Option(help="Who found it.")] = "",
    folder: Records = None,
    json: Json = False,
) -> None:
    """Record a solution, if it holds and improves a value or a bound."""
    from osscar_opt.instances.submissions import submit_file

    outcome = submit_file(solution, by=by, folder=folder)
    if json:
        record = None if outcome.record is None else outcome.record.to_dict()
        print_json({"accepted": outcome.accepted, "sentence": outcome.sentence, "record": record})
    else:
        typer.echo(outcome.sentence)


@app.command()
def prove(
    patterns: Annotated[list[str], typer.Argument(help="Instances, or patterns.", show_default=False)],
    keep: Annotated[int | None, typer.Option(help="This keep alone.")] = None,
    time_limit: TimeLimit = 60.0,
    by: Annotated[str, typer.Option(help="Who.")] = "",
    folder: Records = None,
    again: Annotated[bool, typer.Option("--again", help="Also pairs that are proved already.")] = False,
    largest: Annotated[
        int, typer.Option(help="KiB of a certificate that is kept; of a larger one only its sum is.")
    ] = 65536,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Solve open pairs as well as the time allows, and record what is an improvement."""
    from osscar_opt.instances.ledger import best_known, records_folders
    from osscar_opt.instances.submissions import prove as proved
    from osscar_opt.instances.submissions import submit as submitted

    folders = (*records_folders(), *(() if folder is None else (folder,)))
    known = best_known(dict.fromkeys(folders))
    chosen = _select(patterns)
    for entry in chosen:
        if not entry.path.exists():
            say(f"{entry.name} is left out: osscar-opt instances build {entry.name} makes it.")
    tasks = [
        (entry, k)
        for entry in chosen
        if entry.path.exists()
        for k in entry.pairs
        if keep in (None, k) and (again or not _is_proved(known.get((entry.hash, k))))
    ]
    documents = []
    with progress_bar("Proving") as progress:
        for entry, k in _counted(tasks, progress):
            found = proved(entry, k, time_limit=time_limit, progress=False)
            outcome = submitted(found, entry, by=by, folder=folder, largest=1024 * largest)
            documents.append({"accepted": outcome.accepted, "sentence": outcome.sentence})
            if not json:
                typer.echo(outcome.sentence)
    if json:
        print_json(documents)


def _select(patterns: list[str] | None) -> Catalogue:
    from osscar_opt.instances.listing import catalogue

    return catalogue().select(patterns) if patterns else catalogue()


def _counted(items: Any, progress: Any) -> Iterator[Any]:
    for done, item in enumerate(items):
        progress(done, len(items))
        yield item


def _is_proved(best: Best | None) -> bool:
    return best is not None and best.proved


def _document(entry: Entry, known: dict[tuple[str, int | None], Best]) -> dict[str, Any]:
    best = [(keep, known.get((entry.hash, keep))) for keep in entry.pairs]
    return entry.to_json() | {
        "path": str(entry.path) if entry.path.exists() else None,
        "best": [
            {
                "keep": keep,
                "value": None if found is None else found.value,
                "kept": None if found is None else list(found.kept),
                "bound": None if found is None or found.bound == -math.inf else found.bound,
                "status": "proved" if found is not None and found.proved else "open",
                "gap": None if found is None or math.isinf(found.gap) else found.gap,
            }
            for keep, found in best
        ],
    }


def _keeps(entry: Entry) -> str:
    return ", ".join(map(str, entry.keeps)) or "its own limits"


def _gap(best: Best | None) -> str:
    if best is None:
        return "-"
    return "0" if best.proved else _percent(best.gap)


def _percent(gap: float) -> str:
    return "no bound" if math.isinf(gap) else f"{gap:.2%}"


def _plain(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
