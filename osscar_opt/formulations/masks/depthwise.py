r"""Balanced masks for depthwise convolutions: equally many weights in every tile of channels.

A depthwise convolution has one small filter w_c (k = height times width weights) for each channel c, which reads that
channel only.  Run as matrix products on a GPU, the filters of some consecutive channels form one product, and a
single weight that goes removes a whole column from it; the products run side by side, so that the fullest decides the
time.  DEPrune (C. Park, M. Park, H. Moon, M. K. Yoon, S. Go, S. Kim, W. W. Ro, *DEPrune: Depth-wise Separable
Convolution Pruning for Maximizing GPU Parallelism*, NeurIPS 2024) therefore prunes single weights, and tunes their
number to be the same in each of the products.  With tiles of m channels and K weights kept in each,

.. math:: \min \sum_c \tfrac12 (w_c - w_c^*)' H_c (w_c - w_c^*) \quad\text{with}\quad
          \sum_{c \in \text{tile}} |S_c| \le K \text{ for every tile},

H_c the Gram matrix of the channel's patches.  Channels meet only in the count: the best loss of channel c with j
weights, over all 2^k supports, is a curve, and a tile is a `CountProblem` over its channels' curves, solved exactly by
its dynamic program.  The curves need not be convex.

Beside it stands a choice by magnitude, the K largest weights of a tile, as is usual for single weights.  What is here
is the paper's pattern with our objective; left out are its recalibration of each layer's sparsity to the hardware's
sizes, the pointwise half, and the fine-tuning.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from osscar_opt._typing import ArrayLike, BoolArray, FloatArray, read_only
from osscar_opt.errors import CapabilityError, InputError, OptionError
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations.counts import CountProblem
from osscar_opt.formulations.masks.masked import Masked, checked_mask
from osscar_opt.formulations.outcome import Bound, judged
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import BoundKind

__all__ = ["DepthwiseMethod", "DepthwiseProblem", "DepthwiseSolution"]

DepthwiseMethod = Literal["exact", "marginal", "magnitude"]

_MOST_WEIGHTS = 16


@dataclass(frozen=True, eq=False, repr=False)
class DepthwiseProblem:
    """Which weights of a depthwise convolution stay, equally many in every tile of channels.

    Parameters
    ----------
    grams : (channels, k, k) array
        H_c, each symmetric positive definite.
    weights : (channels, k) array
        w*_c, the dense filters.
    tile : int
        m, consecutive channels in a tile; divides the number of channels.
    keep : int
        K, weights kept in each tile.

    Examples
    --------
    >>> grams = np.stack([np.eye(2), 4 * np.eye(2)])
    >>> problem = DepthwiseProblem(grams, [[2.0, 3.0], [1.0, 1.5]], tile=2, keep=2)
    >>> problem.solve().mask  # by magnitude it would be 3.0 and 2.0
    array([[False,  True],
           [False,  True]])
    """

    grams: FloatArray
    weights: FloatArray
    tile: int
    keep: int

    def __init__(self, grams: ArrayLike, weights: ArrayLike, *, tile: int, keep: int) -> None:
        h, w = np.array(grams, dtype=np.float64), np.array(weights, dtype=np.float64)
        if w.ndim != 2 or h.shape != (*w.shape, w.shape[-1]):
            raise InputError(
                f"weights must be channels by k and grams channels by k by k, but their shapes are {w.shape} and "
                f"{h.shape}."
            )
        if not (np.all(np.isfinite(h)) and np.all(np.isfinite(w))):
            raise InputError("grams and weights must be finite numbers.")
        if w.shape[1] > _MOST_WEIGHTS:
            raise CapabilityError(
                f"filters of {w.shape[1]} weights have too many supports to enumerate (at most {_MOST_WEIGHTS}); pose "
                "each tile as a Problem."
            )
        if tile < 1 or len(w) % tile:
            raise InputError(f"tile = {tile} must divide the {len(w)} channels.")
        if not 0 <= keep <= tile * w.shape[1]:
            raise InputError(
                f"keep = {keep} must lie between 0 and the {tile * w.shape[1]} weights of a tile."
            )
        if np.any(np.linalg.eigvalsh(h)[:, 0] <= 0.0):
            raise InputError("a channel's gram is not positive definite: add damping.")
        for name, value in {
            "grams": read_only(0.5 * (h + h.swapaxes(1, 2))),
            "weights": read_only(w),
            "tile": int(tile),
            "keep": int(keep),
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_patches(
        cls, patches: ArrayLike, weights: ArrayLike, *, tile: int, keep: int, damping: float = 1e-2
    ) -> DepthwiseProblem:
        """Pose it from calibration patches, (N, channels, k), damped as a layer's problem is, channel by channel.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> DepthwiseProblem.from_patches(rng.normal(size=(50, 4, 9)), rng.normal(size=(4, 9)), tile=2, keep=8)
        DepthwiseProblem(channels=4, k=9, tile=2, keep=8)
        """
        x = np.asarray(patches, dtype=np.float64)
        if x.ndim != 3 or len(x) == 0:
            raise InputError(f"patches must be samples by channels by k, but their shape is {x.shape}.")
        grams = np.einsum("nci,ncj->cij", x, x) / len(x)
        ridge = damping * np.einsum("cii->c", grams) / x.shape[2]
        return cls(grams + ridge[:, None, None] * np.eye(x.shape[2]), weights, tile=tile, keep=keep)

    @property
    def tiles(self) -> int:
        """Number of tiles: problems that do not meet.

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)] * 4, np.ones((4, 2)), tile=2, keep=1).tiles
        2
        """
        return len(self.weights) // self.tile

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of grams, weights and tile size; not of keep.

        Examples
        --------
        >>> a, b = (DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=keep) for keep in (0, 1))
        >>> a.hash == b.hash
        True
        """
        return content_hash(
            grams=self.grams.reshape(len(self.weights), -1), weights=self.weights, tile=self.tile
        )

    def part(self, number: int) -> Problem:
        """One tile as a layer's problem: block-diagonal gram, single rows, a plain keep.  Any method solves it.

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)] * 2, np.ones((2, 2)), tile=2, keep=1).part(0)
        Problem(p=4, q=1, groups=Groups(n=4, sizes=1), keep=1)
        """
        from scipy.linalg import block_diag

        own = self._channels(number)
        return Problem(
            block_diag(*self.grams[own]), dense_weights=self.weights[own].reshape(-1, 1), keep=self.keep
        )

    @cached_property
    def best_subsets(self) -> tuple[FloatArray, BoolArray]:
        """Least loss of each channel with j = 0..k weights, (channels, k + 1), and the masks, (channels, k + 1, k).

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=1).best_subsets[0]
        array([[2.5, 0.5, 0. ]])
        """
        channels, k = self.weights.shape
        losses = np.full((channels, k + 1), np.inf)
        masks = np.zeros((channels, k + 1, k), dtype=bool)
        inverse = np.linalg.inv(self.grams)
        for gone in range(k + 1):
            for removed in map(list, itertools.combinations(range(k), gone)):
                part = self.weights[:, removed]
                block = inverse[:, removed][:, :, removed]
                loss = 0.5 * np.einsum("ci,ci->c", part, np.linalg.solve(block, part[:, :, None])[:, :, 0])
                better = loss < losses[:, k - gone]
                losses[better, k - gone] = loss[better]
                masks[better, k - gone] = ~np.isin(np.arange(k), removed)
        return read_only(losses), read_only(masks)

    def objective(self, weights: ArrayLike) -> float:
        """Half the mean squared error of the outputs, summed over the channels, plus the pull of the damping.

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=1).objective([[0.0, 2.0]])
        0.5
        """
        apart = np.asarray(weights, dtype=np.float64) - self.weights
        return 0.5 * float(np.einsum("ci,cij,cj->", apart, self.grams, apart))

    def refit(self, mask: ArrayLike) -> FloatArray:
        """The best weights with a mask.

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2) + 1], [[1.0, 2.0]], tile=1, keep=1).refit([[False, True]])
        array([[0. , 2.5]])
        """
        kept = checked_mask(mask, self.weights.shape)
        weights = np.zeros(kept.shape)
        for gram, dense, own, row in zip(self.grams, self.weights, kept, weights, strict=True):
            row[own] = np.linalg.solve(gram[np.ix_(own, own)], gram[own] @ dense)
        return weights

    def violation(self, mask: ArrayLike) -> str:
        """One clause saying which tile keeps too many weights, or "".

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=1).violation([[True, True]])
        'keeps 2 weights in tile 0, more than 1'
        """
        counts = checked_mask(mask, self.weights.shape).reshape(self.tiles, -1).sum(axis=1)
        worst = int(np.argmax(counts))
        return (
            ""
            if counts[worst] <= self.keep
            else f"keeps {counts[worst]} weights in tile {worst}, more than {self.keep}"
        )

    def solve(self, method: DepthwiseMethod = "exact", *, refit: bool = True) -> DepthwiseSolution:
        """Choose the mask.

        Parameters
        ----------
        method : {"exact", "marginal", "magnitude"}, optional
            "exact": all supports of each channel, then the dynamic program.  "marginal": the same supports, counts
            step by step.  "magnitude": the largest weights of each tile.
        refit : bool, optional
            For "magnitude": whether what stays is fitted anew.

        Examples
        --------
        >>> problem = DepthwiseProblem([np.eye(2)] * 2, [[1.0, 2.0], [3.0, 4.0]], tile=2, keep=2)
        >>> problem.solve("magnitude").objective, problem.solve("exact").status.value
        (2.5, 'optimal')
        """
        began = time.perf_counter()
        if method not in ("exact", "marginal", "magnitude"):
            raise OptionError(f"method = {method!r} is not one of exact, marginal, magnitude.")
        if method == "magnitude":
            mask = self._largest()
            weights = self.refit(mask) if refit else np.where(mask, self.weights, 0.0)
            bound = Bound()
        else:
            mask, bound = self._counted("dynamic" if method == "exact" else "marginal")
            weights = self.refit(mask)
        everything = self.objective(np.zeros(self.weights.shape))
        return DepthwiseSolution(
            problem=self,
            mask=read_only(mask),
            weights=read_only(weights),
            method=method,
            problem_hash=self.hash,
            options={"refit": refit},
            solve_time=time.perf_counter() - began,
            **judged(self.objective(weights), bound, 1e-12 * everything),
        )

    def __repr__(self) -> str:
        channels, k = self.weights.shape
        return f"DepthwiseProblem(channels={channels}, k={k}, tile={self.tile}, keep={self.keep})"

    def _counted(self, method: Literal["dynamic", "marginal"]) -> tuple[BoolArray, Bound]:
        losses, masks = self.best_subsets
        chosen = np.zeros(self.weights.shape, dtype=bool)
        total = 0.0
        for number in range(self.tiles):
            own = self._channels(number)
            found = CountProblem(list(losses[own]), self.keep).solve(method)
            chosen[own] = masks[own][np.arange(self.tile), found.counts]
            total += found.bound
        # The curves are enumerations of our own, and no proof of them is kept: what rests on them is claimed.
        return chosen, Bound(total, BoundKind.CLAIMED)

    def _largest(self) -> BoolArray:
        sizes = np.abs(self.weights).reshape(self.tiles, -1)
        order = np.argsort(-sizes, axis=1, kind="stable")[:, : self.keep]
        mask = np.zeros(sizes.shape, dtype=bool)
        np.put_along_axis(mask, order, True, axis=1)
        return mask.reshape(self.weights.shape)

    def _channels(self, number: int) -> slice:
        if not 0 <= number < self.tiles:
            raise InputError(f"there is no tile {number}: tiles are 0..{self.tiles - 1}.")
        return slice(number * self.tile, (number + 1) * self.tile)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DepthwiseSolution(Masked):
    """A mask with its weights, and what is known of it.

    Attributes
    ----------
    problem : DepthwiseProblem
    mask : (channels, k) mask
        True = the weight stays.
    weights : (channels, k) array
        Exactly zero outside the mask.

    Examples
    --------
    >>> DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=1).solve()
    DepthwiseSolution(exact, objective=0.5, gap=0, optimal, completed)
    """

    problem: DepthwiseProblem

    def to_dict(self) -> dict[str, Any]:
        """As `Outcome.to_dict`, with the number of weights kept.

        Examples
        --------
        >>> DepthwiseProblem([np.eye(2)], [[1.0, 2.0]], tile=1, keep=1).solve().to_dict()["kept"]
        1
        """
        return super().to_dict() | {"kept": int(self.mask.sum())}
