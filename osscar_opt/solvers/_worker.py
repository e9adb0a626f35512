"""Running a task in a thread of its own, so that the calling thread keeps hold of the clock and of Ctrl-C."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.threads import at_most, limit_this_thread, read_environment
from osscar_opt.solvers.base import Abandoned, Deadline

__all__ = ["Worker", "abandoned_threads_run", "attend", "interruption", "one_blas_thread"]

interruption: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "interruption", default=None
)
"""Set by whoever calls from a thread that Ctrl-C does not reach, and passes Ctrl-C on: an event, set means Ctrl-C."""

_abandoned: list[Worker[Any]] = []
"""Workers that had not ended when they were abandoned."""

_abandoned_lock = threading.Lock()

_POLL = 0.05
_PATIENCE_AFTER_INTERRUPT = 1.0
_PATIENCE_AT_EXIT = 10.0
_FAREWELL = 0.03
_FAREWELLS = 3

T = TypeVar("T")


class Worker(Generic[T]):
    """One task in a daemon thread, in a copy of the caller's context.

    Examples
    --------
    >>> worker = Worker(lambda: 6 * 7)
    >>> worker.finished(within=10.0), worker.result
    (True, 42)
    """

    def __init__(self, task: Callable[[], T]) -> None:
        self.result: T | None = None
        self.error: BaseException | None = None
        self._task = task
        self._lock = threading.Lock()
        self._over = False
        self._ended = (
            threading.Event()
        )  # Thread.join, once interrupted, takes a running thread for ended (Python 3.11)
        read_environment()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="osscar-opt solver", daemon=True)
        self._thread.start()

    def finished(self, within: float = 0.0) -> bool:
        """Whether the task ends within so many seconds; returns as soon as it does.

        Examples
        --------
        >>> Worker(lambda: None).finished(within=10.0)
        True
        """
        return self._ended.wait(within)

    def abandon(self) -> None:
        """Raise `Abandoned` in the thread and wait a moment; what sits in C code ends when it comes back, or never.

        Examples
        --------
        >>> from time import sleep
        >>> worker = Worker(lambda: sleep(0.2))
        >>> worker.abandon()
        >>> worker.finished(within=10.0)
        True
        """
        for _ in range(_FAREWELLS):  # again, should the task have swallowed it
            with self._lock:
                if self._over or self._thread.ident is None:
                    return
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident), ctypes.py_object(Abandoned)
                )
            if self.finished(within=_FAREWELL):
                return
        with _abandoned_lock:
            _abandoned.append(self)

    def _run(self) -> None:
        try:
            try:
                limit_this_thread()
                self.result = self._task()
            except BaseException as error:  # handed to the caller, who decides
                self.error = error
            with self._lock:
                self._over = True  # from here on `abandon` no longer raises anything in this thread
        except Abandoned:
            pass
        finally:
            self._ended.set()


def attend(
    worker: Worker[T], deadline: Deadline, grace: float, watch: Callable[[], None]
) -> Termination | None:
    """Wait for a worker, in short steps, until it ends or has ignored the deadline for `grace` seconds.

    A first KeyboardInterrupt, or `interruption`, stops the deadline and waits a second at most; a further
    KeyboardInterrupt propagates.

    Parameters
    ----------
    worker : Worker
    deadline : Deadline
    grace : float
        Seconds.
    watch : callable
        Called about twenty times a second.

    Returns
    -------
    Termination or None
        TIME_LIMIT or INTERRUPTED if the worker was told to stop, whether or not it did.

    Examples
    --------
    >>> attend(Worker(lambda: None), Deadline(), 0.1, lambda: None) is None
    True
    """
    interrupted = interruption.get()
    try:
        while deadline.remaining() > 0.0:
            if interrupted is not None and interrupted.is_set():
                raise KeyboardInterrupt
            if worker.finished(within=min(_POLL, deadline.remaining())):
                return None
            watch()
        worker.finished(within=min(grace, threading.TIMEOUT_MAX))
        return Termination.TIME_LIMIT
    except KeyboardInterrupt:
        deadline.stop()
        worker.finished(within=_PATIENCE_AFTER_INTERRUPT)
        return Termination.INTERRUPTED


def abandoned_threads_run() -> bool:
    """Whether a thread that was abandoned has still not ended.

    Examples
    --------
    >>> abandoned_threads_run()
    False
    """
    with _abandoned_lock:
        _abandoned[:] = [worker for worker in _abandoned if not worker.finished()]
        return bool(_abandoned)


@atexit.register
def _leave_before_destructors() -> None:
    """Keep an abandoned thread that is still in a BLAS call from blocking the exit of the process.

    The destructor of OpenBLAS waits for its threads, for ever if one of them is working for a thread Python has given
    up.  Where the C library has ``on_exit``, the process leaves, with its exit status, just before destructors run.
    """
    if not abandoned_threads_run():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.fflush(None)
        libc.on_exit(libc._exit, None)  # handlers are given the exit status as first argument
        return
    for worker in _abandoned:
        worker.finished(within=_PATIENCE_AT_EXIT)


@contextlib.contextmanager
def one_blas_thread(when: bool) -> Iterator[None]:
    """Keep BLAS to the calling thread: OpenBLAS makes a threaded product wait for one running in another thread.

    Examples
    --------
    >>> with one_blas_thread(True):
    ...     pass
    """
    with at_most(1) if when else contextlib.nullcontext():
        yield
