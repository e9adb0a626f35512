"""What `exact` writes down for a certificate while it searches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.certificates import Certificate, ProofTree
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers._nodes import Root

__all__ = ["ALL_KEPT", "Ledger", "Ruling", "Where"]

ALL_KEPT = -1
"""In place of a relaxation: keeping all that is not removed is no better than the incumbent."""


class Where(NamedTuple):
    """The point at which a relaxation was evaluated, over the free groups, and the prices of the limits."""

    y: FloatArray
    delta: FloatArray
    multipliers: FloatArray
    prices: FloatArray


class Ruling(NamedTuple):
    """A group decided at a node, and where the bound is that rules out the other choice (None: all kept)."""

    group: int
    keep: bool
    where: Where | None


class Ledger:
    """A proof tree that grows with the search."""

    def __init__(self, problem: Problem, root: Root) -> None:
        self._problem, self._root = problem, root
        self._tree = ProofTree.of(problem)

    def relax(self, leaf: int, free: IntArray, where: Where | None) -> int:
        """Note the relaxation of a node, and return the number by which leaves cite it."""
        if where is None:
            return ALL_KEPT
        size, root = self._root.size, self._root
        rows = (free[:, None] * size + np.arange(size)).ravel()
        real = root.rows[rows] >= 0
        multipliers = (where.multipliers / root.unit[rows, None])[real]
        prices = where.prices if len(self._problem.limits.limit) > 1 else None
        return self._tree.relax_dual(leaf, where.y, where.delta, multipliers, prices)

    def decide(self, leaf: int, free: IntArray, rulings: list[Ruling]) -> int:
        """Decide groups one after another, the other choice of each closed; returns the leaf where all are."""
        numbers: dict[int, int] = {}
        for ruling in rulings:
            if ruling.where is not None and id(ruling.where) not in numbers:
                numbers[id(ruling.where)] = self.relax(leaf, free, ruling.where)
        for ruling in rulings:
            removed, kept = self._tree.branch(leaf, ruling.group)
            leaf, ruled_out = (kept, removed) if ruling.keep else (removed, kept)
            self.close(ruled_out, ALL_KEPT if ruling.where is None else numbers[id(ruling.where)])
        return leaf

    def exclude(self, leaf: int, too_much: BoolArray) -> int:
        """Remove groups that no limit leaves room for."""
        for group in np.flatnonzero(too_much):
            leaf, kept = self._tree.branch(leaf, int(group))
            self._tree.close_infeasible(kept)
        return leaf

    def branch(self, leaf: int, group: int) -> tuple[int, int]:
        """The leaves in which a group is removed and kept."""
        return self._tree.branch(leaf, group)

    def close(self, leaf: int, relaxation: int) -> None:
        """Close a leaf by a relaxation, or by keeping all."""
        if relaxation == ALL_KEPT:
            self._tree.close_superset(leaf)
        else:
            self._tree.close(leaf, relaxation=relaxation)

    def close_infeasible(self, leaf: int) -> None:
        """Close a leaf whose kept groups pass a limit."""
        self._tree.close_infeasible(leaf)

    def certificate(self, support: BoolArray, value: float, bound: float) -> Certificate:
        """The certificate of what has been proved so far."""
        return Certificate.of(self._problem, self._tree, support=support, value=value, bound=bound)
