r"""Maximising the lifted bound (`osscar_opt.formulations.lifted`) of a large layer: a saddle point, step by step.

The bound is a maximum over Lambda and delta of a minimum over the shares removed y. What the minimum over all
supports would be is relaxed to second moments Y = E[y y'] with Y >= y y', Y_gg = y_g:

    max over Lambda of  min over (y, Y) of   <Lambda, y o W0> - 1/2 tr(Lambda' (Y o M) Lambda),

o the Hadamard product over blocks. One step improves each part in turn, given the others:

- Lambda solves (Y o M) Lambda = y o W0: a Cholesky factorisation and p^2 r multiplications.
- Q = blocksums(M o Lambda Lambda') is nearly diagonal when there are many outputs: the signs of Lambda Lambda' and of
  M have little to do with one another. The second moments that are worst for this Q are Y = y y' + U U' with
  |U_g|^2 = y_g (1 - y_g), the relaxation of a maximum cut; a few sweeps over the rows of U (n x ~sqrt(2n)), each to
  its best given the others, bring it up to date, and

      delta_g = Q_gg + |sum_{h != g} Q_gh U_h| / |U_g|

  makes Diag(delta) - Q positive semidefinite but for what the sweeps have not done: delta is scaled by an eigenvalue.
- y follows the scores, which are the derivatives of the bound: a step as long as a model of one coordinate says.

Y is damped from step to step. At first its second part is diag(fac_g y_g (1 - y_g)), fac = delta / Q_gg: near to what
is found in the end, and without its noise.

All of this may be done in single precision, since any Lambda and y give a bound; `evaluate` works in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack
from scipy.sparse.linalg import ArpackError, eigsh

from osscar_opt._typing import AnyArray, FloatArray
from osscar_opt.formulations._layer import Layer, mirror
from osscar_opt.formulations._prices import Market, most_kept
from osscar_opt.linalg.blas import cholesky_lower, inverse_from_cholesky_lower, square_update

__all__ = ["Ascent", "Found"]

_SINGLE_FROM = 384
"""Rows from which steps are taken in single precision."""

_PLAIN_STEPS = 5
"""Steps with the diagonal second part of Y."""

_MIX, _MIX_DECAY, _LEAST_MIX = 0.25, 0.1, 0.05
"""Share of the latest U U' in Y, how it falls with the steps, and its floor."""

_DAMPING = 0.6
_LEAST_CURVATURE = 0.2
_FLOOR, _FLOOR_RANGE = 0.02, 1e-2
"""y and 1 - y stay above this share of their mean; less so where the score leaves no doubt."""

_SWEEPS = 5
_TILE = 64
_POLISH, _POLISH_IN_PLAY = 30, 10
_MOVED_IN_PLAY, _MEAN = 0.2, 0.7
"""How far y moves towards the latest answer; the power of 1/t with which the latest delta enters its mean."""

_CURVATURE_EVERY = 4
_MARGIN = 1e-7
"""delta is enlarged by this share, so that Diag(delta) - Q is definite beyond rounding."""

_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Found:
    """A bound, and the numbers that prove it.

    Attributes
    ----------
    value : float
        Above the value of keeping everything.
    multipliers : (p, r) array, float32 where that is precise enough
        Lambda, for the problem's rows group by group.
    delta, removed : (n,) arrays
    scores : (n,) array
        The value of a support is at least ``value + sum of scores kept at most - sum of scores kept``.
    prices : (m,) array
        Of the limits.
    """

    value: float
    multipliers: AnyArray
    delta: FloatArray
    removed: FloatArray
    scores: FloatArray
    prices: FloatArray


class Ascent:
    """The state of the search for the best bound.

    Parameters
    ----------
    layer : Layer
    usage, limit : (m, n) and (m,) arrays
        At least one limit, and one that not all groups together meet.
    """

    def __init__(self, layer: Layer, usage: FloatArray, limit: FloatArray) -> None:
        self._layer, self._usage, self._limit = layer, usage, limit
        self._market = Market(usage, limit)
        self._take_precision(np.float32 if len(layer.order) >= _SINGLE_FROM else np.float64)
        total = np.maximum(usage.sum(axis=1), _TINY)
        share = np.where(usage > 0.0, np.clip(limit / total, 0.0, 1.0)[:, None], 1.0).min(axis=0)
        self._least_kept, self._least_removed = _FLOOR * share, _FLOOR * np.maximum(1.0 - share, 1e-6)
        self.removed = np.clip(1.0 - share, self._least_removed, 1.0 - self._least_kept)
        n = layer.blocks.n
        rank = min(n, int(np.sqrt(2.0 * n)) + 2)
        unit = np.random.default_rng(0).normal(size=(n, rank))
        self._unit = (unit / np.linalg.norm(unit, axis=1)[:, None]).astype(self._dtype)
        self._factor = np.ones(n)
        self._correlation: AnyArray | None = None
        self._alone = np.ones(n)
        self.steps = 0

    def step(self) -> float:
        """Bring Lambda, U, delta and y up to date; return the value of the relaxation at the Y it began with."""
        value = self._solve()
        sums = self._form(self._single, self._multipliers)
        linear = self._layer.blocks.totals(np.einsum("ij,ij->i", self._multipliers, self._dense)).astype(
            np.float64
        )
        self._unit, delta = _swept(sums, self._unit, self.removed, _SWEEPS)
        form = sums.diagonal().astype(np.float64)
        pushed = delta * self.removed - (sums @ self.removed.astype(self._dtype)).astype(np.float64)
        self._factor = delta / np.maximum(form, _TINY)
        self._mix_correlation()
        self._move(linear - 0.5 * delta + pushed, delta - form)
        self.steps += 1
        return value

    def evaluate(self, plays: int) -> Found:
        """The bound at the present Lambda, in double precision.

        For fixed Lambda the best delta and the worst y are found by fictitious play: each answers the mean of what the
        other has played, as often as `plays` says.  A mean of feasible delta is feasible.
        """
        layer = self._layer
        stored = layer.outward(self._multipliers.astype(np.float64))
        single = stored.astype(np.float32)
        rounded = self._dtype == np.float32 and bool(np.isfinite(single).all())
        kept: AnyArray = single if rounded else stored
        multipliers = layer.inward(kept.astype(np.float64))
        form = self._form(layer.inverse, multipliers)
        quick = form.astype(self._dtype)
        linear = layer.blocks.totals(np.einsum("ij,ij->i", multipliers, layer.dense))
        unit, removed, delta = self._unit, self.removed, np.zeros(len(linear))
        for play in range(plays):
            unit, answer = _swept(quick, unit, removed, _SWEEPS)
            delta += (answer - delta) / (play + 1.0) ** _MEAN
            if play + 1 < plays:
                worst = self._polished(quick, delta, linear - 0.5 * delta, removed, _POLISH_IN_PLAY)
                removed = removed + _MOVED_IN_PLAY * (worst - removed)
        delta = _feasible(form, delta)
        removed = self._polished(form, delta, linear - 0.5 * delta, removed, _POLISH)
        pushed = delta * removed - form @ removed
        scores = linear - 0.5 * delta + pushed
        most, prices = most_kept(scores, self._usage, self._limit)
        value = float(scores.sum() - 0.5 * removed @ pushed - most)
        value -= layer.rounding * float(form.diagonal().sum()) + 1e-13 * float(np.abs(scores).sum())
        return Found(value, kept, delta, removed, scores, prices)

    # ------------------------------------------------------------------------------------------ Lambda

    def _take_precision(self, dtype: type) -> None:
        self._dtype = np.dtype(dtype)
        self._single: AnyArray = self._layer.inverse.astype(dtype, copy=False)
        self._dense: AnyArray = self._layer.dense.astype(dtype, copy=False)
        self._work = np.empty_like(self._single)

    def _solve(self) -> float:
        """Lambda from Y: with roots of y on both sides, so that y = 0 does no harm."""
        blocks, y = self._layer.blocks, self.removed
        root = np.sqrt(y)
        right = self._dense * blocks.rows(root.astype(self._dtype))[:, None]
        while True:
            spread = np.sqrt(1.0 - y).astype(self._dtype)
            moments = np.outer(root, root).astype(self._dtype)
            if self._correlation is None:
                moments[np.diag_indices_from(moments)] += (self._factor * (1.0 - y)).astype(self._dtype)
            else:
                part = self._correlation * spread
                part *= spread[:, None]
                moments += part
            lower = blocks.scaled(self._single, moments, self._work).T
            try:
                cholesky_lower(lower)
                break
            except np.linalg.LinAlgError:
                self._refuse_rounding()
        solved = _solved(lower, right)
        value = 0.5 * float(np.einsum("ij,ij->", solved, right, dtype=np.float64))
        self._multipliers = solved / blocks.rows(np.maximum(root, 1e-12).astype(self._dtype))[:, None]
        if self.steps < 3 or self.steps % _CURVATURE_EVERY == 0:
            inverse_from_cholesky_lower(lower)
            mean = blocks.totals(lower.diagonal()).astype(np.float64) / blocks.sizes
            own = (
                self._factor if self._correlation is None else self._correlation.diagonal().astype(np.float64)
            )
            self._alone = np.clip((1.0 / mean - own * (1.0 - y)) / np.maximum(y, _TINY), 1e-3, 1.0)
        return value

    def _refuse_rounding(self) -> None:
        """Go on in double precision; there, if even that is not enough, with more of a diagonal."""
        if self._dtype == np.float32:
            self._take_precision(np.float64)
            self._unit = self._unit.astype(np.float64)
            if self._correlation is not None:
                self._correlation = self._correlation.astype(np.float64)
        elif self._correlation is not None:
            self._correlation[np.diag_indices_from(self._correlation)] += 1e-3
        else:
            self._factor = self._factor + 1e-3
            self.removed = np.minimum(self.removed, 1.0 - 1e-6)

    def _form(self, inverse: AnyArray, multipliers: AnyArray) -> AnyArray:
        """Q, in the precision of its arguments."""
        work = self._work if inverse.dtype == self._dtype else np.empty_like(inverse)
        square_update(work.T, np.asfortranarray(multipliers), 1.0, keep=0.0)
        mirror(work.T)
        work *= inverse
        return self._layer.blocks.sums(work)

    # ------------------------------------------------------------------------------------ second moments

    def _mix_correlation(self) -> None:
        if self.steps < _PLAIN_STEPS:
            return
        latest = self._unit @ self._unit.T
        share = max(_MIX / (1.0 + _MIX_DECAY * (self.steps - _PLAIN_STEPS)), _LEAST_MIX)
        if self._correlation is None:
            latest *= self._dtype.type(share)
            latest[np.diag_indices_from(latest)] += ((1.0 - share) * self._factor).astype(self._dtype)
            self._correlation = latest
        else:
            latest -= self._correlation
            latest *= self._dtype.type(share)
            self._correlation += latest

    # --------------------------------------------------------------------------------------------- y

    def _move(self, scores: FloatArray, beyond: FloatArray) -> None:
        """Move y so that all scores meet the prices of their groups.

        The model of one coordinate is score(y') = score / (1 + gamma (y - y'))^2: exact if the others stand still and
        Y is diagonal, with inv(alone) what M_gg is then reduced to. To it comes how delta - Q_gg grows near 0 and 1.
        """
        y, z = self.removed, 1.0 - self.removed
        own = self._factor if self._correlation is None else self._correlation.diagonal().astype(np.float64)
        scale = float(np.abs(scores).mean()) + _TINY
        price = most_kept(scores, self._usage, self._limit)[1] @ self._usage
        positive = np.maximum(scores, 1e-12 * scale)
        gamma = np.maximum(
            (own - self._alone) / np.maximum(self._alone * y + own * z, _TINY), _LEAST_CURVATURE
        )
        steep = 1.0 + (1.0 - 2.0 * y) ** 2 / np.maximum(4.0 * y * z, 1e-9)
        gamma += np.maximum(beyond, 0.0) * steep / (2.0 * np.maximum(positive, 0.05 * np.median(positive)))
        least = self._least_removed * np.clip(price / positive, _FLOOR_RANGE, 1.0)
        most = 1.0 - self._least_kept * np.clip(positive / np.maximum(price, _TINY), _FLOOR_RANGE, 1.0)
        root = np.sqrt(positive)

        def removed_at(pi: FloatArray) -> FloatArray:
            step = (root / np.sqrt(np.maximum(pi, _TINY)) - 1.0) / gamma
            return np.asarray(np.clip(y - _DAMPING * step, least, most))

        self.removed = removed_at(self._market.fitted(lambda pi: 1.0 - removed_at(pi), scale))

    def _polished(
        self, form: AnyArray, delta: FloatArray, linear: FloatArray, start: FloatArray, steps: int
    ) -> FloatArray:
        """The worst y for fixed Lambda and delta, nearly: accelerated projected gradients of a convex quadratic.

        Its Hessian is Diag(delta) - Q <= Diag(delta), in whose norm the projection is.
        """
        latest = ahead = start
        momentum = 1.0
        for _ in range(steps):
            slope = linear + delta * ahead - (form @ ahead.astype(form.dtype)).astype(np.float64)
            following = self._market.projected(ahead - slope / delta, delta)
            if (following - latest) @ slope > 0.0:
                momentum = 1.0
            faster = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
            ahead = following + (momentum - 1.0) / faster * (following - latest)
            latest, momentum = following, faster
        return latest


def _swept(form: AnyArray, unit: AnyArray, removed: FloatArray, sweeps: int) -> tuple[AnyArray, FloatArray]:
    """Sweep U = |U| unit towards the worst second moments for Q; return the new unit and its delta."""
    n = len(form)
    norm = np.sqrt(np.maximum(removed * (1.0 - removed), 1e-12)).astype(form.dtype)
    u = unit * norm[:, None]
    diagonal, delta = form.diagonal(), np.empty(n)
    for _ in range(sweeps):
        for low in range(0, n, _TILE):
            rows = slice(low, min(n, low + _TILE))
            own, mine = form[rows, rows], u[rows]
            others = form[rows] @ u - own @ mine
            for _ in range(
                2
            ):  # Q is positive semidefinite, so that taking all these rows at once is an ascent
                towards = others + own @ mine
                length = np.sqrt(np.einsum("ij,ij->i", towards, towards))
                mine = towards * (norm[rows] / np.maximum(length, 1e-30))[:, None]
            u[rows] = mine
            towards = others + own @ mine - diagonal[rows, None] * mine
            delta[rows] = diagonal[rows] + np.sqrt(np.einsum("ij,ij->i", towards, towards)) / norm[rows]
    return u / np.maximum(np.linalg.norm(u, axis=1), 1e-30)[:, None], delta


def _feasible(form: FloatArray, delta: FloatArray) -> FloatArray:
    """Scale delta to where Diag(delta) - Q is just positive definite."""
    n = len(form)
    delta = np.maximum(delta, np.maximum(form.diagonal(), 1e-12 * form.diagonal().max(initial=0.0)) + _TINY)
    root = 1.0 / np.sqrt(delta)
    if n < 4 * _TILE:
        largest = float(np.linalg.eigvalsh(form * root * root[:, None])[-1])
    else:

        def times(x: FloatArray) -> FloatArray:
            return root * (form @ (root * x.ravel()))

        from scipy.sparse.linalg import LinearOperator

        operator = LinearOperator((n, n), matvec=times, dtype=np.float64)
        try:
            start = np.random.default_rng(0).normal(size=n)
            largest = float(
                eigsh(operator, k=1, which="LA", tol=1e-4, v0=start, return_eigenvectors=False)[0]
            )
        except ArpackError:
            largest = 1.0
    delta = delta * (largest * (1.0 + 1e-9))
    growth = _MARGIN
    while True:
        slack = np.negative(form).T
        slack[np.diag_indices(n)] += delta
        try:
            cholesky_lower(slack)
        except np.linalg.LinAlgError:
            delta = delta * (1.0 + growth)
            growth *= 4.0
        else:
            return delta * (1.0 + _MARGIN)


def _solved(lower: AnyArray, right: AnyArray) -> AnyArray:
    """Solve L L' X = right; X is row-major."""
    potrs = lapack.spotrs if lower.dtype == np.float32 else lapack.dpotrs
    solution, info = potrs(lower, right, lower=1)
    if info != 0:
        raise np.linalg.LinAlgError(f"LAPACK refused argument {-info}")
    return np.asarray(solution)
