"""Array types used in signatures across the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    FloatArray: TypeAlias = NDArray[np.float64]
    BoolArray: TypeAlias = NDArray[np.bool_]
    IntArray: TypeAlias = NDArray[np.int64]
    AnyArray: TypeAlias = NDArray[Any]
else:  # signatures are strings at run time; nothing needs numpy to be imported for them
    FloatArray = BoolArray = IntArray = AnyArray = ArrayLike = Any

__all__ = ["AnyArray", "ArrayLike", "BoolArray", "FloatArray", "IntArray"]
