r"""The lifted relaxation: the lower bound that `exact` evaluates, for many nodes at once.

A node has n groups of s rows that may be removed, p = n s. With M = inv(H), W0 = M G the dense weights, and base the
value of keeping all, removing the groups P costs

    loss(P) = 1/2 tr(W0_P' inv(M_PP) W0_P) = max over Lambda of  <Lambda_P, W0_P> - 1/2 tr(Lambda_P' M_PP Lambda_P).

**Multipliers.** Fix any Lambda (p, q), and let y in {0, 1}^n say what is removed:

    objective >= base + b.y - 1/2 y' Q y,      b_g = <Lambda_g, W0_g>,      Q_gh = tr(Lambda_g' M_gh Lambda_h).

**Diagonal.** Q is positive semidefinite, so the right side is concave in y; with any delta such that
P = Diag(delta) - Q is positive semidefinite, y_g^2 = y_g makes it convex, and its tangent at any point ybar is a bound:

    objective >= base - 1/2 ybar' P ybar + score.y,      score = b - delta / 2 + P ybar,
    bound      = base - 1/2 ybar' P ybar + (the least score.y that the limits allow).

Nothing has to be solved to any accuracy for this to be valid: Lambda, delta and ybar are free but for P >= 0.

**How they are found.** The best bound is a saddle point, max over (Lambda, delta), min over y. For fixed Lambda, joint
Newton steps in (delta, y) with barriers mu log det P, mu log y, mu log(1 - y) cost a few inverses of n x n matrices.
They leave an estimate of the second moments of the removed set,

    Y = y y' + 2 mu inv(P),      Y_gg = y_g,

and for fixed Y the best Lambda solves (Y o M) Lambda = diag(y) W0, with o the Hadamard product over blocks. At the
limit this is the semidefinite relaxation

    min over y, Y >= y y', Y_gg = y_g of  base + 1/2 tr( W0' diag(y) inv(Y o M) diag(y) W0 ).

It is at least as tight as the perspective relaxation with a diagonal D of its own for every output: with D_t and the
weights W_t of that relaxation at z = 1 - y, Lambda = [D_1 W_1 / z, D_2 W_2 / z, ...] and delta = twice its scores
give the same bound, and that delta is feasible by the Schur product theorem, but seldom the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.linalg.stacks import Array, Stacks

__all__ = [
    "Lifted",
    "Point",
    "Quadratic",
    "best_multipliers",
    "bounds",
    "lift",
    "make_definite",
    "newton",
    "quadratic",
]

_MARGIN = 1e-9
"""delta is enlarged by this share before it is used, so that P is definite beyond rounding."""

_INTERIOR = 0.9
"""Share of the way to the boundary that a step goes at most."""

_GROWTH, _LEAST_GROWTH = 0.2, 1e-9
"""How much delta is enlarged at first where P is not definite; twice as much every time."""

_POWER_ITERATIONS = 5
_BACKTRACKS = 60
_SHRINK = 0.5
_TINY = 1e-300


@dataclass(eq=False)
class Lifted:
    """A stack of b nodes of equal size.

    Attributes
    ----------
    inverse : (b, p, p)
        M = inv(H).
    dense : (b, p, q)
        W0 = M G.
    base : (b,)
        The value with all groups kept.
    alone : (b, n)
        What the value rises by if one group alone is removed: 1/2 tr(inv(M_gg) E_gg), E = W0 W0'.
    size : int
        s, rows of a group.
    definite : (b,) numpy mask
        Whether H could be inverted.
    """

    inverse: Array
    dense: Array
    base: Array
    alone: Array
    size: int
    definite: BoolArray

    def part(self, index: Any) -> Lifted:
        """Some of the nodes."""
        return Lifted(
            self.inverse[index],
            self.dense[index],
            self.base[index],
            self.alone[index],
            self.size,
            self.definite[index],
        )


@dataclass(eq=False)
class Point:
    """Relaxed removals y (b, n) in (0, 1), and the diagonal delta (b, n)."""

    y: Array
    delta: Array

    def part(self, index: Any) -> Point:
        """Those of some of the nodes."""
        return Point(self.y[index], self.delta[index])


@dataclass(eq=False)
class Quadratic:
    """What Lambda makes of a node: b.y - 1/2 y'Qy, b (b, n), Q (b, n, n), and Lambda (b, p, q) itself."""

    linear: Array
    form: Array
    multipliers: Array

    def part(self, index: Any) -> Quadratic:
        """Those of some of the nodes."""
        return Quadratic(self.linear[index], self.form[index], self.multipliers[index])


def lift(stacks: Stacks, gram: Array, cross: Array, constant: Array, size: int) -> Lifted:
    """A stack of nodes with H = gram (b, p, p), G = cross (b, p, q) and the value of keeping nothing, on the device.

    Examples
    --------
    >>> from osscar_opt.linalg.stacks import make_stacks
    >>> node = lift(make_stacks("cpu"), 2.0 * np.eye(2)[None], np.array([[[2.0], [4.0]]]), np.array([5.0]), 1)
    >>> node.dense[0].T, node.base, node.alone
    (array([[1., 2.]]), array([0.]), array([[1., 4.]]))
    """
    inverse, definite = stacks.inverse(gram)
    dense = inverse @ cross
    base = constant - 0.5 * (cross * dense).sum((-2, -1))
    if size == 1:
        alone = 0.5 * (dense * dense).sum(-1) / (inverse.diagonal(0, -2, -1) + _TINY)
    else:
        rows = dense.reshape(dense.shape[0], -1, size, dense.shape[-1])
        alone = 0.5 * (rows * stacks.solve(_diagonal_blocks(inverse, size), rows)).sum((-2, -1))
    return Lifted(inverse, dense, base, alone, size, definite)


def best_multipliers(stacks: Stacks, node: Lifted, at: Point, slack_inverse: Array) -> Array:
    """The best Lambda for the second moments Y = y y' + C, C proportional to inv(P) and Y_gg = y_g."""
    y, x, size = at.y, slack_inverse, node.size
    spread = (y * (1.0 - y) / x.diagonal(0, -2, -1)) ** 0.5
    moments = y[:, :, None] * y[:, None, :] + spread[:, :, None] * x * spread[:, None, :]
    inverse, _ = stacks.inverse(_expanded(stacks, moments, size) * node.inverse)
    return inverse @ (stacks.repeat(y, size)[:, :, None] * node.dense)


def quadratic(stacks: Stacks, node: Lifted, multipliers: Array) -> Quadratic:
    """Linear and quadratic part for given Lambda, which is rounded to float32 first: certificates store that."""
    multipliers = stacks.single(multipliers)
    linear = _group_sums((multipliers * node.dense).sum(-1), node.size)
    form = _block_sums(node.inverse * (multipliers @ multipliers.mT), node.size)
    return Quadratic(linear, (form + form.mT) * 0.5, multipliers)


def make_definite(stacks: Stacks, q: Quadratic, delta: Array, inside: bool = True) -> tuple[Array, Array]:
    """Enlarge delta until P = Diag(delta) - Q is positive definite; returns it and inv(P).

    Parameters
    ----------
    inside : bool
        Enlarge it by some per cent at once, so that barriers start well; else by as little as it takes.
    """
    diagonal = q.form.diagonal(0, -2, -1)
    floor = stacks.asarray(1e-12 * stacks.numpy(diagonal).max(axis=-1, initial=0.0) + _TINY)[:, None]
    delta = stacks.larger(delta, (1.01 if inside else 1.0) * diagonal + floor)
    if inside:
        root = delta**-0.5
        over = stacks.numpy(_largest_eigenvalue(root[:, :, None] * q.form * root[:, None, :]))
        delta = delta * stacks.asarray(np.where(over > 0.98, 1.05 * over, 1.0))[:, None]
    inverse, definite = stacks.inverse(_with_diagonal(-q.form, delta))
    growth = _GROWTH if inside else _LEAST_GROWTH
    for _ in range(_BACKTRACKS):
        bad = np.flatnonzero(~definite)
        if len(bad) == 0:
            break
        delta, inverse = _copied(delta), _copied(inverse)
        delta[bad] = delta[bad] * (1.0 + growth)
        growth = min(2.0 * growth, 1.0)
        again, definite[bad] = stacks.inverse(_with_diagonal(-q.form[bad], delta[bad]))
        inverse[bad] = again
    return delta, inverse


def newton(
    stacks: Stacks,
    q: Quadratic,
    at: Point,
    slack_inverse: Array,
    barrier: FloatArray,
    usage: FloatArray,
    room: FloatArray,
    tight: bool,
) -> tuple[Point, Array]:
    r"""One Newton step towards the saddle point max over delta, min over y of the relaxation, with barriers.

    Parameters
    ----------
    slack_inverse : (b, n, n)
        inv(P) at the point.
    barrier : (b,) array
        mu.
    usage : (b, m, n) array
    room : (b, m) array
        The limits: usage (1 - y) <= room, or = room if `tight`, when there is one.

    Returns
    -------
    Point
    inv(P)
        There.
    """
    y, delta, x = at.y, at.delta, slack_inverse
    mu = stacks.asarray(barrier)[:, None]
    form = _with_diagonal(-q.form, delta)
    use, limit = stacks.asarray(usage), stacks.asarray(room)
    left = limit - (use @ (1.0 - y)[:, :, None])[:, :, 0]
    coupling = y - 0.5
    gradient_d = mu * x.diagonal(0, -2, -1) - 0.5 * y * (1.0 - y)
    gradient_y = q.linear - 0.5 * delta + (form @ y[:, :, None])[:, :, 0] - mu / y + mu / (1.0 - y)
    curvature = _with_diagonal(form, mu / (y * y) + mu / (1.0 - y) ** 2)
    if not tight:
        weighted = use * (mu / left)[:, :, None]
        gradient_y = gradient_y - weighted.sum(1)
        curvature = curvature + (weighted / left[:, :, None]).mT @ use
    # delta is eliminated: its Hessian is -mu X o X, and its coupling to y the diagonal y - 1/2.
    hessian_d, _ = stacks.inverse(mu[:, :, None] * x * x)
    by_y = hessian_d * coupling[:, None, :]
    by_d = (hessian_d @ gradient_d[:, :, None])[:, :, 0]
    curvature = curvature + coupling[:, :, None] * by_y
    gradient_y = gradient_y + coupling * by_d
    inverse, _ = stacks.inverse((curvature + curvature.mT) * 0.5)
    free = -(inverse @ gradient_y[:, :, None])[:, :, 0]
    if tight:
        row = use[:, 0]
        along = (inverse @ row[:, :, None])[:, :, 0]
        step = free + (((-left[:, 0]) - (row * free).sum(-1)) / (row * along).sum(-1))[:, None] * along
    else:
        step = free
    step_d = by_d + (by_y @ step[:, :, None])[:, :, 0]
    bounds_y = [(y, step), (1.0 - y, -step)]
    if not tight:
        bounds_y.append((left, (use @ step[:, :, None])[:, :, 0]))
    length_y = _longest(stacks, bounds_y)
    new_y = y + stacks.asarray(length_y)[:, None] * step
    delta, x = _moved(stacks, q, delta, x, step_d)
    return Point(new_y, delta), x


def bounds(
    stacks: Stacks, node: Lifted, q: Quadratic, at: Point
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The bound's constant (b,), the scores (b, n) and delta as used (b, n): objective >= constant + score.removed.

    Examples
    --------
    >>> from osscar_opt.linalg.stacks import make_stacks
    >>> stacks = make_stacks("cpu")
    >>> node = lift(stacks, np.eye(2)[None], np.array([[[1.0], [2.0]]]), np.array([2.5]), 1)
    >>> y = np.array([[0.9, 0.1]])
    >>> q = quadratic(stacks, node, node.dense)
    >>> delta, _ = make_definite(stacks, q, q.form.diagonal(0, -2, -1))
    >>> constant, score, _ = bounds(stacks, node, q, Point(y, delta))
    >>> bool(constant[0] + score[0].min() <= 0.5)
    True
    """
    delta = at.delta * (1.0 + _MARGIN)
    form_y = delta * at.y - (q.form @ at.y[:, :, None])[:, :, 0]
    score = q.linear - 0.5 * delta + form_y
    constant = node.base - 0.5 * (at.y * form_y).sum(-1)
    return stacks.numpy(constant), stacks.numpy(score), stacks.numpy(delta)


def _moved(
    stacks: Stacks, q: Quadratic, delta: Array, slack_inverse: Array, step: Array
) -> tuple[Array, Array]:
    """Diagonal after a step that is cut short until P stays positive definite, with inv(P) there."""
    fall = (-step).clip(0.0) ** 0.5
    over = stacks.numpy(_largest_eigenvalue(fall[:, :, None] * slack_inverse * fall[:, None, :]))
    length = np.minimum(1.0, _INTERIOR / np.maximum(over, _INTERIOR))
    result, inverse = _copied(delta), _copied(slack_inverse)
    pending = np.arange(len(length))
    for _ in range(_BACKTRACKS):
        trial = delta[pending] + stacks.asarray(length[pending])[:, None] * step[pending]
        found, definite = stacks.inverse(_with_diagonal(-q.form[pending], trial))
        done = pending[definite]
        result[done], inverse[done] = trial[definite], found[definite]
        pending = pending[~definite]
        if len(pending) == 0:
            break
        length[pending] *= _SHRINK
    return result, inverse


def _longest(stacks: Stacks, pairs: list[tuple[Array, Array]]) -> FloatArray:
    """(b,) how far to go along the steps, at most 1, staying well inside value > 0."""
    length = np.ones(pairs[0][0].shape[0])
    for value, step in pairs:
        ratio = stacks.numpy(step / value).min(axis=-1, initial=0.0)
        length = np.minimum(length, _INTERIOR / np.maximum(-ratio, _INTERIOR))
    return length


def _largest_eigenvalue(stack: Array) -> Array:
    """(b,) an estimate from below of the largest eigenvalue of positive semidefinite matrices; costs little."""
    x = stack.sum(-1)[:, :, None] + stack.diagonal(0, -2, -1)[:, :, None]
    norm = x
    for _ in range(_POWER_ITERATIONS):
        x = x / ((x * x).sum(1)[:, :, None] ** 0.5 + _TINY)
        x = stack @ x
        norm = (x * x).sum(1) ** 0.5
    return norm[:, 0]


# ------------------------------------------------------------------------------------------------ block algebra


def _copied(array: Array) -> Array:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _with_diagonal(stack: Array, diagonal: Array) -> Array:
    """The matrices with a diagonal added."""
    out = _copied(stack)
    index = np.arange(stack.shape[-1])
    out[:, index, index] += diagonal
    return out


def _diagonal_blocks(stack: Array, size: int) -> Array:
    """(b, n, s, s) diagonal blocks of (b, p, p)."""
    count = stack.shape[-1] // size
    index = np.arange(count)
    return stack.reshape(-1, count, size, count, size)[:, index, :, index, :].swapaxes(0, 1)


def _group_sums(rows: Array, size: int) -> Array:
    """(b, n) sums over the rows of a group of (b, p)."""
    return rows if size == 1 else rows.reshape(rows.shape[0], -1, size).sum(-1)


def _block_sums(stack: Array, size: int) -> Array:
    """(b, n, n) sums over the blocks of (b, p, p)."""
    if size == 1:
        return stack
    count = stack.shape[-1] // size
    return stack.reshape(-1, count, size, count, size).sum((2, 4))


def _expanded(stacks: Stacks, stack: Array, size: int) -> Array:
    """(b, p, p) with every entry of (b, n, n) repeated over a block."""
    return stack if size == 1 else stacks.repeat(stacks.repeat(stack, size).mT, size)
