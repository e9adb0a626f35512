"""The program over the splits of a forest, by HiGHS, and the greedy pruning; see `osscar_opt.formulations.forest`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations._trees import Layout, Uses
from osscar_opt.formulations.solution import Termination

if TYPE_CHECKING:
    from osscar_opt.formulations.forest import ForestProblem

__all__ = ["Answer", "Program", "greedy"]


class Answer(NamedTuple):
    """What HiGHS found, the root's error left out: variables (rounded), checked dual bound, claimed bound."""

    chosen: FloatArray | None
    dual: float
    claimed: float
    fractional: int
    programs: int
    termination: Termination


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise price * charges @ w - gains @ x with x below parents' and w; every row of `matrix` is -1, +1."""

    gains: FloatArray
    charge: FloatArray  # of each variable: x where a use has one node, else w
    matrix: Any  # rows: x_child - x_parent <= 0, x_node - w <= 0
    splits: int

    @classmethod
    def of(cls, layout: Layout, uses: Uses, gains: FloatArray, charges: FloatArray) -> Program:
        from scipy.sparse import csr_array

        n = len(layout.splits)
        column = layout.split_of_node[uses.node]
        nodes_of_use = np.bincount(uses.use_of_node, minlength=len(uses.feature))
        shared = np.flatnonzero(nodes_of_use > 1)
        w = np.full(len(uses.feature), -1, dtype=np.int64)
        w[shared] = n + np.arange(len(shared))
        charge = np.zeros(n + len(shared))
        charge[w[shared]] = charges[shared]
        alone = nodes_of_use[uses.use_of_node] == 1
        np.add.at(charge, column[alone], charges[uses.use_of_node[alone]])
        above = layout.parent[layout.splits]
        child = np.flatnonzero(above >= 0)
        lower = np.concatenate([child, column[~alone]])
        upper = np.concatenate([layout.split_of_node[above[child]], w[uses.use_of_node[~alone]]])
        rows = np.arange(len(lower))
        matrix = csr_array(
            (np.repeat([1.0, -1.0], len(lower)), (np.tile(rows, 2), np.concatenate([lower, upper]))),
            shape=(len(lower), len(charge)),
        )
        return cls(gains, charge, matrix, n)

    @property
    def size(self) -> int:
        return len(self.charge)

    @property
    def constraints(self) -> int:
        return int(self.matrix.shape[0])

    def priced(self, price: float, *, time_limit: float | None) -> Answer:
        """The linear program for a price; its vertices are integral."""
        from scipy.optimize import linprog

        c = price * self.charge
        c[: self.splits] -= self.gains
        scale = float(np.abs(c).max(initial=0.0)) or 1.0
        if self.constraints == 0:
            free = float(np.minimum(c, 0.0).sum())
            return Answer((c < 0.0).astype(float), free, -math.inf, 0, 0, Termination.COMPLETED)
        found = linprog(
            c / scale,
            A_ub=self.matrix,
            b_ub=np.zeros(self.constraints),
            bounds=(0.0, 1.0),
            method="highs-ds",  # simplex: a vertex
            options={} if time_limit is None else {"time_limit": max(time_limit, 1e-3)},
        )
        if found.x is None or found.status != 0:
            free = float(np.minimum(c, 0.0).sum())
            return Answer(None, free, -math.inf, 0, 1, Termination.TIME_LIMIT)
        multipliers = scale * np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
        dual = float(np.minimum(c + self.matrix.T @ multipliers, 0.0).sum())
        chosen = np.rint(found.x)
        fractional = int(np.sum(np.abs(found.x - chosen) > 1e-6))
        return Answer(chosen, dual, -math.inf, fractional, 1, Termination.COMPLETED)

    def limited(self, budget: float, *, time_limit: float | None) -> Answer:
        """Under a budget: the best multiplier for it, by linear programs for a price, then branch and bound.

        The price is where the line through the two prunings next to the budget, one within it and one beyond,
        says; when the program at that price finds nothing below the line, the bound is the best there is.
        """
        end = math.inf if time_limit is None else time.monotonic() + time_limit
        within, beyond = (0.0, 0.0, np.zeros(self.size)), None
        price, dual, programs = 0.0, -math.inf, 0
        while True:
            answer = self.priced(price, time_limit=_left(end))
            programs += 1
            if answer.chosen is None:
                return Answer(within[2], dual, -math.inf, 0, programs, Termination.TIME_LIMIT)
            dual = max(dual, answer.dual - price * budget)
            cost, gain = float(self.charge @ answer.chosen), float(self.gains @ answer.chosen[: self.splits])
            found = (cost, gain, answer.chosen)
            line = math.inf if beyond is None else price * beyond[0] - beyond[1]
            fits = cost <= budget * (1 + 1e-12)
            if beyond is not None and price * cost - gain >= line - 1e-9 * max(abs(line), 1e-300):
                break
            within, beyond = (found, beyond) if fits else (within, found)
            if beyond is None:  # no errors need be made to stay within the budget
                return Answer(answer.chosen, dual, -math.inf, 0, programs, Termination.COMPLETED)
            price = (beyond[1] - within[1]) / (beyond[0] - within[0])
        if -within[1] <= dual + 1e-9 * abs(dual):
            return Answer(within[2], dual, -math.inf, 0, programs, Termination.COMPLETED)
        return self._branched(budget, within, dual, programs, end)

    def _branched(
        self, budget: float, known: tuple[float, float, FloatArray], dual: float, programs: int, end: float
    ) -> Answer:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, vstack

        c = np.zeros(self.size)
        c[: self.splits] = -self.gains
        scale = float(np.abs(c).max()) or 1.0
        left = _left(end)
        found = milp(
            c / scale,
            integrality=np.ones(self.size),
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(
                vstack([self.matrix, csr_array(self.charge[None, :])]),
                -np.inf,
                np.append(np.zeros(self.constraints), budget),
            ),
            options={"mip_rel_gap": 1e-9} | ({} if left is None else {"time_limit": left}),
        )
        claimed = -math.inf
        if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound):
            claimed = scale * (float(found.mip_dual_bound) - 1e-9)
        chosen = known[2]
        if found.x is not None:
            better = np.rint(found.x)
            fits = float(self.charge @ better) <= budget * (1 + 1e-9)
            chosen = better if fits and float(self.gains @ better[: self.splits]) > known[1] else chosen
        ended = Termination.COMPLETED if found.status == 0 else Termination.TIME_LIMIT
        return Answer(chosen, dual, claimed, 0, programs, ended)


def _left(end: float) -> float | None:
    return None if math.isinf(end) else max(end - time.monotonic(), 1e-3)


def greedy(problem: ForestProblem) -> tuple[BoolArray, dict[str, Any]]:
    """Bottom-up by cost and benefit: one node after another becomes a leaf, with all that is below it.

    For a price, the node for which price * (cost saved) - (error added) is largest, as long as that is positive.  For a
    budget, until it is met, the node with the least error added for the cost it takes part in, a use that is shared
    by several trees being split between them; before that, what costs no error.
    """
    layout, uses = problem.layout, problem.uses
    charges = problem._charges
    split = np.isin(np.arange(len(layout.parent)), layout.splits)
    levels = _levels(layout.parent)
    removed = 0
    while np.any(split):
        left = split[uses.node]
        sharing = np.bincount(uses.use_of_node, weights=left, minlength=len(uses.feature))
        over = problem.budget is not None and float(charges @ (sharing > 0)) > problem.budget
        credit = np.zeros(len(split))
        count = sharing[uses.use_of_node]
        own = left if over else left & (count == 1)
        np.add.at(credit, uses.node[own], charges[uses.use_of_node[own]] / count[own])
        rise, saved = _collapse(problem.errors, split, credit, layout.parent, levels)
        if over:
            ratio = np.where(split, rise / np.maximum(saved, 1e-300), np.inf)
            node = int(np.argmin(ratio))
        else:
            gain = np.where(split, (problem.price or 0.0) * saved - rise, -np.inf)
            node = int(np.argmax(gain))
            if gain[node] <= problem._rounding:
                break
        removed += _prune_below(split, layout.children, node)
    return split[layout.splits], {"removed": removed}


def _collapse(
    errors: FloatArray, split: BoolArray, credit: FloatArray, parent: IntArray, levels: Sequence[IntArray]
) -> tuple[FloatArray, FloatArray]:
    """What each node would add in error, and save in cost, as a leaf."""
    below, saved = np.where(split, 0.0, errors), credit.copy()
    for nodes in levels:  # the deepest first, without the roots
        hang_on = nodes[split[parent[nodes]]]
        np.add.at(below, parent[hang_on], below[hang_on])
        np.add.at(saved, parent[hang_on], saved[hang_on])
    return errors - below, saved


def _prune_below(split: BoolArray, children: IntArray, node: int) -> int:
    due, removed = [node], 0
    while due:
        at = due.pop()
        if split[at]:
            split[at] = False
            removed += 1
            due.extend(map(int, children[at]))
    return removed


def _levels(parent: IntArray) -> list[IntArray]:
    depth = np.zeros(len(parent), dtype=np.int64)
    at = parent.copy()
    while np.any(at >= 0):
        deeper = at >= 0
        depth[deeper] += 1
        at[deeper] = parent[at[deeper]]
    return [np.flatnonzero(depth == d) for d in range(int(depth.max(initial=0)), 0, -1)]
