"""The few array operations the tableau needs, once for numpy and once for torch on any device.

Both classes hold symmetric matrices in a p x p array. On a CPU only the lower triangle is kept up to date,
which halves the arithmetic; a GPU is better served by whole matrix products, so there both triangles are.
Nobody outside this module sees the difference: `columns` returns whole columns either way.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import UnavailableError
from osscar_opt.linalg import blas
from osscar_opt.linalg.factor import product

_PANEL = 64

Precision = Literal["float64", "float32"]

Array = Any  # numpy.ndarray or torch.Tensor; the operators both share (+, @, slices) are used freely


class Kernels(Protocol):
    """What the tableau asks of an array library. Symmetric matrices are (p, p), panels (p, b)."""

    lower_only: bool  # the strict upper triangle of symmetric matrices is garbage
    epsilon: float  # unit of rounding

    def asarray(self, array: FloatArray) -> Array:
        """A numpy array on the device, column-major where that matters; shares memory where nothing changes."""

    def scaled(self, gram: FloatArray, order: IntArray, scale: FloatArray) -> Array:
        """The symmetric matrix scale_i gram_ij scale_j with rows and columns in the given order."""

    def empty(self, rows: int, columns: int) -> Array:
        """An uninitialised matrix, column-major where that matters."""

    def numpy(self, array: Array) -> FloatArray:
        """Bring an array back as float64 numpy."""

    def update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        """C += alpha A B' in place."""

    def square_update(self, c: Array, a: Array, alpha: float, keep: float = 1.0) -> None:
        """C = keep C + alpha A A' in place, for symmetric C."""

    def symmetric_update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        """C += alpha (A B' + B A') in place, for symmetric C."""

    def columns(self, c: Array, start: int, stop: int) -> Array:
        """Columns start:stop of a symmetric C, as a new (p, stop - start) array."""

    def take_columns(self, panel: Array, index: IntArray) -> Array:
        """A copy of some columns of a panel."""

    def set_columns(self, c: Array, start: int, stop: int, values: Array) -> None:
        """Write whole columns, and the rows that mirror them, of a symmetric C."""

    def block(self, c: Array, rows: IntArray, columns: IntArray, boundary: int) -> Array:
        """C[rows][:, columns] of a symmetric C; quickest where rows lie below `boundary` and columns above."""

    def sweep(self, t: Array, f: Array, kept: int) -> float:
        """Sweep T = H and F = G on the leading `kept` rows; returns 1/2 tr(G_S' inv(H_SS) G_S)."""

    def inverse(self, blocks: Array) -> Array:
        """Inverses of a batch of small symmetric matrices (..., s, s)."""

    def whitener(self, block: Array) -> Array:
        """L^-1 for a small symmetric positive definite L L'."""


class NumpyKernels:
    """numpy arrays on the CPU, float64 or float32, symmetric matrices in their lower triangle."""

    lower_only = True

    def __init__(self, dtype: str = "float64") -> None:
        self.dtype = np.dtype(dtype)
        self.epsilon = float(np.finfo(self.dtype).eps)

    def asarray(self, array: FloatArray) -> FloatArray:
        return np.asarray(array, dtype=self.dtype, order="F")

    def scaled(self, gram: FloatArray, order: IntArray, scale: FloatArray) -> FloatArray:
        p = len(order)
        out = self.empty(p, p)
        scale = scale[order]
        for start in range(0, p, _PANEL):  # few columns at a time: the rows they are read from stay in cache
            rows = order[start : start + _PANEL]
            below = gram[rows].take(order[start:], axis=1)
            below *= scale[start:]
            below *= scale[start : start + _PANEL, None]
            out[start:, start : start + _PANEL] = below.T
        return out

    def empty(self, rows: int, columns: int) -> FloatArray:
        return np.empty((rows, columns), dtype=self.dtype, order="F")

    def numpy(self, array: FloatArray) -> FloatArray:
        return np.asarray(array, dtype=np.float64)

    update = staticmethod(blas.update)
    square_update = staticmethod(blas.square_update)
    symmetric_update = staticmethod(blas.symmetric_update)

    def columns(self, c: FloatArray, start: int, stop: int) -> FloatArray:
        out = self.empty(c.shape[0], stop - start)
        out[:start] = c[start:stop, :start].T
        out[start:] = c[start:, start:stop]
        if stop - start > 1:
            corner = np.tril(out[start:stop], -1)
            out[start:stop] = corner + corner.T + np.diag(out[start:stop].diagonal())
        return out

    def take_columns(self, panel: FloatArray, index: IntArray) -> FloatArray:
        return np.asarray(panel[:, index], order="F")

    def set_columns(self, c: FloatArray, start: int, stop: int, values: FloatArray) -> None:
        c[start:stop, :start] = values[:start].T
        c[start:, start:stop] = values[start:]

    def block(self, c: FloatArray, rows: IntArray, columns: IntArray, boundary: int) -> FloatArray:
        # Read with the higher index as the row. Almost all rows < boundary <= columns, so mend the few others.
        out: FloatArray = c.T[np.ix_(rows, columns)]
        for i in np.flatnonzero(rows >= boundary):
            out[i] = self._read(c, int(rows[i]), columns)
        for j in np.flatnonzero(columns < boundary):
            out[:, j] = self._read(c, int(columns[j]), rows)
        return out

    @staticmethod
    def _read(c: FloatArray, row: int, columns: IntArray) -> FloatArray:
        left, below = c[row, np.minimum(columns, row)], c[np.maximum(columns, row), row]
        return np.asarray(np.where(columns <= row, left, below))

    def sweep(self, t: FloatArray, f: FloatArray, kept: int) -> float:
        # One Cholesky factor serves all three blocks, each overwritten by its successor:
        # H_SS -> L -> -inv(H_SS),  H_PS -> X = H_PS L^-T -> H_PS inv(H_SS),  H_PP -> H_PP - X X'.
        lower, below, corner = t[:kept, :kept], t[kept:, :kept], t[kept:, kept:]
        blas.cholesky_lower(lower)
        blas.solve_lower(lower, below, transpose=True, right=True)
        blas.square_update(corner, below, -1.0)
        blas.solve_lower(lower, f[:kept], transpose=False)
        explained = 0.5 * float(np.einsum("ij,ij->", f[:kept], f[:kept], dtype=np.float64))
        if f.shape[0] > kept:
            f[kept:] -= product(below, f[:kept])
        blas.solve_lower(lower, f[:kept], transpose=True)
        blas.solve_lower(lower, below, transpose=False, right=True)
        blas.inverse_from_cholesky_lower(lower)
        np.negative(lower, out=lower)
        return explained

    def inverse(self, blocks: FloatArray) -> FloatArray:
        if blocks.shape[-1] == 1:
            return np.asarray(1.0 / blocks)
        return np.asarray(np.linalg.inv(blocks))

    def whitener(self, block: FloatArray) -> FloatArray:
        if block.shape[-1] == 1:
            return np.asarray(1.0 / np.sqrt(block))
        return np.asarray(np.linalg.inv(np.linalg.cholesky(block)))


class TorchKernels:
    """torch tensors on any device, symmetric matrices whole."""

    lower_only = False

    def __init__(self, device: str = "cpu", dtype: str = "float64") -> None:
        import torch

        self.torch = torch
        self.device = torch.zeros(0, device=device).device  # raises where there is no such device
        self.dtype = getattr(torch, dtype)
        self.epsilon = float(torch.finfo(self.dtype).eps)

    def asarray(self, array: FloatArray) -> Array:
        return self.torch.tensor(array, dtype=self.dtype, device=self.device)

    def scaled(self, gram: FloatArray, order: IntArray, scale: FloatArray) -> Array:
        index = self.torch.as_tensor(order, device=self.device)
        factors = self.asarray(scale[order])
        return self.asarray(gram)[index][:, index] * factors * factors[:, None]

    def empty(self, rows: int, columns: int) -> Array:
        return self.torch.zeros((rows, columns), dtype=self.dtype, device=self.device)

    def numpy(self, array: Array) -> FloatArray:
        return np.asarray(array.to("cpu", self.torch.float64).numpy())

    def update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        c.addmm_(a, b.T, alpha=alpha)

    def square_update(self, c: Array, a: Array, alpha: float, keep: float = 1.0) -> None:
        c.addmm_(a, a.T, alpha=alpha, beta=keep)

    def symmetric_update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        c.addmm_(a, b.T, alpha=alpha)
        c.addmm_(b, a.T, alpha=alpha)

    def columns(self, c: Array, start: int, stop: int) -> Array:
        return c[:, start:stop].clone()

    def take_columns(self, panel: Array, index: IntArray) -> Array:
        return panel[:, self.torch.as_tensor(index, device=self.device)]

    def set_columns(self, c: Array, start: int, stop: int, values: Array) -> None:
        c[:, start:stop] = values
        c[start:stop, :] = values.T

    def block(self, c: Array, rows: IntArray, columns: IntArray, boundary: int) -> Array:
        return c[self.torch.as_tensor(rows)][:, self.torch.as_tensor(columns)]

    def sweep(self, t: Array, f: Array, kept: int) -> float:
        linalg = self.torch.linalg
        try:
            lower = linalg.cholesky(t[:kept, :kept])
        except RuntimeError as error:  # torch has its own LinAlgError
            raise np.linalg.LinAlgError(str(error)) from None
        inverse = self.torch.cholesky_inverse(lower) if kept else lower
        half = linalg.solve_triangular(lower, t[kept:, :kept].T.clone(), upper=False)  # X' = L^-1 H_SP
        t[kept:, kept:] -= half.T @ half
        white = linalg.solve_triangular(lower, f[:kept], upper=False)
        explained = 0.5 * float((white.double() ** 2).sum())
        f[kept:] -= half.T @ white
        f[:kept] = linalg.solve_triangular(lower.T, white, upper=True)
        t[:kept, kept:] = linalg.solve_triangular(lower.T, half, upper=True)
        t[kept:, :kept] = t[:kept, kept:].T
        t[:kept, :kept] = -inverse
        return explained

    def inverse(self, blocks: Array) -> Array:
        if blocks.shape[-1] == 1:
            return 1.0 / blocks
        return self.torch.linalg.inv(blocks)

    def whitener(self, block: Array) -> Array:
        return self.torch.linalg.inv(self.torch.linalg.cholesky(block))


def make_kernels(device: str = "cpu", precision: Precision = "float64") -> Kernels:
    """The kernels for a device: "cpu" is numpy, anything else ("cuda", "cuda:1", "torch:cpu") is torch.

    Raises
    ------
    UnavailableError
        If torch sees no such device.

    Examples
    --------
    >>> type(make_kernels("cpu")).__name__
    'NumpyKernels'
    """
    if device == "cpu":
        return NumpyKernels(precision)
    try:
        return TorchKernels(device.removeprefix("torch:"), precision)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not know or have
        reason = str(error).splitlines()[0].rstrip(".")
        raise UnavailableError(
            f"torch offers no device {device!r} here ({reason}); use device='cpu'."
        ) from error
