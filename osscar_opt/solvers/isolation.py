"""Running a solver in a child process, which can crash, leak or hang without taking the caller along.

The child is spawned, so solver and problem travel by pickle, and the main module of a script must be importable
(``if __name__ == "__main__":``).  What the solver reports comes back over a pipe and enters the caller's `Report`.
Starting the child takes about a second of the time limit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection

from osscar_opt._typing import BoolArray
from osscar_opt.errors import SolverError
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["propose_in_child"]

_POLL = 0.05
_PROGRESS_EVERY = 0.05


def propose_in_child(
    solver: Solver, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
) -> Proposal:
    """Do what ``solver.propose`` does, in a child process that is killed on the way out, whatever happens.

    Raises
    ------
    SolverError
        If solver or problem cannot be pickled, or the child ends without an answer.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[1.0]], [[1.0]], keep=1)
    >>> problem.solve("random", isolation="process").kept  # doctest: +SKIP
    array([0])
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    task = (theirs, solver, problem, start, time.time() + min(deadline.remaining(), 1e9))
    child = context.Process(target=_child_main, args=task, daemon=True, name="osscar-opt solver")
    try:
        try:
            child.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise SolverError(
                f"isolation='process' cannot send the solver to a child process: {error}."
            ) from error
        theirs.close()
        return _relay(ours, deadline, report)
    except (EOFError, ConnectionError):
        child.join(1.0)
        raise SolverError(f"the child process of the solver died with exit code {child.exitcode}.") from None
    finally:
        if child.pid is not None:
            child.kill()
            child.join(1.0)
        ours.close()


def _relay(ours: Connection, deadline: Deadline, report: Report) -> Proposal:
    """Pass what the child says to `report`, and the deadline to the child, until it answers."""
    told_to_stop = False
    while True:
        if ours.poll(_POLL):
            kind, payload = ours.recv()
            if kind == "returned":
                return payload  # type: ignore[no-any-return]
            if kind == "raised":
                raise payload
            getattr(report, kind)(*payload)
        if deadline.expired() and not told_to_stop:
            with contextlib.suppress(OSError):  # the child has just ended; what it said is still to be read
                ours.send("stop")
            told_to_stop = True


def _child_main(
    theirs: Connection, solver: Solver, problem: Problem, start: BoolArray | None, end: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    deadline = Deadline.after(end - time.time())
    threading.Thread(target=_listen, args=(theirs, deadline), daemon=True).start()
    report = _PipedReport(problem, theirs)
    try:
        answer: tuple[str, object] = (
            "returned",
            solver.propose(problem, start=start, deadline=deadline, report=report),
        )
    except BaseException as error:  # the parent decides
        answer = ("raised", error)
    report.send(*_sendable(answer))
    os._exit(0)  # whatever threads the solver left must not keep the process


def _listen(theirs: Connection, deadline: Deadline) -> None:
    try:
        theirs.recv()
        deadline.stop()
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)


def _sendable(answer: tuple[str, object]) -> tuple[str, object]:
    try:
        pickle.loads(pickle.dumps(answer))
    except (
        Exception
    ) as error:  # a certificate or an exception that does not pickle: anything can be raised here
        text = str(answer[1] if answer[0] == "raised" else error)
        return "raised", SolverError(
            f"{type(answer[1]).__name__} cannot be sent from the child process: {text}"
        )
    return answer


class _PipedReport(Report):
    """A report whose calls are repeated in the parent; progress at most twenty times a second."""

    def __init__(self, problem: Problem, pipe: Connection) -> None:
        super().__init__(problem)
        self._pipe = pipe
        self._pipe_lock = threading.Lock()
        self._next_progress = 0.0

    def send(self, kind: str, payload: object) -> None:
        with self._pipe_lock:
            self._pipe.send((kind, payload))

    def incumbent(self, support: BoolArray, objective: float | None = None) -> None:
        self.send("incumbent", (support, objective))

    def bound(self, value: float) -> None:
        if value > self.best_bound:
            super().bound(value)
            self.send("bound", (value,))

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + _PROGRESS_EVERY
            self.send("progress", (done, total, unit))
