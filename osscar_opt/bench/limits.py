"""What the operating system is asked to hold a run to; nothing happens where the system has no such thing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

__all__ = [
    "adopt_orphans",
    "be_first_victim",
    "children_of",
    "die_with_parent",
    "limit_memory",
    "tree_memory",
]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MIB = 1 << 20
_MOST_PROCESSES = 1000


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent dies.

    Parameters
    ----------
    parent : int
        Its number; should the parent be gone already, this process ends here.

    Examples
    --------
    >>> die_with_parent(os.getppid())  # doctest: +SKIP
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own: none gets out of sight.

    Examples
    --------
    >>> adopt_orphans()  # doctest: +SKIP
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit_memory(mebibytes: int) -> None:
    """Let this process have so much memory beyond what it has now; more is refused to it by the system.

    Private writable memory is what counts.  Address space does not: threads and libraries reserve gigabytes of it that
    they never touch.

    Examples
    --------
    >>> limit_memory(2048)  # doctest: +SKIP
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: above what this process may have anyhow
        held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        most = held + mebibytes * _MIB
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def be_first_victim() -> None:
    """Offer this process to the kernel, should the machine run out of memory.

    Examples
    --------
    >>> be_first_victim()  # doctest: +SKIP
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def children_of(process: int) -> list[int]:
    """Numbers of a process's children; none where the system does not tell.

    Examples
    --------
    >>> children_of(-1)
    []
    """
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def tree_memory(process: int) -> int:
    """MiB of memory that a process and its descendants hold; 0 where the system does not tell.

    Memory that a descendant still shares with its parent counts twice.

    Examples
    --------
    >>> tree_memory(-1)
    0
    """
    pages, seen, left = 0, set[int](), [process]
    while left and len(seen) < _MOST_PROCESSES:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{one}/statm").read_text().split()
            pages += int(fields[1]) - int(
                fields[2]
            )  # without what is mapped from files, the instance above all
        left += children_of(one)
    return pages * os.sysconf("SC_PAGE_SIZE") // _MIB


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
