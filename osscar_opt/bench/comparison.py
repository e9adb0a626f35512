"""What a comparison of rules found: a table, a picture, a JSON document."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.bench.rules import Rule
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination, new_axis

__all__ = ["PUBLISHED", "REFITTED", "Comparison", "Row"]

PUBLISHED, REFITTED = "as published", "refitted"
_COLORS = {"published": ("#cc5715", "o"), "refitted": ("#134ab7", "D")}


@dataclass(frozen=True, eq=False)
class Row:
    """A rule on the problem.

    Attributes
    ----------
    rule : Rule
    published : float or None
        Objective with the weights the rule itself leaves; None where the refit is part of the rule.
    refitted : float
        Objective with the best weights on its choice.
    support : (n,) mask
    seconds : float
        For choosing, and for the rule's own weights; scores that come from a model are counted, moments are not.
    termination : str

    Examples
    --------
    >>> from osscar_opt.bench.rules import rule
    >>> Row(rule("wanda"), published=0.5, refitted=0.2, support=np.array([True, False])).best
    0.2
    """

    rule: Rule
    published: float | None
    refitted: float
    support: BoolArray = field(repr=False)
    seconds: float = 0.0
    termination: str = "completed"

    @property
    def best(self) -> float:
        """The smaller of the two objectives.

        Examples
        --------
        >>> from osscar_opt.bench.rules import rule
        >>> Row(rule("greedy"), published=None, refitted=0.2, support=np.array([True])).best
        0.2
        """
        return self.refitted if self.published is None else min(self.published, self.refitted)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; prints as a table.

    Attributes
    ----------
    problem : Problem
    rows : tuple of Row
        Smallest refitted objective first.
    skipped : tuple of (str, str)
        Rules that do not apply, and why.
    inverse_seconds : float
        Of one Cholesky inverse of the problem's gram in the same run: the unit of the table's times.
    bound : float or None
        A lower bound of every choice, where a method that proves was among the rules.

    Examples
    --------
    >>> from osscar_opt.bench.compare import compare
    >>> problem = Problem(np.eye(3), dense_weights=[[1.0], [3.0], [2.0]], keep=1, name="small")
    >>> found = compare(problem, rules=["wanda", "osscar"])
    >>> [(row.rule.name, row.refitted) for row in found.rows]
    [('wanda', 2.5), ('osscar', 2.5)]
    """

    problem: Problem
    rows: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    inverse_seconds: float = math.nan
    bound: float | None = None

    @property
    def best(self) -> float:
        """Smallest objective of all rows.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy"]).best
        0.5
        """
        return min((row.best for row in self.rows), default=math.inf)

    def excess(self, value: float | None) -> float | None:
        """How much larger than the best an objective is, as a share of the best; inf where the best is zero.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy"]).excess(0.75)
        0.5
        """
        if value is None:
            return None
        if value <= self.best:
            return 0.0
        return value / self.best - 1.0 if self.best > 0.0 else math.inf

    def overlap(self, row: Row) -> float:
        """Share of the groups that the best row keeps, which this one keeps too.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> found = compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy", "osscar"])
        >>> found.overlap(found.rows[1])
        1.0
        """
        first = min(self.rows, key=lambda other: other.best).support
        return float((first & row.support).sum() / max(1, int(first.sum())))

    def relative(self, value: float | None) -> float | None:
        """An objective relative to keeping nothing, as `Solution.relative`.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy"]).relative(0.5)
        0.1
        """
        if value is None:
            return None
        return value / self.problem.constant if self.problem.constant > 0.0 else math.nan

    def table(self) -> str:
        """All rows as text, then what does not apply and why.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> print(compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy", "flap"]).table())
        problem: 1 of 2 groups stay; errors relative to keeping nothing
        rule    as published  refitted  above the best  same groups  inverses  updates
        greedy                     0.1               0         100%  ...  all weights that stay: the refit
        not applicable:
          flap: needs the means of the inputs: pose the problem with an intercept
        """
        head = ("rule", PUBLISHED, REFITTED, "above the best", "same groups", "inverses", "updates")
        cells = [head, *(self._cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        keep = "" if self.problem.keep is None else f"{self.problem.keep} of {self.problem.n} groups stay; "
        lines = [f"{self.problem.name or 'problem'}: {keep}errors relative to keeping nothing"]
        for row in cells:
            parts = [
                cell.ljust(width) if column in (0, 6) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(parts).rstrip())
        if self.bound is not None:
            lines.append(f"no choice of groups has less than {self.relative(self.bound):.4g}")
        if self.skipped:
            lines.append("not applicable:")
            lines += [f"  {name}: {why}" for name, why in self.skipped]
        return "\n".join(lines)

    def _cells(self, row: Row) -> tuple[str, ...]:
        excess = self.excess(row.refitted)
        late = " (cut short)" if row.termination == Termination.TIME_LIMIT else ""
        return (
            row.rule.name,
            *(
                "" if value is None else f"{self.relative(value):.4g}"
                for value in (row.published, row.refitted)
            ),
            ""
            if excess is None
            else "0"
            if excess < 1e-9
            else f"{100 * excess:.2g}%"
            if excess < 10
            else f"{1 + excess:.3g}x",
            f"{100 * self.overlap(row):.0f}%",
            f"{row.seconds / self.inverse_seconds:.2g}",
            row.rule.updates + late,
        )

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it.

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy"]).to_dict()["rows"][0]["refitted"]
        0.5
        """
        return {
            "problem": self.problem.name,
            "problem_hash": self.problem.hash,
            "keep": self.problem.keep,
            "n": self.problem.n,
            "constant": self.problem.constant,
            "bound": self.bound,
            "inverse_seconds": self.inverse_seconds,
            "rows": [
                {
                    "rule": row.rule.name,
                    "published": row.published,
                    "refitted": row.refitted,
                    "kept": np.flatnonzero(row.support).tolist(),
                    "seconds": row.seconds,
                    "termination": str(row.termination),
                    "needs": list(row.rule.needs),
                    "updates": row.rule.updates,
                }
                for row in self.rows
            ],
            "skipped": [{"rule": name, "why": why} for name, why in self.skipped],
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw a line from each rule's error as published to that of its choice refitted, best rule on top.

        Parameters
        ----------
        ax : matplotlib axis, optional

        Examples
        --------
        >>> from osscar_opt.bench.compare import compare
        >>> compare(Problem(np.eye(2), [[1.0], [3.0]], keep=1), rules=["greedy"]).plot().get_xscale()
        'log'
        """
        axis = new_axis() if ax is None else ax
        places = range(len(self.rows), 0, -1)
        if ax is None:
            axis.figure.set_size_inches(7.2, 1.2 + 0.24 * len(self.rows))
        for place, row in zip(places, self.rows, strict=True):
            if row.published is not None:
                ends = [self.relative(row.refitted), self.relative(row.published)]
                axis.plot(ends, [place, place], color="#c9ced6", linewidth=2, zorder=1)
        for (name, (color, marker)), label in zip(_COLORS.items(), (PUBLISHED, REFITTED), strict=True):
            points = [
                (self.relative(getattr(row, name)), place)
                for place, row in zip(places, self.rows, strict=True)
                if getattr(row, name) is not None
            ]
            if points:
                axis.scatter(
                    *zip(*points, strict=True), color=color, marker=marker, s=26, label=label, zorder=2
                )
        if self.bound is not None and self.bound > 0.0:
            axis.axvline(
                self.relative(self.bound), color="#5f6974", linewidth=1, linestyle=":", label="lower bound"
            )
        _decimal_ticks(axis)
        axis.set_yticks(list(places), [row.rule.name for row in self.rows])
        axis.set_xlabel("error relative to keeping nothing")
        stay = "" if self.problem.keep is None else f", {self.problem.keep} of {self.problem.n} groups stay"
        axis.set_title(f"{self.problem.name or 'problem'}{stay}", loc="left")
        axis.grid(visible=True, axis="x", color="#e2e6eb")
        axis.set_axisbelow(True)
        if ax is None:
            axis.figure.set_layout_engine("constrained")
            axis.figure.legend(frameon=False, loc="outside lower center", ncols=3)
        else:
            axis.legend(frameon=False)
        return axis


def _decimal_ticks(axis: Any) -> None:
    """A logarithmic axis whose ticks read 0.02 and not 2 x 10^-2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
