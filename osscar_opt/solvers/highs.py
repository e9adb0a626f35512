"""Exact solution by outer approximation: a growing mixed-integer linear program, solved by HiGHS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import SolverError
from osscar_opt.formulations.cuts import Separator, Terms
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination, absolute_tolerance
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import backward_selection, forward, open_tableau
from osscar_opt.solvers.walk import Walk

if TYPE_CHECKING:
    from osscar_opt.formulations.outer import Relaxed

__all__ = ["Highs"]

_CLOSED = 5e-7
"""A bound this close to the best value, relative to what is lost there, ends the search."""

_FALSE = 1e-6
"""A bound further above the best value than this, relative to what is lost there, is wrong."""

_STALLED = 5e-4
_STALLS = 2
"""The relaxation is left once it has risen by less than this, relatively, so many times."""


@dataclass(frozen=True)
class Highs(Solver):
    """Outer approximation: HiGHS minimises linear lower bounds of the loss over 0-1 vectors, cut after cut.

    1. Greedy and forward selection, descended by single exchanges, give a support, and cuts that touch the loss there.
    2. The linear relaxation: cuts where it has its minimum, averaged with earlier ones, until it hardly rises.
    3. Groups whose reduced cost says that they stay, or leave, in every better support are fixed.
    4. The integer program: where it has its minimum, the loss is evaluated exactly and cuts are added, and so along a
       descent in what the cuts say, as long as they say less than the best loss known; then HiGHS solves again.

    The search is over when the bound that HiGHS proves meets the best loss. The loss is split into terms, one for each
    row where that is affordable, with cuts of their own (`osscar_opt.formulations.cuts`). The bound reported is that of
    the program alone, lowered by what HiGHS's tolerances may have added; every cut is held against the loss of every
    support visited, and a cut above it is an error.

    Parameters
    ----------
    matrices : int
        Matrices D at most, which terms have to share; 0 for as many as are affordable.
    relaxations : int
        Rounds of the linear relaxation at most.
    rounds : int
        Rounds of the integer program at most.
    descent : int
        Supports visited after each round at most.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> solution = problem.solve("highs")
    >>> solution.kept, solution.status.value
    (array([1]), 'optimal')
    """

    name: ClassVar[str] = "highs"
    proves: ClassVar[bool] = True
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    requires: ClassVar[tuple[str, ...]] = ("highspy",)
    matrices: int = field(default=0, metadata={"least": 0})
    relaxations: int = field(default=30, metadata={"least": 0})
    rounds: int = field(default=1000, metadata={"least": 0})
    descent: int = field(default=12, metadata={"least": 0})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        report.bound(problem.base)  # with everything kept, nothing is lost
        search = _Search(self, problem, deadline, report)
        search.improve(start)
        for step in (search.build, search.relax, search.solve):
            if search.open:
                step()
        return search.proposal()


class _Search:
    """One run: the best support known, the outer approximation, and how far they are apart."""

    def __init__(self, options: Highs, problem: Problem, deadline: Deadline, report: Report) -> None:
        self._options, self._problem, self._deadline, self._report = options, problem, deadline, report
        self._bound = problem.base
        self._visited: set[bytes] = set()
        self._best_is_excluded = False
        self._ended = Termination.COMPLETED
        self._stats = {
            "terms": 0,
            "relaxations": 0,
            "fixed": 0,
            "rounds": 0,
            "visited": 0,
            "cuts": 0,
            "nodes": 0,
        }
        greedy = backward_selection(problem, deadline=deadline, report=report)
        self._walk = Walk(problem, greedy.support, deadline=deadline, report=report, value=greedy.value)
        self._walk.descend()

    @property
    def open(self) -> bool:
        """Whether there is something left to do, and time for it."""
        if self._lost() <= absolute_tolerance(self._problem) or self._gap() <= 0.0:
            return False
        if self._ended is Termination.COMPLETED and self._deadline.expired():
            self._ended = Termination.TIME_LIMIT
        return self._ended is Termination.COMPLETED

    def improve(self, start: BoolArray | None) -> None:
        """Descend from the support of forward selection, and from `start`."""
        problem = self._problem
        tableau = open_tableau(problem, problem.always_keep, "removed")
        added, _ = forward(problem, tableau, deadline=self._deadline, report=self._report)
        support = problem.always_keep.copy()
        support[added] = True
        for other in (support, start):
            if other is not None:
                self._descend_from(other)

    def build(self) -> None:
        """Set up the outer approximation, with cuts about the best support."""
        from osscar_opt.formulations.outer import Master

        terms = Terms(self._problem, self._options.matrices or None)
        stop = self._deadline.expired
        self._terms, self._separator = terms, Separator(terms, stop)
        self._master = Master(self._problem, terms, self._lost(), stop=stop, on_bound=self._raise_bound)
        self._stats["terms"] = terms.count
        self._master.add(self._separator.rough(_spread(self._problem)))
        relaxed = self._master.relax()
        if relaxed is not None:
            self._raise_bound(self._master.objective(relaxed.bound))
        self._visit(self._walk.best_support)

    def relax(self) -> None:
        """Cut off the minimum of the linear relaxation until it hardly rises; then fix groups."""
        relaxed: Relaxed | None = None
        center = _spread(self._problem)
        stalls = 0
        while self._stats["relaxations"] < self._options.relaxations and stalls < _STALLS and self.open:
            before = self._bound
            self._master.add(self._separator.inside(center), None if relaxed is None else relaxed.z)
            relaxed = self._master.relax() or relaxed
            self._stats["relaxations"] += 1
            if relaxed is None:
                return
            self._raise_bound(self._master.objective(relaxed.bound))
            stalls += self._bound - before < _STALLED * self._lost()
            center = 0.5 * (center + relaxed.z)
        if relaxed is not None and self.open:
            self._descend_from(self._problem.limits.fill(np.argsort(-relaxed.z), self._problem.always_keep))
            self._stats["fixed"] = self._master.fix(relaxed, self._scaled_best())

    def solve(self) -> None:
        """Solve the integer program, and cut off its minimum, until bound and best value meet."""
        while self.open:
            if self._stats["rounds"] == self._options.rounds:
                self._ended = Termination.ITERATION_LIMIT
                return
            solved = self._master.solve(self._deadline.remaining())
            self._stats["rounds"] += 1
            self._stats["nodes"] += solved.nodes
            self._raise_bound(self._master.objective(solved.bound))
            if solved.support is not None and self.open:
                self._cut_off(solved.support)

    def proposal(self) -> Proposal:
        """What came of it."""
        return Proposal(
            self._walk.best_support, lower_bound=self._bound, stats=self._stats, termination=self._ended
        )

    # ------------------------------------------------------------------------------------------------- details

    def _lost(self) -> float:
        return max(self._walk.best_value - self._problem.base, 0.0)

    def _gap(self) -> float:
        """How far the bound is from closing the search; 0 or less where it does."""
        return self._walk.best_value - self._bound - _CLOSED * self._lost()

    def _scaled_best(self) -> float:
        return self._lost() / self._master.scale

    def _raise_bound(self, bound: float) -> None:
        best = self._walk.best_value
        if self._best_is_excluded:
            bound = min(bound, best)  # what is excluded is no better than the best
        elif bound > best + _FALSE * self._lost() + absolute_tolerance(self._problem):
            raise SolverError(f"the bound {bound:.9g} is above the value {best:.9g} of a support.")
        if bound > self._bound:
            self._bound = bound
            self._report.bound(bound)

    def _descend_from(self, support: BoolArray) -> None:
        self._walk.move_to(support)
        self._walk.descend()

    def _cut_off(self, support: BoolArray) -> None:
        """Visit the minimum of the program, and then neighbours as long as the cuts say that they may be better.

        What was visited before is there because of tolerances only; so is the best support at the end of the search.
        It is excluded, and what is left has to be worse.
        """
        if not self._problem.feasible(support):
            self._master.exclude_above(support)
            return
        for _ in range(1 + self._options.descent):
            if support.tobytes() in self._visited:
                break
            self._visit(support)
            other, known = self._master.best_neighbour(support)
            if known >= self._scaled_best() * (1.0 - _CLOSED) or not self.open:
                return
            support = other
        else:
            return
        self._master.exclude_below(support)
        self._best_is_excluded |= bool(self._terms.losses(support).sum() <= self._lost() * (1.0 + _FALSE))

    def _visit(self, support: BoolArray) -> None:
        """Evaluate a support, hold all cuts against its losses, and add cuts that touch there."""
        losses = self._terms.losses(support)
        self._master.require_valid(support, losses)
        if float(losses.sum()) < self._lost():
            self._descend_from(support)
        self._master.add(self._separator.corner(support), support.astype(np.float64))
        if float(losses.sum()) > self._lost() * (1.0 + _FALSE):
            self._master.exclude_below(support)
        self._visited.add(support.tobytes())
        self._stats["visited"] += 1
        self._stats["cuts"] = self._master.cuts


def _spread(problem: Problem) -> FloatArray:
    """The same share of every group, as large as the limits allow."""
    used = problem.limits.usage.sum(axis=1)
    shares = problem.limits.limit[used > 0.0] / used[used > 0.0]
    share = min(1.0, float(shares.min(initial=1.0)))
    return np.where(problem.always_keep, 1.0, np.where(problem.always_remove, 0.0, share))
