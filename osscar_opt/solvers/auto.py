"""Picks a method by size: enumeration where that is quick, then a thorough search, then the paper's method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from osscar_opt._typing import BoolArray
from osscar_opt.errors import CapabilityError, UnavailableError
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.registry import solver_class

__all__ = ["Auto"]

_SUBSETS_ENUMERATED = 200_000
_ROWS_SEARCHED = 2048


@dataclass(frozen=True)
class Auto(Solver):
    """Picks exhaustive, search or osscar by the size of the problem, and says which and why.

    Of the problem that presolve leaves: `exhaustive` for up to 200,000 supports, else `search` for up to 2048 rows,
    else `osscar`; each with its default options. Bound, status and termination are those of the method picked.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt import Problem
    >>> solution = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).solve("auto")
    >>> solution.stats["method"], solution.message
    ('exhaustive', 'auto picked exhaustive: there are only 3 supports to enumerate.')
    """

    name: ClassVar[str] = "auto"
    proves: ClassVar[bool] = True

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        picked, reason = _pick(problem)
        proposal = picked.propose(problem, start=start, deadline=deadline, report=report)
        return dataclasses.replace(
            proposal,
            stats={**proposal.stats, "method": picked.name, "reason": reason},
            message=f"auto picked {picked.name}: {reason}",
        )


def _pick(problem: Problem) -> tuple[Solver, str]:
    """The first of the preferences that is installed and handles the problem."""
    for name, reason in _preferences(problem):
        try:
            found = solver_class(name)
        except UnavailableError:
            continue
        if problem.features <= found.handles:
            return found(), reason
    raise CapabilityError("no method handles this problem as it stands; leave presolve on.")


def _preferences(problem: Problem) -> Iterator[tuple[str, str]]:
    subsets = problem.limits.supports
    if subsets <= _SUBSETS_ENUMERATED:
        yield "exhaustive", f"there are only {subsets} supports to enumerate"
    if problem.p <= _ROWS_SEARCHED:
        yield "search", f"{problem.p} rows are few enough for a thorough search"
    yield "osscar", f"{problem.p} rows are too many to search thoroughly or to enumerate"
    yield "magnitude_refit", "no stronger method handles this problem"
