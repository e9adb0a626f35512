"""A random support: what any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import ranked_support
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Solver):
    """Takes groups in random order, each that still fits every limit; the weights are refitted.

    Under a plain keep, every support of that size is equally likely.

    Parameters
    ----------
    seed : int, optional
        Seed of ``numpy.random.default_rng``.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem(np.eye(4), np.ones((4, 1)), keep=2)
    >>> len(problem.solve("random", seed=1).kept)
    2
    """

    name: ClassVar[str] = "random"
    handles: ClassVar[frozenset[str]] = frozenset({"budget", "blocks", "unequal_groups", "forced"})
    presolve: ClassVar[bool] = False

    seed: int = field(default=0, metadata={"least": 0})

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        return Proposal(ranked_support(problem, np.random.default_rng(self.seed).random(problem.n)))
