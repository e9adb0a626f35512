"""The referee: the only way to run a solver, and the only source of the numbers a user sees.

`solve` presolves, lets the solver propose a support, refits the weights on the problem as posed, recomputes the
objective, checks limits and bounds, and says how good the result is.  What a solver reports is a claim throughout.

How time limits hold
--------------------
The solver runs in a thread of its own (or a process); the calling thread waits.  At the deadline, which is set
before the limit by what the final refit is expected to take, ``Deadline.expired()`` turns True and a well-behaved
solver returns its best.  One that does not is given a grace of 2.5 % of the limit + 0.25 s, then an exception is
raised inside its thread, and it is abandoned: the best support it had reported is refitted and returned, or, if it
had reported none, one ranked by cheap scores.  The call thus returns within 5 % + 0.5 s of the limit, unless the refit
of a single support alone takes longer than that.

An abandoned thread ends as soon as it executes Python code again.  If it sits in a long C call (a matrix product) it
goes on using the processor until that call returns; nothing listens to it any more, and it ends with the process at
the latest.  A C call that never releases the interpreter lock holds up the calling thread as well, and memory it
takes is not given back: for code not to be trusted so far, ``isolation="process"`` runs it in a child process that is
killed at the deadline.

Ctrl-C is treated as a deadline reached at once: the best support so far is returned.  A second Ctrl-C propagates.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import platform
import time
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
import scipy

import osscar_opt
from osscar_opt._typing import BoolArray
from osscar_opt.errors import CapabilityError, InputError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.presolve import REDUCTIONS, Presolved
from osscar_opt.formulations.presolve import presolve as run_presolve
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Solution, Termination, TraceEntry
from osscar_opt.linalg.threads import in_force, threads
from osscar_opt.solvers._proof import all_kept
from osscar_opt.solvers._verdict import Evidence, Verdict, judge
from osscar_opt.solvers._worker import Worker, abandoned_threads_run, attend, one_blas_thread
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.progress import Event, Watcher
from osscar_opt.solvers.registry import default_reductions, get_solver, methods_handling

__all__ = ["solve"]


def solve(
    problem: Problem,
    method: str | Solver | type[Solver] = "auto",
    *,
    keep: int | None = None,
    time_limit: float | None = None,
    start: Any = None,
    presolve: bool | Collection[str] = True,
    progress: bool | None = None,
    tolerance: float = 1e-6,
    on_event: Callable[[Event], object] | None = None,
    isolation: Literal["thread", "process"] = "thread",
    **options: Any,
) -> Solution:
    """Run a method on a problem and return what holds after recomputation.

    Parameters
    ----------
    problem : Problem
    method : str, Solver, or subclass of Solver, optional
        A name listed by `osscar_opt.solvers()`, or a solver of one's own.
    keep : int, optional
        In place of the problem's own keep.
    time_limit : float, optional
        Seconds for the whole call; see above for how it holds.
    start : (n,) mask or list of group indices, optional
        A feasible support; the result is never worse than its refit.
    presolve : bool or collection of str, optional
        Which reductions to apply: True for all.
    progress : bool, optional
        Show a line on stderr after two seconds; None: only if stderr is a terminal.
    tolerance : float, optional
        Relative gap at which bound and value count as equal, and the status is OPTIMAL.
    on_event : callable, optional
        Called with an `osscar_opt.solvers.progress.Event` when the search has moved, about 20 times a second at most.
    isolation : {"thread", "process"}, optional
        Where the solver runs; "process" survives whatever it does.
    **options
        Options of the method.

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        If the problem has no limit, or an argument is out of range.
    UnknownMethodError, OptionError, UnavailableError, CapabilityError
        If there is no such method or option, a package is missing, or the method does not handle the problem.
    SolverError
        If the solver fails before it has reported any solution.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2)
    >>> solve(problem, "magnitude_refit")
    Solution(magnitude_refit, kept=2/3, objective=0.5, relative=0.07143, feasible, completed)
    """
    began = time.monotonic()
    posed = _posed(problem, keep)
    solver = get_solver(method, options)
    reductions = _reductions(solver, presolve)
    _require_capable(solver, posed, reductions)
    _require_sane(tolerance, time_limit, isolation)
    if on_event is not None and not callable(on_event):
        raise InputError(f"on_event = {on_event!r} must be a function of one Event, or None.")
    known = _known(posed, start)
    deadline, grace = _time_allowed(posed, time_limit, began, refits=1 if known is None else 2)
    search = _Search(posed, solver, reductions, known, deadline, isolation)
    watcher = Watcher(solver.name, deadline, on_event, progress)
    evidence = _run(search, watcher, grace)
    searched = time.monotonic() - search.began
    with one_blas_thread(when=abandoned_threads_run()):
        try:
            verdict = judge(evidence, tolerance)
        except KeyboardInterrupt:  # the search is over; what it found is not thrown away for a late Ctrl-C
            verdict = judge(evidence, tolerance)
    return _solution(search, verdict, searched)


class _Search:
    """What runs in the worker: presolve, then the solver; the calling thread reads the fields at any time."""

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        reductions: Collection[str],
        start: BoolArray | None,
        deadline: Deadline,
        isolation: str,
    ) -> None:
        self.problem = problem
        self.solver = solver
        self.reductions = reductions
        self.start = start
        self.deadline = deadline
        self.isolation = isolation
        self.began = time.monotonic()
        self.setup_time = math.inf  # until presolve has ended
        self.presolved: Presolved | None = None
        self.report: Report | None = None

    def run(self) -> Proposal:
        presolved = run_presolve(self.problem, self.reductions)
        report = Report(presolved.problem)
        self.report, self.presolved = report, presolved
        self.setup_time = time.monotonic() - self.began
        if presolved.problem.n == 0:
            wanted = getattr(self.solver, "certificate", False) is True
            certificate = all_kept(presolved.problem) if wanted else None
            decided = {"decided_by": "presolve"}
            return Proposal(np.zeros(0, dtype=bool), certificate=certificate, stats=decided)
        start = None if self.start is None else presolved.restrict_support(self.start)
        propose = self.solver.propose
        if self.isolation == "process":
            from osscar_opt.solvers.isolation import propose_in_child

            limit = in_force()
            solver = self.solver if limit is None else _InChild(self.solver, limit)
            propose = functools.partial(propose_in_child, solver)
        return propose(presolved.problem, start=start, deadline=self.deadline, report=report)


@dataclasses.dataclass(frozen=True)
class _InChild(Solver):
    """A solver in a child process, whose BLAS knows nothing of the limit on the parent's."""

    solver: Solver
    limit: int

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        threads(self.limit)
        return self.solver.propose(problem, start=start, deadline=deadline, report=report)


def _run(search: _Search, watcher: Watcher, grace: float) -> Evidence:
    worker = Worker(search.run)
    try:
        stopped = attend(worker, search.deadline, grace, lambda: watcher.look(search.report))
        if stopped is None:
            watcher.look(search.report)
            stopped = Termination.TIME_LIMIT if search.deadline.noticed else None
    finally:
        if search.report is not None:
            search.report.close()
        search.deadline.stop()
        worker.abandon()
        watcher.close()
    return Evidence(
        problem=search.problem,
        method=search.solver.name,
        presolved=search.presolved,
        returned=worker.result,
        error=worker.error,
        report=search.report,
        start=search.start,
        stopped=stopped,
    )


def _solution(search: _Search, verdict: Verdict, searched: float) -> Solution:
    setup = min(search.setup_time, searched)
    claimed = () if search.report is None else search.report.trace
    last = TraceEntry(searched - setup, verdict.objective, verdict.bound)
    return Solution(
        problem=search.problem,
        method=search.solver.name,
        trace=(*claimed, last),
        options={f.name: getattr(search.solver, f.name) for f in dataclasses.fields(search.solver)},
        setup_time=setup,
        solve_time=searched - setup,
        versions={
            "osscar_opt": osscar_opt.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        **vars(verdict),
    )


def _posed(problem: Problem, keep: int | None) -> Problem:
    posed = problem if keep is None else problem.with_keep(keep)
    if not posed.limits.names:
        raise InputError(
            "this problem has no limit on what may stay: pass keep=, the number of groups to keep."
        )
    return posed


def _reductions(solver: Solver, presolve: bool | Collection[str]) -> Collection[str]:
    if isinstance(presolve, bool):
        return default_reductions(solver) if presolve else ()
    named = (presolve,) if isinstance(presolve, str) else presolve
    if not isinstance(named, Collection):
        raise InputError(f"presolve = {presolve!r} must be True, False or names of reductions.")
    unknown = [name for name in named if name not in REDUCTIONS]
    if unknown:
        raise InputError(f"there is no reduction {unknown[0]!r}: reductions are {', '.join(REDUCTIONS)}.")
    return named if solver.presolve else ()


def _require_capable(solver: Solver, problem: Problem, reductions: Collection[str]) -> None:
    features = problem.features - {"forced"} if "forced" in reductions else problem.features
    missing = features - solver.handles
    if missing:
        others = ", ".join(methods_handling(features)) or "none"
        raise CapabilityError(
            f"method {solver.name!r} does not handle {_spelled(missing)}; methods that do: {others}."
        )


def _spelled(features: Collection[str]) -> str:
    words = {
        "budget": "costs with a budget",
        "blocks": "blocks with a keep each",
        "unequal_groups": "groups of unequal size",
        "forced": "always_keep and always_remove without presolve",
    }
    return " and ".join(words.get(feature, feature) for feature in sorted(features))


def _require_sane(tolerance: float, time_limit: float | None, isolation: str) -> None:
    if not isinstance(tolerance, numbers.Real) or not 0.0 <= tolerance < math.inf:
        raise InputError(f"tolerance = {tolerance!r} must be a finite number, at least 0.")
    if time_limit is not None and not (isinstance(time_limit, numbers.Real) and time_limit >= 0.0):
        raise InputError(f"time_limit = {time_limit!r} must be a number of seconds, at least 0, or None.")
    if isolation not in ("thread", "process"):
        raise InputError(f"isolation = {isolation!r} must be 'thread' or 'process'.")


def _known(problem: Problem, start: Any) -> BoolArray | None:
    if start is None:
        return None
    support = _validate.group_mask(start, "start", problem.n)
    violation = problem.violation(support)
    if violation:
        raise InputError(f"start is not feasible: it {violation}.")
    return support


def _time_allowed(
    problem: Problem, time_limit: float | None, began: float, refits: int
) -> tuple[Deadline, float]:
    """The solver's deadline, early enough for the final refits, and the grace after it."""
    if time_limit is None:
        return Deadline(), math.inf
    reserve = min(refits * _refit_seconds(problem), 0.5 * time_limit)
    return Deadline(began + time_limit - reserve), 0.025 * time_limit + 0.25


def _refit_seconds(problem: Problem) -> float:
    """What refitting and evaluating one support should take, from its operations and a measured speed."""
    fraction = 1.0 if problem.keep is None else problem.keep / max(problem.n, 1)
    rows = fraction * problem.p
    operations = rows**3 / 3.0 + 6.0 * rows**2 * problem.q + problem.p**2 * problem.q
    return 1.5 * operations / _operations_per_second()


@functools.cache
def _operations_per_second() -> float:
    """Speed of a small matrix product on one thread, measured once: a pessimistic measure of BLAS."""
    with one_blas_thread(when=True):
        sample = np.ones((192, 192))
        sample @ sample  # warms up
        began = time.perf_counter()
        sample @ sample
        return 2.0 * 192**3 / (time.perf_counter() - began)
