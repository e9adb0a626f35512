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
matrix products. With D = sign L L', what a panel keeps of a pivot is U = t L^-T and Y = sign (y L^-T), s columns each:
T <- T - sign U U' and N <- N - U Y' - Y U'.

A pivot from p to p - 1 rows thus takes 3 p^2 s operations (T: p^2, N: 2 p^2), backward selection to half p^3 7/8 beside
the Cholesky inverse (p^3) and N = F F' (p^2 q) that it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.linalg.drift import backward_error, digits_tolerance, drift_tolerance
from osscar_opt.linalg.kernels import Array, Kernels
from osscar_opt.linalg.layout import Segment, merged_spans, rows_by_group, segments
from osscar_opt.linalg.numpy_kernels import NumpyKernels
from osscar_opt.linalg.panel import Panel
from osscar_opt.linalg.pivots import Pivot, block_pivot, row_pivot

__all__ = ["Members", "Side", "Tableau"]

Side = Literal["both", "kept", "removed"]

_COLUMNS = 256
"""Columns of G that are in work at once."""

_TAKEN_BACK = 256
"""Rows of pivots that may wait in the panel beyond its width as long as they may be taken back."""

_LOOKED_AT = 8
"""Groups valued exactly at first when bounds decide which group is cheapest."""


class Tableau:
    """The pair (T, N) at a support, with exact losses, gains and swaps, moved by pivots.

    Memory: T and N together take p x p numbers on the CPU (two symmetric matrices in one array), 2 p x p on other
    devices; panels and columns of G in work are thin.

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
        self._group_of_row = group_of_row
        self._rows_of_group = rows_by_group(group_of_row, len(self.support))
        diagonal = gram.diagonal()
        self._scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        self._panel_option = panel
        self._change: Array = 0.0  # a number of the device, so that nothing waits for it
        self.pivots = self.factorizations = 0
        self.drift = 0.0
        self._factorize()

    @property
    def change(self) -> float:
        return float(self._change)

    # ---------------------------------------------------------------- set-up

    def _factorize(self) -> None:
        """Build (T, N) at the current support from the problem's own data."""
        self._checkpoint: _Checkpoint | None = None
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
        if not self.factorizations:  # later ones overwrite what is there
            self._pair = kernels.pair(len(self._order))
        rows = slice(0, len(self._order))
        self._t, self._n = (matrix[rows, rows] for matrix in self._pair)
        kernels.load(self._t, self._gram, self._order, self._scale)
        known = self._optimum is not None and bool(self.support.all())
        kernels.sweep(self._t, self._n, self._boundary, self._chunks(known), known=known)
        if self.side == "removed":
            self._drop_kept()
        self._locate()
        self._diagonal_t, self._diagonal_n = (
            [kernels.diagonal_blocks(c, s.start, s.size, len(s.groups)) for s in self._segments]
            for c in (self._t, self._n)
        )
        self._largest = [abs(_flat_diagonal(blocks)) for blocks in self._diagonal_t]
        self._inverses: Array | None = None
        self._panel = self._new_panel()
        self._origin = 0
        self._fresh = True  # no pivot since
        self.factorizations += 1

    def _chunks(self, known: bool) -> Iterator[Array]:
        """G by columns, in the order and scale of T; or, if known, F."""
        source = self._optimum if known and self._optimum is not None else self._cross
        scale = (1.0 / self._scale if known else self._scale)[self._order, None]
        for start in range(0, source.shape[1], _COLUMNS):
            chunk = source[self._order, start : start + _COLUMNS]
            chunk *= scale
            yield self._kernels.asarray(chunk)

    def _drop_kept(self) -> None:
        """Leave the Schur complement alone: in forward selection nothing else is ever read again."""
        first = self._boundary
        self._t, self._n = self._t[first:, first:], self._n[first:, first:]
        self._segments = [s for s in self._segments if not self.support[s.groups[0]]]
        for segment in self._segments:
            segment.start -= first
        self._order = self._order[first:]

    def _expected_order(self, groups: IntArray) -> IntArray:
        """Those likely to move first stand first: it keeps the active rows together at the end, with few moves."""
        if self.side == "kept" and self._optimum is not None:
            score = np.einsum("ij,ij->i", self._optimum, self._optimum) / self._scale**2
        else:
            score = np.einsum("ij,ij->i", self._cross, self._cross) * self._scale**2
        per_group = np.bincount(self._group_of_row, weights=score, minlength=len(self.support))[groups]
        return groups[np.argsort(per_group if self.side == "kept" else -per_group, kind="stable")]

    def _new_panel(self) -> Panel:
        p = len(self._order)
        largest = max((segment.size for segment in self._segments), default=1)
        width = max(self._panel_option or min(96, max(16, p // 8)), largest)
        room = width if self.side != "both" or self._panel_option else min(max(p, width), width + _TAKEN_BACK)
        return Panel(self._kernels, p, width, room)

    def _locate(self) -> None:
        """Index group -> (segment, slot); groups that are not stored have segment -1."""
        n = len(self.support)
        self._segment_of, self._slot_of = np.full(n, -1), np.zeros(n, dtype=np.int64)
        for index, segment in enumerate(self._segments):
            self._segment_of[segment.groups] = index
            self._slot_of[segment.groups] = np.arange(len(segment.groups))

    # --------------------------------------------------------------- reading

    def cheapest(self) -> int:
        """The group that is best to move next: most gain where groups may only enter, else least loss."""
        if len(self._segments) == 1 and self._segments[0].size == 1 and self.side != "both":
            segment = self._segments[0]
            t, n = (blocks[segment.first :, 0, 0] for blocks in (self._diagonal_t[0], self._diagonal_n[0]))
            return int(segment.groups[segment.first + int((n / t).argmax())])  # N / T < 0 inside the support
        if len(self._segments) == 1 and self.side == "kept":
            return self._cheapest_block()
        return int(self.gains().argmax() if self.side == "removed" else self.losses().argmin())

    def _cheapest_block(self) -> int:
        """The group of least loss, few of them valued exactly.

        As groups leave, A_gg = (inv H_SS)_gg decreases and its inverse grows: an inverse of earlier bounds the loss
        1/2 tr(A_gg^-1 N_gg) from below. Groups are valued in the order of these bounds until no other can be cheaper.
        """
        kernels, segment = self._kernels, self._segments[0]
        t, n = (blocks[segment.first :] for blocks in (self._diagonal_t[0], self._diagonal_n[0]))
        if self._inverses is None:
            self._inverses = kernels.inverse(self._diagonal_t[0])
        inverses = self._inverses[segment.first :]
        bounds = abs(kernels.numpy((inverses * n).sum(-1).sum(-1)))
        bounds[~self.support[segment.active]] = np.inf
        order = np.argsort(bounds, kind="stable")
        best, choice, start, count = np.inf, int(order[0]), 0, _LOOKED_AT
        while start < len(order) and bounds[order[start]] < best:
            slots = order[start : start + count]
            where = kernels.index(slots)
            fresh = kernels.inverse(t[where])
            inverses[where] = fresh
            exact = abs(kernels.numpy((fresh * n[where]).sum(-1).sum(-1)))
            exact[np.isinf(bounds[slots])] = np.inf
            if exact.min() < best:
                best, choice = float(exact.min()), int(slots[exact.argmin()])
            start, count = start + count, 2 * count
        return int(segment.active[choice])

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
            groups = segment.active
            if segment.size == 1:
                ratio = quadratic[:, 0, 0] / t[:, 0, 0]
            else:  # tr(A B) = sum(A * B') and both are symmetric
                asked = np.flatnonzero(self.support[groups] == leaving)
                where, groups = self._kernels.index(asked), groups[asked]
                ratio = (self._kernels.inverse(t[where]) * quadratic[where]).sum(-1).sum(-1)
            scores[groups] = 0.5 * abs(self._kernels.numpy(ratio))
        scores[self.support != leaving] = other_side
        return scores

    def weights(self) -> FloatArray:
        """(p, q) refitted weights W_S = inv(H_SS) G_S at the current support, zero elsewhere, from T as it is."""
        self.flush()
        weights = np.zeros(self._cross.shape)
        stored = self._kept_rows()
        rows = self._order[stored]
        right = self._cross[rows] * self._scale[rows, None]
        for start in range(0, len(rows), _COLUMNS):
            part = stored[start : start + _COLUMNS]
            inverse = self._kernels.numpy(self._kernels.block(self._t, part, stored, 0))
            weights[rows[start : start + _COLUMNS]] = -(inverse @ right)
        weights *= self._scale[:, None]
        return weights

    # --------------------------------------------------------------- pivoting

    def pivot(self, group: int) -> float:
        """Move a group to the other side; returns the change of the objective.

        O(p b s) now and O(p^2 s) when its panel is applied.
        """
        before = self._change
        self.move(group)
        return float(self._change - before)

    def move(self, group: int) -> None:
        """Move a group to the other side, without waiting for the device to tell the change."""
        index = int(self._segment_of[group])
        leaving = bool(self.support[group])
        if index < 0 or (self.side != "both" and leaving != (self.side == "kept")):
            raise ValueError(f"group {group} cannot move in a tableau of the {self.side} groups")
        size = self._segments[index].size
        if self._panel.fill + size > (self._panel.width if self._checkpoint is None else self._panel.room):
            self.flush()  # may change places, or even refactor
            index = int(self._segment_of[group])
        sign = -1.0 if leaving else 1.0  # of the block: -A_gg inside the support, a Schur complement outside
        segment, slot = self._segments[index], int(self._slot_of[group])
        start = segment.start + slot * size - self._origin
        try:
            pivot = self._pivot(slice(start, start + size), sign)
        except np.linalg.LinAlgError:
            if self._fresh:
                raise
            self._factorize()
            self.move(group)
            return
        self._change = self._change + pivot.change
        for part, t, n in zip(self._segments, self._diagonal_t, self._diagonal_n, strict=True):
            span = slice(part.span.start - self._origin, part.span.stop - self._origin)
            pivot.change_blocks(t[part.first :], n[part.first :], span, sign)
        if self.side == "both":
            self._diagonal_t[index][slot] = pivot.t_gg
            self._diagonal_n[index][slot] = pivot.n_gg
            self._largest[index][slot] = abs(pivot.t_gg if size == 1 else pivot.t_gg.diagonal())
        else:  # the last choice from now on
            self._diagonal_t[index][slot] = sign if size == 1 else self._kernels.asarray(sign * np.eye(size))
            self._diagonal_n[index][slot] = -sign * np.inf if size == 1 else 0.0
        self._fresh = False
        self.support[group] = not leaving
        self.pivots += 1

    def _pivot(self, rows: slice, sign: float) -> Pivot:
        """What the pivot of a group changes, now that its columns are up to date; it joins the panel."""
        kernels, o, from_nothing = self._kernels, self._origin, self.side == "both"
        if rows.stop - rows.start == 1:
            t, n = (kernels.column(matrix[o:, o:], rows.start) for matrix in (self._t, self._n))
            self._panel.bring_one_up_to_date(rows.start, o, t, n)
            pivot = row_pivot(kernels, t, n, rows.start, sign, from_nothing=from_nothing)
        else:
            t, n = (kernels.columns(matrix[o:, o:], rows.start, rows.stop) for matrix in (self._t, self._n))
            self._panel.bring_up_to_date(rows, o, t, n)
            pivot = block_pivot(kernels, t, n, rows, sign, from_nothing=from_nothing)
        if from_nothing:
            self._clear(rows)
        self._panel.append(o, pivot.u, pivot.y, sign)
        return pivot

    def _clear(self, rows: slice) -> None:
        """Zero a group's own rows in T, N and the panel, so that its pivot writes them from nothing."""
        if self._checkpoint is not None:
            t, n = (self._kernels.columns(c, rows.start, rows.stop) for c in (self._t, self._n))
            self._checkpoint.cleared.append((rows, t, n, self._panel.read_rows(rows)))
        for matrix in (self._t, self._n):
            self._kernels.clear_rows(matrix, rows.start, rows.stop)
        self._panel.clear_rows(rows)

    # ------------------------------------------------------------ taking back

    def checkpoint(self, rows: int) -> None:
        """Make pivots of up to `rows` rows in all able to be taken back by `rollback`, at the cost of a copy each.

        Only in two-sided use; `commit` ends it.
        """
        if self._panel.fill + rows > self._panel.room:
            self.flush()
        self._checkpoint = _Checkpoint(
            panel=self._panel.state,
            support=self.support.copy(),
            change=self._change,
            diagonals=[
                [blocks * 1.0 for blocks in part]
                for part in (self._diagonal_t, self._diagonal_n, self._largest)
            ],
        )

    def commit(self) -> None:
        """Let the pivots since `checkpoint` stand."""
        self._checkpoint = None

    def rollback(self) -> bool:
        """Undo every pivot since `checkpoint`; False, and nothing done, if some were applied in the meantime."""
        saved, self._checkpoint = self._checkpoint, None
        if saved is None:
            return False
        for rows, t, n, panel in reversed(saved.cleared):
            self._kernels.set_columns(self._t, rows.start, rows.stop, t)
            self._kernels.set_columns(self._n, rows.start, rows.stop, n)
            self._panel.write_rows(rows, panel)
        self._panel.state = saved.panel
        self.support = saved.support
        self._change = saved.change
        self._diagonal_t, self._diagonal_n, self._largest = saved.diagonals
        return True

    # --------------------------------------------------------------- applying

    def flush(self) -> None:
        """Apply the gathered pivots; drop what one-sided use no longer needs; refactor where drift is found."""
        if self._panel.fill == 0:
            return
        self._checkpoint = None
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
        self._segment_of[segment.active[gone]] = -1
        movers, holes = segment.drop(gone)
        if not len(holes):
            return
        source, target = segment.row_numbers(movers), segment.row_numbers(holes)
        o = self._origin
        for matrix in (self._t, self._n):
            self._kernels.copy_rows(matrix[o:, o:], source - o, target - o, segment.size)
        self._panel.copy_rows(source, target)
        self._order[target] = self._order[source]
        per_slot = [self._diagonal_t[index], self._diagonal_n[index], self._largest[index]]
        for blocks in per_slot if self._inverses is None else [*per_slot, self._inverses]:
            blocks[holes] = blocks[movers]
        groups = segment.groups[movers]
        segment.groups[holes], self._slot_of[groups] = groups, holes

    def _has_drifted(self) -> bool:
        """Whether inv(H_SS) has lost accuracy: by cancellation, or by the backward error of a sampled column."""
        digits = digits_tolerance(self._kernels.epsilon)
        cancelled, worst, column_row = False, -1.0, -1
        for segment, blocks, largest in zip(self._segments, self._diagonal_t, self._largest, strict=True):
            kept = self.support[segment.active]
            now = abs(_flat_diagonal(self._kernels.numpy(blocks[segment.first :])))
            past = np.maximum(self._kernels.numpy(largest[segment.first :]), now)
            largest[segment.first :] = self._kernels.asarray(past)
            if kept.any():
                cancelled |= bool((now[kept] < digits * past[kept]).any())
                place = int(np.argmax(np.where(kept, now.max(axis=1), -1.0)))
                if not now[place].max() <= worst:  # also where it is not a number
                    worst, column_row = float(now[place].max()), segment.rows(segment.first + place).start
        if column_row < 0:
            return False
        kept_rows = self._kept_rows()
        column = -self._kernels.numpy(self._kernels.column(self._t, column_row))[kept_rows]
        at = int(np.searchsorted(kept_rows, column_row))
        backward = backward_error(self._gram, self._scale, self._order[kept_rows], column, at)
        self.drift = max(self.drift, backward)
        return cancelled or not backward <= drift_tolerance(self._kernels.epsilon)

    def _kept_rows(self) -> IntArray:
        """Stored rows of the kept groups, increasing."""
        parts = [self._span_rows(segment, kept=True) for segment in self._segments]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def _span_rows(self, segment: Segment, *, kept: bool) -> IntArray:
        """Stored rows of the active groups of a segment that are (not) kept."""
        return segment.row_numbers(segment.first + np.flatnonzero(self.support[segment.active] == kept))

    # ---------------------------------------------------------------- exchanges

    def members(self, *, kept: bool) -> list[Members]:
        """The groups on one side, by size, with their up-to-date diagonal blocks, on the device."""
        self.flush()
        found = []
        for segment, t, n in zip(self._segments, self._diagonal_t, self._diagonal_n, strict=True):
            slots = np.flatnonzero(self.support[segment.groups] == kept)  # two-sided: nothing was dropped
            if len(slots):
                rows, where = self._span_rows(segment, kept=kept), self._kernels.index(slots)
                found.append(Members(segment.groups[slots], rows, segment.size, t[where], n[where]))
        return found

    def between(self, kept: IntArray, removed: IntArray) -> tuple[Array, Array]:
        """The blocks T_SP = inv(H_SS) H_SP and N_SP = W_S r_P' between stored rows, on the device."""
        self.flush()
        t, n = (self._kernels.block(c, kept, removed, self._boundary) for c in (self._t, self._n))
        return t, n

    @property
    def kernels(self) -> Kernels:
        return self._kernels


@dataclass(eq=False)
class _Checkpoint:
    """What `rollback` restores; `cleared` are rows with their columns of T and N and their rows of the panel."""

    panel: tuple[int, float]
    support: BoolArray
    change: Array
    diagonals: list[list[Array]]
    cleared: list[tuple[slice, Array, Array, Array]] = field(default_factory=list)


@dataclass(frozen=True)
class Members:
    """Some groups of one size on one side of the support: labels, stored rows, diagonal blocks of T and N."""

    groups: IntArray
    rows: IntArray
    size: int
    t: Array
    n: Array


def _flat_diagonal(blocks: Array) -> Array:
    """(count, s) diagonals of (count, s, s) blocks."""
    return blocks.diagonal(0, 1, 2)
