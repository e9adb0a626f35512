r"""Wanda-sp: weight magnitude times input norm, summed over a group.

.. math:: S_g = \sum_{j \in g} \sum_i |W_{ji}| \, \lVert X_j \rVert_2

with W (p x q) the dense weights, inputs by outputs, and X_j the j-th column of the inputs (N values), j in 0..p-1.

The score of a single weight is that of M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning
Approach for Large Language Models", ICLR 2024 (arXiv 2306.11695), equation 1; the structured form, called Wanda-sp,
is the baseline of Y. An, X. Zhao, T. Yu, M. Tang, J. Wang, "Fluctuation-based Adaptive Structured Pruning for Large
Language Models", AAAI 2024 (arXiv 2312.11983), whose code takes the mean over the outputs and the sum over the rows
of a head; sum and mean over outputs order the groups alike.

Needs: the diagonal of H, and the dense weights. Updates nothing. Left out: the passage from layer to layer, in which
later layers see the outputs of pruned ones (`prune_model` does that for every method).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.solvers.published._inputs import input_energy
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Wanda", "wanda_scores"]


def wanda_scores(problem: Problem) -> FloatArray:
    """Sum of |W_ji| |X_j| over the rows j of each group and all outputs i, shape (n,); norms are of X / sqrt(N).

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> wanda_scores(Problem([[4.0, 0.0], [0.0, 1.0]], dense_weights=[[1.0, -1.0], [3.0, 0.0]]))
    array([4., 3.])
    """
    per_row = np.abs(reference_weights(problem)).sum(axis=1) * np.sqrt(input_energy(problem))
    return problem.groups.total(per_row)


@dataclass(frozen=True)
class Wanda(ScoredRule):
    """Keeps the groups of largest weight times input norm (Wanda-sp).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[4.0, 0.0], [0.0, 1.0]], dense_weights=[[2.0], [3.0]], keep=1)
    >>> problem.solve("wanda").kept, problem.solve("magnitude").kept
    (array([0]), array([1]))
    """

    name: ClassVar[str] = "wanda"

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group; see `wanda_scores`."""
        return wanda_scores(problem)
