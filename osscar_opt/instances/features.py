"""What can be said of a problem before it is solved: sizes, conditioning, how much its groups share."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.problem import Problem

__all__ = ["SPECTRAL_ROWS", "effective_rank", "features"]

SPECTRAL_ROWS = 2048
"""Largest p for which eigenvalues are computed."""


def features(problem: Problem) -> dict[str, Any]:
    """Features of a problem, as JSON can hold them; they depend on its content, not on keep.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    dict
        n, p, q; ``group_sizes``, the smallest and the largest; ``limits``, what there is beside keep;
        ``mean_diagonal`` of gram and ``loss_of_all``, what removing every group costs; and, None where p is larger than
        `SPECTRAL_ROWS`:

        - ``condition`` and ``condition_equilibrated``: condition number of gram, and of gram scaled to unit diagonal
        - ``effective_rank``: see `effective_rank`; of gram
        - ``additivity``: what the groups cost when each is removed alone, added up, as part of ``loss_of_all``. 1: what
          groups do is their own, and choosing is sorting; near 0: each can be replaced by the others

    Examples
    --------
    >>> found = features(Problem(np.diag([1.0, 2.0]), [[1.0], [2.0]]))
    >>> found["n"], found["condition"], found["condition_equilibrated"], found["additivity"]
    (2, 2.0, 1.0, 1.0)
    """
    sizes = problem.groups.sizes
    found: dict[str, Any] = {
        "n": problem.n,
        "p": problem.p,
        "q": problem.q,
        "group_sizes": [int(sizes.min()), int(sizes.max())],
        "limits": sorted(problem.features - {"unequal_groups"}),
        "mean_diagonal": float(problem.gram.diagonal().mean()),
        "loss_of_all": problem.constant - problem.base,
        "condition": None,
        "condition_equilibrated": None,
        "effective_rank": None,
        "additivity": None,
    }
    live = problem.live_rows
    if problem.p <= SPECTRAL_ROWS and live.any():
        gram = problem.gram if live.all() else problem.gram[np.ix_(live, live)]
        scale = gram.diagonal() ** -0.5
        eigenvalues = scipy.linalg.eigvalsh(gram)
        equilibrated = scipy.linalg.eigvalsh(gram * scale[:, None] * scale)
        found |= {
            "condition": float(eigenvalues[-1] / eigenvalues[0]),
            "condition_equilibrated": float(equilibrated[-1] / equilibrated[0]),
            "effective_rank": effective_rank(eigenvalues),
            "additivity": _additivity(problem, gram),
        }
    return found


def effective_rank(eigenvalues: FloatArray) -> float:
    """Compute exp of the entropy of the eigenvalues' shares (Roy & Vetterli, 2007): n for n equal ones, else less.

    Examples
    --------
    >>> round(effective_rank(np.array([1.0, 1.0, 1.0, 0.0])), 6)
    3.0
    """
    share = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _additivity(problem: Problem, gram: FloatArray) -> float | None:
    """With M = inv(H): removing g alone costs 1/2 tr(W_g' inv(M_gg) W_g)."""
    whole = problem.constant - problem.base
    if not whole > 0:
        return None
    inverse = scipy.linalg.inv(gram)
    weights = problem.optimum[problem.live_rows]
    labels = problem.groups.group_of_row[problem.live_rows]
    alone = 0.0
    for group in range(problem.n):
        rows = np.flatnonzero(labels == group)
        if rows.size:
            solved = np.linalg.solve(inverse[np.ix_(rows, rows)], weights[rows])
            alone += 0.5 * float(np.sum(weights[rows] * solved))
    return alone / whole
