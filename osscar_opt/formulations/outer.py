"""The outer approximation: a mixed-integer linear program in HiGHS whose optimum is a lower bound of a problem's.

    minimise    base + sum_t loss_t
    subject to  usage @ keep <= limit,   keep binary,   loss_t >= 0,
                loss_t + slopes_i @ keep >= level_i          for every cut i, of term t

The variables are keep_g, one for each group, and loss_t, one for each term of `osscar_opt.formulations.cuts.Terms`.
In HiGHS, losses are divided by a scale, so that the best one known is about 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import SolverError
from osscar_opt.formulations.cuts import Cuts, Terms
from osscar_opt.formulations.problem import Problem

__all__ = ["Master", "Relaxed", "Solved"]

_TOLERANCE = 1e-8
"""HiGHS's tolerances of feasibility, dual feasibility and integrality. At 1e-10 it loses optima now and then."""

_NEGLIGIBLE = 1e-7
"""Slopes this small are moved into the level: HiGHS drops tiny coefficients, which would lift the cut."""

_HIGHER = 1e-7
"""A cut that says less than this more than others is not added."""

_FALSE = 1e-6
"""A cut above the true loss of a support by more is wrong."""

_MOST_NEIGHBOURS = 20_000

_OPTIONS = {
    "threads": 1,
    "parallel": "off",
    "mip_rel_gap": 1e-7,
    "mip_abs_gap": 1e-8,
    "primal_feasibility_tolerance": _TOLERANCE,
    "dual_feasibility_tolerance": _TOLERANCE,
    "mip_feasibility_tolerance": _TOLERANCE,
    # Good supports are known: HiGHS's heuristics took four fifths of the time and found nothing.
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "mip_allow_restart": False,
}


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What the linear relaxation of the master came to; bounds are scaled.

    Attributes
    ----------
    z : (n,) array
    bound : float
        Lower bound made of the prices of the rows by arithmetic of our own: no tolerance of HiGHS enters.
    if_removed, if_kept : (n,) array
        Lower bounds of the supports that leave out, or keep, one group.

    Examples
    --------
    >>> Relaxed(np.zeros(1), 1.0, np.ones(1), np.zeros(1)).bound
    1.0
    """

    z: FloatArray
    bound: float
    if_removed: FloatArray
    if_kept: FloatArray


@dataclass(frozen=True, eq=False)
class Solved:
    """What the integer master came to; bounds are scaled.

    Attributes
    ----------
    bound : float
        Lower bound, lowered by what HiGHS's tolerances may have added; inf if nothing is left.
    support : (n,) mask or None
        The best found, if any.
    complete : bool
        Whether it was solved to the end.
    nodes : int

    Examples
    --------
    >>> Solved(1.0, None, complete=False, nodes=0).complete
    False
    """

    bound: float
    support: BoolArray | None
    complete: bool
    nodes: int


class Master:
    """The outer approximation of a problem, growing by cuts: one HiGHS object throughout, on one thread.

    Parameters
    ----------
    problem : Problem
    terms : Terms
        Of `problem`.
    scale : float
        What losses are divided by, > 0.
    stop : callable, optional
        Asked during every run whether to leave it at that.
    on_bound : callable, optional
        Told the bound, in the units of the problem, while the integer master is being solved.

    Attributes
    ----------
    scale : float
    cuts : int
        Number of cuts in the model.

    Examples
    --------
    >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
    >>> terms = Terms(problem)
    >>> master = Master(problem, terms, scale=problem.value([0]))
    >>> master.add(terms.cuts_at(np.array([1.0, 0.0])))
    2
    >>> solved = master.solve()
    >>> solved.support, round(master.objective(solved.bound), 6)
    (array([ True, False]), 0.125)
    """

    def __init__(
        self,
        problem: Problem,
        terms: Terms,
        scale: float,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_bound: Callable[[float], object] = lambda bound: None,
    ) -> None:
        self._problem, self.scale = problem, scale
        self._n, self._terms = problem.n, terms.count
        self._stop, self._on_bound = stop, on_bound
        self._raised: BaseException | None = None
        self._solving = False
        self._lower = problem.always_keep.astype(float)
        self._upper = 1.0 - problem.always_remove.astype(float)
        self._usage, self._limit = _scaled_limits(problem)
        self._pool = Cuts(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, self._n)))
        self._row_of_cut = np.zeros(0, np.int64)
        self._highs = self._new_model()

    @property
    def cuts(self) -> int:
        return len(self._pool.level)

    def objective(self, scaled: float) -> float:
        """Objective, in the units of the problem, of a scaled loss.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).objective(1.0)
        0.5
        """
        return self._problem.base + self.scale * scaled

    # ---------------------------------------------------------------------------------------------------- cuts

    def add(self, cuts: Cuts, at: FloatArray | None = None) -> int:
        """Add cuts: all that say anything, or those that say more at a point than the cuts before; returns how many.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).add(Cuts(np.array([0]), np.zeros(1), np.zeros((1, 2))))
        0
        """
        level, slopes = cuts.level / self.scale, cuts.slopes / self.scale
        negligible = slopes < _NEGLIGIBLE
        level = level - (slopes * negligible).sum(axis=1)
        slopes = np.where(negligible, 0.0, slopes)
        wanted = level > _HIGHER
        if at is not None:
            wanted &= level - slopes @ at > self._known(at[:, None])[cuts.term, 0] + _HIGHER
        added = Cuts(cuts.term[wanted], level[wanted], slopes[wanted])
        rows = np.zeros((len(added.level), self._n + self._terms))
        rows[:, : self._n] = added.slopes
        rows[np.arange(len(rows)), self._n + added.term] = 1.0
        first = self._highs.getNumRow()
        _add_rows(self._highs, added.level, np.full(len(rows), highspy.kHighsInf), rows)
        self._row_of_cut = np.concatenate([self._row_of_cut, first + np.arange(len(rows))])
        self._pool = self._pool.with_more(added)
        return len(rows)

    def exclude_below(self, support: BoolArray) -> None:
        """Rule out a support and all that it contains: they lose no less.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> master = Master(problem, Terms(problem), scale=0.5)
        >>> master.exclude_below(np.array([True, False]))
        >>> master.solve().support
        array([False,  True])
        """
        _add_rows(self._highs, np.ones(1), np.full(1, highspy.kHighsInf), (~support).astype(float)[None])

    def exclude_above(self, support: BoolArray) -> None:
        """Rule out a support that passes a limit by rounding, and all that contain it.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).exclude_above(np.array([True, True]))
        """
        most = np.array([np.count_nonzero(support) - 1.0])
        _add_rows(self._highs, np.full(1, -highspy.kHighsInf), most, support.astype(float)[None])

    def values(self, supports: FloatArray) -> FloatArray:
        """(B,) the scaled lower bounds that all cuts together give for B supports.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).values(np.eye(2))
        array([0., 0.])
        """
        return np.asarray(self._known(supports.T).sum(axis=0))

    def best_neighbour(self, support: BoolArray) -> tuple[BoolArray, float]:
        """Of all feasible supports one exchange away, the one of which the cuts know least, with its scaled bound.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).best_neighbour(np.array([True, False]))
        (array([False,  True]), 0.0)
        """
        free = self._lower < self._upper
        kept, removed = np.flatnonzero(support & free), np.flatnonzero(~support & free)
        if len(kept) * len(removed) > _MOST_NEIGHBOURS:
            return support, np.inf
        out, new = (axis.ravel() for axis in np.meshgrid(kept, removed, indexing="ij"))
        exchanged = np.tile(support.astype(float), (len(out), 1))
        exchanged[np.arange(len(out)), out] = 0.0
        exchanged[np.arange(len(out)), new] = 1.0
        exchanged = exchanged[(exchanged @ self._usage.T <= self._limit).all(axis=1)]
        if not len(exchanged):
            return support, np.inf
        values = self.values(exchanged)
        return exchanged[values.argmin()] > 0.5, float(values.min())

    def require_valid(self, support: BoolArray, losses: FloatArray) -> None:
        """Hold all cuts against what the terms lose on a support.

        Raises
        ------
        SolverError
            If a cut is above.

        Examples
        --------
        >>> problem = Problem(np.eye(2), np.eye(2), keep=1)
        >>> master = Master(problem, Terms(problem), scale=1.0)
        >>> master.add(Cuts(np.array([0]), np.array([9.0]), np.zeros((1, 2))))
        1
        >>> master.require_valid(np.array([True, False]), np.array([0.0, 0.5]))
        Traceback (most recent call last):
        osscar_opt.errors.SolverError: cut 0 puts the loss of term 0 at 9 on a support where it is 0.
        """
        above = self._pool.at(support.astype(float)) - losses[self._pool.term] / self.scale
        if above.size and above.max() > _FALSE:
            cut = int(above.argmax())
            term = int(self._pool.term[cut])
            said = self.scale * float(self._pool.level[cut] - self._pool.slopes[cut] @ support)
            raise SolverError(
                f"cut {cut} puts the loss of term {term} at {said:.9g} on a support where it is {losses[term]:.9g}."
            )

    # ------------------------------------------------------------------------------------------------- solving

    def relax(self) -> Relaxed | None:
        """Solve the linear relaxation; None if there was no time for it.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> relaxed = Master(problem, Terms(problem), scale=0.5).relax()
        >>> relaxed.bound
        0.0
        """
        self._run(integer=False)
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            self._require(highspy.HighsModelStatus.kTimeLimit, highspy.HighsModelStatus.kInterrupt)
            return None
        solution = self._highs.getSolution()
        columns, prices = np.array(solution.col_value), np.array(solution.row_dual)
        z = np.clip(columns[: self._n], self._lower, self._upper)
        return Relaxed(z, *self._priced(prices))

    def solve(self, time_limit: float = np.inf) -> Solved:
        """Solve the integer master, for so many seconds at most.

        Raises
        ------
        SolverError
            If HiGHS gives up.

        Examples
        --------
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> Master(problem, Terms(problem), scale=0.5).solve().complete
        True
        """
        self._run(integer=True, time_limit=time_limit)
        status = self._highs.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return Solved(np.inf, None, complete=True, nodes=0)
        complete = status == highspy.HighsModelStatus.kOptimal
        if not complete:
            self._require(highspy.HighsModelStatus.kTimeLimit, highspy.HighsModelStatus.kInterrupt)
        info = self._highs.getInfo()
        support = None
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            support = np.array(self._highs.getSolution().col_value)[: self._n] > 0.5
        bound = self._safe(float(info.mip_dual_bound))
        return Solved(bound, support, complete, max(0, int(info.mip_node_count)))

    def fix(self, relaxed: Relaxed, best: float) -> int:
        """Decide groups without which, or with which, no support is below `best` (scaled); returns how many.

        Examples
        --------
        >>> problem = Problem(np.diag([1.0, 4.0]), np.eye(2), keep=1)
        >>> terms = Terms(problem)
        >>> master = Master(problem, terms, scale=0.125)
        >>> _ = master.add(terms.cuts_at(np.array([1.0, 0.0])))
        >>> master.fix(master.relax(), best=1.0)
        2
        """
        self._lower[relaxed.if_removed > best + _FALSE] = 1.0
        self._upper[relaxed.if_kept > best + _FALSE] = 0.0
        for group in range(self._n):
            self._highs.changeColBounds(group, self._lower[group], self._upper[group])
        return int(np.count_nonzero(self._lower == self._upper))

    def write(self, path: str) -> None:
        """Write the integer master to a .mps or .lp file, losses in the units of the problem.

        Examples
        --------
        >>> import os, tempfile
        >>> problem = Problem(np.eye(2), [[1.0], [2.0]], keep=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Master(problem, Terms(problem), scale=1.0).write(os.path.join(folder, "master.mps"))
        """
        highs = self._highs
        self._make_integer(True)
        highs.changeObjectiveOffset(self._problem.base)
        highs.changeColsCost(self._terms, self._loss_columns, np.full(self._terms, self.scale))
        for group in range(self._n):
            highs.passColName(group, f"keep_{group}")
        for term in range(self._terms):
            highs.passColName(self._n + term, f"loss_{term}")
        for row, name in enumerate(self._problem.limits.names):
            highs.passRowName(row, "limit_" + name.replace("[", "_").replace("]", ""))
        for cut, row_of_cut in enumerate(self._row_of_cut):
            highs.passRowName(int(row_of_cut), f"cut_{cut}")
        status = highs.writeModel(path)
        highs.changeObjectiveOffset(0.0)
        highs.changeColsCost(self._terms, self._loss_columns, np.ones(self._terms))
        if status != highspy.HighsStatus.kOk:
            raise SolverError(f"HiGHS could not write the model to {path}.")

    # ------------------------------------------------------------------------------------------------- details

    def _known(self, points: FloatArray) -> FloatArray:
        """(T, B) the bound that all cuts of each term together give at B points, the columns of an (n, B) array."""
        known = np.zeros((self._terms, points.shape[1]))
        for term in range(self._terms):
            mine = np.flatnonzero(self._pool.term == term)
            if mine.size:
                bounds = self._pool.level[mine, None] - self._pool.slopes[mine] @ points
                known[term] = np.maximum(bounds.max(axis=0), 0.0)
        return known

    def _new_model(self) -> Any:
        highs = highspy.Highs()
        highs.silent()
        for name, value in _OPTIONS.items():
            highs.setOptionValue(name, value)
        lower = np.concatenate([self._lower, np.zeros(self._terms)])
        upper = np.concatenate([self._upper, np.full(self._terms, highspy.kHighsInf)])
        highs.addVars(self._n + self._terms, lower, upper)
        highs.changeColsCost(self._terms, self._loss_columns, np.ones(self._terms))
        _add_rows(highs, np.full(len(self._limit), -highspy.kHighsInf), self._limit, self._usage)
        highs.cbMipInterrupt += self._heard
        highs.cbSimplexInterrupt += self._heard
        return highs

    @property
    def _loss_columns(self) -> Any:
        return np.arange(self._n, self._n + self._terms, dtype=np.int32)

    def _make_integer(self, integer: bool) -> None:
        kind = highspy.HighsVarType.kInteger if integer else highspy.HighsVarType.kContinuous
        columns = np.arange(self._n, dtype=np.int32)
        self._highs.changeColsIntegrality(self._n, columns, np.array([kind] * self._n))

    def _run(self, *, integer: bool, time_limit: float = np.inf) -> None:
        self._make_integer(integer)
        self._highs.setOptionValue("time_limit", min(time_limit, highspy.kHighsInf))
        self._solving = integer
        status = self._highs.run()
        if status == highspy.HighsStatus.kError and self._raised is None:
            # Somebody has used HiGHS in this thread before, with more threads; it wants no other number from then on.
            self._highs.setOptionValue("threads", 0)
            self._highs.run()
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised

    def _heard(self, event: Any) -> None:
        """What HiGHS calls now and then; an exception in here must not unwind through it."""
        try:
            if self._solving:
                bound = self._safe(float(event.data_out.mip_dual_bound))
                if bound > 0.0:
                    self._on_bound(self.objective(bound))
            if self._stop():
                event.interrupt()
        except BaseException as error:
            self._raised = error
            event.interrupt()

    def _require(self, *allowed: Any) -> None:
        status = self._highs.getModelStatus()
        if status not in allowed:
            said = self._highs.modelStatusToString(status)
            raise SolverError(f"HiGHS ended with the status {said!r} where the master has an optimum.")

    def _safe(self, bound: float) -> float:
        """Lower a dual bound by what HiGHS may take for rounding: a tolerance on every variable's reduced cost."""
        if not np.isfinite(bound):
            return 0.0
        return max(0.0, bound - 2.0 * _TOLERANCE * (self._n + self._terms) - 10.0 * _TOLERANCE)

    def _priced(self, prices: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """The bound that prices of the rows give, and the same with each group removed or kept.

        Prices are made nonnegative, and those of the cuts of a term made to add up to 1 at most: then
        loss >= level - slopes @ z for the sums over all cuts. The largest slopes @ z within the limits is at most
        prices @ limit + sum_g max(0, slope_g - prices @ usage_g) over z in the bounds.
        """
        term = self._pool.term
        price = np.maximum(prices[self._row_of_cut], 0.0)
        price /= np.maximum(np.bincount(term, weights=price, minlength=self._terms), 1.0)[term]
        level, slopes = float(price @ self._pool.level), price @ self._pool.slopes
        slopes *= self._upper
        keep = self._problem.limits.cardinality
        if keep is not None:
            most, if_removed, if_kept = _most_of(slopes, self._lower > 0.5, keep)
        else:
            finite = np.isfinite(self._limit)
            paid = np.maximum(-prices[: len(self._limit)], 0.0)[finite]
            net = slopes - paid @ self._usage[finite]
            most = float(
                paid @ self._limit[finite] + np.sum(np.maximum(net * self._lower, net * self._upper))
            )
            if_removed, if_kept = most - np.maximum(net, 0.0), most - np.maximum(-net, 0.0)
        if_removed[self._lower > 0.5] = -np.inf
        if_kept[self._upper < 0.5] = -np.inf
        return level - most, level - if_removed, level - if_kept


def _most_of(slopes: FloatArray, kept: BoolArray, keep: int) -> tuple[float, FloatArray, FloatArray]:
    """The largest sum of `keep` slopes, those of `kept` among them, and the same with each group removed or kept."""
    order = np.argsort(np.where(kept, -np.inf, -slopes), kind="stable")
    chosen, others = order[:keep], order[keep:]
    most = float(slopes[chosen].sum())
    if_removed, if_kept = np.full(len(slopes), most), np.full(len(slopes), most)
    if_removed[chosen] += (slopes[others[0]] if len(others) else 0.0) - slopes[chosen]
    if_kept[others] += slopes[others] - (slopes[chosen[-1]] if len(chosen) else np.inf)
    return most, if_removed, if_kept


def _scaled_limits(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Usage and limits, each row divided by its limit; rounding is let pass."""
    limits = problem.limits
    size = np.where(limits.limit > 0.0, limits.limit, np.max(limits.usage, axis=1, initial=0.0))
    size = np.where((size > 0.0) & np.isfinite(size), size, 1.0)
    return limits.usage / size[:, None], limits.limit / size + _TOLERANCE


def _add_rows(highs: Any, lower: FloatArray, upper: FloatArray, rows: FloatArray) -> None:
    filled = rows != 0.0
    starts = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])[:-1].astype(np.int32)
    columns = np.nonzero(filled)[1].astype(np.int32)
    highs.addRows(len(rows), lower, upper, len(columns), starts, columns, rows[filled])
