"""In-place dense kernels on strided blocks, for numpy arrays.

numpy and scipy hand every non-contiguous block to BLAS through a copy, and numpy has no update in place
(``C += A @ B.T`` writes a temporary as large as C). The tableau is nothing but updates in place of leading or
trailing blocks of one big array, so these kernels call the BLAS and LAPACK that scipy ships directly: scipy
publishes their addresses for Cython (`scipy.linalg.cython_blas`, `scipy.linalg.cython_lapack`), and ctypes
can call an address. A call releases the GIL.

Arrays are column-major: unit stride along axis 0, any stride along axis 1. What the three updates change may be
row-major as well. A symmetric matrix lives in its lower triangle; its strict upper triangle is never read and may
hold anything, for example another symmetric matrix.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from osscar_opt._typing import FloatArray

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class NotPositiveDefinite(np.linalg.LinAlgError):
    """A factorisation found a leading minor that is not positive definite."""

    def __init__(self, routine: str, minor: int) -> None:
        super().__init__(f"{routine}: leading minor {minor} is not positive definite")
        self.minor = minor


_LARGE, _STRIP = 8192, 4096
"""Matrices of more rows than the first are worked on in strips of so many columns."""

_MIRRORED = 256


@cache
def _routine(name: str) -> Any:
    """The Fortran routine `name` as a ctypes function (every Fortran argument is a pointer)."""
    for module in (cython_blas, cython_lapack):
        capsule = module.__pyx_capi__.get(name)
        if capsule is not None:
            signature = _capsule_name(capsule)
            prototype = ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * (signature.count(b",") + 1)))
            return prototype(_capsule_pointer(capsule, signature))
    raise LookupError(f"scipy publishes no routine {name!r}")


def _letter(*arrays: FloatArray) -> tuple[str, Any]:
    """BLAS's letter for the arrays' common type and the ctypes scalar of that type."""
    dtype = arrays[0].dtype
    if any(array.dtype != dtype for array in arrays):
        raise TypeError(f"arrays of mixed types: {[str(array.dtype) for array in arrays]}")
    if dtype == np.float64:
        return "d", ctypes.c_double
    if dtype == np.float32:
        return "s", ctypes.c_float
    raise TypeError(f"float32 or float64 is needed, not {dtype}")


def _leading(array: FloatArray) -> Any:
    """The leading dimension: the distance between columns, in elements."""
    if array.shape[0] > 1 and array.strides[0] != array.itemsize:
        raise ValueError("a column-major array is needed")
    stride = array.strides[1] // array.itemsize if array.shape[1] > 1 else array.shape[0]
    return ctypes.byref(ctypes.c_int(max(stride, array.shape[0], 1)))


@lru_cache(maxsize=4096)
def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))  # BLAS only reads it, so one serves all calls


@cache
def _flag(letter: str) -> Any:
    return ctypes.c_char_p(letter.encode())


def _is_row_major(array: FloatArray) -> bool:
    """Whether the rows, and not the columns, are what lies in one piece."""
    return array.strides[0] != array.itemsize and array.strides[1] == array.itemsize


def _columns_of(a: FloatArray) -> tuple[FloatArray, str]:
    """A factor of a product as BLAS sees it: itself, or its transpose, to be transposed."""
    return (a.T, "T") if _is_row_major(a) else (a, "N")


def _triangle(c: FloatArray) -> tuple[FloatArray, str]:
    """A symmetric matrix as BLAS sees it: the lower triangle by rows is the upper triangle by columns."""
    return (c.T, "U") if _is_row_major(c) else (c, "L")


def update(c: FloatArray, a: FloatArray, b: FloatArray, alpha: float, keep: float = 1.0) -> None:
    """C = keep C + alpha A B' in place, C (m x n), A (m x k), B (n x k); A and B may be row-major."""
    if _is_row_major(c):  # C' += alpha B A'
        c, a, b = c.T, b, a
    (m, n), k = c.shape, a.shape[1]
    if m == 0 or n == 0 or (k == 0 and keep == 1.0):
        return
    kind, scalar = _letter(c, a, b)
    if n == 1 and not (
        _is_row_major(a) or _is_row_major(b)
    ):  # a matrix-vector product: gemm is slow to start on one column
        _routine(kind + "gemv")(
            _flag("N"),
            _int(m),
            _int(k),
            ctypes.byref(scalar(alpha)),
            a.ctypes.data,
            _leading(a),
            b.ctypes.data,
            _int(max(1, b.strides[1] // b.itemsize)),
            ctypes.byref(scalar(keep)),
            c.ctypes.data,
            _int(1),
        )
        return
    a, a_transposed = _columns_of(a)
    b, b_transposed = _columns_of(b)
    _routine(kind + "gemm")(
        _flag(a_transposed),
        _flag("N" if b_transposed == "T" else "T"),
        _int(m),
        _int(n),
        _int(k),
        ctypes.byref(scalar(alpha)),
        a.ctypes.data,
        _leading(a),
        b.ctypes.data,
        _leading(b),
        ctypes.byref(scalar(keep)),
        c.ctypes.data,
        _leading(c),
    )


def square_update(c: FloatArray, a: FloatArray, alpha: float, keep: float = 1.0) -> None:
    """Lower triangle of C = keep C + alpha A A' in place; A may be row-major."""
    n, k = c.shape[0], a.shape[1]
    if n == 0:
        return
    if n > _LARGE:  # OpenBLAS's syrk with two threads writes beyond its buffers from n = 16,384 on
        for start in range(0, n, _STRIP):
            stop = min(start + _STRIP, n)
            square_update(c[start:stop, start:stop], a[start:stop], alpha, keep)
            update(c[stop:, start:stop], a[stop:], a[start:stop], alpha, keep)
        return
    kind, scalar = _letter(c, a)
    c, triangle = _triangle(c)
    a, transposed = _columns_of(a)
    _routine(kind + "syrk")(
        _flag(triangle),
        _flag(transposed),
        _int(n),
        _int(k),
        ctypes.byref(scalar(alpha)),
        a.ctypes.data,
        _leading(a),
        ctypes.byref(scalar(keep)),
        c.ctypes.data,
        _leading(c),
    )


def symmetric_update(c: FloatArray, a: FloatArray, b: FloatArray, alpha: float) -> None:
    """Lower triangle of C += alpha (A B' + B A') in place."""
    n, k = c.shape[0], a.shape[1]
    if n == 0 or k == 0:
        return
    kind, scalar = _letter(c, a, b)
    c, triangle = _triangle(c)
    _routine(kind + "syr2k")(
        _flag(triangle),
        _flag("N"),
        _int(n),
        _int(k),
        ctypes.byref(scalar(alpha)),
        a.ctypes.data,
        _leading(a),
        b.ctypes.data,
        _leading(b),
        ctypes.byref(scalar(1.0)),
        c.ctypes.data,
        _leading(c),
    )


def solve_lower(
    lower: FloatArray, rhs: FloatArray, *, transpose: bool, right: bool = False, alpha: float = 1.0
) -> None:
    """Solve with the lower triangular L in place: L X = alpha B or L' X = alpha B (left), or from the right."""
    _triangular("trsm", lower, rhs, transpose=transpose, right=right, alpha=alpha)


def multiply_lower(lower: FloatArray, rhs: FloatArray, *, transpose: bool) -> None:
    """B = L B or L' B in place, for lower triangular L."""
    _triangular("trmm", lower, rhs, transpose=transpose, right=False, alpha=1.0)


def _triangular(
    name: str, lower: FloatArray, rhs: FloatArray, *, transpose: bool, right: bool, alpha: float
) -> None:
    m, n = rhs.shape
    if m == 0 or n == 0:
        return
    kind, scalar = _letter(lower, rhs)
    _routine(kind + name)(
        _flag("R" if right else "L"),
        _flag("L"),
        _flag("T" if transpose else "N"),
        _flag("N"),
        _int(m),
        _int(n),
        ctypes.byref(scalar(alpha)),
        lower.ctypes.data,
        _leading(lower),
        rhs.ctypes.data,
        _leading(rhs),
    )


def cholesky_lower(a: FloatArray) -> None:
    """Lower triangle of A becomes its Cholesky factor, in place.

    Raises
    ------
    numpy.linalg.LinAlgError
        A is not positive definite.
    """
    n = a.shape[0]
    if n <= _LARGE:
        _factorise("potrf", a)
        return
    for start in range(
        0, n, _STRIP
    ):  # by strips, for the sake of the threaded syrk in potrf: see `square_update`
        stop = min(start + _STRIP, n)
        _factorise("potrf", a[start:stop, start:stop], before=start)
        below = a[stop:, start:stop]
        solve_lower(a[start:stop, start:stop], below, transpose=True, right=True)
        square_update(a[stop:, stop:], below, -1.0)


def inverse_from_cholesky_lower(lower: FloatArray) -> None:
    """Lower triangle of L becomes the lower triangle of inv(L L'), in place."""
    n = lower.shape[0]
    if n <= _LARGE:
        _factorise("potri", lower)
        return
    strips = [slice(start, min(start + _STRIP, n)) for start in range(0, n, _STRIP)]
    for own in reversed(strips):  # inv(L), from the last strip on: what is below is inverted already
        below, later = lower[own.stop :, own], lower[own.stop :, own.stop :]
        multiply_lower(later, below, transpose=False)
        solve_lower(lower[own, own], below, transpose=False, right=True, alpha=-1.0)
        _factorise("trtri", lower[own, own])
    for own in strips:  # inv(L)' inv(L), from the first strip on: what is below is still inv(L)
        left, below = lower[own, : own.start], lower[own.stop :, own]
        multiply_lower(lower[own, own], left, transpose=True)
        update(left, below.T, lower[own.stop :, : own.start].T, 1.0)
        _factorise("lauum", lower[own, own])
        square_update(lower[own, own], below.T, 1.0)


def _factorise(name: str, a: FloatArray, before: int = 0) -> None:
    if a.shape[0] == 0:
        return
    kind, _ = _letter(a)
    info = ctypes.c_int(0)
    flags = [_flag("L"), _flag("N")] if name == "trtri" else [_flag("L")]
    _routine(kind + name)(*flags, _int(a.shape[0]), a.ctypes.data, _leading(a), ctypes.byref(info))
    if info.value:
        raise NotPositiveDefinite(name, before + info.value)


def mirror_lower(c: FloatArray) -> None:
    """Write the lower triangle of a symmetric matrix over the upper one, in place."""
    n = len(c)
    for start in range(0, n, _MIRRORED):
        own = slice(start, min(start + _MIRRORED, n))
        square = c[own, own]
        square[...] = np.tril(square) + np.tril(square, -1).T
        c[own, own.stop :] = c[own.stop :, own].T
