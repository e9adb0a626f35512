"""Sealed files: a safetensors container with a format name, a version, and sums over everything in it.

- metadata entry ``sha256``: the sha256 of the bytes of every array;
- metadata entry ``seal``: the sha256 of all else a reader believes (metadata, array names, types and shapes).

Arrays are streamed in both directions, so that what was hashed is what was read, and no array need exist twice.
``docs/instance-format.md`` is the normative text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray
from osscar_opt.errors import FormatError
from osscar_opt.instances.container import (
    Entry,
    Replacing,
    header_bytes,
    open_regular,
    parse_json,
    read_header,
)

__all__ = ["SealedFile", "Source", "file_kind", "write_file"]

CHUNK_BYTES = 1 << 22

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("u1"),  # read as bytes, so that a byte other than 0 and 1 can be refused
}
_CODES = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32", np.dtype("<i8"): "I64", np.dtype("?"): "BOOL"}


@dataclass(frozen=True)
class Source:
    """One array to be written, handed over in pieces so that it need not exist as a whole.

    Parameters
    ----------
    dtype : numpy dtype
        Little-endian float64, float32, int64 or bool.
    shape : tuple of int
        The shape declared in the header.
    chunks : callable
        Returns a fresh iterator over contiguous pieces; called twice, once to hash and once to write.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[AnyArray]]

    @classmethod
    def of(cls, array: AnyArray, dtype: str | None = None) -> Source:
        """Wrap an array that exists, converted to ``dtype`` piece by piece."""
        target = np.dtype(dtype or array.dtype).newbyteorder("<")

        def chunks() -> Iterator[AnyArray]:
            step = max(1, CHUNK_BYTES // max(1, target.itemsize * math.prod(array.shape[1:])))
            for start in range(0, array.shape[0], step):
                yield np.ascontiguousarray(array[start : start + step], dtype=target)

        return cls(target, array.shape, chunks)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the array in the file."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_file(
    path: str | os.PathLike[str],
    kind: str,
    version: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, Source],
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
    arrays : mapping of str to Source
        The arrays; stored widest type first, so that each is aligned.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    digests = {}
    for name in order:
        digest = hashlib.sha256()
        for chunk in arrays[name].chunks():
            digest.update(_bytes_of(chunk))
        digests[name] = digest.hexdigest()
    entries: dict[str, Entry] = {}
    begin = 0
    for name in order:
        end = begin + arrays[name].nbytes
        entries[name] = Entry(_CODES[arrays[name].dtype], arrays[name].shape, begin, end)
        begin = end
    full = {**metadata, "format": kind, "version": version, "sha256": json.dumps(digests, sort_keys=True)}
    full["seal"] = _seal(full, entries)
    with Replacing(path) as file:
        file.write(header_bytes(full, entries))
        for name in order:
            written = sum(file.write(_bytes_of(chunk)) for chunk in arrays[name].chunks())
            if written != arrays[name].nbytes:  # a Source whose chunks do not fill its shape is our bug
                raise AssertionError(f"array {name!r}: {written} bytes, not {arrays[name].nbytes}")


@dataclass
class SealedFile:
    """An open sealed file whose header has been checked; arrays are checked as they are read.

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
    """

    label: str
    metadata: dict[str, str]
    entries: dict[str, Entry]
    minor: int
    _file: BufferedReader = field(repr=False)
    _start: int = field(repr=False)
    _digests: dict[str, str] = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: str, version: str) -> SealedFile:
        """Open ``path``, for use in a ``with`` statement, and check everything but the bytes of the arrays.

        Raises
        ------
        FormatError
            One sentence on the first thing that is wrong.
        """
        label = os.fspath(path)
        file = open_regular(path)
        try:
            metadata, entries, start = read_header(label, file)
            minor = _check_version(label, metadata, kind, version)
            _check_seal(label, metadata, entries)
            digests = parse_json(label, metadata, "sha256")
            if not isinstance(digests, dict) or set(digests) != set(entries):
                raise FormatError(
                    f"{label}: the sha256 sums are not those of exactly the arrays of the file."
                )
        except BaseException:
            file.close()
            raise
        return cls(label, metadata, entries, minor, file, start, digests)

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def chunks(
        self, name: str, items: Iterable[int] | None = None, *, finite: bool = True
    ) -> Iterator[AnyArray]:
        """Yield the array ``name`` as flat pieces and check finiteness, 0/1 bytes and, at the end, the hash.

        Parameters
        ----------
        name : str
            An array of :attr:`entries` of type F64, F32, I64 or BOOL.
        items : iterable of int, optional
            Number of items of each piece; must add up to the size of the array.  Each piece is a view of
            one buffer that the next piece overwrites.
        finite : bool
            Whether NaN and infinite values are refused.
        """
        entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        total = (entry.end - entry.begin) // dtype.itemsize
        digest = hashlib.sha256()
        buffer = np.empty(0, dtype=dtype)
        self._file.seek(self._start + entry.begin)
        for count in items if items is not None else _even(total, CHUNK_BYTES // dtype.itemsize):
            if count > buffer.size:
                buffer = np.empty(count, dtype=dtype)
            piece = buffer[:count]
            self._fill(_bytes_of(piece))
            digest.update(_bytes_of(piece))
            if finite and entry.dtype in ("F64", "F32") and not np.isfinite(piece).all():
                raise FormatError(f"{self.label}: array {name!r} holds NaN or infinite values.")
            if entry.dtype == "BOOL" and piece.size and piece.max() > 1:
                raise FormatError(f"{self.label}: mask {name!r} holds bytes other than 0 and 1.")
            yield piece
        self._compare(name, digest.hexdigest())

    def read(self, name: str, *, finite: bool = True) -> AnyArray:
        """Return the whole array in native byte order: float64, float32, int64 or bool."""
        entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        flat = np.empty(math.prod(entry.shape), dtype=dtype.newbyteorder("="))
        at = 0
        for piece in self.chunks(name, finite=finite):
            flat[at : at + piece.size] = piece
            at += piece.size
        array = flat.view(np.bool_) if entry.dtype == "BOOL" else flat
        return array.reshape(entry.shape)

    def check(self, name: str) -> None:
        """Check the hash of an array that is not going to be used."""
        entry = self.entries[name]
        digest = hashlib.sha256()
        self._file.seek(self._start + entry.begin)
        for count in _even(entry.end - entry.begin, CHUNK_BYTES):
            piece = bytearray(count)
            self._fill(memoryview(piece))
            digest.update(piece)
        self._compare(name, digest.hexdigest())

    def json(self, key: str) -> Any:
        """Return the metadata entry ``key`` parsed as JSON; a missing one is an error."""
        return parse_json(self.label, self.metadata, key)

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            got = self._file.readinto(view[done:])
            if not got:
                raise FormatError(f"{self.label}: the file shrank while it was read.")
            done += got

    def _compare(self, name: str, found: str) -> None:
        if self._digests[name] != found:
            raise FormatError(
                f"{self.label}: array {name!r} does not match its sha256, so the file was damaged or edited."
            )


def file_kind(path: str | os.PathLike[str]) -> str:
    """Tell an instance file from a solution file by the format its header names; nothing else is checked.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    str
        ``"instance"`` or ``"solution"``.

    Raises
    ------
    FormatError
        If it is neither.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> random_instance(0).save(path)
    >>> file_kind(path)
    'instance'
    """
    label = os.fspath(path)
    with open_regular(path) as file:
        metadata, _, _ = read_header(label, file)
    family, _, kind = metadata.get("format", "").partition("/")
    if family != "osscar-opt" or kind not in ("instance", "solution"):
        raise FormatError(f"{label}: neither an instance nor a solution of osscar-opt.")
    return kind


def _check_version(label: str, metadata: Mapping[str, str], kind: str, version: str) -> int:
    """Refuse other formats and other major versions; return the minor version."""
    found = metadata.get("format")
    if found != kind:
        what = "says nothing of its format" if found is None else f"is of format {found[:60]!r}"
        raise FormatError(f"{label}: the file {what}, and {kind!r} is needed.")
    text = metadata.get("version", "")
    major, dot, minor = text.partition(".")
    if not (dot and _plain_number(major) and _plain_number(minor)):
        raise FormatError(f"{label}: the version {text[:20]!r} is not of the form major.minor.")
    if major != version.partition(".")[0]:
        raise FormatError(f"{label}: the file is of version {text}, and this osscar-opt reads {version}.")
    return int(minor)


def _plain_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def _check_seal(label: str, metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    try:
        expected = _seal(metadata, entries)
    except UnicodeEncodeError as error:
        raise FormatError(f"{label}: the header holds text that is not Unicode.") from error
    if metadata.get("seal") != expected:
        raise FormatError(f"{label}: the header does not match its seal: the file was damaged or edited.")


def _seal(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    """Return the sha256 over all metadata but the seal, then name, dtype and shape of every array."""
    texts = [text for key in sorted(metadata) if key != "seal" for text in (key, metadata[key])]
    for name in sorted(entries):
        texts += [name, entries[name].dtype, "x".join(map(str, entries[name].shape))]
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _bytes_of(chunk: AnyArray) -> memoryview:
    """Return the bytes of a contiguous array without a copy (an empty one has none to view)."""
    return chunk.reshape(-1).view(np.uint8).data if chunk.size else memoryview(b"")


def _even(total: int, step: int) -> Iterator[int]:
    """Split ``total`` into pieces of at most ``step``."""
    for start in range(0, total, step):
        yield min(step, total - start)
