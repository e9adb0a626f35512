r"""Shares that follow from how unevenly a layer's weights are spread: the PQ index."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike, FloatArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import by_curve, highest
from osscar_opt.errors import InputError

__all__ = ["pq_index", "sap"]


def pq_index(vector: ArrayLike, *, p: float = 0.5, q: float = 1.0) -> float:
    r"""How far a vector is from being evenly spread: 0 where all entries are equal in size, near 1 where few are large.

    .. math:: I_{p,q}(w) = 1 - d^{1/q - 1/p} \frac{\|w\|_p}{\|w\|_q} , \qquad 0 < p < q .

    Parameters
    ----------
    vector : (d,) array
    p, q : float, optional

    Raises
    ------
    InputError
        If the vector is empty or zero, or not 0 < p < q.

    Examples
    --------
    >>> pq_index([1.0, 1.0, -1.0]), pq_index([0.0, 0.0, 3.0])
    (0.0, 0.6666666666666667)
    """
    if not 0.0 < p < q:
        raise InputError(f"p = {p} and q = {q} must satisfy 0 < p < q.")
    size = np.abs(np.asarray(vector, dtype=np.float64)).ravel()
    if size.size == 0 or not np.all(np.isfinite(size)) or not np.any(size):
        raise InputError("the PQ index needs a vector of finite numbers, not all of them zero.")
    size = size / size.max()
    ratio = np.sum(size**p) ** (1.0 / p) / np.sum(size**q) ** (1.0 / q)
    return float(1.0 - size.size ** (1.0 / q - 1.0 / p) * ratio)


def sap(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    weights: Any,
    p: float = 0.5,
    q: float = 1.0,
    most: float = 0.9,
) -> Allocation:
    r"""Sparsity-informed adaptive pruning: layers with a large PQ index lose more.

    Of d entries, at least r are needed to keep a norm up to a factor (the paper's theorem, its eta = 0), and of n_j
    units

    .. math:: r = d\, (1 - I_{p,q})^{\,pq / (q - p)} , \qquad
              n_j - k_j = \bigl\lfloor n_j \min\bigl(\gamma (1 - r / d),\; \beta \bigr) \bigr\rfloor

    go, with the smallest gamma for which the budget holds.  The paper prunes single weights, a little in each of many
    rounds with training between them, at gamma = 1; here units go, once.

    E. Diao, G. Wang, J. Zhang, Y. Yang, J. Ding, V. Tarokh, *Pruning Deep Neural Networks from a Sparsity Perspective*,
    ICLR 2023.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    weights : mapping of str to array, or sequence
        For each curve the vector whose PQ index counts: norms of its units, or all its weights.
    p, q : float, optional
        0 < p < q; the paper's are 0.5 and 1.
    most : float, optional
        beta: the largest share that a layer loses.

    Raises
    ------
    InfeasibleError
        If the budget does not hold with every layer at beta; a layer with all entries equal never loses any.
    InputError
        If a vector is zero, or an option is out of range.

    Examples
    --------
    >>> curves = [Curve(name, 4, [1, 2, 3, 4], np.zeros(4), {"units": 1}) for name in "ab"]
    >>> sap(curves, {"units": 5}, weights=[[9.0, 0.1, 0.1, 0.1], [4.0, 3.0, 2.0, 1.0]]).widths
    {'a': 1, 'b': 4}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    if not 0.0 < most <= 1.0:
        raise InputError(
            f"most = {most} is out of range: it is the largest share removed, above 0 and up to 1."
        )
    index = np.array([pq_index(vector, p=p, q=q) for vector in by_curve(weights, posed, "weights")])
    # An index of equal entries may come out a digit below 0.
    spare = 1.0 - np.clip(1.0 - index, 0.0, 1.0) ** (p * q / (q - p))
    spare[spare < 1e-12] = 0.0
    n = np.array([curve.n for curve in posed.curves])
    strongest = most / float(spare[spare > 0.0].min()) if np.any(spare > 0.0) else 0.0

    def targets(level: float) -> FloatArray:
        return np.asarray(n - np.floor(n * np.minimum(-level * spare, most) + 1e-9))

    return highest(posed, targets, -strongest, 0.0, "sap", began, {"p": p, "q": q, "most": most})
