"""Array types used in signatures across the library, and read-only arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    FloatArray: TypeAlias = NDArray[np.float64]
    BoolArray: TypeAlias = NDArray[np.bool_]
    IntArray: TypeAlias = NDArray[np.int64]
    AnyArray: TypeAlias = NDArray[Any]
else:  # signatures are strings at run time; nothing needs numpy to be imported for them
    FloatArray = BoolArray = IntArray = AnyArray = ArrayLike = Any

__all__ = ["AnyArray", "ArrayLike", "BoolArray", "FloatArray", "IntArray", "read_only"]

A = TypeVar("A", bound="AnyArray")


def read_only(array: A, *, owned: bool = True) -> A:
    """View that cannot be written through; if the array is ours, nobody can make the view writeable again.

    Examples
    --------
    >>> import numpy as np
    >>> read_only(np.zeros(2)).flags.writeable
    False
    """
    if owned:
        array.setflags(write=False)
    view = array.view()
    view.setflags(write=False)
    return view
