r"""Best-subset selection by splicing (abess), for groups and several outputs.

At an active set A with its least-squares weights W and residuals d = G - H W, sacrifices tell what a group is worth:

.. math::

    \xi_g = \tfrac12 \mathrm{tr}(W_g' H_{gg} W_g) \ (g \in A), \qquad
    \zeta_g = \tfrac12 \mathrm{tr}(d_g' H_{gg}^{-1} d_g) \ (g \notin A).

For k = 1, 2, ..., k_max the k active groups of least sacrifice are exchanged for the k others of largest, and the
weights refitted; the best of these exchanges is made if it lowers the objective by more than the threshold tau, and
all is repeated until none does. J. Zhu, C. Wen, J. Zhu, H. Zhang, X. Wang, "A polynomial algorithm for best-subset
selection problem", PNAS 117 (2020), 33117-33123, Algorithms 1 and 2 (BESS.Fix and Splicing); for groups Y. Zhang, J.
Zhu, J. Zhu, X. Wang, "A Splicing Approach to Best Subset of Groups Selection", INFORMS J. Comput. 35 (2023), 104-119.
The start is the paper's: the groups of largest sacrifice when nothing is active.

This is the algorithm written from the papers; the authors' package ``abess`` (GPL-3) is neither used nor imported. The
paper's threshold 0.01 s log(p) log(log N) / N serves estimation from noisy samples, whose number is not known here; by
default any improvement counts. k_max is 5, the default of the authors' Python package (2 in that for R), which however
halves k from there; the paper lets k go up to the number of active groups.

Needs: H and G. Updates all weights of the groups that stay: they are the best on the support throughout, so ``refit``
makes no difference. Left out: the choice of how many groups to keep by an information criterion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.linalg

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.layout import rows_by_group
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Abess"]

_ROUNDING = 1e-11
"""Improvements below this part of what the layer explains are rounding."""


@dataclass(frozen=True)
class Abess(Solver):
    """Exchanges groups by their sacrifices until none of these exchanges improves (abess; Zhu et al. 2020).

    Parameters
    ----------
    refit : bool, optional
        No difference: the weights are the best on the support.
    most_exchanged : int, optional
        The largest number k_max of groups exchanged at once; 0 means as many as there are.
    threshold : float, optional
        Improvement of the objective below which an exchange is not made, relative to what the layer explains.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> gram = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.5], [0.5, 0.5, 1.0]]
    >>> problem = Problem(gram, dense_weights=[[2.0], [1.0], [2.0]], keep=2)
    >>> solution = problem.solve("abess", start=[True, True, False])
    >>> solution.kept, solution.termination.value
    (array([0, 2]), 'local_optimum')
    """

    name: ClassVar[str] = "abess"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    refit: bool = False
    most_exchanged: int = field(default=5, metadata={"least": 0})
    threshold: float = field(default=0.0, metadata={"least": 0})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        fit = _Fit(problem)
        nothing = np.zeros(problem.cross.shape)
        support = fit.filled(problem.always_keep, fit.forward_sacrifices(nothing)) if start is None else start
        least = max(self.threshold, _ROUNDING) * abs(problem.constant - problem.base)
        weights, value = fit.weights_and_value(support)
        refits, improved = 1, True
        while improved and not deadline.expired():
            report.incumbent(support)
            best, improved = value - least, False
            for candidate in self._exchanges(problem, fit, support, weights):
                if deadline.expired():
                    break
                refits += 1
                others = fit.weights_and_value(candidate)
                if others[1] < best:
                    best, improved = others[1], True
                    support, weights, value = candidate, *others
        in_time = not deadline.expired()
        stats: dict[str, Any] = {"refits": refits}
        termination = Termination.LOCAL_OPTIMUM if in_time else Termination.TIME_LIMIT
        return Proposal(support, stats=stats, termination=termination)

    def _exchanges(
        self, problem: Problem, fit: _Fit, support: BoolArray, weights: FloatArray
    ) -> list[BoolArray]:
        """The supports with the k groups of least sacrifice out and the best others in, k = 1 up to k_max."""
        backward, forward = fit.backward_sacrifices(weights), fit.forward_sacrifices(weights)
        removable = np.flatnonzero(support & ~problem.always_keep)
        outside = ~support & ~problem.always_remove
        removable = removable[np.argsort(backward[removable], kind="stable")]
        most = min(len(removable), int(np.count_nonzero(outside)))
        found = []
        for k in range(1, min(most, self.most_exchanged or most) + 1):
            smaller = support.copy()
            smaller[removable[:k]] = False
            candidate = fit.filled(smaller, np.where(outside, forward, -np.inf), k)
            if not np.array_equal(candidate, support):
                found.append(candidate)
        return found


class _Fit:
    """Least squares on supports, and sacrifices."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rows = rows_by_group(problem.groups.group_of_row, problem.n)
        gram = problem.gram
        dead = (~problem.live_rows).astype(np.float64)
        self._one_row = problem.groups.uniform_size == 1
        self._row_of = np.concatenate(self._rows)  # of each group in turn
        self._diagonal = (gram.diagonal() + dead)[self._row_of]
        self._factors = [
            scipy.linalg.cholesky(gram[np.ix_(rows, rows)] + np.diag(dead[rows]), lower=True)
            for rows in ([] if self._one_row else self._rows)
        ]

    def weights_and_value(self, support: BoolArray) -> tuple[FloatArray, float]:
        """Best weights, and their objective up to the constant: minus what they explain."""
        weights = self._problem.refit(support)
        return weights, -0.5 * float(np.vdot(self._problem.cross, weights))

    def backward_sacrifices(self, weights: FloatArray) -> FloatArray:
        """1/2 |L_g' W_g|^2, shape (n,)."""
        if self._one_row:
            return np.asarray(0.5 * self._diagonal * np.einsum("ij,ij->i", weights, weights)[self._row_of])
        pairs = zip(self._rows, self._factors, strict=True)
        return np.array([0.5 * np.sum((lower.T @ weights[rows]) ** 2) for rows, lower in pairs])

    def forward_sacrifices(self, weights: FloatArray) -> FloatArray:
        """1/2 |inv(L_g) d_g|^2, shape (n,)."""
        used = np.flatnonzero(weights.any(axis=1))
        residual = self._problem.cross - self._problem.gram[:, used] @ weights[used]
        if self._one_row:
            return np.asarray(0.5 * np.einsum("ij,ij->i", residual, residual)[self._row_of] / self._diagonal)
        solve = scipy.linalg.solve_triangular
        pairs = zip(self._rows, self._factors, strict=True)
        return np.array(
            [0.5 * np.sum(solve(lower, residual[rows], lower=True) ** 2) for rows, lower in pairs]
        )

    def filled(self, support: BoolArray, scores: FloatArray, most: int | None = None) -> BoolArray:
        """The support with the groups of largest score added that still fit, at most so many."""
        order = np.argsort(-scores, kind="stable")
        order = order[np.isfinite(scores[order]) & ~self._problem.always_remove[order]]
        full = self._problem.limits.fill(order, support)
        if most is None or np.count_nonzero(full & ~support) <= most:
            return full
        added = [group for group in order if full[group] and not support[group]][:most]
        limited = support.copy()
        limited[added] = True
        return limited
