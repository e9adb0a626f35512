"""Magnitude pruning with a refit: the support of `magnitude`, with the best weights on it.

Score of group g: the sum of |W0_ij| (l1) or of W0_ij^2 (l2) over its rows i and all outputs j, with W0 the dense
weights, or the unconstrained optimum where none are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from osscar_opt._typing import BoolArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import magnitude_scores, ranked_support
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["MagnitudeRefit"]


@dataclass(frozen=True)
class MagnitudeRefit(Solver):
    """Keeps the groups with the largest dense weights and refits the weights.

    Parameters
    ----------
    norm : {"l1", "l2"}, optional
        "l1", as in the code published with OSSCAR, or "l2".

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(2) + 1, dense_weights=[[1.0], [3.0]], keep=1)
    >>> problem.solve("magnitude_refit").weights.ravel()
    array([0. , 3.5])
    """

    name: ClassVar[str] = "magnitude_refit"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False  # scores are those of the weights as posed

    norm: Literal["l1", "l2"] = "l1"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        return Proposal(ranked_support(problem, magnitude_scores(problem, self.norm)))

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        return np.argsort(magnitude_scores(problem, self.norm), kind="stable").astype(np.int64)
