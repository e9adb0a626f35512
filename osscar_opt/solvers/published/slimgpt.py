r"""SlimGPT: batched greedy pruning, with the grouped Cholesky head error and the dynamic group size of the FFN.

With A = inv(H) over what is left and W (p x q) the weights of now, inputs by outputs, each round scores every group
by

.. math:: E_g = \sum_{j \in g} \frac{\lVert W_{j:} \rVert_2^2}{L_{jj}^2}, \qquad L L' = A_{gg},

one Cholesky factor for each group, removes the lowest, and compensates in the rest as optimal brain surgery does (one
row after the other, which comes to :math:`W \leftarrow W - A_{:g} A_{gg}^{-1} W_g`). Groups of several rows (attention
heads) go one a round; groups of one row (FFN channels) go in batches that shrink from round to round. G. Ling, Z.
Wang, Y. Yan, Q. Liu, "SlimGPT: Layer-wise Structured Pruning for Large Language Models", NeurIPS 2024 (arXiv
2412.18110), Section 3.

E_g leaves out that the later rows of a head have changed when their turn comes; with one row it is the exact loss
(twice the objective's). Batch sizes are those of the published code: with b = (rows to remove - 512) // 2 at first
and b <- (b - 512) // 2 after each round, a round removes min(what is left to remove, max(b, 64), 1024) rows.

Needs: H and the dense weights.  Updates the weights of all groups that stay.  Left out: the incremental pruning ratio
over the layers, and fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.published._removal import remove_groups
from osscar_opt.solvers.published._surgeon import Surgeon
from osscar_opt.solvers.selection import with_keep_alone

__all__ = ["SlimGPT"]

_STEP = 512
"""By how much the batch shrinks, beside being halved."""


class _Rule:
    def __init__(self, problem: Problem, fewest: int, most: int) -> None:
        self.surgeon = Surgeon(problem)
        self._one_row = problem.groups.uniform_size == 1
        self._fewest, self._most = fewest, most
        self._size: int | None = None
        self.rounds = 0

    def scores(self) -> FloatArray:
        self.rounds += 1
        return self.surgeon.head_errors()

    def remove(self, groups: IntArray) -> None:
        self.surgeon.remove(groups)

    def batch(self, due: int) -> int:
        if not self._one_row:
            return 1
        self._size = ((due if self._size is None else self._size) - _STEP) // 2
        return min(due, self._most, max(self._size, self._fewest))


@dataclass(frozen=True)
class SlimGPT(Solver):
    """Removes groups by their Cholesky head error, single rows in shrinking batches (SlimGPT).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the compensated weights stay.
    fewest, most : int, optional
        Rows removed a round, where groups are single rows, at least (but the last) and at most.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> solution = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1).solve("slimgpt")
    >>> solution.kept, solution.weights.ravel()
    (array([1]), array([0. , 2.5]))
    """

    name: ClassVar[str] = "slimgpt"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False
    fewest: int = field(default=64, metadata={"least": 1})
    most: int = field(default=1024, metadata={"least": 1})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        rule = _Rule(problem, self.fewest, self.most)
        support, removed, in_time = remove_groups(
            problem, rule, deadline=deadline, report=report, batch=rule.batch
        )
        stats: dict[str, Any] = {"removed": len(removed), "rounds": rule.rounds}
        stats["restarts"] = rule.surgeon.restarts
        return Proposal(
            support,
            weights=None if self.refit else rule.surgeon.weights(),
            stats=stats,
            termination=Termination.COMPLETED if in_time else Termination.TIME_LIMIT,
        )

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        posed = with_keep_alone(problem, keep)
        rule = _Rule(posed, self.fewest, self.most)
        _, removed, _ = remove_groups(posed, rule, deadline=deadline, report=report, batch=rule.batch)
        return np.asarray(removed)
