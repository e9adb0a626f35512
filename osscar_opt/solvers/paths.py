"""Paths: values for every number of groups kept, from one run of a method that removes groups one after another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from osscar_opt._typing import IntArray
from osscar_opt.errors import CapabilityError, SolverError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.path import Path, path_of
from osscar_opt.formulations.presolve import Presolved
from osscar_opt.formulations.presolve import presolve as run_presolve
from osscar_opt.formulations.problem import Problem
from osscar_opt.solvers._worker import Worker, attend
from osscar_opt.solvers.base import Deadline, Report, Solver
from osscar_opt.solvers.progress import Watcher
from osscar_opt.solvers.registry import default_reductions, get_solver

__all__ = ["path"]


def path(
    problem: Problem,
    method: str | Solver | type[Solver] = "greedy",
    *,
    keep: int = 0,
    presolve: bool | Collection[str] = True,
    progress: bool | None = None,
    **options: Any,
) -> Path:
    """Let a method remove groups one after another, and value every support along the way.

    The method gives the order only; the values are recomputed, all from one Cholesky factorisation.  Limits are
    ignored; always_remove goes first and always_keep last.

    Parameters
    ----------
    problem : Problem
    method : str, Solver, or subclass of Solver, optional
    keep : int, optional
        Where to stop: the path is that down to so many groups kept, and no more of it is computed than is needed.
    presolve, progress, **options
        As for `osscar_opt.solvers.referee.solve`.

    Raises
    ------
    InputError
        If keep is out of range.
    CapabilityError
        If the method has no such order.
    SolverError
        If what it returns is not an order of the groups.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]])
    >>> path(problem, "magnitude_refit").objective(keep=2)
    0.5
    >>> path(problem, "magnitude_refit", keep=2).order
    array([0])
    """
    least = _validate.count(keep, "keep", problem.n)
    solver = get_solver(method, options)
    return path_of(problem, _order(problem, solver, least, presolve, progress), solver.name)


def _order(
    problem: Problem, solver: Solver, keep: int, presolve: bool | Collection[str], progress: bool | None
) -> IntArray:
    """The first n - keep groups to go; what presolve allocates is given back with the return."""
    unlimited = problem.with_limits(keep=None, budget=None, block_keep=None)
    wanted = default_reductions(solver) if presolve is True else presolve or ()
    presolved = run_presolve(unlimited, wanted if solver.presolve else ())
    if "unequal_groups" in presolved.problem.features - solver.handles:
        raise CapabilityError(
            f"method {solver.name!r} does not handle groups of unequal size; use method='greedy'."
        )
    order = _full_order(
        presolved, _removal_order(presolved.problem, solver, _left(presolved, keep), progress)
    )
    turn = problem.always_keep[order].astype(int) - problem.always_remove[order]
    return order[np.argsort(turn, kind="stable")][: problem.n - keep]


def _left(presolved: Presolved, keep: int) -> int:
    """How many groups of the presolved problem are left where `keep` of all groups are."""
    if "forced" in presolved.problem.features:
        return (
            0  # the method does not know that these groups go first or last: they are moved there afterwards
        )
    kept = presolved.lift_support(np.zeros(presolved.problem.n, dtype=bool))
    return min(max(keep - int(kept.sum()), 0), presolved.problem.n)


def _removal_order(problem: Problem, solver: Solver, keep: int, progress: bool | None) -> IntArray:
    """Run the method in a worker, so that Ctrl-C ends it at once."""
    deadline, report = Deadline(), Report()
    watcher = Watcher(f"{solver.name} path", deadline, show=progress)
    worker = Worker(lambda: solver.removal_order(problem, keep=keep, deadline=deadline, report=report))
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
    order, due = worker.result, problem.n - keep
    if not (isinstance(order, np.ndarray) and order.ndim == 1 and np.issubdtype(order.dtype, np.integer)):
        raise SolverError(f"method {solver.name!r} did not return an order of the {problem.n} groups.")
    if (
        len(order) < due
        or not np.isin(order, np.arange(problem.n)).all()
        or len(np.unique(order)) < len(order)
    ):
        raise SolverError(
            f"method {solver.name!r} did not return an order of the {problem.n} groups, or of the {due} that go."
        )
    return order[:due].astype(np.int64)


def _full_order(presolved: Presolved, order: IntArray) -> IntArray:
    """Order over the groups as posed: those presolve removed, those left as the method says, those presolve kept."""
    nothing = np.zeros(presolved.problem.n, dtype=bool)
    kept, not_removed = presolved.lift_support(nothing), presolved.lift_support(~nothing)
    left = np.flatnonzero(not_removed & ~kept)
    return np.concatenate([np.flatnonzero(~not_removed), left[order], np.flatnonzero(kept)])
