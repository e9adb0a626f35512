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
    2. *Local search*: exchange many groups at once. Remove the ``exchange`` cheapest and add the best; or add the
       best and remove the cheapest. Keep what improves, otherwise go back; where neither improves, halve
       ``exchange``; then exchange single groups until no such exchange improves (all are valued together by
       inner products of the tableau); then try twice and four times ``exchange``. Begin anew where that helped.

    Differences to the published code: every group of an exchange is chosen by its exact value at its turn rather
    than by one ranking for all, so that an exchange is judged by its exact joint value (so is every group of the first
    phase at stage = 1, the default); a round costs 2 x exchange columns of the tableau rather than an inversion of the
    whole matrix, and nothing to take back; and the result is a local optimum of single exchanges. There is
    no chance in it, and no cycle, since every step improves.

    Parameters
    ----------
    stage : int
        Groups removed per ranking in the first phase; 1 is exact greedy. The published code removes 10.
    exchange : int
        Groups exchanged at once when the local search begins; 0 leaves single exchanges alone.
    rounds : int
        Most sizes of exchange tried, each both ways; 0 leaves the second phase out.
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
    unhelpful: ClassVar[frozenset[str]] = frozenset({"rank"})  # the tableau reads G once, and in parts
    stage: int = field(default=1, metadata={"least": 1})
    exchange: int = field(default=16, metadata={"least": 0})
    rounds: int = field(default=200, metadata={"least": 0})
    device: str = "cpu"
    precision: Precision = "float64"

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        kernels = make_kernels(self.device, self.precision)
        if start is None:
            greedy = backward_selection(
                problem,
                deadline=deadline,
                report=report,
                stage=self.stage,
                kernels=kernels,
                goes_on=self.rounds > 0,
            )
            if not greedy.in_time:
                return Proposal(greedy.support, stats=greedy.stats, termination=Termination.TIME_LIMIT)
            if self.rounds == 0:
                return Proposal(greedy.support, stats=greedy.stats, termination=Termination.COMPLETED)
            walk = Walk.after(problem, greedy, deadline=deadline, report=report, kernels=kernels)
        else:
            walk = Walk(problem, start, deadline=deadline, report=report, kernels=kernels)
        termination, rounds = walk.improve(self.exchange, self.rounds)
        stats = {"rounds": rounds, **walk.stats}
        return Proposal(walk.best_support, stats=stats, termination=termination)
