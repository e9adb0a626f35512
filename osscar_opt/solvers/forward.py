"""Exact forward selection: one group at a time, the one that explains most after refitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.kernels import Precision, make_kernels
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import forward, open_tableau, with_keep_alone

__all__ = ["Forward"]


@dataclass(frozen=True)
class Forward(Solver):
    r"""Adds one group at a time, each time the one that lowers the refitted objective most.

    With B = H_gg - H_gS inv(H_SS) H_Sg and r = G_g - H_gS W_S, adding group g gains

    .. math:: \gamma_g = \tfrac12 \mathrm{tr}(r' B^{-1} r),

    orthogonal least squares (Chen, Cowan and Grant 1991) for groups. Under a budget, the gain is divided by the
    share of the slack that the group uses.

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
    >>> problem.solve("forward").kept
    array([1])
    """

    name: ClassVar[str] = "forward"
    unhelpful: ClassVar[frozenset[str]] = frozenset({"rank"})  # the tableau reads G once, and in parts
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        tableau = open_tableau(
            problem, problem.always_keep, "removed", kernels=make_kernels(self.device, self.precision)
        )
        added, in_time = forward(problem, tableau, deadline=deadline, report=report)
        termination = Termination.COMPLETED if in_time else Termination.TIME_LIMIT
        support = problem.always_keep.copy()
        support[added] = True
        return Proposal(support, stats={"additions": len(added)}, termination=termination)

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        posed = with_keep_alone(problem, problem.n)
        nothing = np.zeros(problem.n, dtype=bool)
        tableau = open_tableau(posed, nothing, "removed", kernels=make_kernels(self.device, self.precision))
        added, _ = forward(posed, tableau, deadline=deadline, report=report)
        never = np.setdiff1d(np.arange(problem.n), added)  # groups that explain nothing leave first
        return np.concatenate([never, added[::-1]])
