"""Exact backward selection: one group at a time, the one whose removal costs least after refitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.tableau import Tableau
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.steps import Walk, backward, open_tableau

__all__ = ["Greedy"]


@dataclass(frozen=True)
class Greedy(Solver):
    r"""Removes one group at a time, each time the one that raises the refitted objective least.

    With A = inv(H_SS) and W_S the refitted weights, removing group g costs

    .. math:: \ell_g = \tfrac12 \mathrm{tr}(W_g' A_{gg}^{-1} W_g),

    the multi-row case of optimal brain surgery (Hassibi and Stork 1993); the first phase of OSSCAR (Meng et al.
    2024, arXiv 2403.12983) with one removal a stage. All losses follow from the tableau, one pivot a removal.
    Under a budget, the loss is divided by the share of the excess that the removal mends, and what fits into the
    slack at the end is added back.

    Parameters
    ----------
    device : str
        "cpu" (numpy), or a torch device such as "cuda".
    precision : {"float64", "float32"}
        Of the tableau.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> problem.solve("greedy").kept
    array([1])
    """

    name: ClassVar[str] = "greedy"
    device: str = "cpu"
    precision: str = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        tableau = self._open(problem)
        removed, in_time = backward(problem, tableau, deadline=deadline, report=report)
        support = tableau.support
        stats = {"removals": len(removed), "factorizations": tableau.factorizations, "drift": tableau.drift}
        if problem.limits.cardinality is None and in_time:
            del tableau
            walk = Walk(
                problem, support, deadline=deadline, report=report, device=self.device, precision=self.precision
            )
            stats["added_back"] = walk.add_best()
            support = walk.support
        termination = Termination.COMPLETED if in_time else Termination.TIME_LIMIT
        return Proposal(support, stats=stats, termination=termination)

    def removal_order(self, problem: Problem, *, deadline: Deadline, report: Report) -> IntArray:
        unlimited = problem.with_limits(
            keep=0, costs=None, budget=None, blocks=None, block_keep=None, always_keep=None, always_remove=None
        )
        order, _ = backward(unlimited, self._open(unlimited), deadline=deadline, report=report)
        return order

    def _open(self, problem: Problem) -> Tableau:
        everything = ~problem.always_remove
        return open_tableau(problem, everything, "kept", device=self.device, precision=self.precision)
