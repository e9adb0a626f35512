r"""Linear lower bounds of what a support loses: cuts, for the loss written as a sum of terms.

With W* the unconstrained optimum, what a support S loses against keeping everything is

    f(S) - base = min over V, zero outside S, of 1/2 tr((W* - V)' H (W* - V)).

It depends on W* only through W* W*', so W* may be replaced by any w_1, ..., w_T (p x r each) with
sum_t w_t w_t' = W* W*', and f(S) - base = sum_t loss_t(S), each term with a fit of its own. The columns of the
symmetric root (W* W*')^(1/2) are taken: each is concentrated on one row, and its loss all but vanishes where that row
is kept.

For a term w, any W (p x r) and any block-diagonal 0 < D < H, 1/2 V'(H - D)V >= V'(H - D)W - 1/2 W'(H - D)W gives

    loss(S) >= level - sum_{g in S} slope_g,         slope_g = 1/2 tr(R_g' inv(D_g) R_g),
    level = 1/2 tr(w'Hw) - 1/2 tr(W'(H - D)W),       R = Hw - (H - D)W,

a cut, valid for every support, within the limits or not. With W = inv(H + D(1/z - 1)) H w it touches, at z in
(0, 1]^n, the perspective function phi_D(z), which is convex in z, concave in D and equal to the loss at 0/1 points.
Losses are never negative, so a slope above the level is lowered to it. That bends the cut away from phi_D, in favour of
points z' other than z: of all cuts whose slopes are lowered on Q, the highest at z' touches phi_D where z is 0 on Q
and z'_g / (1 - z'(Q)) elsewhere (`Terms.bent_points`).

Sources: perspective cuts, Frangioni and Gentile, Math. Program. 106 (2006); the best D, Zheng, Sun and Li, INFORMS
J. Comput. 26 (2014); lowering of coefficients, Savelsbergh, ORSA J. Comput. 6 (1994).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.formulations.problem import Problem

__all__ = ["Cuts", "Separator", "Terms"]

_STEP_OPERATIONS = 5e8
_OPERATIONS, _CORNER_OPERATIONS = 4e9, 1e9
"""Floating-point operations that one Newton step for every D may take, and all steps for a fractional point or corner.

The first decides how many terms share a D."""

_MOST_TERMS = 256

_NEWTON_STEPS = 40

_SMALLEST_Z = 1e-3
"""D is sought for points no closer to 0 than this: the perspective function is too steep there."""

_AT_REST = 1e-9
"""Stands for 0 where a cut is to touch: 1/z - 1 is then so large that W is the refit, to rounding."""

_LEAST_REST = 0.05
"""What is left of 1 - z'(Q) at least."""

_NEARLY = 0.9
"""A slope of this share of the level is taken for lowered."""

_BACK = 0.1
"""How far an earlier D is moved back inside: from too close to the boundary, the barrier would not let it go."""

_FLAT = 1e-9
"""Terms smaller than the largest by this are not worth a barrier of their own size."""

_INWARD = (0.03, 0.2)
"""How far from a corner of the cube D is sought for cuts that touch there: close to it, and not so close."""

_FINE, _COARSE = 1e-4, 1e-3
"""Barriers at fractional points, and at corners, of which many are visited once."""

_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True, eq=False)
class Cuts:
    """Cuts loss[term] + slopes @ z >= level, m of them.

    Attributes
    ----------
    term : (m,) int array
    level : (m,) array
    slopes : (m, n) array, >= 0

    Examples
    --------
    >>> cuts = Cuts(np.array([0]), np.array([1.0]), np.array([[0.25, 1.0]]))
    >>> cuts.at(np.array([1.0, 0.0]))
    array([0.75])
    """

    term: IntArray
    level: FloatArray
    slopes: FloatArray

    def at(self, z: FloatArray) -> FloatArray:
        """(m,) the lower bounds that the cuts give at z.

        Examples
        --------
        >>> Cuts(np.array([0]), np.array([1.0]), np.array([[0.25, 1.0]])).at(np.zeros(2))
        array([1.])
        """
        return np.asarray(self.level - self.slopes @ z)

    def with_more(self, more: Cuts) -> Cuts:
        """These cuts, and then those of `more`.

        Examples
        --------
        >>> one = Cuts(np.array([0]), np.array([1.0]), np.array([[0.25, 1.0]]))
        >>> len(one.with_more(one).level)
        2
        """
        return Cuts(
            np.concatenate([self.term, more.term]),
            np.concatenate([self.level, more.level]),
            np.concatenate([self.slopes, more.slopes]),
        )


class _Stack(NamedTuple):
    """Columns of terms, those that share a D side by side: (K, p, r), padded by zeros, and which terms they are of."""

    columns: FloatArray  # (K, p, r)
    term: IntArray  # (K, r), -1 for padding


class _Shape(NamedTuple):
    """Of perspective functions, each at its point: the values, w - W and W for the W of the cut there."""

    value: FloatArray  # (K,)
    gone: FloatArray  # (K, p, r)
    left: FloatArray  # (K, p, r)
    system: FloatArray  # (K, p, p): inv(I + r inv(H) r), r = (Dx)^1/2


class Terms:
    """The loss of a problem's supports as a sum of T terms, one for each group, and cuts for each.

    All is written in coordinates in which every group's block of inv(H) is the identity; D is diagonal in these. Terms
    may have to share a D, C of them altogether: one Newton step for a D takes time that grows like p^3.

    Parameters
    ----------
    problem : Problem
    matrices : int, optional
        Of D at most; by default as many as are affordable.

    Attributes
    ----------
    n : int
        Number of groups.
    count : int
        Number of terms, T: n, or 256 if there are more groups, or 1 if the outputs have one direction only.

    Examples
    --------
    >>> problem = Problem(np.array([[2.0, 1.0], [1.0, 2.0]]), [[1.0], [3.0]])
    >>> cuts = Terms(problem).cuts_at(np.array([0.5, 0.5]))
    >>> first = np.array([True, False])
    >>> bool(cuts.at(first).sum() <= problem.value(first) - problem.base)
    True
    """

    def __init__(self, problem: Problem, matrices: int | None = None) -> None:
        live = np.flatnonzero(problem.live_rows)
        self.n = problem.n
        self._group_of_row = problem.groups.group_of_row[live]
        self._members = np.equal(self._group_of_row, np.arange(self.n)[:, None]).astype(np.float64)
        scale = 1.0 / np.sqrt(problem.gram.diagonal()[live])
        gram = problem.gram[np.ix_(live, live)] * scale[:, None] * scale
        inverse = _symmetric(np.linalg.inv(gram))
        change = np.zeros(gram.shape)  # old coordinates = change @ new ones
        for group in np.unique(self._group_of_row):
            rows = np.flatnonzero(self._group_of_row == group)
            block = np.ix_(rows, rows)
            change[block] = np.linalg.cholesky(inverse[block])
        self._gram = _symmetric(change.T @ gram @ change)
        self._inverse = _symmetric(np.linalg.inv(self._gram))
        root, term = _root(
            np.linalg.solve(change, problem.optimum[live] / scale[:, None]), self._group_of_row
        )
        self.count = int(term.max(initial=0)) + 1
        self._work = 6.0 * max(len(live), 1) ** 3  # of a Newton step for one D
        wanted = int(_STEP_OPERATIONS / self._work) if matrices is None else matrices
        self._shared_by = np.arange(self.count) * max(1, min(self.count, wanted)) // self.count
        self._shared = _stacked(root, term, self._shared_by[term])
        self._single = _stacked(root, term, term)

    def losses(self, support: BoolArray) -> FloatArray:
        """What each term loses on a support, shape (T,).

        Examples
        --------
        >>> float(Terms(Problem(np.eye(2), [[1.0], [2.0]])).losses(np.array([True, False])).sum())
        2.0
        """
        gone = np.flatnonzero(~np.asarray(support, dtype=bool)[self._group_of_row])
        removed = self._single.columns[:, gone]
        fitted = np.linalg.solve(self._inverse[np.ix_(gone, gone)], removed)
        return 0.5 * np.asarray((removed * fitted).sum(axis=(1, 2)))

    def tightened(
        self,
        z: FloatArray,
        start: FloatArray | None = None,
        *,
        barrier: float = 1e-4,
        operations: float = _OPERATIONS,
        stop: Callable[[], bool] = lambda: False,
    ) -> FloatArray:
        """(C, p) the matrices D that make phi_D(z) nearly as large as any.

        Newton's method on phi_D(z) + mu (log det(H - D) + log det D) for falling mu.

        Parameters
        ----------
        z : (n,) or (T, n) array
            In [0, 1]; the latter only where terms do not share.
        start : (C, p) array, optional
            An earlier result.
        barrier : float, optional
            The last mu, relative to the value of the term.
        operations : float, optional
            Steps are limited to those that take so many floating-point operations, about.
        stop : callable, optional
            Asked before every step whether to leave it at that.

        Examples
        --------
        >>> terms = Terms(Problem(np.diag([1.0, 4.0]), [[1.0], [2.0]]))
        >>> terms.tightened(np.array([0.5, 0.5]))[0].round(2)
        array([1., 1.])
        """
        d = self.scaled_start if start is None else (1.0 - _BACK) * start + _BACK * self.scaled_start
        if not d.size:
            return d
        x = self._inverse_less_one(z, len(d), _SMALLEST_Z)
        value = self._shape(self._shared, d, x).value
        unit = np.maximum(value, _FLAT * value.max()) / d.shape[1] if value.any() else np.ones(len(d))
        mu = max(1e-2, barrier)
        for _ in range(int(np.clip(operations / (len(d) * self._work), 3, _NEWTON_STEPS))):
            if stop():
                break
            step, length = self._newton(d, x, mu * unit)
            d = d * (1.0 + length[:, None] * step)
            if mu <= barrier and length.min() > 0.9:
                break
            if np.mean(length > 0.5) > 0.8:
                mu = max(0.2 * mu, barrier)
        return d

    def cuts_at(self, z: FloatArray, d: FloatArray | None = None) -> Cuts:
        """Cuts that touch phi_D at z, slopes lowered to the level; at a 0/1 point they give the loss, whatever D is.

        Rounding is on the safe side: where rounding may have made D infeasible it is halved, and if that does not
        help, the term gets no cut.

        Parameters
        ----------
        z : (n,) or (T, n) array
            In [0, 1]: the same point for all terms, or one for each.
        d : (C, p) array, optional
            By default what `tightened` makes of z, or of the mean of the points.

        Examples
        --------
        >>> cuts = Terms(Problem(np.diag([1.0, 4.0]), [[1.0], [2.0]])).cuts_at(np.array([1.0, 0.0]))
        >>> round(float(cuts.at(np.array([1.0, 0.0])).sum()), 9)
        0.5
        """
        d, sure = self._surely_feasible(
            self.tightened(z.reshape(-1, self.n).mean(axis=0)) if d is None else d
        )
        stack = self._shared
        if z.ndim == 2:
            stack, d = self._single, d[self._shared_by]
        shape = self._shape(stack, d, self._inverse_less_one(z, len(d), _AT_REST))
        pull = self._gram @ shape.gone
        doubt = 4.0 * d.shape[1] * _EPS * (abs(self._gram) @ abs(shape.gone))
        rest = abs(pull + d[:, :, None] * shape.left) + doubt
        slopes = self._by_term(self._members @ (0.5 * rest * rest / d[:, :, None]), stack)
        own = (0.5 - 4.0 * _EPS) * d[:, :, None] * shape.left**2
        level = (
            pull * (stack.columns - 0.5 * shape.gone) + own - doubt * (abs(stack.columns) + abs(shape.gone))
        )
        level = np.maximum(self._by_term(level.sum(axis=1, keepdims=True), stack)[:, 0], 0.0)
        chosen = np.flatnonzero(sure[self._shared_by])
        return Cuts(chosen, level[chosen], np.minimum(slopes, level[:, None])[chosen])

    def bent_points(self, cuts: Cuts, z: FloatArray) -> FloatArray:
        """(T, n) the points at which cuts should touch phi_D to be high at z, their slopes lowered where these are.

        Parameters
        ----------
        cuts : Cuts
            Of this object, made for z.
        z : (n,) array

        Examples
        --------
        >>> terms = Terms(Problem(np.diag([1.0, 4.0]), np.eye(2)))
        >>> z = np.array([0.5, 0.5])
        >>> terms.bent_points(terms.cuts_at(z), z)
        array([[0., 1.],
               [1., 0.]])
        """
        points = np.tile(z, (self.count, 1))
        lowered = cuts.slopes >= _NEARLY * cuts.level[:, None]
        rest = np.maximum(1.0 - (lowered * z).sum(axis=1), _LEAST_REST)
        points[cuts.term] = np.where(lowered, 0.0, np.minimum(1.0, z / rest[:, None]))
        return points

    @property
    def share(self) -> bool:
        """Whether terms share a D.

        Examples
        --------
        >>> Terms(Problem(np.eye(2), np.eye(2)), matrices=1).share
        True
        """
        return len(self._shared.columns) < self.count

    @cached_property
    def scaled_start(self) -> FloatArray:
        """(C, p) 0.7 of the largest multiple of the identity that is below H.

        Examples
        --------
        >>> Terms(Problem(np.diag([1.0, 4.0]), [[1.0], [2.0]])).scaled_start
        array([[0.7, 0.7]])
        """
        largest = np.linalg.eigvalsh(self._inverse)[-1] if self._inverse.size else 1.0
        return np.full(self._shared.columns.shape[:2], 0.7 / largest)

    def _by_term(self, by_column: FloatArray, stack: _Stack) -> FloatArray:
        """(T, m) sums over the columns of each term, from (K, m, r)."""
        total = np.zeros((self.count, by_column.shape[1]))
        real = stack.term >= 0
        np.add.at(total, stack.term[real], by_column.swapaxes(1, 2)[real])
        return total

    def _inverse_less_one(self, z: FloatArray, times: int, least: float) -> FloatArray:
        """(times, p) of 1/z - 1 for every row."""
        points = np.broadcast_to(np.clip(z, least, 1.0), (times, self.n))
        return 1.0 / points[:, self._group_of_row] - 1.0

    def _shape(self, stack: _Stack, d: FloatArray, x: FloatArray) -> _Shape:
        """With r = (Dx)^1/2: w - W = inv(H) r inv(I + r inv(H) r) r w."""
        root = np.sqrt(d * x)
        system: Any = np.linalg.inv(np.eye(d.shape[1]) + self._between(root))
        dual = root[:, :, None] * (system @ (root[:, :, None] * stack.columns))
        gone = self._inverse @ dual
        return _Shape(0.5 * (stack.columns * dual).sum(axis=(1, 2)), gone, stack.columns - gone, system)

    def _newton(self, d: FloatArray, x: FloatArray, mu: FloatArray) -> tuple[FloatArray, FloatArray]:
        """One step for every D, relative to it, and how far to go: short of the boundary, by the step's norm there.

        All is written with inv(H), whose diagonal is 1: D^1/2 inv(H - D) D^1/2 = inv(I - D^1/2 inv(H) D^1/2) - I.
        """
        identity = np.eye(d.shape[1])
        weight = mu[:, None]
        shape = self._shape(self._shared, d, x)
        pulled = np.sqrt(d * x)[:, :, None] * shape.left
        wall = np.linalg.inv(identity - self._between(np.sqrt(d))) - identity
        gradient = 0.5 * (pulled * pulled).sum(axis=2) + weight * (1.0 - np.diagonal(wall, axis1=1, axis2=2))
        wall = wall * wall
        curvature = (identity - shape.system) * (pulled @ pulled.swapaxes(1, 2))
        curvature += weight[:, :, None] * (wall + identity)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        square = np.einsum("ti,tij,tj->t", step, wall, step)
        reach = np.maximum(np.sqrt(np.maximum(square, 0.0)), np.max(-step, axis=1))
        return step, np.minimum(1.0, 0.95 / np.maximum(reach, 1e-12))

    def _between(self, diagonals: FloatArray) -> FloatArray:
        """(K, p, p) diag inv(H) diag."""
        return np.asarray(diagonals[:, :, None] * self._inverse * diagonals[:, None, :])

    def _surely_feasible(self, d: FloatArray) -> tuple[FloatArray, BoolArray]:
        """D, halved where need be, and (C,) whether H - D is then positive semidefinite beyond doubt."""
        sure = self._feasible(d)
        if not sure.all():
            d = np.where(sure[:, None], d, 0.5 * d)
            sure = self._feasible(d)
        return d, sure

    def _feasible(self, d: FloatArray) -> BoolArray:
        """(C,) whether H - D is positive definite by more than the rounding of its eigenvalues."""
        if not d.size:
            return np.zeros(len(d), dtype=bool)
        doubt = 16.0 * d.shape[1] * _EPS * np.max(self._gram.diagonal())  # inv(H) itself is no better known
        inside = np.eye(d.shape[1]) - self._between(np.sqrt(np.maximum(d, 0.0)))
        return np.asarray((d.min(axis=1) > 0.0) & (np.linalg.eigvalsh(inside)[:, 0] > doubt))


class Separator:
    """Makes the cuts of an outer approximation; every D it looks for starts from the one found last.

    Parameters
    ----------
    terms : Terms
    stop : callable, optional
        Asked now and then whether to leave D as it is.

    Examples
    --------
    >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
    >>> cuts = Separator(Terms(problem)).corner(np.array([True, False]))
    >>> round(float(cuts.at(np.array([1.0, 0.0]))[:2].sum()), 9)
    0.125
    """

    def __init__(self, terms: Terms, stop: Callable[[], bool] = lambda: False) -> None:
        self._terms, self._stop = terms, stop
        self._last: FloatArray | None = None

    def rough(self, z: FloatArray) -> Cuts:
        """Cuts that are there at once: the bent ones of a multiple of the identity, which need not be looked for.

        Examples
        --------
        >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
        >>> len(Separator(Terms(problem)).rough(np.array([0.5, 0.5])).level)
        2
        """
        d = self._terms.scaled_start
        straight = self._terms.cuts_at(np.maximum(z, _SMALLEST_Z), d)
        return self._terms.cuts_at(np.maximum(self._terms.bent_points(straight, z), _SMALLEST_Z), d)

    def inside(self, z: FloatArray) -> Cuts:
        """Cuts that are high at a fractional point: those that touch there, and the bent ones.

        Examples
        --------
        >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
        >>> len(Separator(Terms(problem)).inside(np.array([0.5, 0.5])).level)
        4
        """
        d = self._tightened(z)
        straight = self._terms.cuts_at(np.maximum(z, _SMALLEST_Z), d)
        points = self._terms.bent_points(straight, z)
        if not self._terms.share:
            d = self._tightened(points)
        return straight.with_more(self._terms.cuts_at(np.maximum(points, _SMALLEST_Z), d))

    def corner(self, support: BoolArray) -> Cuts:
        """Cuts that touch the loss at a support, and others that touch further inside.

        Examples
        --------
        >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
        >>> len(Separator(Terms(problem)).corner(np.array([True, False])).level)
        8
        """
        at = np.asarray(support, dtype=np.float64)
        cuts = []
        for inward in _INWARD:
            point = np.clip(at, inward, 1.0 - 0.5 * inward)
            d = self._tightened(point, barrier=_COARSE, operations=_CORNER_OPERATIONS)
            cuts.append(self._terms.cuts_at(at, d).with_more(self._terms.cuts_at(point, d)))
        return cuts[0].with_more(cuts[1])

    def _tightened(
        self, z: FloatArray, barrier: float = _FINE, operations: float = _OPERATIONS
    ) -> FloatArray:
        self._last = self._terms.tightened(
            z, self._last, barrier=barrier, operations=operations, stop=self._stop
        )
        return self._last


def _root(optimum: Any, group_of_row: IntArray) -> tuple[FloatArray, IntArray]:
    """The symmetric root of W* W*', and the term of each of its columns: that of its group, or of several groups."""
    left, values, _ = np.linalg.svd(optimum, full_matrices=False)
    if np.count_nonzero(values > _EPS * len(optimum) * np.max(values, initial=0.0)) <= 1:
        return np.asarray((left * values)[:, :1]), np.zeros(min(1, len(optimum)), dtype=np.int64)
    term = np.unique(group_of_row, return_inverse=True)[1]
    groups = int(term.max()) + 1
    return np.asarray(
        (left * values) @ left.T
    ), term if groups <= _MOST_TERMS else term * _MOST_TERMS // groups


def _stacked(columns: FloatArray, term: IntArray, place: IntArray) -> _Stack:
    """Columns of the same place side by side; places are 0, 1, ..."""
    members = [np.flatnonzero(place == k) for k in range(int(place.max(initial=0)) + 1)]
    widest = max(len(chosen) for chosen in members)
    stacked, terms = np.zeros((len(members), len(columns), widest)), np.full((len(members), widest), -1)
    for k, chosen in enumerate(members):
        stacked[k, :, : len(chosen)] = columns[:, chosen]
        terms[k, : len(chosen)] = term[chosen]
    return _Stack(stacked, terms)


def _symmetric(matrix: Any) -> FloatArray:
    return np.asarray(0.5 * (matrix + matrix.T), dtype=np.float64)
