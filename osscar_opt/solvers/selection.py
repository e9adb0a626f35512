"""Backward and forward selection on the tableau: every choice exact, one pivot a choice.

What the solvers `greedy`, `forward`, `osscar`, `swap` and `search` begin with; a solver's own file says what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.limits import Limits
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.kernels import Kernels
from osscar_opt.linalg.tableau import Side, Tableau
from osscar_opt.solvers.base import Deadline, Report

__all__ = [
    "Selected",
    "backward",
    "backward_selection",
    "best_addition",
    "forward",
    "open_tableau",
    "removal_shares",
    "rounding_of",
    "with_keep_alone",
]

_TOLD_EVERY = 16
"""Removals between two words on progress."""

_SHARED_UP_TO = 0.5
"""Share of groups removed up to which backward selection on a two-sided tableau costs less than opening one afterwards.

In p^3 operations, with a share f removed: 3 f, against 1 - (1 - f)^3 for one that shrinks and 1 - f for the sweep of
another, beside the residuals that it starts from. These meet above 0.5; columns of full length cost the rest.
"""


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
        gram = gram.copy()
        np.fill_diagonal(gram, gram.diagonal() + ~problem.live_rows)
    groups = problem.groups.group_of_row
    return Tableau(gram, problem.cross, groups, support, side=side, optimum=problem.optimum, kernels=kernels)


def with_keep_alone(problem: Problem, keep: int) -> Problem:
    """The same problem with a plain keep for its only limit, and nothing decided beforehand.

    Examples
    --------
    >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1, always_keep=[0])
    >>> with_keep_alone(problem, 2).limits.names
    ('keep',)
    """
    return problem.with_limits(
        keep=keep, costs=None, budget=None, blocks=None, block_keep=None, always_keep=None, always_remove=None
    )


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
            tableau.move(group)
            removed.append(group)
            if keep is None and not _excess(problem, tableau.support):
                break
        if len(removed) % _TOLD_EVERY < len(batch):
            report.progress(len(removed), None if keep is None else problem.n - keep, "groups removed")
    return np.array(removed, dtype=np.int64), True


def _rest(problem: Problem, tableau: Tableau) -> list[int]:
    """What else must leave, by one ranking and without pivots: for when there is no time for more."""
    support, rest = tableau.support.copy(), []
    for group in np.argsort(_removal_ratios(problem, tableau), kind="stable"):
        if not _excess(problem, support):
            break
        if problem.limits.cardinality is None and not removal_shares(problem.limits, support)[group] > 0:
            continue  # what it would have helped with is mended already
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
    slack = limits.slack(tableau.support) + rounding_of(limits)
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
        tableau.move(group)
        added.append(group)
        report.progress(len(added), problem.limits.cardinality, "groups added")
    order = np.argsort(-tableau.gains(), kind="stable")
    filled = problem.limits.fill(order[~problem.always_remove[order]], tableau.support)
    return np.concatenate([np.array(added, dtype=np.int64), np.flatnonzero(filled & ~tableau.support)]), False


def rounding_of(limits: Limits) -> FloatArray:
    """(m,) what each limit may be passed by as rounding: half of what `Limits.feasible` allows.

    Examples
    --------
    >>> rounding_of(Limits.of(3, keep=2))
    array([1.e-09])
    """
    return np.asarray(0.5e-9 * np.abs(limits.limit) + np.finfo(float).tiny)


@dataclass(frozen=True, eq=False)
class Selected:
    """What a selection came to: the support, its objective if known, whether time sufficed, and counts.

    The tableau is there if it is two-sided and stands at the support.
    """

    support: BoolArray
    value: float | None
    in_time: bool
    stats: dict[str, Any]
    tableau: Tableau | None = None


def backward_selection(
    problem: Problem,
    *,
    deadline: Deadline,
    report: Report,
    stage: int = 1,
    kernels: Kernels | None = None,
    goes_on: bool = False,
) -> Selected:
    """Backward selection from everything that may stay; see `backward`.

    With `goes_on`, for a local search that needs a two-sided tableau afterwards, that tableau is used from the start
    where this is cheaper.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> backward_selection(problem, deadline=Deadline(), report=Report()).value
    2.5
    """
    keep = problem.limits.cardinality
    shared = goes_on and keep is not None and problem.n - keep <= _SHARED_UP_TO * problem.n
    tableau = open_tableau(problem, ~problem.always_remove, "both" if shared else "kept", kernels=kernels)
    removed, in_time = backward(problem, tableau, deadline=deadline, report=report, stage=stage)
    support = ~problem.always_remove
    support[removed] = False
    value = problem.base + tableau.change if in_time and not problem.always_remove.any() else None
    stats = {"removals": len(removed), "factorizations": tableau.factorizations, "drift": tableau.drift}
    report.incumbent(support, value)
    return Selected(support, value, in_time, stats, tableau if shared and in_time else None)


def _smallest(values: FloatArray, count: int) -> IntArray:
    """Indices of the `count` smallest finite values, smallest first."""
    if count == 1:
        return np.array([np.argmin(values)])
    order = np.argsort(values, kind="stable")[:count]
    return np.asarray(order[np.isfinite(values[order])])
