"""Peak memory of a piece of work in this process: the high-water mark of its resident set, on Linux reset beforehand.

Elsewhere (or where /proc/self/clear_refs cannot be written) only the mark of the whole life of the process is known:
what a piece of work raised it by is then a lower bound, and `exact` is False.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "give_back_freed_memory", "peak_memory"]


@dataclass
class Peak:
    """Bytes: resident before, at most during, and still after; filled when the work is done."""

    before: int = 0
    most: int = 0
    after: int = 0
    exact: bool = True

    @property
    def extra(self) -> int:
        return self.most - self.before


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    gc.collect()
    exact = _reset_mark()
    peak = Peak(before=_status("VmRSS") if exact else _mark_of_process(), exact=exact)
    try:
        yield peak
    finally:
        peak.most = _status("VmHWM") if exact else _mark_of_process()
        peak.after = _status("VmRSS") if exact else peak.most


def give_back_freed_memory(above: int = 1 << 20) -> None:
    """Have glibc return arrays of more than so many bytes to the system when they are freed, or peaks look too small.

    Before they are allocated, since what glibc has kept so far it goes on using. Slow: nothing is timed after this.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, above)  # M_MMAP_THRESHOLD, which is then no longer raised by the library itself
        libc.malloc_trim(0)


def _reset_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def _mark_of_process() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
