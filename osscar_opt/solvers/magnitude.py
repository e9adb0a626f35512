"""Magnitude pruning: keep the groups with the largest dense weights, as they are.

Score of group g: the sum of |W0_ij| (l1) or of W0_ij^2 (l2) over its rows i and all outputs j, with W0 the dense
weights, or the unconstrained optimum where none are given.  The weights are not refitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from osscar_opt._typing import BoolArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import magnitude_scores, masked_weights, ranked_support
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(Solver):
    """Keeps the groups with the largest dense weights, which stay as they are (no refit).

    Parameters
    ----------
    norm : {"l1", "l2"}, optional
        "l1", as in the code published with OSSCAR, or "l2".

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(2) + 1, dense_weights=[[1.0], [3.0]], keep=1)
    >>> problem.solve("magnitude").weights.ravel()
    array([0., 3.])
    """

    name: ClassVar[str] = "magnitude"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    norm: Literal["l1", "l2"] = "l1"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        support = ranked_support(problem, magnitude_scores(problem, self.norm))
        return Proposal(support, weights=masked_weights(problem, support))
