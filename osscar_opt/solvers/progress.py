"""What a running search tells the outside: events for a callback, and a line on the terminal after two seconds."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from osscar_opt.solvers.base import Deadline, Progress, Report

__all__ = ["Event", "Tally", "Watcher"]

_SHOW_AFTER = 2.0

_terminal = threading.Lock()
"""Held by the line that is being drawn: searches in several threads would write over each other's."""


@dataclass(frozen=True)
class Event:
    """The state of a search when something in it has changed.

    Attributes
    ----------
    time : float
        Seconds since the call.
    objective, bound : float
        The best claimed so far; inf and -inf before the first.
    progress : Progress
        How far the solver says it is.

    Examples
    --------
    >>> Event(0.1, 2.0, 1.0, Progress()).objective
    2.0
    """

    time: float
    objective: float
    bound: float
    progress: Progress


class Watcher:
    """Looks at a report now and then, calls `on_event` when it has changed, and draws it when it takes long.

    Parameters
    ----------
    title : str
    deadline : Deadline
    on_event : callable, optional
        Called with an `Event`, in the thread that called solve; a KeyboardInterrupt it raises stops the search as
        Ctrl-C does.
    show : bool, optional
        None: only if stderr is a terminal.

    Examples
    --------
    >>> report = Report()
    >>> watcher = Watcher("demo", Deadline(), on_event=lambda event: print(event.objective), show=False)
    >>> report.incumbent([True], 2.0)
    >>> watcher.look(report)
    2.0
    >>> watcher.close()
    """

    def __init__(
        self,
        title: str,
        deadline: Deadline,
        on_event: Callable[[Event], object] | None = None,
        show: bool | None = None,
    ) -> None:
        self._title = title
        self._deadline = deadline
        self._on_event = on_event
        self._show = sys.stderr.isatty() if show is None else show
        self._began = time.monotonic()
        self._seen: tuple[float, float, Progress] | None = None
        self._line: _Line | None = None

    def look(self, report: Report | None) -> None:
        """Compare the report with what was seen last; None means that the search has not begun.

        Examples
        --------
        >>> Watcher("demo", Deadline()).look(None)
        """
        elapsed = time.monotonic() - self._began
        state = (math.inf, -math.inf, Progress()) if report is None else report.state
        if self._on_event is not None and report is not None and state != self._seen:
            self._on_event(Event(elapsed, *state))
        self._seen = state
        if self._show and elapsed >= _SHOW_AFTER:
            self._line = self._line or _line(self._title)
            if self._line is not None:
                said = _described(Event(elapsed, *state), self._deadline.remaining())
                self._line.draw(state[2].fraction, said)

    def close(self) -> None:
        """Take the line off the terminal.

        Examples
        --------
        >>> Watcher("demo", Deadline()).close()
        """
        line, self._line = self._line, None
        if line is not None:
            line.close()


class Tally:
    """The line for many searches at once: how many are over, and about how long the rest takes.

    Parameters
    ----------
    total : int or None
        How many there are, if that is known.
    show : bool, optional
        None: only if stderr is a terminal.

    Examples
    --------
    >>> tally = Tally(10, show=False)
    >>> tally.look(done=3, running=2)
    >>> tally.close()
    """

    def __init__(self, total: int | None, show: bool | None = None) -> None:
        self._total = total
        self._show = sys.stderr.isatty() if show is None else show
        self._began = time.monotonic()
        self._line: _Line | None = None

    def look(self, done: int, running: int) -> None:
        """Draw the line, if it has taken long.

        Examples
        --------
        >>> Tally(None, show=False).look(done=0, running=1)
        """
        elapsed = time.monotonic() - self._began
        if self._show and elapsed >= _SHOW_AFTER:
            self._line = self._line or _line("problems")
            if self._line is not None:
                fraction = done / self._total if self._total else None
                self._line.draw(fraction, _tallied(done, running, self._total, elapsed))

    def close(self) -> None:
        """Take the line off the terminal.

        Examples
        --------
        >>> Tally(None, show=False).close()
        """
        line, self._line = self._line, None
        if line is not None:
            line.close()


def _line(title: str) -> _Line | None:
    """A line to draw on, or None while another search has it."""
    if not _terminal.acquire(blocking=False):
        return None
    try:
        return _Line(title)
    except BaseException:  # Ctrl-C, say, while rich is being imported
        _terminal.release()
        raise


class _Line:
    """A rich progress line on stderr; rich is imported only once there is something to draw."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True, force_terminal=True),  # whether to draw was decided before
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, state="")
        self._progress.start()

    def draw(self, fraction: float | None, said: str) -> None:
        self._progress.update(
            self._task, total=None if fraction is None else 1.0, completed=fraction or 0.0, state=said
        )

    def close(self) -> None:
        try:
            self._progress.stop()
        finally:
            _terminal.release()


def _tallied(done: int, running: int, total: int | None, elapsed: float) -> str:
    """The time left follows from the mean over those that are over, those that run counting as half done."""
    parts = [f"{done} done" if total is None else f"{done}/{total} done", f"{running} running"]
    if total is not None and done:
        begun = done + 0.5 * running
        parts.append(f"about {elapsed / begun * max(total - begun, 0.0):.0f} s left")
    return ", ".join(parts)


def _described(event: Event, time_left: float) -> str:
    parts = []
    if math.isfinite(event.objective):
        parts.append(f"objective {event.objective:.6g}")
    if math.isfinite(event.bound):
        parts.append(f"bound {event.bound:.6g}")
    if event.progress.total:
        parts.append(f"{event.progress.done:.0f}/{event.progress.total:.0f} {event.progress.unit}".rstrip())
    if math.isfinite(time_left):
        parts.append(f"{time_left:.0f} s left")
    return ", ".join(parts)
