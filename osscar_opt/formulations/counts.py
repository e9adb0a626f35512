r"""How many to keep of each part, under one budget: loss curves and a multiple-choice knapsack.

Part j with k items kept loses ``curves[j][k]``, and an item of it costs c_j:

.. math:: \min_k \sum_j f_j(k_j) \quad\text{with}\quad \sum_j c_j k_j \le B \quad (\text{or} = B).

Clusters of a data set (`osscar_opt.formulations.clusters`) and channels of a depthwise convolution
(`osscar_opt.formulations.masks.depthwise`) are such parts.

For convex curves and equal costs, taking the item that lowers the loss most, one after another, is optimal (O. Gross
1956; B. Fox, *Discrete optimization via marginal analysis*, Management Science 13, 1966; T. Ibaraki, N. Katoh,
*Resource Allocation Problems*, MIT Press 1988).  For any curves and whole costs, a dynamic program over the budget is;
for any costs, the 0-1 program with one variable for each point of each curve.

For every multiplier m (m >= 0 unless the whole budget must be spent) a lower bound is

.. math:: L(m) = \sum_j \min_k \bigl(f_j(k) + m\, c_j k\bigr) - m B ,

which is concave in m.  Its maximum is that of the LP relaxation, the lower convex hulls of the curves in place of
the curves, and meets the optimum in Fox's case.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from osscar_opt._typing import ArrayLike, FloatArray, IntArray, read_only
from osscar_opt.errors import InfeasibleError, InputError, OptionError, SolverError
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations._knapsack import Hull, Room, dynamic, fits, marginal, program
from osscar_opt.formulations.outcome import Bound, Outcome, judged
from osscar_opt.formulations.solution import BoundKind, Termination

__all__ = ["CountMethod", "CountProblem", "CountSolution"]

CountMethod = Literal["auto", "dynamic", "marginal", "milp"]

_SLOP = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class CountProblem:
    """Choose a count for each part, under one budget; immutable, its arrays read-only.

    Parameters
    ----------
    curves : sequence of 1-d arrays
        ``curves[j][k]`` is the loss with k items of part j kept, k = 0, 1, ...; inf where that many are not allowed.
    budget : float
    costs : (number of parts,) array, optional
        Cost of one item of each part; 1 by default.
    exactly : bool, optional
        Whether the budget must be spent to the last item.
    name : str, optional

    Raises
    ------
    InputError
        If a curve is empty or holds NaN, or a cost is not positive.
    InfeasibleError
        If the fewest items allowed cost more than the budget.

    Examples
    --------
    >>> problem = CountProblem([[4.0, 1.0, 0.0], [9.0, 4.0, 1.0]], budget=3)
    >>> problem.solve().counts
    array([1, 2])
    """

    curves: tuple[FloatArray, ...]
    budget: float
    costs: FloatArray
    exactly: bool
    name: str

    def __init__(
        self,
        curves: Sequence[ArrayLike],
        budget: float,
        *,
        costs: ArrayLike | None = None,
        exactly: bool = False,
        name: str = "",
    ) -> None:
        arrays = tuple(_curve(curve, j) for j, curve in enumerate(curves))
        if not arrays:
            raise InputError("there are no curves: pass one array of losses for each part.")
        price = np.ones(len(arrays)) if costs is None else np.array(costs, dtype=np.float64)
        if price.shape != (len(arrays),) or not np.all(np.isfinite(price) & (price > 0.0)):
            raise InputError(f"costs must be {len(arrays)} positive numbers, one for each curve.")
        if not np.isfinite(budget):
            raise InputError(f"budget must be a number, but is {budget}.")
        for attribute, value in {
            "curves": arrays,
            "budget": float(budget),
            "costs": read_only(price),
            "exactly": bool(exactly),
            "name": str(name),
        }.items():
            object.__setattr__(self, attribute, value)
        least = float(self.costs @ self.fewest)
        if least > self.budget + self._slop:
            raise InfeasibleError(
                f"the fewest items that the curves allow cost {least:.12g}, more than the budget {self.budget:.12g}."
            )
        if exactly and float(self.costs @ self.most) < self.budget - self._slop:
            raise InfeasibleError(
                f"all items together cost {self.costs @ self.most:.12g}, less than the budget {self.budget:.12g} that "
                "is to be spent exactly: lower the budget, or pass exactly=False."
            )

    @property
    def n(self) -> int:
        """Number of parts.

        Examples
        --------
        >>> CountProblem([[1.0, 0.0]], budget=1).n
        1
        """
        return len(self.curves)

    @cached_property
    def fewest(self) -> IntArray:
        """The least count of each part with a finite loss.

        Examples
        --------
        >>> CountProblem([[np.inf, 0.0]], budget=1).fewest
        array([1])
        """
        return np.array([int(np.flatnonzero(np.isfinite(curve))[0]) for curve in self.curves])

    @cached_property
    def most(self) -> IntArray:
        """The largest count of each part with a finite loss.

        Examples
        --------
        >>> CountProblem([[1.0, 0.0, np.inf]], budget=1).most
        array([1])
        """
        return np.array([int(np.flatnonzero(np.isfinite(curve))[-1]) for curve in self.curves])

    @cached_property
    def convex(self) -> bool:
        """Whether every curve is convex: its steps never fall, up to rounding, and no count in between is barred.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0, 0.0]], budget=1).convex, CountProblem([[4.0, 3.0, 0.0]], budget=1).convex
        (True, False)
        """
        for curve, first, last in zip(self.curves, self.fewest, self.most, strict=True):
            part = curve[first : last + 1]
            if not np.all(np.isfinite(part)):
                return False
            if np.any(np.diff(part, 2) < -1e-12 * max(1e-300, float(np.ptp(part)))):
                return False
        return True

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of curves, costs and `exactly`; not of budget and name.

        Examples
        --------
        >>> a, b = (CountProblem([[1.0, 0.0]], budget=budget) for budget in (0, 1))
        >>> a.hash == b.hash
        True
        """
        return content_hash(
            lengths=np.array([len(curve) for curve in self.curves]),
            curves=np.concatenate(self.curves),
            costs=self.costs,
            exactly=int(self.exactly),
        )

    def objective(self, counts: ArrayLike) -> float:
        """The summed loss of given counts, whatever they cost.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0], [9.0, 4.0]], budget=1).objective([1, 0])
        10.0
        """
        chosen = self._counts(counts)
        return float(sum(curve[k] for curve, k in zip(self.curves, chosen, strict=True)))

    def violation(self, counts: ArrayLike) -> str:
        """One clause saying how counts break the budget, or a part's own limits; "" if they do not.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0], [9.0, 4.0]], budget=1).violation([1, 1])
        'costs 2 of budget = 1'
        """
        chosen = self._counts(counts)
        if not np.isfinite(self.objective(chosen)):
            return "has a part with a count that its curve does not allow"
        spent = float(self.costs @ chosen)
        if spent > self.budget + self._slop or (self.exactly and spent < self.budget - self._slop):
            return f"costs {spent:.12g} of budget = {self.budget:.12g}"
        return ""

    def bound(self) -> Bound:
        """The best of the bounds L(m), evaluated here from the curves alone, and therefore certified.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0, 0.0], [9.0, 4.0, 1.0]], budget=3).bound().value
        2.0
        """
        slopes = -np.concatenate([steps.slopes for steps in self._hulls])
        candidates = np.unique(np.append(slopes, 0.0))
        if not self.exactly:
            candidates = candidates[candidates >= 0.0]
        low, high = 0, len(candidates) - 1
        while low < high:  # L is concave: flat only at its maximum
            middle = (low + high) // 2
            if self._lagrangian(candidates[middle]) < self._lagrangian(candidates[middle + 1]):
                low = middle + 1
            else:
                high = middle
        return Bound(self._lagrangian(candidates[low]), BoundKind.CERTIFIED)

    def solve(self, method: CountMethod = "auto", *, time_limit: float | None = None) -> CountSolution:
        """Choose counts.

        Parameters
        ----------
        method : {"auto", "dynamic", "marginal", "milp"}, optional
            "marginal": step by step along the convex hulls, the best step first, then what still fits; optimal for
            convex curves and equal costs, a heuristic otherwise.  "dynamic": a dynamic program over the budget, for
            whole costs.  "milp": the 0-1 program, by HiGHS.  "auto": the first of these that is exact.
        time_limit : float, optional
            Seconds for "milp"; the others take what they take.

        Raises
        ------
        CapabilityError
            If "dynamic" is asked for with costs that are not whole numbers, or a table too large.
        SolverError
            If "milp" ends without any counts.

        Examples
        --------
        >>> solution = CountProblem([[4.0, 3.0, 0.0], [4.0, 2.0, 1.5]], budget=2).solve("marginal")
        >>> solution.counts, solution.status.value
        (array([2, 0]), 'optimal')
        """
        began = time.perf_counter()
        if method == "auto":
            small = fits(self.curves, self.budget)
            convex = self.convex and self._equal_costs
            method = "marginal" if convex else "dynamic" if self._whole and small else "milp"
        termination, message = Termination.COMPLETED, ""
        claimed = Bound()
        room = Room(self.budget, self._slop, self.exactly)
        if method == "marginal":
            counts = marginal(self.curves, self.costs, self._hulls, room)
        elif method == "dynamic":
            counts = dynamic(self.curves, self.costs, room)
            claimed = Bound(self.objective(counts), BoundKind.CLAIMED)
        elif method == "milp":
            counts, claimed, termination = program(self.curves, self.costs, room, time_limit)
        else:
            raise OptionError(f"method = {method!r} is not one of auto, dynamic, marginal, milp.")
        if method == "milp" and self.violation(counts):
            counts = marginal(self.curves, self.costs, self._hulls, room)
            message = "HiGHS passed the budget by its tolerance; these are the counts of marginal steps."
        violation = self.violation(counts)
        if violation:
            raise SolverError(f"the counts that {method!r} found are not feasible: it {violation}.")
        objective = self.objective(counts)
        rounding = 1e-12 * float(sum(np.abs(c[np.isfinite(c)]).max() for c in self.curves))
        bound = self.bound()
        bound = (
            bound if bound.value >= objective - 1e-9 * abs(objective) - rounding else bound.better(claimed)
        )
        return CountSolution(
            problem=self,
            counts=read_only(counts),
            method=method,
            problem_hash=self.hash,
            termination=termination,
            message=message,
            solve_time=time.perf_counter() - began,
            **judged(objective, bound, rounding),
        )

    def __repr__(self) -> str:
        return f"CountProblem(n={self.n}, budget={self.budget:.12g}{', exactly' if self.exactly else ''})"

    # ---------------------------------------------------------------------------------------------- pieces

    def _counts(self, counts: ArrayLike) -> IntArray:
        chosen = np.asarray(counts)
        if chosen.shape != (self.n,) or not np.issubdtype(chosen.dtype, np.integer):
            raise InputError(f"counts must be {self.n} whole numbers, one for each part.")
        if any(not 0 <= k < len(curve) for k, curve in zip(chosen, self.curves, strict=True)):
            raise InputError("a count lies beyond the end of its curve.")
        return chosen.astype(np.int64)

    @property
    def _slop(self) -> float:
        return _SLOP * max(1.0, abs(self.budget))

    @cached_property
    def _equal_costs(self) -> bool:
        return bool(np.all(self.costs == self.costs[0]))

    @cached_property
    def _whole(self) -> bool:
        return bool(np.all(self.costs == np.rint(self.costs)))

    @cached_property
    def _hulls(self) -> tuple[Hull, ...]:
        return tuple(Hull.of(curve, float(cost)) for curve, cost in zip(self.curves, self.costs, strict=True))

    def _lagrangian(self, multiplier: float) -> float:
        least = (
            float(np.min(curve + multiplier * cost * np.arange(len(curve))))
            for curve, cost in zip(self.curves, self.costs, strict=True)
        )
        return sum(least) - float(multiplier) * self.budget


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CountSolution(Outcome):
    """Counts, and what is known of them.

    Attributes
    ----------
    problem : CountProblem
    counts : (number of parts,) array of int

    Examples
    --------
    >>> CountProblem([[4.0, 1.0, 0.0]], budget=1).solve()
    CountSolution(marginal, objective=1, gap=0, optimal, completed)
    """

    problem: CountProblem
    counts: IntArray

    def verify(self) -> None:
        """Recompute what can be recomputed.

        Raises
        ------
        SolverError
            Naming the first thing that does not hold.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0, 0.0]], budget=1).solve().verify()
        """
        violation = self.problem.violation(self.counts)
        if violation:
            raise SolverError(f"the counts are not feasible: it {violation}.")
        self.require_objective(self.problem.objective(self.counts))

    def to_dict(self) -> dict[str, Any]:
        """As `Outcome.to_dict`, with the counts.

        Examples
        --------
        >>> CountProblem([[4.0, 1.0, 0.0]], budget=1).solve().to_dict()["counts"]
        [1]
        """
        return super().to_dict() | {"counts": self.counts.tolist()}


def _curve(values: ArrayLike, part: int) -> FloatArray:
    curve = np.array(values, dtype=np.float64)
    if curve.ndim != 1 or len(curve) == 0 or np.any(np.isnan(curve)) or np.any(curve == -np.inf):
        raise InputError(f"curve {part} must be a 1-d array of losses, inf where a count is not allowed.")
    if not np.any(np.isfinite(curve)):
        raise InputError(f"curve {part} allows no count at all: at least one loss must be finite.")
    return read_only(curve)
