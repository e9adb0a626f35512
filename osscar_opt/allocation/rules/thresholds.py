r"""One ranking of the units of all layers: the best stay, wherever they are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.posed import Posed
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import highest, score_vectors
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate

__all__ = ["flap", "global_threshold"]


def global_threshold(
    curves: Sequence[Curve], budgets: Budget | Mapping[str, float], *, scores: Any, floor: float = 0.0
) -> Allocation:
    r"""One threshold for the scores of all units, with a floor for each layer.

    .. math:: k_j = \max\bigl( \lceil \phi\, n_j \rceil,\; |\{ g : s_{jg} \ge \tau \}| \bigr) ,

    rounded down to an allowed width, with the smallest tau for which the budget holds.  With magnitudes of weights as
    scores it is global magnitude pruning (S. Han, J. Pool, J. Tran, W. J. Dally, NeurIPS 2015; D. Blalock et al.,
    *What is the State of Neural Network Pruning?*, MLSys 2020).

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    scores : mapping of str to (n,) array, or sequence
        A score for each unit of each curve's layer, the larger the better.
    floor : float, optional
        Share of its units that every layer keeps at least.

    Raises
    ------
    InfeasibleError
        If the floors alone pass the budget.
    InputError
        If there is not one score for each unit.

    Examples
    --------
    >>> curves = [Curve(name, 3, [1, 2, 3], [2.0, 1.0, 0.0], {"units": 1}) for name in "ab"]
    >>> global_threshold(curves, {"units": 4}, scores={"a": [9, 8, 7], "b": [6, 1, 2]}).widths
    {'a': 3, 'b': 1}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    return _ranked(posed, score_vectors(scores, posed), floor, "global_threshold", began)


def flap(
    curves: Sequence[Curve], budgets: Budget | Mapping[str, float], *, scores: Any, floor: float = 0.0
) -> Allocation:
    r"""FLAP's adaptive search: one threshold for scores that were standardised in each layer.

    .. math:: z_{jg} = \frac{s_{jg} - \bar s_j}{\sigma_j} , \qquad
              \sigma_j^2 = \frac{1}{n_j - 1} \sum_g (s_{jg} - \bar s_j)^2 ,

    then as `global_threshold`.  Layers whose scores are all equal have z = 0.  The scores of the paper are the variance
    of a unit's activation times the squared norm of its weights (method ``flap`` of `osscar_opt.Problem.solve`).  For
    heads the authors' code standardises the rows and ranks each head by the mean of its rows; here the scores of units
    are standardised, whatever they were made from.

    Y. An, X. Zhao, T. Yu, M. Tang, J. Wang, *Fluctuation-based Adaptive Structured Pruning for Large Language Models*,
    AAAI 2024.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    scores : mapping of str to (n,) array, or sequence
        A score for each unit of each curve's layer, the larger the better.
    floor : float, optional
        Share of its units that every layer keeps at least; none in the paper.

    Raises
    ------
    InfeasibleError
        If the floors alone pass the budget.
    InputError
        If there is not one score for each unit.

    Examples
    --------
    >>> curves = [Curve(name, 3, [1, 2, 3], [2.0, 1.0, 0.0], {"units": 1}) for name in "ab"]
    >>> flap(curves, {"units": 4}, scores={"a": [9, 8, 7], "b": [6, 1, 2]}).widths
    {'a': 2, 'b': 2}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    standard = []
    for vector in score_vectors(scores, posed):
        apart = vector - vector.mean()
        spread = float(np.sqrt(apart @ apart / (len(vector) - 1))) if len(vector) > 1 else 0.0
        standard.append(apart / spread if spread > 0.0 else np.zeros(len(vector)))
    return _ranked(posed, standard, floor, "flap", began)


def _ranked(posed: Posed, scores: list[FloatArray], floor: float, method: str, began: float) -> Allocation:
    share = _validate.scalar(floor, "floor")
    if not 0.0 <= share <= 1.0:
        raise InputError(
            f"floor = {share:.6g} is out of range: it is the share that every layer keeps, from 0 to 1."
        )
    ascending = [np.sort(vector) for vector in scores]
    thresholds = np.unique(np.concatenate(ascending))[::-1]
    floors = np.array([np.ceil(share * curve.n - 1e-9) for curve in posed.curves])

    def targets(level: float) -> FloatArray:
        if level < 1.0:
            return floors
        threshold = thresholds[min(int(level), len(thresholds)) - 1]
        above = [len(vector) - np.searchsorted(vector, threshold) for vector in ascending]
        return np.asarray(np.maximum(floors, np.array(above, dtype=np.float64)))

    return highest(posed, targets, 0.0, float(len(thresholds)), method, began, {"floor": share})
