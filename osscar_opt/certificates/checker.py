"""Checks a certificate with numpy and the standard library alone; nothing else of this package is imported.

    python -m osscar_opt.certificates.checker FILE          or, with this one file copied anywhere,
    python checker.py FILE

The problem: minimise over supports S within the limits ``usage @ S <= limit`` (usage >= 0)

    f(S) = base + 1/2 tr((W_S - W*)' H (W_S - W*)),    W_S = inv(H_SS) G_S,    W* = inv(H) G.

The proof: a tree whose inner nodes decide one group each, first "removed", then "kept".  Every support lies below
exactly one leaf, so the least of the leaves' bounds is a bound.  What bounds a leaf is in ``docs/certificates.md``;
in short, with N the rows not removed at a node and X = inv(H_NN) G_N, the refit there,

perspective: for *any* W, and a block-diagonal 0 < D < H_NN,

    delta = W - X,   rho = (H_NN - D) delta - (G_N - H_NN X),   R = D X - rho,   score_g = 1/2 tr(R_g' inv(D_gg) R_g),
    f(S) >= f(N) - 1/2 tr(delta' (H_NN - D) delta) - 1/2 tr(rho' inv(D) rho) + sum of score_g over the groups removed;

dual: for *any* Lambda and y, and any delta with P = diag(delta) - Q >= 0, Q_gh = tr(Lambda_g' inv(H_NN)_gh Lambda_h),

    score_g = <Lambda_g, X_g> - delta_g / 2 + (P y)_g,
    f(S) >= f(N) - 1/2 y'P y + sum of score_g over the groups removed.

Rounding.  Everything is float64, not interval arithmetic.  Rows are scaled by powers of two to a diagonal between 1/2
and 2, which rounds nothing; D < H is tested by a Cholesky factorisation of H - D less the most that its own rounding
can amount to; every bound is lowered by a running estimate of the rounding in its evaluation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CheckReport",
    "Document",
    "Posed",
    "Refused",
    "check",
    "header_seal",
    "main",
    "read",
    "same_problem",
    "walk",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

FORMAT, VERSION = "osscar-opt/certificate", "1.0"
BOUND, SUPERSET, ENUMERATED, INFEASIBLE, OPEN = -1, -2, -3, -4, -5
KINDS = {
    BOUND: "bound",
    SUPERSET: "superset",
    ENUMERATED: "enumerated",
    INFEASIBLE: "infeasible",
    OPEN: "open",
}

TOLERANCE = 1e-9
"""A claim may be above what is proved by this part of itself."""

OPTIMAL = 1e-6
"""A bound that meets the value within this part of it proves the support optimal."""

SLOP = 1e-9
"""A support passes a limit only if by more than this part of it: costs are floats, and 0.1 + 0.2 > 0.3."""

MOST_COMPLETIONS = 4096
MOST_OPERATIONS = 1e13
"""Floating-point operations a check may take unless told otherwise: some minutes to an hour."""

_UNIT = 2.0**-53
_BATCH = 1 << 20  # numbers in one batch of matrices
_CELLS = 1 << 30  # nodes times groups, a byte each
_REASONS = 8
_CODES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
_ARRAYS = {
    "gram": ("F64", ("triangle",)),
    "cross": ("F64", ("p", "q")),
    "group_of_row": ("I64", ("p",)),
    "usage": ("F64", ("m", "n")),
    "limit": ("F64", ("m",)),
    "always_keep": ("BOOL", ("n",)),
    "always_remove": ("BOOL", ("n",)),
    "support": ("BOOL", ("n",)),
    "tree": ("I64", ("nodes",)),
    "cites": ("I64", ("nodes",)),
    "relaxed_at": ("I64", ("r",)),
    "z": ("F64", ("z",)),
    "d": ("F64", ("d",)),
    "prices": ("F64", ("r", "m")),
    "dual": ("BOOL", ("r",)),
    "y": ("F64", ("y",)),
    "delta": ("F64", ("y",)),
    "lam": ("F32 F64", ("rows", "k")),
    "directions": ("F64", ("q", "k")),
    "term_of_direction": ("I64", ("k",)),
}
_OPTIONAL = {"gram", "cross", "support", "directions", "term_of_direction"}


class Refused(Exception):
    """Why a certificate is not believed, in one sentence."""


class GivenUp(Refused):
    """Why it cannot be told whether a certificate holds, in one sentence."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes
    ----------
    valid : bool
        Whether everything the certificate claims was proved.
    proved : str
        "optimal" (the bound meets the value of the support), "bound", "infeasible" (no support obeys the limits), or
        "nothing" where `valid` is False.
    bound : float
        What the leaves prove, by this check's own numbers; -inf if they prove nothing.
    value : float or None
        Value of the certificate's support, recomputed.
    claimed_bound : float
    claimed_value : float or None
    leaves : mapping
        Number of leaves of each kind.
    nodes, relaxations : int
    reasons : tuple of str
        What does not hold, a sentence each; empty if `valid`.
    given_up : bool
        Whether the check was given up: it takes too much work or memory, or float64 is not enough for this problem.
    hash, name : str
        Of the problem, as the certificate states them.
    seconds : float

    Examples
    --------
    >>> from osscar_opt.instances import random_instance
    >>> solution = random_instance(3, "correlated", n=6, q=2).solve("exhaustive", certificate=True)
    >>> report = solution.certificate.check()
    >>> report.valid, report.proved, report.reasons
    (True, 'optimal', ())
    """

    valid: bool
    proved: str
    bound: float = -math.inf
    value: float | None = None
    claimed_bound: float = -math.inf
    claimed_value: float | None = None
    leaves: dict[str, int] | None = None
    nodes: int = 0
    relaxations: int = 0
    reasons: tuple[str, ...] = ()
    given_up: bool = False
    hash: str = ""
    name: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; infinite numbers are None.

        Examples
        --------
        >>> CheckReport(False, "nothing", reasons=("It is cut short.",)).to_dict()["bound"] is None
        True
        """
        fields = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}

    def __str__(self) -> str:
        if not self.valid:
            return "\n".join(["does not hold", *(f"  {reason}" for reason in self.reasons)])
        count = sum((self.leaves or {}).values())
        lines = [f"holds: {count} leaves, {self.relaxations} relaxations, {self.seconds:.2f} s"]
        lines.append(f"  problem  {self.name or '-'} {self.hash}")
        lines.append(f"  bound    {self.bound:.12g} proved, {self.claimed_bound:.12g} claimed")
        if self.value is not None:
            lines.append(f"  value    {self.value:.12g} of the support in the certificate")
        return "\n".join([*lines, f"  proved   {self.proved}"])


@dataclass(frozen=True, eq=False)
class Posed:
    """A problem as a certificate needs it; `gram` and `cross` are None in a file that leaves them out.

    Exactly one of `base` (the objective with everything kept) and `constant` (with nothing kept) is given.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> Posed.of(Problem(np.eye(2), np.ones((2, 1)), keep=1)).limit
    array([1.])
    """

    gram: Floats | None
    cross: Floats | None
    group_of_row: Ints
    usage: Floats
    limit: Floats
    always_keep: Mask
    always_remove: Mask
    base: float | None
    constant: float | None
    hash: str = ""
    name: str = ""

    @classmethod
    def of(cls, problem: Any) -> Posed:
        """Take the fields from an `osscar_opt.Problem`, or anything with the same attributes.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Posed.of(Problem(np.eye(2), np.ones((2, 1)), keep=1)).base
        0.0
        """
        if isinstance(problem, Posed):
            return problem
        given = bool(problem.base_is_given)
        return cls(
            gram=np.asarray(problem.gram, dtype=np.float64),
            cross=np.asarray(problem.cross, dtype=np.float64),
            group_of_row=np.asarray(problem.groups.group_of_row, dtype=np.int64),
            usage=np.asarray(problem.limits.usage, dtype=np.float64),
            limit=np.asarray(problem.limits.limit, dtype=np.float64),
            always_keep=np.asarray(problem.always_keep, dtype=bool),
            always_remove=np.asarray(problem.always_remove, dtype=bool),
            base=float(problem.base) if given else None,
            constant=None if given else float(problem.constant),
            hash=str(getattr(problem, "hash", "")),
            name=str(getattr(problem, "name", "")),
        )


class Document(NamedTuple):
    """A certificate taken apart: the arrays of ``docs/certificates.md`` and its claims.

    Examples
    --------
    >>> Document._fields[:3]
    ('posed', 'tree', 'cites')
    """

    posed: Posed
    tree: Ints
    cites: Ints
    relaxed_at: Ints
    z: Floats
    d: Floats
    prices: Floats
    dual: Mask
    y: Floats
    delta: Floats
    lam: NDArray[Any]
    directions: Floats | None
    term_of_direction: Ints | None
    support: Mask | None
    bound: float
    value: float | None


def check(certificate: Any, problem: Any = None, *, max_operations: float = MOST_OPERATIONS) -> CheckReport:
    """Check a certificate: whether its leaves cover every choice, and prove what it claims.

    Never raises on account of what is in the file; whatever is wrong is a reason in the report.

    Parameters
    ----------
    certificate : path-like, bytes or Certificate
        A file, or the bytes of one, or what `Certificate.of` made.
    problem : Problem, optional
        Must then be the problem of the certificate; its arrays are the ones used.  Needed where the file does not
        hold the problem's arrays.
    max_operations : float, optional
        A check that would take more floating-point operations than this is refused before it starts.

    Returns
    -------
    CheckReport

    Examples
    --------
    >>> check("no/such/file").reasons
    ('The file cannot be opened (No such file or directory).',)
    """
    began = time.perf_counter()
    document: Document | None = None
    try:
        with np.errstate(all="ignore"):
            document = certificate.document() if hasattr(certificate, "document") else read(certificate)
            report = _examined(document, None if problem is None else Posed.of(problem), max_operations)
    except Refused as reason:
        report = _refusal(str(reason), document, isinstance(reason, GivenUp))
    except MemoryError:
        report = _refusal("Checking it takes more memory than is free.", document, True)
    except Exception as error:  # a file may hold anything, and a checker that breaks down has proved nothing
        report = _refusal(f"It cannot be evaluated ({type(error).__name__}: {error}).", document, False)
    return _with_seconds(report, time.perf_counter() - began)


def _refusal(reason: str, document: Document | None, given_up: bool) -> CheckReport:
    if document is None:
        return CheckReport(False, "nothing", reasons=(reason,), given_up=given_up)
    posed = document.posed
    return CheckReport(
        False,
        "nothing",
        claimed_bound=document.bound,
        claimed_value=document.value,
        reasons=(reason,),
        given_up=given_up,
        hash=posed.hash,
        name=posed.name,
    )


def _with_seconds(report: CheckReport, seconds: float) -> CheckReport:
    return CheckReport(**{**vars(report), "seconds": seconds})


def _examined(document: Document, problem: Posed | None, max_operations: float) -> CheckReport:
    posed = document.posed if problem is None else same_problem(document.posed, problem)
    layout = _Layout(posed)
    forest = _Forest(document, layout)
    _limit_work(forest, max_operations)
    space = _Space(layout, document)
    reasons: list[str] = []
    bounds = _leaf_bounds(forest, space, reasons)
    bound = float(bounds.min()) if len(bounds) else -math.inf
    value = None if document.support is None else _support_value(document.support, space, reasons)
    slack = space.tolerance
    if math.isnan(bound):
        bound = -math.inf
    known = bool(reasons) and bound == -math.inf  # why the leaves prove nothing
    if bound < document.bound - TOLERANCE * abs(document.bound) - slack and not known:
        worst = int(forest.leaves[int(np.argmin(bounds))])
        kind = KINDS[int(forest.tree[worst])]
        reasons.append(
            f"The bound {document.bound:.12g} is claimed, "
            f"but the leaf at node {worst} ({kind}) proves only {bound:.12g}."
        )
    if value is not None:
        claim = value if document.value is None else document.value
        if not abs(claim - value) <= TOLERANCE * abs(value) + slack:
            reasons.append(f"The value {claim:.12g} is claimed, but that of the support is {value:.12g}.")
        if not bound <= value + OPTIMAL * abs(value) + slack:
            reasons.append("The bound comes out above the value of the support: rounding has taken over.")
    valid, proved = not reasons, "bound"
    if not valid:
        proved = "nothing"
    elif value is not None and value - bound <= OPTIMAL * abs(value) + slack:
        proved = "optimal"
    elif bound == math.inf:
        proved = "infeasible"
    kinds = forest.tree[forest.leaves]
    return CheckReport(
        valid=valid,
        proved=proved,
        bound=bound,
        value=value,
        claimed_bound=document.bound,
        claimed_value=document.value,
        leaves={name: int((kinds == kind).sum()) for kind, name in KINDS.items() if (kinds == kind).any()},
        nodes=len(forest.tree),
        relaxations=len(forest.cited),
        reasons=tuple(reasons[:_REASONS])
        + ((f"And {len(reasons) - _REASONS} more.",) * (len(reasons) > _REASONS)),
        hash=posed.hash,
        name=posed.name,
    )


# ----------------------------------------------------------------------------------------------------- the file


def read(source: str | os.PathLike[str] | bytes) -> Document:
    """Read a certificate from its file, or its bytes, and refuse it unless every byte is accounted for.

    Raises
    ------
    Refused
        In one sentence: not a certificate, cut short, damaged, or of another version.

    Examples
    --------
    >>> read("no/such/file")
    Traceback (most recent call last):
    osscar_opt.certificates.checker.Refused: The file cannot be opened (No such file or directory).
    """
    meta, arrays = _read_arrays(source if isinstance(source, bytes) else _bytes(source))
    sizes, claim, problem = (_json(meta, key) for key in ("sizes", "claim", "problem"))
    level = {key: _json(meta, key) for key in ("base", "constant")}
    for name, where, keys in (
        ("sizes", sizes, ("rows", "columns", "groups")),
        ("claim", claim, ("bound", "value")),
    ):
        if not isinstance(where, dict) or not set(keys) <= set(where):
            raise Refused(f"The metadata entry {name!r} does not hold {' and '.join(keys)}.")
    p, q, n = (_natural(sizes[key], key) for key in ("rows", "columns", "groups"))
    _check_shapes(arrays, {"p": p, "q": q, "n": n, "triangle": p * (p + 1) // 2}, meta["version"])
    if not isinstance(problem, dict) or not all(
        isinstance(problem.get(key), str) for key in ("hash", "name")
    ):
        raise Refused("The metadata entry 'problem' does not hold hash and name.")
    if (level["base"] is None) == (level["constant"] is None):
        raise Refused("Not exactly one of base and constant is a number.")
    fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    fields |= {key: None if number is None else _number(number, key) for key, number in level.items()}
    if "gram" in arrays:
        fields["gram"] = _unpacked(arrays["gram"], p)
    fields |= {"hash": problem["hash"], "name": problem["name"], "bound": _number(claim["bound"], "bound")}
    fields["value"] = None if claim["value"] is None else _number(claim["value"], "value")
    fields["posed"] = Posed(**{name: fields.pop(name) for name in Posed.__dataclass_fields__})
    return Document(**fields)


def header_seal(header: bytes, seal: str) -> str:
    """Return the seal of a file whose length field and header are `header`: sha256 with the seal's digits zeroed.

    Examples
    --------
    >>> len(header_seal(b'{"seal":"' + b"0" * 64 + b'"}', "0" * 64))
    64
    """
    return hashlib.sha256(header.replace(seal.encode(), b"0" * 64)).hexdigest()


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise Refused("It is not a regular file.")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise Refused(f"The file cannot be opened ({getattr(error, 'strerror', None) or error}).") from error


def _read_arrays(raw: bytes) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(len(raw) - 8, 1 << 20):
        raise Refused("It is not a safetensors file, or one that was cut short.")
    try:
        header = _strict_json(raw[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused("Its header is not valid JSON.") from error
    meta = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(meta, dict) or not all(isinstance(text, str) for text in meta.values()):
        raise Refused("Its header holds no metadata.")
    if meta.get("format") != FORMAT:
        raise Refused(f"It is not of the format {FORMAT}.")
    version = meta.get("version", "")
    if not _is_version(version) or version.split(".")[0] != VERSION.split(".")[0]:
        raise Refused(f"It is of version {version[:20]!r}, and this checker reads {VERSION}.")
    seal = meta.get("seal", "")
    head = raw[: 8 + length]
    hexadecimal = len(seal) == 64 and set(seal) <= set("0123456789abcdef")
    if not hexadecimal or head.count(seal.encode()) != 1 or header_seal(head, seal) != seal:
        raise Refused("The header does not match its seal: the file was damaged or edited.")
    sums = _json(meta, "sha256")
    if not isinstance(sums, dict) or set(sums) != set(header):
        raise Refused("The sha256 sums are not those of exactly the arrays of the file.")
    return meta, _cut(header, memoryview(raw)[8 + length :], sums)


def _cut(header: dict[str, Any], data: memoryview, sums: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Cut the data into arrays that cover it without gap or overlap, and compare each with its sum."""
    begins, arrays = [], {}
    for name, entry in header.items():
        kind, shape, (begin, end) = _entry(name, entry)
        if end > len(data) or end - begin != kind.itemsize * math.prod(shape):
            raise Refused(f"The array {name!r} does not fit the file.")
        piece = data[begin:end]
        if hashlib.sha256(piece).hexdigest() != sums[name]:
            raise Refused(f"The array {name!r} does not match its sha256: the file was damaged or edited.")
        arrays[name] = np.array(np.frombuffer(piece, dtype=kind)).reshape(shape)
        if kind.kind == "f" and not np.isfinite(arrays[name]).all():
            raise Refused(f"The array {name!r} holds NaN or infinite numbers.")
        if kind.kind == "b" and (arrays[name].view(np.uint8) > 1).any():
            raise Refused(f"The mask {name!r} holds bytes other than 0 and 1.")
        begins.append((begin, end))
    end = 0
    for begin, following in sorted(begins):
        if begin != end:
            raise Refused("The arrays do not cover the file.")
        end = following
    if end != len(data):
        raise Refused("There is something after the last array.")
    return arrays


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], list[int], list[int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"The header describes the array {name!r} badly.")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= 2
    if not whole or not all(type(number) is int and 0 <= number < 1 << 48 for number in [*shape, *offsets]):
        raise Refused(f"The header describes the array {name!r} badly.")
    if not isinstance(kind, str) or kind not in _CODES:
        raise Refused(f"The array {name!r} is of a type that is not in use.")
    return _CODES[kind], shape, offsets


def _check_shapes(arrays: dict[str, NDArray[Any]], known: dict[str, int], version: str) -> None:
    for name in arrays:
        if name not in _ARRAYS and not name.startswith("x_") and version == VERSION:
            raise Refused(f"The array {name!r} is not part of version {VERSION}.")
    for name, (kind, dims) in _ARRAYS.items():
        if name not in arrays:
            if name not in _OPTIONAL:
                raise Refused(f"The array {name!r} is missing.")
            continue
        array = arrays[name]
        if array.dtype not in [_CODES[code] for code in kind.split()]:
            raise Refused(f"The array {name!r} is not of type {kind.replace(' ', ' or ')}.")
        fits = array.ndim == len(dims) and all(
            known.setdefault(dim, size) == size for dim, size in zip(dims, array.shape, strict=True)
        )
        if not fits:
            raise Refused(f"The array {name!r} has a shape that disagrees with the others.")
    if ("gram" in arrays) != ("cross" in arrays):
        raise Refused("Of 'gram' and 'cross' only one is there.")
    if "term_of_direction" in arrays and "directions" not in arrays:
        raise Refused("There are terms of directions without directions.")


def _unpacked(triangle: Floats, p: int) -> Floats:
    gram, at = np.empty((p, p)), 0
    for i in range(p):
        gram[i, i:] = gram[i:, i] = triangle[at : at + p - i]
        at += p - i
    return gram


def _json(meta: dict[str, str], key: str) -> Any:
    try:
        return _strict_json(meta[key])
    except KeyError as error:
        raise Refused(f"The metadata entry {key!r} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"The metadata entry {key!r} is not valid JSON.") from error


def _strict_json(text: str) -> Any:
    """Parse JSON without NaN, and without a key twice."""

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def _is_version(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts)


def _natural(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise Refused(f"The number of {name} is not a whole number.")
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1.7e308:
        raise Refused(f"The {name} is not a finite number.")
    return float(value)


# -------------------------------------------------------------------------------------------------- the problem


class _Layout:
    """The problem's arrays, found sound, and what is decided at the root."""

    def __init__(self, posed: Posed) -> None:
        if posed.gram is None or posed.cross is None:
            raise Refused("It does not hold the problem's arrays: check it together with the problem.")
        self.posed, self.gram, self.cross = posed, posed.gram, posed.cross
        self.p, self.n = len(self.gram), len(posed.always_keep)
        self._require_sound()
        self.groups = posed.group_of_row
        self.sizes = np.bincount(self.groups, minlength=self.n)
        self.rows_of, self.index_in = self._rows_by_size()
        diagonal = self.gram.diagonal()
        self.dead = (diagonal == 0.0) & ~self.gram.any(axis=1) & ~self.cross.any(axis=1)
        if not (diagonal[~self.dead] > 0.0).all():
            raise Refused("The Gram matrix is not positive definite: its diagonal is not positive.")
        self.root = np.zeros(self.n, dtype=np.int8)
        self.root[posed.always_remove | (np.bincount(self.groups, ~self.dead, self.n) == 0.0)] = -1
        self.root[posed.always_keep] = 1
        self.usage, slop = posed.usage, 1.1 * SLOP * posed.limit
        whole = (posed.usage == np.round(posed.usage)).all(axis=1) & (posed.limit < 1e6)
        self.limit = np.where(whole, np.floor(posed.limit + slop), posed.limit + slop)

    def _require_sound(self) -> None:
        posed, p, n = self.posed, self.p, self.n
        shapes = {
            "gram": (p, p),
            "cross": (p, self.cross.shape[-1]),
            "group_of_row": (p,),
            "usage": (len(posed.limit), n),
            "always_remove": (n,),
        }
        for name, shape in shapes.items():
            array = getattr(posed, name)
            if array.shape != shape:
                raise Refused(f"The array {name!r} of the problem has shape {array.shape}, not {shape}.")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refused(f"The array {name!r} of the problem holds NaN or infinite numbers.")
        if p == 0 or not np.array_equal(np.unique(posed.group_of_row), np.arange(n)):
            raise Refused("The groups of the rows are not numbered 0, 1, ... without a gap.")
        if (posed.usage < 0.0).any() or not (posed.limit >= 0.0).all() or not np.isfinite(posed.limit).all():
            raise Refused("A limit is negative, or a group uses less than nothing of one.")
        if (posed.always_keep & posed.always_remove).any():
            raise Refused("A group is both always kept and always removed.")
        if not np.array_equal(self.gram, self.gram.T):
            raise Refused("The Gram matrix is not symmetric.")

    def _rows_by_size(self) -> tuple[dict[int, Ints], Ints]:
        """For every size, the rows of the groups of that size, (count, size); and each group's place among them."""
        rows = np.argsort(self.groups, kind="stable")
        begins = np.cumsum(self.sizes) - self.sizes
        rows_of, index_in = {}, np.zeros(self.n, dtype=np.int64)
        for size in np.unique(self.sizes).tolist():
            members = np.flatnonzero(self.sizes == size)
            rows_of[size] = rows[begins[members][:, None] + np.arange(size)]
            index_in[members] = np.arange(len(members))
        return rows_of, index_in

    def remaining(self, states: NDArray[np.int8]) -> Floats:
        """What the groups kept leave of every limit, (nodes, m)."""
        return np.asarray(self.limit - (states == 1) @ self.usage.T)

    @property
    def cardinality(self) -> float | None:
        """What every group uses of the only limit, if it is the same for all; else None."""
        if len(self.limit) != 1 or not (self.usage == self.usage[0, 0]).all() or self.usage[0, 0] <= 0.0:
            return None
        return float(self.usage[0, 0])


class _Space:
    """The problem with rows scaled by powers of two, and all that follows from it alone."""

    def __init__(self, layout: _Layout, document: Document) -> None:
        posed, self.layout, self.p = layout.posed, layout, layout.p
        half = np.round(0.5 * np.log2(np.where(layout.dead, 1.0, layout.gram.diagonal())))
        self.scale = np.ldexp(1.0, -half.astype(np.int64))
        self.h = layout.gram * self.scale[:, None]
        self.h *= self.scale
        self.h[layout.dead, layout.dead] = 1.0
        self.magnitude = np.abs(self.h)
        self.gamma = _gamma(self.p)
        self.shift = 2.0 * (self.p + 3) ** 2 * _UNIT
        self.least = self._smallest_eigenvalue()
        self.full = _Outputs(self, _fewer_columns(layout.cross * self.scale[:, None]))
        self.rotated, self.terms = self.full, [np.arange(self.full.g.shape[1])]
        scaled = layout.cross * self.scale[:, None]
        if document.directions is not None:
            terms = np.zeros(document.directions.shape[1], dtype=np.int64)
            terms = terms if document.term_of_direction is None else document.term_of_direction
            basis, self.terms = _directions(document.directions, terms, layout.cross.shape[1])
            parts = [inside := scaled @ basis, scaled - inside @ basis.T]
            if np.linalg.norm(parts[1]) <= 1e-12 * np.linalg.norm(scaled):  # left out, bounds stay valid
                self.rotated = _Outputs(self, inside)
            else:
                self.rotated = _Outputs(self, np.hstack([inside, _fewer_columns(parts[1])]))
        elif document.dual.any():
            self.rotated, self.terms = _Outputs(self, scaled), [np.arange(scaled.shape[1])]
        explained, doubt = self.full.explained
        if posed.base is not None:
            self.base = self.surely = posed.base
            rounding = max(1e-26, (self.p * _UNIT) ** 2 / self.least)
        else:
            self.base = (posed.constant or 0.0) - explained
            self.surely, rounding = self.base - doubt, 1e-13
        self.tolerance = 1e-12 * abs(self.base) + rounding * explained

    def _smallest_eigenvalue(self) -> float:
        """A number that all eigenvalues of the scaled Gram matrix are certain to exceed, and little less than they."""

        def exceeded(exponent: float) -> bool:
            return bool(_definite(_less(self.h[None], 10.0**exponent + self.shift))[0])

        lowest = math.log10(2.0 * self.shift)
        above = 0.0
        for below in (-1.0, -2.0, -4.0, -6.0, -8.0, -10.0, -12.0, lowest):
            if below < lowest or not exceeded(below):
                above = below
                continue
            for _ in range(4 if self.p <= 1024 else 0):
                middle = 0.5 * (below + above)
                below, above = (middle, above) if exceeded(middle) else (below, middle)
            return float(10.0**below)
        raise GivenUp("The Gram matrix is so close to singular that float64 proves nothing about it.")

    def values(self, supports: Mask) -> tuple[Floats, Floats]:
        """Values of supports (B, n), and numbers that they are not below, rounding considered."""
        value, lower = np.empty(len(supports)), np.empty(len(supports))
        rows = supports[:, self.layout.groups]
        sizes = rows.sum(axis=1)
        width = max(1, _BATCH // (self.p * max(self.p, self.full.g.shape[1])))
        for size in np.unique(sizes).tolist():
            alike = np.flatnonzero(sizes == size)
            for first in range(0, len(alike), width):
                part = alike[first : first + width]
                value[part], lower[part] = self._values(np.nonzero(rows[part])[1].reshape(len(part), size))
        return value, lower

    def _values(self, rows: Ints) -> tuple[Floats, Floats]:
        at = self.full.refit(self, rows)
        beyond = 0.5 * np.sum(at.residual**2, axis=(1, 2)) / self.least
        return at.excess + self.base, _sum(self.surely, np.maximum(at.excess - at.doubt - beyond, 0.0))


class _Refit(NamedTuple):
    """The refit X on given rows N: its excess over `base`, and what rounding may have done to the numbers."""

    x: Floats  # (B, N, q)
    residual: Floats  # (B, N, q), G_N - H_NN X
    excess: Floats  # (B,)
    doubt: Floats  # (B,), of the excess
    residual_doubt: Floats  # (B, N), of rows of the residual


class _Outputs:
    """Columns of G, with W* and its residual."""

    def __init__(self, space: _Space, g: Floats) -> None:
        self.g = g
        self.optimum = _solved(space.h[None], g[None])[0]
        self.residual = g - space.h @ self.optimum
        norms = _row_norms(self.optimum)
        self.doubt = space.gamma * (_row_norms(g) + space.magnitude @ norms)  # of rows of the residual
        beyond = 0.5 * float(np.sum(self.residual**2)) / space.least
        rounding = space.gamma * float(norms @ _row_norms(g))
        self.explained = 0.5 * float(np.sum(self.optimum * (g + self.residual))), beyond + rounding
        if not math.isfinite(sum(self.explained)):
            raise Refused("The problem's numbers are too large for float64.")

    def refit(self, space: _Space, rows: Ints) -> _Refit:
        """Solve for the weights on the rows (B, N).

        The excess is 1/2 tr(A' H A) - tr(A' E), A = X - W* with the rows removed in it, E the residual of W*.
        """
        x = _solved(space.h[rows[:, :, None], rows[:, None, :]], self.g[rows])
        apart = np.repeat(-self.optimum[None], len(rows), axis=0)
        item = np.arange(len(rows))[:, None]
        apart[item, rows] += x
        pushed = space.h @ apart
        norms = _row_norms(apart)
        reach = space.gamma * (norms @ space.magnitude)
        return _Refit(
            x=x,
            residual=self.residual[rows] - pushed[item, rows],
            excess=0.5 * _dot(apart, pushed) - _dot(apart, np.broadcast_to(self.residual, apart.shape)),
            doubt=np.sum(norms * (reach + self.doubt), axis=1),
            residual_doubt=self.doubt[rows] + reach[item, rows],
        )


def _directions(basis: Floats, terms: Ints, q: int) -> tuple[Floats, list[Ints]]:
    """The directions, orthonormal to rounding, and the columns of each term."""
    k = basis.shape[1]
    numbered = 0 < k <= q and np.array_equal(np.unique(terms), np.arange(terms.max() + 1))
    if basis.shape[0] != q or not numbered:
        raise Refused("The terms of the directions are not numbered 0, 1, ... without a gap.")
    orthonormal, triangle = np.linalg.qr(basis)
    signs = np.sign(triangle.diagonal())
    if not np.abs(triangle * signs[:, None] - np.eye(k)).max() < 1e-8:
        raise Refused("The directions are not orthonormal.")
    return orthonormal * signs, [np.flatnonzero(terms == term) for term in range(int(terms.max()) + 1)]


def same_problem(stated: Posed, given: Posed) -> Posed:
    """Return the given problem if it is the one a certificate states.

    Raises
    ------
    Refused
        If it is another one.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> posed = Posed.of(Problem(np.eye(2), np.ones((2, 1)), keep=1))
    >>> same_problem(posed, Posed.of(Problem(np.eye(2), np.ones((2, 1)), keep=2)))
    Traceback (most recent call last):
    osscar_opt.certificates.checker.Refused: It is for another problem: limit differs.
    """
    if stated.hash and given.hash and stated.hash != given.hash:
        raise Refused(f"It is for problem {stated.hash[:12]}, not for problem {given.hash[:12]}.")
    arrays = ("group_of_row", "usage", "limit", "always_keep", "always_remove", "gram")
    for name in (*arrays, "base", "constant"):
        ours, theirs = getattr(stated, name), getattr(given, name)
        if not np.array_equal(ours, theirs) and not (name == "gram" and ours is None):
            raise Refused(f"It is for another problem: {name} differs.")
    if stated.cross is not None and given.cross is not None:
        # cross may be a product, gram @ dense_weights, which another BLAS rounds otherwise
        apart = stated.cross.shape != given.cross.shape or np.abs(stated.cross - given.cross).max(initial=0.0)
        if apart > 1e-12 * np.abs(given.cross).max(initial=0.0):
            raise Refused("It is for another problem: cross differs.")
    return given


# ----------------------------------------------------------------------------------------------------- the tree


def walk(tree: Ints, root: NDArray[np.int8]) -> NDArray[np.int8]:
    """What is decided at every node of a tree in preorder, (nodes, n): 1 kept, -1 removed, 0 free.

    Raises
    ------
    Refused
        If the tree is cut short or goes on after its end, or a node decides what is decided or what there is not.

    Examples
    --------
    >>> walk(np.array([1, OPEN, OPEN]), np.zeros(2, dtype=np.int8))
    array([[ 0,  0],
           [ 0, -1],
           [ 0,  1]], dtype=int8)
    """
    codes = tree.tolist()
    state = np.empty((len(codes), len(root)), dtype=np.int8)
    due = [(-1, 0)]  # (parent, decision) of the nodes to come, the next one last
    for node, code in enumerate(codes):
        if not due:
            raise Refused(f"The tree has nodes after its end, at node {node}.")
        if not OPEN <= code < len(root):
            raise Refused(f"Node {node} of the tree branches on group {code}, which there is not.")
        parent, decision = due.pop()
        state[node] = root if parent < 0 else state[parent]
        if parent >= 0:
            state[node, codes[parent]] = decision
        if code >= 0:
            if state[node, code] != 0:
                raise Refused(f"Node {node} of the tree branches on group {code}, which is decided there.")
            due += [(node, 1), (node, -1)]
    if due:
        raise Refused(f"The tree is cut short: {len(due)} choices are not covered.")
    return state


class _Forest:
    """The tree, walked once: which groups are decided at every node (1 kept, -1 removed), and its relaxations."""

    def __init__(self, document: Document, layout: _Layout) -> None:
        self.document, self.layout = document, layout
        self.tree, self.cites = document.tree, document.cites
        self.leaves = np.flatnonzero(self.tree < 0)
        if max(len(self.tree), len(document.relaxed_at)) * layout.n > _CELLS:
            raise GivenUp(f"The tree of {len(self.tree)} nodes over {layout.n} groups is too large to walk.")
        self.state = walk(self.tree, layout.root)
        self.kinds = self.tree[self.leaves]
        self.cited = np.unique(self.cites[self.cites >= 0])
        self._require_sound()
        self._lay_out()

    def _ends(self) -> Ints:
        """For every node, the first node after its subtree."""
        ends = list(range(1, len(self.tree) + 1))
        for node in range(len(ends) - 1, -1, -1):
            if self.tree[node] >= 0:
                ends[node] = ends[ends[node + 1]]
        return np.array(ends, dtype=np.int64)

    def _require_sound(self) -> None:
        relaxed_at, cites, tree = self.document.relaxed_at, self.cites, self.tree
        if len(relaxed_at) and not 0 <= relaxed_at.min() <= relaxed_at.max() < len(tree):
            raise Refused("A relaxation stands at a node that there is not.")
        if not -1 <= cites.min() <= cites.max() < len(relaxed_at):
            raise Refused("A leaf cites a relaxation that there is not.")
        citing = np.isin(tree, (BOUND, OPEN))
        wrong = np.flatnonzero(((cites >= 0) & ~citing) | ((cites < 0) & (tree == BOUND)))
        if wrong.size:
            raise Refused(
                f"Node {wrong[0]} cites a relaxation without being a leaf for it, or the other way round."
            )
        users = np.flatnonzero(cites >= 0)
        at = relaxed_at[cites[users]]
        astray = users[(users < at) | (users >= self._ends()[at])]
        if astray.size:
            raise Refused(f"The leaf at node {astray[0]} cites a relaxation of a node that it is not below.")

    def _lay_out(self) -> None:
        """Where in the flat arrays the numbers of every relaxation begin."""
        document, layout = self.document, self.layout
        terms = document.term_of_direction
        self.terms = 1 if terms is None or len(terms) == 0 else int(terms.max()) + 1
        free = self.state[document.relaxed_at] == 0
        self.triangle = layout.sizes * (layout.sizes + 1) // 2
        self.columns = layout.cross.shape[1] if document.directions is None else document.directions.shape[1]
        count, dual = free.sum(axis=1), document.dual
        self.count = count
        self.d_count = (free @ self.triangle) * ~dual  # of one term
        counts = {
            "z": (count * ~dual, len(document.z)),
            "d": (self.d_count * self.terms, len(document.d)),
            "y": (count * dual, len(document.y)),
            "lam": ((free @ layout.sizes) * dual, len(document.lam)),
        }
        fits = all(int(numbers.sum()) == there for numbers, there in counts.values())
        wide = len(document.lam) == 0 or document.lam.shape[1] == self.columns
        if not (0 < self.terms <= 1 << 20 and fits and wide):
            raise Refused("The relaxations do not hold as many numbers as their nodes have free groups.")
        self.begin = {name: np.cumsum(numbers) - numbers for name, (numbers, _) in counts.items()}
        if len(document.z) and not 0.0 < document.z.min() <= document.z.max() <= 1.0:
            raise Refused("A z lies outside (0, 1].")
        if len(document.y) and not 0.0 <= document.y.min() <= document.y.max() <= 1.0:
            raise Refused("A y lies outside [0, 1].")
        if (document.prices < 0.0).any():
            raise Refused("A price is negative.")
        floats = (document.z, document.d, document.y, document.delta, document.lam, document.prices)
        if not all(np.isfinite(array).all() for array in floats):
            raise Refused("A relaxation holds NaN or infinite numbers.")
        if document.prices.shape != (len(document.relaxed_at), len(layout.limit)):
            raise Refused("There is not one price for every limit and relaxation.")

    def spread(self, which: Ints, name: str, values: Floats, otherwise: float) -> Floats:
        """Numbers of the free groups of relaxations, as (B, n)."""
        free = self.state[self.document.relaxed_at[which]] == 0
        numbers = np.full(free.shape, otherwise)
        numbers[free] = values[_ranges(self.begin[name][which], self.count[which])]
        return numbers

    def completions(self, leaf: int) -> int:
        """How many supports an enumerated leaf stands for; more than MOST_COMPLETIONS are not counted."""
        state, room = self.state[leaf], self.layout.remaining(self.state[leaf : leaf + 1])[0]
        free, each = int((state == 0).sum()), self.layout.cardinality
        if (room < 0.0).any():
            return 0
        if each is None:
            return 1 << min(free, MOST_COMPLETIONS.bit_length())
        chosen = min(free, int(room[0] / each))
        count = 1
        for i in range(min(chosen, free - chosen)):
            count = count * (free - i) // (i + 1)
            if count > MOST_COMPLETIONS:
                break
        return count

    def supports(self, leaf: int) -> Mask:
        """The supports an enumerated leaf stands for; under one plain limit those of full size, which are no worse."""
        state, room = self.state[leaf], self.layout.remaining(self.state[leaf : leaf + 1])[0]
        free, each = np.flatnonzero(state == 0), self.layout.cardinality
        if (room < 0.0).any():
            return np.zeros((0, self.layout.n), dtype=bool)
        if each is None:
            chosen = (np.arange(1 << len(free))[:, None] >> np.arange(len(free)) & 1).astype(bool)
        else:
            picks = list(itertools.combinations(range(len(free)), min(len(free), int(room[0] / each))))
            chosen = np.zeros((len(picks), len(free)), dtype=bool)
            np.put_along_axis(chosen, np.array(picks, dtype=np.int64).reshape(len(picks), -1), True, axis=1)
        found = np.repeat((state == 1)[None], len(chosen), axis=0)
        found[:, free] = chosen
        return found[(found @ self.layout.usage.T <= self.layout.limit).all(axis=1)]


def _limit_work(forest: _Forest, most: float) -> None:
    """Refuse what would take more than `most` floating-point operations, by an estimate of them."""
    layout = forest.layout
    p, q = float(layout.p), float(layout.cross.shape[1])
    columns = float(forest.columns) if forest.document.dual.any() else min(p, float(forest.columns))
    completions = 0
    for leaf in forest.leaves[forest.kinds == ENUMERATED].tolist():
        count = forest.completions(leaf)
        if count > MOST_COMPLETIONS:
            raise Refused(f"The leaf at node {leaf} stands for more than {MOST_COMPLETIONS} supports.")
        completions += count
    supports = completions + int(np.isin(forest.kinds, (SUPERSET, OPEN)).sum()) + 1
    width = min(p, q)
    operations = 8.0 * p**3 + 2.0 * p * q * (3.0 * p + width)
    operations += supports * (0.7 * p**3 + 4.0 * p**2 * width)
    operations += len(forest.cited) * ((forest.terms + 5) * p**3 + 10.0 * p**2 * columns)
    if operations > most:
        raise GivenUp(
            f"Checking it would take {operations:.0e} operations, and no more than {most:.0e} are allowed."
        )


# --------------------------------------------------------------------------------------------------- the bounds


def _leaf_bounds(forest: _Forest, space: _Space, reasons: list[str]) -> Floats:
    """What every leaf proves, in the order of `forest.leaves`."""
    kinds, leaves = forest.kinds, forest.leaves
    bounds = np.full(len(leaves), -math.inf)
    empty = _without_supports(forest)
    liars = leaves[(kinds == INFEASIBLE) & ~empty].tolist()
    reasons += [f"The leaf at node {leaf} says infeasible, but is not." for leaf in liars]
    chunk = max(1, _BATCH // forest.layout.n)
    superset = np.flatnonzero(np.isin(kinds, (SUPERSET, OPEN)))
    for first in range(0, len(superset), chunk):
        part = superset[first : first + chunk]
        bounds[part] = space.values(forest.state[leaves[part]] >= 0)[1]
    for index in np.flatnonzero(kinds == ENUMERATED).tolist():
        bounds[index] = space.values(forest.supports(int(leaves[index])))[1].min(initial=math.inf)
    citing = np.flatnonzero(forest.cites[leaves] >= 0)
    citing = citing[np.argsort(forest.cites[leaves[citing]], kind="stable")]
    cited_by = forest.cites[leaves[citing]]
    for which in _batches(forest, space):
        constants, scores = _evaluated(forest, space, which, reasons)
        begins, ends = np.searchsorted(cited_by, which), np.searchsorted(cited_by, which, side="right")
        position = np.repeat(np.arange(len(which)), ends - begins)
        users = citing[_ranges(begins, ends - begins)]
        for begin in range(0, len(users), chunk):
            part, at = users[begin : begin + chunk], position[begin : begin + chunk]
            removed = _least_removed(forest, which[at], leaves[part], scores[at])
            bounds[part] = np.maximum(bounds[part], _sum(constants[at], removed))
    return np.where(empty, math.inf, bounds)


def _without_supports(forest: _Forest) -> Mask:
    """Leaves whose kept groups pass a limit: nothing below them is feasible, however they were closed."""
    passed: list[Mask] = [np.zeros(0, dtype=bool)]
    chunk = max(1, _BATCH // forest.layout.n)
    for first in range(0, len(forest.leaves), chunk):
        states = forest.state[forest.leaves[first : first + chunk]]
        passed.append(np.asarray((forest.layout.remaining(states) < 0.0).any(axis=1)))
    return np.concatenate(passed)


def _batches(forest: _Forest, space: _Space) -> Iterator[Ints]:
    """The cited relaxations, those with equally many rows together."""
    document, cited = forest.document, forest.cited
    states = forest.state[document.relaxed_at[cited]]
    present, free = (states >= 0) @ forest.layout.sizes, (states == 0) @ forest.layout.sizes
    alike = np.stack([present, np.where(document.dual[cited], free, -1)])
    width = max(1, _BATCH // (space.p * (space.p + space.rotated.g.shape[1])))
    kinds, kind = np.unique(alike, axis=1, return_inverse=True)
    for k in range(kinds.shape[1]):
        members = cited[kind.ravel() == k]
        for first in range(0, len(members), width):
            yield members[first : first + width]


class _Piece(NamedTuple):
    """The free groups of one size of a batch of relaxations: P pairs of a relaxation and a group."""

    item: Ints  # (P,) which relaxation of the batch
    group: Ints  # (P,)
    rows: Ints  # (P, s) rows of the problem
    inner: Ints  # (P, s) their places among the rows of the relaxation


@dataclass(frozen=True, eq=False)
class _Frame:
    """A batch of relaxations with equally many rows N, all dual or all not: their rows, and which are kept."""

    which: Ints  # (B,)
    free: Mask  # (B, n)
    rows: Ints  # (B, N)
    h: Floats  # (B, N, N)
    kept: Mask  # (B, N)
    pieces: list[_Piece]

    @classmethod
    def of(cls, forest: _Forest, space: _Space, which: Ints) -> _Frame:
        layout = forest.layout
        states = forest.state[forest.document.relaxed_at[which]]
        count, free = len(which), states == 0
        present = states[:, layout.groups] >= 0
        rows = np.nonzero(present)[1].reshape(count, int(present[0].sum()))
        place, pieces = np.cumsum(present, axis=1) - 1, []
        for s, members in layout.rows_of.items():
            item, group = np.nonzero(free & (layout.sizes == s))
            mine = members[layout.index_in[group]]
            pieces.append(_Piece(item, group, mine, place[item[:, None], mine]))
        kept = np.take_along_axis(states, layout.groups[rows], axis=1) == 1
        return cls(which, free, rows, space.h[rows[:, :, None], rows[:, None, :]], kept, pieces)

    def dense(self, blocks: list[Floats], least: float) -> Floats:
        """D as dense matrices (B, N, N), with a least diagonal on the rows that are kept: any D > 0 there will do."""
        count, size = self.rows.shape
        dense = np.zeros((count, size, size))
        for piece, block in zip(self.pieces, blocks, strict=True):
            dense[piece.item[:, None, None], piece.inner[:, :, None], piece.inner[:, None, :]] = block
        item, row = np.nonzero(self.kept)
        dense[item, row, row] = least
        return dense


class _Flaws:
    """Which relaxations of a batch are not sound, with a reason for the first flaw of each."""

    def __init__(self, nodes: Ints, reasons: list[str]) -> None:
        self._nodes, self._reasons = nodes, reasons
        self.sound = np.ones(len(nodes), dtype=bool)

    def require(self, holds: Mask, sentence: str) -> None:
        for node in self._nodes[self.sound & ~holds].tolist():
            self._reasons.append(sentence.format(node))
        self.sound &= holds


def _evaluated(forest: _Forest, space: _Space, which: Ints, reasons: list[str]) -> tuple[Floats, Floats]:
    """The constants (B,) and the scores (B, n) of relaxations with equally many rows, lowered by what rounding may do.

    A bound is the constant plus the scores of the groups removed; -inf where a relaxation is not sound.
    """
    document, frame = forest.document, _Frame.of(forest, space, which)
    flaws = _Flaws(document.relaxed_at[which], reasons)
    at = space.rotated.refit(space, frame.rows)
    sums = _Sums(space.surely + at.excess - at.doubt, np.zeros((len(which), forest.layout.n)))
    if document.dual[which[0]]:
        _add_dual(forest, space, frame, at, sums, flaws)
    else:
        z = forest.spread(which, "z", document.z, 1.0)
        z_rows = np.take_along_axis(z, forest.layout.groups[frame.rows], axis=1)
        for term, columns in enumerate(space.terms):
            _add_term(space, frame, at, columns, z_rows, _blocks(forest, space, frame, term), sums, flaws)
        np.maximum(sums.scores, 0.0, out=sums.scores)
    finite = np.isfinite(sums.constants) & np.isfinite(sums.scores).all(axis=1)
    flaws.require(finite, "The numbers of the relaxation at node {} are out of range.")
    sums.constants[~flaws.sound] = -math.inf
    return sums.constants, np.where(flaws.sound[:, None], sums.scores, 0.0)


class _Sums(NamedTuple):
    """Constants (B,) and scores (B, n) as they add up."""

    constants: Floats
    scores: Floats


def _blocks(forest: _Forest, space: _Space, frame: _Frame, term: int) -> list[Floats]:
    """The blocks of D of one term, scaled, for every piece (P, s, s)."""
    before = np.cumsum(frame.free * forest.triangle, axis=1) - frame.free * forest.triangle
    begin = forest.begin["d"][frame.which] + term * forest.d_count[frame.which]
    blocks = []
    for p in frame.pieces:
        s = p.rows.shape[1]
        low, high = np.minimum(*np.indices((s, s))), np.maximum(*np.indices((s, s)))
        corner = begin[p.item] + before[p.item, p.group]
        d = forest.document.d[corner[:, None, None] + (high * (high + 1) // 2 + low)]
        scale = space.scale[p.rows]
        blocks.append(d * scale[:, :, None] * scale[:, None, :])
    return blocks


def _add_term(
    space: _Space,
    frame: _Frame,
    at: _Refit,
    columns: Ints,
    z: Floats,
    blocks: list[Floats],
    sums: _Sums,
    flaws: _Flaws,
) -> None:
    """Add what one term of a perspective relaxation gives; W by a solve, but the formula holds for any W."""
    x, count = at.x[:, :, columns], len(at.x)
    dense = frame.dense(blocks, space.shift)
    below = _definite(_less(frame.h - dense, space.shift))
    flaws.require(below, "The D of the relaxation at node {} is not less than the Gram matrix there.")
    positive = _positive(frame.pieces, blocks, count)
    flaws.require(positive, "The D of the relaxation at node {} is not positive definite.")
    root = np.sqrt(z)[:, :, None]  # H + D(1/z - 1) = inv(root) (root H root + D(1 - z)) inv(root)
    system = frame.h * root * root.swapaxes(1, 2) + dense * (1.0 - z)[:, :, None]
    delta = root * _solved(system, root * space.rotated.g[:, columns][frame.rows]) - x
    pushed = frame.h @ delta - dense @ delta
    rho = pushed - at.residual[:, :, columns]
    norms = _row_norms(delta)
    pushed_doubt = space.gamma * _times(np.abs(frame.h) + np.abs(dense), norms)
    doubt = pushed_doubt + at.residual_doubt
    sums.constants[...] -= 0.5 * _dot(delta, pushed) + np.sum(norms * pushed_doubt, axis=1)
    kept = np.where(frame.kept, _row_norms(rho), 0.0) / space.shift
    sums.constants[...] -= np.sum(0.5 * kept**2 * space.shift + kept * doubt, axis=1)
    for p, block in zip(frame.pieces, blocks, strict=True):
        gamma, size = _gamma(block.shape[1]), np.abs(block)
        at_rows = p.item[:, None], p.inner
        r = block @ x[at_rows] - rho[at_rows]
        y, y_rho = np.split(_divided(block, np.concatenate([r, rho[at_rows]], axis=2)), 2, axis=2)
        y_norms, y_rho_norms = _row_norms(y), _row_norms(y_rho)
        r_doubt = doubt[at_rows] + gamma * _times(size, _row_norms(x[at_rows]) + y_norms)
        sums.scores[p.item, p.group] += 0.5 * _dot(r, y) - np.sum(y_norms * r_doubt, axis=1)
        loss = 0.5 * _dot(rho[at_rows], y_rho)
        loss += np.sum(y_rho_norms * (doubt[at_rows] + gamma * _times(size, y_rho_norms)), axis=1)
        sums.constants[...] -= np.bincount(p.item, loss, minlength=count)


def _add_dual(forest: _Forest, space: _Space, frame: _Frame, at: _Refit, sums: _Sums, flaws: _Flaws) -> None:
    """Add what a dual relaxation gives; Lambda, delta and y may be anything that leaves P = diag(delta) - Q definite.

    The error of M = inv(H) on the free rows is at most that of its residual over the least eigenvalue of H; what it can
    do to Q, which is no more than a diagonal, is taken off the scores.
    """
    document, layout, which = forest.document, forest.layout, frame.which
    count, size = frame.rows.shape
    item, place = np.nonzero(~frame.kept)
    row: Ints = place.reshape(count, -1)
    unit = np.zeros((count, size, row.shape[1]))
    unit[item, place, np.tile(np.arange(row.shape[1]), count)] = 1.0
    inverse = _solved(frame.h, unit)
    lost = np.linalg.norm(unit - frame.h @ inverse, axis=(1, 2))
    lost += space.gamma * np.linalg.norm(np.abs(frame.h) @ np.abs(inverse), axis=(1, 2))
    m = np.take_along_axis(inverse, row[:, :, None], axis=1)
    m = 0.5 * (m + m.swapaxes(1, 2))
    columns = slice(0, forest.columns)
    x = np.take_along_axis(at.x[:, :, columns], row[:, :, None], axis=1)
    lam = _multipliers(forest, space, frame)[item, place].reshape(x.shape)
    group = layout.groups[np.take_along_axis(frame.rows, row, axis=1)]
    member = (group[:, :, None] == np.arange(layout.n)).astype(np.float64)
    q = member.swapaxes(1, 2) @ (m * (lam @ lam.swapaxes(1, 2))) @ member
    q = 0.5 * (q + q.swapaxes(1, 2))
    norms = _row_norms(lam)
    residual = np.linalg.norm(at.residual, axis=(1, 2)) + np.linalg.norm(at.residual_doubt, axis=1)
    own = norms**2 * (lost / space.least)[:, None] + 3.0 * space.gamma * norms * _times(np.abs(m), norms)
    doubt = _times(member.swapaxes(1, 2), 0.5 * own + space.gamma * norms * _row_norms(x))
    doubt += np.sqrt(_times(member.swapaxes(1, 2), norms**2)) * (residual / space.least)[:, None]
    linear = _times(member.swapaxes(1, 2), np.einsum("bij,bij->bi", lam, x))
    y, delta = (forest.spread(which, "y", values, 0.0) for values in (document.y, document.delta))
    form, surplus, definite = _definite_form(delta, q)
    flaws.require(
        definite, "The delta of the relaxation at node {} is too small: diag(delta) - Q is not definite."
    )
    pushed, reach = _times(form, y), _gamma(layout.n) * _times(np.abs(form), y)
    doubt += reach + 4.0 * _UNIT * (np.abs(linear) + np.abs(delta) + np.abs(pushed))
    sums.scores[...] = np.where(frame.free, linear - 0.5 * (delta + surplus) + pushed - doubt, 0.0)
    sums.constants[...] -= 0.5 * (np.sum(y * (pushed + reach), axis=1) + residual**2 / space.least)


def _multipliers(forest: _Forest, space: _Space, frame: _Frame) -> Floats:
    """Lambda in scaled rows, (B, N, k); zero on rows that are kept."""
    sizes, begin = frame.free * forest.layout.sizes, forest.begin["lam"][frame.which]
    before = np.cumsum(sizes, axis=1) - sizes
    lam = np.zeros((*frame.rows.shape, forest.columns))
    for p in frame.pieces:
        at = (begin[p.item] + before[p.item, p.group])[:, None] + np.arange(p.rows.shape[1])
        lam[p.item[:, None], p.inner] = forest.document.lam[at] * space.scale[p.rows][:, :, None]
    return lam


def _definite_form(delta: Floats, q: Floats) -> tuple[Floats, Floats, Mask]:
    """P = diag(delta + surplus) - Q, the surplus, and whether P is positive semidefinite.

    A Cholesky factorisation that goes through proves a matrix definite but for its own rounding: the surplus.
    """
    n = delta.shape[1]
    form, places = -q, np.arange(n)
    form[:, places, places] += delta
    diagonal = np.diagonal(form, axis1=1, axis2=2)
    nothing = (diagonal == 0.0) & ~form.any(axis=2)  # decided groups, and multipliers that are zero
    root = np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
    scaled = form / root[:, :, None] / root[:, None, :]
    scaled[:, places, places] += nothing
    definite = ((diagonal > 0.0) | nothing).all(axis=1) & _definite(scaled)
    surplus = 2.0 * (n + 3) ** 2 * _UNIT * np.maximum(diagonal, 0.0)
    form[:, places, places] += surplus
    return form, surplus, definite


def _positive(pieces: list[_Piece], blocks: list[Floats], count: int) -> Mask:
    """Whether all blocks of each relaxation are positive definite."""
    good = np.ones(count, dtype=bool)
    for piece, block in zip(pieces, blocks, strict=True):
        diagonal = np.diagonal(block, axis1=1, axis2=2)
        fine = (diagonal > 0.0).all(axis=1)
        if block.shape[1] > 1:
            root = np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
            fine &= _definite(block / root[:, :, None] / root[:, None, :])
        good[piece.item[~fine]] = False
    return good


def _least_removed(forest: _Forest, which: Ints, leaves: Ints, scores: Floats) -> Floats:
    """The least sum of scores of the groups removed, over the supports below each leaf, (L,).

    Where a score is negative the group is removed.  For the others and prices lam >= 0 it costs at least the sum of
    min(score_g, lam . usage_g) less lam . (what is left of the limits).  The prices of the certificate are tried, and
    improved one at a time; under a single limit the best is found.
    """
    layout, state = forest.layout, forest.state[leaves]
    newly = (state == -1) & (forest.state[forest.document.relaxed_at[which]] == 0)
    gone = scores * (newly | ((state == 0) & (scores < 0.0)))
    free = np.where((state == 0) & (scores > 0.0), scores, 0.0)
    room = np.maximum(layout.remaining(state), 0.0)
    best = np.zeros(len(leaves))
    several, rounding = len(layout.limit) > 1, (layout.n + 8) * _UNIT
    starts = [np.zeros(room.shape), forest.document.prices[which]] if several else [np.zeros(room.shape)]
    for multipliers in starts:
        for _ in range(1 + several):
            for i in range(len(layout.limit)):
                multipliers = multipliers.copy()
                multipliers[:, i] = 0.0
                capped = np.minimum(free, multipliers @ layout.usage)
                users = np.flatnonzero(layout.usage[i])
                more, multipliers[:, i] = _best_multiplier(
                    (free - capped)[:, users], layout.usage[i, users], room[:, i]
                )
                paid = np.sum(np.delete(multipliers * room, i, axis=1), axis=1)
                total = np.sum(capped, axis=1)
                best = np.fmax(best, total + more - paid - rounding * (total + more + paid))
    return np.asarray(np.sum(gone, axis=1) + best - rounding * (np.sum(np.abs(gone), axis=1) + best))


def _best_multiplier(scores: Floats, usage: Floats, room: Floats) -> tuple[Floats, Floats]:
    """The largest sum of min(score_g, lam usage_g) - lam room over lam >= 0, less rounding; and that lam, by rows."""
    if scores.shape[1] == 0:
        return np.zeros(len(scores)), np.zeros(len(scores))
    ratio = scores / usage
    order = np.argsort(ratio, axis=1)
    ratio = np.take_along_axis(ratio, order, axis=1)
    below = np.cumsum(np.take_along_axis(scores, order, axis=1), axis=1)
    used = usage[order]
    above = np.cumsum(used[:, ::-1], axis=1)[:, ::-1] - used
    rounding = (len(usage) + 8) * _UNIT * (below + ratio * (above + room[:, None]))
    sums = below + ratio * (above - room[:, None]) - rounding
    sums[~np.isfinite(sums)] = -math.inf
    pick = np.argmax(sums, axis=1)[:, None]
    most = np.take_along_axis(sums, pick, axis=1)[:, 0]
    return np.maximum(most, 0.0), np.where(most > 0.0, np.take_along_axis(ratio, pick, axis=1)[:, 0], 0.0)


def _support_value(support: Mask, space: _Space, reasons: list[str]) -> float | None:
    """Value of the certificate's support; a reason if it is not feasible."""
    posed = space.layout.posed
    if support.shape != posed.always_keep.shape:
        raise Refused("The support is not a mask over the groups.")
    if (posed.always_keep & ~support).any() or (posed.always_remove & support).any():
        reasons.append("The support is not feasible: it does not respect always_keep and always_remove.")
    if (posed.usage @ support > posed.limit * (1.0 + SLOP)).any():
        reasons.append("The support is not feasible: it passes a limit.")
    return float(space.values(support[None])[0][0])


# ------------------------------------------------------------------------------------------------- plain algebra


def _gamma(length: int) -> float:
    """Relative rounding of an inner product of so many terms: what is probable, not the most there can be."""
    return _UNIT * math.sqrt(length + 4.0)


def _ranges(begins: Ints, counts: Ints) -> Ints:
    """The numbers begin, begin + 1, ... of every range, one range after another."""
    return np.arange(counts.sum()) + np.repeat(begins - np.cumsum(counts) + counts, counts)


def _row_norms(a: Floats) -> Floats:
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", a, a)))


def _dot(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("bij,bij->b", a, b))


def _times(matrices: Floats, vectors: Floats) -> Floats:
    return np.asarray(np.einsum("bij,bj->bi", matrices, vectors))


def _sum(a: Any, b: Floats) -> Floats:
    """A number that a + b is certain not to be below."""
    return np.asarray(a + b - 2.0 * _UNIT * (np.abs(a) + np.abs(b)))


def _less(matrices: Floats, amount: float) -> Floats:
    """The matrices (B, N, N) with so much taken off their diagonals."""
    lowered = matrices.copy()
    places = np.arange(matrices.shape[1])
    lowered[:, places, places] -= amount
    return lowered


def _definite(matrices: Floats) -> Mask:
    """Which of the matrices (B, N, N) a Cholesky factorisation goes through for."""
    if not np.isfinite(matrices).all():
        return np.array([bool(np.isfinite(m).all()) and bool(_definite(m[None])[0]) for m in matrices])
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.array([False])
        return np.concatenate([_definite(half) for half in np.array_split(matrices, 2)])
    return np.ones(len(matrices), dtype=bool)


def _solved(matrices: Floats, right: Floats) -> Floats:
    """Solutions of (B, N, N) systems; NaN where one is singular."""
    try:
        return np.asarray(np.linalg.solve(matrices, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full(right.shape, math.nan)
        halves = zip(np.array_split(matrices, 2), np.array_split(right, 2), strict=True)
        return np.concatenate([_solved(*half) for half in halves])


def _divided(blocks: Floats, right: Floats) -> Floats:
    return right / blocks if blocks.shape[1] == 1 else _solved(blocks, right)


def _fewer_columns(g: Floats) -> Floats:
    """At most p columns with the same G G': the triangular factor of G'."""
    if g.shape[1] <= g.shape[0]:
        return g
    triangle: Floats = np.asarray(np.linalg.qr(g.T, mode="r"))
    return np.ascontiguousarray(triangle.T)


def main(arguments: list[str] | None = None) -> int:
    """Check the file named on the command line; return 0 if it holds, 1 if not, 2 for a wrong call.

    Examples
    --------
    >>> main(["no/such/file"])
    no/such/file: does not hold
      The file cannot be opened (No such file or directory).
    1
    """
    paths = sys.argv[1:] if arguments is None else arguments
    if len(paths) != 1:
        sys.stderr.write("usage: python checker.py CERTIFICATE\n")
        return 2
    report = check(paths[0])
    sys.stdout.write(f"{paths[0]}: {report}\n")
    return 0 if report.valid else 1


if __name__ == "__main__":
    sys.exit(main())
