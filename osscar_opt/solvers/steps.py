"""The moves that solvers are made of, each exact and each a pivot or a few: removal, addition, exchange.

A solver's file says in which order it takes them and when it stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.limits import Limits
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.kernels import Kernels
from osscar_opt.linalg.swaps import swap_changes
from osscar_opt.linalg.tableau import Side, Tableau
from osscar_opt.solvers.base import Deadline, Report

__all__ = [
    "Selected",
    "Walk",
    "backward",
    "backward_selection",
    "best_addition",
    "forward",
    "open_tableau",
    "removal_shares",
]

_RELATIVE_GAIN = 1e-9
"""An exchange must win this share of what its removal costs: less is rounding, and rounding makes cycles."""


def open_tableau(
    problem: Problem, support: BoolArray, side: Side, *, kernels: Kernels | None = None
) -> Tableau:
    """Open the tableau of a problem at a support.

    Examples
    --------
    >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
    >>> open_tableau(problem, np.ones(2, bool), "kept").losses()
    array([0.5, 2. ])
    """
    gram = problem.gram
    if not problem.live_rows.all():  # a dead input explains nothing, whatever its diagonal
        gram = gram + np.diag((~problem.live_rows).astype(float))
    groups = problem.groups.group_of_row
    return Tableau(gram, problem.cross, groups, support, side=side, optimum=problem.optimum, kernels=kernels)


def removal_shares(limits: Limits, support: BoolArray) -> FloatArray:
    """(n,) share of what is in excess of the limits that each group's removal would mend, summed over the limits.

    Under a plain keep all shares are equal, so that losses alone decide; in a knapsack the loss is weighed against
    the cost, counted up to what is still in excess. Zero for groups whose removal does not help.

    Examples
    --------
    >>> limits = Limits.of(3, costs=np.array([1.0, 2.0, 9.0]), budget=8.0)
    >>> removal_shares(limits, np.ones(3, dtype=bool))
    array([0.25, 0.5 , 1.  ])
    """
    excess = limits.excess(support)
    over = excess > 0
    mended = np.minimum(limits.usage[over], excess[over, None]) / excess[over, None]
    return np.asarray(mended.sum(axis=0) * support)


def backward(
    problem: Problem, tableau: Tableau, *, deadline: Deadline, report: Report, stage: int = 1
) -> tuple[IntArray, bool]:
    """Backward selection until every limit holds.

    Remove the `stage` groups of least loss per share of the excess that their removal mends, refit, repeat. With
    stage = 1 every choice is exact one-at-a-time greedy. Past the deadline, one ranking decides what else must leave,
    and the tableau does not follow.

    Returns
    -------
    removed : (m,) int array
        Groups in order of removal.
    in_time : bool

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> tableau = open_tableau(problem, np.ones(3, bool), "kept")
    >>> backward(problem, tableau, deadline=Deadline(), report=Report())
    (array([0, 2]), True)
    """
    removed: list[int] = []
    keep = problem.limits.cardinality
    while excess := _excess(problem, tableau.support):
        if deadline.expired():
            return np.array(removed + _rest(problem, tableau), dtype=np.int64), False
        count = min(stage, excess)
        if count == 1 and keep is not None and not problem.always_keep.any():
            batch = [tableau.cheapest()]
        else:
            batch = _smallest(_removal_ratios(problem, tableau), count).tolist()
        for group in batch:
            tableau.pivot(group)
            removed.append(group)
            if keep is None and not _excess(problem, tableau.support):
                break
        report.progress(len(removed), None if keep is None else problem.n - keep, "groups removed")
    return np.array(removed, dtype=np.int64), True


def _rest(problem: Problem, tableau: Tableau) -> list[int]:
    """What else must leave, by one ranking and without pivots: for when there is no time for more."""
    support, rest = tableau.support.copy(), []
    for group in np.argsort(_removal_ratios(problem, tableau), kind="stable"):
        if not _excess(problem, support):
            break
        support[group] = False
        rest.append(int(group))
    return rest


def _excess(problem: Problem, support: BoolArray) -> int:
    """Most groups that can still have to leave; zero if every limit holds."""
    keep = problem.limits.cardinality
    if keep is not None:
        return max(0, int(np.count_nonzero(support)) - keep)
    return 0 if problem.limits.feasible(support) else int(np.count_nonzero(support))


def _removal_ratios(problem: Problem, tableau: Tableau) -> FloatArray:
    """(n,) loss per share of the excess mended; inf for groups that must stay or do not help."""
    ratios = tableau.losses()
    if problem.limits.cardinality is None:
        shares = removal_shares(problem.limits, tableau.support)
        ratios = np.divide(ratios, shares, out=np.full(len(shares), np.inf), where=shares > 0)
    ratios[problem.always_keep] = np.inf
    return ratios


def best_addition(problem: Problem, tableau: Tableau, forbidden: BoolArray | None = None) -> int | None:
    """Find the removed group of most gain among those that fit; None if nothing that fits explains anything.

    Unless a plain keep is the only limit, gains are weighed against the share of the slack that a group uses.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> best_addition(problem, open_tableau(problem, np.zeros(3, bool), "removed"))
    1
    """
    limits = problem.limits
    slack = limits.slack(tableau.support) + _slop(limits)
    gains = tableau.gains()
    if limits.cardinality is not None:
        if slack[0] < 1.0:
            return None
    else:
        fits = np.all(limits.usage <= slack[:, None], axis=0)
        used = np.divide(
            limits.usage, slack[:, None], out=np.zeros(limits.usage.shape), where=fits & (slack > 0)[:, None]
        )
        gains /= used.sum(axis=0) + 1e-12  # what is free comes first
        gains[~fits] = -np.inf
    gains[problem.always_remove] = -np.inf
    if forbidden is not None:
        gains[forbidden] = -np.inf
    group = int(np.argmax(gains))
    return group if gains[group] > 0 else None


def forward(
    problem: Problem, tableau: Tableau, *, deadline: Deadline, report: Report
) -> tuple[IntArray, bool]:
    """Forward selection: add the group of most gain, refit, repeat while any fits.

    Past the deadline, what else fits is added in order of gain, and the tableau does not follow.

    Returns
    -------
    added : (m,) int array
        Groups in order of addition.
    in_time : bool

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2)
    >>> tableau = open_tableau(problem, np.zeros(3, bool), "removed")
    >>> forward(problem, tableau, deadline=Deadline(), report=Report())
    (array([1, 2]), True)
    """
    added: list[int] = []
    while not deadline.expired():
        group = best_addition(problem, tableau)
        if group is None:
            return np.array(added, dtype=np.int64), True
        tableau.pivot(group)
        added.append(group)
        report.progress(len(added), problem.limits.cardinality, "groups added")
    order = np.argsort(-tableau.gains(), kind="stable")
    filled = problem.limits.fill(order[~problem.always_remove[order]], tableau.support)
    return np.concatenate([np.array(added, dtype=np.int64), np.flatnonzero(filled & ~tableau.support)]), False


def _slop(limits: Limits) -> FloatArray:
    """What a limit may be passed by as rounding, half of what `Limits.feasible` allows."""
    return np.asarray(0.5e-9 * np.abs(limits.limit) + np.finfo(float).tiny)


@dataclass(frozen=True, eq=False)
class Selected:
    """What a selection came to: the support, its objective if known, whether time sufficed, and counts."""

    support: BoolArray
    value: float | None
    in_time: bool
    stats: dict[str, Any]


def backward_selection(
    problem: Problem, *, deadline: Deadline, report: Report, stage: int = 1, kernels: Kernels | None = None
) -> Selected:
    """Backward selection from everything that may stay; see `backward`.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> backward_selection(problem, deadline=Deadline(), report=Report()).value
    2.5
    """
    tableau = open_tableau(problem, ~problem.always_remove, "kept", kernels=kernels)
    removed, in_time = backward(problem, tableau, deadline=deadline, report=report, stage=stage)
    support = ~problem.always_remove
    support[removed] = False
    value = problem.base + tableau.change if in_time and not problem.always_remove.any() else None
    stats = {"removals": len(removed), "factorizations": tableau.factorizations, "drift": tableau.drift}
    report.incumbent(support, value)
    return Selected(support, value, in_time, stats)


def _smallest(values: FloatArray, count: int) -> IntArray:
    """Indices of the `count` smallest finite values, smallest first."""
    if count == 1:
        return np.array([np.argmin(values)])
    order = np.argsort(values, kind="stable")[:count]
    return np.asarray(order[np.isfinite(values[order])])


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
        slack = self._limits.slack(self.support) + _slop(self._limits)
        for usage, left in zip(self._limits.usage, slack, strict=True):
            fits &= usage[removed] <= left + usage[kept, None]
        return fits
