"""Lower bounds for layers of any size: how far a solution can be from the best there is.

The bound is that of the lifted relaxation, `osscar_opt.formulations.lifted`; this module looks for the best one that
the time allows. Whatever is found proves itself: `LowerBound.certificate` writes it down for the checker.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import InputError, SolverError
from osscar_opt.formulations._ascent import Ascent, Found
from osscar_opt.formulations._layer import whitened
from osscar_opt.formulations.presolve import Presolved, presolve
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import (
    BoundKind,
    Solution,
    Status,
    Termination,
    absolute_tolerance,
    relative_gap,
)

if TYPE_CHECKING:
    from osscar_opt.certificates import Certificate

__all__ = ["LowerBound", "certified", "lower_bound"]

_LOOKS = ((2, 1), (5, 2), (9, 4), (15, 8), (24, 12), (36, 16), (52, 16))
"""After how many steps the bound is evaluated, with how many plays; from then on every 20 steps."""

_LATER, _MOST_STEPS = 20, 2000
_FIXED_PLAYS = 4
"""What an evaluation costs besides its plays, in plays."""

_PATIENCE = 2
_NO_CLAIM = -1e300
_CLOSED = 1e-6
"""A solution is optimal when its bound is within this of its objective, relatively."""

_SLOWEST = 1e10
"""Operations a second with which the set-up is sure to be done; it is not begun if that takes longer than allowed."""


@dataclass(frozen=True, eq=False, repr=False)
class LowerBound:
    """A number that no feasible support's objective goes below, and what proves it; made by `lower_bound`.

    Attributes
    ----------
    problem : Problem
    value : float
    kept : (n,) array
        The relaxed support: the share of every group that is kept.
    scores : (n,) array
        What keeping each group takes off the bound at most: its worth; 0 for forced groups.
    trace : tuple of (float, float)
        Seconds since the call and the bound, at every improvement.
    iterations : int
    seconds : float
    termination : Termination
        COMPLETED where the bound no longer rose, TIME_LIMIT, ITERATION_LIMIT or INTERRUPTED.

    Examples
    --------
    >>> gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> bound = Problem(gram, dense_weights=np.array([[1.0], [1.0], [0.5]]), keep=2).lower_bound()
    >>> bound
    LowerBound(0.125, 3 groups, completed)
    >>> bound.certificate().check().proved
    'bound'
    """

    problem: Problem
    value: float
    kept: FloatArray
    scores: FloatArray
    trace: tuple[tuple[float, float], ...]
    iterations: int
    seconds: float
    termination: Termination
    presolved: Presolved
    found: Found | None

    def gap(self, objective: float) -> float:
        """How far an objective is above the bound, relative to the objective.

        Examples
        --------
        >>> Problem(np.eye(2), [[1.0], [3.0]], keep=1).lower_bound().gap(0.5) < 1e-6
        True
        """
        return relative_gap(objective, self.value, absolute_tolerance(self.problem))

    def certificate(self, support: BoolArray | None = None) -> Certificate:
        """Write the proof down, a tree of one node, and have it checked.

        It claims what the checker finds proved, by numbers of its own: some 1e-9 less than `value`.

        Parameters
        ----------
        support : (n,) mask, optional
            A support to state with it, whose value the bound is to be compared with.

        Raises
        ------
        SolverError
            If float64 is not enough to prove anything about this problem.

        Examples
        --------
        >>> bound = Problem(np.eye(2), [[1.0], [3.0]], keep=1).lower_bound()
        >>> bound.certificate().check().valid
        True
        """
        from osscar_opt.certificates import Certificate, ProofTree

        reduced = self.presolved.problem
        tree = ProofTree.of(reduced)
        if self.found is None:
            tree.close_superset(0)
        else:
            found = self.found
            relaxation = tree.relax_dual(0, found.removed, found.delta, found.multipliers, found.prices)
            tree.close(0, relaxation=relaxation)
        lifted = self.presolved.lift_certificate(Certificate.of(reduced, tree, bound=_NO_CLAIM))
        lifted = lifted.claiming(bound=_NO_CLAIM, support=support)
        report = lifted.check()
        if not report.valid:
            raise SolverError(f"the bound could not be certified: {report.reasons[0].rstrip('.')}.")
        proved = report.bound if report.value is None else min(report.bound, report.value)
        return lifted.claiming(bound=proved, support=support, value=report.value)

    def __repr__(self) -> str:
        name = f"{self.problem.name!r}, " if self.problem.name else ""
        taken = f", {self.seconds:.1f} s" if self.seconds >= 1.0 else ""
        return f"LowerBound({name}{self.value:.6g}, {self.problem.n} groups, {self.termination}{taken})"


def lower_bound(
    problem: Problem,
    time_limit: float | None = 60.0,
    *,
    tolerance: float = 1e-4,
    report: Callable[[float, float, int], object] | None = None,
) -> LowerBound:
    """Find a lower bound on the objective of every feasible support, the best that the time allows.

    Parameters
    ----------
    problem : Problem
        With at least one limit.
    time_limit : float, optional
        Seconds; it is looked at between steps of about one Cholesky inverse each. None: until the bound stops rising.
    tolerance : float, optional
        It has stopped rising when several steps in a row have gained less than this part of it.
    report : callable, optional
        Called after every step with the seconds since the call, the bound so far and the number of steps.

    Returns
    -------
    LowerBound
        At least the value of keeping everything, whatever the time limit.

    Raises
    ------
    InputError
        If there is no limit, or an argument makes no sense.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> bound = lower_bound(problem)
    >>> abs(bound.value - 2.5) < 1e-6, bound.kept.round(3)
    (True, array([0., 1., 0.]))
    """
    if not problem.limits.names:
        raise InputError("this problem has no limit on what may stay: pose it with keep, a budget or blocks.")
    if not (math.isfinite(tolerance) and tolerance >= 0.0):
        raise InputError(f"tolerance = {tolerance!r} must be a finite number, at least 0.")
    if time_limit is not None and not time_limit >= 0.0:
        raise InputError(f"time_limit = {time_limit!r} must be a number of seconds, at least 0, or None.")
    search = _Search(problem, math.inf if time_limit is None else time_limit, tolerance, report)
    search.run()
    return search.outcome()


def certified(
    solution: Solution,
    time_limit: float | None = 20.0,
    *,
    tolerance: float = 1e-4,
    report: Callable[[float, float, int], object] | None = None,
) -> Solution:
    """Give a solution a bound, and with it a gap, that the checker of certificates accepts.

    Parameters
    ----------
    solution : Solution
    time_limit, tolerance, report
        As for `lower_bound`. The check comes on top.

    Returns
    -------
    Solution
        With `bound`, `bound_kind`, `certificate` and `status` replaced, even where a bound that was only claimed is
        higher; the same one if it has a certified bound that is at least as good.

    Raises
    ------
    SolverError
        If the certificate does not hold: float64 is not enough for the problem.

    Examples
    --------
    >>> solution = certified(Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1).solve("magnitude_refit"))
    >>> solution.bound_kind, solution.gap < 1e-6
    (<BoundKind.CERTIFIED: 'certified'>, True)
    """
    bound = lower_bound(solution.problem, time_limit, tolerance=tolerance, report=report)
    certificate = bound.certificate(solution.support)
    value = min(certificate.bound, solution.objective)
    if solution.bound_kind is BoundKind.CERTIFIED and solution.bound >= value:
        return solution
    slack = _CLOSED * abs(solution.objective) + absolute_tolerance(solution.problem)
    return dataclasses.replace(
        solution,
        bound=value,
        bound_kind=BoundKind.CERTIFIED,
        certificate=certificate,
        status=Status.OPTIMAL if solution.objective - value <= slack else Status.FEASIBLE,
        stats={**solution.stats, "bound_seconds": bound.seconds, "bound_iterations": bound.iterations},
    )


class _Search:
    """The search for one bound, against the clock."""

    def __init__(
        self,
        problem: Problem,
        time_limit: float,
        tolerance: float,
        report: Callable[[float, float, int], object] | None,
    ) -> None:
        self.problem, self.time_limit, self.tolerance, self.report = problem, time_limit, tolerance, report
        self.began = time.monotonic()
        self.presolved = presolve(problem)
        self.best: Found | None = None
        self.trace = [(self.elapsed, self.value)]
        self.steps = 0
        self.termination = Termination.COMPLETED

    @property
    def elapsed(self) -> float:
        """Seconds since the call."""
        return time.monotonic() - self.began

    @property
    def value(self) -> float:
        """The bound so far."""
        gained = 0.0 if self.best is None else max(self.best.value, 0.0)
        return float(self.presolved.problem.base + gained)

    def run(self) -> None:
        """Take steps until the time is up, or the bound no longer rises."""
        reduced = self.presolved.problem
        if reduced.limits.feasible(np.ones(reduced.n, dtype=bool)):
            return
        if self.elapsed + reduced.p**3 / _SLOWEST > self.time_limit:
            self.termination = Termination.TIME_LIMIT
            return
        try:
            self._climb(reduced)
        except KeyboardInterrupt:
            self.termination = Termination.INTERRUPTED

    def outcome(self) -> LowerBound:
        """The bound, in terms of the problem as posed."""
        reduced, lift = self.presolved.problem, self.presolved.lift_support
        open_groups = lift(np.ones(reduced.n, dtype=bool)) & ~lift(np.zeros(reduced.n, dtype=bool))
        kept = lift(np.zeros(reduced.n, dtype=bool)).astype(np.float64)
        scores = np.zeros(self.problem.n)
        if self.best is None or self.best.value <= 0.0:
            self.best = None
            kept[open_groups] = 1.0
        else:
            kept[open_groups] = 1.0 - self.best.removed
            scores[open_groups] = np.maximum(self.best.scores, 0.0)
        return LowerBound(
            problem=self.problem,
            value=self.value,
            kept=kept,
            scores=scores,
            trace=tuple(self.trace),
            iterations=self.steps,
            seconds=self.elapsed,
            termination=self.termination,
            presolved=self.presolved,
            found=self.best,
        )

    def _climb(self, reduced: Problem) -> None:
        start = self.elapsed
        ascent = Ascent(whitened(reduced), reduced.limits.usage, reduced.limits.limit)
        step_seconds = self.elapsed - start
        play_seconds = 0.25 * step_seconds
        looks = iter(_LOOKS)
        next_look, plays = next(looks)
        unpromising = 0
        while True:
            left = self.time_limit - self.elapsed
            if left < step_seconds + (_FIXED_PLAYS + min(plays, 4)) * play_seconds:
                self.termination = Termination.TIME_LIMIT
                if ascent.steps and next_look != ascent.steps and left > (_FIXED_PLAYS + 1) * play_seconds:
                    self._look(ascent, min(plays, int(left / play_seconds) - _FIXED_PLAYS))
                return
            before = self.elapsed
            ascent.step()
            self.steps = ascent.steps
            step_seconds = self.elapsed - before
            if ascent.steps >= next_look:
                before, gained = self.elapsed, self.value
                self._look(ascent, plays)
                play_seconds = (self.elapsed - before) / (_FIXED_PLAYS + plays)
                gained = self.value - gained
                unpromising = unpromising + 1 if gained <= self.tolerance * (self.value - reduced.base) else 0
                if unpromising >= _PATIENCE and ascent.steps > _LOOKS[2][0]:
                    return
                if ascent.steps >= _MOST_STEPS:
                    self.termination = Termination.ITERATION_LIMIT
                    return
                next_look, plays = next(looks, (ascent.steps + _LATER, plays))
            if self.report is not None:
                self.report(self.elapsed, self.value, self.steps)

    def _look(self, ascent: Ascent, plays: int) -> None:
        found = ascent.evaluate(plays)
        if self.best is None or found.value > self.best.value:
            self.best = found
            self.trace.append((self.elapsed, self.value))
