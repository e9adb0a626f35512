r"""The group lasso on moments, by block coordinate descent, and its support at given limits.

.. math:: \min_V \ \tfrac12 \mathrm{tr}(V' A V) - \mathrm{tr}(B' V) + \lambda \sum_g c_g \lVert V_g \rVert_F

with identity diagonal blocks A_gg, so that the best V_g given the rest is (1 - lambda c_g / |R_g|)_+ R_g with R_g =
B_g - A_g: V + V_g (Yuan and Lin 2006, equation 2.4). Residuals are worked out for a panel of rows at a time, as
matrix products; within a panel every block sees those before it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.base import Deadline

__all__ = ["Lasso", "Selected", "select"]

_PANEL = 64
_SWEEPS = 500
"""Passes over groups for one penalty at most."""

_MEMORY = 5
"""Sweeps from which one extrapolation is made."""

_STEP = 0.7
"""From one penalty to the next while the support still meets the limits."""

_SMALLEST = 1e-6
"""Penalty, relative to the one at which nothing is active, below which every group counts as active."""

_CLOSE = 1e-3
"""Relative width of the interval of penalties at which the search for the smallest feasible one ends."""


@dataclass(eq=False)
class Lasso:
    """A group lasso problem in standard form, rows sorted by group.

    Parameters
    ----------
    gram, cross : (p, p) and (p, q) arrays
        A and B.
    starts : (n + 1,) array of int
        Group g has the rows starts[g] up to starts[g + 1].
    weights : (n,) array
        The c_g; 0 leaves a group unpenalised.
    allowed : (n,) mask
        Groups that may be active at all.
    tolerance : float
        Largest change of a block in a sweep, relative to the largest block of B, at which a solution counts as reached.

    Attributes
    ----------
    sweeps : int
        Passes over groups so far.
    unfinished : int
        Penalties at which the tolerance was not reached within the sweeps allowed, or the time.
    """

    gram: FloatArray
    cross: FloatArray
    starts: IntArray
    weights: FloatArray
    allowed: BoolArray
    tolerance: float = 1e-5
    sweeps: int = field(default=0, init=False)
    unfinished: int = field(default=0, init=False)

    def largest_penalty(self) -> float:
        """The penalty from which on no penalised group is active, if none is unpenalised; an upper bound otherwise."""
        norms = self.norms(self.cross)
        penalised = self.allowed & (self.weights > 0.0)
        if not np.any(penalised):
            return 0.0
        free = self.allowed & (self.weights == 0.0)
        if np.any(free):
            norms = self.norms(self.residual(self.solve(np.inf, np.zeros_like(self.cross), Deadline())))
        return float(np.max(norms[penalised] / self.weights[penalised]))

    def norms(self, values: FloatArray) -> FloatArray:
        """Frobenius norm of the rows of each group, shape (n,)."""
        squares = np.einsum("ij,ij->i", values, values)
        return np.sqrt(np.add.reduceat(squares, self.starts[:-1]))

    def residual(self, solution: FloatArray) -> FloatArray:
        """B - A V."""
        rows = np.flatnonzero(solution.any(axis=1))
        return np.asarray(self.cross - self.gram[:, rows] @ solution[rows])

    def solve(self, penalty: float, solution: FloatArray, deadline: Deadline) -> FloatArray:
        """Minimise from a first guess, which is overwritten; all groups in turn, then the active ones until still.

        Every few sweeps over the active groups their iterates are extrapolated (Anderson 1965, as Bertrand and Massias
        2021 do for coordinate descent), where that lowers the objective.
        """
        scale = self.tolerance * float(np.max(self.norms(self.cross), initial=0.0))
        everything = np.flatnonzero(self.allowed)
        last = self.sweeps + _SWEEPS
        while self._sweep(penalty, solution, everything) > scale:
            past = [solution.copy()]
            while self.sweeps < last and not deadline.expired():
                active = everything[self.active(solution)[everything]]
                if self._sweep(penalty, solution, active) <= scale:
                    break
                past.append(solution.copy())
                if len(past) > _MEMORY:
                    self._extrapolate(penalty, solution, past)
                    past = [solution.copy()]
            if self.sweeps >= last or deadline.expired():
                self.unfinished += 1
                break
        return solution

    def objective(self, penalty: float, solution: FloatArray) -> float:
        """Value of a solution; unpenalised groups cost nothing whatever the penalty."""
        penalised = self.weights > 0.0
        price = penalty * float(self.weights[penalised] @ self.norms(solution)[penalised])
        return -0.5 * float(np.vdot(solution, self.residual(solution) + self.cross)) + price

    def _extrapolate(self, penalty: float, solution: FloatArray, past: list[FloatArray]) -> None:
        rows = np.flatnonzero(past[-1].any(axis=1))
        steps = np.stack([(b[rows] - a[rows]).ravel() for a, b in itertools.pairwise(past)])
        inner = steps @ steps.T
        inner[np.diag_indices(len(inner))] += 1e-12 * max(float(np.trace(inner)), np.finfo(float).tiny)
        shares = np.linalg.solve(inner, np.ones(len(inner)))
        if not np.isfinite(shares).all() or shares.sum() == 0.0:
            return
        shares /= shares.sum()
        guess = sum(share * iterate for share, iterate in zip(shares, past[1:], strict=True))
        guess = np.where(np.asarray(solution.any(axis=1))[:, None], guess, 0.0)
        if self.objective(penalty, guess) < self.objective(penalty, solution):
            solution[:] = guess

    def active(self, solution: FloatArray) -> BoolArray:
        """Groups with weights other than zero, shape (n,)."""
        nonzero = solution.any(axis=1)
        return np.logical_or.reduceat(nonzero, self.starts[:-1])

    def _sweep(self, penalty: float, solution: FloatArray, groups: IntArray) -> float:
        """One pass over groups; returns the largest change of a block."""
        self.sweeps += 1
        largest, first = 0.0, 0
        sizes = np.diff(self.starts)
        while first < len(groups):
            last, rows = first + 1, int(sizes[groups[first]])
            while last < len(groups) and rows + sizes[groups[last]] <= _PANEL:
                rows += int(sizes[groups[last]])
                last += 1
            largest = max(largest, self._panel(penalty, solution, groups[first:last]))
            first = last
        return largest

    def _panel(self, penalty: float, solution: FloatArray, groups: IntArray) -> float:
        spans = [np.arange(self.starts[g], self.starts[g + 1]) for g in groups]
        rows = np.concatenate(spans)
        used = np.flatnonzero(solution.any(axis=1))
        residual = self.cross[rows] - self.gram[np.ix_(rows, used)] @ solution[used]
        local = self.gram[np.ix_(rows, rows)]
        largest, at = 0.0, 0
        for group, span in zip(groups, spans, strict=True):
            own = slice(at, at + len(span))
            at += len(span)
            target = residual[own] + solution[span]
            norm = float(np.sqrt(np.vdot(target, target)))
            threshold = penalty * self.weights[group] if self.weights[group] else 0.0
            shrunk = target * (1.0 - threshold / norm) if norm > threshold else np.zeros_like(target)
            step = shrunk - solution[span]
            size = float(np.sqrt(np.vdot(step, step)))
            if size > 0.0:
                solution[span] = shrunk
                residual -= local[:, own] @ step
                largest = max(largest, size)
        return largest


@dataclass(frozen=True, eq=False)
class Selected:
    """A support found on the path, and the solution there.

    Attributes
    ----------
    support : (n,) mask
    penalty : float
        The smallest penalty found at which the active groups meet the limits.
    solution : (p, q) array
        V at this penalty.
    in_time : bool
    """

    support: BoolArray
    penalty: float
    solution: FloatArray
    in_time: bool


def select(problem: Problem, lasso: Lasso, deadline: Deadline) -> Selected:
    """Go down the path until the active groups pass a limit, and back to the smallest penalty at which they meet all.

    Where room is left at that penalty (several groups become active at once, or a limit does not count groups), the
    groups that come next fill it: first those active at the next penalty looked at, by size, then those nearest to it.
    """
    high = lasso.largest_penalty() * (1.0 + 1e-9)
    feasible = lasso.solve(high, np.zeros_like(lasso.cross), deadline)
    passed: FloatArray | None = None
    least, penalty = _SMALLEST * high, high
    low = high
    while passed is None and low > least and not deadline.expired():
        low = max(_STEP * penalty, least)
        trial = lasso.solve(low, feasible.copy(), deadline)
        if problem.limits.feasible(lasso.active(trial) | problem.always_keep):
            feasible, penalty = trial, low
        else:
            passed = trial
    while passed is not None and penalty > (1.0 + _CLOSE) * low:
        if deadline.expired():
            break
        middle = float(np.sqrt(penalty * low))
        trial = lasso.solve(middle, feasible.copy(), deadline)
        if problem.limits.feasible(lasso.active(trial) | problem.always_keep):
            feasible, penalty = trial, middle
        else:
            passed, low = trial, middle
    support = _filled(problem, lasso, feasible, passed)
    return Selected(support, penalty, feasible, not deadline.expired())


def _filled(problem: Problem, lasso: Lasso, feasible: FloatArray, passed: FloatArray | None) -> BoolArray:
    active = lasso.active(feasible) & ~problem.always_remove
    next_ones = np.zeros(problem.n) if passed is None else lasso.norms(passed)
    divisor = np.where(lasso.weights > 0.0, lasso.weights, 1.0)
    nearness = np.where(lasso.allowed, lasso.norms(lasso.residual(feasible)) / divisor, -1.0)
    order = np.lexsort((-nearness, -next_ones, ~active))
    return problem.limits.fill(order[~problem.always_remove[order]], problem.always_keep)
