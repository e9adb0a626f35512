"""Backward removal as published rules do it: score the groups left, remove the lowest, update, repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.base import Deadline, Report
from osscar_opt.solvers.selection import removal_shares

__all__ = ["Remover", "remove_groups"]

_TOLD_EVERY = 16
"""Removals between two words on progress."""


class Remover(Protocol):
    """A rule at work: scores of the groups that are left, and what a removal does to the rest."""

    def scores(self) -> FloatArray:
        """(n,) the lower, the sooner removed; whatever for groups removed before."""

    def remove(self, groups: IntArray) -> None:
        """Take groups out and update what stays."""


def remove_groups(
    problem: Problem,
    rule: Remover,
    *,
    deadline: Deadline,
    report: Report,
    batch: Callable[[int], int] | None = None,
) -> tuple[BoolArray, IntArray, bool]:
    """Remove groups of lowest score until every limit holds.

    Groups to be removed by force go first; of the others only those go whose removal helps with a limit that is
    passed.  Past the deadline the rest goes at once, by the scores of that moment.

    Parameters
    ----------
    problem : Problem
    rule : Remover
    deadline : Deadline
    report : Report
    batch : callable, optional
        How many groups may go before scores are computed anew, told how many must still go at most; 1 by default.

    Returns
    -------
    support : (n,) mask
    removed : (m,) array of int
        Groups in order of removal.
    in_time : bool
    """
    support = ~problem.always_remove
    removed = np.flatnonzero(problem.always_remove).tolist()
    if removed:
        rule.remove(np.array(removed))
    in_time, told = True, 0
    while not problem.limits.feasible(support):
        due = _due(problem, support)
        scores = np.where(support & ~problem.always_keep, rule.scores(), np.inf)
        in_time = not deadline.expired()
        count = 1 if batch is None else batch(due)
        chosen = _lowest(problem, support, scores, count if in_time else problem.n)
        support[chosen] = False
        rule.remove(np.array(chosen))
        removed += chosen
        if len(removed) - told >= _TOLD_EVERY:
            told = len(removed)
            report.progress(told, told + _due(problem, support), "groups removed")
    return support, np.array(removed, dtype=np.int64), in_time


def _due(problem: Problem, support: BoolArray) -> int:
    """Most groups that can still have to leave."""
    keep = problem.limits.cardinality
    kept = int(np.count_nonzero(support))
    return kept if keep is None else max(0, kept - keep)


def _lowest(problem: Problem, support: BoolArray, scores: FloatArray, count: int) -> list[int]:
    """Up to `count` groups of lowest score, each of which helps with a limit that is still passed at its turn."""
    left = support.copy()
    chosen: list[int] = []
    for group in np.argsort(scores, kind="stable"):
        if len(chosen) == count or problem.limits.feasible(left) or np.isinf(scores[group]):
            break
        if removal_shares(problem.limits, left)[group] > 0.0:
            left[group] = False
            chosen.append(int(group))
    return chosen
