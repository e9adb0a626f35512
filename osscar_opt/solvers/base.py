"""What a solver is: a frozen value with one method, `propose`; and what it is handed and hands back.

A solver says which groups to keep.  It does not say how good that is: the referee (`osscar_opt.solvers.referee`)
refits the weights, recomputes the objective and checks every claim.  `docs/` shows how to write and register one;
`osscar_opt.testing.check_solver` tests it.
"""

from __future__ import annotations

import abc
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import CapabilityError, OptionError
from osscar_opt.formulations.solution import Termination, TraceEntry

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["Abandoned", "Deadline", "Incumbent", "Progress", "Proposal", "Report", "Solver"]

_INCUMBENTS_KEPT = 4
_TRACE_RESOLUTION = 1e-3
"""Improvements closer together than this, in seconds, share one entry of the trace."""


@dataclass(frozen=True)
class Proposal:
    """What a solver hands back.

    Attributes
    ----------
    support : (n,) mask
        True = kept.
    lower_bound : float or None
        A number no feasible support's value goes below; a claim, checked against the recomputed value.
    weights : (p, q) array or None
        Weights to use as they are instead of the refit; only for solvers with ``presolve = False``, and exactly zero
        outside the support.
    certificate : Certificate or object, optional
        Proof of the bound.  A `osscar_opt.certificates.Certificate` of the problem that `propose` was handed is
        lifted to the problem as posed and checked, and the checker's bound replaces every claim; anything else is
        passed on as it is.  By custom a solver that can write one has an option ``certificate``, off by default.
    stats : mapping
        Whatever the solver counted, JSON-able.
    termination : Termination
        Why the solver stopped.
    message : str
        One sentence for the user, or "".

    Examples
    --------
    >>> Proposal(np.array([True, False])).termination.value
    'completed'
    """

    support: BoolArray
    lower_bound: float | None = None
    weights: FloatArray | None = None
    certificate: object | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    termination: Termination = Termination.COMPLETED
    message: str = ""


@dataclass(frozen=True)
class Solver(abc.ABC):
    """Base of all solvers: subclass it as a frozen dataclass whose fields are the options.

    ``field(default=1, metadata={"least": 1})`` makes smaller values of an option an error.

    Attributes
    ----------
    name : str
        The name it is registered under.
    proves : bool
        Whether it can return a lower bound that meets the value.
    handles : frozenset of str
        Which of "budget", "blocks", "unequal_groups", "forced" it handles beside a plain keep.  Forced groups are
        presolved away unless ``presolve`` is False.
    presolve : bool
        If False, `propose` sees the problem as posed; it must then honour forced groups itself.
    unhelpful : frozenset of str
        Reductions of presolve that cost this method more than they save: not made unless they are asked for by name.
    requires : tuple of str
        Packages to be importable, by import name.
    required_options : tuple of str
        Options that have no sensible default and must be given, such as scores that come from elsewhere; they are None
        where they are not.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class FirstGroups(Solver):
    ...     '''Keeps the groups that come first.'''
    ...
    ...     name: ClassVar[str] = "first"
    ...
    ...     def propose(self, problem, *, start, deadline, report):
    ...         nothing = np.zeros(problem.n, dtype=bool)
    ...         return Proposal(problem.limits.fill(range(problem.n), nothing))
    >>> from osscar_opt import Problem
    >>> Problem(np.eye(3), np.ones((3, 1)), keep=2).solve(FirstGroups()).kept
    array([0, 1])
    """

    name: ClassVar[str]
    proves: ClassVar[bool] = False
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups"})
    presolve: ClassVar[bool] = True
    unhelpful: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[tuple[str, ...]] = ()
    required_options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse to go without what is needed, and numbers below what a field's metadata gives as the least."""
        for option in self.required_options:
            if getattr(self, option) is None:
                raise OptionError(
                    f"method {self.name!r} needs {option}=: see its docstring for what it holds."
                )
        for checked in fields(self):
            value, least = getattr(self, checked.name), checked.metadata.get("least")
            if least is not None and value < least:
                raise OptionError(
                    f"option {checked.name!r} of method {self.name!r} must be at least {least}, but is {value}."
                )

    @abc.abstractmethod
    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        """Choose a support.

        Parameters
        ----------
        problem : Problem
            Presolved unless ``presolve`` is False; its arrays must not be changed.
        start : (n,) mask or None
            A feasible support to start from; may be ignored.
        deadline : Deadline
            To be asked ``expired()`` now and then; return the best so far when it says True.
        report : Report
            To be told of incumbents and bounds; what was reported survives whatever happens next.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> from osscar_opt.solvers import get_solver
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> get_solver("magnitude").propose(problem, start=None, deadline=Deadline(), report=Report()).support
        array([False,  True])
        """

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        """Order in which this method removes groups, first removed first; what `Problem.path` is made of.

        Optional.  The limits of `problem` are to be ignored; it is presolved unless ``presolve`` is False.

        Parameters
        ----------
        problem : Problem
        keep : int
            How many groups need not be removed: n - keep groups are due, and an order that goes on is cut there.
        deadline : Deadline
        report : Report

        Returns
        -------
        (n - keep,) array of int, or longer

        Raises
        ------
        CapabilityError
            If the method has no such order.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> from osscar_opt.solvers import get_solver
        >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]])
        >>> get_solver("magnitude_refit").removal_order(problem, keep=0, deadline=Deadline(), report=Report())
        array([0, 2, 1])
        """
        raise CapabilityError(f"method {self.name!r} gives no path over all keep; use method='greedy'.")


class Deadline:
    """When to stop: a point in time, or earlier when the referee says so.

    Parameters
    ----------
    end : float, optional
        On the clock of ``time.monotonic``; never, by default.

    Examples
    --------
    >>> deadline = Deadline()
    >>> deadline.remaining(), deadline.expired()
    (inf, False)
    >>> deadline.stop()
    >>> deadline.remaining(), deadline.expired()
    (0.0, True)
    """

    def __init__(self, end: float = math.inf) -> None:
        self._end = end
        self._stopped = False
        self._noticed = False

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Make a deadline so many seconds from now; None means never.

        Examples
        --------
        >>> 59.0 < Deadline.after(60.0).remaining() <= 60.0
        True
        """
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, never negative; inf without a limit.

        Examples
        --------
        >>> Deadline.after(0.0).remaining()
        0.0
        """
        return 0.0 if self._stopped else max(0.0, self._end - time.monotonic())

    def expired(self) -> bool:
        """Whether to stop now: the time is up, or the user interrupted.

        Examples
        --------
        >>> Deadline.after(0.0).expired()
        True
        """
        expired = self._stopped or time.monotonic() >= self._end
        self._noticed = self._noticed or expired
        return expired

    def stop(self) -> None:
        """Expire at once.

        Examples
        --------
        >>> deadline = Deadline()
        >>> deadline.stop()
        >>> deadline.expired()
        True
        """
        self._stopped = True

    @property
    def noticed(self) -> bool:
        """Whether `expired` ever answered True: somebody was told to stop.

        Examples
        --------
        >>> Deadline().noticed
        False
        """
        return self._noticed


class Abandoned(BaseException):
    """Ends the thread of a solver whose result nobody waits for; not an Exception, so that no loop swallows it.

    Examples
    --------
    >>> issubclass(Abandoned, Exception)
    False
    """


@dataclass(frozen=True, eq=False)
class Incumbent:
    """A support a solver reported, with the objective it claims (None if it claims none).

    Examples
    --------
    >>> Incumbent(np.array([True]), 0.5).claim
    0.5
    """

    support: BoolArray
    claim: float | None


@dataclass(frozen=True)
class Progress:
    """How far a solver says it is.

    Examples
    --------
    >>> Progress(3, 4, "nodes").fraction
    0.75
    """

    done: float = 0.0
    total: float | None = None
    unit: str = ""

    @property
    def fraction(self) -> float | None:
        """Done / total within [0, 1], or None if the total is not known.

        Examples
        --------
        >>> Progress(3).fraction is None
        True
        """
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


class Report:
    """Where a solver streams incumbents and bounds while it runs; thread-safe and cheap.

    The referee reads the attributes; what a solver says here is a claim, and is recomputed before it is believed.
    After `close`, every call raises `Abandoned` in the solver's thread.

    Parameters
    ----------
    problem : Problem, optional
        If given, infeasible incumbents are counted in `rejected` and otherwise ignored.

    Attributes
    ----------
    incumbents : tuple of Incumbent
        The few best claimed, best first.
    unclaimed : Incumbent or None
        The latest one reported without an objective.
    best_bound : float
    latest : Progress
    trace : tuple of TraceEntry
    rejected : int

    Examples
    --------
    >>> report = Report()
    >>> report.incumbent(np.array([True, False]), 3.0)
    >>> report.incumbent(np.array([False, True]), 2.0)
    >>> report.bound(1.5)
    >>> report.incumbents[0].claim, report.best_bound
    (2.0, 1.5)
    """

    def __init__(self, problem: Problem | None = None) -> None:
        self._problem = problem
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False
        # Readers take no lock: they read one attribute each, and its value is never changed, only replaced.
        self.incumbents: tuple[Incumbent, ...] = ()
        self.unclaimed: Incumbent | None = None
        self.best_bound = -math.inf
        self.latest = Progress()
        self.rejected = 0
        self._trace: list[TraceEntry] = []

    def incumbent(self, support: BoolArray, objective: float | None = None) -> None:
        """Tell of a feasible support, and of its objective if it is known.

        Examples
        --------
        >>> Report().incumbent(np.array([True, False]), 0.25)
        """
        self._require_open()
        kept = np.array(support, dtype=bool)
        fits = self._problem is None or (kept.shape == (self._problem.n,) and self._problem.feasible(kept))
        if not fits:
            self.rejected += 1
            return
        if objective is None or not math.isfinite(objective):
            self.unclaimed = Incumbent(kept, None)
            return
        with self._lock:
            best = self._best_claim
            others = [other for other in self.incumbents if not np.array_equal(other.support, kept)]
            ranked = sorted((*others, Incumbent(kept, float(objective))), key=lambda item: item.claim or 0.0)
            self.incumbents = tuple(ranked[:_INCUMBENTS_KEPT])
            if objective < best:
                self._record()

    def bound(self, value: float) -> None:
        """Tell of a proven lower bound.

        Examples
        --------
        >>> Report().bound(0.125)
        """
        self._require_open()
        with self._lock:
            if value > self.best_bound:
                self.best_bound = float(value)
                self._record()

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """Tell how far the work is.

        Examples
        --------
        >>> Report().progress(10, 100, "groups")
        """
        self._require_open()
        self.latest = Progress(done, total, unit)

    def close(self) -> None:
        """Stop listening.

        Examples
        --------
        >>> Report().close()
        """
        self._closed = True

    @property
    def state(self) -> tuple[float, float, Progress]:
        """Best claimed objective (inf if none), best bound (-inf if none), and how far the work is.

        Examples
        --------
        >>> Report().state[:2]
        (inf, -inf)
        """
        return self._best_claim, self.best_bound, self.latest

    @property
    def trace(self) -> tuple[TraceEntry, ...]:
        """Improvements of the claimed objective or of the bound, oldest first.

        Examples
        --------
        >>> Report().trace
        ()
        """
        return tuple(self._trace)

    @property
    def _best_claim(self) -> float:
        claim = self.incumbents[0].claim if self.incumbents else None
        return math.inf if claim is None else claim

    def _record(self) -> None:
        entry = TraceEntry(time.monotonic() - self._began, self._best_claim, self.best_bound)
        if self._trace and entry.time - self._trace[-1].time < _TRACE_RESOLUTION:
            self._trace[-1] = entry
        else:
            self._trace.append(entry)

    def _require_open(self) -> None:
        if self._closed:
            raise Abandoned
