"""Picks a method by size: enumeration, then branch and bound, a thorough search, and at last the paper's method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from osscar_opt._typing import BoolArray
from osscar_opt.errors import CapabilityError, UnavailableError
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.registry import get_solver, solver_class

__all__ = ["Auto"]

_SUBSETS_ENUMERATED = 20_000
_ROWS_PROVED = 128
_GROUPS_PROVED, _ROWS_OF_GROUPS_PROVED = 32, 320
_WORK_OF_NODES = 2e9
"""Nodes times the cube of the rows: some ten seconds."""

_ROWS_SEARCHED = 2048


@dataclass(frozen=True)
class Auto(Solver):
    """Picks exhaustive, exact, search or osscar by the size of the problem, and says which and why.

    Of the problem that presolve leaves: `exhaustive` for up to 20,000 supports; else `exact` for up to 128 rows, or up
    to 320 rows in at most 32 groups, with a limit on its nodes that stands for some ten seconds (for more, ask for
    `exact` itself); else `search` for up to 2048 rows; else `osscar`. Bound, status and termination are those of the
    method picked.

    Parameters
    ----------
    certificate : bool
        Ask the method for a certificate if it is one that proves; the others have none.

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
    certificate: bool = False

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        picked, reason = _pick(problem, self.certificate)
        proposal = picked.propose(problem, start=start, deadline=deadline, report=report)
        return dataclasses.replace(
            proposal,
            stats={**proposal.stats, "method": picked.name, "reason": reason},
            message=f"auto picked {picked.name}: {reason}",
        )


def _pick(problem: Problem, certificate: bool) -> tuple[Solver, str]:
    """The first of the preferences that is installed and handles the problem."""
    for name, options, reason in _preferences(problem, {"certificate": certificate} if certificate else {}):
        try:
            found = solver_class(name)
        except UnavailableError:
            continue
        if problem.features <= found.handles:
            return get_solver(name, options), reason
    raise CapabilityError("no method handles this problem as it stands; leave presolve on.")


def _preferences(problem: Problem, proof: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    subsets, p, n = problem.limits.supports, problem.p, problem.n
    if subsets <= _SUBSETS_ENUMERATED:
        yield "exhaustive", proof, f"there are only {subsets} supports to enumerate"
    if p <= _ROWS_PROVED or (n <= _GROUPS_PROVED and p <= _ROWS_OF_GROUPS_PROVED):
        nodes = max(100, int(_WORK_OF_NODES / p**3))
        yield (
            "exact",
            {"node_limit": nodes},
            f"{n} groups of {p} rows can often be proved within {nodes} nodes",
        )
    if p <= _ROWS_SEARCHED:
        yield "search", {}, f"{p} rows are few enough for a thorough search"
    yield "osscar", {}, f"{p} rows are too many to search thoroughly or to enumerate"
    yield "magnitude_refit", {}, "no stronger method handles this problem"
