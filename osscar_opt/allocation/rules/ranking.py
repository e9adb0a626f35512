r"""One ranking of the units of all layers by what they are worth less what they save: NViT."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import only_resource, score_vectors
from osscar_opt.errors import InfeasibleError, InputError
from osscar_opt.formulations import _validate

__all__ = ["nvit"]


def nvit(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    scores: Any,
    eta: float,
    resource: str | None = None,
) -> Allocation:
    r"""Latency-regularised ranking: units go in order of their score less what their removal saves.

    With k units of layer j left, the next to go is the one with the lowest score of those left, s_j(k); it is worth

    .. math:: v_j = s_j(k) - \eta\, \bigl( c_j(k) - c_j(k - 1) \bigr) ,

    c_j the layer's latency, or its use of any other resource.  The layer of the least v_j loses its unit, until every
    budget holds.  From one allowed width to the next, several units go at once, and v_j is their mean.  As in the
    paper, the latency is looked up for the layer's present width, so that v_j changes as it shrinks.

    H. Yang, H. Yin, M. Shen, P. Molchanov, H. Li, J. Kautz, *Global Vision Transformer Pruning with Hessian-Aware
    Saliency*, CVPR 2023 (NViT).  There a few units go at a time, and scores are computed anew between.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    scores : mapping of str to (n,) array, or sequence
        A score for each unit of each curve's layer, the larger the better.
    eta : float
        What one unit of the resource is worth in scores; 0 ranks by scores alone.
    resource : str, optional
        Which resource is saved, where several have a budget.

    Raises
    ------
    InfeasibleError
        If no order of removal keeps every budget.
    InputError
        If there is not one score for each unit, or eta is negative.

    Examples
    --------
    >>> curves = [Curve(name, 3, [1, 2, 3], [2.0, 1.0, 0.0], {"ms": cost}) for name, cost in [("a", 1.0), ("b", 4.0)]]
    >>> scores = {"a": [1, 2, 3], "b": [2, 3, 4]}
    >>> nvit(curves, {"ms": 11}, scores=scores, eta=0).widths, nvit(curves, {"ms": 11}, scores=scores, eta=1).widths
    ({'a': 1, 'b': 2}, {'a': 3, 'b': 2})
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    price = _validate.scalar(eta, "eta")
    if price < 0.0:
        raise InputError(f"eta = {price:.6g} must not be negative.")
    saved = only_resource(posed, resource)
    # totals[j][i]: sum of the lowest scores of layer j, those that are gone at its i-th width
    totals = []
    for curve, vector in zip(posed.curves, score_vectors(scores, posed), strict=True):
        sums = np.concatenate([[0.0], np.cumsum(np.sort(vector))])
        totals.append(sums[curve.n - curve.widths])
    at = np.array([len(curve.widths) - 1 for curve in posed.curves])

    def worth(j: int) -> float:
        curve, i = posed.curves[j], at[j]
        score = totals[j][i - 1] - totals[j][i]
        saving = curve.costs[saved][i] - curve.costs[saved][i - 1]
        return float((score - price * saving) / (curve.widths[i] - curve.widths[i - 1]))

    waiting = [(worth(j), j) for j in range(len(at)) if at[j] > 0]
    heapq.heapify(waiting)
    violation = posed.violation(at)
    while violation:
        if not waiting:
            raise InfeasibleError(
                f"rule 'nvit' keeps no budget: with every layer at its narrowest it {violation}; use rule='milp', "
                "which says what is feasible."
            )
        j = heapq.heappop(waiting)[1]
        at[j] -= 1
        if at[j] > 0:
            heapq.heappush(waiting, (worth(j), j))
        violation = posed.violation(at)
    return posed.allocation(at, "nvit", began, options={"eta": price, "resource": resource})
