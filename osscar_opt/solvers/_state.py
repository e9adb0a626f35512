"""How far the bounding of a node of `exact` has come, and what its bounds have decided."""

from __future__ import annotations

import math

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.solvers._ledger import ALL_KEPT, Ruling, Where
from osscar_opt.solvers._nodes import Subproblem

__all__ = ["State"]

_ROOT_STEPS, _NODE_STEPS, _LEAST_STEPS = 30, 8, 2
_STALL, _ROOT_STALL = 0.3, 0.003
"""A node is branched on when a Newton step closes less than this share of what is left to the incumbent."""

_FIX_EARLY = 0.1
"""Share of the free groups that must be fixable for a node to be reduced before it has converged."""


class State:
    """How far the bounding of one node has come.

    Attributes
    ----------
    best, best_at
        The best bound so far and where; `best_at` is None if the bound is inherited, or that of keeping all.
    last, last_at
        The latest.
    rulings : list of Ruling
        Groups that the bounds have decided; `ruled_out` is the least bound of the choices that are ruled out.
    """

    def __init__(self, sub: Subproblem, base: float, alone: FloatArray, cutoff: float) -> None:
        self.sub = sub
        self.best = sub.node.bound
        self.best_at: Where | None = None
        if base > self.best:
            self.best, sub.node.cites = base, ALL_KEPT
        self.steps, self.progress = 0, math.inf
        self.keep = np.zeros(len(sub.free), dtype=bool)
        self.remove = np.zeros(len(sub.free), dtype=bool)
        self.rulings: list[Ruling] = []
        self.ruled_out = math.inf
        self._fix(alone, True, None, cutoff)

    def update(
        self, bound: float, if_removed: FloatArray, if_kept: FloatArray, where: Where | None, cutoff: float
    ) -> None:
        """Take in the bound of a step, and fix what it decides."""
        self.steps += 1
        self.progress = (bound - self.best) / max(cutoff - bound, 1e-300) if self.steps > 1 else math.inf
        self.last, self.last_at = bound, where
        if bound > self.best:
            self.best, self.best_at = bound, where
        self.if_removed, self.if_kept = if_removed, if_kept
        self._fix(bound + if_removed, True, where, cutoff)
        self._fix(bound + if_kept, False, where, cutoff)

    def _fix(self, otherwise: FloatArray, keep: bool, where: Where | None, cutoff: float) -> None:
        """Decide the groups that cannot be decided `otherwise` with a value below the cutoff."""
        new = (otherwise >= cutoff) & ~(self.keep | self.remove)
        if new.any():
            (self.keep if keep else self.remove)[new] = True
            self.ruled_out = min(self.ruled_out, float(otherwise[new].min()))
            self.rulings += [Ruling(group, keep, where) for group in self.sub.free[new].tolist()]

    @property
    def fixable(self) -> bool:
        """Whether so many groups can be fixed that the node is better made smaller at once."""
        return len(self.rulings) >= max(1.0, _FIX_EARLY * len(self.keep))

    @property
    def stalled(self) -> bool:
        """Whether more steps do not pay."""
        if self.sub.node.warm is None:
            return self.steps >= _ROOT_STEPS or (self.steps >= _NODE_STEPS and self.progress < _ROOT_STALL)
        return self.steps >= _NODE_STEPS or (self.steps >= _LEAST_STEPS and self.progress < _STALL)
