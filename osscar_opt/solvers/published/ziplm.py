r"""ZipLM: one structure at a time by optimal brain surgery, with its update and no re-solve.

With A = inv(H) over what is left, remove the structure g of least

.. math::

    \rho_g = \mathrm{tr}\bigl(W_g' \, (A_{gg})^{-1} W_g\bigr), \qquad
    W \leftarrow W - A_{:g} (A_{gg})^{-1} W_g , \qquad
    A \leftarrow A - A_{:g} (A_{gg})^{-1} A_{g:}

and repeat, with W (p x q) inputs by outputs (the paper has outputs by inputs) and W_g its rows of group g. E. Kurtic,
E. Frantar, D. Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023 (arXiv
2302.04089), Section 3.1 and Algorithm 1.

Where the dense weights are the unconstrained optimum, the weights are the least-squares refit on what is left, and
the choices are those of `greedy`, exactly. Where the targets are others, ZipLM goes on approximating the dense layer
and `greedy` the targets.

Needs: H and the dense weights.  Updates the weights of all groups that stay.  Left out: the search over layers by
measured run times, removing whole modules, and the distillation between steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.published._removal import remove_groups
from osscar_opt.solvers.published._surgeon import Surgeon
from osscar_opt.solvers.selection import with_keep_alone

__all__ = ["ZipLM"]


class _Rule:
    def __init__(self, problem: Problem) -> None:
        self.surgeon = Surgeon(problem)

    def scores(self) -> FloatArray:
        return self.surgeon.losses()

    def remove(self, groups: IntArray) -> None:
        self.surgeon.remove(groups)


@dataclass(frozen=True)
class ZipLM(Solver):
    """Removes one group at a time by optimal brain surgery and compensates in the others (ZipLM).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the compensated weights stay.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> solution = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1).solve("ziplm")
    >>> solution.kept, solution.weights.ravel()
    (array([1]), array([0. , 2.5]))
    """

    name: ClassVar[str] = "ziplm"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        rule = _Rule(problem)
        support, removed, in_time = remove_groups(problem, rule, deadline=deadline, report=report)
        stats: dict[str, Any] = {"removed": len(removed), "restarts": rule.surgeon.restarts}
        return Proposal(
            support,
            weights=None if self.refit else rule.surgeon.weights(),
            stats=stats,
            termination=Termination.COMPLETED if in_time else Termination.TIME_LIMIT,
        )

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        posed = with_keep_alone(problem, keep)
        _, removed, _ = remove_groups(posed, _Rule(posed), deadline=deadline, report=report)
        return np.asarray(removed)
