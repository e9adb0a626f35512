"""Limits: every budget of a problem as rows of one packing constraint, usage @ support <= limit, usage >= 0.

    keep                    a row of ones                       <= keep
    costs with a budget     the costs                           <= budget
    block b of groups       the indicator of the block          <= block_keep[b]

Because usage is nonnegative, every subset of a feasible support is feasible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray, read_only

__all__ = ["Limits"]

_SLOP = 1e-9
"""Relative excess that is read as rounding: costs are floats, and 0.1 + 0.2 > 0.3."""


@dataclass(frozen=True, eq=False)
class Limits:
    """The packing constraints usage @ support <= limit over n groups.

    A limit counts as met when it is passed by no more than 1e-9 of itself, the rounding of a sum of costs.

    Attributes
    ----------
    usage : (m, n) array, >= 0
        What each group uses of each limit.
    limit : (m,) array
    names : tuple of m str
        "keep", "budget", "block_keep[0]", "block_keep[1]", ...

    Examples
    --------
    >>> limits = Limits.of(3, keep=2, costs=np.array([5.0, 1.0, 1.0]), budget=6.0)
    >>> limits.names
    ('keep', 'budget')
    >>> limits.feasible(np.array([True, True, False]))
    True
    >>> limits.slack(np.array([True, True, False]))
    array([0., 0.])
    """

    usage: FloatArray = field(repr=False)
    limit: FloatArray
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        n: int,
        *,
        keep: int | None = None,
        costs: FloatArray | None = None,
        budget: float | None = None,
        blocks: IntArray | None = None,
        block_keep: IntArray | None = None,
    ) -> Limits:
        """Assemble the limits of n groups from budgets that were checked before.

        Examples
        --------
        >>> Limits.of(4, blocks=np.array([0, 0, 1, 1]), block_keep=np.array([1, 2])).usage
        array([[1., 1., 0., 0.],
               [0., 0., 1., 1.]])
        """
        usage, limit, names = [], [], []
        if keep is not None:
            usage.append(np.ones((1, n)))
            limit.append(float(keep))
            names.append("keep")
        if costs is not None and budget is not None:
            usage.append(costs[None, :])
            limit.append(budget)
            names.append("budget")
        if blocks is not None and block_keep is not None:
            usage.append((blocks == np.arange(len(block_keep))[:, None]).astype(np.float64))
            limit.extend(block_keep.astype(float))
            names.extend(f"block_keep[{b}]" for b in range(len(block_keep)))
        stacked = np.concatenate(usage) if usage else np.zeros((0, n))
        bound = np.array(limit, dtype=np.float64)
        return cls(read_only(stacked), read_only(bound), tuple(names))

    @property
    def cardinality(self) -> int | None:
        """The number of groups that may stay, if one plain keep is the only limit; else None.

        Examples
        --------
        >>> Limits.of(3, keep=2).cardinality
        2
        """
        return int(self.limit[0]) if self.names == ("keep",) else None

    @property
    def supports(self) -> int:
        """Number of supports worth looking at: those of full size under a plain keep, else at most all 2^n.

        Examples
        --------
        >>> Limits.of(4, keep=2).supports
        6
        """
        n, keep = self.usage.shape[1], self.cardinality
        return 2**n if keep is None else math.comb(n, min(keep, n))

    def slack(self, support: BoolArray) -> FloatArray:
        """What `support` leaves of each limit, shape (m,); negative where it passes one.

        Examples
        --------
        >>> Limits.of(3, keep=2).slack(np.array([True, False, False]))
        array([1.])
        """
        return self.limit - self.usage @ np.asarray(support, dtype=np.float64)

    def excess(self, support: BoolArray) -> FloatArray:
        """By how much `support` passes each limit, shape (m,); zero where it meets it (rounding included).

        Examples
        --------
        >>> Limits.of(3, keep=1).excess(np.array([True, True, True]))
        array([2.])
        """
        excess = -self.slack(support)
        return np.where(excess > self._slop, excess, 0.0)

    def feasible(self, support: BoolArray) -> bool:
        """Whether `support` meets every limit.

        Examples
        --------
        >>> Limits.of(3, keep=1).feasible(np.array([True, True, False]))
        False
        """
        return bool(np.all(-self.slack(support) <= self._slop))

    def violation(self, support: BoolArray) -> str:
        """One clause naming the limit `support` passes by the most, or "" if it meets them all.

        Examples
        --------
        >>> Limits.of(3, keep=1).violation(np.array([True, True, False]))
        'uses 2 of keep = 1'
        """
        excess = self.excess(support)
        if not np.any(excess):
            return ""
        worst = int(np.argmax(excess / np.maximum(self.limit, 1.0)))
        used = self.limit[worst] - self.slack(support)[worst]
        return f"uses {used:.12g} of {self.names[worst]} = {self.limit[worst]:.12g}"

    def fill(self, order: Sequence[int] | IntArray, start: BoolArray) -> BoolArray:
        """Add groups to `start`, taking each in the given order that still fits.

        Parameters
        ----------
        order : sequence of int
            Groups, the most wanted first; those already in `start` are skipped.
        start : (n,) mask
            A feasible support.

        Returns
        -------
        (n,) mask
            A feasible support containing `start`; maximal among the groups in `order`.

        Examples
        --------
        >>> Limits.of(3, costs=np.array([5.0, 3.0, 2.0]), budget=7.0).fill([0, 1, 2], np.zeros(3, bool))
        array([ True, False,  True])
        """
        support = np.array(start, dtype=bool)
        left = self.slack(support) + self._slop
        for group in order:
            if not support[group] and np.all(self.usage[:, group] <= left):
                left -= self.usage[:, group]
                support[group] = True
        return support

    @property
    def _slop(self) -> FloatArray:
        return _SLOP * np.maximum(np.abs(self.limit), np.finfo(float).tiny)
