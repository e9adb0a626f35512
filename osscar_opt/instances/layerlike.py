"""Generated layers that resemble those of language models and convolutions, also ones too large to hold their inputs.

Inputs x of a layer with n groups of s rows are drawn as

    x = D B (z + F'u / sqrt(p/8)),    z ~ N(0, I_p),  u ~ N(0, I_{p/8}),  F fixed, N(0, 1),

so that all inputs share a low-rank part, as in an LLM's FFN; D holds a log-normal scale of each group (orders of
magnitude apart), and B mixes the rows inside a group:

- neurons, s = 1: nothing to mix; q = 3 p / 8 outputs, as in SwiGLU networks
- channels, 1 < s < 32: a smooth field over the places of the window, 3 x 3 for s = 9; q = n
- heads, s >= 32: what a head says lies mostly in few directions, its singular values fall as 1/sqrt(j); q = p

The Gram matrix is summed over chunks of inputs, in place: X itself never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import blas

from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.blas import square_update

__all__ = ["Shape", "generated", "gram_of", "posed"]

CHUNK = 40_000_000
"""Numbers in one chunk of inputs: 0.3 GiB; a layer of p = 3072 fits into one."""

_STRIPE = 1024


@dataclass(frozen=True)
class Shape:
    """Size of a generated layer: n groups of `size` rows, q outputs.

    Examples
    --------
    >>> Shape(512, 9, 512).p
    4608
    """

    n: int
    size: int
    q: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read "1536" (neurons) or "512x9" (groups x rows), and ":q" after it if the usual q is not wanted.

        Examples
        --------
        >>> Shape.parse("512x9:64")
        Shape(n=512, size=9, q=64)
        """
        rows, _, outputs = text.partition(":")
        n, _, size = rows.partition("x")
        return cls.of(int(n), int(size or 1), int(outputs) if outputs else None)

    @classmethod
    def of(cls, n: int, size: int = 1, q: int | None = None) -> Shape:
        """Take the usual number of outputs unless one is given: 3 n / 8 of neurons, n of channels, p of heads.

        Examples
        --------
        >>> Shape.of(1536).q, Shape.of(512, 9).q, Shape.of(12, 64).q
        (576, 512, 768)
        """
        usual = 3 * n // 8 if size == 1 else n if size < 32 else n * size
        return cls(n, size, max(1, usual) if q is None else q)

    @property
    def p(self) -> int:
        """Rows in all.

        Examples
        --------
        >>> Shape.of(12, 64).p
        768
        """
        return self.n * self.size

    @property
    def name(self) -> str:
        """Name of the problem.

        Examples
        --------
        >>> Shape.of(12, 64).name
        'generated-12x64-768'
        """
        return f"generated-{self.n if self.size == 1 else f'{self.n}x{self.size}'}-{self.q}"


def generated(
    shape: Shape,
    seed: int = 0,
    *,
    rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Problem:
    """The problem of a generated layer, without keep.

    Parameters
    ----------
    shape : Shape
    seed : int, optional
    rows : int, optional
        Inputs, 4 p by default.
    progress : callable, optional
        Called with the rows done and the rows in all.

    Returns
    -------
    Problem

    Examples
    --------
    >>> generated(Shape.of(8, 9), seed=1)
    Problem('generated-8x9-8', p=72, q=8, groups=Groups(n=8, sizes=9))
    """
    rng = np.random.default_rng(seed)
    return posed(shape, gram_of(shape, rng, rows or 4 * shape.p, progress), rng)


def posed(shape: Shape, gram: np.ndarray, rng: np.random.Generator, damping: float = 1e-2) -> Problem:
    """The problem of reproducing what random dense weights put out; `gram` is damped in its place and then used.

    Examples
    --------
    >>> posed(Shape.of(8, q=2), np.eye(8), np.random.default_rng(0)).q
    2
    """
    gram[np.diag_indices(shape.p)] += damping * float(gram.diagonal().mean())
    weights = rng.normal(size=(shape.p, shape.q))
    weights /= np.sqrt(shape.p)
    return Problem(gram, dense_weights=weights, groups=shape.size, name=shape.name, copy=False)


def gram_of(
    shape: Shape, rng: np.random.Generator, rows: int, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """X'X / N of `rows` inputs; beside it, no more is held at once than a few chunks and F.

    Examples
    --------
    >>> gram_of(Shape.of(8, 9), np.random.default_rng(0), 300).shape
    (72, 72)
    """
    p = shape.p
    shared = rng.normal(size=(max(1, p // 8), p))
    mix = _mix(shape)
    chunk = max(1, CHUNK // p)
    upper = np.zeros((p, p)).T  # columns contiguous, as BLAS updates it in place; of X'X, this half only
    for done in range(0, rows, chunk):
        count = min(chunk, rows - done)
        factors = rng.normal(size=(count, len(shared))) / np.sqrt(len(shared))
        inputs = rng.normal(size=(count, p))
        blas.dgemm(1.0, shared.T, factors.T, beta=1.0, c=inputs.T, overwrite_c=1)
        if mix is not None:
            inputs = _mixed(inputs, shape, mix)
        square_update(upper.T, inputs.T, 1.0 / rows)
        del inputs, factors
        if progress is not None:
            progress(done + count, rows)
    scale = np.repeat(rng.lognormal(sigma=0.7, size=shape.n), shape.size)
    return _scaled_symmetric(upper, scale)


def _mix(shape: Shape) -> np.ndarray | None:
    """B' of one group, or of every group: (s, s) or (n, s, s)."""
    size = shape.size
    if size == 1:
        return None
    if size < 32:
        side = math.ceil(math.sqrt(size))
        place = np.array([divmod(i, side) for i in range(size)], dtype=float)
        distance = np.linalg.norm(place[:, None] - place[None], axis=2)
        return np.asarray(scipy.linalg.cholesky(np.exp(-distance / 2.0)))
    fixed = np.random.default_rng(shape.n)
    turned = [np.linalg.qr(fixed.normal(size=(size, size)))[0] for _ in range(shape.n)]
    fall = np.arange(1.0, size + 1.0) ** -0.5
    return np.array([(fall / np.sqrt(np.mean(fall**2)))[:, None] * turn for turn in turned])


def _mixed(inputs: np.ndarray, shape: Shape, mix: np.ndarray) -> np.ndarray:
    if mix.ndim == 2:
        return np.ascontiguousarray((inputs.reshape(-1, shape.size) @ mix).reshape(len(inputs), -1))
    for group, own in enumerate(mix):
        columns = slice(group * shape.size, (group + 1) * shape.size)
        inputs[:, columns] = inputs[:, columns] @ own
    return inputs


def _scaled_symmetric(upper: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """D H D from the upper half of H, in its place, stripe by stripe; exactly symmetric."""
    p = len(upper)
    for start in range(0, p, _STRIPE):
        stripe = slice(start, min(start + _STRIPE, p))
        upper[:, stripe] *= scale[:, None]
        upper[:, stripe] *= scale[stripe]
        square = upper[stripe, stripe]
        square[...] = np.triu(square) + np.triu(square, 1).T
        upper[stripe, :start] = upper[:start, stripe].T
    return upper.T
