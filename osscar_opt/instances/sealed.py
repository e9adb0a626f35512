"""Sealed files: a safetensors container with a format name, a version, and sums over everything in it.

- metadata entry ``sha256``: the sha256 of the bytes of every array;
- metadata entry ``seal``: the sha256 of all else a reader believes (metadata, array names, types and shapes).

``docs/instance-format.md`` is the normative text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from osscar_opt._typing import AnyArray
from osscar_opt.errors import FormatError
from osscar_opt.instances.container import open_container, replacing

__all__ = ["Entry", "SealedFile", "file_kind", "write_file"]

_CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL", "uint8": "U8"}


@dataclass(frozen=True)
class Entry:
    """One array as the header declares it: type code and shape."""

    dtype: str
    shape: tuple[int, ...]


def write_file(
    path: str | os.PathLike[str],
    kind: str,
    version: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, AnyArray],
) -> None:
    """Write a sealed file aside, flush it to disk, then put it in place of ``path`` in one step.

    Parameters
    ----------
    path : path-like
        The file to create or replace.  When anything fails the old file is untouched.
    kind, version : str
        Format name and ``major.minor`` version.
    metadata : mapping of str to str
        Entries beside ``format``, ``version``, ``sha256`` and ``seal``, which are added here.
    arrays : mapping of str to array
        Of float64, float32, int64, bool or uint8.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    entries = {name: Entry(_CODES[array.dtype.name], array.shape) for name, array in arrays.items()}
    sums = json.dumps({name: _sum(array) for name, array in arrays.items()}, sort_keys=True)
    full = {**metadata, "format": kind, "version": version, "sha256": sums}
    full["seal"] = _seal(full, entries)
    with replacing(path) as aside:
        try:
            save_file(arrays, aside, full)
        except SafetensorError as error:
            raise OSError(f"{os.fspath(path)}: cannot be written ({error}).") from error


class SealedFile:
    """An open sealed file, for use in a ``with`` statement; arrays are checked as they are read.

    Parameters
    ----------
    path : path-like
    kind, version : str
        The format, and a version whose major number is the one that can be read.

    Attributes
    ----------
    label : str
        The path as given, for messages.
    metadata : dict of str to str
        All metadata entries.
    entries : dict of str to Entry
        The arrays the header declares.
    minor : int
        Minor version of the file.

    Raises
    ------
    FormatError
        One sentence on the first thing that is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str, version: str) -> None:
        self.label = os.fspath(path)
        self._file = open_container(path)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        slices = {name: self._file.get_slice(name) for name in self._file.offset_keys()}
        self.entries = {name: Entry(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        self.minor = self._check_version(kind, version)
        if self.metadata.get("seal") != _seal(self.metadata, self.entries):
            raise self._error("the header does not match its seal: the file was damaged or edited.")
        self._sums = self.json("sha256")
        if not isinstance(self._sums, dict) or set(self._sums) != set(self.entries):
            raise self._error("the sha256 sums are not those of exactly the arrays of the file.")

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)

    def read(self, name: str, *, finite: bool = True) -> AnyArray:
        """Return an array of type F64, F32, I64, BOOL or U8.

        Its sum is checked, that masks hold 0 and 1, and, if ``finite``, that there is no NaN or infinite value.
        """
        try:
            array: AnyArray = self._file.get_tensor(name)
        except SafetensorError as error:
            raise self._error("the file changed while it was read.") from error
        except MemoryError as error:
            raise self._error(f"array {name!r} takes more memory than is free.") from error
        except ValueError as error:
            raise self._error(f"array {name!r} has a shape that numpy cannot hold.") from error
        if self._sums[name] != _sum(array):
            raise self._error(f"array {name!r} does not match its sha256, so the file was damaged or edited.")
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise self._error(f"array {name!r} holds NaN or infinite values.")
        if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
            raise self._error(f"mask {name!r} holds bytes other than 0 and 1.")
        return array

    def check(self, name: str) -> None:
        """Check the sum of an array that is not going to be used, if it is of a type the format knows."""
        if self.entries[name].dtype in _CODES.values():
            self.read(name, finite=False)

    def json(self, key: str) -> Any:
        """Return the metadata entry ``key`` parsed as JSON; a missing one is an error."""
        if key not in self.metadata:
            raise self._error(f"the metadata entry {key!r} is missing.")
        try:
            return _strict_json(self.metadata[key])
        except (ValueError, RecursionError) as error:
            raise self._error(f"the metadata entry {key!r} is not valid JSON.") from error

    def _check_version(self, kind: str, version: str) -> int:
        """Refuse other formats and other major versions; return the minor version."""
        found = self.metadata.get("format")
        if found != kind:
            what = "says nothing of its format" if found is None else f"is of format {found[:60]!r}"
            raise self._error(f"the file {what}, and {kind!r} is needed.")
        text = self.metadata.get("version", "")
        major, _, minor = text.partition(".")
        if not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in (major, minor)):
            raise self._error(f"the version {text[:20]!r} is not of the form major.minor.")
        if major != version.partition(".")[0]:
            raise self._error(f"the file is of version {text}, and this osscar-opt reads {version}.")
        return int(minor)

    def _error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.label}: {sentence}")


def file_kind(path: str | os.PathLike[str]) -> str:
    """Tell what a file is by the format its header names; nothing else is checked.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    str
        ``"instance"``, ``"solution"`` or ``"certificate"``.

    Raises
    ------
    FormatError
        If it is none of them.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> random_instance(0).save(path)
    >>> file_kind(path)
    'instance'
    """
    with open_container(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    family, _, kind = metadata.get("format", "").partition("/")
    if family != "osscar-opt" or kind not in ("instance", "solution", "certificate"):
        raise FormatError(f"{os.fspath(path)}: no instance, solution or certificate of osscar-opt.")
    return kind


def _sum(array: AnyArray) -> str:
    """Return the sha256 of the bytes of an array as they are in a file."""
    stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(stored.data).hexdigest()


def _seal(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    """Return the sha256 over all metadata but the seal, then name, dtype and shape of every array."""
    texts = [text for key in sorted(metadata) if key != "seal" for text in (key, metadata[key])]
    for name in sorted(entries):
        texts += [name, entries[name].dtype, "x".join(map(str, entries[name].shape))]
    encoded = [text.encode("utf-8") for text in texts]
    return hashlib.sha256(b"".join(len(raw).to_bytes(8, "little") + raw for raw in encoded)).hexdigest()


def _strict_json(text: str) -> Any:
    """Parse JSON that has no key twice and no NaN."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
