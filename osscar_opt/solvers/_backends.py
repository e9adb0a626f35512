"""What each solver behind cvxpy calls its options, and where it keeps what it says about its run.

cvxpy has no common names for options, and its statuses say little: after a time limit it is ``optimal_inaccurate`` for
SCIP and ``user_limit`` for Gurobi, whatever the incumbent is worth.  So each solver is asked itself.  A solver that is
not listed here is run without options; it must then be stopped by the referee, and no bound of its own is known.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from osscar_opt.errors import CapabilityError, UnavailableError
from osscar_opt.formulations.solution import Termination

__all__ = ["BACKENDS", "OTHER", "Asked", "Backend", "Told"]

Result = TypeVar("Result")

_RELAXATIONS = frozenset({"relaxation", "sdp"})
_INTEGER = frozenset({"perspective", "big_m", "relaxation"})

_LICENCE_COLUMNS = 200
"""Columns that the licence within the gurobipy package allows where anything is quadratic (2000 where nothing is)."""


@dataclass(frozen=True)
class Asked:
    """What a run is to keep to: seconds (inf for no limit), an absolute gap in normal form, threads."""

    seconds: float
    gap: float
    threads: int
    verbose: bool


@dataclass(frozen=True)
class Told:
    """What a solver says of its run.

    Attributes
    ----------
    status : str
        In its own words.
    termination : Termination or None
        None where only cvxpy's status is known.
    bound : float or None
        On the model's ``excess``, as it stands.
    nodes : int or None
    """

    status: str
    termination: Termination | None = None
    bound: float | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Backend:
    """A solver behind cvxpy.

    Attributes
    ----------
    package : str
        Import name; "" if it is not known.
    forms : frozenset of str
        Forms of the model that it solves; empty if that is to be tried.
    default : str
        The form that it is fastest with.
    tolerance : float
        By which it may break a constraint.
    options : callable
    told : callable
        Reads what the solver returned.
    mend : callable or None
        Corrects what the solver returned before cvxpy reads it.
    admit : callable or None
        Raises CapabilityError if a model of so many columns is refused.
    one_thread : bool
        Whether all runs of the process must share a thread.
    """

    package: str
    forms: frozenset[str]
    default: str
    tolerance: float
    options: Callable[[Asked], dict[str, Any]]
    told: Callable[[Any], Told]
    mend: Callable[[Any], None] | None = None
    admit: Callable[[int], None] | None = None
    one_thread: bool = False

    def run(self, work: Callable[[], Result]) -> Result:
        """Do the work in the thread it has to be done in."""
        return _the_thread().submit(work).result() if self.one_thread else work()


@functools.cache
def _the_thread() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="cvxpy backend")


# ------------------------------------------------------------------------------------------------------------- SCIP

_SCIP_ENDS = {
    "optimal": Termination.COMPLETED,
    "gaplimit": Termination.COMPLETED,  # the gap that was asked for
    "timelimit": Termination.TIME_LIMIT,
    "memlimit": Termination.MEMORY_LIMIT,
    "nodelimit": Termination.NODE_LIMIT,
    "totalnodelimit": Termination.NODE_LIMIT,
    "userinterrupt": Termination.INTERRUPTED,
}
_SCIP_TOLERANCE = 1e-7  # at 1e-8 and below its linear programs ask for tolerances that they cannot keep


def _scip_options(asked: Asked) -> dict[str, Any]:
    parameters = {
        "limits/gap": 0.0,
        "limits/absgap": asked.gap,
        "numerics/feastol": _SCIP_TOLERANCE,
        "lp/threads": asked.threads,
    }
    if math.isfinite(asked.seconds):
        parameters["limits/time"] = asked.seconds
    return {"scip_params": parameters}


def _scip_mend(raw: Any) -> None:
    """Keep an incumbent although SCIP was interrupted or ran out of memory: cvxpy would drop it."""
    from cvxpy.settings import OPTIMAL_INACCURATE, SOLUTION_PRESENT

    if "primal" in raw and raw["status"] not in SOLUTION_PRESENT:
        raw["status"] = OPTIMAL_INACCURATE


def _scip_told(raw: Any) -> Told:
    model, status = raw["model"], str(raw["scip_status"])
    bound = float(model.getDualbound())
    return Told(
        status,
        _SCIP_ENDS.get(status, Termination.FAILED),
        bound if abs(bound) < model.infinity() else None,
        int(model.getNTotalNodes()),
    )


# ----------------------------------------------------------------------------------------------------------- Gurobi

_GUROBI_ENDS = {
    2: ("OPTIMAL", Termination.COMPLETED),
    7: ("ITERATION_LIMIT", Termination.ITERATION_LIMIT),
    8: ("NODE_LIMIT", Termination.NODE_LIMIT),
    9: ("TIME_LIMIT", Termination.TIME_LIMIT),
    11: ("INTERRUPTED", Termination.INTERRUPTED),
    16: ("WORK_LIMIT", Termination.TIME_LIMIT),
    17: ("MEM_LIMIT", Termination.MEMORY_LIMIT),
}
_GUROBI_NOT_RUN = 1
_GUROBI_TOLERANCE = 1e-9
_GUROBI_TOO_LARGE = 10010


def _gurobi_environment(verbose: bool) -> Any:
    import gurobipy

    try:
        return gurobipy.Env(params={"OutputFlag": int(verbose)})  # or it prints its licence
    except gurobipy.GurobiError as error:
        raise UnavailableError(
            f"Gurobi does not start: {str(error).rstrip('.')}; use solver='SCIP'."
        ) from error


def _gurobi_options(asked: Asked) -> dict[str, Any]:
    options = {
        "env": _gurobi_environment(asked.verbose),
        "MIPGap": 0.0,
        "MIPGapAbs": asked.gap,
        "Threads": asked.threads,
        "FeasibilityTol": _GUROBI_TOLERANCE,
        "IntFeasTol": _GUROBI_TOLERANCE,
        "OptimalityTol": _GUROBI_TOLERANCE,
        "BarQCPConvTol": 1e-10,  # at the default, 1e-6, bounds came out 3e-5 above the optimum
    }
    if math.isfinite(asked.seconds):
        options["TimeLimit"] = asked.seconds
    return options


def _gurobi_admit(columns: int) -> None:
    """Ask Gurobi for a solution of an empty quadratic model of that size, which a small licence refuses."""
    if columns <= _LICENCE_COLUMNS:
        return
    import gurobipy

    with _gurobi_environment(verbose=False) as environment, gurobipy.Model(env=environment) as model:
        variables = model.addMVar(columns)
        model.setObjective(variables @ variables)
        _gurobi_run(model, columns)


def _gurobi_run(model: Any, columns: int) -> None:
    import gurobipy

    try:
        model.optimize()
    except gurobipy.GurobiError as error:
        if error.errno == _GUROBI_TOO_LARGE:
            raise CapabilityError(
                f"the model has {columns} columns or more, and this licence of Gurobi (the one within gurobipy) "
                f"allows {_LICENCE_COLUMNS} where the objective is quadratic; use solver='SCIP', or a full licence."
            ) from None
        raise


def _gurobi_told(raw: Any) -> Told:
    model = raw["model"]
    if model.Status == _GUROBI_NOT_RUN:  # cvxpy drops the exception; asked again, Gurobi repeats it
        _gurobi_run(model, model.NumVars)
    status, end = _GUROBI_ENDS.get(model.Status, (f"status {model.Status}", Termination.FAILED))
    bound = float(model.ObjBound) if model.IsMIP else math.inf
    return Told(status, end, bound if abs(bound) < 1e100 else None, int(model.NodeCount))


# ----------------------------------------------------------------------------------------- solvers of the relaxations


def _clarabel_options(asked: Asked) -> dict[str, Any]:
    limit = {"time_limit": asked.seconds} if math.isfinite(asked.seconds) else {}
    return {"accept_unknown": True, "max_threads": asked.threads, **limit}


def _scs_options(asked: Asked) -> dict[str, Any]:
    return {"time_limit_secs": asked.seconds} if math.isfinite(asked.seconds) else {}


def _silent(raw: Any) -> Told:
    return Told("")


BACKENDS: Mapping[str, Backend] = {
    "SCIP": Backend(
        "pyscipopt",
        _INTEGER,
        "perspective",
        _SCIP_TOLERANCE,
        _scip_options,
        _scip_told,
        mend=_scip_mend,
        one_thread=True,  # SCIP 10.0 (its library CppAD) numbers the threads it meets, and crashes after some 60
    ),
    "GUROBI": Backend(
        "gurobipy", _INTEGER, "big_m", _GUROBI_TOLERANCE, _gurobi_options, _gurobi_told, admit=_gurobi_admit
    ),
    "CLARABEL": Backend("clarabel", _RELAXATIONS, "relaxation", 1e-6, _clarabel_options, _silent),
    "SCS": Backend("scs", _RELAXATIONS, "relaxation", 1e-4, _scs_options, _silent),
}

OTHER = Backend("", frozenset(), "perspective", 1e-6, lambda asked: {}, _silent)
"""Any solver that cvxpy knows and this table does not."""
