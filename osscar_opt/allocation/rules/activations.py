r"""Shares that follow from how alike the activations of layers are: ALS."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from osscar_opt._typing import ArrayLike, FloatArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.rules._common import highest, only_resource, sizes
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate

__all__ = ["als"]


def als(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    correlations: ArrayLike,
    spread: float = 0.25,
    resource: str | None = None,
) -> Allocation:
    r"""Adaptive layer sparsity: layers whose activations repeat those of others keep less, by a linear program.

    With R_ij in [0, 1] the correlation of the activations of layers i and j, and u_j what layer j uses with nothing
    removed,

    .. math:: \rho_j = \frac{1}{J - 1} \sum_{i \ne j} R_{ij} , \qquad
              \max_x \sum_j (1 - \rho_j)\, u_j x_j \quad\text{with}\quad \sum_j u_j x_j \le s \sum_j u_j ,\quad
              \max(0, s - \delta) \le x_j \le \min(1, s + \delta)

    gives the shares x_j = k_j / n_j, with the largest s for which the budget holds.  It is a continuous knapsack: all
    x_j are at a bound but one (G. B. Dantzig, Operations Research 5, 1957), and no solver is needed.

    The paper, and DSA of the same year, allocate sparsity to single weights.  This is our reading of it: that the
    importance of a layer is one minus its mean correlation with the others, and that shares are bounded around the mean
    one.  Its correlation is a measure of information orthogonality between two layers' outputs; any matrix of
    similarities from 0 to 1, such as CKA, will do here.

    W. Li, L. Li, M. G. Lee, S. Sun, *Adaptive Layer Sparsity for Large Language Models via Activation Correlation
    Assessment*, NeurIPS 2024.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    correlations : (J, J) array
        Symmetric, from 0 to 1, in the order of the curves; the diagonal does not count.
    spread : float, optional
        delta: how far a share may lie from the mean one.
    resource : str, optional
        What u counts, where several resources have a budget.

    Raises
    ------
    InputError
        If the correlations are not symmetric, or out of range.

    Examples
    --------
    >>> curves = [Curve(name, 8, np.arange(1, 9), np.zeros(8), {"units": 1}) for name in "abc"]
    >>> alike = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]
    >>> als(curves, {"units": 0.5}, correlations=alike).widths
    {'a': 4, 'b': 2, 'c': 6}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    count = len(posed.curves)
    matrix = np.array(correlations, dtype=np.float64)
    if matrix.shape != (count, count) or not np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-6):
        raise InputError(f"correlations must be a symmetric matrix of {count} rows, one for each curve.")
    if not np.all((matrix >= -1e-9) & (matrix <= 1.0 + 1e-9)):
        raise InputError("correlations must lie between 0 and 1: pass absolute values.")
    delta = _validate.scalar(spread, "spread")
    if not 0.0 <= delta <= 1.0:
        raise InputError(
            f"spread = {delta:.6g} is out of range: it is a share of a layer's units, from 0 to 1."
        )
    used = sizes(posed, only_resource(posed, resource))
    alike = (matrix.sum(axis=1) - matrix.diagonal()) / max(1, count - 1)
    order = np.argsort(alike, kind="stable")
    n = np.array([curve.n for curve in posed.curves])

    def targets(mean: float) -> FloatArray:
        low, high = max(0.0, mean - delta), min(1.0, mean + delta)
        shares = np.full(count, low)
        left = (mean - low) * float(used.sum())
        for j in order:
            more = min(high - low, left / used[j]) if used[j] > 0.0 else high - low
            shares[j] += more
            left = max(0.0, left - more * used[j])
        return np.asarray(shares * n)

    return highest(posed, targets, 0.0, 1.0, "als", began, {"spread": delta, "resource": resource})
