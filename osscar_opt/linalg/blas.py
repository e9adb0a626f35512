"""In-place dense kernels on strided blocks, for numpy arrays.

numpy and scipy hand every non-contiguous block to BLAS through a copy, and numpy has no update in place
(``C += A @ B.T`` writes a temporary as large as C). The tableau is nothing but updates in place of leading or
trailing blocks of one big array, so these kernels call the BLAS and LAPACK that scipy ships directly: scipy
publishes their addresses for Cython (`scipy.linalg.cython_blas`, `scipy.linalg.cython_lapack`), and ctypes
can call an address. A call releases the GIL.

Every array is column-major: unit stride along axis 0, any stride along axis 1. A symmetric matrix lives in
its lower triangle; its strict upper triangle is never read and may hold anything.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from osscar_opt._typing import FloatArray

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


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


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _flag(letter: str) -> Any:
    return ctypes.c_char_p(letter.encode())


def update(c: FloatArray, a: FloatArray, b: FloatArray, alpha: float) -> None:
    """C += alpha A B' in place, C (m x n), A (m x k), B (n x k)."""
    (m, n), k = c.shape, a.shape[1]
    if m == 0 or n == 0 or k == 0:
        return
    kind, scalar = _letter(c, a, b)
    if n == 1:  # a matrix-vector product: gemm is slow to start on one column
        _routine(kind + "gemv")(
            _flag("N"),
            _int(m),
            _int(k),
            ctypes.byref(scalar(alpha)),
            a.ctypes.data,
            _leading(a),
            b.ctypes.data,
            _int(max(1, b.strides[1] // b.itemsize)),
            ctypes.byref(scalar(1.0)),
            c.ctypes.data,
            _int(1),
        )
        return
    _routine(kind + "gemm")(
        _flag("N"),
        _flag("T"),
        _int(m),
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


def square_update(c: FloatArray, a: FloatArray, alpha: float, keep: float = 1.0) -> None:
    """Lower triangle of C = keep C + alpha A A' in place."""
    n, k = c.shape[0], a.shape[1]
    if n == 0:
        return
    kind, scalar = _letter(c, a)
    _routine(kind + "syrk")(
        _flag("L"),
        _flag("N"),
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
    _routine(kind + "syr2k")(
        _flag("L"),
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


def solve_lower(lower: FloatArray, rhs: FloatArray, *, transpose: bool, right: bool = False) -> None:
    """Solve with the lower triangular L in place: L X = B or L' X = B (left), X L = B or X L' = B (right)."""
    m, n = rhs.shape
    if m == 0 or n == 0:
        return
    kind, scalar = _letter(lower, rhs)
    _routine(kind + "trsm")(
        _flag("R" if right else "L"),
        _flag("L"),
        _flag("T" if transpose else "N"),
        _flag("N"),
        _int(m),
        _int(n),
        ctypes.byref(scalar(1.0)),
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
    _factorise("potrf", a)


def inverse_from_cholesky_lower(lower: FloatArray) -> None:
    """Lower triangle of L becomes the lower triangle of inv(L L'), in place."""
    _factorise("potri", lower)


def _factorise(name: str, a: FloatArray) -> None:
    if a.shape[0] == 0:
        return
    kind, _ = _letter(a)
    info = ctypes.c_int(0)
    _routine(kind + name)(_flag("L"), _int(a.shape[0]), a.ctypes.data, _leading(a), ctypes.byref(info))
    if info.value:
        raise np.linalg.LinAlgError(f"{name}: leading minor {info.value} is not positive definite")
