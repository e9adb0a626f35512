"""Branch and bound on the directional perspective relaxation, many nodes at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination, absolute_tolerance
from osscar_opt.linalg.directional import Point, Relaxation, evaluate, feasible_start, newton, relax
from osscar_opt.linalg.stacks import Stacks, make_stacks
from osscar_opt.solvers._nodes import Node, OpenNodes, Packing, Root, Subproblem
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
    node_limit: int = field(default=0, metadata={"least": 0})
    memory: float = field(default=4.0, metadata={"least": 0})
    batch: int = field(default=0, metadata={"least": 0})
    device: str = "cpu"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        if problem.limits.supports <= _ENUMERATED:
            enumerated = solver_class("exhaustive")()
            return enumerated.propose(problem, start=start, deadline=deadline, report=report)
        return _Search(self, problem, start, deadline, report).run()


class _Search:
    """The state of one branch and bound."""

    def __init__(
        self,
        options: Exact,
        problem: Problem,
        start: BoolArray | None,
        deadline: Deadline,
        report: Report,
    ) -> None:
        self.options, self.problem, self.deadline, self.report = options, problem, deadline, report
        self.stacks: Stacks = make_stacks(options.device)
        self.tiny = absolute_tolerance(problem)
        self.walk = _first_walk(problem, start, deadline, report)
        self.best_support = self.walk.best_support
        self.best_value = problem.value(self.best_support)
        self.root = Root(problem)
        self.packing = Packing(problem.limits)
        self.open = OpenNodes(problem.n, options.memory)
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
        n = self.problem.n
        self.open.push(Node(np.zeros(n, bool), np.zeros(n, bool), None, None, self.problem.base))
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
        return Proposal(self.best_support, lower_bound=self.bound, stats=stats, termination=termination)

    def _batch_size(self, free: int) -> int:
        return self.options.batch or max(1, _STACK_NUMBERS // max(1, (free * self.root.size) ** 2))

    def _process(self, nodes: list[Node]) -> None:
        """Bound nodes, and close, reduce or branch each of them."""
        waiting: dict[int, list[Subproblem]] = {}
        for node in nodes:
            self.nodes += node.fresh
            node.fresh = False
            if node.bound >= self.cutoff:
                self._close(node.bound)
            elif (sub := self._subproblem(node)) is not None:
                waiting.setdefault(len(sub.free), []).append(sub)
        for subs in waiting.values():
            self._bound(subs)

    def _subproblem(self, node: Node) -> Subproblem | None:
        """What is left to decide at a node, or None if nothing is."""
        room = self.packing.room(node.kept)
        if (room < 0).any():  # every group of too many has to stay for an improvement: there is none
            return None
        free = ~(node.kept | node.removed)
        too_much = free & ~self.packing.fits(room)
        node.removed |= too_much
        free &= ~too_much
        if self.packing.all_fit(free, room):
            support = node.kept | free
            self._offer(support)
            self._close(self.root.value(support))
            return None
        return self.root.reduce(node, np.flatnonzero(free), room)

    def _close(self, bound: float) -> None:
        self.closed_bound = min(self.closed_bound, bound)

    # ------------------------------------------------------------------------------------- bounds of a batch

    def _bound(self, subs: list[Subproblem]) -> None:
        """Newton steps for nodes of equal size, until each is closed, can be reduced, or has to be branched on."""
        stacks, m = self.stacks, len(subs[0].free)
        node = relax(
            stacks,
            np.stack([sub.gram for sub in subs]),
            np.stack([sub.cross for sub in subs]),
            np.array([sub.constant for sub in subs]),
            self.root.size,
        )
        states = [_State(sub) for sub in subs]
        alone = stacks.numpy(node.base)[:, None] + stacks.numpy(node.alone) - self.root.rounding
        for state, base, losses in zip(states, stacks.numpy(node.base), alone, strict=True):
            state.best = max(state.best, float(base) - self.root.rounding)
            state.fix(state.keep, losses, self.cutoff)
        at = self._starting_points(subs, node)
        z = stacks.numpy(at.z)
        barrier = np.array([_FIRST_BARRIER * self._gap(state) / m for state in states])
        while states:
            found = evaluate(stacks, node, at)
            psi, score = stacks.numpy(found.psi), stacks.numpy(found.score)
            self.steps += len(states)
            most, if_removed, if_kept, _ = self.packing.most(
                score, [s.sub.usage for s in states], [s.sub.room for s in states]
            )
            bounds = psi + (score * z).sum(axis=1) - most - self.root.rounding
            stop = self.deadline.expired()
            stay = np.zeros(len(states), dtype=bool)
            for i, state in enumerate(states):
                state.update(float(bounds[i]), if_removed[i], if_kept[i], self.cutoff)
                if state.best >= self.cutoff:
                    self._close(state.best)
                elif stop or state.fixable:
                    self._requeue(state, a=stacks.numpy(at.a[i]), z=z[i])
                elif state.stalled:
                    self._branch(state, a=stacks.numpy(at.a[i]), z=z[i])
                else:
                    stay[i] = True
            if not stay.all():
                index = np.flatnonzero(stay)
                states = [states[i] for i in index]
                if not states:
                    return
                node, at, found = node.part(index), at.part(index), found.part(index)
                barrier, z = barrier[index], z[index]
            usage = np.stack([state.sub.usage for state in states])
            room = np.stack([state.sub.room for state in states])
            room = np.floor(room) if self.packing.cardinality_only else room
            slack = room - (usage @ z[:, :, None])[:, :, 0]
            at, length = newton(
                stacks, node, at, found, barrier, usage, slack, tight=self.packing.cardinality_only
            )
            z = stacks.numpy(at.z)
            least = np.array([_LAST_BARRIER * self._gap(state) / m for state in states])
            barrier = np.where(length > 0.3, np.maximum(_BARRIER_FALL * barrier, least), barrier)

    def _gap(self, state: _State) -> float:
        """What is left to the incumbent at a node, and a little more than nothing."""
        whole = self.best_value - self.problem.base
        return max(self.best_value - state.best, 1e-6 * whole, 1e-300)

    def _starting_points(self, subs: list[Subproblem], node: Relaxation) -> Point:
        first = 0.5 * self.root.least_eigenvalue
        a = [np.full(len(s.free), first) if s.node.a is None else s.node.a[s.free] for s in subs]
        half = [np.full(len(s.free), 0.5) if s.node.z is None else s.node.z[s.free] for s in subs]
        z = [self.packing.interior(x, s.usage, s.room, _EDGE) for x, s in zip(half, subs, strict=True)]
        start, inverse = feasible_start(self.stacks, node.gram, self.stacks.asarray(np.stack(a)))
        return Point(start, self.stacks.asarray(np.stack(z)), inverse)

    # --------------------------------------------------------------------------------------- what comes after

    def _requeue(self, state: _State, a: FloatArray, z: FloatArray) -> None:
        """Put a node back, with the groups fixed that its bounds decide."""
        self._close(state.closed_bound)
        node, free = state.sub.node, state.sub.free
        node.kept[free[state.keep]] = True
        node.removed[free[state.remove]] = True
        self.fixed += state.fixes
        node.a, node.z = _spread(a, free, len(node.kept)), _spread(z, free, len(node.kept))
        node.bound = state.best
        self.open.push(node)

    def _branch(self, state: _State, a: FloatArray, z: FloatArray) -> None:
        sub = state.sub
        self._offer(self.packing.round(sub.node.kept, sub.free, z))
        undecided = np.where(state.keep | state.remove, -1.0, np.minimum(z, 1.0 - z) * sub.gain)
        pick = int(np.argmax(undecided))
        self._requeue_children(state, pick, _spread(a, sub.free, self.problem.n), _spread(z, sub.free, self.problem.n))

    def _requeue_children(self, state: _State, pick: int, a: FloatArray, z: FloatArray) -> None:
        self._close(state.closed_bound)
        node, free = state.sub.node, state.sub.free
        self.fixed += state.fixes
        kept, removed = node.kept.copy(), node.removed.copy()
        kept[free[state.keep]] = True
        removed[free[state.remove]] = True
        for keeps in (False, True):
            gain = state.if_kept[pick] if keeps else state.if_removed[pick]
            child = Node(kept.copy(), removed.copy(), a, z, max(state.best, state.last + gain))
            (child.kept if keeps else child.removed)[free[pick]] = True
            self.open.push(child)

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
    """How far the bounding of one node has come."""

    def __init__(self, sub: Subproblem) -> None:
        self.sub = sub
        self.best, self.last, self.steps = sub.node.bound, -math.inf, 0
        self.keep = np.zeros(len(sub.free), dtype=bool)
        self.remove = np.zeros(len(sub.free), dtype=bool)
        self.if_removed = self.if_kept = np.zeros(len(sub.free))
        self.closed_bound = math.inf  # least bound of the choices that fixed groups rule out
        self.progress = math.inf  # share of the gap closed by the latest step

    def update(self, bound: float, if_removed: FloatArray, if_kept: FloatArray, cutoff: float) -> None:
        """Take in the bound of a step, and fix what it decides."""
        self.steps += 1
        self.progress = (bound - self.best) / max(cutoff - bound, 1e-300) if self.steps > 1 else math.inf
        self.best, self.last = max(self.best, bound), bound
        self.if_removed, self.if_kept = if_removed, if_kept
        self.fix(self.keep, bound + if_removed, cutoff)
        self.fix(self.remove, bound + if_kept, cutoff)

    def fix(self, decided: BoolArray, otherwise: FloatArray, cutoff: float) -> None:
        """Decide the groups that cannot be decided `otherwise` with a value below the cutoff."""
        new = (otherwise >= cutoff) & ~(self.keep | self.remove)
        decided |= new
        self.closed_bound = min(self.closed_bound, float(otherwise[new].min(initial=math.inf)))

    @property
    def fixes(self) -> int:
        return int(self.keep.sum() + self.remove.sum())

    @property
    def fixable(self) -> bool:
        """Whether so many groups can be fixed that the node is better made smaller at once."""
        return self.fixes >= max(1.0, _FIX_EARLY * len(self.keep))

    @property
    def stalled(self) -> bool:
        if self.sub.node.a is None:
            return self.steps >= _ROOT_STEPS or (self.steps >= _NODE_STEPS and self.progress < _ROOT_STALL)
        return self.steps >= _NODE_STEPS or (self.steps >= _LEAST_STEPS and self.progress < _STALL)


def _spread(values: FloatArray, free: IntArray, n: int) -> FloatArray:
    out = np.zeros(n)
    out[free] = values
    return out


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
