"""The safetensors container: headers read without trust, files put in place in one step.

A file is an 8-byte little-endian header length, a JSON header, then the arrays back to back.  Reading is our own
rather than the safetensors package's, because nothing may be allocated on the word of a header, every fault gets a
sentence, and a file that shrinks while it is open must be an error, not the crash of a memory map.  The tests
hold the two against each other.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from osscar_opt.errors import FormatError

__all__ = ["Entry", "Replacing", "header_bytes", "open_regular", "parse_json", "read_header"]

MAX_HEADER = 100_000_000  # the limit of safetensors itself

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class Entry:
    """One array as the header declares it: type code, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Replacing:
    """Context manager: a binary file written aside and moved over ``path`` only when the block succeeds.

    A link is followed.  The file and its directory are flushed to disk.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.bin"
    >>> with Replacing(target) as file:
    ...     _ = file.write(b"new")
    >>> target.read_bytes()
    b'new'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.target = Path(path).resolve()
        self.aside = self.target.with_name(f".{self.target.name[:100]}.{secrets.token_hex(6)}.tmp")

    def __enter__(self) -> BinaryIO:
        if self.target.is_dir():
            raise IsADirectoryError(f"cannot write {self.target}: it is a directory")
        self.file = self.aside.open("xb")
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                self.aside.replace(self.target)
                _sync_directory(self.target.parent)
        finally:
            self.file.close()
            with suppress(FileNotFoundError):
                self.aside.unlink()


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading: never a directory, and never a pipe, which would wait for a writer.

    Raises
    ------
    FormatError
        If there is no such file, or it cannot be read.
    """
    label = os.fspath(path)
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)
        file = Path(path).open("rb") if regular else None  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise FormatError(f"{label}: cannot be opened ({reason}).") from error
    if file is None:
        raise FormatError(f"{label}: not a regular file.")
    return file


def read_header(label: str, file: BufferedReader) -> tuple[dict[str, str], dict[str, Entry], int]:
    """Read and check the header of an open file.

    Returns
    -------
    metadata : dict of str to str
    entries : dict of str to Entry
        They tile the rest of the file exactly.
    start : int
        Where the data begins.

    Raises
    ------
    FormatError
        One sentence on the first thing that is wrong.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 10:
        raise FormatError(f"{label}: {size} bytes are too few for a safetensors file.")
    if length < 2 or length > min(MAX_HEADER, size - 8):
        raise FormatError(
            f"{label}: not a safetensors file, or cut short: the header claims {length} of {size} bytes."
        )
    raw = file.read(length)
    if len(raw) != length:
        raise FormatError(f"{label}: the file shrank while it was read.")
    try:
        header = _strict_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{label}: the header is not valid JSON; damaged, or another kind of file."
        ) from error
    if not isinstance(header, dict) or raw[:1] != b"{":
        raise FormatError(f"{label}: the header is not a JSON object; damaged, or another kind of file.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{label}: the metadata of the header is not a mapping of text to text.")
    entries = {name: _entry(label, name, spec) for name, spec in header.items()}
    _require_tiling(label, entries, size - 8 - length)
    return metadata, entries, 8 + length


def header_bytes(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> bytes:
    """Return length and JSON header, padded with spaces so that the data starts at a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    raw = json.dumps(header, separators=(",", ":")).encode("ascii")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise FormatError(
            f"the metadata takes {len(raw)} bytes, and a file may have {MAX_HEADER}; shorten it."
        )
    return len(raw).to_bytes(8, "little") + raw


def parse_json(label: str, metadata: Mapping[str, str], key: str) -> Any:
    """Parse one metadata entry strictly: no duplicate keys, no NaN, no bottomless nesting."""
    if key not in metadata:
        raise FormatError(f"{label}: the metadata entry {key!r} is missing.")
    try:
        return _strict_json(metadata[key])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{label}: the metadata entry {key!r} is not valid JSON.") from error


def _require_tiling(label: str, entries: Mapping[str, Entry], data_bytes: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise FormatError(f"{label}: array {name!r} overlaps another one or leaves a hole before it.")
        at = entry.end
    if at != data_bytes:
        state = "cut short" if at > data_bytes else "followed by bytes nobody declared"
        raise FormatError(f"{label}: the arrays take {at} bytes of {data_bytes}, so the file is {state}.")


def _entry(label: str, name: str, spec: object) -> Entry:
    """Check the declaration of one array."""
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{label}: array {name!r} is not declared by dtype, shape and data_offsets.")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{label}: the dtype, shape or data_offsets of array {name!r} are malformed.")
    begin, end = offsets
    # A type we have never heard of can only sit in an array that is passed over; its size is its own affair.
    if end < begin or (dtype in _ITEM_BYTES and math.prod(shape) * _ITEM_BYTES[dtype] != end - begin):
        raise FormatError(f"{label}: {dtype} array {name!r} of shape {shape} does not fit its data_offsets.")
    return Entry(dtype, tuple(shape), begin, end)


def _naturals(value: object) -> bool:
    """Whether ``value`` is a list of at most 8 integers in 0 ... 2**63 - 1 (True is not an integer here)."""
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
    )


def _strict_json(text: str) -> Any:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable; systems that cannot open a directory do without."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
