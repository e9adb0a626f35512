"""What rules that score every group once and update nothing have in common."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import masked_weights, ranked_support
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["ScoredRule"]


@dataclass(frozen=True)
class ScoredRule(Solver):
    """Keeps the groups of largest score, with the dense weights or refitted.

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.
    """

    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False

    @abc.abstractmethod
    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group, shape (n,); the larger, the more worth keeping."""

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        support = ranked_support(problem, self.score_groups(problem))
        return Proposal(support, weights=None if self.refit else masked_weights(problem, support))

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        return np.argsort(self.score_groups(problem), kind="stable").astype(np.int64)
