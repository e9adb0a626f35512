"""Exact backward selection: one group at a time, the one whose removal costs least after refitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.kernels import Precision, make_kernels
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import backward, backward_selection, open_tableau, with_keep_alone
from osscar_opt.solvers.walk import Walk

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
    unhelpful: ClassVar[frozenset[str]] = frozenset({"rank"})  # the tableau reads G once, and in parts
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        kernels = make_kernels(self.device, self.precision)
        greedy = backward_selection(problem, deadline=deadline, report=report, kernels=kernels)
        support, stats = greedy.support, greedy.stats
        if problem.limits.cardinality is None and greedy.in_time:
            walk = Walk.after(problem, greedy, deadline=deadline, report=report, kernels=kernels)
            stats = stats | {"added_back": walk.add_best()}
            support = walk.support
        termination = Termination.COMPLETED if greedy.in_time else Termination.TIME_LIMIT
        return Proposal(support, stats=stats, termination=termination)

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        posed = with_keep_alone(problem, keep)
        everything = np.ones(problem.n, dtype=bool)
        tableau = open_tableau(posed, everything, "kept", kernels=make_kernels(self.device, self.precision))
        order, _ = backward(posed, tableau, deadline=deadline, report=report)
        return order
