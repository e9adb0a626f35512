r"""LASSO channel selection: the channels that a lasso on their contributions keeps, then least squares.

.. math::

    \hat\beta = \arg\min_\beta \frac{1}{2N} \Bigl\lVert Y - \sum_i \beta_i X_i W_i \Bigr\rVert_F^2
    + \lambda \lVert \beta \rVert_1, \qquad \lVert W_i \rVert_F = 1,

with lambda raised until no more than keep of the beta_i are left, and then

.. math:: \min_{W'} \Bigl\lVert Y - \sum_{\beta_i \ne 0} X_i W'_i \Bigr\rVert_F^2 .

Y. He, X. Zhang, J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (arXiv 1707.06168),
equations 2 to 4. In moments the first is a lasso in n variables on the collapsed problem (H^c_ij = tr(W_i' H_ij W_j),
see `osscar_opt.formulations.collapsed`), W (p x q) being the dense weights, inputs by outputs, W_i those of channel
i.

As in the paper, whose authors found alternating between the two steps slow, the first is taken with the dense weights
all along and the second once. The published code does not normalise the W_i; the paper does, and so does this. lambda
is found to a relative 1e-3. Should fewer than keep be left there, those that come next on the path are kept as well.

Needs: H, G and the dense weights. Updates all weights of the groups that stay: the paper's second step is the refit,
so ``refit`` makes no difference. Left out: targets from the unpruned network for a pruned one's inputs (pass them as
targets), and multi-branch layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.formulations.collapsed import collapse
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import reference_weights
from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.published._lasso import Lasso, select

__all__ = ["ChannelLasso"]


@dataclass(frozen=True)
class ChannelLasso(Solver):
    """Keeps the groups that a lasso on their contributions keeps; weights refitted (He, Zhang, Sun 2017).

    Parameters
    ----------
    refit : bool, optional
        No difference: the weights of the paper are the best on the support.
    accuracy : float, optional
        Change of the solution in one sweep, relative, at which the lasso counts as solved.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], dense_weights=[[2.0], [2.0], [1.0]])
    >>> problem.solve("channel_lasso", keep=2).kept
    array([0, 1])
    """

    name: ClassVar[str] = "channel_lasso"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False
    accuracy: float = field(default=1e-5, metadata={"least": 0})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        collapsed = collapse(problem)
        lasso = _standard_form(problem, collapsed, self.accuracy)
        selected = select(problem, lasso, deadline)
        active = int(np.count_nonzero(lasso.active(selected.solution)))
        return Proposal(
            selected.support,
            stats={
                "penalty": selected.penalty,
                "active": active,
                "sweeps": lasso.sweeps,
                "unfinished": lasso.unfinished,
            },
            termination=Termination.COMPLETED if selected.in_time else Termination.TIME_LIMIT,
        )


def _standard_form(problem: Problem, collapsed: Problem, tolerance: float) -> Lasso:
    """The lasso in gamma_i = sqrt(H^c_ii) beta_i / |W_i|, whose gram has a unit diagonal.

    For weights of norm 1 the variable is beta_i |W_i|, and its penalty is lambda; so gamma_i is penalised by
    lambda |W_i| / sqrt(H^c_ii).
    """
    diagonal = collapsed.gram.diagonal()
    live = diagonal > 0.0
    scale = np.sqrt(np.where(live, diagonal, 1.0))
    norms = np.sqrt(problem.groups.total(_squares(reference_weights(problem))))
    gram = collapsed.gram / (scale[:, None] * scale)
    np.fill_diagonal(gram, 1.0)
    weights = np.where(problem.always_keep, 0.0, norms / scale)
    allowed = live & ~problem.always_remove
    return Lasso(
        gram, collapsed.cross / scale[:, None], np.arange(problem.n + 1), weights, allowed, tolerance
    )


def _squares(weights: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("ij,ij->i", weights, weights))
