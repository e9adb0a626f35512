"""Iterated local search over exchanges: finds the optimum of small problems nearly always, improves large ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.kernels import Kernels, Precision, make_kernels
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import backward_selection, forward, open_tableau
from osscar_opt.solvers.walk import Walk

__all__ = ["Search"]


@dataclass(frozen=True)
class Search(Solver):
    """Backward and forward selection, both improved by exchanges, then kicks from the best until none helps.

    A kick changes several groups at once, in one of three ways in turn, and is followed by the local search of method
    `osscar` (`osscar_opt.solvers.walk.Walk.improve`), which ends where no exchange of single groups improves:

    - *drop*: remove random groups, then add the best of the others;
    - *push*: add random groups beyond the limits, then remove the cheapest of the others;
    - *restart*: descend from a random support.

    What is not better than the best is undone. The size of a kick is one in 256 groups to begin with, grows with the
    number of kicks that failed and starts over at each success (variable neighbourhood search, Mladenovic and Hansen
    1997).

    Parameters
    ----------
    exchange : int
        Groups exchanged at once when a local search begins, but at most one in 16 groups of the problem.
    patience : int
        Kicks in a row that may fail before the search ends.
    restart_up_to : int
        One kick in three starts anew if there are at most so many groups; with more, it is a waste of time.
    seed : int
        Seed of ``numpy.random.default_rng``; the same seed gives the same answer where time does not end the search.
    device : str
        "cpu" (numpy), or a torch device such as "cuda".
    precision : {"float64", "float32"}
        Of the tableau.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> problem.solve("search", seed=1).kept
    array([1])
    """

    name: ClassVar[str] = "search"
    unhelpful: ClassVar[frozenset[str]] = frozenset({"rank"})  # the tableau reads G once, and in parts
    exchange: int = field(default=16, metadata={"least": 0})
    patience: int = field(default=60, metadata={"least": 0})
    restart_up_to: int = field(default=128, metadata={"least": 0})
    seed: int = field(default=0, metadata={"least": 0})
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        kernels = make_kernels(self.device, self.precision)
        greedy = backward_selection(problem, deadline=deadline, report=report, kernels=kernels, goes_on=True)
        walk = Walk.after(problem, greedy, deadline=deadline, report=report, kernels=kernels)
        exchange, step = min(self.exchange, problem.n // 16), max(1, problem.n // 256)
        walk.improve(exchange)
        for support in (start, self._forward(problem, deadline, report, kernels)):
            if support is not None:
                walk.move_to(support)
                walk.improve(exchange)
        rng = np.random.default_rng(self.seed)
        failures = kicks = 0
        while failures < self.patience and not deadline.expired():
            report.progress(failures, self.patience, "kicks without improvement")
            walk.move_to(walk.best_support)
            before = walk.best_value
            self._kick(walk, kicks, step * (1 + failures // 3), rng)
            walk.improve(exchange)
            kicks += 1
            failures = 0 if walk.best_value < before else failures + 1
        termination = Termination.TIME_LIMIT if deadline.expired() else Termination.LOCAL_OPTIMUM
        stats = {"kicks": kicks, **walk.stats}
        return Proposal(walk.best_support, stats=stats, termination=termination)

    @staticmethod
    def _forward(problem: Problem, deadline: Deadline, report: Report, kernels: Kernels) -> BoolArray:
        tableau = open_tableau(problem, problem.always_keep, "removed", kernels=kernels)
        added, _ = forward(problem, tableau, deadline=deadline, report=report)
        support = problem.always_keep.copy()
        support[added] = True
        return support

    def _kick(self, walk: Walk, turn: int, size: int, rng: np.random.Generator) -> None:
        kept = rng.permutation(np.flatnonzero(walk.support & walk.movable))
        removed = rng.permutation(np.flatnonzero(~walk.support & walk.movable))
        size = min(size, len(kept), len(removed))
        style = turn % (3 if walk.problem.n <= self.restart_up_to else 2)
        if style == 0:
            for group in kept[:size]:
                walk.tableau.move(int(group))
            walk.add_best(forbidden=_mask(kept[:size], len(walk.support)))
        elif style == 1:
            for group in removed[:size]:
                walk.tableau.move(int(group))
            walk.remove_until_feasible(spared=_mask(removed[:size], len(walk.support)))
        else:
            order = rng.permutation(np.flatnonzero(walk.movable))
            walk.move_to(walk.problem.limits.fill(order, walk.problem.always_keep))


def _mask(groups: IntArray, n: int) -> BoolArray:
    mask = np.zeros(n, dtype=bool)
    mask[groups] = True
    return mask
