"""Instances as the runner holds them: read and checked once, laid out once for all runs to share."""

from __future__ import annotations

import fcntl
import os
import pickle
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from osscar_opt.errors import FormatError
from osscar_opt.formulations.problem import Problem

__all__ = ["Posting", "posting"]

_MOST_BYTES = 1 << 30
"""Of all instances that are held; the one in use is held whatever its size."""

_held: OrderedDict[tuple[int, str], Posting] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Posting:
    """An instance, and the file in which it is laid out for the processes of the runs.

    Attributes
    ----------
    problem : Problem
        The runner's own: what a run does to its view of the file does not reach it.
    file : int
        Descriptor of a file without a name, which nobody can write to any more.
    sizes : list of int
        Bytes of its parts.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt.bench.child import read_problem
    >>> posting = Posting.of(Problem(np.eye(2), np.ones((2, 1)), keep=1))
    >>> read_problem(posting.file, posting.sizes).hash == posting.problem.hash
    True
    """

    problem: Problem
    file: int
    sizes: list[int]

    @classmethod
    def of(cls, problem: Problem) -> Posting:
        """Lay a problem out.

        Examples
        --------
        >>> Posting.of(Problem([[1.0]], [[1.0]], keep=1)).problem.keep
        1
        """
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(problem, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        file = _file(parts)
        return cls(problem, file, [part.nbytes for part in parts])

    def __del__(self) -> None:
        os.close(self.file)


def posting(path: str, content: str) -> Posting:
    """Read an instance, or take the one that was read before.

    Parameters
    ----------
    path : str
    content : str
        What its hash must be; "" for whatever it is.

    Raises
    ------
    FormatError
        If the file is missing, damaged, or another instance.

    Examples
    --------
    >>> posting("no/such/file", "")
    Traceback (most recent call last):
    osscar_opt.errors.FormatError: no/such/file: cannot be opened (No such file or directory).
    """
    from osscar_opt.instances import load

    key = os.getpid(), path
    with _lock:  # one is read at a time: the runs that wait want this very one, as a rule
        found = _held.get(key)
        if found is None or (content and found.problem.hash != content):
            found = Posting.of(load(path))
            _held[key] = found
        _held.move_to_end(key)
        while len(_held) > 1 and sum(sum(other.sizes) for other in _held.values()) > _MOST_BYTES:
            _held.popitem(last=False)
    if content and found.problem.hash != content:
        raise FormatError(f"{path}: not the instance that was planned, its content has another hash.")
    return found


def _file(parts: list[memoryview]) -> int:
    """A file without a name that holds the parts, each from a multiple of 64 bytes on; for reading only."""
    padded = [piece for part in parts for piece in (part, b"\0" * (-part.nbytes % 64))]
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("osscar-opt instance", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            for piece in padded:
                _write(file, piece)
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(file)
            raise
        return file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instance"
        with path.open("wb") as written:
            for piece in padded:
                written.write(piece)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _write(file: int, piece: memoryview | bytes) -> None:
    left = memoryview(piece)
    while left.nbytes:
        left = left[os.write(file, left) :]
