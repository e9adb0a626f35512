r"""The directional perspective relaxation: the lower bound that `exact` evaluates, for many nodes at once.

A node is a problem min_W 1/2 tr(W' H W) - tr(G' W) + c over supports of its n groups of s rows each, p = n s rows in
all, H positive definite. Only G G' matters, so G may be replaced by any F with F F' = G G'. We take

    F = H S,     S = (W0 W0')^(1/2),     W0 = inv(H) G,

the symmetric square root: of all choices it puts as much as possible of the dense weights W0 into the diagonal
blocks (Lowdin's symmetric orthogonalisation), so that the p columns of F, the targets, pair off with the p rows:
target columns of group g are those that the rows of g explain best when they are there.

The targets of group g get a relaxation of their own: H - D^(g) stays positive semidefinite for

    D^(g) = diag(a_h I) + E_g beta_g E_g',     beta_g = (1 - eps) inv(B_gg),     B = inv(H - diag(a_h I)),

with a > 0 shared by all targets and beta_g, the largest block that leaves H - D^(g) definite, in closed form. The
value is a convex function of the relaxed support z in (0, 1)^n and a concave one of a,

    psi(a, z) = c - 1/2 sum_g tr(F_g' inv(K^(g)) F_g),     K^(g) = H + D^(g) (1/z - 1),

equal to the objective at 0/1 points, and by Woodbury's identity costs two inverses of p x p matrices, whatever
the number of targets: with A = inv(H + diag(a (1/z - 1))), Y_g = (A F_g)_g, theta = z / ((1 - eps)(1 - z)),

    N_g = A_gg + theta_g B_gg,   u_g = inv(N_g) Y_g,   W^(g) = A F_g - A E_g u_g,
    psi = c - 1/2 tr(F' A F) + 1/2 sum_g tr(Y_g' u_g),
    score_g = -d psi / d z_g = 1/2 [ a_g |W_g|^2 / z_g^2 + theta'_g tr(u_g' B_gg u_g) ].

For every a with H > diag(a) and every z, whatever support S is allowed,

    objective(S) >= psi(a, z) + score.z - sum of score over S.

With a = 0 and one group's beta only, this is the loss of removing that group alone; with beta = 0 it is the usual
perspective bound with the same diagonal for every output (Zheng, Sun, Li 2014; Dong, Chen, Linderoth 2015). That each
output may have its own diagonal is what makes it several times tighter, and the closed form what makes it cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.linalg.lifted import Lifted
from osscar_opt.linalg.stacks import Array, Stacks

__all__ = [
    "SAFETY",
    "Evaluation",
    "Paired",
    "Point",
    "evaluate",
    "feasible_start",
    "multipliers",
    "newton",
    "pair",
]

SAFETY = 1e-6
"""eps: how far inside the cone of feasible diagonals beta stays, relatively."""

_RANK = 1e-13
"""Directions of W0 weaker than this, relatively and squared, have no target of their own."""

_TINY = 1e-300
_SHRINK = 0.5
_BACKTRACKS = 40
_POWER_ITERATIONS = 4
_INTERIOR = 0.9
"""Share of the way to the boundary that a step goes at most."""


@dataclass(eq=False)
class Paired:
    """A stack of nodes whose targets are paired with their rows.

    Attributes
    ----------
    gram : (b, p, p)
        H.
    targets : (b, p, p)
        F = H S = G V'.
    polar : (b, p, q)
        V, the orthogonal factor of W0 = S V.
    constant : (b,)
        c, the value with nothing kept.
    size : int
        s, rows of a group.
    """

    gram: Array
    targets: Array
    polar: Array
    constant: Array
    size: int

    def part(self, index: Any) -> Paired:
        """Some of the nodes."""
        return Paired(
            self.gram[index], self.targets[index], self.polar[index], self.constant[index], self.size
        )


@dataclass(eq=False)
class Point:
    """Where the stack is: a (b, n), z (b, n), and B = inv(H - diag(a)) (b, p, p)."""

    a: Array
    z: Array
    slack_inverse: Array

    def part(self, index: Any) -> Point:
        """Those of some of the nodes."""
        return Point(self.a[index], self.z[index], self.slack_inverse[index])


@dataclass(eq=False)
class Evaluation:
    """psi (b,) and score (b, n) at a point, with what the Newton step reuses."""

    psi: Array
    score: Array
    parts: tuple[Any, ...]

    def part(self, index: Any) -> Evaluation:
        """Those of some of the nodes."""
        return Evaluation(self.psi[index], self.score[index], tuple(array[index] for array in self.parts))


def pair(stacks: Stacks, gram: Array, cross: Array, constant: Array, node: Lifted) -> Paired:
    """Targets for nodes with H = gram (b, p, p), G = cross (b, p, q), on the device, that were lifted.

    Examples
    --------
    >>> from osscar_opt.linalg.lifted import lift
    >>> from osscar_opt.linalg.stacks import make_stacks
    >>> stacks, gram, cross = make_stacks("cpu"), np.eye(2)[None], np.array([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    >>> constant = np.array([2.5])
    >>> pair(stacks, gram, cross, constant, lift(stacks, gram, cross, constant, 1)).targets[0]
    array([[1., 0.],
           [0., 2.]])
    """
    dense = node.dense
    wide = dense.shape[-1] > dense.shape[-2]
    second = dense @ dense.mT if wide else dense.mT @ dense
    values, vectors = stacks.eigh((second + second.mT) * 0.5)
    floor = values[:, -1:] * _RANK + _TINY
    roots = (values + floor) ** -0.5 * (values > floor)
    inverse_root = (vectors * roots[:, None, :]) @ vectors.mT
    polar = inverse_root @ dense if wide else dense @ inverse_root
    return Paired(gram, cross @ polar.mT, polar, constant, node.size)


def feasible_start(stacks: Stacks, gram: Array, a: Array) -> tuple[Array, Array]:
    """Shrink a (b, n) until H - diag(a) is positive definite; returns a and the inverses."""
    size = gram.shape[-1] // a.shape[-1]
    inverse, definite = stacks.inverse(_plus_diagonal(gram, -stacks.repeat(a, size)))
    for _ in range(_BACKTRACKS):
        bad = np.flatnonzero(~definite)
        if len(bad) == 0:
            break
        a = _copied(a)
        a[bad] = a[bad] * _SHRINK
        again, definite[bad] = stacks.inverse(_plus_diagonal(gram[bad], -stacks.repeat(a[bad], size)))
        inverse[bad] = again
    return a, inverse


def evaluate(stacks: Stacks, node: Paired, at: Point) -> Evaluation:
    """Value and scores, that is minus its gradient in z.

    Examples
    --------
    >>> from osscar_opt.linalg.stacks import make_stacks
    >>> from osscar_opt.linalg.lifted import lift
    >>> stacks, problem = make_stacks("cpu"), (np.eye(2)[None], np.diag([1.0, 2.0])[None], np.array([2.5]))
    >>> node = pair(stacks, *problem, lift(stacks, *problem, 1))
    >>> a, inverse = feasible_start(stacks, node.gram, np.full((1, 2), 0.5))
    >>> at = evaluate(stacks, node, Point(a, np.full((1, 2), 0.5), inverse))
    >>> round(float(at.psi[0]), 3), at.score[0].round(3)
    (1.25, array([0.5, 2. ]))
    """
    a, z, b = at.a, at.z, at.slack_inverse
    size, f = node.size, node.targets
    odds = 1.0 / z - 1.0
    theta = z / ((1.0 - SAFETY) * (1.0 - z))
    theta1 = theta / (z * (1.0 - z))
    kernel, _ = stacks.inverse(_plus_diagonal(node.gram, stacks.repeat(a * odds, size)))
    plain = kernel @ f
    y = _diagonal_blocks(plain, size)
    n_blocks = _diagonal_blocks(kernel, size) + theta[..., None, None] * _diagonal_blocks(b, size)
    u = _solve_blocks(stacks, n_blocks, y)
    w = plain - _times_blocks(kernel, u)
    v = _times_blocks(b, u)
    psi = node.constant - 0.5 * (f * plain).sum((-2, -1)) + 0.5 * (y * u).sum((-3, -2, -1))
    energy = _group_sums((w * w).sum(-1), size)
    own = (u * _diagonal_blocks(v, size)).sum((-2, -1))
    score = 0.5 * (a * energy / (z * z) + theta1 * own)
    return Evaluation(psi, score, (odds, theta, theta1, kernel, n_blocks, u, w, v, energy, own))


def multipliers(stacks: Stacks, node: Paired, at: Point, found: Evaluation) -> Array:
    """Lambda (b, p, q) with which the lifted relaxation, at y = 1 - z and delta = 2 score, gives the same bound.

    Of the targets of group g, Lambda has the rows D^(g)_h W_h / z_h; they are turned back into outputs by V.
    """
    size = node.size
    _, theta, _, _, _, u, w, _, _, _ = found.parts
    rows = stacks.repeat(at.a / at.z, size)[:, :, None] * w
    # beta_g W_gg / z_g = (1 - eps) inv(B_gg) W_gg / z_g, and W_gg = theta_g B_gg u_g.
    own = u * ((1.0 - SAFETY) * theta / at.z)[:, :, None, None]
    count = rows.shape[-1] // size
    if size == 1:
        index = np.arange(count)
        rows[:, index, index] += own[:, :, 0, 0]
    else:
        blocks, index = rows.reshape(rows.shape[0], count, size, count, size), np.arange(count)
        blocks[:, index, :, index, :] += own.swapaxes(0, 1)
        rows = blocks.reshape(rows.shape)
    return rows @ node.polar


def newton(
    stacks: Stacks,
    node: Paired,
    at: Point,
    found: Evaluation,
    barrier: FloatArray,
    usage: FloatArray,
    slack: FloatArray,
    tight: bool,
) -> tuple[Point, FloatArray]:
    r"""One Newton step towards the saddle point max_a min_z of psi with logarithmic barriers.

    The barriers, of weight mu = `barrier` (b,), are logdet(H - diag(a)) + sum log a for a, and -sum log z -
    sum log(1 - z) for z, to which comes -sum log(limit - usage z) for the limits, or usage z = limit if `tight`.

    Parameters
    ----------
    usage : (b, m, n) array
    slack : (b, m) array
        limit - usage z at the point: positive, or anything if `tight`.
    tight : bool
        There is one limit, and it is met with equality.

    Returns
    -------
    Point
    (b,) array
        The share of the step that was taken.
    """
    a, z, b, size = at.a, at.z, at.slack_inverse, node.size
    odds, theta, theta1, kernel, n_blocks, _, w, v, energy, own = found.parts
    mu = stacks.asarray(barrier)[:, None]
    theta2 = 2.0 * theta1 / (1.0 - z)
    xi = -a / (z * z)
    q = _block_sums(kernel * (w @ w.mT), size)
    v_norms = _block_sums(v * v, size)
    scaled_v = v * stacks.repeat(theta, size)[:, None, :]
    cross = _own_products(kernel, w, size)
    p_a = odds[:, :, None, None, None] * cross + theta[:, None, :, None, None] * _own_products(b, v, size)
    p_z = xi[:, :, None, None, None] * cross
    _add_own(p_z, theta1[:, :, None, None] * _diagonal_blocks(v, size))
    p_a_n, p_z_n = (_flat(_solve_blocks(stacks, n_blocks[:, None], x)) for x in (p_a, p_z))
    p_a, p_z = _flat(p_a), _flat(p_z)
    b_trace = _group_sums(_diagonal(b), size)
    gradient_a = 0.5 * (odds * energy - (v_norms * theta[:, None, :]).sum(-1)) + mu * (size / a - b_trace)
    h_aa = (
        odds[:, :, None] * q * odds[:, None, :]
        + _block_sums(b * (scaled_v @ v.mT), size)
        - p_a_n @ p_a.mT
        + mu[:, :, None] * _block_sums(b * b, size)
    )
    h_aa = _plus_diagonal(h_aa, mu * size / (a * a))
    h_az = p_a_n @ p_z.mT - odds[:, :, None] * q * xi[:, None, :] - 0.5 * v_norms * theta1[:, None, :]
    h_az = _plus_diagonal(h_az, -0.5 * energy / (z * z))
    h_zz = p_z_n @ p_z.mT - xi[:, :, None] * q * xi[:, None, :]
    h_zz = _plus_diagonal(h_zz, a * energy / z**3 - 0.5 * theta2 * own + mu / (z * z) + mu / (1.0 - z) ** 2)
    gradient_z = mu / (1.0 - z) - mu / z - found.score
    solved = stacks.solve(h_aa, _beside(stacks, h_az, gradient_a))
    by_z, by_a = solved[:, :, :-1], solved[:, :, -1]
    h_zz = h_zz + h_az.mT @ by_z
    gradient_z = gradient_z + (h_az.mT @ by_a[:, :, None])[:, :, 0]
    use, room = stacks.asarray(usage), stacks.asarray(slack)
    if not tight:
        weighted = use * (mu / room)[:, :, None]
        gradient_z = gradient_z + weighted.sum(1)
        h_zz = h_zz + (weighted / room[:, :, None]).mT @ use
    h_zz = (h_zz + h_zz.mT) * 0.5
    if tight:
        pair = stacks.solve(h_zz, _beside(stacks, use.mT, -gradient_z))
        free, along = pair[:, :, 1], pair[:, :, 0]
        row = use[:, 0]
        multiplier = (room[:, 0] - (row * free).sum(-1)) / (row * along).sum(-1)
        step_z = free + multiplier[:, None] * along
    else:
        step_z = stacks.solve(h_zz, -gradient_z[:, :, None])[:, :, 0]
    step_a = by_a + (by_z @ step_z[:, :, None])[:, :, 0]
    return _moved(stacks, node, at, step_a, step_z, use, room, tight)


def _moved(
    stacks: Stacks,
    node: Paired,
    at: Point,
    step_a: Array,
    step_z: Array,
    use: Array,
    room: Array,
    tight: bool,
) -> tuple[Point, FloatArray]:
    """The point after a step cut short before the boundary; a step in a is halved until H - diag(a) is definite."""
    z_steps = [(at.z, step_z), (1.0 - at.z, -step_z)]
    if not tight:
        z_steps.append((room, -(use @ step_z[:, :, None])[:, :, 0]))
    length_z = _longest(stacks, z_steps)
    length_a = _longest(stacks, [(at.a, step_a)])
    length_a = np.minimum(
        length_a, _INTERIOR / _largest_eigenvalue(stacks, at.slack_inverse, step_a, node.size)
    )
    z = at.z + stacks.asarray(length_z)[:, None] * step_z
    pending = np.arange(len(length_a))
    a, inverse = _copied(at.a), _copied(at.slack_inverse)
    for _ in range(_BACKTRACKS):
        trial = at.a[pending] + stacks.asarray(length_a[pending])[:, None] * step_a[pending]
        shifted = _plus_diagonal(node.gram[pending], -stacks.repeat(trial, node.size))
        found, definite = stacks.inverse(shifted)
        done = pending[definite]
        a[done], inverse[done] = trial[definite], found[definite]
        pending = pending[~definite]
        if len(pending) == 0:
            break
        length_a[pending] *= _SHRINK
    length_a[pending] = 0.0
    return Point(a, z, inverse), np.minimum(length_a, length_z)


def _longest(stacks: Stacks, pairs: list[tuple[Array, Array]]) -> FloatArray:
    """(b,) how far to go along the steps, at most 1, staying well inside value > 0."""
    length = np.ones(pairs[0][0].shape[0])
    for value, step in pairs:
        ratio = stacks.numpy(step / value).min(axis=-1, initial=0.0)
        length = np.minimum(length, _INTERIOR / np.maximum(-ratio, _INTERIOR))
    return length


def _largest_eigenvalue(stacks: Stacks, inverse: Array, step: Array, size: int) -> FloatArray:
    """(b,) an estimate of lambda_max(B^(1/2) diag(step) B^(1/2)), at least _INTERIOR, by a few power iterations.

    The positive part of the step alone is looked at; too low an estimate costs a halving later, no more.
    """
    root = stacks.repeat((step.clip(0.0)) ** 0.5, size)
    x = root[:, :, None]
    for _ in range(_POWER_ITERATIONS):
        y = root[:, :, None] * (inverse @ (root[:, :, None] * x))
        norm = (y * y).sum(1, keepdims=True) ** 0.5
        x = y / (norm + 1e-300)
    return np.maximum(stacks.numpy(norm)[:, 0, 0] if _POWER_ITERATIONS else _INTERIOR, _INTERIOR)


# ------------------------------------------------------------------------------------------------ block algebra


def _copied(array: Array) -> Array:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _diagonal(stack: Array) -> Array:
    return stack.diagonal(0, -2, -1)


def _plus_diagonal(stack: Array, diagonal: Array) -> Array:
    out = _copied(stack)
    rows = range(stack.shape[-1])
    index = np.fromiter(rows, dtype=np.intp)
    out[:, index, index] += diagonal
    return out


def _diagonal_blocks(stack: Array, size: int) -> Array:
    """(b, n, s, s) diagonal blocks of (b, p, p)."""
    count = stack.shape[-1] // size
    if size == 1:
        return _diagonal(stack)[:, :, None, None]
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


def _times_blocks(stack: Array, blocks: Array) -> Array:
    """(b, p, p) product of a matrix with a block-diagonal one, given as (b, n, s, s)."""
    if blocks.shape[-1] == 1:
        return stack * blocks[:, None, :, 0, 0]
    b, count, size = blocks.shape[:3]
    columns = stack.reshape(b, count * size, count, size).swapaxes(1, 2)
    return (columns @ blocks).swapaxes(1, 2).reshape(b, count * size, count * size)


def _own_products(stack: Array, fitted: Array, size: int) -> Array:
    """(b, h, g, s, s): block (g, h) of a symmetric matrix times block (h, g) of the fitted weights."""
    if size == 1:
        return (stack * fitted)[:, :, :, None, None]
    b, p = stack.shape[:2]
    shape = (b, p // size, size, p // size, size)
    left = stack.reshape(shape).swapaxes(2, 3)  # (b, h, g, y, x): block (h, g), transposed is block (g, h)
    right = fitted.reshape(shape).swapaxes(2, 3)  # (b, h, g, y, c)
    return left.mT @ right


def _add_own(products: Array, blocks: Array) -> None:
    """Add (b, n, s, s) to the blocks (g, g) of (b, h, g, s, s) in place."""
    index = np.arange(blocks.shape[1])
    products[:, index, index] += blocks


def _solve_blocks(stacks: Stacks, blocks: Array, right: Array) -> Array:
    """Solutions of small systems (..., s, s)."""
    return right / blocks if blocks.shape[-1] == 1 else stacks.solve(blocks, right)


def _flat(products: Array) -> Array:
    """(b, h, g s s) of (b, h, g, s, s)."""
    return products.reshape(products.shape[0], products.shape[1], -1)


def _beside(stacks: Stacks, matrix: Array, column: Array) -> Array:
    """The matrix with one more column."""
    return stacks.beside(matrix, column[:, :, None])
