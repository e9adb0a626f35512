r"""Exact values of all single exchanges of a tableau, by matrix products and elementwise work.

For a kept group i and a removed group j, with A_ii = -T_ii and U = T_ij at the current support, the exchange changes
the objective by

.. math:: \tfrac12 \mathrm{tr}(A_{ii}^{-1} N_{ii}) - \tfrac12 \mathrm{tr}\left(B^{-1} R\right), \quad
          B = T_{jj} + U' A_{ii}^{-1} U, \quad
          R = N_{jj} + X' N_{ij} + N_{ij}' X + X' N_{ii} X, \quad X = A_{ii}^{-1} U,

which needs nothing but T and N between the two sides. They are read a few kept groups at a time, so that memory
stays far below that of the tableau.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.linalg.kernels import Array, Kernels
from osscar_opt.linalg.tableau import Members, Tableau

__all__ = ["best_swaps", "swap_changes"]

_CHUNK = {True: 1 << 16, False: 1 << 24}
"""Numbers in a temporary: on a CPU what stays in a core's second-level cache, on a GPU what keeps it busy."""

_AT_ONCE = 1 << 22
"""Numbers in the small matrices that are solved with in one batch."""


def best_swaps(
    tableau: Tableau, allowed: Callable[[IntArray, IntArray], BoolArray] | None = None
) -> tuple[IntArray, IntArray, FloatArray]:
    """Find for every kept group the removed group it is best exchanged for.

    Parameters
    ----------
    tableau : Tableau
        Two-sided.
    allowed : callable, optional
        From labels of kept and of removed groups to a (kept, removed) mask of the exchanges to be considered.

    Returns
    -------
    kept, partner : int arrays
        Labels of groups; a kept group without any exchange that improves may be left out.
    change : array
        Change of the objective; inf where no exchange improves it.

    Examples
    --------
    >>> gram, cross = np.eye(3), np.array([[1.0], [3.0], [2.0]])
    >>> best_swaps(Tableau(gram, cross, np.arange(3), np.array([True, False, False])))
    (array([0]), array([1]), array([-4.]))
    """
    kernels = tableau.kernels
    found: list[tuple[IntArray, IntArray, FloatArray]] = []
    for kept, removed, changes in _chunks(tableau):
        if allowed is not None:
            changes = changes + kernels.asarray(np.where(allowed(kept, removed), 0.0, np.inf))
        least, where = (kernels.numpy(array) for array in kernels.minimum(changes))
        found.append((kept, removed[where.astype(np.int64)], least))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    labels, partner, change = (np.concatenate(column) for column in zip(*found, strict=True))
    return labels, partner, change


def swap_changes(tableau: Tableau) -> tuple[IntArray, IntArray, FloatArray]:
    """Compute the change of the objective for every exchange of a kept for a removed group.

    Parameters
    ----------
    tableau : Tableau
        Two-sided.

    Returns
    -------
    kept : (m,) int array
    removed : (r,) int array
        Labels of the groups.
    changes : (m, r) array
        Negative entries are improvements; inf stands for some exchanges that are none.

    Examples
    --------
    >>> gram, cross = np.eye(3), np.array([[1.0], [3.0], [2.0]])
    >>> swap_changes(Tableau(gram, cross, np.arange(3), np.array([True, False, False])))[2]
    array([[-4. , -1.5]])
    """
    parts = list(_chunks(tableau))
    if not parts:
        sides = (np.flatnonzero(tableau.support == side) for side in (True, False))
        kept, removed = sides
        return kept, removed, np.empty((len(kept), len(removed)))
    kept = np.concatenate([part[0] for part in parts])
    changes = np.concatenate([tableau.kernels.numpy(part[2]) for part in parts])
    return kept, parts[0][1], changes


def _chunks(tableau: Tableau) -> Iterator[tuple[IntArray, IntArray, Array]]:
    """Some kept groups, all removed groups, and the changes of their exchanges, on the device."""
    if tableau.side != "both":
        raise ValueError("exchanges need a two-sided tableau")
    inside, outside = tableau.members(kept=True), tableau.members(kept=False)
    if not outside:
        return
    removed = np.concatenate([m.groups for m in outside])
    width = sum(len(m.rows) for m in outside)
    prepared = [_whitened(m, tableau.kernels) for m in outside]
    for i in inside:
        step = max(1, _CHUNK[tableau.kernels.waits] // (width * i.size))
        for start in range(0, len(i.groups), step):
            slots = slice(start, start + step)
            rows = i.rows[start * i.size : (start + step) * i.size]
            part = Members(i.groups[slots], rows, i.size, i.t[slots], i.n[slots])
            changes = tableau.kernels.empty(len(part.groups), len(removed))
            left = 0
            for j, whitened in zip(outside, prepared, strict=True):
                right = left + len(j.groups)
                between = tableau.between(part.rows, j.rows)
                if i.size == j.size == 1:
                    changes[:, left:right] = _row_changes(part, j, *between)
                else:
                    changes[:, left:right] = _block_changes(part, j, *between, whitened, tableau.kernels)
                left = right
            yield part.groups, removed, changes


def _row_changes(i: Members, j: Members, u: Array, cross: Array) -> Array:
    """Groups of one row: a = u / A_ii, change = N_ii / 2 A_ii - (N_jj + 2 a N_ij + a^2 N_ii) / 2 (T_jj + a u)."""
    a_ii, n_ii = -i.t[:, 0], i.n[:, 0]  # (|i|, 1)
    ratio = u / a_ii
    explained = ratio * n_ii
    cross += cross
    explained += cross
    explained *= ratio
    explained += j.n[:, 0, 0]
    ratio *= u
    ratio += j.t[:, 0, 0]
    explained /= ratio
    explained *= -0.5
    explained += 0.5 * n_ii / a_ii
    return explained


def _whitened(j: Members, kernels: Kernels) -> tuple[Array, Array]:
    """M_j with M_j T_jj M_j' = I, and M_j N_jj M_j'."""
    whitener = kernels.whitener(j.t)
    return whitener, whitener @ j.n @ whitener.swapaxes(1, 2)


def _block_changes(
    i: Members, j: Members, u: Array, cross: Array, whitened: tuple[Array, Array], kernels: Kernels
) -> Array:
    """Groups of several rows: exact where a bound leaves room for an improvement, inf where it does not.

    In coordinates in which A_ii = I and T_jj = I, B = I + U'U is at least I, so that tr(R) bounds tr(inv(B) R), what
    the added group explains. tr(R) needs products of whole blocks of T and N only.
    """
    shape = (len(i.groups), i.size, len(j.groups), j.size)
    m_j, n_jj = whitened
    m_i = kernels.whitener(-i.t)
    n_ii = m_i @ i.n @ m_i.swapaxes(1, 2)
    u, cross = (
        (m_i @ block.reshape(shape[0], shape[1], -1)).reshape(shape).swapaxes(1, 2) @ m_j.swapaxes(1, 2)
        for block in (u, cross)
    )  # (|i|, |j|, s_i, s_j)
    turned = n_ii[:, None] @ u + 2.0 * cross
    trace = n_jj.diagonal(0, 1, 2).sum(-1) + (u * turned).sum(-1).sum(-1)
    losses = 0.5 * n_ii.diagonal(0, 1, 2).sum(-1)
    changes = losses[:, None] - 0.5 * trace  # from below
    a, b = np.nonzero(kernels.numpy(changes) < 0.0)
    changes[...] = np.inf
    one = kernels.asarray(np.eye(j.size))
    step = max(1, _AT_ONCE // (i.size * j.size + j.size * j.size))
    for start in range(0, len(a), step):
        rows, columns = (kernels.index(index[start : start + step]) for index in (a, b))
        ut = u[rows, columns].swapaxes(1, 2)
        mixed = ut @ cross[rows, columns]
        b_jj = one + ut @ ut.swapaxes(1, 2)
        residual = n_jj[columns] + mixed + mixed.swapaxes(1, 2) + ut @ n_ii[rows] @ ut.swapaxes(1, 2)
        gains = (kernels.inverse(b_jj) * residual).sum(-1).sum(-1)
        changes[rows, columns] = losses[rows] - 0.5 * gains
    return changes
