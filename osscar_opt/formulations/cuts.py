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

_OPERATIONS = 4e9
"""Floating-point operations that one Newton step over all terms may take; decides how many terms there are."""

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


class _Shape(NamedTuple):
    """Of every term's perspective function at its point: the value, w - W and W for the W of the cut there."""

    value: FloatArray  # (T,)
    gone: FloatArray  # (T, p, r)
    left: FloatArray  # (T, p, r)
    system: FloatArray  # (T, p, p): inv(I + r inv(H) r), r = (Dx)^1/2


class Terms:
    """The loss of a problem's supports as a sum of T terms, and cuts for each.

    All is written in coordinates in which every group's block of inv(H) is the identity; D is diagonal in these. Points
    z are (n,), the same for all terms, or (T, n).

    Parameters
    ----------
    problem : Problem
    most : int, optional
        Terms at most; by default as many as are affordable, up to one for each row.

    Attributes
    ----------
    n : int
        Number of groups.
    weights : (T, p, r) array
        The terms w_t over the live rows; padded by zero columns where they differ in number.

    Examples
    --------
    >>> problem = Problem(np.array([[2.0, 1.0], [1.0, 2.0]]), [[1.0], [3.0]])
    >>> cuts = Terms(problem).cuts_at(np.array([0.5, 0.5]))
    >>> first = np.array([True, False])
    >>> bool(cuts.at(first).sum() <= problem.value(first) - problem.base)
    True
    """

    def __init__(self, problem: Problem, most: int | None = None) -> None:
        live = np.flatnonzero(problem.live_rows)
        self.n = problem.n
        self.group_of_row = problem.groups.group_of_row[live]
        scale = 1.0 / np.sqrt(problem.gram.diagonal()[live])
        gram = problem.gram[np.ix_(live, live)] * scale[:, None] * scale
        inverse = _symmetric(np.linalg.inv(gram))
        change = np.zeros(gram.shape)  # old coordinates = change @ new ones
        for group in np.unique(self.group_of_row):
            rows = np.flatnonzero(self.group_of_row == group)
            block = np.ix_(rows, rows)
            change[block] = np.linalg.cholesky(inverse[block])
        self.gram = _symmetric(change.T @ gram @ change)
        self.inverse = _symmetric(np.linalg.inv(self.gram))
        optimum = np.linalg.solve(change, problem.optimum[live] / scale[:, None])
        self.weights = _split(optimum, self.group_of_row, self._affordable(most))

    def losses(self, support: BoolArray) -> FloatArray:
        """(T,) what each term loses on a support.

        Examples
        --------
        >>> float(Terms(Problem(np.eye(2), [[1.0], [2.0]])).losses(np.array([True, False])).sum())
        2.0
        """
        gone = np.flatnonzero(~np.asarray(support, dtype=bool)[self.group_of_row])
        removed = self.weights[:, gone]
        fitted = np.linalg.solve(self.inverse[np.ix_(gone, gone)], removed)
        return 0.5 * np.asarray((removed * fitted).sum(axis=(1, 2)))

    def tightened(
        self,
        z: FloatArray,
        start: FloatArray | None = None,
        *,
        barrier: float = 1e-4,
        stop: Callable[[], bool] = lambda: False,
    ) -> FloatArray:
        """(T, p) for every term the D that makes phi_D(z) nearly as large as any.

        Newton's method on phi_D(z) + mu (log det(H - D) + log det D) for falling mu.

        Parameters
        ----------
        z : (n,) or (T, n) array
            In [0, 1].
        start : (T, p) array, optional
            An earlier result.
        barrier : float, optional
            The last mu, relative to the value of the term.
        stop : callable, optional
            Asked before every step whether to leave it at that.

        Examples
        --------
        >>> terms = Terms(Problem(np.diag([1.0, 4.0]), [[1.0], [2.0]]))
        >>> terms.tightened(np.array([0.5, 0.5]))[0].round(2)
        array([1., 1.])
        """
        d = self._scaled_start if start is None else (1.0 - _BACK) * start + _BACK * self._scaled_start
        if not d.size:
            return d
        x = self._inverse_less_one(z, _SMALLEST_Z)
        value = self._shape(d, x).value
        unit = np.maximum(value, _FLAT * value.max()) / d.shape[1] if value.any() else np.ones(len(d))
        mu = max(1e-2, barrier)
        for _ in range(_NEWTON_STEPS):
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
            In [0, 1].
        d : (T, p) array, optional
            By default what `tightened` makes of z.

        Examples
        --------
        >>> cuts = Terms(Problem(np.diag([1.0, 4.0]), [[1.0], [2.0]])).cuts_at(np.array([1.0, 0.0]))
        >>> round(float(cuts.at(np.array([1.0, 0.0])).sum()), 9)
        0.5
        """
        d, sure = self._surely_feasible(self.tightened(z) if d is None else d)
        shape = self._shape(d, self._inverse_less_one(z, _AT_REST))
        pull = self.gram @ shape.gone
        doubt = 4.0 * d.shape[1] * _EPS * (abs(self.gram) @ abs(shape.gone))
        rest = abs(pull + d[:, :, None] * shape.left) + doubt
        slopes = np.zeros((len(d), self.n))
        np.add.at(slopes.T, self.group_of_row, (0.5 * (rest * rest).sum(axis=2) / d).T)
        size = abs(self.weights) + abs(shape.gone)
        own = 0.5 * d[:, :, None] * shape.left**2
        level = pull * (self.weights - 0.5 * shape.gone) + (1.0 - 8.0 * _EPS) * own - doubt * size
        level = np.maximum(level.sum(axis=(1, 2)), 0.0)
        return Cuts(np.flatnonzero(sure), level[sure], np.minimum(slopes, level[:, None])[sure])

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
        points = np.tile(z, (len(self.weights), 1))
        lowered = cuts.slopes >= _NEARLY * cuts.level[:, None]
        rest = np.maximum(1.0 - (lowered * z).sum(axis=1), _LEAST_REST)
        points[cuts.term] = np.where(lowered, 0.0, np.minimum(1.0, z / rest[:, None]))
        return points

    @cached_property
    def _scaled_start(self) -> FloatArray:
        """0.7 of the largest multiple of the identity that is below H, for every term."""
        largest = np.linalg.eigvalsh(self.inverse)[-1] if self.inverse.size else 1.0
        return np.full(self.weights.shape[:2], 0.7 / largest)

    def _inverse_less_one(self, z: FloatArray, least: float) -> FloatArray:
        """(T, p) of 1/z - 1 for every row."""
        points = np.broadcast_to(np.clip(z, least, 1.0), (len(self.weights), self.n))
        return 1.0 / points[:, self.group_of_row] - 1.0

    def _shape(self, d: FloatArray, x: FloatArray) -> _Shape:
        """With r = (Dx)^1/2: w - W = inv(H) r inv(I + r inv(H) r) r w."""
        root = np.sqrt(d * x)
        system: Any = np.linalg.inv(np.eye(d.shape[1]) + self._between(root))
        dual = root[:, :, None] * (system @ (root[:, :, None] * self.weights))
        gone = self.inverse @ dual
        return _Shape(0.5 * (self.weights * dual).sum(axis=(1, 2)), gone, self.weights - gone, system)

    def _newton(self, d: FloatArray, x: FloatArray, mu: FloatArray) -> tuple[FloatArray, FloatArray]:
        """One step for every term, relative to D, and how far to go: short of the boundary, by the step's norm there.

        All is written with inv(H), whose diagonal is 1: D^1/2 inv(H - D) D^1/2 = inv(I - D^1/2 inv(H) D^1/2) - I.
        """
        identity = np.eye(d.shape[1])
        weight = mu[:, None]
        shape = self._shape(d, x)
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
        """(T, p, p) diag inv(H) diag."""
        return np.asarray(diagonals[:, :, None] * self.inverse * diagonals[:, None, :])

    def _surely_feasible(self, d: FloatArray) -> tuple[FloatArray, BoolArray]:
        """D, halved where need be, and (T,) whether H - D is then positive semidefinite beyond doubt."""
        sure = self._feasible(d)
        if not sure.all():
            d = np.where(sure[:, None], d, 0.5 * d)
            sure = self._feasible(d)
        return d, sure

    def _feasible(self, d: FloatArray) -> BoolArray:
        """(T,) whether H - D is positive definite by more than the rounding of its eigenvalues."""
        if not d.size:
            return np.zeros(len(d), dtype=bool)
        doubt = 16.0 * d.shape[1] * _EPS * np.max(self.gram.diagonal())  # inv(H) itself is no better known
        inside = np.eye(d.shape[1]) - self._between(np.sqrt(np.maximum(d, 0.0)))
        return np.asarray((d.min(axis=1) > 0.0) & (np.linalg.eigvalsh(inside)[:, 0] > doubt))

    def _affordable(self, most: int | None) -> int:
        rows = len(self.group_of_row)
        wanted = int(_OPERATIONS / (6.0 * max(rows, 1) ** 3)) if most is None else most
        return max(1, min(rows, wanted))


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

    def inside(self, z: FloatArray) -> Cuts:
        """Cuts that are high at a fractional point: those that touch there, and the bent ones.

        Examples
        --------
        >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
        >>> len(Separator(Terms(problem)).inside(np.array([0.5, 0.5])).level)
        4
        """
        straight = self._terms.cuts_at(np.maximum(z, _SMALLEST_Z), self._tightened(z))
        points = self._terms.bent_points(straight, z)
        bent = self._terms.cuts_at(np.maximum(points, _SMALLEST_Z), self._tightened(points))
        return straight.with_more(bent)

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
            d = self._tightened(point, barrier=_COARSE)
            cuts.append(self._terms.cuts_at(at, d).with_more(self._terms.cuts_at(point, d)))
        return cuts[0].with_more(cuts[1])

    def _tightened(self, z: FloatArray, barrier: float = _FINE) -> FloatArray:
        self._last = self._terms.tightened(z, self._last, barrier=barrier, stop=self._stop)
        return self._last


def _split(optimum: Any, group_of_row: IntArray, most: int) -> FloatArray:
    """(T, p, r) the columns of the symmetric root of W* W*': one by one, or those of a group or of several together."""
    rows = len(optimum)
    left, values, _ = np.linalg.svd(optimum, full_matrices=False)
    if np.count_nonzero(values > _EPS * rows * np.max(values, initial=0.0)) <= 1:
        return np.asarray((left * values)[None, :, :1])  # one direction cannot be split
    root = (left * values) @ left.T
    part = np.arange(rows)
    if most < rows:
        part = np.unique(group_of_row, return_inverse=True)[1]
        groups = part.max() + 1
        part = part if groups <= most else part * most // groups
    columns = [np.flatnonzero(part == t) for t in range(part.max(initial=-1) + 1)]
    weights = np.zeros((len(columns), rows, max((len(c) for c in columns), default=0)))
    for t, chosen in enumerate(columns):
        weights[t, :, : len(chosen)] = root[:, chosen]
    return weights


def _symmetric(matrix: Any) -> FloatArray:
    return np.asarray(0.5 * (matrix + matrix.T), dtype=np.float64)
