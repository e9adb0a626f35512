"""Records: the best known value, support and bound of every pair of an instance and a keep, with their proofs.

A folder of records is a file ``records.jsonl``, one JSON object a line and never rewritten, only appended to, beside a
folder ``certificates``.  One lies in the package; a user's own is in the data folder of
`osscar_opt.instances.listing`, and is read after it.
What is best is worked out anew whenever the records are read: the smallest value and the largest certified bound.

Nothing enters that was not recomputed: see `osscar_opt.instances.submissions`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osscar_opt.errors import FormatError, InputError
from osscar_opt.formulations.solution import relative_gap
from osscar_opt.instances.listing import data_folder

__all__ = ["Best", "Record", "append", "best_known", "read_records", "records", "records_folders"]

FILE = "records.jsonl"
PROVED = 1e-6
"""Relative gap at which a value counts as proved optimal, as for `Status.OPTIMAL`."""

_SHIPPED = Path(__file__).with_name("data")
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Record:
    """One submission that was checked and found to be an improvement when it was made.

    Attributes
    ----------
    instance : str
        Name in the catalogue.
    hash : str
        Of the problem, `Problem.hash`: the key, with `keep`.
    keep : int or None
        None for an instance whose own limits, a budget or blocks, take the place of a keep.
    value : float
        Objective of the refitted weights on the support.
    kept : tuple of int
        Groups of the support.
    bound : float or None
        No support is better; certified, or None.
    proof : str
        Of the bound: "enumeration", "tree" (of a branch and bound), "relaxation" (a tree of one node), or "none".
    proved : bool
        Whether the best bound known met the value, up to rounding, when the record was made.
    method, version : str
        What found it: the method, and this library's version.
    by, date, machine : str
        Who, when (YYYY-MM-DD), on what.
    seconds : float
        Of the search.
    certificate : mapping or None
        "sha256" and "bytes" of the certificate's file without its problem, its number of "nodes", and "file", the
        path beside the records, or None if only its sum was kept (it can be regenerated: `Record.method`).

    Examples
    --------
    >>> Record("tiny", "ab12", 2, value=2.0, kept=(0, 1), bound=1.5, proof="tree", method="exact").gap
    0.25
    """

    instance: str
    hash: str
    keep: int | None
    value: float
    kept: tuple[int, ...]
    bound: float | None = None
    proof: str = "none"
    proved: bool = False
    method: str = ""
    version: str = ""
    by: str = ""
    date: str = ""
    machine: str = ""
    seconds: float = 0.0
    certificate: Mapping[str, Any] | None = None

    @property
    def gap(self) -> float:
        """``(value - bound) / abs(value)``; inf without a bound.

        Examples
        --------
        >>> Record("tiny", "ab12", 2, value=2.0, kept=(0,)).gap
        inf
        """
        return relative_gap(self.value, -math.inf if self.bound is None else self.bound)

    def to_dict(self) -> dict[str, Any]:
        """Return the line of the file, as JSON has it.

        Examples
        --------
        >>> record = Record("tiny", "ab12", 2, value=2.0, kept=(0,))
        >>> record.to_dict()["kept"]
        [0]
        """
        document = dataclasses.asdict(self)
        return document | {"kept": list(self.kept), "certificate": _plain(self.certificate)}


@dataclass(frozen=True)
class Best:
    """What is known of a pair: the smallest value and its support, the largest certified bound.

    Attributes
    ----------
    value : float
    kept : tuple of int
    bound : float
        -inf if there is none.
    proved : bool
        Whether they meet.
    record : Record
        The one with the value.
    proof : Record or None
        The one with the bound.

    Examples
    --------
    >>> best = next(iter(best_known().values()))
    >>> best.bound <= best.value * (1 + 1e-9)
    True
    """

    value: float
    kept: tuple[int, ...]
    bound: float
    proved: bool
    record: Record
    proof: Record | None

    @property
    def gap(self) -> float:
        """``(value - bound) / abs(value)``, 0 where they meet, inf without a bound.

        Examples
        --------
        >>> all(best.gap >= 0.0 for best in best_known().values())
        True
        """
        return 0.0 if self.proved else relative_gap(self.value, self.bound)


def records_folders() -> tuple[Path, ...]:
    """Return the folders that records are read from: the package's, then the user's own.

    Examples
    --------
    >>> [folder.name for folder in records_folders()][0]
    'data'
    """
    return _SHIPPED, data_folder()


def records(folders: Iterable[str | os.PathLike[str]] | None = None) -> tuple[Record, ...]:
    """Return all records, oldest first within a folder.

    Parameters
    ----------
    folders : iterable of path-like, optional
        In place of `records_folders`.

    Raises
    ------
    FormatError
        If a file of records is damaged.

    Examples
    --------
    >>> all(record.kept == tuple(sorted(record.kept)) for record in records())
    True
    """
    chosen = records_folders() if folders is None else tuple(Path(folder) for folder in folders)
    return tuple(record for folder in chosen for record in read_records(folder / FILE))


def best_known(
    folders: Iterable[str | os.PathLike[str]] | None = None,
) -> dict[tuple[str, int | None], Best]:
    """Return what is known of every pair, by (hash of the problem, keep).

    Parameters
    ----------
    folders : iterable of path-like, optional
        In place of `records_folders`.

    Examples
    --------
    >>> from osscar_opt.instances import catalogue
    >>> entry = catalogue()[0]
    >>> best_known()[entry.hash, entry.pairs[0]].proved
    True
    """
    found: dict[tuple[str, int | None], Best] = {}
    for record in records(folders):
        key = record.hash, record.keep
        found[key] = _better(found.get(key), record)
    return found


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read one file of records; none if there is no such file.

    A last line without its end is what a crash left of a record that was never acknowledged, and is passed over.

    Raises
    ------
    FormatError
        Naming the first line that is no record.

    Examples
    --------
    >>> read_records("no/such/file.jsonl")
    []
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{os.fspath(path)}: cannot be read ({error}).") from error
    lines = text.split("\n")[:-1]
    return [_parsed(line, os.fspath(path), number) for number, line in enumerate(lines, 1) if line.strip()]


def append(record: Record, folder: str | os.PathLike[str], certificate: bytes | None = None) -> Path:
    """Append a record to a folder's file, and put its certificate beside it.

    The certificate is written first and the line in one piece after it, flushed to disk, under a lock: whatever
    happens, no record names a file that is not there.

    Parameters
    ----------
    record : Record
        Its `certificate` must name the file if there are bytes.
    folder : path-like
        Created if need be.
    certificate : bytes, optional

    Returns
    -------
    pathlib.Path
        The file of records.

    Raises
    ------
    OSError
        If the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> record = Record("tiny", "ab12", 2, value=2.0, kept=(0,))
    >>> path = append(record, tempfile.mkdtemp())
    >>> read_records(path) == [record]
    True
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    try:
        with FileLock(folder / ".records.lock", timeout=_LOCK_SECONDS):
            if certificate is not None and record.certificate is not None:
                _write_certificate(folder / record.certificate["file"], certificate)
            _append_line(path, json.dumps(record.to_dict(), allow_nan=False, sort_keys=True))
    except Timeout as error:
        raise InputError(
            f"{path}: somebody else has been writing to it for {_LOCK_SECONDS:.0f} s; try again later."
        ) from error
    return path


def _append_line(path: Path, line: str) -> None:
    with path.open("ab+") as file:
        whole = file.tell() == 0 or _last_byte(file) == b"\n"
        if not whole:  # what a crash left: cut it off, so that it does not become part of this record
            file.truncate(_end_of_last_line(path))
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)  # type: ignore[no-any-return]


def _end_of_last_line(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _write_certificate(path: Path, raw: bytes) -> None:
    from osscar_opt.instances.container import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        aside.write_bytes(raw)


def _parsed(line: str, label: str, number: int) -> Record:
    try:
        document = json.loads(line)
        document["kept"] = tuple(document["kept"])
        record = Record(**document)
        if not math.isfinite(record.value) or not isinstance(record.hash, str):
            raise ValueError("its value is no number, or its hash no text")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(
            f"{label}: line {number} is not a record ({error}); restore the file or delete the line."
        ) from error
    return record


def _better(best: Best | None, record: Record) -> Best:
    """Take in another record: its value and its bound are two separate claims to be the best."""
    if best is None or record.value < best.value:
        value, kept, holder = record.value, record.kept, record
    else:
        value, kept, holder = best.value, best.kept, best.record
    bound, proof = (-math.inf, None) if best is None else (best.bound, best.proof)
    if record.bound is not None and record.bound > bound:
        bound, proof = record.bound, record
    proved = holder.proved or relative_gap(value, bound) <= PROVED
    return Best(value, kept, bound, proved, holder, proof)


def _plain(certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if certificate is None else dict(certificate)
