"""Presolve: named reductions to a smaller problem whose supports have the same objective values.

Each reduction decides some groups (kept or removed) or rewrites the data, and never changes the value of a support:
the objective of a support of the reduced problem equals that of its lift.  Bounds therefore need no translation.

    forced        always_remove: rows and columns are deleted.  always_keep, K: with F the rest,
                      H <- H_FF - H_FK inv(H_KK) H_KF,   G <- G_F - H_FK inv(H_KK) G_K
                  (Schur complement), and every limit is lowered by what K uses.
    dead_inputs   groups all of whose rows are dead explain nothing: removed.  Dead rows inside other groups get the
                  mean diagonal, so that the matrix is positive definite; their weights stay zero.
    rank          q > p: G is replaced by the triangular factor R' of G' = Q R, p x p, with the same G G'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import qr

from osscar_opt._typing import BoolArray, FloatArray, IntArray, read_only
from osscar_opt.certificates import Certificate
from osscar_opt.errors import InputError
from osscar_opt.formulations._budgets import Budgets
from osscar_opt.formulations._layer import mirror
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.factor import factor, product

__all__ = ["REDUCTIONS", "Presolved", "Reduction", "Step", "presolve"]

_ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Step:
    """One applied reduction, with its way back.

    Attributes
    ----------
    problem : Problem
        The reduced problem.
    left : array of int
        Which groups of the problem before are groups 0, 1, ... of this one.
    kept : mask
        Over the groups of the problem before: decided to stay.
    detail : str
        What was done, in a few words.

    Examples
    --------
    >>> problem = Problem(np.diag([1.0, 0.0]), [[1.0], [0.0]])
    >>> step = REDUCTIONS["dead_inputs"].apply(problem)
    >>> step.detail, step.lift_support(np.array([True]))
    ('1 dead groups removed, 0 dead rows decoupled', array([ True, False]))
    """

    problem: Problem
    left: IntArray
    kept: BoolArray
    detail: str

    def lift_support(self, support: BoolArray) -> BoolArray:
        """Support of the problem before that stands for a support of the reduced one.

        Examples
        --------
        >>> problem = Problem(np.eye(3), np.ones((3, 1)), always_keep=[2], always_remove=[0])
        >>> REDUCTIONS["forced"].apply(problem).lift_support(np.array([False]))
        array([False, False,  True])
        """
        lifted = self.kept.copy()
        lifted[self.left] = support
        return lifted

    def restrict_support(self, support: BoolArray) -> BoolArray:
        """What is left to decide of a support of the problem before.

        Examples
        --------
        >>> problem = Problem(np.eye(3), np.ones((3, 1)), always_keep=[2])
        >>> REDUCTIONS["forced"].apply(problem).restrict_support(np.array([False, True, True]))
        array([False,  True])
        """
        return support[self.left]


@dataclass(frozen=True)
class Reduction:
    """A named reduction; `apply` returns None where there is nothing to reduce.

    Examples
    --------
    >>> REDUCTIONS["rank"].apply(Problem(np.eye(2), np.ones((2, 5)))).problem.q
    2
    """

    name: str
    summary: str
    apply: Callable[[Problem], Step | None]


@dataclass(frozen=True, eq=False)
class Presolved:
    """A problem after presolve, with the way back.

    Attributes
    ----------
    original, problem : Problem
        Before and after.
    steps : tuple of (str, Step)
        Names and steps of the reductions that did something, in the order applied.

    Examples
    --------
    >>> presolved = presolve(Problem(np.eye(3), np.ones((3, 1)), keep=2, always_keep=[0]))
    >>> presolved.problem
    Problem(p=2, q=1, groups=Groups(n=2, sizes=1), keep=1)
    >>> presolved.lift_support(np.array([False, True]))
    array([ True, False,  True])
    """

    original: Problem
    problem: Problem
    steps: tuple[tuple[str, Step], ...]

    @property
    def log(self) -> tuple[str, ...]:
        """What was done, one text per reduction.

        Examples
        --------
        >>> presolve(Problem(np.eye(3), np.ones((3, 1)), always_keep=[0])).log
        ('forced: 1 kept and 0 removed',)
        """
        return tuple(f"{name}: {step.detail}" for name, step in self.steps)

    def lift_support(self, support: BoolArray) -> BoolArray:
        """Support of the original problem that stands for a support of the presolved one.

        Examples
        --------
        >>> presolve(Problem(np.eye(2), np.ones((2, 1)), always_remove=[0])).lift_support(np.array([True]))
        array([False,  True])
        """
        for _, step in reversed(self.steps):
            support = step.lift_support(support)
        return support

    def restrict_support(self, support: BoolArray) -> BoolArray:
        """Support of the presolved problem that is left of a support of the original.

        Examples
        --------
        >>> presolve(Problem(np.eye(2), np.ones((2, 1)), always_remove=[0])).restrict_support(np.array([False, True]))
        array([ True])
        """
        for _, step in self.steps:
            support = step.restrict_support(support)
        return support

    def lift_certificate(self, certificate: Certificate) -> Certificate:
        """Certificate of the original problem that says the same as one of the presolved problem.

        Raises
        ------
        InputError
            If the certificate is not about the presolved problem's groups.

        Examples
        --------
        >>> from osscar_opt.certificates import ProofTree
        >>> problem = Problem(np.eye(3), np.ones((3, 1)), keep=2, always_keep=[0])
        >>> presolved = presolve(problem)
        >>> tree = ProofTree.of(presolved.problem)
        >>> tree.close_enumerated(0)
        >>> certificate = Certificate.of(presolved.problem, tree, bound=0.5)
        >>> presolved.lift_certificate(certificate).check(problem).valid
        True
        """
        groups, before = np.arange(self.original.n), self.original
        columns = None
        for _, step in self.steps:
            groups = groups[step.left]
            if step.problem.q != before.q:  # G was replaced by G Q, with G = G Q Q'
                columns = qr(before.cross.T, mode="economic", check_finite=False)[0]
            before = step.problem
        support = None if certificate.support is None else self.lift_support(certificate.support)
        return certificate.lifted(self.original, groups, columns=columns, support=support)


def presolve(problem: Problem, names: bool | Collection[str] = True) -> Presolved:
    """Apply reductions.

    Parameters
    ----------
    problem : Problem
    names : bool or collection of str, optional
        True for all, False for none, or the names of those wanted.

    Raises
    ------
    InputError
        If a name is not that of a reduction.

    Examples
    --------
    >>> presolve(Problem(np.eye(2), np.ones((2, 5))), names=["rank"]).log
    ('rank: 5 columns replaced by 2',)
    """
    wanted = set(REDUCTIONS if names is True else names or ())
    unknown = sorted(wanted - set(REDUCTIONS))
    if unknown:
        raise InputError(f"there is no reduction {unknown[0]!r}: reductions are {', '.join(REDUCTIONS)}.")
    steps = []
    reduced = problem
    for name, reduction in REDUCTIONS.items():
        step = reduction.apply(reduced) if name in wanted else None
        if step is not None:
            steps.append((name, step))
            reduced = step.problem
    return Presolved(problem, reduced, tuple(steps))


def _forced(problem: Problem) -> Step | None:
    kept, removed = problem.always_keep, problem.always_remove
    if not (kept.any() or removed.any()):
        return None
    free = ~(kept | removed)
    rows = np.flatnonzero(problem.groups.row_mask(free))
    kept_rows = np.flatnonzero(problem.groups.row_mask(kept) & problem.live_rows)
    optimum, base = problem.optimum, problem.base
    if removed.any():  # before the new gram is made: the factor of the refit is gone by then
        optimum = problem.refit(~removed)
        base = problem.objective(optimum)
    optimum = optimum[rows]
    gram, cross = _schur_complement(problem, rows, kept_rows)
    reduced = _reduced(problem, free, kept, gram=gram, cross=cross, _level=("base", base))
    reduced.__dict__["optimum"] = read_only(optimum)
    return Step(reduced, np.flatnonzero(free), kept, f"{kept.sum()} kept and {removed.sum()} removed")


def _schur_complement(problem: Problem, free: IntArray, kept: IntArray) -> tuple[FloatArray, FloatArray]:
    cross = problem.cross[free]
    if kept.size == 0 or free.size == 0:
        return problem.gram[np.ix_(free, free)], cross
    kept_factor = factor(problem.gram, kept)
    coupling = kept_factor.whiten(problem.gram[np.ix_(kept, free)])
    cross -= product(coupling.T, kept_factor.whiten(problem.cross[kept]))
    del kept_factor
    gram = problem.gram[np.ix_(free, free)]
    for start in range(0, len(gram), _ROWS_AT_ONCE):
        own = slice(start, start + _ROWS_AT_ONCE)
        for before in range(0, start + 1, _ROWS_AT_ONCE):
            other = slice(before, before + _ROWS_AT_ONCE)
            gram[own, other] -= product(coupling[:, own].T, coupling[:, other])
    mirror(gram)
    return gram, cross


def _dead_inputs(problem: Problem) -> Step | None:
    live = problem.live_rows
    if live.all():
        return None
    left = (problem.groups.total(live.astype(np.float64)) > 0.0) | problem.always_keep
    rows = np.flatnonzero(problem.groups.row_mask(left))
    gram, cross = problem.gram[np.ix_(rows, rows)], problem.cross[rows]
    patched = np.flatnonzero(~live[rows])
    gram[patched, patched] = gram.diagonal().mean() or 1.0 if patched.size else 0.0
    nothing = np.zeros(problem.n, dtype=bool)
    reduced = _reduced(problem, left, nothing, gram=gram, cross=cross)
    reduced.__dict__["optimum"] = read_only(problem.optimum[rows])
    detail = f"{(~left).sum()} dead groups removed, {len(patched)} dead rows decoupled"
    return Step(reduced, np.flatnonzero(left), nothing, detail)


def _rank(problem: Problem) -> Step | None:
    if problem.q <= problem.p or problem.p == 0:
        return None
    triangle = qr(problem.cross.T, mode="r", check_finite=False)[0][: problem.p]
    nothing = np.zeros(problem.n, dtype=bool)
    reduced = _reduced(problem, ~nothing, nothing, gram=problem.gram, cross=np.ascontiguousarray(triangle.T))
    return Step(reduced, np.arange(problem.n), nothing, f"{problem.q} columns replaced by {problem.p}")


REDUCTIONS: dict[str, Reduction] = {
    reduction.name: reduction
    for reduction in (
        Reduction("forced", "eliminates always_keep by a Schur complement, deletes always_remove", _forced),
        Reduction("dead_inputs", "removes groups without any signal", _dead_inputs),
        Reduction("rank", "replaces q > p columns of cross by p with the same cross @ cross.T", _rank),
    )
}


def _reduced(problem: Problem, left: BoolArray, kept: BoolArray, **data: Any) -> Problem:
    """The problem over the groups `left`, with new data; dense weights and means do not survive a reduction."""
    state = problem._state() | {
        "groups": problem.groups.subset(left),
        "dense_weights": None,
        "dense_is_optimal": False,
        "input_mean": None,
        "target_mean": None,
        **vars(_budgets_after(problem, kept, left)),
        **data,
    }
    return Problem._trusted(**state)


def _budgets_after(problem: Problem, kept: BoolArray, left: BoolArray) -> Budgets:
    """Budgets over the groups `left`, lowered by what the groups `kept` use; forced groups that are left stay so."""
    n_left = int(left.sum())
    keep, budget, block_keep = problem.keep, problem.budget, problem.block_keep
    if keep is not None:
        keep = min(keep - int(kept.sum()), n_left)
    if budget is not None and problem.costs is not None:
        budget = max(0.0, budget - float(problem.costs[kept].sum()))
    if block_keep is not None and problem.blocks is not None:
        block_keep = block_keep - np.bincount(problem.blocks[kept], minlength=len(block_keep))
    return Budgets(
        keep=keep,
        costs=None if problem.costs is None else problem.costs[left],
        budget=budget,
        always_keep=problem.always_keep[left],
        always_remove=problem.always_remove[left],
        blocks=None if problem.blocks is None else problem.blocks[left],
        block_keep=block_keep,
    )
