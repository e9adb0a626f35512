"""A walk through feasible supports: removals, additions and exchanges of one two-sided tableau, each exact."""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.kernels import Kernels
from osscar_opt.linalg.swaps import swap_changes
from osscar_opt.solvers.base import Deadline, Report
from osscar_opt.solvers.selection import best_addition, open_tableau, removal_shares, rounding_of

__all__ = ["Walk"]

_RELATIVE_GAIN = 1e-9
"""An exchange must win this share of what its removal costs: less is rounding, and rounding makes cycles."""


class Walk:
    """A walk through feasible supports by pivots of one two-sided tableau; remembers and reports the best.

    Parameters
    ----------
    problem : Problem
    support : (n,) mask
        Feasible.
    value : float, optional
        Its objective, if known.

    Attributes
    ----------
    value : float
        Objective at the current support.
    best_value, best_support
        Of the best support recorded so far.
    exchanges : int
        Improving exchanges made.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> walk = Walk(problem, np.array([True, False, False]), deadline=Deadline(), report=Report())
    >>> walk.descend(), walk.best_support, walk.best_value
    (True, array([False,  True, False]), 2.5)
    """

    def __init__(
        self,
        problem: Problem,
        support: BoolArray,
        *,
        deadline: Deadline,
        report: Report,
        value: float | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self.problem, self.deadline, self.report = problem, deadline, report
        self.tableau = open_tableau(problem, support, "both", kernels=kernels)
        self._limits = problem.limits
        self._start_value = problem.value(support) if value is None else value
        self.movable = ~(problem.always_keep | problem.always_remove)
        self.exchanges = 0
        self.best_value, self.best_support = np.inf, self.tableau.support.copy()
        self.record()

    @property
    def value(self) -> float:
        return self._start_value + self.tableau.change

    @property
    def support(self) -> BoolArray:
        return self.tableau.support

    def record(self) -> bool:
        """Remember the current support if it is the best so far, by more than rounding."""
        trifle = max(_RELATIVE_GAIN * abs(self.value), 1e-14 * abs(self.problem.constant))
        if not self.value < self.best_value - trifle:
            return False
        self.best_value, self.best_support = self.value, self.support.copy()
        self.report.incumbent(self.best_support, self.best_value)
        return True

    def move_to(self, support: BoolArray) -> None:
        """Pivot to any support, group by group; additions first, so that no weight is lost on the way."""
        for group in np.flatnonzero(support & ~self.support):
            self.tableau.pivot(int(group))
        for group in np.flatnonzero(self.support & ~support):
            self.tableau.pivot(int(group))

    # ---------------------------------------------------------------- moves

    def remove_cheapest(self, count: int) -> None:
        """Remove `count` groups, each time the one of least loss."""
        for _ in range(count):
            losses = np.where(self.movable, self.tableau.losses(), np.inf)
            group = int(np.argmin(losses))
            if not np.isfinite(losses[group]):
                return
            self.tableau.pivot(group)

    def remove_until_feasible(self, spared: BoolArray) -> None:
        """Remove groups, each time the one of least loss per share of the excess mended, sparing some if possible."""
        while not self._limits.feasible(self.support):
            shares = removal_shares(self._limits, self.support) * self.movable
            if (shares[~spared] > 0).any():
                shares[spared] = 0.0
            ratios = np.full(len(shares), np.inf)
            np.divide(self.tableau.losses(), shares, out=ratios, where=shares > 0)
            self.tableau.pivot(int(np.argmin(ratios)))

    def add_best(self, forbidden: BoolArray | None = None) -> int:
        """Add groups, each time the best, while any fits; returns how many."""
        added = 0
        while (group := best_addition(self.problem, self.tableau, forbidden)) is not None:
            self.tableau.pivot(group)
            added += 1
        return added

    def exchange(self, count: int) -> None:
        """Remove the `count` cheapest groups, then add the best while any fits, each choice exact at its turn."""
        self.remove_cheapest(count)
        self.add_best()

    def descend(self, per_evaluation: int = 16) -> bool:
        """Exchange single groups until no exchange and no addition improves; False if time ran out before.

        All exchanges are valued together; of the improving ones the best are made one after another, each only
        if it still improves when its turn comes.
        """
        self.add_best()
        self.record()
        while not self.deadline.expired():
            kept, removed, changes = self._best_exchanges()
            made = 0
            for index in np.argsort(changes, kind="stable"):
                if made == per_evaluation or not changes[index] < 0:
                    break
                made += self._try_exchange(int(kept[index]), int(removed[index]))
            if made == 0:
                return True
            self.exchanges += made
            if self._limits.cardinality is None:
                self.add_best()
            self.record()
        return False

    # -------------------------------------------------------------- details

    def _best_exchanges(self) -> tuple[IntArray, IntArray, FloatArray]:
        """For every kept group the best partner to exchange it for, with the change (0 if none improves)."""
        kept, removed, changes = swap_changes(self.tableau)
        if changes.size == 0:
            return kept[:0], removed[:0], np.empty(0)
        if self._limits.cardinality is None:
            changes[~self._exchangeable(kept, removed)] = np.inf
        if not self.movable.all():
            changes[~self.movable[kept]] = np.inf
            changes[:, ~self.movable[removed]] = np.inf
        partner = changes.argmin(axis=1)
        best = changes[np.arange(len(kept)), partner]
        enough = best < -_RELATIVE_GAIN * self.tableau.losses()[kept]
        return kept, removed[partner], np.where(enough, best, 0.0)

    def _try_exchange(self, out: int, new: int) -> bool:
        """Exchange two groups if that still improves; otherwise leave everything as it was."""
        if self.support[new] or not self.support[out]:
            return False
        if (
            self._limits.cardinality is None
            and not self._exchangeable(np.array([out]), np.array([new]))[0, 0]
        ):
            return False
        cost = self.tableau.pivot(out)
        if self.tableau.gains()[new] > (1.0 + _RELATIVE_GAIN) * cost:
            self.tableau.pivot(new)
            return True
        self.tableau.pivot(out)
        return False

    def _exchangeable(self, kept: IntArray, removed: IntArray) -> BoolArray:
        """(|kept|, |removed|) whether the exchange keeps to every limit."""
        fits = np.ones((len(kept), len(removed)), dtype=bool)
        slack = self._limits.slack(self.support) + rounding_of(self._limits)
        for usage, left in zip(self._limits.usage, slack, strict=True):
            fits &= usage[removed] <= left + usage[kept, None]
        return fits
