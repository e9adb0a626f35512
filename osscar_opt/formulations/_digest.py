"""The hash of a problem's content: the same on every machine, a block of rows at a time."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

__all__ = ["content_hash"]

_ROWS_AT_ONCE = 512


def content_hash(**parts: Any) -> str:
    """SHA-256 (hex) over names, shapes and values, in the order given.

    Values enter as little-endian 64-bit numbers in row-major order, -0.0 as 0.0; None enters as absent.

    Examples
    --------
    >>> content_hash(a=np.array([0.0])) == content_hash(a=np.array([-0.0]))
    True
    """
    digest = hashlib.sha256(b"osscar-opt problem 1\n")
    for name, part in parts.items():
        if part is None:
            digest.update(f"{name} none\n".encode())
            continue
        array = np.asarray(part)
        kind = "<f8" if array.dtype.kind == "f" else "<i8"
        digest.update(f"{name} {array.shape} {kind}\n".encode())
        rows = np.atleast_1d(array)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = rows[start : start + _ROWS_AT_ONCE].astype(kind)
            digest.update((block + block.dtype.type(0)).tobytes())  # -0.0 + 0.0 is 0.0
    return digest.hexdigest()
