"""Files of the safetensors package, opened with care and put in place in one step.

Arrays are read with ``pread``, not through a memory map: if a file shrinks while it is open, or an array does not
fit into memory, a map ends the process and a read ends in an exception.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from osscar_opt.errors import FormatError

__all__ = ["open_container", "replacing"]


def open_container(path: str | os.PathLike[str]) -> Any:
    """Open a safetensors file; the package compares its header with its size.

    Anything but a regular file is refused first: a pipe would wait for a writer.
    """
    label = os.fspath(path)
    try:
        status = Path(path).stat()
        regular = stat.S_ISREG(status.st_mode)
        if regular:
            Path(path).open("rb").close()  # for the reason, which the package does not give
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise FormatError(f"{label}: cannot be opened ({reason}).") from error
    if not regular:
        raise FormatError(f"{label}: not a regular file.")
    if status.st_size < 8:
        raise FormatError(f"{label}: {status.st_size} bytes are too few for a safetensors file.")
    try:
        return safe_open(path, framework="numpy", backend="pread")
    except (SafetensorError, OSError) as error:  # OSError: the file is gone or empty by now
        raise FormatError(
            f"{label}: not a safetensors file, or one that was cut short or damaged."
        ) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a file to write aside; it is moved over ``path`` only when the block succeeds.

    A link is followed.  The file and its directory are flushed to disk.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.bin"
    >>> with replacing(target) as aside:
    ...     _ = aside.write_bytes(b"new")
    >>> target.read_bytes()
    b'new'
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a directory")
    aside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        aside.touch(exist_ok=False)
        mode = stat.S_IMODE(aside.stat().st_mode)
        yield aside
        aside.chmod(mode)  # the package lets nobody but the owner read what it writes
        _flush(aside)
        aside.replace(target)
        with suppress(OSError):  # systems that cannot open a directory do without
            _flush(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
