"""What the other 0-1 pruning problems return: the numbers and words of a `Solution`, for another object.

`Solution` belongs to a layer's quadratic program.  Problems of another shape (weight masks, forests, counts) say what
they found with the same statuses, terminations and kinds of bound, under the same names, and each class adds what was
chosen.  As with `Solution`, the objective is recomputed from the problem, and a bound is "certified" only where this
library worked it out itself, from multipliers or from separate proofs, and not merely read it off a solver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osscar_opt.errors import SolverError
from osscar_opt.formulations.solution import BoundKind, Status, Termination, relative_gap

__all__ = ["Bound", "Outcome", "judged"]

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Bound:
    """A number that no feasible choice goes below, and how far to trust it.

    Examples
    --------
    >>> Bound().kind.value
    'none'
    """

    value: float = -math.inf
    kind: BoundKind = BoundKind.NONE

    def better(self, other: Bound) -> Bound:
        """The higher of the two; of equal ones the one that was checked.

        Examples
        --------
        >>> Bound(1.0, BoundKind.CLAIMED).better(Bound(1.0, BoundKind.CERTIFIED)).kind.value
        'certified'
        """
        order = (BoundKind.NONE, BoundKind.CLAIMED, BoundKind.CERTIFIED)
        return max(self, other, key=lambda bound: (bound.value, order.index(bound.kind)))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Outcome:
    """What a method found for a problem that is not a layer's quadratic program.

    Attributes
    ----------
    method : str
    problem_hash : str
        Of the data of the problem: the key under which results are compared.
    objective : float
        Recomputed from the choice.
    bound : float
        No feasible choice goes below it; -inf if unknown.
    bound_kind : BoundKind
    status : Status
    termination : Termination
    message : str
    options, stats : mapping
    solve_time : float
        Seconds.
    rounding : float
        Differences of objectives below this are none.

    Examples
    --------
    >>> outcome = Outcome(method="toy", problem_hash="", objective=2.0, bound=1.0, bound_kind=BoundKind.CLAIMED)
    >>> outcome.gap, outcome
    (0.5, Outcome(toy, objective=2, gap=0.5, feasible, completed))
    """

    method: str
    problem_hash: str
    objective: float
    bound: float = -math.inf
    bound_kind: BoundKind = BoundKind.NONE
    status: Status = Status.FEASIBLE
    termination: Termination = Termination.COMPLETED
    message: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    solve_time: float = 0.0
    rounding: float = 0.0

    @property
    def gap(self) -> float:
        """``(objective - bound) / abs(objective)``: 0 when they meet up to rounding, inf without a bound.

        Examples
        --------
        >>> Outcome(method="toy", problem_hash="", objective=2.0).gap
        inf
        """
        return relative_gap(self.objective, self.bound, 1e-12 * abs(self.objective) + self.rounding)

    def require_objective(self, recomputed: float) -> None:
        """Compare the objective with what it was recomputed to be.

        Raises
        ------
        SolverError
            If the two differ by more than rounding.

        Examples
        --------
        >>> Outcome(method="toy", problem_hash="", objective=2.0).require_objective(2.0)
        """
        if abs(recomputed - self.objective) > 1e-9 * abs(recomputed) + self.rounding:
            raise SolverError(f"the objective is {recomputed:.12g}, not {self.objective:.12g} as stated.")

    def to_dict(self) -> dict[str, Any]:
        """The numbers and words, as JSON can hold them, under the names of `Solution.to_dict`.

        Examples
        --------
        >>> Outcome(method="toy", problem_hash="", objective=2.0).to_dict()["bound"] is None
        True
        """
        return {
            "method": self.method,
            "options": _jsonable(self.options),
            "objective": _jsonable(self.objective),
            "bound": _jsonable(self.bound),
            "bound_kind": str(self.bound_kind),
            "gap": _jsonable(self.gap),
            "status": str(self.status),
            "termination": str(self.termination),
            "message": self.message,
            "solve_time": self.solve_time,
            "stats": _jsonable(self.stats),
            "problem_hash": self.problem_hash,
        }

    def __repr__(self) -> str:
        gap = f", gap={self.gap:.2g}" if math.isfinite(self.gap) else ""
        return (
            f"{type(self).__name__}({self.method}, objective={self.objective:.6g}{gap}, {self.status}, "
            f"{self.termination})"
        )


def judged(objective: float, bound: Bound, rounding: float) -> dict[str, Any]:
    """Fields of an `Outcome` that follow from its objective and a bound.

    Raises
    ------
    SolverError
        If the bound is above the objective, so that one of the two is wrong.

    Examples
    --------
    >>> judged(1.0, Bound(1.0, BoundKind.CLAIMED), 0.0)["status"].value
    'optimal'
    """
    slack = _TOLERANCE * abs(objective) + rounding
    if bound.value > objective + slack:
        raise SolverError(
            f"the bound {bound.value:.12g} is above the objective {objective:.12g}: one of them is wrong; "
            "please report the problem."
        )
    met = bound.value >= objective - slack
    return {
        "objective": objective,
        "bound": min(bound.value, objective),
        "bound_kind": bound.kind,
        "status": Status.OPTIMAL if met else Status.FEASIBLE,
        "rounding": rounding,
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
