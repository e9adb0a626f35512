r"""FLAP: the fluctuation of a group's inputs, weighted by the squared weights; the mean of what goes moves to the bias.

.. math::

    S_g = \sum_{j \in g} \mathrm{Var}(X_j) \, \lVert W_{j:} \rVert_2^2 , \qquad
    b \leftarrow b + \sum_{j \text{ removed}} \bar X_j W_{j:}'

with W (p x q) the dense weights, inputs by outputs, and Var(X_j), mean(X_j) over the N samples. Y. An, X. Zhao, T.
Yu, M. Tang, J. Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024 (arXiv
2312.11983), Section "Methodology": fluctuation metric and baseline bias compensation.

The variance is divided by N here and by N - 1 in the paper, which orders groups alike.  Where the published code does
otherwise, the paper is followed: the code squares the score of the rows of a head before it sums them, averages means
over batches, and counts the first batch's variance as zero.

Needs: the diagonal of H and the means, that is, a problem posed with ``intercept=True``; the dense weights. Updates
the bias alone: `Solution.intercept` is target_mean - W' input_mean, which with targets from the layer itself is the
dense bias plus the means of what was removed. Left out: the standardised comparison of scores across layers that
decides how many groups each layer keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import CapabilityError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.solvers.published._inputs import input_variance
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Flap", "flap_scores"]


def flap_scores(problem: Problem) -> FloatArray:
    """Sum of Var(x_j) |W_j|^2 over the rows j of each group, shape (n,).

    Raises
    ------
    CapabilityError
        If the problem has no means, so that the variance is not known.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> inputs, weights = [[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]], [[1.0], [2.0]]
    >>> flap_scores(Problem.from_data(inputs, weights, damping=0.0001, intercept=True)).round(2)
    array([2.67, 0.  ])
    """
    if problem.input_mean is None:
        raise CapabilityError(
            "method 'flap' needs the means of the inputs: pose the problem with intercept=True "
            "(Problem.from_data), or pass input_mean and target_mean beside moments about them."
        )
    weights = reference_weights(problem)
    return problem.groups.total(input_variance(problem) * np.einsum("ij,ij->i", weights, weights))


@dataclass(frozen=True)
class Flap(ScoredRule):
    """Keeps the groups whose inputs vary most, by weight; means of the others go into the bias (FLAP).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> inputs, weights = [[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]], [[1.0], [2.0]]
    >>> problem = Problem.from_data(inputs, weights, damping=1e-9, intercept=True, keep=1)
    >>> solution = problem.solve("flap")  # the second input is constant: 2 * 4 of it moves over
    >>> solution.kept, solution.intercept
    (array([0]), array([8.]))
    """

    name: ClassVar[str] = "flap"

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group; see `flap_scores`."""
        return flap_scores(problem)
