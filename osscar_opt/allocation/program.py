r"""The 0-1 program of an allocation as arrays: what can be dropped, its multipliers, and the bound they prove.

One column for each curve j and width k, with its loss f_jk and its uses c_rjk, each above the least of its curve, so
that the limits become the room that is left, b_r:

.. math:: \min \sum_{jk} f_{jk} x_{jk} \quad\text{with}\quad \sum_k x_{jk} = 1,\quad
          \sum_{jk} c_{rjk} x_{jk} \le b_r,\quad x \in \{0, 1\} .

For any multipliers m >= 0 (D. P. Bertsekas, *Nonlinear Programming*, 1999, section 6.1)

.. math:: L(m) = \sum_j \min_k \Bigl(f_{jk} + \sum_r m_r c_{rjk}\Bigr) - \sum_r m_r b_r

is a lower bound, evaluated here and so certified; that of the linear program's dual values is the linear program's own
value.  With a choice of value U in hand, a column that adds more than U - L(m) to its curve's minimum in L is in no
better choice (reduced-cost fixing).  A column is dropped as well if another of its curve is no worse in loss and in
*every* resource, or if it does not fit with all other curves at their least.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.allocation.posed import Posed
from osscar_opt.errors import SolverError

__all__ = ["Program", "Relaxed", "unit"]

_LARGEST = 1e6
"""Largest room, in the units of a row: above it, HiGHS's tolerance of 1e-6 is no longer below what a row counts in."""

_SLACK = 1e-12
"""Relative to a limit: differences from the least uses are rounded; what passes a limit by this is found out later."""

_TRIES = 2048


@dataclass(frozen=True, eq=False)
class Program:
    """Columns of the program; rows are scaled.

    Attributes
    ----------
    posed : Posed
    part, place : (N,) array of int
        Curve of each column, and the place of its width on the curve.
    loss : (N,) array
        Above the least of the curve.
    use : (R, N) array
        Above the least of the curve, in units of the row.
    room : (R,) array
    offset : float
        Sum of the least losses.

    Examples
    --------
    >>> from osscar_opt.allocation import Budget, Curve
    >>> curves = [Curve("a", 3, [1, 2, 3], [4.0, 4.5, 0.0], {"units": 1})]
    >>> program = Program.of(Budget({"units": 2}).resolve(curves))
    >>> program.place, program.room  # three do not fit, and two are worse than one
    (array([0]), array([1.]))
    """

    posed: Posed
    part: IntArray
    place: IntArray
    loss: FloatArray
    use: FloatArray
    room: FloatArray
    offset: float

    @classmethod
    def of(cls, posed: Posed) -> Program:
        """Set the program up, without the columns that no best choice needs.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> Program.of(Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})])).place
        array([1])
        """
        curves = posed.curves
        rows = list(posed.limits)
        part = np.repeat(np.arange(len(curves)), [len(curve.widths) for curve in curves])
        place = np.concatenate([np.arange(len(curve.widths)) for curve in curves])
        loss = np.concatenate([curve.losses - curve.losses.min() for curve in curves])
        use, room = np.zeros((len(rows), len(part))), np.zeros(len(rows))
        for r, resource in enumerate(rows):
            arrays = [curve.costs[resource] for curve in curves]
            above = [array - array.min() for array in arrays]
            whole = posed.whole(resource)
            slack = posed.slop(resource) if whole else _SLACK * abs(posed.limits[resource])
            left = posed.limits[resource] - posed.least(resource) + slack
            one = unit(above, left) if whole else left / _LARGEST or 1.0
            use[r], room[r] = np.concatenate(above) / one, left / one
            if whole and one == math.floor(one):
                room[r] = math.floor(room[r])
        offset = math.fsum(float(curve.losses.min()) for curve in curves)
        program = cls(posed, part, place, loss, use, room, offset)
        program = program.only(np.all(use <= room[:, None], axis=0))
        return program.only(program._undominated())

    @property
    def parts(self) -> int:
        """Number of curves.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> Program.of(Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})])).parts
        1
        """
        return len(self.posed.curves)

    def only(self, stays: BoolArray) -> Program:
        """The program without some columns.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> program = Program.of(Budget({"units": 2}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})]))
        >>> program.only(np.array([False, True])).place
        array([1])
        """
        return replace(
            self,
            part=self.part[stays],
            place=self.place[stays],
            loss=self.loss[stays],
            use=self.use[:, stays],
        )

    def dual(self, multipliers: FloatArray) -> tuple[float, FloatArray]:
        """L(m) without the offset, and what each column adds to its curve's minimum there.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> program = Program.of(Budget({"units": 2}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})]))
        >>> program.dual(np.array([1.0]))
        (0.0, array([3., 0.]))
        """
        priced = self.loss + multipliers @ self.use
        least = np.full(self.parts, np.inf)
        np.minimum.at(least, self.part, priced)
        return math.fsum([*least, -float(multipliers @ self.room)]), priced - least[self.part]

    def places(self, chosen: IntArray) -> IntArray:
        """A choice as places on the curves, from columns.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> program = Program.of(Budget({}).resolve([Curve("a", 2, [1, 2], [4.0, 0.0], {})]))
        >>> program.places(np.array([0]))
        array([1])
        """
        at = np.full(self.parts, -1, dtype=np.int64)
        at[self.part[chosen]] = self.place[chosen]
        return at

    def relaxed(self) -> Relaxed | None:
        """Solve the linear program; None if it is infeasible.

        Raises
        ------
        SolverError
            If HiGHS ends without an answer.

        Examples
        --------
        >>> from osscar_opt.allocation import Budget, Curve
        >>> curves = [Curve(name, 2, [1, 2], [4.0, 0.0], {"units": 1}) for name in "ab"]
        >>> relaxed = Program.of(Budget({"units": 3}).resolve(curves)).relaxed()
        >>> relaxed.bound, relaxed.value
        (4.0, 4.0)
        """
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        if len(np.unique(self.part)) < self.parts:
            return None
        count, rows = len(self.part), len(self.room)
        scale = float(self.loss.max()) or 1.0
        one = csr_array((np.ones(count), (self.part, np.arange(count))), shape=(self.parts, count))
        found = linprog(
            self.loss / scale,
            A_ub=self.use if rows else None,
            b_ub=self.room if rows else None,
            A_eq=one,
            b_eq=np.ones(self.parts),
            bounds=(0.0, None),
            method="highs",
        )
        if found.status == 2:
            return None
        if found.x is None:
            raise SolverError(f"HiGHS ended without a solution of the linear program: {found.message}")
        multipliers = np.maximum(-scale * found.ineqlin.marginals, 0.0) if rows else np.zeros(0)
        bound, reduced = self.dual(multipliers)
        if bound < 0.0:  # L(0) is 0: what is below it is rounding
            multipliers = np.zeros(rows)
            bound, reduced = self.dual(multipliers)
        best, value = None, math.inf
        for chosen in self._near(found.x, reduced):
            total = float(self.loss[chosen].sum())
            if total >= value or np.any(self.use[:, chosen].sum(axis=1) > self.room):
                continue
            if not self.posed.violation(self.places(chosen)):
                best, value = chosen, total
        return Relaxed(multipliers, bound, reduced, best, value)

    # ---------------------------------------------------------------------------------------------- pieces

    def _near(self, x: FloatArray, reduced: FloatArray) -> Iterator[IntArray]:
        """Choices near the linear program's solution, which splits no more curves than there are limits.

        A split curve takes the columns that it was split among, and those that are next best at the multipliers.
        """
        options = []
        split = 0
        for j in range(self.parts):
            own = np.flatnonzero(self.part == j)
            taken = own[x[own] > 1e-7]
            options.append(taken if len(taken) else own[[np.argmin(reduced[own])]])
            split += len(options[j]) > 1
        each = int(_TRIES ** (1.0 / max(split, 1)))
        for j, taken in enumerate(options):
            if len(taken) > 1:
                own = np.flatnonzero(self.part == j)
                others = np.setdiff1d(own[np.argsort(reduced[own], kind="stable")[:each]], taken)
                options[j] = np.concatenate([taken, others])[: max(each, 2)]
        for chosen in itertools.islice(itertools.product(*options), _TRIES):
            yield np.array(chosen)

    def _undominated(self) -> BoolArray:
        stays = np.ones(len(self.part), dtype=bool)
        for j in range(self.parts):
            own = np.flatnonzero(self.part == j)
            numbers = np.vstack([self.loss[own], self.use[:, own]])
            order = np.lexsort(numbers[::-1])  # a column can only be dominated by one that comes before it
            numbers = numbers[:, order]
            for i in range(1, len(own)):
                if np.any(np.all(numbers[:, :i] <= numbers[:, i : i + 1], axis=0)):
                    stays[own[order[i]]] = False
        return stays


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Answer of the linear program.

    Attributes
    ----------
    multipliers : (R,) array
    bound : float
        L(m), without the offset.
    reduced : (N,) array
        What each column adds to its curve's minimum in L(m).
    chosen : (number of curves,) array of int or None
        Columns of the best choice found near the solution.
    value : float
        Its loss, without the offset.

    Examples
    --------
    >>> Relaxed(np.zeros(1), 0.0, np.zeros(2), None, np.inf).chosen is None
    True
    """

    multipliers: FloatArray
    bound: float
    reduced: FloatArray
    chosen: IntArray | None
    value: float


def unit(above: list[FloatArray], room: float) -> float:
    """What a row of whole numbers is counted in: their greatest common divisor, or more where the room is too large.

    Examples
    --------
    >>> unit([np.array([0.0, 64.0]), np.array([0.0, 96.0])], 1000.0)
    32.0
    """
    divisor = math.gcd(*(int(value) for array in above for value in array)) or 1
    return max(float(divisor), room / _LARGEST)
