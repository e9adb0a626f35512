"""Commands that look at files."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osscar_opt.cli._console import grid, patience, print_json, stdout

if TYPE_CHECKING:
    from osscar_opt.instances import InstanceInfo, SolutionInfo


def info(
    file: Annotated[
        Path, typer.Argument(help="An instance, a solution or a certificate.", show_default=False)
    ],
    check: Annotated[bool, typer.Option("--check", help="Read everything, not the header alone.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is in a file."""
    from osscar_opt.instances import file_kind, instance_info, load, solution_info

    kind = file_kind(file)
    if kind == "solution":
        _show_solution(file, solution_info(file), json)
        return
    if kind == "certificate":
        _show_certificate(file, json)
        return
    found = instance_info(file)
    problem = None
    if check:
        with patience(f"Reading {file}"):
            problem = load(file)
    document = {"file": str(file), "kind": "instance", "bytes": file.stat().st_size, **asdict(found)}
    if problem is not None:
        document["checked"] = True
    if json:
        print_json(document)
        return
    console = stdout()
    console.print(grid(_instance_rows(file, found)))
    if problem is not None:
        console.print()
        console.print(problem.describe(), markup=False)


def _instance_rows(file: Path, found: InstanceInfo) -> list[tuple[str, object]]:
    limits: dict[str, object] = {"keep": found.keep, "budget": found.budget}
    limits |= {name: "yes" for name in ("block_keep", "always_keep", "always_remove") if name in found.arrays}
    rows: list[tuple[str, object]] = [
        ("name", found.name or "-"),
        ("file", f"{file}, {_size(file.stat().st_size)}, instance version {found.version}, {found.dtype}"),
        ("size", f"{found.p} rows by {found.q} columns, {found.n} groups"),
        ("limits", ", ".join(f"{k} = {v}" for k, v in limits.items() if v is not None) or "none"),
        ("arrays", ", ".join(sorted(found.arrays))),
    ]
    if found.keeps:
        rows.append(("keeps", ", ".join(map(str, found.keeps))))
    if found.hash:
        rows.append(("hash", found.hash))
    rows += [("provenance", "")] if found.provenance else []
    return rows + [(f"  {key}", value) for key, value in found.provenance.items()]


def _show_solution(file: Path, found: SolutionInfo, json: bool) -> None:
    document: dict[str, Any] = {"file": str(file), "kind": "solution", **asdict(found)}
    result = document["result"]
    if json:
        print_json(_finite(document))
        return
    rows = [
        ("file", f"{file}, {_size(file.stat().st_size)}, solution version {found.version}"),
        ("problem", f"{found.name or '-'}, {found.p} rows by {found.q} columns, {found.n} groups"),
        ("hash", found.problem_hash),
        ("keep", found.keep),
    ]
    names = ("method", "objective", "relative", "bound", "status", "termination", "message", "solve_time")
    known = {name: result[name] for name in names if result.get(name) not in ("", None, -math.inf)}
    rows += [(name, f"{value:.9g}" if isinstance(value, float) else value) for name, value in known.items()]
    stdout().print(grid(rows))


def _show_certificate(file: Path, json: bool) -> None:
    from osscar_opt.certificates import Certificate

    found = Certificate.load(file)
    posed = found.posed
    facts: dict[str, Any] = {
        "name": posed.name,
        "rows": len(posed.group_of_row),
        "groups": len(posed.always_keep),
        "hash": posed.hash,
        "embedded": posed.gram is not None,
        "nodes": len(found.proof.tree),
        "relaxations": len(found.proof.relaxed_at),
        "bound": found.bound,
        "value": found.value,
    }
    if json:
        print_json({"file": str(file), "kind": "certificate", **facts})
        return
    rows: list[tuple[str, object]] = [("file", f"{file}, {_size(file.stat().st_size)}, a certificate")]
    rows += [(name, "-" if fact in ("", None) else fact) for name, fact in facts.items()]
    rows.append(("checked", f"no; osscar-opt verify {file}"))
    stdout().print(grid(rows))


def _finite(value: Any) -> Any:
    """Replace numbers JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
