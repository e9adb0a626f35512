"""The tableau's operations on numpy arrays: two symmetric matrices in one array, updated in place by BLAS."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.linalg import blas

__all__ = ["NumpyKernels"]

_PANEL = 64

_LONG_RUN = 16
"""Consecutive rows from which on copying run by run is quicker than by indices."""

_ODD_LINES = 8
"""Numbers added to the distance between columns, so that a row's entries do not share one set of the cache."""


class NumpyKernels:
    """numpy arrays on the CPU; symmetric matrices in their lower triangle, worked on in float64.

    T lies in the lower triangle of one column-major array, N, by rows, in what is left above it: the pair takes the
    memory of one p x p matrix.

    Parameters
    ----------
    precision : {"float64", "float32"}
        In which matrices are stored.
    """

    lower_only = True
    waits = True

    def __init__(self, precision: str = "float64") -> None:
        self.dtype = np.dtype(precision)
        self.epsilon = float(np.finfo(self.dtype).eps)

    def pair(self, rows: int) -> tuple[FloatArray, FloatArray]:
        both = np.empty((rows + 1, rows + _ODD_LINES), dtype=self.dtype).T[:rows]
        return both[:, :rows], both[:, 1:].T

    def load(self, t: FloatArray, gram: FloatArray, order: IntArray, scale: FloatArray) -> None:
        p = len(order)
        scale = scale[order]
        for start in range(0, p, _PANEL):  # few columns at a time: the rows they are read from stay in cache
            rows = order[start : start + _PANEL]
            below = gram[rows].take(order[start:], axis=1)
            below *= scale[start:]
            below *= scale[start : start + _PANEL, None]
            width = len(rows)
            for j in range(width):  # not a number above the diagonal: N may be there
                t[start + j : start + width, start + j] = below[j, j:width]
            t[start + width :, start : start + width] = below[:, width:].T

    def asarray(self, array: FloatArray) -> FloatArray:
        return np.asarray(array, dtype=np.float64, order="F")

    def index(self, index: IntArray) -> IntArray:
        return index

    def empty(self, rows: int, columns: int) -> FloatArray:
        return np.empty((rows, columns), order="F")

    def numpy(self, array: FloatArray) -> FloatArray:
        return np.asarray(array, dtype=np.float64)

    def sweep(
        self,
        t: FloatArray,
        n: FloatArray,
        kept: int,
        chunks: Iterable[FloatArray],
        *,
        known: bool = False,
    ) -> None:
        # One Cholesky factor serves all three blocks, each overwritten by its successor:
        # H_SS -> L -> -inv(H_SS),  H_PS -> X = H_PS L^-T -> H_PS inv(H_SS),  H_PP -> H_PP - X X'.
        lower, below, corner = t[:kept, :kept], t[kept:, :kept], t[kept:, kept:]
        blas.cholesky_lower(lower)
        blas.solve_lower(lower, below, transpose=True, right=True)
        blas.square_update(corner, below, -1.0)
        first = True
        for chunk in chunks:
            f = self.stored(chunk)
            if not known:
                blas.solve_lower(lower, f[:kept], transpose=False)
                blas.update(f[kept:], below, f[:kept].T, -1.0)
                blas.solve_lower(lower, f[:kept], transpose=True)
            blas.square_update(n, f, 1.0, keep=0.0 if first else 1.0)
            first = False
        blas.solve_lower(lower, below, transpose=False, right=True)
        blas.inverse_from_cholesky_lower(lower)
        _negate_lower(lower)

    square_update = staticmethod(blas.square_update)
    symmetric_update = staticmethod(blas.symmetric_update)
    update = staticmethod(blas.update)

    def stored(self, panel: FloatArray) -> FloatArray:
        return np.asarray(panel, dtype=self.dtype, order="A")

    def column(self, c: FloatArray, row: int) -> FloatArray:
        out = np.empty(len(c))
        out[:row] = c[row, :row]
        out[row:] = c[row:, row]
        return out

    def columns(self, c: FloatArray, start: int, stop: int) -> FloatArray:
        out = self.empty(len(c), stop - start)
        out[:start] = c[start:stop, :start].T
        out[start:] = c[start:, start:stop]
        if stop - start > 1:
            corner = np.tril(out[start:stop], -1)
            out[start:stop] = corner + corner.T + np.diag(out[start:stop].diagonal())
        return out

    def set_columns(self, c: FloatArray, start: int, stop: int, values: FloatArray) -> None:
        c[start:stop, :start] = values[:start].T
        c[stop:, start:stop] = values[stop:]
        for j in range(start, stop):
            c[j:stop, j] = values[j:stop, j - start]

    def copy_rows(self, c: FloatArray, source: IntArray, target: IntArray, run: int) -> None:
        if run >= _LONG_RUN:
            for start in range(0, len(source), run):
                old, new = int(source[start]), int(target[start])
                column = self.columns(c, old, old + run)
                column[new : new + run] = column[old : old + run]
                self.set_columns(c, new, new + run, column)
            return
        every = np.arange(len(c))
        values = _read(c, every, source)
        values[target] = values[source]
        c[np.maximum(every[:, None], target), np.minimum(every[:, None], target)] = values

    def clear_rows(self, c: FloatArray, start: int, stop: int) -> None:
        c[start:stop, :start] = 0.0
        c[stop:, start:stop] = 0.0
        for row in range(start, stop):
            c[row, start : row + 1] = 0.0

    def diagonal_blocks(self, c: FloatArray, start: int, size: int, count: int) -> FloatArray:
        down, along = c.strides
        blocks = as_strided(c[start:, start:], (count, size, size), ((down + along) * size, down, along))
        lower = np.tril(
            blocks.astype(np.float64)
        )  # as_strided also reads above the diagonal, which is not C's
        return np.asarray(lower + np.tril(lower, -1).swapaxes(1, 2))

    def block(self, c: FloatArray, rows: IntArray, columns: IntArray, boundary: int) -> FloatArray:
        # The higher index is the row. Almost all rows < boundary <= columns, so mend the few others.
        if c.strides[0] <= c.strides[1]:
            out = c.T[np.ix_(rows, columns)].astype(np.float64, copy=False)
        else:
            out = np.ascontiguousarray(c[np.ix_(columns, rows)].T, dtype=np.float64)
        wrong = np.flatnonzero(rows >= boundary)
        out[wrong] = _read(c, rows[wrong], columns)
        wrong = np.flatnonzero(columns < boundary)
        out[:, wrong] = _read(c, rows, columns[wrong])
        return out

    def inverse(self, blocks: FloatArray) -> FloatArray:
        if blocks.shape[-1] == 1:
            return np.asarray(1.0 / blocks)
        return np.asarray(np.linalg.inv(blocks))

    def whitener(self, blocks: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(blocks)))

    def minimum(self, array: FloatArray) -> tuple[FloatArray, IntArray]:
        place = array.argmin(axis=1)
        return array[np.arange(len(array)), place], place


def _read(c: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
    """C[rows][:, columns] of a symmetric matrix of which the lower triangle is known."""
    rows = rows[:, None]
    return np.asarray(c[np.maximum(rows, columns), np.minimum(rows, columns)], dtype=np.float64)


def _negate_lower(lower: FloatArray) -> None:
    for start in range(0, len(lower), _PANEL):
        stop = min(start + _PANEL, len(lower))
        np.negative(lower[stop:, start:stop], out=lower[stop:, start:stop])
        for j in range(start, stop):
            np.negative(lower[j:stop, j], out=lower[j:stop, j])
