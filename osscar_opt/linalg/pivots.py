"""One pivot: from the up-to-date columns of a group to what its move changes in T and N.

With t = T_:g, D = T_gg = sign L L' and V = t D^-1, a pivot makes T <- T - V t' and N <- N - V y' - y V' with
y = N_:g - V N_gg / 2. In U = t L^-T and Y = sign y L^-T this is T <- T - sign U U' and N <- N - U Y' - Y U'.

The group's own rows come out of these formulas as differences of large numbers. Where they are needed again
(`from_nothing`) they are zeroed beforehand, in T, N and the panel; then t = -sign I and y = sign D^-1 N_gg / 2 in them
make the formulas give the swept rows as they are: sign V, -D^-1, and sign (N_:g - V N_gg) D^-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osscar_opt.linalg.kernels import Array, Kernels

__all__ = ["Pivot", "block_pivot", "row_pivot"]


@dataclass(frozen=True, eq=False)
class Pivot:
    """U and Y of a pivot, (p, s) or, of one row, (p,); the change of the objective; the group's new blocks."""

    u: Array
    y: Array
    change: Array
    t_gg: Array
    n_gg: Array

    def change_blocks(self, t: Array, n: Array, rows: slice, sign: float) -> None:
        """Change diagonal blocks of T and N, (count, s, s), of groups that are stored in `rows`."""
        count, size = t.shape[:2]
        u, y = self.u[rows], self.y[rows]
        if size == 1 and u.ndim == 1:
            square, cross = u * u, u * y
            if sign > 0:
                t[:, 0, 0] -= square
            else:
                t[:, 0, 0] += square
            cross += cross
            n[:, 0, 0] -= cross
        else:
            shape = (count, size, 1 if u.ndim == 1 else u.shape[1])
            u, y = u.reshape(shape), y.reshape(shape)
            t -= sign * (u @ u.swapaxes(1, 2))
            cross = u @ y.swapaxes(1, 2)
            n -= cross + cross.swapaxes(1, 2)


def row_pivot(kernels: Kernels, t: Array, n: Array, row: int, sign: float, *, from_nothing: bool) -> Pivot:
    """Pivot of a group of one row, with columns of shape (p,).

    Raises
    ------
    numpy.linalg.LinAlgError
        If D has the wrong sign, where looking does not hold up the device.
    """
    d, corner = t[row] * 1.0, n[row] * 1.0
    if kernels.waits and not sign * d > 0:
        raise np.linalg.LinAlgError("a pivot has lost all its digits")
    whitener = abs(d) ** -0.5
    half = 0.5 * corner / d
    u = t * whitener
    y = n * (sign * whitener)
    y -= u * (sign * half)
    if from_nothing:
        u[row] = -sign * whitener
        y[row] = half * whitener
    return Pivot(u, y, -half, -1.0 / d, 2.0 * half / d)


def block_pivot(
    kernels: Kernels, t: Array, n: Array, rows: slice, sign: float, *, from_nothing: bool
) -> Pivot:
    """Pivot of a group of several rows, with columns of shape (p, s).

    Raises
    ------
    numpy.linalg.LinAlgError
        If sign D is not positive definite.
    """
    corner = n[rows] * 1.0
    whitener = kernels.whitener(sign * t[rows])
    inverse = sign * (whitener.T @ whitener)
    half = 0.5 * (inverse @ corner)
    u = t @ whitener.T
    y = (n - t @ half) @ (sign * whitener.T)
    if from_nothing:
        u[rows] = -sign * whitener.T
        y[rows] = half @ whitener.T
    return Pivot(u, y, -0.5 * (inverse * corner).sum(), -inverse, 2.0 * half @ inverse)
