"""The few array operations the tableau needs, once for numpy and once for torch on any device.

Two precisions meet here. Symmetric p x p matrices are *stored* in float64 or float32, as the user asks; columns, panels
and diagonal blocks, which decide, are always *worked on* in float64 and rounded only when they are written into a
matrix. float32 thus halves the memory and doubles the speed of what takes the time, and adds one rounding a flush.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import UnavailableError

__all__ = ["Array", "Kernels", "Precision", "make_kernels"]

Precision = Literal["float64", "float32"]

Array = Any  # numpy.ndarray or torch.Tensor; the operators both share (+, @, slices) are used freely


class Kernels(Protocol):
    """What the tableau asks of an array library. Symmetric matrices are (p, p), panels (p, b)."""

    lower_only: bool  # the strict upper triangle of symmetric matrices is not theirs
    waits: bool  # a number can be looked at without holding up the device
    epsilon: float  # unit of rounding of what is stored

    def pair(self, rows: int) -> tuple[Array, Array]:
        """Two uninitialised symmetric matrices."""

    def load(self, t: Array, gram: FloatArray, order: IntArray, scale: FloatArray) -> None:
        """T_ij = scale_i gram_ij scale_j, rows and columns in the given order."""

    def asarray(self, array: FloatArray) -> Array:
        """A numpy array on the device, float64, column-major where that matters."""

    def index(self, index: IntArray) -> Array:
        """An array of indices on the device."""

    def empty(self, rows: int, columns: int) -> Array:
        """An uninitialised float64 matrix, column-major where that matters."""

    def numpy(self, array: Array) -> FloatArray:
        """Bring an array back as float64 numpy."""

    def sweep(self, t: Array, n: Array, kept: int, chunks: Iterable[Array], *, known: bool = False) -> None:
        """Sweep T = H on the leading `kept` rows, and make N = F F', F = [W_S; r_P], of G given in chunks of columns.

        If `known`, the chunks are of F itself. A chunk is destroyed.
        """

    def square_update(self, c: Array, a: Array, alpha: float) -> None:
        """C += alpha A A' for symmetric C."""

    def symmetric_update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        """C += alpha (A B' + B A') for symmetric C."""

    def update(self, c: Array, a: Array, b: Array, alpha: float) -> None:
        """C += alpha A B' for a block of a symmetric matrix that does not meet the diagonal."""

    def stored(self, panel: Array) -> Array:
        """A panel in the precision of the matrices."""

    def column(self, c: Array, row: int) -> Array:
        """One column of a symmetric C, as a new (p,) array."""

    def columns(self, c: Array, start: int, stop: int) -> Array:
        """Columns start:stop of a symmetric C, as a new (p, stop - start) array."""

    def set_columns(self, c: Array, start: int, stop: int, values: Array) -> None:
        """Write what `columns` reads."""

    def copy_rows(self, c: Array, source: IntArray, target: IntArray, run: int) -> None:
        """Rows and columns `target` of a symmetric C become what `source` is; no row is in both.

        `run` rows at a time are consecutive.
        """

    def clear_rows(self, c: Array, start: int, stop: int) -> None:
        """Zero rows and columns start:stop of a symmetric C."""

    def diagonal_blocks(self, c: Array, start: int, size: int, count: int) -> Array:
        """(count, size, size) diagonal blocks from row `start` on, in float64."""

    def block(self, c: Array, rows: IntArray, columns: IntArray, boundary: int) -> Array:
        """C[rows][:, columns] of a symmetric C; quickest where rows lie below `boundary` and columns above."""

    def inverse(self, blocks: Array) -> Array:
        """Inverses of a batch of small symmetric matrices (..., s, s)."""

    def whitener(self, blocks: Array) -> Array:
        """L^-1 for small symmetric positive definite L L' (..., s, s)."""

    def minimum(self, array: Array) -> tuple[Array, Array]:
        """The least of each row of a matrix, and where it stands."""


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
        from osscar_opt.linalg.numpy_kernels import NumpyKernels

        return NumpyKernels(precision)
    from osscar_opt.linalg.torch_kernels import TorchKernels

    try:
        return TorchKernels(device.removeprefix("torch:"), precision)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not know or have
        reason = str(error).splitlines()[0].rstrip(".")
        raise UnavailableError(
            f"torch offers no device {device!r} here ({reason}); use device='cpu'."
        ) from error
