r"""Exact values of all single exchanges of a tableau, by matrix products and elementwise work."""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.linalg.tableau import Members, Tableau

_CHUNK = 1 << 16  # numbers in a temporary: what stays in a core's second-level cache


def swap_changes(tableau: Tableau) -> tuple[IntArray, IntArray, FloatArray]:
    r"""Change of the objective for every exchange of a kept group i for a removed group j.

    With A_ii = -T_ii, U = T_ij, X = A_ii^-1 U (all of T at the current support), the change is

    .. math:: \tfrac12 \mathrm{tr}(A_{ii}^{-1} N_{ii}) - \tfrac12 \mathrm{tr}\left((T_{jj} + U' X)^{-1} R R'\right),
              \quad R R' = N_{jj} + X' N_{ij} + N_{ij}' X + X' N_{ii} X

    which needs nothing but T, N between the two sides.

    Parameters
    ----------
    tableau : Tableau
        Two-sided.

    Returns
    -------
    kept : (|S|,) int array
    removed : (|P|,) int array
        Labels of the groups.
    changes : (|S|, |P|) array
        Negative entries are improvements.
    """
    if tableau.side != "both":
        raise ValueError("exchanges need a two-sided tableau")
    inside, outside = tableau.members(kept=True), tableau.members(kept=False)
    kept, removed = (
        np.concatenate([np.empty(0, np.int64)] + [m.groups for m in side]) for side in (inside, outside)
    )
    changes = np.empty((len(kept), len(removed)))
    top = 0
    for i in inside:
        left = 0
        for j in outside:
            target = changes[top : top + len(i.groups), left : left + len(j.groups)]
            (_scalar_changes if i.size == j.size == 1 else _block_changes)(tableau, i, j, target)
            left += len(j.groups)
        top += len(i.groups)
    return kept, removed, changes


def _scalar_changes(tableau: Tableau, i: Members, j: Members, out: FloatArray) -> None:
    """Groups of one row: a = u / A_ii, change = N_ii / 2 A_ii - (N_jj + 2 a N_ij + a^2 N_ii) / 2 (T_jj + a u)."""
    u, cross = tableau.between(i, j)
    a_ii, n_ii = -i.t[:, 0, 0, None], i.n[:, 0, 0, None]
    t_jj, n_jj = j.t[:, 0, 0], j.n[:, 0, 0]
    step = max(1, _CHUNK // max(1, u.shape[1]))
    for start in range(0, u.shape[0], step):
        rows = slice(start, start + step)
        ratio = u[rows] / a_ii[rows]
        explained = ratio * n_ii[rows]
        explained += 2.0 * cross[rows]
        explained *= ratio
        explained += n_jj
        ratio *= u[rows]
        ratio += t_jj
        explained /= ratio
        np.subtract(n_ii[rows] / a_ii[rows], explained, out=out[rows])
    out *= 0.5


def _block_changes(tableau: Tableau, i: Members, j: Members, out: FloatArray) -> None:
    """Groups of several rows: the same, with small matrices in batches."""
    u, cross = tableau.between(i, j)
    shape = (len(i.groups), i.size, len(j.groups), j.size)
    u, cross = (block.reshape(shape).swapaxes(1, 2) for block in (u, cross))  # (|S|, |P|, s_i, s_j)
    inverse = np.linalg.inv(-i.t)
    losses = np.einsum("gab,gba->g", inverse, i.n)
    step = max(1, _CHUNK * 16 // max(1, u[0].size)) if len(u) else 1
    for start in range(0, len(u), step):
        rows = slice(start, start + step)
        x = inverse[rows, None] @ u[rows]
        xt = x.swapaxes(2, 3)
        mixed = xt @ cross[rows]
        residual = j.n + mixed + mixed.swapaxes(2, 3) + xt @ i.n[rows, None] @ x
        schur = j.t + u[rows].swapaxes(2, 3) @ x
        gains = np.trace(np.linalg.solve(schur, residual), axis1=2, axis2=3)
        out[rows] = 0.5 * (losses[rows, None] - gains)
