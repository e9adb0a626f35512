"""Blocks of groups one after another, each by enumeration of what it may keep: the method for N:M masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import CapabilityError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import diagonal_scores, ranked_support
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.factor import factor
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Patterns"]

_MOST_PATTERNS = 20_000
_WORTH = 1e-12
"""Part of the constant by which another pattern must be better to be taken: less is rounding."""


@dataclass(frozen=True)
class Patterns(Solver):
    r"""Enumerates the patterns of one block of groups with all others fixed, and goes round until none improves.

    With R the rows of a block, S the rows that the other blocks keep, and the Schur complement and residual

    .. math:: B = H_{RR} - H_{RS} H_{SS}^{-1} H_{SR}, \qquad r = G_R - H_{RS} H_{SS}^{-1} G_S,

    keeping the part T of R explains :math:`\tfrac12 \mathrm{tr}(r_T' B_{TT}^{-1} r_T)` more, all weights refitted.
    For 2:4 masks a block has six patterns of two.

    It begins with everything kept and decides block after block, each with all later blocks still whole: the order
    of SparseGPT (Frantar, Alistarh 2023), but by the joint error of a pattern, not the errors of single weights.
    Then come rounds over all blocks.  What it ends with cannot be improved within any one block.  It is optimal where H
    couples no two blocks; in general it need not be.

    Blocks are those of the limits, where the problem has blocks and no other limit; else runs of ``size`` groups, from
    a support ranked by separate scores.

    Parameters
    ----------
    rounds : int
        Rounds over all blocks after the first pass, at most; 0 stops after it.
    size : int
        Groups in a block where the problem has none.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> gram = np.eye(4) + 0.5
    >>> problem = Problem(gram, [[1.0], [2.0], [3.0], [4.0]], blocks=[0, 0, 1, 1], block_keep=[1, 1])
    >>> problem.solve("patterns").kept
    array([1, 3])
    """

    name: ClassVar[str] = "patterns"
    unhelpful: ClassVar[frozenset[str]] = frozenset()
    rounds: int = field(default=20, metadata={"least": 0})
    size: int = field(default=4, metadata={"least": 1})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        blocks = list(_blocks(problem, self.size))
        own = _has_blocks_only(problem)
        if start is not None:
            support = start.copy()
        elif own:
            support = np.ones(problem.n, dtype=bool)
        else:
            support = ranked_support(problem, diagonal_scores(problem))
        rounds, changed, total = 0, 0, (self.rounds + 1) * len(blocks)
        decided = start is not None or not own
        swept = _Swept(problem)
        while True:
            improved = 0
            swept.load(support)
            for number, block in enumerate(blocks):
                if deadline.expired():
                    return self._stopped(problem, support, rounds, changed)
                improved += _improve(problem, swept, support, block, force=not decided)
                report.progress(rounds * len(blocks) + number + 1, total, "blocks")
            changed += improved
            report.incumbent(support, None)
            decided = True
            if improved == 0 or rounds == self.rounds:
                break
            rounds += 1
        ended = Termination.LOCAL_OPTIMUM if improved == 0 else Termination.ITERATION_LIMIT
        return Proposal(support, stats={"rounds": rounds, "changes": changed}, termination=ended)

    def _stopped(self, problem: Problem, support: BoolArray, rounds: int, changed: int) -> Proposal:
        """In the first pass the later blocks are still whole: what of them scores best by itself stays."""
        if not problem.feasible(support):
            scores = np.where(support, diagonal_scores(problem), -1.0)
            support = ranked_support(problem, scores)
        stats = {"rounds": rounds, "changes": changed}
        return Proposal(support, stats=stats, termination=Termination.TIME_LIMIT)


def _has_blocks_only(problem: Problem) -> bool:
    return problem.block_keep is not None and problem.keep is None and problem.budget is None


def _blocks(problem: Problem, size: int) -> Iterator[IntArray]:
    if _has_blocks_only(problem) and problem.blocks is not None and problem.block_keep is not None:
        for label, keep in enumerate(problem.block_keep):
            block = np.flatnonzero(problem.blocks == label)
            if len(block) and int(keep) > 0:
                _require_few(len(block), min(int(keep), len(block)))
            if len(block):
                yield block
        return
    _require_few(size, None)
    for first in range(0, problem.n, size):
        yield np.arange(first, min(first + size, problem.n))


def _require_few(size: int, keep: int | None) -> None:
    count = sum(1 for _ in itertools.islice(_choices(size, keep), _MOST_PATTERNS + 1))
    if count > _MOST_PATTERNS:
        raise CapabilityError(
            f"a block of {size} groups has more than {_MOST_PATTERNS} patterns to enumerate; use method='swap' or "
            "method='search'."
        )


def _choices(size: int, keep: int | None) -> Iterator[tuple[int, ...]]:
    """All subsets, or those of exactly `keep`: more kept is never worse."""
    sizes = range(size + 1) if keep is None else (keep,)
    return itertools.chain.from_iterable(itertools.combinations(range(size), k) for k in sizes)


class _Swept:
    """H and G swept on a support, in units in which the diagonal of H is one.

    With S kept and P not: -inv(H_SS), its product with H_SP, the Schur complement on P; weights on S, residuals on P.
    The part of a block alone tells what any pattern of it explains; only a change costs O(p^2 + p q).
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._dead = ~problem.live_rows
        self._scale = 1.0 / np.sqrt(np.where(self._dead, 1.0, problem.gram.diagonal()))

    def load(self, support: BoolArray) -> None:
        """Begin anew at a support, without what was gathered of rounding."""
        h = self._scale[:, None] * self._problem.gram * self._scale
        h[self._dead, self._dead] = 1.0
        g = self._scale[:, None] * self._problem.cross
        kept = self._problem.groups.row_mask(support)
        s, p = np.flatnonzero(kept), np.flatnonzero(~kept)
        self.t, self.f = h, g
        if len(s) == 0:
            return
        between = h[np.ix_(s, p)]
        solved = factor(h[np.ix_(s, s)]).solve(np.hstack([np.eye(len(s)), between, g[s]]))
        inverse, across, weights = np.split(solved, [len(s), len(s) + len(p)], axis=1)
        h[np.ix_(s, s)] = -0.5 * (inverse + inverse.T)
        h[np.ix_(p, p)] -= between.T @ across
        h[np.ix_(s, p)], h[np.ix_(p, s)] = across, across.T
        g[p] -= between.T @ weights
        g[s] = weights

    def reduced(self, own: IntArray, kept: IntArray) -> tuple[FloatArray, FloatArray]:
        """B and r of the rows `own`, of which those at `kept` are in the support."""
        t, f = self.t[np.ix_(own, own)], self.f[own]
        if len(kept):
            _sweep(t, f, kept, -1.0)
        return t, f

    def move(self, rows: IntArray, sign: float) -> None:
        """Let the rows of a group enter (1) or leave (-1)."""
        _sweep(self.t, self.f, rows, sign)


def _sweep(t: FloatArray, f: FloatArray, rows: IntArray, sign: float) -> None:
    inverse = np.linalg.inv(t[np.ix_(rows, rows)])
    across = t[:, rows] @ inverse
    f_rows = inverse @ f[rows]
    f -= t[:, rows] @ f_rows
    t -= across @ t[rows]
    f[rows] = sign * f_rows
    t[:, rows], t[rows] = sign * across, sign * across.T
    t[np.ix_(rows, rows)] = -inverse


def _improve(problem: Problem, swept: _Swept, support: BoolArray, block: IntArray, *, force: bool) -> int:
    """Put the best pattern of one block into `support`; whether that changed it.

    With `force` whatever stands there is infeasible, and any pattern is better.
    """
    rows = [problem.groups.rows(int(group)) for group in block]
    ends = np.cumsum([len(part) for part in rows])
    local = [np.arange(end - len(part), end) for end, part in zip(ends, rows, strict=True)]
    chosen = support[block]
    present = [part for part, stays in zip(local, chosen, strict=True) if stays]
    b, r = swept.reduced(np.concatenate(rows), np.concatenate(present) if present else np.zeros(0, np.int64))
    best = -2.0 if force else _explained(b, r, present) + _WORTH * abs(problem.constant)
    found = None
    for choice in _allowed(problem, support, block):
        value = _explained(b, r, [local[i] for i in choice])
        if value > best:
            best, found = value, choice
    if found is None:
        return 0
    after = np.isin(np.arange(len(block)), found)
    for sign, moving in ((-1.0, chosen & ~after), (1.0, after & ~chosen)):
        for group in np.flatnonzero(moving):
            swept.move(rows[group], sign)
    support[block] = after
    return int(np.any(after != chosen))


def _allowed(problem: Problem, support: BoolArray, block: IntArray) -> Iterator[tuple[int, ...]]:
    if _has_blocks_only(problem) and problem.blocks is not None and problem.block_keep is not None:
        yield from _choices(len(block), min(int(problem.block_keep[problem.blocks[block[0]]]), len(block)))
        return
    trial = support.copy()
    for choice in _choices(len(block), None):
        trial[block] = np.isin(np.arange(len(block)), choice)
        if problem.feasible(trial):
            yield choice


def _explained(b: FloatArray, r: FloatArray, parts: list[IntArray]) -> float:
    if not parts:
        return 0.0
    t = np.concatenate(parts)
    try:
        return 0.5 * float(np.sum(r[t] * np.linalg.solve(b[np.ix_(t, t)], r[t])))
    except np.linalg.LinAlgError:
        return -1.0
