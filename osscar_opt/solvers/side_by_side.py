"""Many problems, side by side in threads of one process.

BLAS releases the interpreter's lock, so solves in several threads use several cores; problems are shared, not copied.
The solves share one limit on BLAS's threads (`osscar_opt.linalg.threads`): with as many threads in all as there are
cores, none waits for another's.

The calling thread takes the problems from the iterable one after another, hands each to a thread of its own as soon
as one of the `jobs` places is free, and collects what comes back; only the calling thread runs code of the caller.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import operator
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from osscar_opt.errors import InputError, OsscarError, SolveAllError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Solution
from osscar_opt.linalg.threads import (
    at_most,
    available_cores,
    checked_count,
    in_force,
    limit_this_thread,
    read_environment,
    threads,
)
from osscar_opt.solvers._worker import interruption
from osscar_opt.solvers.base import Solver
from osscar_opt.solvers.progress import Tally
from osscar_opt.solvers.referee import solve
from osscar_opt.solvers.registry import get_solver

__all__ = ["solve_all"]

_MOST_JOBS_BY_DEFAULT = 8
"""Beyond, solves wait for the interpreter's lock more than they gain, and each holds copies of its matrix."""

_POLL = 0.05

Posed = Problem | tuple[Problem, Mapping[str, Any]]
T = TypeVar("T")


@overload
def solve_all(
    problems: Iterable[Posed],
    method: str | Solver | type[Solver] = ...,
    *,
    jobs: int | None = ...,
    threads: int | None = ...,
    progress: bool | None = ...,
    then: None = ...,
    **options: Any,
) -> list[Solution]: ...
@overload
def solve_all(
    problems: Iterable[Posed],
    method: str | Solver | type[Solver] = ...,
    *,
    jobs: int | None = ...,
    threads: int | None = ...,
    progress: bool | None = ...,
    then: Callable[[Solution], T],
    **options: Any,
) -> list[T]: ...
def solve_all(
    problems: Iterable[Posed],
    method: str | Solver | type[Solver] = "auto",
    *,
    jobs: int | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    then: Callable[[Solution], Any] | None = None,
    **options: Any,
) -> list[Any]:
    """Solve many problems, several at a time, and return what `osscar_opt.solve` returns for each.

    The solutions are those of solving one by one with as many threads each.  A problem that fails does not stop the
    others.  Ctrl-C ends the running solves with the best they have, as it does for `osscar_opt.solve`; no further one
    begins, a warning says so, and the list holds the solutions of the problems that were begun: the first ones.

    Parameters
    ----------
    problems : iterable of Problem, or of pairs (Problem, options)
        Taken one by one, in the calling thread, and at most one ahead of the solves.  The options of a pair, `method`
        among them, come on top of those of the call.
    method : str, Solver, or subclass of Solver, optional
    jobs : int, optional
        How many problems are solved at a time: by default one for each thread, up to 8.
    threads : int, optional
        How many threads all solves use together, ``max(1, threads // jobs)`` each: a limit on the whole process for
        the length of the call.  By default the limit in force (`osscar_opt.threads`), or else the number of cores.
    progress : bool, optional
        Show one line for the whole on stderr after two seconds; None: only if stderr is a terminal.
    then : callable, optional
        Called with each solution, in the calling thread, as soon as it is there; the list holds what it returns.  A
        solution refers to its problem: where not all problems fit into memory, ``then`` saves the solution, say, and
        returns what is to be kept of it.  If Ctrl-C comes while it runs, the list holds the solution itself.
    **options
        As for `osscar_opt.solve`, for every problem: keep, time_limit, ..., and options of the method.

    Returns
    -------
    list of Solution
        In the order of the problems; of whatever `then` returns, if it is given.

    Raises
    ------
    InputError
        If jobs or threads is not a whole number, at least 1; or if ``OSSCAR_OPT_THREADS`` is not.
    UnknownMethodError, OptionError, UnavailableError
        As `osscar_opt.solve`, before the first problem is taken.
    SolveAllError
        If a problem failed, once all others are solved; it carries their solutions.

    Examples
    --------
    >>> import numpy as np
    >>> problems = [Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=keep) for keep in (1, 2)]
    >>> [solution.objective for solution in solve_all(problems, "greedy", jobs=2)]
    [2.5, 0.5]
    """
    if not callable(getattr(type(problems), "__iter__", None)) or isinstance(problems, Mapping):
        raise InputError(f"problems must be an iterable of Problem, not a {type(problems).__name__}.")
    if then is not None and not callable(then):
        raise InputError(f"then = {then!r} must be a function of one Solution, or None.")
    get_solver(method, {name: value for name, value in options.items() if name not in _OF_SOLVE})
    total = operator.length_hint(problems, -1)
    read_environment()
    in_all = checked_count(threads, "threads") if threads is not None else in_force() or available_cores()
    if jobs is None:
        places = min(in_all, _MOST_JOBS_BY_DEFAULT, total if total > 0 else in_all)
    else:
        places = checked_count(jobs, "jobs")
    tally = Tally(total if total >= 0 else None, progress)
    crew = _Crew(places, then, tally)
    with _limited(threads, max(1, in_all // places)), contextlib.closing(tally):
        crew.run(problems, {"method": method, "progress": False, **options})
    return crew.solutions()


_OF_SOLVE = frozenset(inspect.signature(solve).parameters) - {"options"}


@contextlib.contextmanager
def _limited(in_all: int | None, each: int) -> Iterator[None]:
    """Limit BLAS to what each solve may use; a pool that has less by itself gets more only if `threads` was given."""
    with threads(in_all) if in_all is not None else contextlib.nullcontext(), at_most(each):
        yield


class _Task:
    """A problem that was begun: first it waits for its thread, then it runs, then it has an outcome."""

    def __init__(self, index: int, problem: Problem, options: Mapping[str, Any]) -> None:
        self.index = index
        self.name = problem.name
        self.outcome: Solution | BaseException | None = None
        self._work: tuple[Problem, Mapping[str, Any]] | None = (problem, options)
        self._taken = threading.Lock()

    def take(self) -> tuple[Problem, Mapping[str, Any]] | None:
        """What is to be done, for the first who asks; the task holds on to it no longer."""
        if not self._taken.acquire(blocking=False):
            return None
        work, self._work = self._work, None
        return work


class _Crew:
    """The solves that run, and what came of those that are over."""

    def __init__(self, jobs: int, then: Callable[[Solution], Any] | None, tally: Tally) -> None:
        self._jobs = jobs
        self._then = then
        self._tally = tally
        self._begun = 0
        self._running: dict[int, _Task] = {}
        self._results: dict[int, Any] = {}
        self._failures: dict[int, BaseException] = {}
        self._names: dict[int, str] = {}
        self._news = threading.Event()
        self._stop = threading.Event()
        self._interrupted = False

    def run(self, problems: Iterable[Any], options: Mapping[str, Any]) -> None:
        """Solve all; the first Ctrl-C lets the running solves end with what they have, a second one propagates."""
        try:
            try:
                self._begin_all(problems, options)
                self._wait_for_places(self._jobs)
            except KeyboardInterrupt:
                self._interrupted = True
                self._stop.set()
                for task in self._running.values():
                    self._start(task)  # Ctrl-C may have come just before its thread began; no task runs twice
                self._wait_for_places(self._jobs)
        finally:
            self._stop.set()  # should the calling thread leave early, nobody waits for the others

    def solutions(self) -> list[Any]:
        """The results in order, once all is over."""
        begun = len(self._results.keys() | self._failures.keys())
        if self._interrupted:
            warnings.warn(
                f"interrupted after {begun} problems were begun: the last of their solutions may be only the best "
                "found so far, and no other problem has one.",
                stacklevel=3,
            )
        found = [self._results.get(index) for index in range(begun)]
        if self._failures:
            raise SolveAllError(self._sentence(begun), solutions=found, failures=self._failures) from (
                self._failures[min(self._failures)]
            )
        return found

    def _sentence(self, begun: int) -> str:
        first = min(self._failures)
        error = self._failures[first]
        said = str(error) if isinstance(error, OsscarError) else f"{type(error).__name__}: {error}"
        name = f" ({self._names[first]!r})" if self._names.get(first) else ""
        among = f"{len(self._failures)} of {begun} problems failed, the first of them number {first}{name}"
        return (
            f"{among}: {said.rstrip('.')}; the attribute `solutions` of this error holds those of the others."
        )

    def _begin_all(self, problems: Iterable[Any], options: Mapping[str, Any]) -> None:
        source = iter(problems)
        while True:
            try:
                item = next(source)
            except StopIteration:
                return
            except Exception as error:  # it has no further problems; what was solved is not lost with them
                self._failures[self._begun] = error
                return
            self._wait_for_places(1)
            self._begin(item, options)

    def _begin(self, item: Any, options: Mapping[str, Any]) -> None:
        index = self._begun
        problem, own = item if isinstance(item, tuple) and len(item) == 2 else (item, {})
        if isinstance(problem, Problem) and isinstance(own, Mapping):
            task = _Task(index, problem, {**options, **own})
            self._names[index] = task.name
            self._running[index] = task
            self._start(task)
        else:
            self._failures[index] = InputError(
                f"it is a {type(item).__name__}, where a Problem or a pair of a Problem and its options is due."
            )
        self._begun += 1

    def _start(self, task: _Task) -> None:
        context = contextvars.copy_context()
        context.run(interruption.set, self._stop)
        threading.Thread(
            target=context.run,
            args=(self._solve, task),
            name=f"osscar-opt problem {task.index}",
            daemon=True,  # after a second Ctrl-C the process must be able to end
        ).start()

    def _solve(self, task: _Task) -> None:
        """In a thread of its own; the outcome is stored here, where no Ctrl-C can come in between."""
        work = task.take()
        if work is None:
            return
        try:
            limit_this_thread()
            task.outcome = solve(work[0], **work[1])
        except BaseException as error:
            task.outcome = _without_locals(error)
        del work  # the frames of an error lead back to this one
        self._news.set()

    def _wait_for_places(self, count: int) -> None:
        """Collect until so many of the places are free."""
        while True:
            self._news.clear()
            self._collect()
            self._tally.look(len(self._results) + len(self._failures), len(self._running))
            if self._jobs - len(self._running) >= count:
                return
            self._news.wait(_POLL)

    def _collect(self) -> None:
        for task in list(self._running.values()):
            outcome = task.outcome
            if outcome is None:
                continue
            if isinstance(outcome, BaseException):
                self._failures[task.index] = outcome
                del self._running[task.index]
                continue
            self._results[task.index] = outcome  # not lost, should `then` fail or Ctrl-C come
            del self._running[task.index]
            if self._then is not None:
                try:
                    self._results[task.index] = self._then(outcome)
                except Exception as error:
                    self._failures[task.index] = error


def _without_locals(error: BaseException) -> BaseException:
    """The error with every line of its traceback, but without the problems that the variables there refer to."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    own = error.__traceback__  # the frame that still runs could not be cleared
    return error.with_traceback(own.tb_next if own is not None else None)
