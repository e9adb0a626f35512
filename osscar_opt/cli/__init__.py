"""The command ``osscar-opt``: thin functions around the library, one module per group of commands.

Standard output holds the result and nothing else: tables for people, or with ``--json`` exactly one JSON document.
Progress, warnings and errors go to standard error.  Exit status: 0 done; 1 the run failed; 2 bad input or a wrong
call; 130 interrupted (`solve` then still prints and writes the best solution it has).
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from osscar_opt.cli import (
    bench,
    bounds,
    comparing,
    files,
    graphs,
    instances,
    models,
    pruning,
    reporting,
    solving,
)
from osscar_opt.cli._console import GuardedGroup, print_version

__all__ = ["app", "main"]

app = typer.Typer(
    cls=GuardedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 the run failed, 2 bad input, 130 interrupted.",
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Structured pruning of network layers, as an optimisation problem."""


app.command()(solving.solve)
app.command()(solving.path)
app.command()(bounds.bound)
app.command()(comparing.compare)
app.command()(solving.verify)
app.command()(solving.solvers)
app.command()(files.info)
app.add_typer(instances.app, name="instances")
bench.bench.command()(reporting.report)
bench.bench.command("export-benchopt")(reporting.export_benchopt)
app.add_typer(bench.bench, name="bench")
app.command()(models.extract)
app.command()(graphs.graph)
app.command()(pruning.prune)
app.command()(models.demo)


def main() -> None:
    """Run the command line; the entry point of ``osscar-opt``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name in Chinese on a terminal in ASCII is no reason to fail
            stream.reconfigure(errors="replace")
    app(prog_name="osscar-opt")
