r"""UDFC: data-free; a removed channel is made up for by a combination of kept ones, which their filters tell.

With v_j the filter that makes channel j (batch norm folded in) and W_j what the next layer does with that channel, the
channels of the shortest v_j go, and for the removed set R and the kept set K

.. math::

    s = \arg\min_s \sum_{m \in R} \Bigl\lVert v_m - \sum_{j \in K} s_{jm} v_j \Bigr\rVert^2 + \lambda \lVert s \rVert^2
      = (\Gamma_{KK} + \lambda I)^{-1} \Gamma_{KR}, \qquad
    W_j \leftarrow W_j + \sum_{m \in R} s_{jm} W_m ,

with Gamma_ij = <v_i, v_j>. S. Bai, J. Chen, X. Shen, Y. Qian, Y. Liu, "Unified Data-Free Compression: Pruning and
Quantization without Fine-Tuning", ICCV 2023 (arXiv 2308.07209): the assumption of its abstract, the closed form of its
pruning part. The abstract and summaries were read, not the proofs; its term for the shift of the batch norm is one
more entry of v_j.

So the weights that stay are those of the refit under Gamma + lambda I in place of the Gram matrix of the inputs: what a
layer's own inputs would say is guessed from the filters that make them.

Needs: Gamma (n x n), which `osscar_opt.torch.scores.filter_gram` computes from the layers that write the units, and
the dense weights.  Updates the weights of all groups that stay.  Left out: quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import scipy.linalg

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import OptionError
from osscar_opt.formulations.per_problem import ArraySource, PerProblem
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import masked_weights, ranked_support, reference_weights
from osscar_opt.linalg.layout import rows_by_group
from osscar_opt.solvers.base import Deadline, Proposal, Report
from osscar_opt.solvers.published._scored import ScoredRule

__all__ = ["Udfc"]


@dataclass(frozen=True)
class Udfc(ScoredRule):
    """Keeps the channels of largest filters, which make up for the others as their filters tell (UDFC).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the update is the data-free one.
    filters : array_like (n, n), mapping of str to array_like, callable, or path
        Inner products of the filters that make the channels: for this problem, by the problem's name, as a function
        of the problem, or in a ``.npy`` file. A last group that is always kept, of the same size, needs no filter.
    ridge : float, optional
        lambda, relative to the mean diagonal of `filters`.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(2), dense_weights=[[1.0], [10.0]], keep=1)
    >>> filters = [[4.0, 2.0], [2.0, 1.0]]  # the second channel is half the first one
    >>> problem.solve("udfc", filters=filters, ridge=0.0).weights.ravel()
    array([6., 0.])
    """

    name: ClassVar[str] = "udfc"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "forced"})
    required_options: ClassVar[tuple[str, ...]] = ("filters",)

    filters: ArraySource = None
    ridge: float = field(default=1e-2, metadata={"least": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "filters", PerProblem.coerce(self.filters, "filters"))

    def score_groups(self, problem: Problem) -> FloatArray:
        """Length of every channel's filter, shape (n,); infinite for a last group without one."""
        lengths = np.sqrt(np.maximum(self._gram(problem).diagonal(), 0.0))
        return np.append(lengths, np.full(problem.n - len(lengths), np.inf))

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        support = ranked_support(problem, self.score_groups(problem))
        return Proposal(support, weights=None if self.refit else self._combined(problem, support))

    def _gram(self, problem: Problem) -> FloatArray:
        given = PerProblem.find(self.filters, problem, "filters")
        n = given.shape[0] if given.ndim else 0
        whole = n == problem.n or (n == problem.n - 1 and bool(problem.always_keep[-1]))
        if given.shape != (n, n) or not whole:
            raise OptionError(
                f"option 'filters' must be a matrix with a row for each of the {problem.n} groups of "
                f"{problem.name or 'the problem'}, but has shape {given.shape}."
            )
        return given

    def _combined(self, problem: Problem, support: BoolArray) -> FloatArray:
        """The dense weights that stay, plus what makes up for the others."""
        gram, weights = self._gram(problem), masked_weights(problem, support)
        kept, gone = np.flatnonzero(support[: len(gram)]), np.flatnonzero(~support[: len(gram)])
        if not kept.size or not gone.size:
            return weights
        damped = gram[np.ix_(kept, kept)] + self.ridge * float(gram.diagonal().mean()) * np.eye(len(kept))
        shares = scipy.linalg.lstsq(damped, gram[np.ix_(kept, gone)])[0]  # (kept, gone); filters may repeat
        rows = rows_by_group(problem.groups.group_of_row, problem.n)
        dense = reference_weights(problem)
        for position in range(len(rows[0])):  # each position of a kernel by itself
            at = np.array([rows[g][position] for g in kept]), np.array([rows[g][position] for g in gone])
            weights[at[0]] += shares @ dense[at[1]]
        weights[~problem.live_rows] = 0.0
        return weights
