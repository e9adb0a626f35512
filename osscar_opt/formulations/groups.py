"""Groups: the partition of the rows 0..p-1 of a layer into what is kept or removed as one."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray, read_only
from osscar_opt.errors import InputError

__all__ = ["Groups"]


@dataclass(frozen=True, eq=False, repr=False)
class Groups:
    """Partition of p rows into n groups, labelled 0..n-1; the rows of a group need not be contiguous.

    Group size 1 is an FFN neuron, kh*kw an input channel of a convolution, head_dim an attention head.

    Parameters
    ----------
    group_of_row : (p,) array of int
        Label of the group each row belongs to; every label 0..n-1 occurs.

    Raises
    ------
    InputError
        If labels are not integers, are negative, or leave a gap.

    Examples
    --------
    >>> groups = Groups([0, 0, 1, 0])
    >>> groups
    Groups(n=2, sizes=1..3)
    >>> groups.rows(0)
    array([0, 1, 3])
    """

    group_of_row: IntArray
    n: int = field(init=False)

    def __post_init__(self) -> None:
        labels = _as_labels(self.group_of_row)
        counts = np.bincount(labels)
        if labels.size and not counts.all():
            missing = int(np.flatnonzero(counts == 0)[0])
            raise InputError(
                f"no row belongs to group {missing}, though labels go up to {len(counts) - 1}: "
                "label the groups 0..n-1 without gaps."
            )
        object.__setattr__(self, "group_of_row", read_only(labels))
        object.__setattr__(self, "n", len(counts))

    @classmethod
    def coerce(cls, spec: Any, p: int) -> Groups:
        """Make groups for p rows out of whatever a caller finds natural.

        Parameters
        ----------
        spec : None, int, (p,) array of int, or Groups
            None: every row its own group.  An int s: consecutive groups of s rows.  An array: labels.
        p : int
            Number of rows.

        Raises
        ------
        InputError
            If s does not divide p, or the labels are not p in number.

        Examples
        --------
        >>> Groups.coerce(3, 12)
        Groups(n=4, sizes=3)
        >>> Groups.coerce(5, 12)
        Traceback (most recent call last):
        osscar_opt.errors.InputError: groups = 5 does not divide the 12 rows; pass a divisor or an array of labels.
        """
        if isinstance(spec, Groups):
            groups = spec
        elif spec is None:
            groups = cls(np.arange(p))
        elif isinstance(spec, str) or not hasattr(spec, "__len__"):
            groups = cls(np.arange(p) // _group_size(spec, p))
        else:
            groups = cls(spec)
        if groups.p != p:
            raise InputError(f"groups label {groups.p} rows, but gram has {p}.")
        return groups

    @property
    def p(self) -> int:
        """Number of rows.

        Examples
        --------
        >>> Groups([0, 0, 1]).p
        3
        """
        return len(self.group_of_row)

    @cached_property
    def sizes(self) -> IntArray:
        """Rows in each group, shape (n,).

        Examples
        --------
        >>> Groups([0, 0, 1]).sizes
        array([2, 1])
        """
        return read_only(np.bincount(self.group_of_row, minlength=self.n).astype(np.int64))

    @cached_property
    def uniform_size(self) -> int | None:
        """The size all groups share, or None if they differ (or there are none).

        Examples
        --------
        >>> Groups([0, 0, 1, 1]).uniform_size
        2
        """
        if self.n == 0 or np.any(self.sizes != self.sizes[0]):
            return None
        return int(self.sizes[0])

    def rows(self, group: int) -> IntArray:
        """Rows of one group, in increasing order.

        Examples
        --------
        >>> Groups([1, 0, 1]).rows(1)
        array([0, 2])
        """
        if not 0 <= group < self.n:
            raise InputError(f"there is no group {group}: groups are 0..{self.n - 1}.")
        order, starts = self._sorted_rows
        return order[starts[group] : starts[group + 1]]

    def row_mask(self, support: BoolArray) -> BoolArray:
        """Boolean mask over rows, True on the rows of the groups in `support`.

        Examples
        --------
        >>> Groups([0, 1, 1]).row_mask(np.array([False, True]))
        array([False,  True,  True])
        """
        return np.asarray(support, dtype=bool)[self.group_of_row]

    def total(self, per_row: FloatArray) -> FloatArray:
        """Sum of a quantity over the rows of each group, shape (n,).

        Examples
        --------
        >>> Groups([0, 1, 1]).total(np.array([1.0, 2.0, 3.0]))
        array([1., 5.])
        """
        return np.bincount(self.group_of_row, weights=per_row, minlength=self.n).astype(np.float64)

    def subset(self, support: BoolArray) -> Groups:
        """The groups in `support`, renumbered 0.. in the same order, over their own rows.

        Examples
        --------
        >>> Groups([0, 1, 1, 2]).subset(np.array([False, True, True])).group_of_row
        array([0, 0, 1])
        """
        new_label = np.cumsum(support) - 1
        return Groups(new_label[self.group_of_row[self.row_mask(support)]])

    @cached_property
    def _sorted_rows(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self.group_of_row, kind="stable").astype(np.int64)
        return read_only(order), np.concatenate([[0], np.cumsum(self.sizes)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and np.array_equal(self.group_of_row, other.group_of_row)

    def __hash__(self) -> int:
        return hash(self.group_of_row.tobytes())

    def __repr__(self) -> str:
        if self.uniform_size is not None:
            return f"Groups(n={self.n}, sizes={self.uniform_size})"
        if self.n == 0:
            return "Groups(n=0)"
        return f"Groups(n={self.n}, sizes={self.sizes.min()}..{self.sizes.max()})"

    def __reduce__(self) -> tuple[type[Groups], tuple[IntArray]]:
        return Groups, (self.group_of_row,)  # pickling through the constructor keeps the array read-only


def _as_labels(values: Any) -> IntArray:
    try:
        labels = np.asarray(values)
    except ValueError:
        raise InputError(
            "group labels must be one integer per row; lists of rows are not understood."
        ) from None
    if labels.ndim != 1:
        raise InputError(f"group labels must be one per row, a 1-d array, but their shape is {labels.shape}.")
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"group labels must be integers, but their type is {labels.dtype}.")
    if labels.size and (labels.min() < 0 or labels.max() >= labels.size):
        raise InputError(
            f"group labels must lie in 0..n-1, but they range from {labels.min()} to {labels.max()} "
            f"over {labels.size} rows."
        )
    return labels.astype(np.int64)


def _group_size(spec: Any, p: int) -> int:
    try:
        if isinstance(spec, bool):
            raise TypeError
        size = operator.index(spec)
    except TypeError:
        raise InputError(f"groups = {spec!r} is neither a group size nor an array of labels.") from None
    if size < 1 or p % size:
        raise InputError(
            f"groups = {size} does not divide the {p} rows; pass a divisor or an array of labels."
        )
    return size
