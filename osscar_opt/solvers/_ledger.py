"""What `exact` writes down for a certificate while it searches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.certificates import Certificate, ProofTree
from osscar_opt.formulations.problem import Problem

__all__ = ["ALL_KEPT", "Ledger", "Ruling", "Where"]

ALL_KEPT = -1
"""In place of a relaxation: keeping all that is not removed is no better than the incumbent."""


class Where(NamedTuple):
    """The point at which a relaxation was evaluated: a and z over the free groups, and the prices of the limits."""

    a: FloatArray
    z: FloatArray
    prices: FloatArray


class Ruling(NamedTuple):
    """A group decided at a node, and where the bound is that rules out the other choice (None: all kept)."""

    group: int
    keep: bool
    where: Where | None


class Ledger:
    """A proof tree that grows with the search.

    Parameters
    ----------
    problem : Problem
    scale : (n, s, s) array
        Coordinates of the relaxations, `osscar_opt.solvers._nodes.Root.scale`.
    """

    def __init__(self, problem: Problem, scale: FloatArray) -> None:
        self._problem = problem
        sizes = problem.groups.sizes
        self._scale = [block[:size, :size] for block, size in zip(scale, sizes, strict=True)]
        self._inverse = [np.linalg.inv(block) for block in self._scale]
        coordinates = np.concatenate([block.ravel() for block in self._scale])
        self._tree = ProofTree.of(problem, coordinates=coordinates)

    def relax(self, leaf: int, free: IntArray, where: Where | None) -> int:
        """Note the relaxation of a node, and return the number by which leaves cite it."""
        if where is None:
            return ALL_KEPT
        blocks = [
            a * self._inverse[g].T @ self._inverse[g] for g, a in zip(free.tolist(), where.a, strict=True)
        ]
        flat = np.concatenate([block.ravel() for block in blocks])
        prices = where.prices if len(where.prices) == len(self._problem.limits.limit) else None
        return self._tree.relax(leaf, where.z, [flat], prices)

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
