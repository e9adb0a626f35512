"""Profiles: how large a share of the pairs a method solves within a factor of the fastest, or within a gap.

The performance profile is that of Dolan and Moré, "Benchmarking optimization software with performance profiles",
Mathematical Programming 91 (2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError

__all__ = ["CLOCK", "Profile", "performance_profile", "quality_profile"]

CLOCK = 1e-3
"""Seconds: times below it count as this much, so that a ratio of times compares work and not the clock's noise."""


@dataclass(frozen=True)
class Profile:
    """Steps of one method's curve: at `x[i]` and above, up to the next, the share is `share[i]`.

    Attributes
    ----------
    x : array
        Ratios to the fastest method, or gaps; ascending.
    share : array
        Between 0 and 1, never falling.
    pairs : int
        How many pairs there are.

    Examples
    --------
    >>> import numpy as np
    >>> Profile(np.array([1.0, 2.0]), np.array([0.5, 1.0]), 2).at(1.5)
    0.5
    """

    x: FloatArray
    share: FloatArray
    pairs: int

    def at(self, value: float) -> float:
        """Share of the pairs within `value`.

        Examples
        --------
        >>> quality_profile({"greedy": [0.0, 0.1]})["greedy"].at(0.05)
        0.5
        """
        steps = int(np.searchsorted(self.x, value, side="right"))
        return float(self.share[steps - 1]) if steps else 0.0


def performance_profile(times: Mapping[str, Sequence[float]], clock: float = CLOCK) -> dict[str, Profile]:
    """Compute performance profiles: the share of pairs that take a method at most so many times the fastest's time.

    Parameters
    ----------
    times : mapping
        Method to its seconds on each pair, in the same order for all; inf where it did not reach the target.
        A pair that no method solves counts against all of them.
    clock : float
        Times below it count as this much.

    Returns
    -------
    dict
        Method to its `Profile`; ``at(1)`` is the share on which the method was the fastest, the last share the part
        it solved at all.

    Raises
    ------
    InputError
        When the methods were not timed on the same number of pairs.

    Examples
    --------
    >>> profiles = performance_profile({"quick": [1.0, 1.0, float("inf")], "thorough": [2.0, 5.0, 9.0]})
    >>> profiles["quick"].at(1), profiles["thorough"].at(1), profiles["thorough"].at(2), profiles["thorough"].at(5)
    (0.666667, 0.333333, 0.666667, 1.0)
    """
    if len({len(values) for values in times.values()}) > 1:
        raise InputError(
            "a performance profile needs the time of every method on every pair; use inf for unsolved ones."
        )
    table = np.array([np.asarray(values, float) for values in times.values()])
    table = np.maximum(table.reshape(len(times), -1), clock)
    fastest = table.min(axis=0, initial=np.inf)
    with np.errstate(invalid="ignore"):  # inf / inf: nobody solved it
        ratios = np.where(np.isfinite(table), table / fastest, np.inf)
    return {method: _steps(row) for method, row in zip(times, ratios, strict=True)}


def quality_profile(gaps: Mapping[str, Sequence[float]]) -> dict[str, Profile]:
    """Compute the share of the pairs whose value is within a gap of the reference.

    Parameters
    ----------
    gaps : mapping
        Method to its gap on each pair: 0 is the reference itself, 0.01 one per cent above it; inf where there is
        no value.

    Examples
    --------
    >>> profile = quality_profile({"greedy": [0.0, 0.004, 0.03, float("inf")]})["greedy"]
    >>> profile.at(0), profile.at(0.01), profile.at(1)
    (0.25, 0.5, 0.75)
    """
    return {method: _steps(np.asarray(values, float)) for method, values in gaps.items()}


def _steps(values: FloatArray) -> Profile:
    finite = np.sort(values[np.isfinite(values)])
    x, first = np.unique(finite, return_index=True)
    within = np.append(first[1:], len(finite))
    return Profile(x, within / max(len(values), 1), len(values))
