r"""CFSP's score within a block: relative weights times a power of the activation norm.

.. math::

    S_g = \sum_{j \in g} \lVert X_j \rVert^{c} \; \frac1q \sum_i R_{ji} , \qquad
    R_{ji} = \frac{|W_{ji}| \lVert X_j \rVert^{b}}{\sum_k |W_{jk}| \lVert X_j \rVert^{b}}

with W (p x q) the dense weights, inputs by outputs, X_j the j-th column of the inputs, and b = c = 1. Y. Wang, M. Ma,
Z. Wang, J. Chen, L. Shan, Q. Yang, D. Xu, M. Liu, B. Qin, "CFSP: An Efficient Structured Pruning Framework for LLMs
with Coarse-to-Fine Activation Information", COLING 2025 (arXiv 2409.13199), fine-grained importance; the formula is
read off the published code, whose default adds terms of the same form for the weights of the two layers that produce
the channel.

As published, R is relative to the channel's own weights: for every channel with weights other than zero its mean over
the outputs is 1/q, for each of the three layers alike, and what decides is the activation norm alone. So the layers
that produce the inputs are not needed, and the ranking is that of `activation` (for groups of one row).
``relative_to="output"`` divides by the sum over all channels of the same output instead, which keeps the weights in:

.. math:: R_{ji} = |W_{ji}| \lVert X_j \rVert^{b} \Big/ \sum_k |W_{ki}| \lVert X_k \rVert^{b}

Needs: the diagonal of H, and the dense weights.  Updates nothing.  Left out: the importance of whole blocks, which
distributes the sparsity, widths in multiples of 128, and the recovery training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.solvers.published._inputs import input_energy
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Cfsp", "cfsp_scores"]


def cfsp_scores(
    problem: Problem,
    relative_to: Literal["channel", "output"] = "channel",
    *,
    inner_power: float = 1.0,
    outer_power: float = 1.0,
) -> FloatArray:
    """Relative weights times a power of the activation norm, summed over the rows of each group, shape (n,).

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.diag([4.0, 1.0]), dense_weights=[[1.0], [6.0]])
    >>> cfsp_scores(problem), cfsp_scores(problem, "output")
    (array([2., 1.]), array([0.5 , 0.75]))
    """
    norms = np.sqrt(input_energy(problem))
    weighted = np.abs(reference_weights(problem)) * (norms**inner_power)[:, None]
    totals = weighted.sum(axis=1 if relative_to == "channel" else 0, keepdims=True)
    relative = np.divide(weighted, totals, out=np.zeros_like(weighted), where=totals > 0.0)
    return problem.groups.total(relative.mean(axis=1) * norms**outer_power)


@dataclass(frozen=True)
class Cfsp(ScoredRule):
    """Keeps the groups of largest relative weight times activation norm (CFSP, within a block).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the dense weights stay.
    relative_to : {"channel", "output"}, optional
        What a weight is divided by: the sum over its channel, as published, or over its output.
    inner_power, outer_power : float, optional
        The exponents b and c of the activation norm.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.diag([4.0, 1.0]), dense_weights=[[1.0], [6.0]], keep=1)
    >>> problem.solve("cfsp").kept, problem.solve("cfsp", relative_to="output").kept
    (array([0]), array([1]))
    """

    name: ClassVar[str] = "cfsp"

    relative_to: Literal["channel", "output"] = "channel"
    inner_power: float = field(default=1.0, metadata={"least": 0})
    outer_power: float = field(default=1.0, metadata={"least": 0})

    def score_groups(self, problem: Problem) -> FloatArray:
        """Score of every group; see `cfsp_scores`."""
        return cfsp_scores(
            problem, self.relative_to, inner_power=self.inner_power, outer_power=self.outer_power
        )
