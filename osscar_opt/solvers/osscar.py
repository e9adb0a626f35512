"""OSSCAR (Meng et al. 2024, arXiv 2403.12983): staged removal, then a local search that exchanges many groups."""

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

__all__ = ["Osscar"]


@dataclass(frozen=True)
class Osscar(Solver):
    """The two phases of the OSSCAR paper, on an exact tableau.

    1. *Staged removal*: remove the ``stage`` groups of least loss, refit, repeat until the limits hold.
    2. *Local search*: remove the ``exchange`` cheapest groups and add as many of the best; keep what improves,
       otherwise go back and halve ``exchange``; stop when it falls below one or after ``rounds`` rounds.

    Two differences to the published code: every group of an exchange is chosen by its exact value at its turn rather
    than by one ranking for all, which costs nothing when a pivot updates all values (so is every group of the first
    phase at stage = 1, the default); and a round costs 2 x exchange pivots, as many again where it is undone, rather
    than an inversion of the whole matrix.

    Parameters
    ----------
    stage : int
        Groups removed per ranking in the first phase; 1 is exact greedy. The published code removes 10.
    exchange : int
        Groups exchanged at once when the local search begins.
    rounds : int
        Most rounds of local search; 0 leaves the second phase out.
    device : str
        "cpu" (numpy), or a torch device such as "cuda".
    precision : {"float64", "float32"}
        Of the tableau.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> problem.solve("osscar", exchange=1).kept
    array([1])
    """

    name: ClassVar[str] = "osscar"
    stage: int = field(default=1, metadata={"least": 1})
    exchange: int = field(default=16, metadata={"least": 0})
    rounds: int = field(default=60, metadata={"least": 0})
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        kernels = make_kernels(self.device, self.precision)
        value, stats = None, {}
        if start is None:
            greedy = backward_selection(
                problem, deadline=deadline, report=report, stage=self.stage, kernels=kernels
            )
            if not greedy.in_time:
                return Proposal(greedy.support, stats=greedy.stats, termination=Termination.TIME_LIMIT)
            start, value, stats = greedy.support, greedy.value, greedy.stats
        walk = Walk(problem, start, deadline=deadline, report=report, value=value, kernels=kernels)
        termination, rounds = self._local_search(walk)
        stats |= {"rounds": rounds, "exchanges": walk.exchanges, "pivots": walk.tableau.pivots}
        return Proposal(walk.best_support, stats=stats, termination=termination)

    def _local_search(self, walk: Walk) -> tuple[Termination, int]:
        kept, removed = int(walk.support.sum()), int((~walk.support).sum())
        count, rounds = min(self.exchange, kept, removed), 0
        while count >= 1:
            if rounds == self.rounds:
                return Termination.ITERATION_LIMIT, rounds
            if walk.deadline.expired():
                return Termination.TIME_LIMIT, rounds
            before = walk.support.copy()
            walk.exchange(count)
            rounds += 1
            if walk.record():
                walk.exchanges += count
            else:
                walk.move_to(before)
                count //= 2
        return Termination.LOCAL_OPTIMUM, rounds
