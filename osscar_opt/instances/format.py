"""Instance files: a problem in one sealed safetensors file (``docs/instance-format.md`` is the definition).

The Gram matrix is stored as its upper triangle, packed row after row: beside the matrix itself, saving and
loading hold no more than that triangle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray, FloatArray
from osscar_opt.errors import FormatError, InputError
from osscar_opt.formulations.problem import Problem
from osscar_opt.instances.sealed import Entry, SealedFile, write_file

__all__ = ["InstanceInfo", "instance_info", "load", "save"]

KIND = "osscar-opt/instance"
VERSION = "1.1"
_WITHOUT_MEANS = "1.0"

# name -> (dtype codes, shape in terms of the sizes; "b" is free)
_ARRAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gram": (("F64", "F32"), ("triangle",)),
    "cross": (("F64", "F32"), ("p", "q")),
    "dense_weights": (("F64", "F32"), ("p", "q")),
    "group_of_row": (("I64",), ("p",)),
    "costs": (("F64",), ("n",)),
    "blocks": (("I64",), ("n",)),
    "block_keep": (("I64",), ("b",)),
    "always_keep": (("BOOL",), ("n",)),
    "always_remove": (("BOOL",), ("n",)),
}
_MEANS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # since version 1.1
    "input_mean": (("F64",), ("p",)),
    "target_mean": (("F64",), ("q",)),
}


@dataclass(frozen=True)
class InstanceInfo:
    """What the header of an instance file says, read without touching the arrays.

    Attributes
    ----------
    name : str
    version : str
    p, q, n : int
        Rows, columns, groups.
    keep : int or None
    keeps : tuple of int
        Other values of keep of interest.
    budget, constant, base : float or None
        Of constant and base, the objective with nothing kept and at the unconstrained optimum, one is stated.
    dtype : str
        "float64" or "float32", the precision of gram, cross and dense weights.
    arrays : dict of str to tuple of int
        Names and shapes.
    provenance : dict
    hash : str
        The problem's hash as its writer computed it, or "".

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> random_instance(3, "knapsack", n=4, q=3).save(path)
    >>> sorted(instance_info(path).arrays)
    ['costs', 'dense_weights', 'gram', 'group_of_row']
    """

    name: str
    version: str
    p: int
    q: int
    n: int
    keep: int | None
    keeps: tuple[int, ...]
    budget: float | None
    constant: float | None
    base: float | None
    dtype: str
    arrays: dict[str, tuple[int, ...]]
    provenance: dict[str, Any]
    hash: str


def save(
    problem: Problem, path: str | os.PathLike[str], *, dtype: str = "float64", keeps: Sequence[int] = ()
) -> None:
    """Write a problem to an instance file.

    The file is written aside and moved into place when complete; an old file survives any failure.

    Parameters
    ----------
    problem : Problem
    path : path-like
        By custom it ends in ``.safetensors``.
    dtype : {"float64", "float32"}
        Precision of gram, cross and dense weights.  float64 brings back the same problem bit for bit.
        float32 halves the file and rounds: what is read is a neighbouring problem with another hash.
    keeps : sequence of int
        Values of keep of interest, recorded for whoever solves the instance.

    Raises
    ------
    InputError
        If ``dtype`` or ``keeps`` is out of range, or float32 cannot hold the numbers, or rounding to it makes
        gram lose its definiteness.
    OSError
        If the disk refuses.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import load, random_instance, save
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> problem = random_instance(3, "correlated", n=4, q=2)
    >>> save(problem, path, keeps=[1, 2, 3])
    >>> load(path).hash == problem.hash
    True
    """
    if dtype not in ("float64", "float32"):
        raise InputError(f"dtype is 'float64' or 'float32', not {dtype!r}.")
    if any(type(k) is not int or not 0 <= k <= problem.n for k in keeps):
        raise InputError(f"keeps must be whole numbers from 0 to {problem.n}, the number of groups.")
    metadata = _metadata(problem, dtype, keeps)
    if dtype == "float32":
        _check_float32(problem)
    arrays: dict[str, AnyArray] = {"gram": _packed(problem.gram, dtype)}
    if problem.dense_weights is not None:
        arrays["dense_weights"] = problem.dense_weights.astype(dtype, copy=False)
    if not problem.dense_is_optimal:
        arrays["cross"] = problem.cross.astype(dtype, copy=False)
    arrays["group_of_row"] = problem.groups.group_of_row
    for name in ("costs", "blocks", "block_keep"):
        if (array := getattr(problem, name)) is not None:
            arrays[name] = array
    for name in ("always_keep", "always_remove"):
        if (mask := getattr(problem, name)).any():
            arrays[name] = mask
    arrays |= problem._means
    version = VERSION if problem._means else _WITHOUT_MEANS  # older readers need not doubt what they know
    write_file(path, KIND, version, metadata, arrays)


def load(path: str | os.PathLike[str]) -> Problem:
    """Read an instance file into a problem.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Problem
        With the limits, name and provenance of the file; always float64.

    Raises
    ------
    FormatError
        In one sentence: not an instance file, another version, cut short, damaged, forged, or of sizes that
        disagree.
    InputError
        If the file is sound but poses no problem, for example because gram is not positive definite.

    Examples
    --------
    >>> from osscar_opt.instances import load
    >>> load("no/such/file.safetensors")
    Traceback (most recent call last):
    osscar_opt.errors.FormatError: no/such/file.safetensors: cannot be opened (No such file or directory).
    """
    with SealedFile(path, KIND, VERSION) as file:
        info = _info(file)
        arrays: dict[str, AnyArray] = {}
        for name in file.entries:
            if name == "gram":
                arrays[name] = _unpacked(file, info.p)
            elif name in _ARRAYS or (name in _MEANS and file.minor > 0):
                arrays[name] = _widened(file.read(name))
            else:
                file.check(name)
    problem = Problem(
        arrays.pop("gram"),
        arrays.pop("cross", None),
        groups=arrays.pop("group_of_row"),
        keep=info.keep,
        budget=info.budget,
        constant=info.constant,
        name=info.name,
        provenance=info.provenance,
        copy=False,
        **arrays,
    )
    if info.base:  # the constructor only knows base = 0; presolved problems have others
        return Problem._trusted(**{**problem._state(), "_level": ("base", info.base)})
    return problem


def instance_info(path: str | os.PathLike[str]) -> InstanceInfo:
    """Read what the header of an instance file says; the arrays stay on disk, their sums unchecked.

    Raises
    ------
    FormatError
        As :func:`load`, as far as the header can tell.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> from osscar_opt.instances import random_instance
    >>> random_instance(3, "correlated", n=4, group_sizes=2, q=3).save(path)
    >>> info = instance_info(path)
    >>> info.name, info.p, info.q, info.n, info.keep
    ('correlated', 8, 3, 4, 2)
    """
    with SealedFile(path, KIND, VERSION) as file:
        return _info(file)


def _metadata(problem: Problem, dtype: str, keeps: Sequence[int]) -> dict[str, str]:
    """Metadata entries of an instance; floats as the shortest decimal that gives them back."""
    try:
        provenance = json.dumps(problem.provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the provenance cannot be written as JSON ({error}); use plain text and numbers."
        ) from error
    try:
        problem.name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the name {problem.name!r} is not Unicode text.") from error
    kind, level = problem._level
    metadata = {
        "sizes": json.dumps({"rows": problem.p, "columns": problem.q, "groups": problem.n}),
        "keep": json.dumps(problem.keep),
        "budget": json.dumps(problem.budget),
        "constant": json.dumps(level if kind == "constant" else None),
        "base": json.dumps(level if kind == "base" else None),
        "keeps": json.dumps(sorted(set(keeps))),
        "name": problem.name,
        "provenance": provenance,
    }
    if dtype == "float64":
        metadata["hash"] = problem.hash
    return metadata


def _packed(gram: FloatArray, dtype: str) -> AnyArray:
    """Return the upper triangle, row after row."""
    p, at = len(gram), 0
    packed = np.empty(p * (p + 1) // 2, dtype)
    for i in range(p):
        packed[at : at + p - i] = gram[i, i:]
        at += p - i
    return packed


def _unpacked(file: SealedFile, p: int) -> FloatArray:
    """Return the full symmetric matrix."""
    packed, at = file.read("gram"), 0
    try:
        gram = np.empty((p, p))
    except MemoryError as error:
        gib = 8 * p**2 / 2**30
        raise FormatError(
            f"{file.label}: a Gram matrix of {p} rows takes {gib:.1f} GiB, more memory than is free."
        ) from error
    for i in range(p):
        gram[i, i:] = gram[i:, i] = packed[at : at + p - i]
        at += p - i
    return gram


def _widened(array: AnyArray) -> AnyArray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _check_float32(problem: Problem) -> None:
    """Refuse to write a float32 file that could not be read back."""
    for name in ("gram", "cross", "dense_weights"):
        array = getattr(problem, name)
        if array is not None and array.size and max(array.max(), -array.min()) > np.finfo(np.float32).max:
            raise InputError(f"{name} holds values beyond float32; save with dtype='float64'.")
    try:
        Problem(
            problem.gram.astype(np.float32).astype(np.float64),
            problem.cross,
            groups=problem.groups,
            copy=False,
        )
    except InputError as error:
        raise InputError(
            f"rounded to float32 the problem is lost ({error}); save with dtype='float64'."
        ) from error


def _info(file: SealedFile) -> InstanceInfo:
    """Check all that the header declares against itself."""
    label = file.label
    p, q, n = checked_sizes(label, file.json("sizes"))
    _check_arrays(file, {"p": p, "q": q, "n": n, "triangle": p * (p + 1) // 2})
    keep, budget, constant, base = (file.json(key) for key in ("keep", "budget", "constant", "base"))
    keeps = file.json("keeps") if "keeps" in file.metadata else []
    provenance = file.json("provenance") if "provenance" in file.metadata else {}
    if not (keep is None or _natural(keep)):
        raise FormatError(f"{label}: 'keep' is neither a whole number nor null.")
    for key, value in (("budget", budget), ("constant", constant), ("base", base)):
        if value is not None and not _finite(value):
            raise FormatError(f"{label}: {key!r} is neither a number nor null.")
    if (constant is None) == (base is None):
        raise FormatError(f"{label}: not exactly one of 'constant' and 'base' is a number.")
    if budget is not None and "costs" not in file.entries:
        raise FormatError(f"{label}: there is a budget without the array 'costs'.")
    if not isinstance(keeps, list) or not all(map(_natural, keeps)):
        raise FormatError(f"{label}: 'keeps' is not a list of whole numbers.")
    if not isinstance(provenance, dict):
        raise FormatError(f"{label}: 'provenance' is not a JSON object.")
    return InstanceInfo(
        name=file.metadata.get("name", ""),
        version=file.metadata["version"],
        p=p,
        q=q,
        n=n,
        keep=keep,
        keeps=tuple(keeps),
        budget=None if budget is None else float(budget),
        constant=None if constant is None else float(constant),
        base=None if base is None else float(base),
        dtype={"F64": "float64", "F32": "float32"}[file.entries["gram"].dtype],
        arrays={name: entry.shape for name, entry in file.entries.items()},
        provenance=provenance,
        hash=file.metadata.get("hash", ""),
    )


def _check_arrays(file: SealedFile, sizes: dict[str, int]) -> None:
    """Every array that must be there is, none is unknown, and all have the type and shape they should."""
    label, entries = file.label, file.entries
    for name in ("gram", "group_of_row"):
        if name not in entries:
            raise FormatError(f"{label}: the array {name!r} is missing.")
    if "cross" not in entries and "dense_weights" not in entries:
        raise FormatError(
            f"{label}: there is neither 'cross' nor 'dense_weights', so there is nothing to fit."
        )
    if "block_keep" in entries and "blocks" not in entries:
        raise FormatError(f"{label}: the array 'block_keep' is there without 'blocks'.")
    known = _ARRAYS if file.minor == 0 else _ARRAYS | _MEANS
    for name, entry in entries.items():
        if name in known:
            _check_array(label, name, entry, known[name], sizes)
        elif not name.startswith("x_") and file.minor <= int(VERSION.partition(".")[2]):
            raise FormatError(
                f"{label}: the array {name!r} is not part of version {file.metadata['version']} (only x_... is free)."
            )
    if file.minor > 0 and ("input_mean" in entries) != ("target_mean" in entries):
        raise FormatError(f"{label}: of the arrays 'input_mean' and 'target_mean' only one is there.")
    for name in ("cross", "dense_weights"):
        if name in entries and entries[name].dtype != entries["gram"].dtype:
            raise FormatError(f"{label}: {name!r} and 'gram' are not of the same type.")


def _check_array(
    label: str, name: str, entry: Entry, rule: tuple[tuple[str, ...], tuple[str, ...]], sizes: dict[str, int]
) -> None:
    codes, dims = rule
    if entry.dtype not in codes:
        raise FormatError(f"{label}: array {name!r} is of type {entry.dtype}, not {' or '.join(codes)}.")
    wanted = tuple(sizes.get(dim, -1) for dim in dims)
    if len(entry.shape) != len(wanted) or any(
        w not in (-1, s) for w, s in zip(wanted, entry.shape, strict=True)
    ):
        shape = ", ".join(str(w) if w >= 0 else "any" for w in wanted)
        raise FormatError(
            f"{label}: array {name!r} has shape {list(entry.shape)} where the sizes ask for [{shape}]."
        )


def checked_sizes(label: str, sizes: object) -> tuple[int, int, int]:
    """Return rows, columns and groups of the JSON object that states them."""
    names = ("rows", "columns", "groups")
    if not isinstance(sizes, dict) or not all(_natural(sizes.get(name)) for name in names):
        raise FormatError(f"{label}: 'sizes' does not hold the numbers rows, columns and groups.")
    return sizes["rows"], sizes["columns"], sizes["groups"]


def _natural(value: object) -> bool:
    """Whether this is a non-negative integer of ordinary size; True and 1.0 are not."""
    return type(value) is int and 0 <= value < 1 << 53


def _finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e308 * 1.7  # type: ignore[arg-type]
