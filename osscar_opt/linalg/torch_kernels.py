"""The tableau's operations on torch tensors, on any device: symmetric matrices whole, in two arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt._typing import FloatArray, IntArray

if TYPE_CHECKING:
    from osscar_opt.linalg.kernels import Array

__all__ = ["TorchKernels"]

_ROWS = 1024


class TorchKernels:
    """torch tensors on any device; symmetric matrices whole, since a GPU is best at whole matrix products.

    Nothing here waits for the device but `numpy`, the Cholesky factorisation, and what the tableau asks to decide.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "cuda:1", ...
    precision : {"float64", "float32"}
        In which matrices are stored.
    """

    lower_only = False
    waits = False

    def __init__(self, device: str = "cpu", precision: str = "float64") -> None:
        import torch

        self.torch = torch
        self.device = torch.zeros(0, device=device).device  # raises where there is no such device
        self.dtype = getattr(torch, precision)
        self.epsilon = float(torch.finfo(self.dtype).eps)

    def pair(self, rows: int) -> tuple[Array, Array]:
        shape = (rows, rows)
        t, n = (self.torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return t, n

    def load(self, t: Array, gram: FloatArray, order: IntArray, scale: FloatArray) -> None:
        for start in range(0, len(order), _ROWS):  # gram stays where it is: it may not fit on the device
            rows = order[start : start + _ROWS]
            part = gram[rows].take(order, axis=1) * scale[order]
            part *= scale[rows, None]
            t[start : start + _ROWS] = self.torch.from_numpy(part).to(self.device)

    def asarray(self, array: FloatArray) -> Array:
        return self.torch.tensor(np.asarray(array), dtype=self.torch.float64, device=self.device)

    def index(self, index: IntArray) -> Array:
        return self.torch.as_tensor(index, device=self.device)

    def empty(self, rows: int, columns: int) -> Array:
        return self.torch.zeros((rows, columns), dtype=self.torch.float64, device=self.device)

    def numpy(self, array: Array) -> FloatArray:
        return np.asarray(array.to("cpu", self.torch.float64).numpy())

    def sweep(self, t: Array, n: Array, kept: int, chunks: Iterable[Array], *, known: bool = False) -> None:
        if known and kept == len(t):
            self._invert(t, work=n)
            self._add_squares(n, chunks)
            return
        linalg = self.torch.linalg
        lower = self._cholesky(t[:kept, :kept])
        half = linalg.solve_triangular(lower, t[kept:, :kept].T, upper=False)  # X' = L^-1 H_SP
        t[kept:, kept:].addmm_(half.T, half, alpha=-1.0)
        if not known:
            chunks = (self._residuals(lower, half, self.stored(chunk), kept) for chunk in chunks)
        self._add_squares(n, chunks)
        t[:kept, kept:] = linalg.solve_triangular(lower.T, half, upper=True)
        t[kept:, :kept] = t[:kept, kept:].T
        if kept:
            t[:kept, :kept] = -self.torch.cholesky_inverse(lower)

    def _invert(self, t: Array, work: Array) -> None:
        """T = -inv(T), without any memory beyond `work`."""
        if len(t):
            self._cholesky(t, out=work)
            self.torch.cholesky_inverse(work, out=t)
            t.neg_()

    def _cholesky(self, matrix: Array, out: Array | None = None) -> Array:
        try:
            return self.torch.linalg.cholesky(matrix, out=out)
        except RuntimeError as error:  # torch has its own LinAlgError
            raise np.linalg.LinAlgError(str(error)) from None

    def _residuals(self, lower: Array, half: Array, f: Array, kept: int) -> Array:
        """F = [W_S; r_P] of some columns of G, in their place."""
        white = self.torch.linalg.solve_triangular(lower, f[:kept], upper=False)
        f[kept:] -= half.T @ white
        f[:kept] = self.torch.linalg.solve_triangular(lower.T, white, upper=True)
        return f

    def _add_squares(self, n: Array, chunks: Iterable[Array]) -> None:
        n.zero_()
        for chunk in chunks:
            f = self.stored(chunk)
            n.addmm_(f, f.T)

    def square_update(self, c: Array, a: Array, alpha: float) -> None:
        c.addmm_(a, a.T, alpha=alpha)

    def symmetric_update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        c.addmm_(a, b.T, alpha=alpha)
        c.addmm_(b, a.T, alpha=alpha)

    def update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        c.addmm_(a, b.T, alpha=alpha)

    def stored(self, panel: Array) -> Array:
        return panel.to(self.dtype)

    def column(self, c: Array, row: int) -> Array:
        return c[row].to(self.torch.float64, copy=True)

    def columns(self, c: Array, start: int, stop: int) -> Array:
        return c[:, start:stop].to(self.torch.float64, copy=True)

    def set_columns(self, c: Array, start: int, stop: int, values: Array) -> None:
        c[:, start:stop] = values
        c[start:stop] = values.T

    def copy_rows(self, c: Array, source: IntArray, target: IntArray, run: int) -> None:
        old, new = self.index(source), self.index(target)
        values = c[:, old]
        values[new] = values[old]
        c[:, new] = values
        c[new] = values.T

    def clear_rows(self, c: Array, start: int, stop: int) -> None:
        c[start:stop] = 0.0
        c[:, start:stop] = 0.0

    def diagonal_blocks(self, c: Array, start: int, size: int, count: int) -> Array:
        down, along = c.stride()
        blocks = c[start:, start:].as_strided(
            (count, size, size), ((down + along) * size, down, along), c[start:, start:].storage_offset()
        )
        return blocks.to(self.torch.float64, copy=True)

    def block(self, c: Array, rows: IntArray, columns: IntArray, boundary: int) -> Array:
        return c[self.index(rows)][:, self.index(columns)].to(self.torch.float64)

    def inverse(self, blocks: Array) -> Array:
        return 1.0 / blocks if blocks.shape[-1] == 1 else self.torch.linalg.inv(blocks)

    def whitener(self, blocks: Array) -> Array:
        try:
            return self.torch.linalg.inv(self.torch.linalg.cholesky(blocks))
        except RuntimeError as error:  # torch has its own LinAlgError
            raise np.linalg.LinAlgError(str(error)) from None

    def minimum(self, array: Array) -> tuple[Array, Array]:
        least = array.min(dim=1)
        return least.values, least.indices
