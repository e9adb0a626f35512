"""Branch and bound on the directional perspective relaxation, many nodes at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination, absolute_tolerance
from osscar_opt.linalg import directional, lifted
from osscar_opt.linalg.directional import pair
from osscar_opt.linalg.lifted import lift
from osscar_opt.linalg.stacks import Array, Stacks, make_stacks
from osscar_opt.solvers._ledger import ALL_KEPT, Ledger, Ruling, Where
from osscar_opt.solvers._nodes import Node, OpenNodes, Packing, Root, Subproblem, Warm
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.registry import solver_class
from osscar_opt.solvers.selection import backward_selection, forward, open_tableau
from osscar_opt.solvers.walk import Walk

__all__ = ["Exact"]

_PROVED = 1e-7
"""A node is closed when its bound is within this of the incumbent, relatively: a tenth of what "optimal" asks."""

_ENUMERATED = 4096
"""Supports that are enumerated rather than searched."""

_STACK_NUMBERS = 1 << 16
"""Numbers in one matrix of all nodes of a batch together: they stay in the cache."""

_ROOT_STEPS, _NODE_STEPS, _LEAST_STEPS = 30, 8, 2
_LIFTED_BARRIER, _FINAL_STEPS, _FINAL_FALL = 1.0, 8, 0.5
_RENEWALS, _RENEWAL_STEPS, _RENEWAL_FALL, _DAMPING = 2, 2, 0.7, 0.5
_STALL, _ROOT_STALL = 0.3, 0.003
"""A node is branched on when a Newton step closes less than this share of what is left to the incumbent."""

_FIX_EARLY = 0.1
"""Share of the free groups that must be fixable for a node to be reduced before it has converged."""

_FIRST_BARRIER, _BARRIER_FALL, _LAST_BARRIER = 0.1, 0.3, 0.02
"""Weight of the barriers, as a share of the gap to the incumbent per group: at first, per step, and at last."""

_EDGE = 1e-3
"""How far from 0 and 1 a relaxed support that is handed down starts."""


@dataclass(frozen=True)
class Exact(Solver):
    r"""Proves the best support: best-first branch and bound, with a bound that gives every output its own diagonal.

    A node has kept groups K and removed groups R. Removed rows are deleted and kept ones eliminated,

    .. math:: H \leftarrow H_{FF} - H_{FK} H_{KK}^{-1} H_{KF}, \quad G \leftarrow G_F - H_{FK} H_{KK}^{-1} G_K,

    which leaves the same problem, smaller. Its bound is that of `osscar_opt.linalg.directional`, a saddle
    max over diagonals a, min over relaxed supports z, in which a few Newton steps are made from the parent's a
    and z; every step gives a valid bound, so none needs to converge. Scores that a step leaves behind fix groups:
    one whose removal (or keeping) lifts the bound above the incumbent is kept (removed). A group is also kept if the
    loss of removing it alone, everything else kept, already passes the incumbent (objectives are monotone). Branching
    is on the group with the largest min(z, 1 - z) tr(G_g G_g') / tr(H_gg); rounded z propose incumbents.

    Nodes of one size are processed as a batch. Open nodes are taken best bound first, so the reported bound rises
    steadily; when they fill the memory allowed, the search turns depth-first until they no longer do.

    Parameters
    ----------
    certificate : bool
        Write down the tree and what closed its leaves, for a checker that shares no code with this
        (`osscar_opt.certificates`). A search that is stopped leaves the proof of the bound it reached.
    node_limit : int
        Stop after so many nodes; 0 for no limit.
    memory : float
        GiB that open nodes may take before the search turns depth-first.
    batch : int
        Nodes processed together; 0 picks by size.
    device : str
        "cpu" (numpy), or a torch device such as "cuda".

    References
    ----------
    Zheng, Sun, Li: Improving the performance of MIQP solvers for quadratic programs with cardinality and minimum
    threshold constraints, INFORMS J. Comput. 26 (2014). Dong, Chen, Linderoth: Regularization vs. relaxation,
    arXiv 1510.06083. The diagonals per output are this library's own.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> solution = problem.solve("exact")
    >>> solution.kept, solution.status.value
    (array([1]), 'optimal')
    """

    name: ClassVar[str] = "exact"
    proves: ClassVar[bool] = True
    certificate: bool = False
    node_limit: int = field(default=0, metadata={"least": 0})
    memory: float = field(default=4.0, metadata={"least": 0})
    batch: int = field(default=0, metadata={"least": 0})
    device: str = "cpu"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        stacks = make_stacks(self.device)
        if problem.limits.supports <= _ENUMERATED:
            enumerated = solver_class("exhaustive")(**{"certificate": self.certificate})
            return enumerated.propose(problem, start=start, deadline=deadline, report=report)
        return _Search(self, problem, stacks, start, deadline, report).run()


class _Search:
    """The state of one branch and bound."""

    def __init__(
        self,
        options: Exact,
        problem: Problem,
        stacks: Stacks,
        start: BoolArray | None,
        deadline: Deadline,
        report: Report,
    ) -> None:
        self.options, self.problem, self.deadline, self.report = options, problem, deadline, report
        self.stacks = stacks
        self.tiny = absolute_tolerance(problem)
        self.walk = _first_walk(problem, start, deadline, report)
        self.best_support = self.walk.best_support
        self.best_value = problem.value(self.best_support)
        self.root = Root(problem)
        self.packing = Packing(problem.limits)
        self.open = OpenNodes(problem.n, options.memory)
        self.ledger = Ledger(problem, self.root) if options.certificate else None
        self.closed_bound = math.inf  # the least bound of the closed leaves
        self.renewals: int | None = None  # of Lambda, at a node; None until the root has tried
        self.nodes = self.steps = self.fixed = 0
        self.looked_at: set[bytes] = set()

    @property
    def cutoff(self) -> float:
        """A bound this high closes a node."""
        return self.best_value - _PROVED * abs(self.best_value) - self.tiny

    @property
    def bound(self) -> float:
        """No support has a value below."""
        return min(self.best_value, self.closed_bound, self.open.least_bound)

    def run(self) -> Proposal:
        nothing = np.zeros(self.problem.n, dtype=bool)
        self.open.push(Node(nothing.copy(), nothing.copy(), None, self.problem.base))
        termination = Termination.COMPLETED
        while self.open and termination is Termination.COMPLETED:
            if self.deadline.expired():
                termination = Termination.TIME_LIMIT
            elif self.options.node_limit and self.nodes >= self.options.node_limit:
                termination = Termination.NODE_LIMIT
            else:
                free = self.open.next_free
                self._process(self.open.pop(self._batch_size(free), free))
                self.report.bound(self.bound)
                self.report.progress(self.nodes, None, f"nodes, {len(self.open)} open")
        stats = {
            "nodes": self.nodes,
            "open_nodes": len(self.open),
            "newton_steps": self.steps,
            "fixed_groups": self.fixed,
            "depth_first": self.open.turned_depth_first,
        }
        bound = self.bound
        written = None
        if self.ledger is not None:
            written = self.ledger.certificate(self.best_support, self.best_value, bound)
        return Proposal(
            self.best_support, lower_bound=bound, certificate=written, stats=stats, termination=termination
        )

    def _batch_size(self, free: int) -> int:
        return self.options.batch or max(1, _STACK_NUMBERS // max(1, (free * self.root.size) ** 2))

    def _process(self, nodes: list[Node]) -> None:
        """Bound nodes, and close, reduce or branch each of them."""
        waiting: dict[int, list[Subproblem]] = {}
        for node in nodes:
            self.nodes += node.fresh
            node.fresh = False
            if node.bound >= self.cutoff:
                self._close(node.bound, node.leaf, node.cites)
            elif (sub := self._subproblem(node)) is not None:
                waiting.setdefault(len(sub.free), []).append(sub)
        for subs in waiting.values():
            self._bound(subs)

    def _subproblem(self, node: Node) -> Subproblem | None:
        """What is left to decide at a node, or None if nothing is."""
        room = self.packing.room(node.kept)
        if (room < 0).any():  # more groups than fit would all have to stay for an improvement: there is none
            if self.ledger is not None:
                self.ledger.close_infeasible(node.leaf)
            return None
        free = ~(node.kept | node.removed)
        too_much = free & ~self.packing.fits(room)
        if self.ledger is not None:
            node.leaf = self.ledger.exclude(node.leaf, too_much)
        node.removed |= too_much
        free &= ~too_much
        if self.packing.all_fit(free, room):
            support = node.kept | free
            self._offer(support)
            self._close(self.root.value(support) - self.root.rounding, node.leaf, ALL_KEPT)
            return None
        return self.root.reduce(node, np.flatnonzero(free), room)

    def _close(self, bound: float, leaf: int, relaxation: int) -> None:
        self.closed_bound = min(self.closed_bound, bound)
        if self.ledger is not None:
            self.ledger.close(leaf, relaxation)

    # ------------------------------------------------------------------------------------- bounds of a batch

    def _bound(self, subs: list[Subproblem]) -> None:
        """Improve the bounds of nodes of equal size, until each is closed, can be reduced, or has to be branched on."""
        stacks, m, tight = self.stacks, len(subs[0].free), self.packing.cardinality_only
        arrays = ([sub.gram for sub in subs], [sub.cross for sub in subs], [sub.constant for sub in subs])
        gram, cross, constant = (stacks.asarray(np.array(array)) for array in arrays)
        whole = lift(stacks, gram, cross, constant, self.root.size)
        pairs = pair(stacks, gram, cross, constant, whole)
        base = stacks.numpy(whole.base) - self.root.rounding
        alone = base[:, None] + stacks.numpy(whole.alone)
        states = [_State(*each, self.cutoff) for each in zip(subs, base, alone, strict=True)]
        usage, room = np.array([sub.usage for sub in subs]), np.array([sub.room for sub in subs])
        at = self._starting_points(subs, gram)
        barrier = np.array([_FIRST_BARRIER * self._gap(state) / m for state in states])
        while states:
            self.steps += len(states)
            found = directional.evaluate(stacks, pairs, at)
            self._update(states, whole, pairs, at, found)
            stalled = np.flatnonzero([state.best < self.cutoff and state.stalled for state in states])
            if len(stalled):
                parts = [part.part(stalled) for part in (whole, pairs, at, found)]
                self._polish([states[i] for i in stalled], *parts, (usage[stalled], room[stalled]))
            a, z = stacks.numpy(at.a), stacks.numpy(at.z)
            stay = np.flatnonzero([not self._leaves(state, a[i], z[i]) for i, state in enumerate(states)])
            if len(stay) < len(states):
                if len(stay) == 0:
                    return
                states = [states[i] for i in stay]
                whole, pairs, at, found = (part.part(stay) for part in (whole, pairs, at, found))
                barrier, z, usage, room = barrier[stay], z[stay], usage[stay], room[stay]
            slack = room - (usage @ z[:, :, None])[:, :, 0]
            at, length = directional.newton(stacks, pairs, at, found, barrier, usage, slack, tight)
            least = np.array([_LAST_BARRIER * self._gap(state) / m for state in states])
            barrier = np.where(length > 0.3, np.maximum(_BARRIER_FALL * barrier, least), barrier)

    def _polish(
        self,
        states: list[_State],
        whole: lifted.Lifted,
        pairs: directional.Paired,
        at: directional.Point,
        found: directional.Evaluation,
        limits: tuple[FloatArray, FloatArray],
    ) -> None:
        """Bounds of the lifted relaxation, from where the directional one ended.

        With few outputs it pays to renew Lambda too; whether it does is tried at the root.
        """
        multipliers = directional.multipliers(self.stacks, pairs, at, found)
        start = lifted.Point(1.0 - at.z, 2.0 * found.score)
        if self.renewals is not None:
            self._take_in(states, whole, *self._descended(states, whole, multipliers, start, limits, self.renewals))
            return
        values = []
        for renewals in (0, _RENEWALS):
            q, point = self._descended(states, whole, multipliers, start, limits, renewals)
            values.append((float(self._take_in(states, whole, q, point)[0]), renewals))
        self.renewals = max(values)[1]

    def _descended(
        self,
        states: list[_State],
        whole: lifted.Lifted,
        multipliers: Array,
        at: lifted.Point,
        limits: tuple[FloatArray, FloatArray],
        renewals: int,
    ) -> tuple[lifted.Quadratic, lifted.Point]:
        """Newton steps with falling barriers, after some between which Lambda is renewed."""
        stacks, tight = self.stacks, self.packing.cardinality_only
        barrier = np.array([_LIFTED_BARRIER * self._gap(state) / len(state.sub.free) for state in states])
        for turn in range(renewals + 1):
            last = turn == renewals
            q = lifted.quadratic(stacks, whole, multipliers)
            delta, slack_inverse = lifted.make_definite(stacks, q, at.delta)
            at = lifted.Point(at.y, delta)
            for _ in range(_FINAL_STEPS if last else _RENEWAL_STEPS):
                at, slack_inverse, _ = lifted.newton(stacks, q, at, slack_inverse, barrier, *limits, tight)
                barrier = barrier * (_FINAL_FALL if last else _RENEWAL_FALL)
            if not last:
                best = lifted.best_multipliers(stacks, whole, at, slack_inverse)
                multipliers = multipliers + _DAMPING * (best - multipliers)
        return q, at

    def _gap(self, state: _State) -> float:
        """What is left to the incumbent at a node, and a little more than nothing."""
        whole = self.best_value - self.problem.base
        return max(self.best_value - state.best, 1e-6 * whole, 1e-300)

    def _starting_points(self, subs: list[Subproblem], gram: Array) -> directional.Point:
        a, z = [], []
        for sub in subs:
            warm, m = sub.node.warm, len(sub.free)
            index = None if warm is None else np.searchsorted(warm.free, sub.free)
            a.append(np.full(m, 0.5 * self.root.least_eigenvalue) if warm is None else warm.a[index])
            half = np.full(m, 0.5) if warm is None else warm.z[index]
            z.append(self.packing.interior(half, sub.usage, sub.room, _EDGE))
        start, inverse = directional.feasible_start(self.stacks, gram, self.stacks.asarray(np.array(a)))
        return directional.Point(start, self.stacks.asarray(np.array(z)), inverse)

    def _update(
        self,
        states: list[_State],
        whole: lifted.Lifted,
        pairs: directional.Paired,
        at: directional.Point,
        found: directional.Evaluation,
    ) -> None:
        """Bounds of the directional relaxation: objective >= psi + score.z - (most score that fits)."""
        stacks = self.stacks
        if self.ledger is not None:  # what is written down is a lifted relaxation: the same bound, said in its terms
            q = lifted.quadratic(stacks, whole, directional.multipliers(stacks, pairs, at, found))
            delta, _ = lifted.make_definite(stacks, q, 2.0 * found.score, inside=False)
            self._take_in(states, whole, q, lifted.Point(1.0 - at.z, delta))
            return
        psi, score, z = stacks.numpy(found.psi), stacks.numpy(found.score), stacks.numpy(at.z)
        most, if_removed, if_kept, _ = self._most(states, score)
        values = psi + (score * z).sum(axis=1) - most - self.root.rounding
        for i, state in enumerate(states):
            state.update(float(values[i]), if_removed[i], if_kept[i], None, self.cutoff)

    def _take_in(
        self, states: list[_State], whole: lifted.Lifted, q: lifted.Quadratic, at: lifted.Point
    ) -> FloatArray:
        """Bounds of the lifted relaxation: objective >= constant + sum of score over the removed groups."""
        constant, score, delta = lifted.bounds(self.stacks, whole, q, at)
        kept_score = np.maximum(score, 0.0)
        most, if_removed, if_kept, prices = self._most(states, kept_score)
        if_kept = if_kept + (kept_score - score)  # a group of negative score is worth more removed
        values = constant + score.sum(axis=1) - most - self.root.rounding
        y = self.stacks.numpy(at.y)
        multipliers = None if self.ledger is None else self.stacks.numpy(q.multipliers)
        for i, state in enumerate(states):
            where = None if multipliers is None else Where(y[i], delta[i], multipliers[i], prices[i])
            state.update(float(values[i]), if_removed[i], if_kept[i], where, self.cutoff)
        return values

    def _most(
        self, states: list[_State], score: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, list[FloatArray]]:
        return self.packing.most(score, [s.sub.usage for s in states], [s.sub.room for s in states])

    # --------------------------------------------------------------------------------------- what comes after

    def _leaves(self, state: _State, a: FloatArray, z: FloatArray) -> bool:
        """Deal with a node that needs no further step; False if it does."""
        node = state.sub.node
        if state.best >= self.cutoff:
            if self.ledger is not None and state.best_at is not None:
                node.cites = self.ledger.relax(node.leaf, state.sub.free, state.best_at)
            self._close(state.best, node.leaf, node.cites)
            return True
        reducible = state.fixable or self.deadline.expired()
        if not (reducible or state.stalled):
            return False
        warm = Warm(state.sub.free, a.copy(), z.copy())
        if reducible:
            self._settle(state, warm)
            self.open.push(node)
        else:
            self._branch(state, warm)
        return True

    def _settle(self, state: _State, warm: Warm) -> None:
        """Make a node what its bounds have decided: groups fixed, its bound raised."""
        node, free = state.sub.node, state.sub.free
        if state.rulings:
            self.closed_bound = min(self.closed_bound, state.ruled_out)
            self.fixed += len(state.rulings)
        if self.ledger is not None:
            leaf = node.leaf
            if state.best_at is not None:
                node.cites = self.ledger.relax(leaf, free, state.best_at)
            node.leaf = self.ledger.decide(leaf, free, state.rulings)
        for ruling in state.rulings:
            (node.kept if ruling.keep else node.removed)[ruling.group] = True
        node.bound, node.warm = state.best, warm

    def _branch(self, state: _State, warm: Warm) -> None:
        sub = state.sub
        self._offer(self.packing.round(sub.node.kept, sub.free, warm.z))
        weight = np.where(state.keep | state.remove, -1.0, np.minimum(warm.z, 1.0 - warm.z) * sub.gain)
        pick = int(np.argmax(weight))
        group = int(sub.free[pick])
        last = ALL_KEPT if self.ledger is None else self.ledger.relax(sub.node.leaf, sub.free, state.last_at)
        self._settle(state, warm)
        node = sub.node
        leaves = (0, 0) if self.ledger is None else self.ledger.branch(node.leaf, group)
        for keeps, leaf, rise in zip((False, True), leaves, (state.if_removed, state.if_kept), strict=True):
            kept, removed = node.kept.copy(), node.removed.copy()
            (kept if keeps else removed)[group] = True
            bound, cites = max((node.bound, node.cites), (state.last + float(rise[pick]), last))
            self.open.push(Node(kept, removed, warm, bound, leaf, cites))

    def _offer(self, support: BoolArray) -> None:
        """Look at a support that came up; a good one is improved by exchanges."""
        key = np.packbits(support).tobytes()
        if key in self.looked_at:
            return
        self.looked_at.add(key)
        if self.root.value(support) >= self.cutoff:
            return
        self.walk.move_to(support)
        self.walk.record()
        self.walk.descend()
        value = self.problem.value(self.walk.best_support)
        if value < self.best_value:
            self.best_value, self.best_support = value, self.walk.best_support


class _State:
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
        self.best, self.best_at = sub.node.bound, None
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


def _first_walk(problem: Problem, start: BoolArray | None, deadline: Deadline, report: Report) -> Walk:
    """Backward and forward selection and the caller's start, each descended by single exchanges."""
    greedy = backward_selection(problem, deadline=deadline, report=report)
    walk = Walk(problem, greedy.support, deadline=deadline, report=report, value=greedy.value)
    walk.descend()
    tableau = open_tableau(problem, problem.always_keep, "removed")
    added, _ = forward(problem, tableau, deadline=deadline, report=report)
    forwards = problem.always_keep.copy()
    forwards[added] = True
    for support in (start, forwards):
        if support is not None and not deadline.expired():
            walk.move_to(support)
            walk.descend()
    return walk
