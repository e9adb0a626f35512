"""What `exact` branches on: its nodes, the subproblem left at a node, what limits allow, and the open nodes."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.limits import Limits
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.selection import rounding_of

__all__ = ["Node", "OpenNodes", "Packing", "Root", "Subproblem", "Warm"]

_LEAST_OPEN = 64
"""Open nodes that are allowed however little memory is."""

_SWEEPS = 4
"""Rounds of coordinate descent over the multipliers of several limits."""


class Warm(NamedTuple):
    """Where a relaxation ended, over its free groups; shared by both children."""

    free: IntArray
    a: FloatArray
    z: FloatArray


@dataclass(eq=False)
class Node:
    """A node of the tree: what is decided, and where the relaxation of its parent ended.

    Attributes
    ----------
    kept, removed : (n,) mask
    warm : Warm or None
        Where the parent's relaxation ended; None at the root.
    bound : float
        Lower bound known so far.
    leaf, cites : int
        Its number in the proof, and that of the relaxation its bound comes from (-1: keeping all), if one is written.
    fresh : bool
        False if it has been counted before and comes back with groups fixed.
    """

    kept: BoolArray
    removed: BoolArray
    warm: Warm | None
    bound: float
    leaf: int = 0
    cites: int = -1
    fresh: bool = True


class Subproblem(NamedTuple):
    """What is left to decide at a node; arrays over its m free groups, `size` rows each."""

    node: Node
    free: IntArray
    gram: FloatArray
    cross: FloatArray
    constant: float
    usage: FloatArray  # (limits, m)
    room: FloatArray  # (limits,), positive
    gain: FloatArray  # (m,) tr(G_g G_g') / tr(H_gg)


class Root:
    """The problem with rows of about the same size, and groups of one size.

    Groups smaller than the largest are padded with rows that are coupled to nothing and explain nothing. Rows are
    scaled by powers of two, so that scaling rounds nothing.

    Attributes
    ----------
    size : int
        Rows of a group, s.
    rows : (n s,) array of int
        Rows of the problem, -1 for padding.
    unit : (n s,) array
        What they were multiplied by: H became unit_i H_ij unit_j, and G became unit_i G_ij.
    least_eigenvalue : float
        A lower estimate of the least eigenvalue of H.
    rounding : float
        What rounding may add to a bound.
    """

    def __init__(self, problem: Problem) -> None:
        groups = problem.groups
        self.n, self.size, self.limits = problem.n, int(groups.sizes.max()), problem.limits
        rows = np.full((self.n, self.size), -1)
        for g in range(self.n):
            rows[g, : groups.sizes[g]] = groups.rows(g)
        self.rows = rows.ravel()
        real = self.rows >= 0
        index = self.rows[real]
        gram, cross = np.eye(len(self.rows)), np.zeros((len(self.rows), problem.q))
        gram[np.ix_(real, real)] = problem.gram[np.ix_(index, index)]
        cross[real] = problem.cross[index]
        diagonal = gram.diagonal().copy()
        diagonal[diagonal <= 0.0] = 1.0  # a dead row explains nothing, whatever its diagonal
        np.fill_diagonal(gram, diagonal)
        self.unit = np.exp2(-np.round(0.5 * np.log2(diagonal)))
        self.gram = gram * self.unit[:, None] * self.unit
        self.cross = cross * self.unit[:, None]
        self.constant, self.base = problem.constant, problem.base
        inverse = cho_solve(cho_factor(self.gram, lower=True), np.eye(len(self.rows)))
        norm = float(np.abs(inverse).sum(axis=1).max())
        self.least_eigenvalue = 1.0 / norm
        condition = norm * float(np.abs(self.gram).sum(axis=1).max())
        self.rounding = float(np.finfo(float).eps) * condition * max(self.constant - self.base, 0.0)

    def value(self, support: BoolArray) -> float:
        """The objective of a support."""
        rows = np.repeat(support, self.size)
        if not rows.any():
            return self.constant
        factor = cholesky(self.gram[np.ix_(rows, rows)], lower=True, check_finite=False)
        fitted = solve_triangular(factor, self.cross[rows], lower=True, check_finite=False)
        return self.constant - 0.5 * float(np.sum(fitted * fitted))

    def reduce(self, node: Node, free: IntArray, room: FloatArray) -> Subproblem:
        """Delete the rows of removed groups and eliminate those of kept ones."""
        mask = np.zeros(self.n, dtype=bool)
        mask[free] = True
        rest, kept = np.repeat(mask, self.size), np.repeat(node.kept, self.size)
        gram, cross, constant = self.gram[np.ix_(rest, rest)], self.cross[rest], self.constant
        if kept.any():
            factor = cholesky(self.gram[np.ix_(kept, kept)], lower=True, check_finite=False)
            both = np.hstack([self.gram[np.ix_(kept, rest)], self.cross[kept]])
            swept = solve_triangular(factor, both, lower=True, check_finite=False)
            to_rest, fitted = swept[:, : rest.sum()], swept[:, rest.sum() :]
            gram -= to_rest.T @ to_rest
            cross -= to_rest.T @ fitted
            constant -= 0.5 * float(np.sum(fitted * fitted))
        shape = (len(free), self.size)
        gain = (cross * cross).sum(axis=1).reshape(shape).sum(axis=1)
        gain /= gram.diagonal().reshape(shape).sum(axis=1)
        usage = self.limits.usage[:, free]
        if self.limits.cardinality is not None:
            room = np.floor(room)
        room = np.where(usage.any(axis=1), room, 1.0)  # a limit that no free group uses: never in the way
        return Subproblem(node, free, gram, cross, constant, usage, room, gain)


class Packing:
    """What the limits allow at a node, and how much score can be packed into them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slop = rounding_of(limits)
        self.cardinality_only = limits.cardinality is not None

    def room(self, kept: BoolArray) -> FloatArray:
        """(m,) what is left of each limit."""
        return self._limits.slack(kept) + self._slop

    def fits(self, room: FloatArray) -> BoolArray:
        """(n,) groups that could be kept, each alone."""
        return np.asarray((self._limits.usage <= room[:, None]).all(axis=0))

    def all_fit(self, free: BoolArray, room: FloatArray) -> bool:
        """Whether all free groups could be kept together."""
        return bool((self._limits.usage @ free <= room).all())

    def round(self, kept: BoolArray, free: IntArray, z: FloatArray) -> BoolArray:
        """A feasible support: kept groups and as many free ones as fit, those with the largest z first."""
        return self._limits.fill(free[np.argsort(-z, kind="stable")], kept)

    def interior(self, z: FloatArray, usage: FloatArray, room: FloatArray, edge: float) -> FloatArray:
        """Move a relaxed support well inside (0, 1), and onto the limit if it is a plain keep, else below it."""
        inside = np.clip(z, edge, 1.0 - edge)
        if self.cardinality_only:
            return np.asarray(np.clip(inside * (math.floor(room[0]) / inside.sum()), edge, 1.0 - edge))
        fullest = float(np.max((usage @ inside) / room, initial=0.95))
        return np.asarray(inside * min(1.0, 0.95 / fullest))

    def most(
        self, scores: FloatArray, usages: list[FloatArray], rooms: list[FloatArray]
    ) -> tuple[FloatArray, FloatArray, FloatArray, list[FloatArray]]:
        """The most score (b, m) that fits, or an upper bound, and by how much less it is once a group is decided.

        Returns
        -------
        most : (b,)
        if_removed, if_kept : (b, m)
            What the most falls by, at least, if the group must be removed, or must be kept.
        multipliers : list of (limits,) arrays
            The prices of the limits that prove it.
        """
        if self.cardinality_only:
            return _largest(scores, np.array([math.floor(room[0]) for room in rooms]))
        most, reduced, multipliers = np.empty(len(scores)), np.empty_like(scores), []
        for i, (score, usage, room) in enumerate(zip(scores, usages, rooms, strict=True)):
            prices = _prices(score, usage, room)
            reduced[i] = score - prices @ usage
            most[i] = prices @ room + np.maximum(reduced[i], 0.0).sum()
            multipliers.append(prices)
        return most, np.maximum(reduced, 0.0), np.maximum(-reduced, 0.0), multipliers


def _largest(
    scores: FloatArray, count: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, list[FloatArray]]:
    """Sums of the `count` largest scores of each row; exchanging the last one in and the first one out."""
    ordered = -np.sort(-scores, axis=1)
    pick = np.arange(len(scores))
    last_in, first_out = ordered[pick, count - 1], ordered[pick, count]
    most = np.where(np.arange(scores.shape[1]) < count[:, None], ordered, 0.0).sum(axis=1)
    if_removed = np.maximum(scores - first_out[:, None], 0.0)
    if_kept = np.maximum(last_in[:, None] - scores, 0.0)
    return most, if_removed, if_kept, [last_in[i : i + 1] for i in pick]


def _prices(score: FloatArray, usage: FloatArray, room: FloatArray) -> FloatArray:
    """Prices y >= 0 that nearly minimise y.room + sum max(0, score - y usage): exact in each coordinate in turn."""
    prices = np.zeros(len(room))
    for _ in range(_SWEEPS if len(room) > 1 else 1):
        for i in range(len(room)):
            worth = score - prices @ usage + prices[i] * usage[i]
            takes = (usage[i] > 0) & (worth > 0)
            ratio = worth[takes] / usage[i][takes]
            order = np.argsort(-ratio)
            taken = np.cumsum(usage[i][takes][order])
            full = int(np.searchsorted(taken, room[i], side="right"))
            prices[i] = ratio[order[full]] if full < len(order) else 0.0
    return prices


class OpenNodes:
    """Open nodes by their number of free groups, each size a heap with the least bound on top.

    Parameters
    ----------
    n : int
        Number of groups.
    memory : float
        GiB above which the smallest subproblems are finished first, so that their number falls.
    """

    def __init__(self, n: int, memory: float) -> None:
        self._heaps: dict[int, list[tuple[float, int, Node]]] = {}
        self._ticket = itertools.count()
        self._count = 0
        self._most = max(_LEAST_OPEN, int(memory * 2**30 / (18 * n + 600)))
        self._crowded = False
        self.turned_depth_first = False

    def __len__(self) -> int:
        return self._count

    @property
    def least_bound(self) -> float:
        """The least bound of all open nodes, inf if there is none."""
        return min((heap[0][0] for heap in self._heaps.values()), default=math.inf)

    def push(self, node: Node) -> None:
        free = len(node.kept) - int(node.kept.sum()) - int(node.removed.sum())
        heapq.heappush(self._heaps.setdefault(free, []), (node.bound, next(self._ticket), node))
        self._count += 1

    def pop(self, size: int, free: int) -> list[Node]:
        """Take out up to `size` nodes with so many free groups, least bounds first."""
        heap = self._heaps[free]
        taken = [heapq.heappop(heap)[2] for _ in range(min(size, len(heap)))]
        if not heap:
            del self._heaps[free]
        self._count -= len(taken)
        return taken

    @property
    def next_free(self) -> int:
        """The number of free groups of the nodes to take next."""
        self._crowded = self._count > (0.9 if self._crowded else 1.0) * self._most
        self.turned_depth_first |= self._crowded
        if self._crowded:
            return min(self._heaps)
        return min(self._heaps, key=lambda free: self._heaps[free][0][0])

    def __iter__(self) -> itertools.chain[Node]:
        return itertools.chain.from_iterable((item[2] for item in heap) for heap in self._heaps.values())
