r"""Activation norm: the size of a group's inputs, whatever the weights do with them.

.. math:: S_g = \Bigl( \sum_{j \in g} \lVert X_j \rVert_2^2 \Bigr)^{1/2}

with X_j the j-th column of the inputs (N values): the Frobenius norm of the group's activations. This is the
activation-based importance of S. Muralidharan et al., "Compact Language Models via Pruning and Knowledge
Distillation" (Minitron), NeurIPS 2024 (arXiv 2407.14679), Section 2.2, with the L2 norm over samples and over the
features of a head, which is the aggregation that second moments can give; the paper also tries means of norms, for
which the activations themselves are needed.

Needs: the diagonal of H alone.  Updates nothing.  Left out: pruning of the embedding dimension and of whole layers,
and the distillation afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.published._inputs import input_energy
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Activation", "activation_scores"]


def activation_scores(problem: Problem) -> FloatArray:
    """Frobenius norm of each group's inputs, divided by sqrt(N), shape (n,).

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> activation_scores(Problem(np.diag([9.0, 16.0, 1.0]), np.ones((3, 1)), groups=[0, 0, 1]))
    array([5., 1.])
    """
    return np.sqrt(problem.groups.total(input_energy(problem)))


@dataclass(frozen=True)
class Activation(ScoredRule):
    """Keeps the groups whose inputs are largest.

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> Problem(np.diag([4.0, 1.0]), dense_weights=[[1.0], [3.0]], keep=1).solve("activation").kept
    array([0])
    """

    name: ClassVar[str] = "activation"

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group; see `activation_scores`."""
        return activation_scores(problem)
