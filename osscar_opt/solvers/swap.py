"""Single swaps to a local optimum: no exchange of one kept for one removed group improves what this returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from osscar_opt._typing import BoolArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.linalg.kernels import Precision, make_kernels
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import backward_selection
from osscar_opt.solvers.walk import Walk

__all__ = ["Swap"]


@dataclass(frozen=True)
class Swap(Solver):
    """Greedy, then the best exchanges of single groups until none improves.

    All ``|S| x |P|`` exchanges are valued exactly together, by elementwise work on two blocks of the tableau
    (`osscar_opt.linalg.swaps.swap_changes`). Of the improving ones up to ``per_evaluation`` are made before the
    next evaluation, each only if it still improves at its turn; 1 makes it steepest descent.

    Parameters
    ----------
    per_evaluation : int
        Exchanges made per evaluation of all of them.
    device : str
        "cpu" (numpy), or a torch device such as "cuda".
    precision : {"float64", "float32"}
        Of the tableau.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> solution = problem.solve("swap", start=[True, False])
    >>> solution.kept, solution.termination.value
    (array([1]), 'local_optimum')
    """

    name: ClassVar[str] = "swap"
    unhelpful: ClassVar[frozenset[str]] = frozenset({"rank"})  # the tableau reads G once, and in parts
    per_evaluation: int = field(default=16, metadata={"least": 1})
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        kernels = make_kernels(self.device, self.precision)
        if start is None:
            greedy = backward_selection(
                problem, deadline=deadline, report=report, kernels=kernels, goes_on=True
            )
            if not greedy.in_time:
                return Proposal(greedy.support, stats=greedy.stats, termination=Termination.TIME_LIMIT)
            walk = Walk.after(problem, greedy, deadline=deadline, report=report, kernels=kernels)
        else:
            walk = Walk(problem, start, deadline=deadline, report=report, kernels=kernels)
        optimal = walk.descend(self.per_evaluation)
        termination = Termination.LOCAL_OPTIMUM if optimal else Termination.TIME_LIMIT
        return Proposal(walk.best_support, stats=walk.stats, termination=termination)
