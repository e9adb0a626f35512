"""What the rules share: data in the order of the curves, targets rounded to widths, the highest level that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.allocation.posed import Posed
from osscar_opt.allocation.result import Allocation
from osscar_opt.errors import InfeasibleError, InputError

__all__ = ["at_most", "by_curve", "highest", "numbers_by_curve", "only_resource", "score_vectors", "sizes"]

_HALVINGS = 200


def by_curve(given: Any, posed: Posed, what: str) -> list[Any]:
    """Data of each curve, from a mapping by name or a sequence in their order.

    Raises
    ------
    InputError
        If there is nothing for a curve, or a name is unknown.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> posed = Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})])
    >>> by_curve({"a": 3}, posed, "scores"), by_curve([3], posed, "scores")
    ([3], [3])
    """
    names = [curve.name for curve in posed.curves]
    if isinstance(given, Mapping):
        odd = [key for key in given if key not in names] or [key for key in names if key not in given]
        if odd:
            raise InputError(
                f"{what} and the curves disagree about {odd[0]!r}: give one entry for each curve's name."
            )
        return [given[name] for name in names]
    values = list(given)
    if len(values) != len(names):
        raise InputError(f"{what} has {len(values)} entries, but there are {len(names)} curves.")
    return values


def numbers_by_curve(given: Any, posed: Posed, what: str) -> FloatArray:
    """One finite number for each curve.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> numbers_by_curve([3], Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})]), "distances")
    array([3.])
    """
    values = np.array([float(value) for value in by_curve(given, posed, what)])
    if not np.all(np.isfinite(values)):
        raise InputError(f"{what} must be finite numbers, one for each curve.")
    return values


def score_vectors(given: Any, posed: Posed, what: str = "scores") -> list[FloatArray]:
    """One finite score for each unit of each curve.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> score_vectors([[3, 1]], Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})]))
    [array([3., 1.])]
    """
    vectors = []
    for curve, values in zip(posed.curves, by_curve(given, posed, what), strict=True):
        vector = np.array(values, dtype=np.float64)
        if vector.shape != (curve.n,) or not np.all(np.isfinite(vector)):
            raise InputError(f"{what} of {curve.name} must be {curve.n} finite numbers, one for each unit.")
        vectors.append(vector)
    return vectors


def only_resource(posed: Posed, resource: str | None) -> str:
    """The resource that has a budget, or the one named among several.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> only_resource(Budget({"units": 1}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})]), None)
    'units'
    """
    known = list(posed.limits)
    if resource is None and len(known) == 1:
        return known[0]
    if resource not in known:
        raise InputError(
            f"resource = {resource!r} must be one of the resources with a budget: {', '.join(known)}."
        )
    return resource


def sizes(posed: Posed, resource: str) -> FloatArray:
    """What each curve uses of a resource with nothing removed.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> sizes(Budget({"units": 1}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})]), "units")
    array([2.])
    """
    unknown = [curve.name for curve in posed.curves if resource not in curve.dense_costs]
    if unknown:
        raise InputError(
            f"what {unknown[0]} uses of {resource} with all units kept is not known: pass dense_costs."
        )
    return np.array([curve.dense_costs[resource] for curve in posed.curves])


def at_most(posed: Posed, targets: FloatArray) -> IntArray:
    """Places of the widest widths that are no wider than the targets; of the narrowest where there is none.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> at_most(Budget({}).resolve([Curve("a", 9, [2, 4, 9], [4.0, 1.0, 0.0], {})]), [8.9])
    array([1])
    """
    # 1e-9: a share times n may fall short of the whole number that it means
    found = [
        int(np.searchsorted(curve.widths, target + 1e-9, side="right")) - 1
        for curve, target in zip(posed.curves, targets, strict=True)
    ]
    return np.maximum(np.array(found, dtype=np.int64), 0)


def highest(
    posed: Posed,
    targets: Callable[[float], FloatArray | Sequence[float]],
    low: float,
    high: float,
    method: str,
    began: float,
    options: Mapping[str, Any],
) -> Allocation:
    """The allocation at the highest level from `low` to `high` whose rounded targets keep every budget.

    Targets must not fall as the level rises.  The level is found by halving, down to rounding.

    Raises
    ------
    InfeasibleError
        If even the targets at `low` pass a budget.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> posed = Budget({"units": 5}).resolve([Curve("a", 9, [2, 4, 9], [4.0, 1.0, 0.0], {"units": 1})])
    >>> highest(posed, lambda level: [9 * level], 0.0, 1.0, "share", 0.0, {}).widths
    {'a': 4}
    """

    def places(level: float) -> IntArray:
        return at_most(posed, np.asarray(targets(level), dtype=np.float64))

    best = places(high)
    if posed.violation(best):
        best = places(low)
        violation = posed.violation(best)
        if violation:
            raise InfeasibleError(
                f"rule {method!r} keeps no budget: at its smallest it {violation}; change its options, or use "
                "rule='milp', which says what is feasible."
            )
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            tried = places(middle)
            if posed.violation(tried):
                high = middle
            else:
                low, best = middle, tried
    return posed.allocation(best, method, began, options=options)
