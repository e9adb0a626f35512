"""Commands that solve, and that check what was solved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from osscar_opt.cli._console import (
    INTERRUPTED,
    Threads,
    grid,
    patience,
    print_json,
    require_writable,
    say,
    stdout,
    table,
)

if TYPE_CHECKING:
    from osscar_opt.formulations.path import Path as ErrorPath
    from osscar_opt.formulations.problem import Problem
    from osscar_opt.formulations.solution import Solution
    from osscar_opt.instances import Entry
    from osscar_opt.solvers.registry import SolverInfo, SolverTable

File = Annotated[
    Path,
    typer.Argument(
        help="An instance file, or a name that `osscar-opt instances list` shows.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Keep = Annotated[int | None, typer.Option(help="How many groups may stay; the file's own by default.")]
Sparsity = Annotated[float | None, typer.Option(help="Share of the groups that goes, in place of --keep.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; repeatable."),
]


def solve(
    file: File,
    method: Annotated[str, typer.Option("--method", "-m", help="See `osscar-opt solvers`.")] = "auto",
    keep: Keep = None,
    sparsity: Sparsity = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for the whole solve.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --option seed=...")] = None,
    option: Options = None,
    output: Annotated[Path | None, typer.Option(help="Write the solution, weights included, here.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Have the method prove its bound, and write the proof here.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Choose the groups to keep, and refit their weights.

    Ctrl-C ends the search; the best solution so far is printed and written all the same.
    """
    from osscar_opt.cli._options import parse_options

    require_writable(output)
    require_writable(certificate)
    asked = [] if certificate is None else ["certificate=yes"]
    options = parse_options(method, [*(option or ()), *asked], seed)
    problem = limited(read_instance(file), keep, sparsity)
    solution = problem.solve(method, time_limit=time_limit, **options)
    if output is not None:
        solution.save(output)
    proved = certificate is not None and _save_certificate(solution, certificate)
    if json:
        named = {"file": str(file), "output": None if output is None else str(output), "keep": problem.keep}
        proof = {} if certificate is None else {"certificate": str(certificate) if proved else None}
        print_json({**named, **proof, **solution.to_dict()})
    else:
        stdout().print(grid(_solution_rows(solution, output, certificate if proved else None)))
    if solution.termination == "interrupted":
        say("interrupted: this is the best solution found before.")
        raise typer.Exit(INTERRUPTED)
    if solution.termination == "failed" or solution.status in ("none", "infeasible"):
        say(solution.message or f"{method} found nothing.")
        raise typer.Exit(1)
    if certificate is not None and not proved:
        say(f"no certificate was written: {solution.message or 'the method ended without one.'}")
        raise typer.Exit(1)


def _save_certificate(solution: Solution, path: Path) -> bool:
    """Write the certificate if there is one that was checked."""
    from osscar_opt.certificates import Certificate

    if not isinstance(solution.certificate, Certificate) or solution.bound_kind != "certified":
        return False
    solution.certificate.save(path)
    return True


def path(
    file: File,
    method: Annotated[
        str, typer.Option("--method", "-m", help="A method that removes groups in an order.")
    ] = "greedy",
    keep: Annotated[int, typer.Option(help="Stop when so many groups are left.")] = 0,
    option: Options = None,
    rows: Annotated[int, typer.Option(min=2, help="How many rows to print, spread over all keeps.")] = 21,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Show the error for every number of groups kept, or down to --keep of them, from one run."""
    from osscar_opt.cli._options import parse_options

    options = parse_options(method, option or ())
    found = read_instance(file).path(method, keep=keep, **options)
    if json:
        print_json(
            {
                "file": str(file),
                "method": found.method,
                "options": options,
                "constant": found.problem.constant,
                "keeps": found.keeps.tolist(),
                "objectives": found.objectives.tolist(),
                "order": found.order.tolist(),
                "problem_hash": found.problem.hash,
            }
        )
    else:
        _print_path(found, rows)


def verify(
    file: Annotated[Path, typer.Argument(help="A certificate, or an instance.", show_default=False)],
    other: Annotated[
        Path | None, typer.Argument(help="The instance, or a solution of it.", show_default=False)
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check a certificate, or recompute everything a solution file says about its instance.

    A certificate is enough by itself, unless it was written without its problem; with an instance it is also checked
    that it is about that one.
    """
    from osscar_opt.errors import InputError
    from osscar_opt.instances import file_kind

    given = {
        "instance" if _named(path) else file_kind(path): path for path in (file, other) if path is not None
    }
    count = 1 + (other is not None)
    if "certificate" in given and given.keys() <= {"certificate", "instance"} and len(given) == count:
        _verify_certificate(given["certificate"], given.get("instance"), json)
    elif given.keys() == {"instance", "solution"}:
        _verify_solution(given["instance"], given["solution"], json)
    else:
        raise InputError(
            "verify takes a certificate, a certificate and its instance, or an instance and its solution."
        )


def _verify_certificate(path: Path, instance: Path | None, json: bool) -> None:
    from osscar_opt.certificates import check

    problem = None if instance is None else read_instance(instance)
    with patience(f"Checking {path}"):
        report = check(path, problem)
    if json:
        named = {"certificate": str(path), "file": None if instance is None else str(instance)}
        print_json({**named, "holds": report.valid, **report.to_dict()})
    elif report.valid:
        typer.echo(f"{path} {report}")
    if not report.valid:
        for reason in report.reasons:
            say(f"{path} does not hold: {reason}")
        raise typer.Exit(1)


def _verify_solution(file: Path, solution: Path, json: bool) -> None:
    from osscar_opt.instances import load_solution

    found = load_solution(solution, read_instance(file))
    with patience(f"Checking {solution}"):
        found.verify()
    if json:
        print_json({"file": str(file), "solution": str(solution), "holds": True, **found.to_dict()})
    else:
        typer.echo(f"{solution} holds: {found!r}")


def solvers(
    method: Annotated[str | None, typer.Argument(help="Show this one with its options.")] = None,
    json: Json = False,
) -> None:
    """List the methods, or the options of one."""
    from osscar_opt.solvers.registry import solvers as listed

    known: SolverTable = listed()
    chosen = list(known) if method is None else [known[method]]
    if json:
        print_json([_solver_document(info) for info in chosen])
    elif method is None:
        _print_solvers(chosen)
    else:
        _print_solver(chosen[0])


def read_instance(file: Path) -> Problem:
    """Read an instance file, or the catalogue's instance of that name, and say so if that takes long."""
    from osscar_opt.instances import load

    with patience(f"Reading {file}"):
        named = _named(file)
        return load(file) if named is None else named.load()


def _named(file: Path) -> Entry | None:
    """Return the catalogue's instance of that name, unless there is such a file."""
    from osscar_opt.instances import catalogue

    return None if file.exists() else next((entry for entry in catalogue() if entry.name == str(file)), None)


def limited(problem: Problem, keep: int | None, sparsity: float | None) -> Problem:
    """Apply --keep or --sparsity to a problem."""
    from osscar_opt.errors import InputError
    from osscar_opt.formulations.moments import keep_at_sparsity

    if keep is not None and sparsity is not None:
        raise InputError("--keep and --sparsity say the same thing: give one of them.")
    if sparsity is not None:
        keep = keep_at_sparsity(sparsity, problem.n)
    return problem if keep is None else problem.with_keep(keep)


def _solution_rows(
    solution: Solution, output: Path | None, certificate: Path | None
) -> list[tuple[str, object]]:
    kept, n = len(solution.kept), solution.problem.n
    rows: list[tuple[str, object]] = [
        ("problem", solution.problem.name or "-"),
        ("method", solution.method + "".join(f" {k}={v}" for k, v in solution.options.items())),
        ("kept", f"{kept} of {n} groups"),
        ("objective", f"{solution.objective:.9g}"),
        ("relative", f"{solution.relative:.6g} of keeping nothing"),
    ]
    if solution.bound_kind != "none":
        rows.append(("bound", f"{solution.bound:.9g} ({solution.bound_kind}), gap {solution.gap:.3g}"))
    rows += [
        ("status", f"{solution.status}, {solution.termination}"),
        ("time", f"{solution.solve_time:.2f} s, and {solution.setup_time:.2f} s to set up"),
    ]
    if solution.message:
        rows.append(("note", solution.message))
    if output is not None:
        rows.append(("written to", output))
    if certificate is not None:
        rows.append(("certificate", certificate))
    return rows


def _print_path(found: ErrorPath, rows: int) -> None:
    """Print a table of evenly spread keeps."""
    n, constant, gone = found.problem.n, found.problem.constant, len(found.order)
    shown = sorted({n - round(i * gone / (rows - 1)) for i in range(rows)}, reverse=True)
    relative = [found.objective(keep) / constant if constant > 0 else 0.0 for keep in shown]
    columns = [("keep", "right"), ("kept", "right"), ("objective", "right"), ("relative", "right")]
    made = table(
        f"{found.problem.name or 'problem'}: {found.method}, {n} groups", [*columns, ("log scale", "left")]
    )
    for keep, value, bar in zip(shown, relative, _bars(relative), strict=True):
        made.add_row(
            str(keep), f"{keep / max(n, 1):.0%}", f"{found.objective(keep):.6g}", f"{value:.4g}", bar
        )
    stdout().print(made)


def _bars(values: list[float], width: int = 30) -> list[str]:
    """Draw positive values as bars on a logarithmic scale, from one character for the smallest to the full width."""
    mark = "█" if stdout().encoding.lower().startswith("utf") else "#"
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    finite = [log for log in logs if log > -math.inf]
    low, span = min(finite, default=0.0), (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
    return ["" if log == -math.inf else mark * (1 + round((width - 1) * (log - low) / span)) for log in logs]


def _solver_document(info: SolverInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "summary": info.summary,
        "proves": info.proves,
        "handles": sorted(info.handles),
        "available": info.available,
        "why_not": info.why_not,
        "source": info.source,
        "options": [{"name": o.name, "type": o.type, "default": _plain(o.default)} for o in info.options],
    }


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _print_solvers(infos: list[SolverInfo]) -> None:
    made = table("", [("method", "left"), ("proves", "left"), ("what it is", "left")])
    for info in infos:
        summary = info.summary if info.available else f"not available: {info.why_not}"
        missing = {"budget", "blocks", "unequal_groups"} - info.handles if info.available else set()
        notes = f" Not for: {', '.join(sorted(missing))}." if missing else ""
        made.add_row(info.name, "yes" if info.proves else "", summary + notes)
    stdout().print(made)
    typer.echo("One method with its options: osscar-opt solvers METHOD")


def _print_solver(info: SolverInfo) -> None:
    console = stdout()
    rows: list[tuple[str, object]] = [
        ("method", info.name),
        ("what it is", info.summary),
        ("proves", "yes" if info.proves else "no"),
        ("handles", ", ".join(["keep", *sorted(info.handles)])),
        ("available", "yes" if info.available else info.why_not),
        ("source", info.source),
    ]
    console.print(grid(rows))
    if info.options:
        made = table("", [("option", "left"), ("type", "left"), ("default", "left")])
        for option in info.options:
            made.add_row(option.name, option.type, repr(option.default))
        console.print(made)
