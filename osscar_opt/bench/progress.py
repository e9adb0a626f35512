"""How far a benchmark is, and how long the rest takes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from osscar_opt.bench.store import Run
from osscar_opt.bench.tasks import Task

__all__ = ["Progress"]

_SHOW_AFTER = 2.0
_LINE_EVERY = 20.0


class Progress:
    """Counts runs; a context manager.

    The time left is what the runs that are still to be made should take at the mean time of their method, scaled by
    what those that are done have taken in all.

    Parameters
    ----------
    tasks : iterable of Task
        What is to be run.
    show : bool, optional
        False for nothing at all; None and True: the bar if standard error is a terminal, lines otherwise.

    Examples
    --------
    >>> task = Task("small", "small.safetensors", "", 4, 4, 2, 2, "greedy")
    >>> with Progress([task], show=False) as progress:
    ...     progress.add(Run.failed(task, "It hung."))
    ...     progress.sentence()
    '1 of 1 runs, 1 failed, about 0 s left'
    """

    def __init__(self, tasks: Iterable[Task], show: bool | None = None) -> None:
        self._left = Counter(task.label for task in tasks)
        self._total = sum(self._left.values())
        self._failed = 0
        self._done: Counter[str] = Counter()
        self._spent: dict[str, float] = {}
        self._began = time.monotonic()
        self._show = show is not False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._show and self._total:
            watch = self._bar if sys.stderr.isatty() else self._lines
            self._thread = threading.Thread(target=watch, name="osscar-opt progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def add(self, run: Run) -> None:
        """Count a run that is over.

        Examples
        --------
        >>> task = Task("small", "small.safetensors", "", 4, 4, 2, 2, "greedy")
        >>> Progress([task]).add(Run.failed(task, "It hung."))
        """
        with self._lock:
            self._left[run.label] -= 1
            self._done[run.label] += 1
            spent = self._spent.get(run.label, 0.0)
            self._spent[run.label] = spent + run.wall + (run.setup or 0.0) + 1e-3
            self._failed += run.outcome == "failed"

    def time_left(self) -> float | None:
        """Seconds that the rest should take; None before the first run is over.

        Examples
        --------
        >>> Progress([]).time_left() is None
        True
        """
        with self._lock:
            done, spent = sum(self._done.values()), sum(self._spent.values())
            if not done:
                return None
            means = {label: self._spent[label] / self._done[label] for label in self._done}
            ahead = sum(count * means.get(label, spent / done) for label, count in self._left.items())
        return (time.monotonic() - self._began) * ahead / spent

    def sentence(self) -> str:
        """Say it in words.

        Examples
        --------
        >>> Progress([Task("small", "a", "", 4, 4, 2, 2, "greedy")]).sentence()
        '0 of 1 runs'
        """
        done, left = sum(self._done.values()), self.time_left()
        parts = [f"{done} of {self._total} runs"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if left is not None:
            parts.append(f"about {_spelled(left)} left")
        return ", ".join(parts)

    def _lines(self) -> None:
        while not self._over.wait(_LINE_EVERY):
            sys.stderr.write(f"osscar-opt: {self.sentence()}\n")
            sys.stderr.flush()

    def _bar(self) -> None:
        if self._over.wait(_SHOW_AFTER):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns: list[Any] = [BarColumn(bar_width=30), TextColumn("{task.description}"), TimeElapsedColumn()]
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=self._total)
            while True:
                bar.update(task, completed=sum(self._done.values()), description=self.sentence())
                if self._over.wait(0.25):
                    return


def _spelled(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
