"""Prices of limits: bounds on linear functions of feasible supports, and points that use the limits up.

A price lam_i >= 0 for every limit charges group g with pi_g = sum_i lam_i usage_ig.  For scores a >= 0 and any prices

    max over feasible S of sum_{g in S} a_g  <=  lam.limit + sum_g max(0, a_g - pi_g),

the dual of the linear relaxation; under a plain keep the best price, the (keep + 1)-th largest score, gives the maximum
itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linprog

from osscar_opt._typing import FloatArray, IntArray

__all__ = ["Market", "most_kept"]

_ROUNDS = 4
_HALVINGS = 32
_LOWEST, _HIGHEST = 1e-12, 1e6
"""Prices are sought between these multiples of the scale they are given."""


def most_kept(scores: FloatArray, usage: FloatArray, limit: FloatArray) -> tuple[float, FloatArray]:
    """Bound the largest sum of scores that a feasible support can collect.

    Parameters
    ----------
    scores : (n,) array
        Negative ones are never collected.
    usage, limit : (m, n) and (m,) arrays

    Returns
    -------
    float
        Exact under a single limit that all groups use alike.
    (m,) array
        The prices that prove it.

    Examples
    --------
    >>> most_kept(np.array([3.0, 1.0, 2.0]), np.ones((1, 3)), np.array([2.0]))
    (5.0, array([1.]))
    """
    value = np.maximum(scores, 0.0)
    if len(limit) == 1:
        lam = np.array([_best_price(value, usage[0], limit[0])])
    else:  # improved one at a time, prices get stuck: the linear program's own
        found = linprog(-value, A_ub=usage, b_ub=np.maximum(limit, 0.0), bounds=(0.0, 1.0), method="highs")
        lam = np.maximum(-found.ineqlin.marginals, 0.0) if found.status == 0 else np.zeros(len(limit))
    return float(lam @ limit + np.maximum(value - lam @ usage, 0.0).sum()), lam


class Market:
    """Limits whose prices are sought; those that share no group are priced at once.

    Parameters
    ----------
    usage, limit : (m, n) and (m,) arrays

    Examples
    --------
    >>> market = Market(np.ones((1, 4)), np.array([2.0]))
    >>> market.fitted(lambda pi: 1.0 / (1.0 + pi), 1.0).round(6)
    array([1., 1., 1., 1.])
    """

    def __init__(self, usage: FloatArray, limit: FloatArray) -> None:
        self._count, self._limit = usage.shape[1], limit
        self._users = [(np.flatnonzero(row), row[row > 0.0]) for row in usage]
        self._parts: list[tuple[IntArray, IntArray, FloatArray]] = []  # groups, their limits, what they use
        left = list(range(len(limit)))
        while left:
            taken: list[int] = []
            covered = np.zeros(usage.shape[1], dtype=bool)
            for i in left:
                if not np.any(covered & (usage[i] > 0.0)):
                    taken.append(i)
                    covered |= usage[i] > 0.0
            left = [i for i in left if i not in taken]
            groups = np.flatnonzero(covered)
            index = np.array(taken)
            owner = index[np.argmax(usage[np.ix_(index, groups)] > 0.0, axis=0)]
            self._parts.append((groups, owner, usage[owner, groups]))

    def fitted(self, kept_at: Callable[[FloatArray], FloatArray], scale: float) -> FloatArray:
        """Find prices pi_g of the groups at which what is kept meets the limits.

        Parameters
        ----------
        kept_at : callable
            Shares kept z (n,), each falling as the price of its group rises; given pi (n,).
        scale : float
            Of prices.

        Returns
        -------
        (n,) array
        """
        pi, lam = np.zeros(self._count), np.zeros(len(self._limit))
        for _ in range(_ROUNDS if len(self._parts) > 1 else 1):
            for at, owner, use in self._parts:
                pi[at] -= lam[owner] * use
                mine = np.unique(owner)
                lam[mine] = self._fit_part(kept_at, pi, at, owner, use, scale)[mine]
                pi[at] += lam[owner] * use
                np.maximum(pi, 0.0, out=pi)
        return pi

    def projected(self, at: FloatArray, weight: FloatArray) -> FloatArray:
        """The removed shares y in [0, 1] nearest to `at` for which what is kept, 1 - y, meets the limits.

        Parameters
        ----------
        at, weight : (n,) arrays
            The distance is sum of weight (y - at)^2.

        Returns
        -------
        (n,) array
            Nearly the nearest where limits share groups.
        """
        shift, prices = np.zeros(len(at)), np.zeros(len(self._limit))
        for _ in range(_ROUNDS if len(self._parts) > 1 else 1):
            for i, (groups, use) in enumerate(self._users):
                rate = use / weight[groups]
                shift[groups] -= prices[i] * rate
                prices[i] = _rise(at[groups] + shift[groups], rate, use, self._limit[i])
                shift[groups] += prices[i] * rate
        return np.clip(at + shift, 0.0, 1.0)

    def _fit_part(
        self,
        kept_at: Callable[[FloatArray], FloatArray],
        others: FloatArray,
        at: IntArray,
        owner: IntArray,
        use: FloatArray,
        scale: float,
    ) -> FloatArray:
        """Prices of limits that share no group, the others' being fixed: bisection, for all of them at once."""
        limit = self._limit

        def passed(lam: FloatArray) -> FloatArray:
            pi = others.copy()
            pi[at] += lam[owner] * use
            used = np.bincount(owner, use * kept_at(pi)[at], minlength=len(limit))
            return np.asarray(used > limit, dtype=np.float64)

        needed = passed(np.zeros(len(limit)))
        low, high = (
            np.full(len(limit), np.log(_LOWEST * scale)),
            np.full(len(limit), np.log(_HIGHEST * scale)),
        )
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            over = passed(np.exp(middle)) > 0.0
            low, high = np.where(over, middle, low), np.where(over, high, middle)
        return np.where(needed > 0.0, np.exp(high), 0.0)


def _rise(at: FloatArray, rate: FloatArray, use: FloatArray, limit: float) -> float:
    """The least t >= 0 with sum of use (1 - clip(at + t rate, 0, 1)) <= limit: the sum is linear between its bends."""
    spare = float(use @ (1.0 - np.clip(at, 0.0, 1.0))) - limit
    if spare <= 0.0:
        return 0.0
    bends = np.concatenate([-at / rate, (1.0 - at) / rate])  # where a share leaves 0, and where it comes to 1
    slopes = np.concatenate([use * rate, -use * rate])
    order = np.argsort(bends)
    bends, slopes = bends[order], slopes[order]
    ahead = bends > 0.0
    slope = float(slopes[~ahead].sum())
    bends, slopes = bends[ahead], slopes[ahead]
    if not bends.size:
        return 0.0
    rising = slope + np.concatenate([[0.0], np.cumsum(slopes)[:-1]])  # slope on the way to each bend
    fallen = np.cumsum(rising * np.diff(bends, prepend=0.0))
    last = int(np.searchsorted(fallen, spare))
    if last == len(bends):
        return float(bends[-1])
    return float(bends[last] - (fallen[last] - spare) / max(rising[last], 1e-300))


def _best_price(left: FloatArray, usage: FloatArray, limit: float) -> float:
    """The price lam >= 0 that minimises lam limit + sum max(0, left - lam usage): the ratio where the limit is full."""
    users = usage > 0.0
    ratio = left[users] / usage[users]
    order = np.argsort(-ratio)
    first_over = int(np.searchsorted(np.cumsum(usage[users][order]), limit, side="right"))
    return float(ratio[order][first_over]) if first_over < len(order) else 0.0
