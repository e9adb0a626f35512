"""What all tests share: none leaves a thread behind that would slow down, or change, the next one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from hanging import over


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    """Wait for abandoned solvers: while one runs, the final refits of all others are kept to one thread."""
    over.clear()
    yield
    over.set()
    worker = sys.modules.get("osscar_opt.solvers._worker")
    ends = time.monotonic() + 90.0  # of whatever is made to hang in these tests, nothing hangs for longer
    while worker is not None and worker.abandoned_threads_run() and time.monotonic() < ends:
        time.sleep(0.01)
