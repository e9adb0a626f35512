"""Solution files: a support, its weights and how they were found, sealed like an instance.

``docs/instance-format.md`` is the definition.  A solution belongs to a problem and is read back together with
it: the hash in the file says which one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray
from osscar_opt.certificates import Certificate
from osscar_opt.errors import FormatError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import BoundKind, Solution, Status, Termination, TraceEntry
from osscar_opt.instances.format import checked_sizes, load
from osscar_opt.instances.sealed import SealedFile, write_file

__all__ = ["SolutionInfo", "load_solution", "save_solution", "solution_info"]

KIND = "osscar-opt/solution"
VERSION = "1.1"
_WITHOUT_CERTIFICATE = "1.0"

_NUMBERS = ("objective", "bound", "setup_time", "solve_time")
_TEXTS = ("method", "message")
_MAPPINGS = ("stats", "options", "versions")
_ENUMS = {"status": Status, "termination": Termination, "bound_kind": BoundKind}
_DERIVED = ("relative", "gap", "seed")
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class SolutionInfo:
    """What the header of a solution file says, read without the arrays and without the problem.

    Attributes
    ----------
    name : str
        Name of the problem.
    version : str
    problem_hash : str
    p, q, n : int
        Rows, columns, groups of the problem.
    keep : int or None
        The limit it was solved under.
    result : dict
        Method, objective, bound, status, options, ...

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "solution.safetensors"
    >>> random_instance(3, "correlated", n=6, q=2).solve("magnitude", keep=2).save(path)
    >>> solution_info(path).keep
    2
    """

    name: str
    version: str
    problem_hash: str
    p: int
    q: int
    n: int
    keep: int | None
    result: dict[str, Any]


def save_solution(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Write a solution to a file, aside first and then into place.

    Parameters
    ----------
    solution : Solution
    path : path-like
        By custom it ends in ``.safetensors``.  A `Certificate` goes into it, without the arrays of the problem
        (`Certificate.save` writes a file that can be checked by itself); any other certificate if JSON can hold it.

    Raises
    ------
    OSError
        If the disk refuses; an old file is then untouched.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import load_solution, random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "solution.safetensors"
    >>> problem = random_instance(3, "correlated", n=6, q=2)
    >>> solution = problem.solve("magnitude_refit")
    >>> save_solution(solution, path)
    >>> load_solution(path, problem).objective == solution.objective
    True
    """
    problem = solution.problem
    rows = [(entry.time, entry.objective, entry.bound) for entry in solution.trace]
    trace = np.array(rows, dtype=np.float64).reshape(-1, 3)
    arrays: dict[str, AnyArray] = {
        "support": np.asarray(solution.support),
        "weights": np.asarray(solution.weights, dtype=np.float64),
        "trace": trace,
    }
    result = {
        name: _plain(getattr(solution, name)) for name in (*_TEXTS, *_NUMBERS, *_MAPPINGS, *_ENUMS, *_DERIVED)
    }
    version = _WITHOUT_CERTIFICATE
    if isinstance(solution.certificate, Certificate):
        raw = solution.certificate.to_bytes(embed=False)
        arrays["certificate"], version = np.frombuffer(raw, dtype=np.uint8), VERSION
        result["certificate"] = None
    else:
        result["certificate"] = _as_json(solution.certificate)
    posed = {
        "hash": solution.problem_hash,
        "name": problem.name,
        "sizes": {"rows": problem.p, "columns": problem.q, "groups": problem.n},
        "keep": problem.keep,
    }
    metadata = {"problem": json.dumps(posed), "result": json.dumps(result, allow_nan=False)}
    write_file(path, KIND, version, metadata, arrays)


def load_solution(path: str | os.PathLike[str], problem: Problem | str | os.PathLike[str]) -> Solution:
    """Read a solution back, together with the problem it solves.

    Nothing is recomputed; `Solution.verify` does that.

    Parameters
    ----------
    path : path-like
    problem : Problem or path-like
        The problem, or its instance file.  Its ``keep`` may differ from the one it was solved under, which is
        then restored.

    Returns
    -------
    Solution
        Its certificate, if any, is a `Certificate` or plain JSON data.

    Raises
    ------
    FormatError
        In one sentence: not a solution file, another version, damaged, forged, or of another problem.

    Examples
    --------
    >>> from osscar_opt.instances import random_instance
    >>> load_solution("no/such/file.safetensors", random_instance(0))
    Traceback (most recent call last):
    osscar_opt.errors.FormatError: no/such/file.safetensors: cannot be opened (No such file or directory).
    """
    with SealedFile(path, KIND, VERSION) as file:
        info = _info(file)
        support, weights = file.read("support"), file.read("weights")
        trace = file.read("trace", finite=False)
        raw = file.read("certificate").tobytes() if "certificate" in file.entries else None
        for name in set(file.entries) - {"support", "weights", "trace", "certificate"}:
            file.check(name)
    if not isinstance(problem, Problem):
        problem = load(problem)
    if problem.hash != info.problem_hash:
        raise FormatError(
            f"{os.fspath(path)}: the solution is for problem {info.problem_hash[:12]} {info.name!r}, "
            f"not for {problem.hash[:12]} {problem.name!r}."
        )
    if problem.keep != info.keep:
        problem = problem.with_keep(info.keep)
    fields = {name: value for name, value in info.result.items() if name not in _DERIVED}
    if raw is not None:
        fields["certificate"] = _embedded(os.fspath(path), raw, problem)
    return Solution(
        problem=problem,
        support=support,
        weights=weights,
        trace=tuple(TraceEntry(*row) for row in trace.tolist()),
        **{name: fields[name] for name in (*_TEXTS, *_NUMBERS, *_MAPPINGS, *_ENUMS, "certificate")},
    )


def solution_info(path: str | os.PathLike[str]) -> SolutionInfo:
    """Read what the header of a solution file says.

    Raises
    ------
    FormatError
        As `load_solution`, as far as the header can tell.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "solution.safetensors"
    >>> random_instance(3, "correlated", n=6, q=2).solve("magnitude").save(path)
    >>> info = solution_info(path)
    >>> info.name, info.keep, info.result["method"]
    ('correlated', 3, 'magnitude')
    """
    with SealedFile(path, KIND, VERSION) as file:
        return _info(file)


def _info(file: SealedFile) -> SolutionInfo:
    label, posed = file.label, file.json("problem")
    if not isinstance(posed, dict):
        raise FormatError(f"{label}: 'problem' is not a JSON object.")
    p, q, n = checked_sizes(label, posed.get("sizes"))
    if not (isinstance(posed.get("hash"), str) and isinstance(posed.get("name"), str)):
        raise FormatError(f"{label}: 'problem' does not hold a hash and a name.")
    keep = posed.get("keep")
    if not (keep is None or (type(keep) is int and 0 <= keep <= n)):
        raise FormatError(f"{label}: 'keep' is neither null nor a number from 0 to {n}.")
    _check_arrays(file, {"support": ("BOOL", (n,)), "weights": ("F64", (p, q)), "trace": ("F64", None)})
    result = _numbers(file.json("result"))
    _check_result(label, result)
    result |= {name: float(result[name]) for name in _NUMBERS}
    result |= {name: kind(result[name]) for name, kind in _ENUMS.items()}
    return SolutionInfo(posed["name"], file.metadata["version"], posed["hash"], p, q, n, keep, result)


def _check_arrays(file: SealedFile, wanted: Mapping[str, tuple[str, tuple[int, ...] | None]]) -> None:
    label, entries = file.label, file.entries
    for name, (dtype, shape) in wanted.items():
        if name not in entries:
            raise FormatError(f"{label}: the array {name!r} is missing.")
        found = entries[name]
        fits = found.shape == shape if shape is not None else found.shape[1:] == (3,)
        if found.dtype != dtype or not fits:
            raise FormatError(
                f"{label}: array {name!r} has type {found.dtype} and shape {list(found.shape)}."
            )
    named = {*wanted, "certificate"} if file.minor > 0 else set(wanted)
    unknown = [name for name in entries if name not in named and not name.startswith("x_")]
    if unknown and file.minor <= int(VERSION.partition(".")[2]):
        raise FormatError(
            f"{label}: the array {unknown[0]!r} is not part of version {file.metadata['version']}."
        )
    if file.minor > 0 and "certificate" in entries and entries["certificate"].dtype != "U8":
        raise FormatError(f"{label}: array 'certificate' has type {entries['certificate'].dtype}.")


def _check_result(label: str, result: object) -> None:
    if not isinstance(result, dict):
        raise FormatError(f"{label}: 'result' is not a JSON object.")
    for name in _NUMBERS:
        value = result.get(name)
        if type(value) not in (int, float) or (type(value) is int and abs(value) > 1 << 53):
            raise FormatError(f"{label}: {name!r} in 'result' is not a number.")
    kinds = (((*_TEXTS, *_ENUMS), str, "a text"), (_MAPPINGS, dict, "an object"))
    for names, kind, what in kinds:
        for name in names:
            if not isinstance(result.get(name), kind):
                raise FormatError(f"{label}: {name!r} in 'result' is not {what}.")
    for name, enum in _ENUMS.items():
        if result[name] not in list(enum):
            raise FormatError(f"{label}: {name} = {result[name]!r} is not one of {', '.join(enum)}.")
    result.setdefault("certificate", None)


def _embedded(label: str, raw: bytes, problem: Problem) -> Certificate:
    try:
        return Certificate.load(raw, problem)
    except FormatError as error:
        raise FormatError(f"{label}: its certificate is damaged: {error}") from error


def _as_json(certificate: object) -> Any:
    """What JSON can hold of a certificate of the solver's own, which outlives the process only so; else None."""
    try:
        return json.loads(json.dumps(certificate, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """Return JSON data; numbers JSON cannot hold as texts, objects it does not know by their repr."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return str(value)  # of an enum, the text alone
    return value if isinstance(value, int | float | None) else repr(value)


def _numbers(value: Any) -> Any:
    """Undo `_plain` where it replaced numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
