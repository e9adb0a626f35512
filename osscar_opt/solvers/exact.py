"""Branch and bound on the directional and lifted relaxations, many nodes at a time."""

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
from osscar_opt.solvers._ledger import ALL_KEPT, Ledger, Where
from osscar_opt.solvers._nodes import Node, OpenNodes, Packing, Root, Subproblem, Warm
from osscar_opt.solvers._state import State
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.registry import get_solver
from osscar_opt.solvers.selection import backward_selection, forward, open_tableau
from osscar_opt.solvers.walk import Walk

__all__ = ["Exact"]

_PROVED = 1e-7
"""A node is closed when its bound is within this of the incumbent, relatively: a tenth of what "optimal" asks."""

_ENUMERATED = 4096
"""Supports that are enumerated rather than searched."""

_STACK_NUMBERS = 1 << 16
"""Numbers in one matrix of all nodes of a batch together: they stay in the cache."""

_FIRST_BARRIER, _BARRIER_FALL, _LAST_BARRIER = 0.1, 0.3, 0.02
"""Weight of the directional relaxation's barriers, as a share of the gap to the incumbent per group: at first, its fall
per step, and at last."""

_LIFTED_BARRIER, _LIFTED_FALL, _LIFTED_STEPS = 1.0, 0.5, 8
"""The same of the lifted relaxation: at first, its fall per step, and the number of steps."""

_RENEWALS, _RENEWAL_FALL, _RENEWAL_STEPS, _DAMPING = 1, 0.7, 2, 0.5
"""With fewer outputs than rows, how often Lambda is renewed before, after how many steps, and how far it is moved."""

_EDGE = 1e-3
"""How far from 0 and 1 a relaxed support that is handed down starts."""


@dataclass(frozen=True)
class Exact(Solver):
    r"""Proves the best support: best-first branch and bound, with a bound that gives every output its own diagonal.

    A node has kept groups K and removed groups R. Removed rows are deleted and kept ones eliminated,

    .. math:: H \leftarrow H_{FF} - H_{FK} H_{KK}^{-1} H_{KF}, \quad G \leftarrow G_F - H_{FK} H_{KK}^{-1} G_K,

    which leaves the same problem, smaller. It is bounded by the directional relaxation
    (`osscar_opt.linalg.directional`), a saddle max over diagonals a, min over relaxed supports z, in which a few Newton
    steps are made from the parent's a and z; and, if that does not close it, by the lifted relaxation
    (`osscar_opt.linalg.lifted`), which starts at the same bound and improves it. Every step of either gives a valid
    bound, so none needs to converge. Scores that a step leaves behind fix groups:
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
            enumerated = get_solver("exhaustive", {"certificate": self.certificate})
            return enumerated.propose(problem, start=start, deadline=deadline, report=report)
        return _Search(self, problem, stacks, start, deadline, report).run()


@dataclass(eq=False)
class _Stack:
    """Nodes of equal size, their two relaxations, and where the directional one is."""

    whole: lifted.Lifted
    pairs: directional.Paired
    at: directional.Point
    found: directional.Evaluation
    usage: FloatArray  # (b, limits, m)
    room: FloatArray  # (b, limits)

    def part(self, index: IntArray) -> _Stack:
        arrays = (self.whole.part(index), self.pairs.part(index), self.at.part(index), self.found.part(index))
        return _Stack(*arrays, self.usage[index], self.room[index])


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
            for node in self.open:
                self.ledger.close(node.leaf, node.cites)
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
        states = [State(*each, self.cutoff) for each in zip(subs, base, alone, strict=True)]
        usage, room = np.array([sub.usage for sub in subs]), np.array([sub.room for sub in subs])
        at = self._starting_points(subs, gram)
        stack = _Stack(whole, pairs, at, directional.evaluate(stacks, pairs, at), usage, room)
        barrier = np.array([_FIRST_BARRIER * self._gap(state) / m for state in states])
        while True:
            self.steps += len(states)
            self._directional(states, stack)
            stalled = np.flatnonzero([state.best < self.cutoff and state.stalled for state in states])
            if len(stalled):
                self._lifted([states[i] for i in stalled], stack.part(stalled))
            a, z = stacks.numpy(stack.at.a), stacks.numpy(stack.at.z)
            stay = np.flatnonzero([not self._leaves(state, a[i], z[i]) for i, state in enumerate(states)])
            if len(stay) == 0:
                return
            if len(stay) < len(states):
                states, stack, barrier, z = (
                    [states[i] for i in stay],
                    stack.part(stay),
                    barrier[stay],
                    z[stay],
                )
            slack = stack.room - (stack.usage @ z[:, :, None])[:, :, 0]
            stack.at, length = directional.newton(
                stacks, stack.pairs, stack.at, stack.found, barrier, stack.usage, slack, tight
            )
            stack.found = directional.evaluate(stacks, stack.pairs, stack.at)
            least = np.array([_LAST_BARRIER * self._gap(state) / m for state in states])
            barrier = np.where(length > 0.3, np.maximum(_BARRIER_FALL * barrier, least), barrier)

    def _directional(self, states: list[State], stack: _Stack) -> None:
        """Bounds of the directional relaxation: objective >= psi + score.z - (most score that fits)."""
        stacks, at, found = self.stacks, stack.at, stack.found
        if (
            self.ledger is not None
        ):  # what is written down is a lifted relaxation: the same bound, said in its terms
            q = lifted.quadratic(stacks, stack.whole, directional.multipliers(stacks, stack.pairs, at, found))
            delta, _ = lifted.make_definite(stacks, q, 2.0 * found.score, inside=False)
            self._take_in(states, stack.whole, q, lifted.Point(1.0 - at.z, delta))
            return
        psi, score, z = stacks.numpy(found.psi), stacks.numpy(found.score), stacks.numpy(at.z)
        most, if_removed, if_kept, _ = self._most(states, score)
        values = psi + (score * z).sum(axis=1) - most - self.root.rounding
        for i, state in enumerate(states):
            state.update(float(values[i]), if_removed[i], if_kept[i], None, self.cutoff)

    def _lifted(self, states: list[State], stack: _Stack) -> None:
        """Bounds of the lifted relaxation, from where the directional one ended, by Newton steps with falling barriers.

        With fewer outputs than rows, Lambda is renewed before.
        """
        stacks, at, whole = self.stacks, stack.at, stack.whole
        multipliers = directional.multipliers(stacks, stack.pairs, at, stack.found)
        point = lifted.Point(1.0 - at.z, 2.0 * stack.found.score)
        tight, renewals = self.packing.cardinality_only, _RENEWALS if self.problem.q < self.problem.p else 0
        barrier = np.array([_LIFTED_BARRIER * self._gap(state) / len(state.sub.free) for state in states])
        for turn in range(renewals + 1):
            last = turn == renewals
            q = lifted.quadratic(stacks, whole, multipliers)
            delta, slack_inverse = lifted.make_definite(stacks, q, point.delta)
            point = lifted.Point(point.y, delta)
            for _ in range(_LIFTED_STEPS if last else _RENEWAL_STEPS):
                point, slack_inverse = lifted.newton(
                    stacks, q, point, slack_inverse, barrier, stack.usage, stack.room, tight
                )
                barrier = barrier * (_LIFTED_FALL if last else _RENEWAL_FALL)
            if not last:
                best = lifted.best_multipliers(stacks, whole, point, slack_inverse)
                multipliers = multipliers + _DAMPING * (best - multipliers)
        self._take_in(states, whole, q, point)

    def _gap(self, state: State) -> float:
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

    def _take_in(
        self, states: list[State], whole: lifted.Lifted, q: lifted.Quadratic, at: lifted.Point
    ) -> None:
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

    def _most(
        self, states: list[State], score: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, list[FloatArray]]:
        return self.packing.most(score, [s.sub.usage for s in states], [s.sub.room for s in states])

    # --------------------------------------------------------------------------------------- what comes after

    def _leaves(self, state: State, a: FloatArray, z: FloatArray) -> bool:
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

    def _settle(self, state: State, warm: Warm) -> None:
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

    def _branch(self, state: State, warm: Warm) -> None:
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
