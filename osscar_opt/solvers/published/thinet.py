r"""ThiNet: remove the channels whose joint contribution to the next layer is least, then scale those that stay.

With Z_i = X_i W_i what channel i adds to the outputs, the set T of removed channels grows one at a time, each time by
the channel that keeps

.. math:: \Bigl\lVert \sum_{i \in T} Z_i \Bigr\rVert_F^2 = 1_T' H^c 1_T, \qquad H^c_{ij} = \mathrm{tr}(W_i' H_{ij} W_j)

smallest; the weights of the channels that stay are then multiplied by one number each,

.. math:: \hat w = \arg\min_w \Bigl\lVert Y - \sum_{i \notin T} w_i Z_i \Bigr\rVert_F^2 .

J.-H. Luo, J. Wu, W. Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017
(arXiv 1707.06342), equations 6 and 7 and Algorithm 1. W (p x q) are the dense weights, inputs by outputs, W_i those
of channel i.

The paper draws ten positions and outputs an image; the moments hold all of them. Both sums here include the ridge of
the gram, which is what makes them values of `osscar_opt.formulations.collapsed.collapse`.

Needs: H, G and the dense weights.  Updates one number a group.  Left out: fine-tuning after each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.collapsed import collapse, scaled_weights
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.published._removal import remove_groups
from osscar_opt.solvers.selection import with_keep_alone

__all__ = ["ThiNet"]


class _Rule:
    """The set T, by the vector H^c 1_T."""

    def __init__(self, collapsed: Problem) -> None:
        self._gram = collapsed.gram
        self._inner = np.zeros(collapsed.n)

    def scores(self) -> FloatArray:
        """By how much 1_T' H^c 1_T rises with each channel that joins T."""
        return np.asarray(2.0 * self._inner + self._gram.diagonal())

    def remove(self, groups: IntArray) -> None:
        self._inner += self._gram[:, groups].sum(axis=1)


@dataclass(frozen=True)
class ThiNet(Solver):
    """Removes the groups whose summed contribution to the outputs is least, and scales the others (ThiNet).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay, scaled by one number
        a group.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> gram = [[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]  # the first two nearly cancel
    >>> problem = Problem(gram, dense_weights=[[2.0], [-2.0], [1.0]], keep=1)
    >>> problem.solve("thinet").kept
    array([1])
    """

    name: ClassVar[str] = "thinet"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        collapsed = collapse(problem)
        support, _, in_time = remove_groups(problem, _Rule(collapsed), deadline=deadline, report=report)
        weights = None if self.refit else scaled_weights(problem, collapsed.refit(support))
        termination = Termination.COMPLETED if in_time else Termination.TIME_LIMIT
        return Proposal(support, weights=weights, termination=termination)

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> IntArray:
        posed = with_keep_alone(problem, keep)
        _, removed, _ = remove_groups(posed, _Rule(collapse(posed)), deadline=deadline, report=report)
        return np.asarray(removed)
