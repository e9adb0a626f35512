"""Pivots that were decided but not yet applied to T and N: the columns of their low-rank changes."""

from __future__ import annotations

import numpy as np

from osscar_opt._typing import IntArray
from osscar_opt.linalg.kernels import Array, Kernels

__all__ = ["Panel"]


class Panel:
    """The columns U, Y and signs of gathered pivots: T - U diag(signs) U' and N - U Y' - Y U' are up to date.

    Parameters
    ----------
    kernels : Kernels
    rows : int
        Rows of T.
    width : int
        Rows of pivots at which it had better be applied.
    room : int
        Rows of pivots it holds.
    """

    def __init__(self, kernels: Kernels, rows: int, width: int, room: int) -> None:
        self._kernels = kernels
        # U in the even columns, Y in the odd: one product serves both.
        self._uy = kernels.empty(rows, 2 * room)
        self._partner = kernels.index(np.arange(2 * room) ^ 1)
        self._signs = np.zeros(room)
        self._one_sign = 0.0
        self.width, self.room, self.fill = width, room, 0

    def append(self, origin: int, u: Array, y: Array, sign: float) -> None:
        """Add the columns of one pivot, (p, s) or (p,), given from row `origin` on."""
        begin, end = self.fill, self.fill + (1 if u.ndim == 1 else u.shape[1])
        columns = 2 * begin if u.ndim == 1 else slice(2 * begin, 2 * end, 2)
        beside = 2 * begin + 1 if u.ndim == 1 else slice(2 * begin + 1, 2 * end, 2)
        self._uy[origin:, columns] = u
        self._uy[origin:, beside] = y
        self._signs[begin:end] = sign
        self._one_sign = sign if begin == 0 or sign == self._one_sign else 0.0
        self.fill = end

    def bring_up_to_date(self, rows: slice, origin: int, t: Array, n: Array) -> None:
        """Change the columns `rows` of T and N, given from row `origin` on, to what they are after the pivots."""
        if self.fill == 0:
            return
        uy = self._uy[origin:, : 2 * self.fill]
        at = uy[rows]
        self._subtract(t, uy[:, ::2], at[:, ::2].T)
        n -= uy @ at[:, self._partner[: 2 * self.fill]].T  # U Y_g' + Y U_g'

    def bring_one_up_to_date(self, row: int, origin: int, t: Array, n: Array) -> None:
        """Change one column of T and N likewise."""
        if self.fill == 0:
            return
        uy = self._uy[origin:, : 2 * self.fill]
        at = uy[row]
        self._subtract(t, uy[:, ::2], at[::2])
        n -= uy @ at[self._partner[: 2 * self.fill]]

    def _subtract(self, t: Array, u: Array, right: Array) -> None:
        """T - U diag(signs) right."""
        if self._one_sign > 0:
            t -= u @ right
        elif self._one_sign < 0:
            t += u @ right
        else:
            signs = self._kernels.asarray(self._signs[: self.fill])
            t -= u @ (right * (signs if right.ndim == 1 else signs[:, None]))

    @property
    def state(self) -> tuple[int, float]:
        """How much is filled, and the sign all pivots have, or 0: to go back to, as long as nothing was applied."""
        return self.fill, self._one_sign

    @state.setter
    def state(self, state: tuple[int, float]) -> None:
        self.fill, self._one_sign = state

    def read_rows(self, rows: slice) -> Array:
        """A copy of some rows."""
        return self._uy[rows, : 2 * self.fill] * 1.0

    def write_rows(self, rows: slice, values: Array) -> None:
        """Write back what `read_rows` gave."""
        self._uy[rows, : values.shape[1]] = values

    def clear_rows(self, rows: slice) -> None:
        """Make the pivots leave some rows, and their columns, alone."""
        self._uy[rows, : 2 * self.fill] = 0.0

    def copy_rows(self, source: IntArray, target: IntArray) -> None:
        """Copy rows, when groups change their places."""
        self._uy[target, : 2 * self.fill] = self._uy[source, : 2 * self.fill]

    def apply(self, t: Array, n: Array, spans: list[slice]) -> None:
        """Apply the pivots to the blocks of T and N between `spans`, and empty the panel."""
        kernels = self._kernels
        if not spans:
            self.fill = 0
            return
        begin, end = spans[0].start, spans[-1].stop
        uy = kernels.stored(self._uy[begin:end, : 2 * self.fill])
        u, y = uy[:, ::2], uy[:, 1::2]
        spans = [slice(span.start - begin, span.stop - begin) for span in spans]
        t, n = t[begin:end, begin:end], n[begin:end, begin:end]
        pairs = [(a, b) for i, a in enumerate(spans) for b in spans[: i + 1]]
        if not kernels.lower_only:
            pairs += [(b, a) for a, b in pairs if a != b]
        for sign, v in self._by_sign(u):
            for a, b in pairs:
                if a == b:
                    kernels.square_update(t[a, a], v[a], -sign)
                else:
                    kernels.update(t[a, b], v[a], v[b], -sign)
        for a, b in pairs:
            if a == b:
                kernels.symmetric_update(n[a, a], u[a], y[a], -1.0)
            else:
                kernels.update(n[a, b], u[a], y[b], -1.0)
                kernels.update(n[a, b], y[a], u[b], -1.0)
        self.fill = 0

    def _by_sign(self, u: Array) -> list[tuple[float, Array]]:
        """The columns of U to be subtracted, and those to be added."""
        if self._one_sign:
            return [(self._one_sign, u)]
        signs = self._signs[: self.fill]
        parts = []
        for sign in (1.0, -1.0):
            chosen = np.flatnonzero(signs == sign)
            part = self._kernels.empty(u.shape[0], len(chosen))
            part[...] = u[:, self._kernels.index(chosen)]
            parts.append((sign, self._kernels.stored(part)))
        return parts
