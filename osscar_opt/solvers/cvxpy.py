"""Any solver that cvxpy finds, on the problem as a cvxpy model; what it says is recomputed, its bound a claim."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.errors import CapabilityError, OptionError, UnavailableError
from osscar_opt.formulations.models.backend import run_backend
from osscar_opt.formulations.models.conic import CvxpyModel, Form, cvxpy_model, require_posable
from osscar_opt.formulations.models.normal import normal_form
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination
from osscar_opt.solvers._backends import BACKENDS, OTHER, Asked, Backend, Told
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.selection import backward_selection
from osscar_opt.solvers.walk import Walk

__all__ = ["Cvxpy"]

_RELAXATIONS = ("relaxation", "sdp")
_NOTHING_TO_GAIN = 1e-13
_TIME_FOR_THE_SOLVER = 0.95
_TIME_LEFT_OVER = 0.1
"""A solver that leaves less than this part of its time has used it up."""

_UNKNOWN_GAP = 1e-4
"""Relative gap that solvers stop at when not told otherwise; subtracted where a solver's own bound cannot be read."""


@dataclass(frozen=True)
class Cvxpy(Solver):
    """Hands the problem, as a cvxpy model, to SCIP, Gurobi, Clarabel or any other solver that cvxpy finds.

    The weights of big-M come from the value of a greedy support with single swaps, which is also the first incumbent.
    The solver's z is rounded, what fits is added, and the objective recomputed. Its bound is claimed after subtracting
    what its tolerances may have gained (`osscar_opt.formulations.models.conic.CvxpyModel.allowance`); where a solver
    gives no bound, its optimal value less 1e-4 of it is, and the message says so. From a relaxation, the bound is
    computed from the solution, not taken from the solver, and the support is rounded and descended.

    A mixed-integer solver is of use up to some twenty groups and a few outputs. SCIP does not let other threads run
    while it works: progress is not shown, and only its own clock keeps the time limit.

    Parameters
    ----------
    solver : str
        As cvxpy calls it: "SCIP" (the package pyscipopt), "GUROBI" (gurobipy), or another mixed-integer solver that
        takes second-order cones or quadratic objectives; "CLARABEL" or "SCS" for the relaxations.
    form : {"auto", "perspective", "big_m", "relaxation", "sdp"}
        Of the model, see `osscar_opt.formulations.models.conic.cvxpy_model`; "auto" is the one that the solver is
        fastest with: big_m for Gurobi, relaxation for solvers without integers, perspective for the others.
    gap : float
        Gap at which the solver may stop, relative to the first incumbent's loss, but no smaller than the solver's
        tolerance: it would branch without end on what is only blurred.
    threads : int
        For solvers that take this number.
    verbose : bool
        Let the solver print.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> solution = problem.solve("cvxpy", solver="CLARABEL")
    >>> solution.kept, solution.bound_kind.value
    (array([1]), 'claimed')
    """

    name: ClassVar[str] = "cvxpy"
    requires: ClassVar[tuple[str, ...]] = ("cvxpy",)
    solver: str = "SCIP"
    form: Literal["auto", "perspective", "big_m", "relaxation", "sdp"] = "auto"
    gap: float = field(default=1e-6, metadata={"least": 0.0})
    threads: int = field(default=1, metadata={"least": 1})
    verbose: bool = False

    def propose(
        self, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        name = self.solver.upper()
        backend = _found(name)
        form: Form = backend.default if self.form == "auto" else self.form  # type: ignore[assignment]
        _require_able(name, backend, form)
        require_posable(problem)
        if backend.admit is not None:
            backend.admit(_columns(problem, form))
        walk = _incumbent(problem, start, deadline, report)
        value = problem.value(walk.best_support)
        if value - problem.base <= _NOTHING_TO_GAIN * (problem.constant - problem.base):
            return Proposal(walk.best_support, lower_bound=problem.base)
        if deadline.expired():
            return Proposal(walk.best_support, termination=Termination.TIME_LIMIT)
        model = cvxpy_model(problem, form, value=value)
        asked = Asked(
            seconds=_TIME_FOR_THE_SOLVER * deadline.remaining(),
            gap=max(self.gap * (value - problem.base) / model.unit, backend.tolerance),
            threads=self.threads,
            verbose=self.verbose,
        )
        if deadline.expired():
            return Proposal(walk.best_support, termination=Termination.TIME_LIMIT)
        began = time.monotonic()
        told, status = backend.run(lambda: _run(name, backend, model, asked))
        in_time = deadline.remaining() >= _TIME_LEFT_OVER * asked.seconds  # both are inf without a limit
        seconds = time.monotonic() - began
        return _Outcome(name, backend, model, told, status, seconds, in_time).proposal(walk)


def _run(name: str, backend: Backend, model: CvxpyModel, asked: Asked) -> tuple[Told, str]:
    raw, status = run_backend(
        model.normalised(), name, options=backend.options(asked), verbose=asked.verbose, mend=backend.mend
    )
    return backend.told(raw), status


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What a solver left behind, and what follows from it."""

    name: str
    backend: Backend
    model: CvxpyModel
    told: Told
    status: str
    seconds: float  # of cvxpy's compilation and the solver
    in_time: bool

    def proposal(self, walk: Walk) -> Proposal:
        bound, remark = self._bound()
        if bound is not None:
            bound = max(bound, walk.problem.base)
        stats: dict[str, Any] = {
            "solver": self.name,
            "form": self.model.form,
            "solver_status": self.told.status or self.status,
            "solver_seconds": self.seconds,
        }
        if self.told.nodes is not None:
            stats["nodes"] = self.told.nodes
        if self.model.support_variable.value is not None:
            support = self.model.support()
            stats["solver_value"] = float(self.model.problem.objective.value)
            stats["solver_support_value"] = walk.problem.value(support)
            walk.move_to(support)
            walk.record()
            if self.model.form in _RELAXATIONS:
                walk.descend()
        termination = self.told.termination or self._termination()
        if termination is not Termination.COMPLETED and not remark:
            remark = f"{self.name} stopped with status {stats['solver_status']!r}"
        return Proposal(
            walk.best_support, lower_bound=bound, stats=stats, termination=termination, message=remark
        )

    def _bound(self) -> tuple[float | None, str]:
        """Lower bound to claim, if any, and a remark on where it is from if that is unusual."""
        model = self.model
        solved = model.support_variable.value is not None
        if model.form in _RELAXATIONS:
            return (model.lower_bound() if solved else None), ""
        allowance = model.allowance(self.backend.tolerance)
        if self.told.bound is not None:
            return model.offset + model.unit * self.told.bound - allowance, ""
        if self.status != "optimal" or not solved:
            return None, ""
        found = float(model.excess.value)
        claimed = model.offset + model.unit * (found - _UNKNOWN_GAP * abs(found)) - allowance
        remark = f"the bound is the optimal value that {self.name} reports, less {_UNKNOWN_GAP:g} of it"
        return claimed, remark

    def _termination(self) -> Termination:
        """From cvxpy's status, for solvers that are not asked themselves."""
        enough = ("optimal", "optimal_inaccurate") if self.model.form in _RELAXATIONS else ("optimal",)
        if self.status in enough:
            return Termination.COMPLETED
        if not self.in_time:
            return Termination.TIME_LIMIT
        return Termination.ITERATION_LIMIT if self.status == "user_limit" else Termination.FAILED


def _incumbent(problem: Problem, start: BoolArray | None, deadline: Deadline, report: Report) -> Walk:
    greedy = backward_selection(problem, deadline=deadline, report=report)
    walk = Walk(problem, greedy.support, deadline=deadline, report=report, value=greedy.value)
    walk.descend()
    if start is not None:
        walk.move_to(start)
        walk.descend()
    return walk


def _found(name: str) -> Backend:
    """What is known of a solver, once it is certain that it is installed."""
    backend = BACKENDS.get(name, OTHER)
    if backend.package and importlib.util.find_spec(backend.package) is not None:
        return backend
    import cvxpy

    installed = cvxpy.installed_solvers()
    if name in installed:
        return backend
    here = f"installed are {', '.join(sorted(installed))}"
    if name in cvxpy.settings.SOLVERS:
        package = f"; run: pip install {backend.package}" if backend.package else ""
        raise UnavailableError(f"solver {name} is not installed{package}; {here}.")
    raise OptionError(f"there is no solver {name!r} in cvxpy; {here}.")


def _require_able(name: str, backend: Backend, form: Form) -> None:
    if form in backend.forms or (not backend.forms and _solves(name, form)):
        return
    import cvxpy

    able = [other for other in sorted(cvxpy.installed_solvers()) if _solves(other, form)]
    raise CapabilityError(
        f"solver {name} cannot solve models of the form {form!r}; installed solvers that can: "
        f"{', '.join(able) or 'none'}."
    )


def _solves(name: str, form: Form) -> bool:
    """Whether cvxpy would give the solver a model of this form; tried on the smallest there is."""
    import cvxpy

    smallest = Problem(np.eye(2), np.ones((2, 1)), groups=2, keep=1)
    try:
        cvxpy_model(smallest, form, split="eigenvalue").normalised().get_problem_data(name)
    except cvxpy.SolverError:
        return False
    return True


def _columns(problem: Problem, form: Form) -> int:
    """Columns of a model as Gurobi gets it; each entry of a cone becomes one."""
    rows, outputs = (int(number) for number in normal_form(problem).optimum.shape)
    if form == "big_m":
        return problem.n + rows * outputs
    return 4 * problem.n + 3 * rows * outputs + 3 * outputs
