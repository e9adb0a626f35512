r"""The group lasso: the convex relaxation of the selection, at the penalty where the groups left meet the limits.

.. math::

    \min_W \ \tfrac12 \mathrm{tr}(W' H W) - \mathrm{tr}(G' W) + \lambda \sum_g \sqrt{s_g} \, \lVert H_{gg}^{1/2} W_g
    \rVert_F

with W (p x q) inputs by outputs, W_g its s_g rows of group g. M. Yuan, Y. Lin, "Model selection and estimation in
regression with grouped variables", J. R. Statist. Soc. B 68 (2006), 49-67, equation 2.1 with the kernels of its
Section 2: inputs are made orthonormal within each group first, which is the norm with H_gg above, and the blocks are
solved in turn by equation 2.4. Several outputs share the groups.

Groups become active as lambda falls; the smallest lambda at which no limit is passed gives the support. Should there
be room left, the groups that come next on the path fill it.

Needs: H and G. Updates all weights of the groups that stay, shrunken by the penalty; with ``refit=True`` they are the
best on the support, as is usual when the lasso is used for selection alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.linalg

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.layout import rows_by_group
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.published._lasso import Lasso, select

__all__ = ["GroupLasso"]


@dataclass(frozen=True)
class GroupLasso(Solver):
    """Keeps the groups that a group lasso keeps; weights shrunken, or refitted (Yuan and Lin 2006).

    Parameters
    ----------
    refit : bool, optional
        Hand over the support alone, for the best weights on it; by default the weights stay shrunken.
    accuracy : float, optional
        Change of the solution in one sweep, relative, at which the relaxation counts as solved.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> problem.solve("group_lasso", refit=True).weights.ravel()
    array([0., 3., 0.])
    >>> problem.solve("group_lasso").weights.ravel().round(2)  # 3 - 2, for at 2 the next one becomes active
    array([0., 1., 0.])
    """

    name: ClassVar[str] = "group_lasso"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False
    accuracy: float = field(default=1e-5, metadata={"least": 0})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        if problem.limits.feasible(~problem.always_remove):  # no penalty is needed
            return Proposal(~problem.always_remove)
        form = _StandardForm(problem, self.accuracy)
        selected = select(problem, form.lasso, deadline)
        active = int(np.count_nonzero(form.lasso.active(selected.solution)))
        stats: dict[str, Any] = {"penalty": selected.penalty, "active": active, "sweeps": form.lasso.sweeps}
        stats["unfinished"] = form.lasso.unfinished
        return Proposal(
            selected.support,
            weights=None if self.refit else form.weights(selected.solution),
            stats=stats,
            termination=Termination.COMPLETED if selected.in_time else Termination.TIME_LIMIT,
        )


class _StandardForm:
    """The problem in V_g = L_g' W_g with L_g L_g' = H_gg, so that diagonal blocks are identities.

    Where there are more outputs than inputs, G = B Q' with orthonormal columns Q, and B takes its place.
    """

    def __init__(self, problem: Problem, tolerance: float) -> None:
        self._problem = problem
        rows = rows_by_group(problem.groups.group_of_row, problem.n)
        self._order = np.concatenate(rows)
        starts = np.concatenate([[0], np.cumsum(problem.groups.sizes)]).astype(np.int64)
        self._spans = [slice(a, b) for a, b in itertools.pairwise(starts)]
        gram = problem.gram[np.ix_(self._order, self._order)]
        gram[np.diag_indices(problem.p)] += ~problem.live_rows[self._order]
        cross, self._turn = _reduced(problem.cross[self._order])
        self._factors = [scipy.linalg.cholesky(gram[span, span], lower=True) for span in self._spans]
        self._solve(gram)
        gram = np.ascontiguousarray(gram.T)
        self._solve(gram)
        self._solve(cross)
        for span in self._spans:
            gram[span, span] = np.eye(span.stop - span.start)
        weights = np.where(problem.always_keep, 0.0, np.sqrt(problem.groups.sizes))
        allowed = ~problem.always_remove
        self.lasso = Lasso(gram, cross, _as_int(starts), weights, allowed, tolerance)

    def weights(self, solution: FloatArray) -> FloatArray:
        """Back to W, shape (p, q)."""
        sorted_weights = np.zeros_like(solution)
        for span, lower in zip(self._spans, self._factors, strict=True):
            if solution[span].any():
                sorted_weights[span] = scipy.linalg.solve_triangular(
                    lower, solution[span], lower=True, trans="T"
                )
        turned = sorted_weights if self._turn is None else sorted_weights @ self._turn.T
        weights = np.zeros(self._problem.cross.shape)
        weights[self._order] = turned
        return weights

    def _solve(self, values: FloatArray) -> None:
        """Multiply the rows of every group by the inverse of its factor, in place."""
        for span, lower in zip(self._spans, self._factors, strict=True):
            values[span] = (
                values[span] / lower[0, 0]
                if len(lower) == 1
                else scipy.linalg.solve_triangular(lower, values[span], lower=True)
            )


def _reduced(cross: FloatArray) -> tuple[FloatArray, FloatArray | None]:
    """Return B and Q with G = B Q', or G itself and None where that would not save anything."""
    if cross.shape[1] <= cross.shape[0]:
        return cross, None
    turn, triangle = np.linalg.qr(cross.T)
    return np.ascontiguousarray(triangle.T), turn


def _as_int(starts: Any) -> IntArray:
    return np.asarray(starts, dtype=np.int64)
