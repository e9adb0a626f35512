"""A walk through feasible supports: removals, additions and exchanges of one two-sided tableau, each exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.kernels import Kernels
from osscar_opt.linalg.swaps import best_swaps
from osscar_opt.linalg.tableau import Tableau
from osscar_opt.solvers.base import Deadline, Report
from osscar_opt.solvers.selection import Selected, best_addition, open_tableau, removal_shares, rounding_of

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
    tableau : Tableau, optional
        A two-sided one that stands at the support.

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
        tableau: Tableau | None = None,
    ) -> None:
        self.problem, self.deadline, self.report = problem, deadline, report
        self.tableau = tableau or open_tableau(problem, support, "both", kernels=kernels)
        self._limits = problem.limits
        self._start_value = (problem.value(support) if value is None else value) - self.tableau.change
        self.movable = ~(problem.always_keep | problem.always_remove)
        self._largest_group = int(problem.groups.sizes.max(initial=0))
        self._before: dict[str, Any] = {}
        self.exchanges = 0
        self.best_value, self.best_support = np.inf, self.tableau.support.copy()
        self.record()

    @classmethod
    def after(
        cls,
        problem: Problem,
        selected: Selected,
        *,
        deadline: Deadline,
        report: Report,
        kernels: Kernels | None = None,
    ) -> Walk:
        """Go on where a selection ended, on its tableau if that is two-sided; its counts join those of the walk."""
        walk = cls(
            problem,
            selected.support,
            deadline=deadline,
            report=report,
            value=selected.value,
            kernels=kernels,
            tableau=selected.tableau,
        )
        walk._before = selected.stats
        return walk

    @property
    def value(self) -> float:
        return self._start_value + self.tableau.change

    @property
    def support(self) -> BoolArray:
        return self.tableau.support

    def record(self) -> bool:
        """Remember the current support if it is the best so far, by more than rounding."""
        if not self.value < self.best_value - self._trifle:
            return False
        self.best_value, self.best_support = self.value, self.support.copy()
        self.report.incumbent(self.best_support, self.best_value)
        return True

    def move_to(self, support: BoolArray) -> None:
        """Pivot to any support, group by group; additions first, so that no weight is lost on the way."""
        for group in np.flatnonzero(support & ~self.support):
            self.tableau.move(int(group))
        for group in np.flatnonzero(self.support & ~support):
            self.tableau.move(int(group))

    @property
    def _trifle(self) -> float:
        """What is no improvement but rounding."""
        return max(_RELATIVE_GAIN * abs(self.value), 1e-14 * abs(self.problem.constant))

    @property
    def stats(self) -> dict[str, Any]:
        """Counts for `Solution.stats`; `factorizations` above one says that drift was found and mended."""
        tableau, before = self.tableau, self._before
        return {
            **before,
            "exchanges": self.exchanges,
            "pivots": tableau.pivots,
            "factorizations": max(tableau.factorizations, before.get("factorizations", 0)),
            "drift": max(tableau.drift, before.get("drift", 0.0)),
        }

    # ---------------------------------------------------------------- moves

    def remove_cheapest(self, count: int) -> None:
        """Remove `count` groups, each time the one of least loss."""
        for _ in range(count):
            losses = np.where(self.movable, self.tableau.losses(), np.inf)
            group = int(np.argmin(losses))
            if not np.isfinite(losses[group]):
                return
            self.tableau.move(group)

    def remove_until_feasible(self, spared: BoolArray) -> None:
        """Remove groups, each time the one of least loss per share of the excess mended, sparing some if possible."""
        while not self._limits.feasible(self.support):
            shares = removal_shares(self._limits, self.support) * self.movable
            if (shares[~spared] > 0).any():
                shares[spared] = 0.0
            ratios = np.full(len(shares), np.inf)
            np.divide(self.tableau.losses(), shares, out=ratios, where=shares > 0)
            self.tableau.move(int(np.argmin(ratios)))

    def add_best(self, forbidden: BoolArray | None = None) -> int:
        """Add groups, each time the best, while any fits; returns how many."""
        added = 0
        while (group := best_addition(self.problem, self.tableau, forbidden)) is not None:
            self.tableau.move(group)
            added += 1
        return added

    def exchange(self, count: int, *, add_first: bool = False) -> bool:
        """Exchange `count` groups together if that improves; otherwise leave everything as it was.

        Remove the cheapest, then add the best while any fits; or, if `add_first`, add the best beyond the limits,
        then remove the cheapest until they hold. Each choice is exact at its turn, so that the value of the whole
        exchange is: no ranking of single groups stands in for it.
        """
        before, value = self.support.copy(), self.value
        self.tableau.checkpoint(2 * count * self._largest_group)
        if add_first:
            for _ in range(count):
                gains = np.where(self.movable, self.tableau.gains(), -np.inf)
                group = int(np.argmax(gains))
                if not gains[group] > 0:
                    break
                self.tableau.move(group)
            self.remove_until_feasible(spared=np.zeros(len(before), dtype=bool))
        else:
            self.remove_cheapest(count)
        self.add_best()
        if self._limits.feasible(self.support) and self.value < value - self._trifle:
            self.tableau.commit()
            self.exchanges += count
            self.record()
            return True
        if not self.tableau.rollback():
            self.move_to(before)
        return False

    def improve(self, exchange: int, rounds: int = 1_000_000) -> tuple[Termination, int]:
        """Exchange many groups at once, then fewer, then single ones, until nothing improves; also returns the rounds.

        Exchanges of `exchange` groups as long as they improve, then of half as many, down to one; then single ones
        (`descend`). Where that is done, twice and four times as many are tried, and what they win starts it all over.
        Never more than a quarter of either side: an exchange of most of what there is hardly ever improves.
        """
        kept, removed = int(self.support.sum()), int((~self.support).sum())
        most, done = (min(kept, removed) + 3) // 4, 0
        while True:
            count = min(exchange, most)
            while count >= 1:
                if done >= rounds or self.deadline.expired():
                    return self._why_stopped, done
                done += 1
                self.report.progress(done, None, "rounds of exchanges")
                if not self._both_ways(count):
                    count //= 2
            before = self.value
            if not self.descend():
                return self._why_stopped, done
            if self.value < before:
                continue
            wide = [size for size in (2 * exchange, 4 * exchange) if 0 < size <= most]
            if done >= rounds or self.deadline.expired():
                return self._why_stopped, done
            done += len(wide)
            if not any(self._both_ways(size) for size in wide):
                return Termination.LOCAL_OPTIMUM, done

    def _both_ways(self, count: int) -> bool:
        improved = [self.exchange(count, add_first=add_first) for add_first in (False, True)]
        return any(improved)

    @property
    def _why_stopped(self) -> Termination:
        return Termination.TIME_LIMIT if self.deadline.expired() else Termination.ITERATION_LIMIT

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
        free = self._limits.cardinality is not None and bool(self.movable.all())
        kept, partner, best = best_swaps(self.tableau, None if free else self._allowed)
        enough = best < -_RELATIVE_GAIN * self.tableau.losses()[kept]
        return kept, partner, np.where(enough, best, 0.0)

    def _allowed(self, kept: IntArray, removed: IntArray) -> BoolArray:
        """(|kept|, |removed|) whether the exchange keeps to every limit and moves nothing that is decided."""
        allowed = self.movable[kept, None] & self.movable[removed]
        if self._limits.cardinality is None:
            allowed &= self._exchangeable(kept, removed)
        return np.asarray(allowed)

    def _try_exchange(self, out: int, new: int) -> bool:
        """Exchange two groups if that still improves; otherwise leave everything as it was."""
        if self.support[new] or not self.support[out]:
            return False
        if (
            self._limits.cardinality is None
            and not self._exchangeable(np.array([out]), np.array([new]))[0, 0]
        ):
            return False
        self.tableau.checkpoint(2 * self._largest_group)
        cost = self.tableau.pivot(out)
        if self.tableau.gains()[new] > (1.0 + _RELATIVE_GAIN) * cost:
            self.tableau.move(new)
            self.tableau.commit()
            return True
        if not self.tableau.rollback():
            self.tableau.move(out)
        return False

    def _exchangeable(self, kept: IntArray, removed: IntArray) -> BoolArray:
        """(|kept|, |removed|) whether the exchange keeps to every limit."""
        fits = np.ones((len(kept), len(removed)), dtype=bool)
        slack = self._limits.slack(self.support) + rounding_of(self._limits)
        for usage, left in zip(self._limits.usage, slack, strict=True):
            fits &= usage[removed] <= left + usage[kept, None]
        return fits
