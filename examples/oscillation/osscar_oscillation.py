"""Strategic oscillation (Glover 1977), a solver for osscar_opt in a package of its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt.solvers.base import Proposal, Solver
from osscar_opt.solvers.selection import open_tableau


@dataclass(frozen=True)
class Oscillation(Solver):
    """Adds groups beyond the limit and takes the cheapest away again, further out each time that does not help."""

    name: ClassVar[str] = "oscillation"
    handles: ClassVar[frozenset[str]] = frozenset({"unequal_groups"})
    depth: int = 8

    def propose(self, problem, *, start, deadline, report):
        begin = np.ones(problem.n, dtype=bool) if start is None else start
        level = problem.value(begin)
        tableau = open_tableau(problem, begin, "both")
        best, value, beyond = None, 0.0, 0
        while beyond <= self.depth and not (best is not None and deadline.expired()):
            for _ in range(min(beyond, problem.n - problem.keep)):
                tableau.move(int(tableau.gains().argmax()))
            while tableau.support.sum() > problem.keep:
                tableau.move(int(tableau.losses().argmin()))
            if best is None or level + tableau.change < value - 1e-9 * abs(value):
                best, value, beyond = tableau.support.copy(), level + tableau.change, 0
                report.incumbent(best, value)
            beyond += 1
        return Proposal(best)
