"""The command that bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osscar_opt.cli._console import INTERRUPTED, Threads, patience, print_json, require_writable, say, stdout
from osscar_opt.cli.solving import File, Json, Keep, read_instance

if TYPE_CHECKING:
    from osscar_opt.formulations.lower_bound import LowerBound
    from osscar_opt.formulations.problem import Problem

__all__ = ["bound"]


def bound(
    file: File,
    keep: Keep = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the bound; its check comes on top.")] = 20.0,
    certificate: Annotated[Path | None, typer.Option(help="Write the proof here.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Bound the value of every choice from below, with a proof; for layers too large to be solved exactly.

    Ctrl-C ends the search; the best bound so far is proved and printed all the same.
    """
    require_writable(certificate)
    problem = read_instance(file)
    if keep is not None:
        problem = problem.with_keep(keep)
    found = _bounded(problem, time_limit)
    with patience("Checking the proof"):
        proof = found.certificate()
    if certificate is not None:
        proof.save(certificate)
    if json:
        print_json(
            {
                "file": str(file),
                "bound": proof.bound,
                "base": problem.base,
                "constant": problem.constant,
                "seconds": found.seconds,
                "iterations": found.iterations,
                "termination": str(found.termination),
                "problem_hash": problem.hash,
            }
        )
    else:
        stdout().print(
            f"no choice is below {proof.bound:.8g} (keeping nothing: {problem.constant:.8g}; everything: "
            f"{problem.base:.8g}); checked, {found.seconds:.3g} s, {found.iterations} steps",
            highlight=False,
            soft_wrap=True,
        )
    if found.termination == "interrupted":
        say("interrupted: this is the best bound found before.")
        raise typer.Exit(INTERRUPTED)


def _bounded(problem: Problem, time_limit: float) -> LowerBound:
    """Find the bound, with a line on standard error if that is a terminal and it takes longer than two seconds."""
    from osscar_opt.solvers.base import Deadline, Report
    from osscar_opt.solvers.progress import Watcher

    seen, watcher = Report(), Watcher("bound", Deadline.after(time_limit))

    def look(seconds: float, value: float, steps: int) -> None:
        seen.bound(value)
        watcher.look(seen)

    try:
        return problem.lower_bound(time_limit, report=look)
    finally:
        watcher.close()
