"""Enumeration of all supports by batched pivots: the reference that everything else is tested against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.certificates import Certificate, ProofTree
from osscar_opt.errors import CapabilityError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.factor import factor
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Exhaustive"]

_BATCH_NUMBERS = 1 << 21
"""Numbers in one batch of reduced matrices, T and N together: 16 MiB."""

_SUPPORTS_CERTIFIED = 50_000
_SUPPORTS_OF_A_LEAF = 4096
"""What the checker of certificates tries out at one leaf."""

_RECOMPUTED = 16
"""Supports, best by their tableau values, whose values are recomputed from the problem itself."""


class _Batch(NamedTuple):
    """Partial choices: groups before `depth` are decided, the matrices are reduced to the rows of the others."""

    depth: int
    moved: BoolArray  # (B, depth): which groups were moved off the starting side
    change: FloatArray  # (B,): objective minus that of the starting side
    t: FloatArray  # (B, m, m)
    n: FloatArray  # (B, m, m)

    def part(self, rows: slice) -> _Batch:
        return _Batch(self.depth, self.moved[rows], self.change[rows], self.t[rows], self.n[rows])


@dataclass(frozen=True)
class Exhaustive(Solver):
    r"""Values every support that the limits allow, and returns the best with the least value as its bound.

    Groups are decided one after another. Deciding that group g moves off the starting side is a pivot on its block D of
    the reduced pair (T, N), with t the columns of g in T and V = t inv(D),

    .. math:: T \leftarrow T - V t', \quad N \leftarrow N - V N_{g:} - N_{:g} V' + V N_{gg} V', \quad
              f \leftarrow f \pm \tfrac12 \mathrm{tr}(D^{-1} N_{gg}),

    after which its rows are dropped, as they are if it does not move; many partial choices are pivoted as one batch.
    With T = inv(H), N = W0 W0' everything is kept at the start and groups leave; with T = H, N = G G' nothing is, and
    groups enter. Under a plain keep the side with fewer moves is taken; else groups enter.

    Parameters
    ----------
    max_supports : int
        Refuse problems with more supports than this.
    certificate : bool
        Write a certificate, for up to 50,000 supports: a tree whose leaves leave at most 4096 supports each to the
        checker, which thus enumerates them all once more.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> solution = problem.solve("exhaustive")
    >>> solution.kept, solution.status.value
    (array([1]), 'optimal')
    """

    name: ClassVar[str] = "exhaustive"
    proves: ClassVar[bool] = True
    max_supports: int = field(default=20_000_000, metadata={"least": 1})
    certificate: bool = False

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        total = problem.limits.supports
        if total > self.max_supports:
            raise CapabilityError(
                f"there are more than 10^{len(str(total)) - 1} supports to enumerate, and max_supports is "
                f"{self.max_supports}; "
                "use method='search' for a good one, or raise max_supports."
            )
        if self.certificate and total > _SUPPORTS_CERTIFIED:
            raise CapabilityError(
                f"a certificate by enumeration is written for at most {_SUPPORTS_CERTIFIED} supports, and there are "
                "more; use method='exact' for a certificate, or certificate=False."
            )
        keep = problem.limits.cardinality
        leaving = keep is not None and 2 * keep > problem.n
        best = _Best(problem, report)
        done = 0
        for moved, change in _enumerate(problem, leaving):
            supports = ~moved if leaving else moved
            best.offer(supports, change + (problem.base if leaving else problem.constant))
            done += len(change)
            report.progress(done, total, "supports")
            if deadline.expired():
                return Proposal(best.support, stats={"supports": done}, termination=Termination.TIME_LIMIT)
        certificate = _certificate(problem, best) if self.certificate else None
        return Proposal(
            best.support, lower_bound=best.bound, certificate=certificate, stats={"supports": done}
        )


class _Best:
    """The best supports offered, by tableau value; recomputed when one comes close to the best recomputed."""

    def __init__(self, problem: Problem, report: Report) -> None:
        self._problem, self._report = problem, report
        self._least = math.inf  # of the tableau's values
        self._rest = math.inf  # of those not recomputed
        self.value, self.support = math.inf, np.array(problem.always_keep)
        self._tolerance = 1e-9 * abs(problem.constant)

    @property
    def bound(self) -> float:
        """The least value of all: recomputed where it is close to the best, else the tableau's."""
        return min(self.value, self._rest)

    def offer(self, supports: BoolArray, values: FloatArray) -> None:
        if len(values) == 0:
            return
        self._least = min(self._least, float(values.min()))
        order = np.argsort(values, kind="stable")[: _RECOMPUTED + 1]
        recomputed = order[values[order] <= self._least + self._tolerance][:_RECOMPUTED]
        if len(recomputed) < len(order):
            self._rest = min(self._rest, float(values[order[len(recomputed)]]))
        for index in recomputed:
            value = self._problem.value(supports[index])
            if value < self.value:
                self.value, self.support = value, supports[index]
                self._report.incumbent(self.support, value)


def _certificate(problem: Problem, best: _Best) -> Certificate:
    """A tree that decides one group after another, until few enough supports are left below a node."""
    tree, due = ProofTree.of(problem), [0]
    limits = problem.limits
    while due:
        node = due.pop()
        removed, kept = tree.state(node)
        free = np.flatnonzero(~(removed | kept))
        room = limits.slack(kept)
        if np.any(room < -2e-9 * limits.limit):
            tree.close_infeasible(node)
        elif (
            _completions(len(free), None if limits.cardinality is None else round(room[0]))
            <= _SUPPORTS_OF_A_LEAF
        ):
            tree.close_enumerated(node)
        else:
            due.extend(tree.branch(node, int(free[0])))
    return Certificate.of(problem, tree, bound=best.bound, support=best.support, value=best.value)


def _completions(free: int, room: int | None) -> int:
    return 2**free if room is None else math.comb(free, min(free, room))


def _enumerate(problem: Problem, leaving: bool) -> Iterator[tuple[BoolArray, FloatArray]]:
    """All complete choices, a batch at a time, depth first so that few batches are alive."""
    rows = [problem.groups.rows(g) for g in range(problem.n)]
    order = np.concatenate(rows)
    sizes = [len(r) for r in rows]
    t, f = _starting_side(problem, leaving)
    root = _Batch(
        0, np.zeros((1, 0), bool), np.zeros(1), t[np.ix_(order, order)][None], (f[order] @ f[order].T)[None]
    )
    stack = [root]
    while stack:
        batch = stack.pop()
        if batch.depth == problem.n:
            yield batch.moved, batch.change
            continue
        child = _decide(problem, batch, sizes[batch.depth], leaving)
        width = max(1, _BATCH_NUMBERS // max(1, 2 * child.t.shape[1] ** 2))
        for first in range(0, len(child.change), width):
            part = slice(first, first + width)
            stack.append(child.part(part))


def _starting_side(problem: Problem, leaving: bool) -> tuple[FloatArray, FloatArray]:
    """T and F with N = F F'; a dead input gets a unit diagonal, since it explains nothing anyway."""
    gram = problem.gram + np.diag((~problem.live_rows).astype(float))
    return (factor(gram).solve(np.eye(problem.p)), problem.optimum) if leaving else (gram, problem.cross)


def _decide(problem: Problem, batch: _Batch, size: int, leaving: bool) -> _Batch:
    """Decide the next group both ways, as far as limits allow, and drop its rows."""
    stay = _allowed(problem, batch, False, leaving)
    move = _allowed(problem, batch, True, leaving)
    corner, rest = slice(0, size), slice(size, None)
    t, n = batch.t[move], batch.n[move]
    inverse = np.linalg.inv(t[:, corner, corner])
    corner_n = n[:, corner, corner]
    step = 0.5 * np.einsum("bij,bji->b", inverse, corner_n)
    v = t[:, rest, corner] @ inverse
    y = n[:, rest, corner] - 0.5 * (v @ corner_n)
    product = v @ y.swapaxes(1, 2)
    moved_t = t[:, rest, rest] - v @ t[:, corner, rest]
    moved_n = n[:, rest, rest] - product - product.swapaxes(1, 2)
    column = np.repeat([False, True], [stay.sum(), move.sum()])[:, None]
    return _Batch(
        batch.depth + 1,
        np.hstack([np.concatenate([batch.moved[stay], batch.moved[move]]), column]),
        np.concatenate([batch.change[stay], batch.change[move] + (step if leaving else -step)]),
        np.concatenate([batch.t[stay][:, rest, rest], moved_t]),
        np.concatenate([batch.n[stay][:, rest, rest], moved_n]),
    )


def _allowed(problem: Problem, batch: _Batch, move: bool, leaving: bool) -> BoolArray:
    """(B,) whether the choice for the next group can be completed within the limits.

    Under a plain keep only supports of exactly that size are completed: a subset of one is never better.
    """
    depth, count = batch.depth, len(batch.change)
    kept = move != leaving
    if problem.always_remove[depth] if kept else problem.always_keep[depth]:
        return np.zeros(count, dtype=bool)
    keep = problem.limits.cardinality
    supports = ~batch.moved if leaving else batch.moved
    if keep is not None:
        size = supports.sum(axis=1) + kept
        keep = min(keep, problem.n)
        return np.asarray((size <= keep) & (size + problem.n - depth - 1 >= keep))
    used = supports @ problem.limits.usage[:, :depth].T + kept * problem.limits.usage[:, depth]
    forced = problem.limits.usage[:, depth + 1 :] @ problem.always_keep[depth + 1 :]
    return np.asarray((used + forced <= problem.limits.limit * (1 + 0.5e-9)).all(axis=1))
