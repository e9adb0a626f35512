"""A solver of one's own: random exchanges kept when they help, run beside the library's on one hard instance.

Shows what a solver sees and returns, how it reports what it has found, and that the referee stops it in time:

    python examples/own_solver.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt import Problem
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.testing import check_solver


@dataclass(frozen=True)
class RandomExchange(Solver):
    """Exchanges a random kept group for a random removed one, as long as it helps."""

    name: ClassVar[str] = "random_exchange"
    seed: int = 0
    rounds: int = 300

    def propose(
        self, problem: Problem, *, start: np.ndarray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        rng = np.random.default_rng(self.seed)
        nothing = np.zeros(problem.n, dtype=bool)
        best = problem.limits.fill(rng.permutation(problem.n), nothing) if start is None else start
        value = problem.value(best)
        report.incumbent(best, value)  # from here on a stop loses nothing
        for _ in range(self.rounds):
            if deadline.expired():
                break
            trial = best.copy()
            if best.any():
                trial[rng.choice(np.flatnonzero(best))] = False
            trial = problem.limits.fill(rng.permutation(problem.n), trial)
            trial_value = problem.value(trial)
            if trial_value < value:
                best, value = trial, trial_value
                report.incumbent(best, value)
        return Proposal(best)


def main() -> None:
    check_solver(RandomExchange())  # the kit that tests the library's own solvers
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 40)) @ rng.normal(size=(40, 40))
    problem = Problem.from_data(inputs, rng.normal(size=(40, 6)), keep=15)
    for method in [RandomExchange(), RandomExchange(rounds=3000), "greedy", "search"]:
        solution = problem.solve(method, time_limit=10)
        print(f"{solution.relative:8.3%}  {method}")


if __name__ == "__main__":
    main()
