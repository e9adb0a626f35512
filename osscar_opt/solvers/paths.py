"""Paths: values for every number of groups kept, from one run of a method that removes groups one after another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from osscar_opt._typing import IntArray
from osscar_opt.errors import CapabilityError, SolverError
from osscar_opt.formulations.path import Path, path_of
from osscar_opt.formulations.presolve import REDUCTIONS, Presolved
from osscar_opt.formulations.presolve import presolve as run_presolve
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers._worker import Worker, attend
from osscar_opt.solvers.base import Deadline, Report, Solver
from osscar_opt.solvers.progress import Watcher
from osscar_opt.solvers.registry import get_solver

__all__ = ["path"]


def path(
    problem: Problem,
    method: str | Solver | type[Solver] = "greedy",
    *,
    presolve: bool | Collection[str] = True,
    progress: bool | None = None,
    **options: Any,
) -> Path:
    """Let a method remove all groups one after another, and value every support along the way.

    The method gives the order only; the values are recomputed, all from one Cholesky factorisation.  Limits are
    ignored; always_remove goes first and always_keep last.

    Parameters
    ----------
    problem : Problem
    method : str, Solver, or subclass of Solver, optional
    presolve, progress, **options
        As for `osscar_opt.solvers.referee.solve`.

    Raises
    ------
    CapabilityError
        If the method has no such order.
    SolverError
        If what it returns is not an order of the groups.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]])
    >>> path(problem, "magnitude_refit").objective(keep=2)
    0.5
    """
    solver = get_solver(method, options)
    unlimited = problem.with_limits(keep=None, budget=None, block_keep=None)
    wanted = tuple(REDUCTIONS) if presolve is True else presolve or ()
    presolved = run_presolve(unlimited, wanted if solver.presolve else ())
    if "unequal_groups" in presolved.problem.features - solver.handles:
        raise CapabilityError(
            f"method {solver.name!r} does not handle groups of unequal size; use method='greedy'."
        )
    order = _full_order(presolved, _removal_order(presolved.problem, solver, progress))
    turn = problem.always_keep[order].astype(int) - problem.always_remove[order]
    return path_of(problem, order[np.argsort(turn, kind="stable")], solver.name)


def _removal_order(problem: Problem, solver: Solver, progress: bool | None) -> IntArray:
    """Run the method in a worker, so that Ctrl-C ends it at once."""
    deadline, report = Deadline(), Report()
    watcher = Watcher(f"{solver.name} path", deadline, show=progress)
    worker = Worker(lambda: solver.removal_order(problem, deadline=deadline, report=report))
    try:
        interrupted = attend(worker, deadline, 0.0, lambda: watcher.look(report)) is not None
    finally:
        report.close()
        deadline.stop()
        worker.abandon()
        watcher.close()
    if interrupted:
        raise KeyboardInterrupt
    if worker.error is not None:
        raise worker.error
    order = worker.result
    if not isinstance(order, np.ndarray) or not np.array_equal(np.sort(order), np.arange(problem.n)):
        raise SolverError(f"method {solver.name!r} did not return an order of the {problem.n} groups.")
    return order.astype(np.int64)


def _full_order(presolved: Presolved, order: IntArray) -> IntArray:
    """Order over the groups as posed: those presolve removed, those left as the method says, those presolve kept."""
    nothing = np.zeros(presolved.problem.n, dtype=bool)
    kept, not_removed = presolved.lift_support(nothing), presolved.lift_support(~nothing)
    left = np.flatnonzero(not_removed & ~kept)
    return np.concatenate([np.flatnonzero(~not_removed), left[order], np.flatnonzero(kept)])
