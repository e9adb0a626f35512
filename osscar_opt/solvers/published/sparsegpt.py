r"""SparseGPT's saliency as a static order of groups, and its compensation from left to right.

.. math::

    S_g = \sum_{j \in g} \frac{\lVert W_{j:} \rVert_2^2}{U_{jj}^2} , \qquad U' U = H^{-1}, \ U \text{ upper triangular},

with W (p x q) the dense weights, inputs by outputs. U_jj^2 is the j-th diagonal entry of the inverse of H over the
rows j..p-1. The rows of the groups removed are then taken out from left to right; each makes up for its loss in the
rows to its right alone, because SparseGPT freezes what it has passed:

.. math:: W_{k:} \leftarrow W_{k:} - U_{jk} W_{j:} / U_{jj} \quad (k > j).

E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023 (arXiv
2301.00774), equation 3 and Algorithm 1, with one block for the whole layer, so that scores are those of the dense
weights. The paper selects single weights; the sum over outputs and over the rows of a group is the structured form.

``saliency="inverse"`` divides by (H^-1)_jj instead, optimal brain surgery's saliency (equation 3), which does not
depend on the order of the inputs.

Needs: H and the dense weights. Updates the rows that stay and stand to the right of a removed one. Left out: blocks
of 128 columns with scores that follow the updates, N:M patterns, and quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import scipy.linalg

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import ranked_support, reference_weights
from osscar_opt.solvers.base import Deadline, Proposal, Report
from osscar_opt.solvers.published._scored import ScoredRule
from osscar_opt.solvers.published._surgeon import scaled_gram

__all__ = ["SparseGPT", "sparsegpt_scores"]


def sparsegpt_scores(problem: Problem, saliency: Literal["cholesky", "inverse"] = "cholesky") -> FloatArray:
    """Saliency of every group, shape (n,).

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]])
    >>> sparsegpt_scores(problem), sparsegpt_scores(problem, "inverse")
    (array([1.5, 8. ]), array([1.5, 6. ]))
    """
    factor, scale = _upper_factor(problem)
    if saliency == "cholesky":
        divisor = factor.diagonal() ** 2
    else:
        divisor = np.einsum("ij,ij->j", factor, factor)
    weights = _live_weights(problem) / scale[:, None]
    return problem.groups.total(np.einsum("ij,ij->i", weights, weights) / divisor)


@dataclass(frozen=True)
class SparseGPT(ScoredRule):
    """Keeps the groups of largest saliency and compensates from left to right (SparseGPT).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default SparseGPT's updated weights stay.
    saliency : {"cholesky", "inverse"}, optional
        What squared weights are divided by: the squared pivots of the Cholesky factor of inv(H), or its diagonal.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> solution = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1).solve("sparsegpt")
    >>> solution.kept, solution.weights.ravel()
    (array([1]), array([0. , 2.5]))
    """

    name: ClassVar[str] = "sparsegpt"

    saliency: Literal["cholesky", "inverse"] = "cholesky"

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group; see `sparsegpt_scores`."""
        return sparsegpt_scores(problem, self.saliency)

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        support = ranked_support(problem, self.score_groups(problem))
        return Proposal(support, weights=None if self.refit else _compensated(problem, support))


def _live_weights(problem: Problem) -> FloatArray:
    return np.asarray(reference_weights(problem) * problem.live_rows[:, None])


def _upper_factor(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Return U with U'U = inv(diag(d) H diag(d)), and d.

    With the rows in reverse order H = L L' turns into an upper factor: no inverse is formed.
    """
    gram, scale = scaled_gram(problem)
    if not len(gram):
        return gram, scale
    # H = R R' with R upper triangular, from the Cholesky factor of H with rows reversed; then U = inv(R).
    upper = scipy.linalg.cholesky(gram[::-1, ::-1], lower=True)[::-1, ::-1]
    return scipy.linalg.solve_triangular(upper, np.eye(len(gram)), lower=False), scale


def _compensated(problem: Problem, support: BoolArray) -> FloatArray:
    """Weights after the rows outside the support were taken out from left to right.

    The errors E_j = W_j / U_jj, with W_j as it is at its turn, solve the triangular system U_PP' E = W_P.
    """
    factor, scale = _upper_factor(problem)
    weights = _live_weights(problem) / scale[:, None]
    kept = problem.groups.row_mask(support)
    out = np.flatnonzero(~kept)
    if out.size:
        errors = scipy.linalg.solve_triangular(factor[np.ix_(out, out)], weights[out], trans="T")
        weights = weights - factor[out].T @ errors  # U is zero left of its diagonal
        weights[out] = 0.0
    return np.asarray(weights * scale[:, None] * problem.live_rows[:, None])
