"""The command that bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osscar_opt.cli._console import patience, print_json, require_writable, stdout
from osscar_opt.cli.solving import File, Json, Keep, read_instance

__all__ = ["bound"]


def bound(
    file: File,
    keep: Keep = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the bound; its check comes on top.")] = 20.0,
    certificate: Annotated[Path | None, typer.Option(help="Write the proof here.")] = None,
    json: Json = False,
) -> None:
    """Bound the value of every choice from below, with a proof; for layers too large to be solved exactly."""
    require_writable(certificate)
    problem = read_instance(file)
    if keep is not None:
        problem = problem.with_keep(keep)
    with patience(f"bounding, for {time_limit:g} s at most"):
        found = problem.lower_bound(time_limit)
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
