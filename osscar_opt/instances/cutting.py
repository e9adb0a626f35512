"""Smaller problems out of a layer's: some of its groups alone, fewer outputs, fewer digits.

None of these is the layer's own problem, but each is a pruning problem on real numbers: reconstruct what the chosen
groups produce together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from osscar_opt._typing import FloatArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.groups import Groups
from osscar_opt.formulations.problem import Problem

__all__ = ["random_groups", "rotated", "rounded", "subproblem"]


def subproblem(problem: Problem, groups: Sequence[int], keep: int | None = None) -> Problem:
    """The problem of some of a layer's groups alone: reconstruct what these groups produce with their own weights.

    With s the rows of the groups: gram H_ss, cross H_ss W_s with W the dense weights (the unconstrained optimum where
    there are none), and objective 0 at W_s. With an intercept, means are those of the rows and of what they produce.

    Parameters
    ----------
    problem : Problem
    groups : sequence of int
        Which; the problem's order is kept.
    keep : int, optional

    Returns
    -------
    Problem
        Its provenance lists the groups under ``groups_of_layer``.

    Raises
    ------
    InputError
        If a group is named twice or does not exist.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]])
    >>> subproblem(problem, [2, 1], keep=1).optimum.ravel()
    array([3., 2.])
    """
    chosen = np.sort(np.asarray(groups, dtype=np.intp))
    if len(np.unique(chosen)) != len(chosen):
        raise InputError("a group is named twice: name each of them once.")
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < problem.n:
        raise InputError(f"groups must lie between 0 and {problem.n - 1}.")
    mask = np.zeros(problem.n, dtype=bool)
    mask[chosen] = True
    rows = np.flatnonzero(problem.groups.row_mask(mask))
    weights = (problem.optimum if problem.dense_weights is None else problem.dense_weights)[rows]
    return Problem(
        problem.gram[np.ix_(rows, rows)],
        dense_weights=weights,
        groups=Groups.coerce(np.searchsorted(chosen, problem.groups.group_of_row[rows]), len(rows)),
        keep=keep,
        name=f"{problem.name}, {len(chosen)} groups",
        provenance=problem.provenance | {"groups_of_layer": chosen.tolist()},
        **_means(problem, weights, rows),
    )


def random_groups(total: int, count: int, seed: int = 0) -> list[int]:
    """Draw groups of a layer, always the same of one seed and count.

    Examples
    --------
    >>> random_groups(10, 3) == random_groups(10, 3), len(set(random_groups(10, 3)))
    (True, 3)
    """
    drawn = np.random.default_rng([seed, count]).choice(total, size=count, replace=False)
    return [int(group) for group in drawn]


def rotated(problem: Problem) -> Problem:
    """Turn the outputs so that at most p of them are left; no support's value changes.

    Values depend on weights W only through W W': with W' = Q R, the weights R' have as many columns as W has rows, or
    fewer. The provenance says so under ``outputs``. Where q <= p, or targets are not those of the dense weights, the
    problem is returned as it is.

    Examples
    --------
    >>> problem = Problem(np.eye(1), dense_weights=[[3.0, 4.0]])
    >>> rotated(problem).dense_weights, rotated(problem).provenance["outputs"]
    (array([[5.]]), 'rotated, 2 -> 1')
    """
    if problem.q <= problem.p or problem.dense_weights is None or not problem.dense_is_optimal:
        return problem
    triangle = scipy.linalg.qr(problem.dense_weights.T, mode="r")[0][: problem.p]
    sign = np.where(triangle.diagonal() < 0, -1.0, 1.0)  # of LAPACK's making, not the problem's
    weights = np.ascontiguousarray((triangle * sign[:, None]).T)
    return _with(problem, weights, outputs=f"rotated, {problem.q} -> {problem.p}")


def rounded(problem: Problem, dtype: str = "float32") -> Problem:
    """The problem as it is read back from a file of this precision.

    Examples
    --------
    >>> problem = Problem([[1.0]], dense_weights=[[0.1]])
    >>> float(rounded(problem).dense_weights[0, 0]) == float(np.float32(0.1))
    True
    """
    if dtype == "float64" or problem.dense_weights is None or not problem.dense_is_optimal:
        return problem
    weights = problem.dense_weights.astype(dtype).astype(np.float64)
    return _with(problem, weights, gram=problem.gram.astype(dtype).astype(np.float64))


def _with(
    problem: Problem, weights: FloatArray, gram: FloatArray | None = None, **provenance: Any
) -> Problem:
    limits = ("keep", "costs", "budget", "always_keep", "always_remove", "blocks", "block_keep")
    return Problem(
        problem.gram if gram is None else gram,
        dense_weights=weights,
        groups=problem.groups,
        name=problem.name,
        provenance=problem.provenance | provenance,
        copy=False,
        **_means(problem, weights, slice(None)),
        **{limit: getattr(problem, limit) for limit in limits},
    )


def _means(problem: Problem, weights: FloatArray, rows: Any) -> dict[str, Any]:
    """Means of some inputs and of what the weights make of them: the intercept of the dense weights is then 0."""
    if problem.input_mean is None:
        return {}
    mean = problem.input_mean[rows]
    return {"input_mean": mean, "target_mean": weights.T @ mean}
