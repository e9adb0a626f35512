"""Commands of the benchmark: osscar-opt bench ..."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osscar_opt.cli._console import GuardedGroup, print_json, say, stdout, table

if TYPE_CHECKING:
    from osscar_opt.bench.runner import Summary
    from osscar_opt.bench.store import Run

__all__ = ["bench", "resume", "run", "status"]

bench = typer.Typer(cls=GuardedGroup, no_args_is_help=True, help="Compare methods on common instances.")

Store = Annotated[Path, typer.Argument(help="The store, an SQLite file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Runs at a time.")]
Backend = Annotated[str, typer.Option(help="Where they are made: threading, loky, dask or ray.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of the dask scheduler, for --backend dask.", show_default=False)
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Make those again that failed.")]


@bench.command()
def run(
    store: Store,
    method: Annotated[
        list[str],
        typer.Option("--method", "-m", metavar="NAME[:OPTION=VALUE,...]", help="A method; repeatable."),
    ],
    instance: Annotated[
        list[str],
        typer.Option(
            "--instance",
            "-i",
            help="A file, or names in the catalogue: a name, a pattern, real, generated, a family; repeatable.",
        ),
    ],
    keep: Annotated[
        list[float] | None,
        typer.Option(
            "--keep",
            "-k",
            help="Groups to keep, or a share below 1; repeatable; the instances' own by default.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="For methods with a seed, comma between them.")] = "0",
    time_limit: Annotated[float, typer.Option(help="Seconds for a run.")] = 60.0,
    memory: Annotated[int, typer.Option(help="MiB for a run.")] = 2048,
    threads: Annotated[int, typer.Option(help="Threads for the linear algebra of a run.")] = 1,
    jobs: Jobs = 1,
    backend: Backend = "threading",
    scheduler: Scheduler = None,
    retry_failed: Retry = False,
    json: Json = False,
) -> None:
    """Run methods on instances and store every run.

    Runs that the store has are not made again: after Ctrl-C, or a kill, the same command goes on where it was.
    """
    from osscar_opt.bench.runner import run as run_all

    with _cluster(backend, scheduler):
        summary = run_all(
            store,
            methods=method,
            instances=list(instance),
            keeps=None if keep is None else [int(k) if k == int(k) else k for k in keep],
            seeds=_seeds(seeds),
            time_limit=time_limit,
            memory_limit=memory,
            jobs=jobs,
            backend=backend,
            threads=threads,
            retry_failed=retry_failed,
        )
    _report(summary, json)


@bench.command()
def resume(
    store: Store,
    jobs: Jobs = 1,
    backend: Backend = "threading",
    scheduler: Scheduler = None,
    retry_failed: Retry = False,
    json: Json = False,
) -> None:
    """Make the runs that were planned and are not there yet."""
    from osscar_opt.bench.runner import resume as resume_all

    with _cluster(backend, scheduler):
        summary = resume_all(store, jobs=jobs, backend=backend, retry_failed=retry_failed)
    _report(summary, json)


@bench.command()
def status(store: Store, json: Json = False) -> None:
    """Count the runs of a store, and list those that failed."""
    from osscar_opt.bench.store import read_plan, read_runs

    runs, planned = read_runs(store), read_plan(store)
    left = len({task.key for task in planned} - {run.key for run in runs})
    if json:
        print_json(_status(store, runs, len(planned), left))
        return
    made = table("", [("method", "left"), ("ok", "right"), ("refused", "right"), ("failed", "right")])
    for label, counts in _counts(runs).items():
        made.add_row(label, *(str(counts[outcome] or "") for outcome in ("ok", "refused", "failed")))
    stdout().print(made)
    failures = [run for run in runs if run.outcome == "failed"]
    if failures:
        listed = table(
            "failed", [("method", "left"), ("instance", "left"), ("keep", "right"), ("reason", "left")]
        )
        for found in failures:
            keep = "" if found.keep is None else str(found.keep)
            listed.add_row(*map(_plain, (found.label, found.instance, keep, found.reason)))
        stdout().print(listed)
    typer.echo(f"{len(planned)} runs planned, {len(runs)} made" + (f", {left} to be made." if left else "."))


def _seeds(text: str) -> list[int]:
    from osscar_opt.errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r} must be whole numbers with commas between them: 0,1,2.") from None


def _plain(text: str) -> str:
    """A text in which rich finds no markup."""
    from rich.markup import escape

    return escape(text)


@contextlib.contextmanager
def _cluster(backend: str, address: str | None) -> Iterator[None]:
    """Be the client of a dask scheduler while a block runs; nothing without an address."""
    from osscar_opt.errors import InputError, UnavailableError

    if address is None:
        yield
        return
    if backend != "dask":
        raise InputError("--scheduler belongs to --backend dask.")
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise UnavailableError(
            "--backend dask needs distributed, which is not installed; run: pip install distributed."
        ) from error
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"no dask scheduler answers at {address}: {error}.") from error
    with client:
        yield


def _report(summary: Summary, json: bool) -> None:
    if json:
        print_json(dataclasses.asdict(summary))
    else:
        typer.echo(f"{summary}.")
    if summary.failed:
        say(
            f"{summary.failed} runs failed: osscar-opt bench status {summary.store} lists them with their reasons."
        )


def _counts(runs: list[Run]) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = {}
    for found in runs:
        counted.setdefault(found.label, Counter())[found.outcome] += 1
    return counted


def _status(store: Path, runs: list[Run], planned: int, left: int) -> dict[str, object]:
    failures = [
        {
            "key": run.key,
            "method": run.label,
            "instance": run.instance,
            "keep": run.keep,
            "reason": run.reason,
        }
        for run in runs
        if run.outcome == "failed"
    ]
    methods = {label: dict(counts) for label, counts in _counts(runs).items()}
    return {
        "store": str(store),
        "planned": planned,
        "made": len(runs),
        "left": left,
        "methods": methods,
        "failures": failures,
    }
