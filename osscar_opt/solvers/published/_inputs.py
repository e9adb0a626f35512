"""Size of single inputs: mean square and variance, with the ridge taken off again where it is known."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem

__all__ = ["input_energy", "input_variance", "ridge_in_gram"]

_CUT = {"groups_of_layer", "part"}
"""Keys of the provenance that say that a problem is part of a layer."""

_ROUNDING = 1e-5
"""Relative excess of the ridge over the smallest diagonal entry that is read as rounding (to float32)."""


def ridge_in_gram(problem: Problem) -> float:
    """What was added to the diagonal of X'X/N, if the provenance tells; else 0.

    Either by ``ridge``, or by ``damping``: then ridge = damping * mean diag(X'X/N), and the gram's own diagonal has the
    mean (1 + damping) mean diag(X'X/N).  Of a cut (``groups_of_layer`` or ``part`` in the provenance) the damping is
    relative to the whole layer, whose mean is not known any more: without ``ridge`` it counts as unknown, as does any
    that is larger than an entry of the diagonal.

    Examples
    --------
    >>> inputs, weights = [[1.0, 0.0], [1.0, 2.0]], [[1.0], [1.0]]
    >>> from osscar_opt import Problem
    >>> problem = Problem.from_data(inputs, weights, damping=0.5, provenance={"damping": 0.5})
    >>> problem.gram.diagonal(), ridge_in_gram(problem)
    (array([1.75, 2.75]), 0.75)
    """
    provenance, diagonal = problem.provenance, problem.gram.diagonal()
    if not len(diagonal):
        return 0.0
    ridge = _positive(provenance.get("ridge"))
    if not ridge and not _CUT & set(provenance):
        damping = _positive(provenance.get("damping"))
        ridge = damping * float(diagonal.mean()) / (1.0 + damping)
    return ridge if ridge <= float(diagonal.min()) * (1.0 + _ROUNDING) else 0.0


def input_variance(problem: Problem) -> FloatArray:
    """Mean square of every input about the point that the moments were taken about, shape (p,).

    That is the variance for a problem with means, and the mean square for one without.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> inputs, weights = [[1.0, 0.0], [1.0, 2.0]], [[1.0], [1.0]]
    >>> input_variance(Problem.from_data(inputs, weights, damping=0.5, provenance={"damping": 0.5}))
    array([1., 2.])
    """
    return np.maximum(problem.gram.diagonal() - ridge_in_gram(problem), 0.0)


def input_energy(problem: Problem) -> FloatArray:
    """Mean square of every input about zero, ``|X_j|^2 / N``, shape (p,).

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> inputs, weights = [[1.0, 0.0], [1.0, 2.0]], [[1.0], [1.0]]
    >>> centred = dict(damping=0.5, intercept=True, provenance={"damping": 0.5})
    >>> input_energy(Problem.from_data(inputs, weights, **centred))
    array([1., 2.])
    """
    variance = input_variance(problem)
    return variance if problem.input_mean is None else variance + problem.input_mean**2


def _positive(value: Any) -> float:
    """A positive finite number out of JSON, or 0 for whatever else is there."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) and value > 0.0 else 0.0
