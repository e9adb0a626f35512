"""Big-M: intervals that hold the refitted weights of every support as good as one already known."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.models.normal import NormalForm, normal_form
from osscar_opt.formulations.problem import Problem

__all__ = ["normal_weight_bounds", "weight_bounds"]

_MARGIN = 1e-7
"""Of the largest weight that a row could have at all: what rounding in M may take away."""


def weight_bounds(problem: Problem, value: float) -> tuple[FloatArray, FloatArray]:
    r"""Bound the refitted weights of every support whose objective is at most ``value``.

    Let W be the refit on S, R its removed rows, :math:`W^* = H^{-1}G`, :math:`M = H^{-1}`, and g a group that is
    kept. Two bounds hold, and their intersection is returned.

    1. The refit leaves :math:`W - W^* = M_{:R} \lambda` for some :math:`\lambda`, because the gradient
       :math:`H(W - W^*)` vanishes on S, and :math:`\frac12 \mathrm{tr}(\lambda' M_{RR} \lambda) = f(S) - base`. By
       Cauchy-Schwarz, row i of g satisfies
       :math:`|W_{ij} - W^*_{ij}|^2 \le 2 (f(S) - base)\, (M_{gR} M_{RR}^{-1} M_{Rg})_{ii}`, and
       :math:`M_{gg} - M_{gR} M_{RR}^{-1} M_{Rg}` is the inverse of a Schur complement in H, which is at most
       :math:`H_{gg}`; hence

       .. math:: |W_{ij} - W^*_{ij}| \le \sqrt{2 (value - base)\, (M_{gg} - H_{gg}^{-1})_{ii}} .

    2. Removing g from S raises the objective by :math:`\frac12 \mathrm{tr}(W_g' B W_g)` with
       :math:`B \succeq M_{gg}^{-1}`, and to c at most; hence :math:`|W_{ij}| \le \sqrt{2 (c - base) M_{ii}}`.

    Parameters
    ----------
    problem : Problem
    value : float
        Objective of a support that is known; better ones are what a model with these bounds can still find.

    Returns
    -------
    lower, upper : (p, q) arrays

    Raises
    ------
    InputError
        If value is below base, which no support is.

    Examples
    --------
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[4.0], [5.0]], keep=1)
    >>> lower, upper = weight_bounds(problem, problem.value([1]))
    >>> bool(np.all(lower[1] <= problem.refit([1])[1]) and np.all(problem.refit([1])[1] <= upper[1]))
    True
    """
    if not value >= problem.base:
        raise InputError(
            f"value = {value!r} is below {problem.base:.9g}, which is what all groups together reach."
        )
    form = normal_form(problem)
    radius, largest = _radii(form, form.excess(value))
    scale = form.sigma * form.scale[:, None]
    return _intersection(problem.optimum, scale * radius, scale * largest)


def normal_weight_bounds(form: NormalForm, excess: float) -> tuple[FloatArray, FloatArray]:
    """Return the same bounds for weights in normal form, shapes (p, r), at supports of at most this loss.

    Examples
    --------
    >>> lower, upper = normal_weight_bounds(normal_form(Problem(np.eye(2), [[3.0], [4.0]])), 0.5)
    >>> np.round(upper, 6).ravel()
    array([0.6, 0.8])
    """
    return _intersection(form.optimum, *_radii(form, excess))


def _radii(form: NormalForm, excess: float) -> tuple[FloatArray, FloatArray]:
    """(p, 1) each: how far a weight can be from its optimum, and from zero, in normal form."""
    whitened = solve_triangular(form.root, np.eye(len(form.root)), lower=True, check_finite=False)
    inverse = np.einsum("ki,ki->i", whitened, whitened)  # diagonal of M
    alone = np.empty(len(inverse))  # diagonal of inv(H_gg), for the group of each row
    for group in range(form.problem.n):
        rows = form.problem.groups.rows(group)
        alone[rows] = np.linalg.inv(form.gram[np.ix_(rows, rows)]).diagonal()
    margin = _MARGIN * np.sqrt(inverse)
    spread = np.sqrt(max(excess, 0.0) * np.maximum(inverse - alone, 0.0)) + margin
    return spread[:, None], (np.sqrt(inverse) + margin)[:, None]


def _intersection(
    optimum: FloatArray, radius: FloatArray, largest: FloatArray
) -> tuple[FloatArray, FloatArray]:
    return np.maximum(optimum - radius, -largest), np.minimum(optimum + radius, largest)
