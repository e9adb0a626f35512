"""Batches of small symmetric matrices, once for numpy and once for torch on any device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy.linalg import lapack

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import UnavailableError

__all__ = ["NumpyStacks", "Stacks", "TorchStacks", "make_stacks"]

Array = (
    Any  # numpy.ndarray or torch.Tensor; what both share (+, *, @, slices, .sum(axis), .mT) is used freely
)


class Stacks(Protocol):
    """What the lifted relaxation asks of an array library. Matrices are (b, p, p), float64."""

    def asarray(self, array: FloatArray) -> Array:
        """A numpy array on the device."""

    def numpy(self, array: Array) -> FloatArray:
        """An array of the device as numpy."""

    def inverse(self, stack: Array) -> tuple[Array, BoolArray]:
        """Inverses of symmetric matrices, and which of them were positive definite; the others' are garbage."""

    def solve(self, stack: Array, right: Array) -> Array:
        """Solutions X of stack X = right."""

    def eigh(self, stack: Array) -> tuple[Array, Array]:
        """Eigenvalues, ascending, and eigenvectors of symmetric matrices."""

    def repeat(self, array: Array, times: int) -> Array:
        """Every entry of the last axis, so many times in a row."""

    def beside(self, left: Array, right: Array) -> Array:
        """Matrices beside each other."""

    def larger(self, left: Array, right: Array) -> Array:
        """The larger of two numbers, entry by entry."""

    def single(self, array: Array) -> Array:
        """Rounded to float32, in float64."""


class NumpyStacks:
    """numpy on the CPU, one LAPACK call a matrix."""

    def asarray(self, array: FloatArray) -> FloatArray:
        return np.ascontiguousarray(array, dtype=np.float64)

    def numpy(self, array: FloatArray) -> FloatArray:
        return array

    def inverse(self, stack: FloatArray) -> tuple[FloatArray, BoolArray]:
        # potrf and potri take half the time of numpy's inv, which knows nothing of symmetry.
        out = np.empty_like(stack)
        definite = np.ones(len(stack), dtype=bool)
        for i in range(len(stack)):
            # A row-major matrix is the transposed column-major one, and these are symmetric: no copy.
            factor, failed = lapack.dpotrf(stack[i].T, lower=1, clean=0)
            if not failed:
                inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
            if failed:
                definite[i] = False
                out[i] = 0.0
            else:
                np.copyto(out[i], inverse)
        below = np.tri(stack.shape[1], dtype=bool)
        return np.where(below, out, out.mT), definite

    def solve(self, stack: FloatArray, right: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.solve(stack, right), dtype=np.float64)

    def eigh(self, stack: FloatArray) -> tuple[FloatArray, FloatArray]:
        values, vectors = np.linalg.eigh(stack)
        return values, vectors

    def beside(self, left: FloatArray, right: FloatArray) -> FloatArray:
        return np.concatenate([left, right], axis=-1)

    def repeat(self, array: FloatArray, times: int) -> FloatArray:
        return array if times == 1 else np.repeat(array, times, axis=-1)

    def larger(self, left: FloatArray, right: FloatArray) -> FloatArray:
        return np.maximum(left, right)

    def single(self, array: FloatArray) -> FloatArray:
        return array.astype(np.float32).astype(np.float64)


class TorchStacks:
    """torch on any device; written so that nothing but results leaves the device."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch: Any = torch
        try:
            self._device = torch.zeros(1, device=device).device
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not have
            reason = str(error).splitlines()[0].rstrip(".")
            raise UnavailableError(
                f"torch offers no device {device!r} here ({reason}); use device='cpu'."
            ) from error

    def asarray(self, array: FloatArray) -> Array:
        return self._torch.as_tensor(np.ascontiguousarray(array, dtype=np.float64), device=self._device)

    def numpy(self, array: Array) -> FloatArray:
        return np.asarray(array.cpu().numpy())

    def inverse(self, stack: Array) -> tuple[Array, BoolArray]:
        factor, info = self._torch.linalg.cholesky_ex(stack)
        definite = info == 0
        eye = self._torch.eye(stack.shape[-1], dtype=stack.dtype, device=stack.device)
        factor = self._torch.where(definite[:, None, None], factor, eye)
        return self._torch.cholesky_inverse(factor), np.asarray(definite.cpu().numpy())

    def solve(self, stack: Array, right: Array) -> Array:
        return self._torch.linalg.solve(stack, right)

    def eigh(self, stack: Array) -> tuple[Array, Array]:
        values, vectors = self._torch.linalg.eigh(stack)
        return values, vectors

    def beside(self, left: Array, right: Array) -> Array:
        return self._torch.cat([left, right], dim=-1)

    def repeat(self, array: Array, times: int) -> Array:
        return array if times == 1 else array.repeat_interleave(times, dim=-1)

    def larger(self, left: Array, right: Array) -> Array:
        return self._torch.maximum(left, right)

    def single(self, array: Array) -> Array:
        return array.float().double()


def make_stacks(device: str) -> Stacks:
    """Pick the array library for a device: "cpu" is numpy, anything else ("cuda", "torch:cpu") is torch.

    Raises
    ------
    UnavailableError
        If torch sees no such device.

    Examples
    --------
    >>> inverse, definite = make_stacks("cpu").inverse(np.array([[[4.0]], [[-1.0]]]))
    >>> float(inverse[0, 0, 0]), definite
    (0.25, array([ True, False]))
    """
    return NumpyStacks() if device == "cpu" else TorchStacks(device.removeprefix("torch:"))
