r"""The tableau (T, N): every group's removal loss and addition gain, kept exact under pivots.

For a support S with complement P let, in the notation of the library (H = gram, G = cross),

.. math::

    T = \begin{pmatrix} -H_{SS}^{-1} & H_{SS}^{-1} H_{SP} \\ \cdot & H_{PP} - H_{PS} H_{SS}^{-1} H_{SP} \end{pmatrix},
    \qquad F = \begin{pmatrix} W_S \\ r_P \end{pmatrix}, \qquad N = F F',

with W_S = inv(H_SS) G_S the refitted weights and r_P = G_P - H_PS W_S the residual of the groups outside. Then

- removing group i of S raises the objective by 1/2 tr(-T_ii^-1 N_ii),
- adding group j of P lowers it by 1/2 tr(T_jj^-1 N_jj),
- moving a group in or out is one *pivot* (a symmetric sweep, Goodnight 1979): with t = T_:g, D = T_gg and
  V = t D^-1, it is T <- T - V t' and N <- N - V y' - y V', y = N_:g - V N_gg / 2. The number of outputs q never enters.

Pivots are gathered in panels of b and applied together as matrix products; in between only the columns and
diagonal blocks asked for are brought up to date. So decisions are exact one at a time, at the speed of
matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.linalg.kernels import Array, Kernels, NumpyKernels
from osscar_opt.linalg.layout import Segment, merged_spans, rows_by_group, segments
from osscar_opt.linalg.panel import Panel

Side = Literal["both", "kept", "removed"]

DRIFT_TOLERANCE = 1e-8
"""Componentwise backward error of inv(H_SS), estimated at every flush, beyond which the tableau is refactored."""

DIGITS_TOLERANCE = 1e-6
"""Shrinkage of a diagonal entry since the last factorisation (cancellation) beyond which it is refactored."""

_COARSEST = 1e4
"""Neither tolerance is below so many units of rounding of the precision in use: in float32 both are 1e-3."""


class Tableau:
    """The pair (T, N) at a support, with exact losses, gains and swaps, moved by pivots.

    Parameters
    ----------
    gram : (p, p) array
        H, symmetric positive definite. Rows are scaled to unit diagonal inside (equilibration).
    cross : (p, q) array
        The matrix G.
    group_of_row : (p,) int array
        Labels 0..n-1; groups may differ in size and need not be contiguous.
    support : (n,) bool array
        The groups kept at the start.
    side : {"both", "kept", "removed"}
        "both": groups may enter and leave. "kept": groups may only leave, those outside are dropped and the
        arrays shrink as groups leave (backward selection). "removed": groups may only enter (forward selection).
    optimum : (p, q) array, optional
        inv(H) G where it is known, which saves a solve when everything is kept.
    kernels : Kernels, optional
        Where and in which precision to compute; numpy in float64 by default.
    panel : int, optional
        Rows of pivots gathered before they are applied together.

    Attributes
    ----------
    support : (n,) bool array
        The groups kept now (a copy is safe to keep; the array itself changes with every pivot).
    change : float
        Objective now minus objective at the starting support.
    pivots, factorizations : int
        Counts since construction; `factorizations` above one means that drift was found and mended.
    drift : float
        Largest backward error seen at a check, before mending.

    Examples
    --------
    >>> import numpy as np
    >>> gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> tableau = Tableau(gram, gram @ np.array([[1.0, 0, 0], [2.0, 0, 0]]), np.arange(2), np.array([True, True]))
    >>> tableau.losses()                          # 1/2 w_i^2 / inv(H)_ii = 3/4 and 3
    array([0.75, 3.  ])
    >>> round(tableau.pivot(0), 12), tableau.support.tolist()
    (0.75, [False, True])
    """

    def __init__(
        self,
        gram: FloatArray,
        cross: FloatArray,
        group_of_row: IntArray,
        support: BoolArray,
        *,
        side: Side = "both",
        optimum: FloatArray | None = None,
        kernels: Kernels | None = None,
        panel: int | None = None,
    ) -> None:
        self._gram, self._cross, self._optimum = gram, cross, optimum
        self._kernels: Kernels = kernels or NumpyKernels()
        self.side: Side = side
        self.support: BoolArray = np.array(support, dtype=bool)
        self._rows_of_group = rows_by_group(group_of_row, len(self.support))
        diagonal = gram.diagonal()
        self._scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        self._panel_option = panel
        self.change = 0.0
        self.pivots = self.factorizations = 0
        self.drift = 0.0
        self._factorize()

    # ---------------------------------------------------------------- set-up

    def _factorize(self) -> None:
        """Build (T, N) at the current support from the problem's own data."""
        kernels = self._kernels
        kept, removed = np.flatnonzero(self.support), np.flatnonzero(~self.support)
        if self.side == "kept":
            removed = removed[:0]
        if self.side != "both":
            kept, removed = self._expected_order(kept), self._expected_order(removed)
        self._segments = segments(self._rows_of_group, kept, removed)
        order = [self._rows_of_group[g] for segment in self._segments for g in segment.groups]
        self._order = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
        self._boundary = int(sum(len(self._rows_of_group[g]) for g in kept))

        self._t, f = self._swept()
        self._n = kernels.empty(f.shape[0], f.shape[0])
        kernels.square_update(self._n, f, 1.0, keep=0.0)
        self._locate()
        self._diagonal_t = [self._blocks(self._t, segment) for segment in self._segments]
        self._diagonal_n = [self._blocks(self._n, segment) for segment in self._segments]
        self._largest = [abs(kernels.numpy(_flat_diagonal(blocks))) for blocks in self._diagonal_t]
        self._panel = self._new_panel()
        self._origin = 0
        self.factorizations += 1

    def _swept(self) -> tuple[Array, Array]:
        """T and F = [W_S; r_P] in the order of the segments."""
        kernels = self._kernels
        t = kernels.scaled(self._gram, self._order, self._scale)
        if self._optimum is not None and self.support.all():
            f = kernels.asarray(self._optimum[self._order] / self._scale[self._order, None])
            kernels.sweep(t, kernels.empty(len(self._order), 0), self._boundary)
        else:
            f = kernels.asarray(self._cross[self._order] * self._scale[self._order, None])
            kernels.sweep(t, f, self._boundary)
        if self.side == "removed":  # only the Schur complement is ever read again
            t, f = t[self._boundary :, self._boundary :], f[self._boundary :]
            self._segments = [s for s in self._segments if not self.support[s.groups[0]]]
            for segment in self._segments:
                segment.start -= self._boundary
            self._order = self._order[self._boundary :]
        return t, f

    def _expected_order(self, groups: IntArray) -> IntArray:
        """Those likely to move first stand first: it keeps the active rows together at the end, with few moves."""
        if self.side == "kept" and self._optimum is not None:
            score = np.einsum("ij,ij->i", self._optimum, self._optimum) / self._scale**2
        else:
            score = np.einsum("ij,ij->i", self._cross, self._cross) * self._scale**2
        per_group = np.array([score[self._rows_of_group[g]].sum() for g in groups])
        return groups[np.argsort(per_group if self.side == "kept" else -per_group, kind="stable")]

    def _new_panel(self) -> Panel:
        p = len(self._order)
        largest = max((segment.size for segment in self._segments), default=1)
        return Panel(self._kernels, p, max(self._panel_option or min(96, max(4, p // 16)), largest))

    def _locate(self) -> None:
        """Index group -> (segment, slot); groups that are not stored have segment -1."""
        n = len(self.support)
        self._segment_of, self._slot_of = np.full(n, -1), np.zeros(n, dtype=np.int64)
        for index, segment in enumerate(self._segments):
            self._segment_of[segment.groups] = index
            self._slot_of[segment.groups] = np.arange(len(segment.groups))

    def _blocks(self, matrix: Array, segment: Segment) -> Array:
        """The diagonal blocks of a segment, (count, s, s)."""
        s, count = segment.size, len(segment.groups)
        if s == 1:
            return (matrix.diagonal()[segment.span] * 1.0).reshape(count, 1, 1)
        blocks = self._kernels.empty(count * s, s).reshape(count, s, s)
        for i in range(count):
            rows = segment.rows(i)
            blocks[i] = self._kernels.columns(matrix[rows, rows], 0, s)
        return blocks

    # --------------------------------------------------------------- reading

    def cheapest(self) -> int:
        """The group that is best to move next in a one-sided tableau: least loss, or most gain."""
        if len(self._segments) == 1 and self._segments[0].size == 1:
            segment = self._segments[0]
            t, n = (blocks[segment.first :, 0, 0] for blocks in (self._diagonal_t[0], self._diagonal_n[0]))
            return int(segment.groups[segment.first + int((n / t).argmax())])  # N / T < 0 inside the support
        return int(self.losses().argmin() if self.side == "kept" else self.gains().argmax())

    def losses(self) -> FloatArray:
        """(n,) rise of the objective when one kept group is removed and the rest refitted; inf outside."""
        return self._scores(leaving=True)

    def gains(self) -> FloatArray:
        """(n,) fall of the objective when one removed group is added and all refitted; -inf for kept groups."""
        return self._scores(leaving=False)

    def _scores(self, *, leaving: bool) -> FloatArray:
        other_side = np.inf if leaving else -np.inf
        scores = np.full(len(self.support), other_side)
        if self.side == ("removed" if leaving else "kept"):
            return scores
        for segment, t, quadratic in zip(self._segments, self._diagonal_t, self._diagonal_n, strict=True):
            t, quadratic = t[segment.first :], quadratic[segment.first :]
            if segment.size == 1:
                ratio = quadratic[:, 0, 0] / t[:, 0, 0]
            else:  # tr(A B) = sum(A * B') and both are symmetric
                ratio = (self._kernels.inverse(t) * quadratic).sum(-1).sum(-1)
            scores[segment.active] = 0.5 * abs(self._kernels.numpy(ratio))
        scores[self.support != leaving] = other_side
        return scores

    def _rows(self, group: int) -> slice:
        """The group's rows in what is active, which begins at row `_origin` of the stored arrays."""
        segment = self._segments[self._segment_of[group]]
        start = segment.start + int(self._slot_of[group]) * segment.size - self._origin
        return slice(start, start + segment.size)

    def _column(self, group: int) -> tuple[Array, Array]:
        """The group's columns of T and N, brought up to date."""
        rows, o = self._rows(group), self._origin
        t = self._kernels.columns(self._t[o:, o:], rows.start, rows.stop)
        n = self._kernels.columns(self._n[o:, o:], rows.start, rows.stop)
        self._panel.bring_up_to_date(rows, o, t, n)
        return t, n

    # --------------------------------------------------------------- pivoting

    def pivot(self, group: int) -> float:
        """Move a group to the other side; returns the change of the objective.

        O(p b s) now and O(p^2 s) when its panel is applied.
        """
        index = int(self._segment_of[group])
        leaving = bool(self.support[group])
        if index < 0 or (self.side != "both" and leaving != (self.side == "kept")):
            raise ValueError(f"group {group} cannot move in a tableau of the {self.side} groups")
        if self._panel.fill + self._segments[index].size > self._panel.width:
            self.flush()
        index, slot = int(self._segment_of[group]), int(self._slot_of[group])
        rows = self._rows(group)
        t, n = self._column(group)
        corner = n[rows] * 1.0
        sign = -1.0 if leaving else 1.0  # of the block: -A_gg inside the support, a Schur complement outside
        whitener = self._kernels.whitener(sign * t[rows])
        inverse = sign * (whitener.T @ whitener)
        change = -0.5 * float((inverse * corner).sum())
        y = n - _times(t, _times(inverse, 0.5 * corner))
        if self.side == "both":
            self._restart_group(rows, t, y, inverse, corner, sign)
        u = _times(t, whitener.T)
        v = _times(t, inverse)
        self._panel.append(self._origin, u, v, y, sign)
        self._update_diagonals(v, t, y)
        self._close_group(index, slot, inverse, corner, sign)
        self.support[group] = not leaving
        self.change += change
        self.pivots += 1
        return change

    def _restart_group(
        self, rows: slice, t: Array, y: Array, inverse: Array, corner: Array, sign: float
    ) -> None:
        """Let the pivot write the group's own rows from nothing rather than as a difference of large numbers.

        With the rows zeroed in T, N and the panel, t = -sign I and y = sign D^-1 N_gg / 2 in those rows make
        T - t D^-1 t' and N - V y' - y V' equal the swept rows: sign V, -D^-1, and sign (N_:g - V N_gg) D^-1.
        """
        zero = self._kernels.empty(t.shape[0], t.shape[1])
        zero[...] = 0.0
        for matrix in (self._t, self._n):
            self._kernels.set_columns(matrix, rows.start, rows.stop, zero)
        self._panel.clear_rows(rows)
        t[rows] = zero[rows]
        for i in range(rows.stop - rows.start):
            t[rows.start + i, i] = -sign
        y[rows] = 0.5 * sign * (inverse @ corner)

    def _close_group(self, index: int, slot: int, inverse: Array, corner: Array, sign: float) -> None:
        """Set the group's own diagonal blocks; in one-sided use to what makes it the last choice from now on."""
        if self.side == "both":
            self._diagonal_t[index][slot] = -inverse
            self._diagonal_n[index][slot] = inverse @ corner @ inverse
            self._largest[index][slot] = abs(self._kernels.numpy(_flat_diagonal(-inverse[None]))[0])
        else:
            self._diagonal_t[index][slot] = self._kernels.asarray(sign * np.eye(len(corner)))
            self._diagonal_n[index][slot] = -sign * np.inf if len(corner) == 1 else 0.0

    def _update_diagonals(self, v: Array, t: Array, y: Array) -> None:
        for segment, blocks_t, blocks_n in zip(
            self._segments, self._diagonal_t, self._diagonal_n, strict=True
        ):
            first, s, span = segment.first, segment.size, segment.span
            span = slice(span.start - self._origin, span.stop - self._origin)
            if s == 1 and v.shape[1] == 1:
                blocks_t[first:, 0, 0] -= v[span, 0] * t[span, 0]
                blocks_n[first:, 0, 0] -= 2.0 * (v[span, 0] * y[span, 0])
            else:
                shape = (len(segment.active), s, v.shape[1])
                vb, tb, yb = (a[span].reshape(shape) for a in (v, t, y))
                blocks_t[first:] -= vb @ tb.swapaxes(1, 2)
                product = vb @ yb.swapaxes(1, 2)
                blocks_n[first:] -= product + product.swapaxes(1, 2)

    # --------------------------------------------------------------- applying

    def flush(self) -> None:
        """Apply the gathered pivots; drop what one-sided use no longer needs; refactor where drift is found."""
        if self._panel.fill == 0:
            return
        if self.side != "both":
            for index in range(len(self._segments)):
                self._compact(index)
            self._origin = min(
                (s.span.start for s in self._segments if len(s.active)), default=len(self._order)
            )
        self._panel.apply(self._t, self._n, merged_spans(self._segments))
        if self.side != "removed" and self._has_drifted():
            self._factorize()

    def _compact(self, index: int) -> None:
        """Drop the groups that moved: the first active groups of the segment take the places they leave."""
        segment = self._segments[index]
        gone = self.support[segment.active] != (self.side == "kept")
        first = segment.first + int(gone.sum())
        holes = first + np.flatnonzero(gone[first - segment.first :])
        movers = segment.first + np.flatnonzero(~gone[: first - segment.first])
        self._segment_of[segment.active[gone]] = -1
        for hole, mover in zip(holes, movers, strict=True):
            target, source = segment.rows(int(hole)), segment.rows(int(mover))
            for matrix in (self._t, self._n):
                active = matrix[self._origin :, self._origin :]
                column = self._kernels.columns(
                    active, source.start - self._origin, source.stop - self._origin
                )
                place = slice(target.start - self._origin, target.stop - self._origin)
                column[place] = column[source.start - self._origin : source.stop - self._origin]
                self._kernels.set_columns(active, place.start, place.stop, column)
            self._panel.move_rows(target, source)
            self._order[target] = self._order[source]
            for blocks in (self._diagonal_t[index], self._diagonal_n[index], self._largest[index]):
                blocks[hole] = blocks[mover]
            group = segment.groups[mover]
            segment.groups[hole], self._slot_of[group] = group, hole
        segment.first = first

    # ------------------------------------------------------------------ drift

    def _has_drifted(self) -> bool:
        """Whether inv(H_SS) has lost accuracy: by cancellation, or by the backward error of a sampled column.

        The check costs O(p): one column a of inv(H_SS), a few rows h of H, and h.a against the identity, relative
        to |h|.|a| (Oettli and Prager's componentwise backward error).
        """
        least = _COARSEST * self._kernels.epsilon
        cancelled, worst, column_row = False, -1.0, -1
        for segment, blocks, largest in zip(self._segments, self._diagonal_t, self._largest, strict=True):
            kept = self.support[segment.active]
            now = abs(_flat_diagonal(self._kernels.numpy(blocks[segment.first :])))
            past = largest[segment.first :]
            np.maximum(past, now, out=past)
            if kept.any():
                cancelled |= bool((now[kept] < max(DIGITS_TOLERANCE, least) * past[kept]).any())
                place = int(np.argmax(np.where(kept, now.max(axis=1), -1.0)))
                if now[place].max() > worst:
                    worst, column_row = float(now[place].max()), segment.rows(segment.first + place).start
        if column_row < 0:
            return False
        kept_rows = np.concatenate([self._span_rows(segment, kept=True) for segment in self._segments])
        column = -self._kernels.numpy(self._kernels.columns(self._t, column_row, column_row + 1))[
            kept_rows, 0
        ]
        sample = np.append(kept_rows[:: max(1, len(kept_rows) // 8)], column_row)
        order, scale = self._order[kept_rows], self._scale
        rows = self._gram[self._order[sample]][:, order] * scale[order] * scale[self._order[sample], None]
        identity = (sample == column_row).astype(float)
        magnitude = abs(rows) @ abs(column) + identity  # zero for rows the column has nothing to do with
        error = abs(rows @ column - identity) / np.maximum(magnitude, np.finfo(float).tiny)
        backward = float(error.max())
        self.drift = max(self.drift, backward)
        return cancelled or not backward <= max(DRIFT_TOLERANCE, least)

    def _span_rows(self, segment: Segment, *, kept: bool) -> IntArray:
        """Stored rows of the active groups of a segment that are (not) kept."""
        slots = np.flatnonzero(self.support[segment.active] == kept)
        rows = segment.span.start + slots[:, None] * segment.size + np.arange(segment.size)
        return np.asarray(rows.ravel(), dtype=np.int64)

    # ---------------------------------------------------------------- exchanges

    def members(self, *, kept: bool) -> list[Members]:
        """The groups on one side, by size, with their up-to-date diagonal blocks (numpy)."""
        self.flush()
        found = []
        for segment, t, n in zip(self._segments, self._diagonal_t, self._diagonal_n, strict=True):
            slots = np.flatnonzero(self.support[segment.groups] == kept)  # two-sided: nothing was dropped
            if len(slots):
                rows = self._span_rows(segment, kept=kept)
                blocks = (self._kernels.numpy(array)[slots] for array in (t, n))
                found.append(Members(segment.groups[slots], rows, segment.size, *blocks))
        return found

    def between(self, kept: Members, removed: Members) -> tuple[FloatArray, FloatArray]:
        """The blocks T_SP = inv(H_SS) H_SP and N_SP = W_S r_P' between two lists of groups (numpy)."""
        self.flush()
        pair = (self._kernels.block(m, kept.rows, removed.rows, self._boundary) for m in (self._t, self._n))
        t, n = (self._kernels.numpy(block) for block in pair)
        return t, n


@dataclass(frozen=True)
class Members:
    """Some groups of one size on one side of the support: labels, stored rows, diagonal blocks of T and N."""

    groups: IntArray
    rows: IntArray
    size: int
    t: FloatArray
    n: FloatArray


def _times(panel: Array, block: Array) -> Array:
    return panel @ block if block.shape[0] > 1 else panel * block  # BLAS is slow to start on one column


def _flat_diagonal(blocks: Array) -> Array:
    """(count, s) diagonals of (count, s, s) blocks."""
    return blocks.diagonal(0, 1, 2)
