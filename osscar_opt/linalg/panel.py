"""Pivots that were decided but not yet applied to T and N: the columns of their low-rank changes."""

from __future__ import annotations

import numpy as np

from osscar_opt.linalg.kernels import Array, Kernels

__all__ = ["Panel"]


class Panel:
    """The columns U, V, Y and signs of gathered pivots: T - U diag(signs) U' and N - V Y' - Y V' are up to date.

    Parameters
    ----------
    kernels : Kernels
    rows : int
        Rows of T.
    width : int
        Rows of pivots it holds.
    """

    def __init__(self, kernels: Kernels, rows: int, width: int) -> None:
        self._kernels = kernels
        self._u, self._vy = kernels.empty(rows, width), kernels.empty(rows, 2 * width)
        self._partner = (
            np.arange(2 * width) ^ 1
        )  # V in the even columns, Y in the odd: one product serves both
        self._signs = np.zeros(width)
        self.width, self.fill = width, 0

    def append(self, origin: int, u: Array, v: Array, y: Array, sign: float) -> None:
        """Add the columns of one pivot, given from row `origin` on."""
        begin, end = self.fill, self.fill + v.shape[1]
        self._u[origin:, begin:end] = u
        self._vy[origin:, 2 * begin : 2 * end : 2] = v
        self._vy[origin:, 2 * begin + 1 : 2 * end : 2] = y
        self._signs[begin:end] = sign
        self.fill = end

    def bring_up_to_date(self, rows: slice, origin: int, t: Array, n: Array) -> None:
        """Change the columns `rows` of T and N, given from row `origin` on, to what they are after the pivots."""
        c = self.fill
        if c == 0:
            return
        u, vy, signs = self._u[origin:, :c], self._vy[origin:, : 2 * c], self._signs[:c]
        if (signs == signs[0]).all():
            self._kernels.update(t, u, u[rows], -float(signs[0]))
        else:
            self._kernels.update(t, u, u[rows] * self._kernels.asarray(signs[None, :]), -1.0)
        self._kernels.update(n, vy, vy[rows][:, self._partner[: 2 * c]], -1.0)  # V Y_g' + Y V_g'

    def clear_rows(self, rows: slice) -> None:
        """Make the pivots leave some rows, and their columns, alone."""
        self._u[rows] = self._vy[rows] = 0.0

    def move_rows(self, target: slice, source: slice) -> None:
        """Copy rows, when a group changes its place."""
        self._u[target], self._vy[target] = self._u[source], self._vy[source]

    def apply(self, t: Array, n: Array, spans: list[slice]) -> None:
        """Apply the pivots to the blocks of T and N between `spans`, and empty the panel."""
        pairs = [(a, b) for i, a in enumerate(spans) for b in spans[: i + 1]]
        if not self._kernels.lower_only:
            pairs += [(b, a) for a, b in pairs if a != b]
        for sign, u in self._by_sign():
            for a, b in pairs:
                if a == b:
                    self._kernels.square_update(t[a, a], u[a], -sign)
                else:
                    self._kernels.update(t[a, b], u[a], u[b], -sign)
        v, y = self._vy[:, : 2 * self.fill : 2], self._vy[:, 1 : 2 * self.fill : 2]
        for a, b in pairs:
            if a == b:
                self._kernels.symmetric_update(n[a, a], v[a], y[a], -1.0)
            else:
                self._kernels.update(n[a, b], v[a], y[b], -1.0)
                self._kernels.update(n[a, b], y[a], v[b], -1.0)
        self.fill = 0

    def _by_sign(self) -> list[tuple[float, Array]]:
        """The columns of U to be subtracted, and those to be added."""
        u, signs = self._u[:, : self.fill], self._signs[: self.fill]
        if (signs == signs[0]).all():
            return [(float(signs[0]), u)]
        return [(sign, self._kernels.take_columns(u, np.flatnonzero(signs == sign))) for sign in (1.0, -1.0)]
