r"""N:M masks of a layer's weights, as many small problems with one Gram matrix.

The outputs of a layer do not meet in the objective:

.. math:: \tfrac12 \mathrm{tr}(W' H W) - \mathrm{tr}(G' W) = \sum_j \tfrac12 w_j' H w_j - g_j' w_j .

So each output, or each block of outputs that share a mask, is a problem of its own: `Problem` with single rows, the M
inputs of a pattern as its ``blocks`` and N as its ``block_keep``.  Every method that handles blocks works on them.

What is proved.  "exact" and "exhaustive" prove each output's optimum, and so the layer's.  "patterns" enumerates one
block of M inputs after another, with all weights refitted: no change within one block improves what it returns, which
in general is not the optimum.  It is, where no two blocks of inputs are coupled in H.  For every method

.. math:: f \ge \text{base} + \lambda \sum_g \min_P \tfrac12 \mathrm{tr}\bigl(
          W^{*\prime}_P\, [(H_{gg}^{-1})_{PP}]^{-1}\, W^*_P\bigr)

is a bound, with the minimum over the patterns P that remove M - N of the inputs of block g, and lambda the least
eigenvalue of D^{-1/2} H D^{-1/2}, D the diagonal blocks of H: for H - lambda D is positive semidefinite, and with
lambda D in place of H the blocks part.  Where H has no other blocks than these, lambda is one and the bound is the
optimum.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike, BoolArray, FloatArray, read_only
from osscar_opt.errors import InputError, OptionError
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations.masks.masked import Masked, checked_mask
from osscar_opt.formulations.masks.pattern import Pattern
from osscar_opt.formulations.masks.rules import RULES
from osscar_opt.formulations.outcome import Bound, judged
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import BoundKind, Solution, Termination, absolute_tolerance
from osscar_opt.linalg.factor import factor

__all__ = ["MaskProblem", "MaskSolution"]

_MOST_PATTERNS = 20_000
_WORST_FIRST = (
    Termination.FAILED,
    Termination.INTERRUPTED,
    Termination.MEMORY_LIMIT,
    Termination.TIME_LIMIT,
    Termination.NODE_LIMIT,
    Termination.ITERATION_LIMIT,
    Termination.GAP_LIMIT,
    Termination.LOCAL_OPTIMUM,
    Termination.COMPLETED,
)


@dataclass(frozen=True, eq=False, repr=False)
class MaskProblem:
    """Which single weights of a layer stay, so many of every M inputs.

    Parameters
    ----------
    problem : Problem
        The layer: its gram, cross and dense weights.  Its groups and limits are not looked at.
    pattern : str or Pattern
        "2:4", "4:8", ...
    columns : int, optional
        Outputs that share a mask.

    Examples
    --------
    >>> layer = Problem(np.eye(4), dense_weights=np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0], [3.0, 8.0]]))
    >>> MaskProblem(layer, "2:4").solve().mask.astype(int)
    array([[0, 0],
           [0, 0],
           [1, 1],
           [1, 1]])
    """

    problem: Problem
    pattern: Pattern

    def __init__(self, problem: Problem, pattern: str | Pattern, *, columns: int = 1) -> None:
        parsed = Pattern.parse(pattern, columns)
        parsed.blocks(problem.p)
        parsed.outputs(problem.q)
        object.__setattr__(self, "problem", problem)
        object.__setattr__(self, "pattern", parsed)

    @property
    def parts(self) -> int:
        """Number of masks: problems that do not meet.

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(4), np.ones((4, 6))), "2:4", columns=3).parts
        2
        """
        return self.problem.q // self.pattern.columns

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the layer's gram, cross and weights, and of the pattern.

        Examples
        --------
        >>> layer = Problem(np.eye(4), np.ones((4, 1)))
        >>> MaskProblem(layer, "2:4").hash == MaskProblem(layer, "1:4").hash
        False
        """
        layer = self.problem
        return content_hash(
            gram=layer.gram,
            cross=None if layer.dense_is_optimal else layer.cross,
            dense_weights=layer.dense_weights,
            pattern=np.array([self.pattern.keep, self.pattern.of, self.pattern.columns]),
        )

    def part(self, number: int) -> Problem:
        """The problem of one mask: single rows, with blocks; its objective begins at zero.

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(4), np.ones((4, 1))), "2:4").part(0).limits.names
        ('block_keep[0]',)
        """
        if not 0 <= number < self.parts:
            raise InputError(f"there is no part {number}: parts are 0..{self.parts - 1}.")
        layer, own = self.problem, self.pattern.outputs(self.problem.q)[number]
        blocks = self.pattern.blocks(layer.p)
        dense = None if layer.dense_weights is None else layer.dense_weights[:, own]
        return Problem(
            layer.gram,
            None if layer.dense_is_optimal else layer.cross[:, own],
            dense_weights=dense,
            blocks=blocks,
            block_keep=np.full(layer.p // self.pattern.of, self.pattern.keep),
            name=f"{layer.name} mask {number} of {self.pattern}".strip(),
            copy=False,
        )

    def objective(self, weights: Any) -> float:
        """Objective of given weights, whatever their zeros: that of the layer.

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").objective([[0.0], [2.0]])
        0.5
        """
        return self.problem.objective(weights)

    def refit(self, mask: ArrayLike) -> FloatArray:
        """The best weights with a mask, a least-squares fit for each different mask of an output.

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").refit([[False], [True]]).ravel()
        array([0., 2.])
        """
        kept = checked_mask(mask, self.problem.cross.shape)
        weights = np.zeros(kept.shape)
        distinct, which = np.unique(kept.T, axis=0, return_inverse=True)
        for number, column in enumerate(distinct):
            rows = np.flatnonzero(column & self.problem.live_rows)
            outputs = np.flatnonzero(which.ravel() == number)
            if len(rows):
                right = self.problem.cross[np.ix_(rows, outputs)]
                weights[np.ix_(rows, outputs)] = factor(self.problem.gram, rows).solve(right)
        return weights

    def value(self, mask: ArrayLike) -> float:
        """The objective of the best weights with a mask.

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").value([[True], [False]])
        2.0
        """
        return self.objective(self.refit(mask))

    def violation(self, mask: ArrayLike) -> str:
        """One clause saying how a mask breaks the pattern, or "".

        Examples
        --------
        >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").violation([[True], [False]])
        ''
        """
        return self.pattern.violation(checked_mask(mask, self.problem.cross.shape))

    def bound(self) -> Bound:
        """The bound by blocks of inputs of the module's docstring, certified; none if a block has too many patterns.

        Examples
        --------
        >>> MaskProblem(Problem(np.diag([9.0, 1.0]), dense_weights=[[1.0], [2.0]]), "1:2").bound().value
        2.0
        """
        pattern, layer = self.pattern, self.problem
        gone = pattern.of - pattern.keep
        if math.comb(pattern.of, gone) > _MOST_PATTERNS or not layer.live_rows.all():
            return Bound(layer.base, BoundKind.CERTIFIED)
        if gone == 0:
            return Bound(layer.base, BoundKind.CERTIFIED)
        blocks = np.arange(layer.p).reshape(-1, pattern.of)
        least = np.zeros((len(blocks), self.parts))
        whitened = np.array(layer.gram)
        for g, rows in enumerate(blocks):
            own = layer.gram[np.ix_(rows, rows)]
            lower = np.linalg.cholesky(own)
            whitened[rows] = np.linalg.solve(lower, whitened[rows])
            whitened[:, rows] = np.linalg.solve(lower, whitened[:, rows].T).T
            inverse = np.linalg.inv(own)
            losses = []
            for removed in map(list, itertools.combinations(range(pattern.of), gone)):
                part = layer.optimum[rows[removed]]
                own_loss = 0.5 * part * np.linalg.solve(inverse[np.ix_(removed, removed)], part)
                losses.append(own_loss.sum(axis=0).reshape(self.parts, pattern.columns).sum(axis=1))
            least[g] = np.min(losses, axis=0)
        share = max(float(np.linalg.eigvalsh(whitened)[0]) - 1e-13 * layer.p, 0.0)
        return Bound(layer.base + share * float(least.sum()), BoundKind.CERTIFIED)

    def solve(
        self,
        method: Any = "patterns",
        *,
        refit: bool = True,
        time_limit: float | None = None,
        on_part: Callable[[int, int], object] | None = None,
        **options: Any,
    ) -> MaskSolution:
        """Choose all masks.

        Parameters
        ----------
        method : str or Solver, optional
            A rule of `osscar_opt.formulations.masks.rules` ("magnitude", "wanda", "sparsegpt"; not the methods of
            these names, which choose groups), or any method of `Problem.solve` that handles blocks, for one mask
            after another: "patterns", "swap", "search", "greedy", and "exact" or "exhaustive" for proofs.
        refit : bool, optional
            For rules: whether the weights are fitted anew to the mask, or left as the rule leaves them.
        time_limit : float, optional
            Seconds in all; each mask may take its share of what is left.
        on_part : callable, optional
            Called with the number of masks done, and of all, after each.
        **options
            Of the method.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> layer = Problem.from_data(rng.normal(size=(40, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(8, 3)))
        >>> masks = MaskProblem(layer, "2:4")
        >>> proved, quick = masks.solve("exact"), masks.solve("wanda")
        >>> proved.status.value, proved.objective <= quick.objective
        ('optimal', True)
        """
        began = time.perf_counter()
        stats: dict[str, Any] = {}
        termination, claimed, message = Termination.COMPLETED, Bound(), ""
        solutions: list[Solution] = []
        if isinstance(method, str) and method in RULES:
            if options:
                raise OptionError(f"the rule {method!r} has no options, but was given {', '.join(options)}.")
            mask, weights = RULES[method](self.problem, self.pattern)
            weights = self.refit(mask) if refit else weights
            options = {"refit": refit}
        else:
            solutions = self._solved(method, time_limit, on_part, options)
            mask, weights = self._gathered(solutions)
            method = solutions[0].method
            options = dict(solutions[0].options)
            termination = min((s.termination for s in solutions), key=_WORST_FIRST.index)
            stats = {"parts": len(solutions), "optimal": sum(s.status == "optimal" for s in solutions)}
            known = len(solutions) == self.parts and all(
                s.bound_kind is not BoundKind.NONE for s in solutions
            )
            if known:
                checked = all(s.bound_kind is BoundKind.CERTIFIED for s in solutions)
                kind = BoundKind.CERTIFIED if checked else BoundKind.CLAIMED
                claimed = Bound(self.problem.base + sum(s.bound for s in solutions), kind)
            elif len(solutions) < self.parts:
                message = "interrupted: the masks that were not reached are those of the rule 'wanda'."
        return MaskSolution(
            problem=self,
            mask=read_only(mask),
            weights=read_only(weights),
            method=method,
            problem_hash=self.hash,
            parts=tuple(solutions),
            termination=termination,
            message=message,
            options=options,
            stats=stats,
            solve_time=time.perf_counter() - began,
            **judged(self.objective(weights), self._bound.better(claimed), self._rounding),
        )

    def __repr__(self) -> str:
        return f"MaskProblem(p={self.problem.p}, q={self.problem.q}, {self.pattern})"

    @cached_property
    def _bound(self) -> Bound:
        return self.bound()

    @property
    def _rounding(self) -> float:
        return absolute_tolerance(self.problem) + 1e-12 * abs(self.problem.constant - self.problem.base)

    def _solved(
        self,
        method: Any,
        time_limit: float | None,
        on_part: Callable[[int, int], object] | None,
        options: dict[str, Any],
    ) -> list[Solution]:
        end = None if time_limit is None else time.monotonic() + time_limit
        solutions = []
        for number in range(self.parts):
            share = None
            if end is not None:
                share = max(end - time.monotonic(), 0.01 * self.parts) / (self.parts - number)
            solutions.append(
                self.part(number).solve(method, time_limit=share, **({"progress": False} | options))
            )
            if on_part is not None:
                on_part(number + 1, self.parts)
            if solutions[-1].termination is Termination.INTERRUPTED:
                break
        return solutions

    def _gathered(self, solutions: list[Solution]) -> tuple[BoolArray, FloatArray]:
        columns = self.pattern.columns
        mask = np.repeat(np.stack([s.support for s in solutions], axis=1), columns, axis=1)
        weights = np.hstack([s.weights for s in solutions])
        done = mask.shape[1]
        if done == self.problem.q:
            return mask, weights
        whole, _ = RULES["wanda"](self.problem, self.pattern)
        whole[:, :done] = mask
        fitted = self.refit(whole)
        fitted[:, :done] = weights
        return whole, fitted


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MaskSolution(Masked):
    """Masks with their weights, and what is known of them.

    Attributes
    ----------
    problem : MaskProblem
    mask : (p, q) mask
        True = the weight stays.
    weights : (p, q) array
        Exactly zero outside the mask.
    parts : tuple of Solution
        Those of the masks, with their certificates; empty for rules, which choose all masks together.

    Examples
    --------
    >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").solve("magnitude")
    MaskSolution(magnitude, objective=0.5, gap=0, optimal, completed)
    """

    problem: MaskProblem
    parts: tuple[Solution, ...] = ()
