"""Method `cvxpy`: agreement with enumeration, and what becomes of time limits, failures and false claims."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.errors import CapabilityError, OptionError, UnavailableError
from osscar_opt.formulations.models.backend import run_backend
from osscar_opt.formulations.solution import Solution, Termination
from osscar_opt.instances.generators import FAMILIES, random_instance
from osscar_opt.solvers import _backends
from osscar_opt.solvers import cvxpy as method
from osscar_opt.solvers._backends import BACKENDS, Asked, Told
from osscar_opt.testing import best_value_by_enumeration, check_solver

ASKED = Asked(seconds=2.5, gap=1e-6, threads=3, verbose=False)


@pytest.fixture(scope="module")
def gurobi() -> None:
    """Skips where Gurobi is missing, or its licence (that within the package ends in time) does not let it start."""
    pytest.importorskip("gurobipy")
    try:
        _backends._gurobi_environment(verbose=False).close()
    except UnavailableError as error:
        pytest.skip(str(error))


def instance(seed: int, n: int, q: int) -> Problem:
    """One of each family in turn; the traps have at least five groups."""
    return random_instance(seed, sorted(FAMILIES)[seed % len(FAMILIES)], n=max(n, 5), q=q)


def assert_bracketed(problem: Problem, solution: Solution, *, gap: float) -> None:
    """Bound <= enumeration <= value; and the value is the optimum, the bound no further off than `gap` of the loss."""
    best, unit = best_value_by_enumeration(problem), problem.constant - problem.base
    assert problem.feasible(solution.support)
    assert "findings" not in solution.stats
    assert solution.bound <= best + 1e-11 * unit
    assert solution.objective >= best - 1e-11 * unit
    assert solution.objective == pytest.approx(best, rel=1e-7, abs=1e-10 * unit)
    assert solution.objective - solution.bound <= gap * (best - problem.base) + 3e-5 * unit
    assert solution.termination == "completed"


# ------------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize("seed", range(42))
def test_gurobi_agrees_with_enumeration(gurobi: None, seed: int) -> None:
    problem = instance(seed, n=5 + seed % 4, q=1 + seed % 3)
    solution = problem.solve("cvxpy", solver="GUROBI")
    assert_bracketed(problem, solution, gap=1e-4)
    assert solution.stats.get("form", "big_m") == "big_m"


@pytest.mark.parametrize("seed", range(7))
def test_gurobi_on_cones_agrees_with_enumeration(gurobi: None, seed: int) -> None:
    problem = instance(2 * seed, n=5, q=2)
    assert_bracketed(problem, problem.solve("cvxpy", solver="GUROBI", form="perspective"), gap=1e-3)


@pytest.mark.parametrize("form", ["perspective", "big_m"])
@pytest.mark.parametrize("seed", range(14))
def test_scip_agrees_with_enumeration(form: str, seed: int) -> None:
    problem = instance(seed, n=4 + seed % 2, q=1 + seed % 3)
    assert_bracketed(problem, problem.solve("cvxpy", form=form), gap=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 170))
def test_solvers_agree_with_enumeration_on_more(gurobi: None, seed: int) -> None:
    problem = instance(seed, n=4 + seed % 5, q=1 + seed % 3)
    assert_bracketed(problem, problem.solve("cvxpy"), gap=1e-2)
    assert_bracketed(problem, problem.solve("cvxpy", solver="gurobi"), gap=1e-4)


@pytest.mark.parametrize("options", [{}, {"form": "sdp"}, {"solver": "SCS"}], ids=str)
@pytest.mark.parametrize("seed", range(14))
def test_relaxations_give_bounds_and_supports(options: dict[str, Any], seed: int) -> None:
    problem = instance(seed, n=6, q=2)
    solution = problem.solve("cvxpy", **{"solver": "CLARABEL", **options})
    best, unit = best_value_by_enumeration(problem), problem.constant - problem.base
    assert solution.bound <= best + 1e-11 * unit
    assert solution.objective >= best - 1e-11 * unit
    assert solution.bound_kind == ("claimed" if solution.stats.get("solver") else "certified")
    assert solution.bound >= problem.base - 1e-9 * unit
    assert "findings" not in solution.stats


def test_a_start_is_used() -> None:
    problem = instance(3, n=7, q=2)
    best = problem.solve("exhaustive")
    solution = problem.solve("cvxpy", solver="CLARABEL", start=best.support)
    assert solution.objective <= best.objective * (1 + 1e-9)


def test_the_model_that_to_cvxpy_returns_is_solved_by_hand() -> None:
    """What the documentation tells a user to do."""
    problem = random_instance(5, "correlated", n=5, q=2)
    model = problem.to_cvxpy("big_m")
    model.normalised().solve(solver="SCIP")
    best = problem.solve("exhaustive")
    np.testing.assert_array_equal(model.support(), best.support)
    np.testing.assert_allclose(model.weights(), best.weights, atol=1e-9)
    assert model.problem.objective.value == pytest.approx(best.objective, rel=1e-4)
    own = model.weights_expression.value @ model.directions.T
    np.testing.assert_allclose(own, best.weights, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- time limits


def hard() -> Problem:
    rng = np.random.default_rng(0)
    return Problem.from_data(
        rng.normal(size=(60, 24)) @ rng.normal(size=(24, 24)), rng.normal(size=(24, 7)), keep=12
    )


@pytest.mark.parametrize("options", [{}, {"form": "big_m"}, {"solver": "GUROBI"}], ids=str)
def test_a_time_limit_gives_the_incumbent_and_the_bound(gurobi: None, options: dict[str, Any]) -> None:
    problem = hard()
    began = time.monotonic()
    solution = problem.solve("cvxpy", time_limit=2.0, **options)
    assert time.monotonic() - began < 2.0 * 1.05 + 1.0
    assert solution.termination == "time_limit"
    assert solution.status == "feasible"
    assert solution.objective <= problem.solve("greedy").objective * (1 + 1e-9)
    assert solution.bound_kind == "claimed"
    assert problem.base <= solution.bound < solution.objective  # a busy machine may get no further than base
    assert "stopped with status" in solution.message


@pytest.mark.parametrize("solver", ["SCIP", "CLARABEL"])
def test_no_time_at_all_gives_a_feasible_support(solver: str) -> None:
    problem = hard()
    solution = problem.solve("cvxpy", solver=solver, time_limit=0.0)
    assert problem.feasible(solution.support)
    assert solution.termination == "time_limit"


def test_options_carry_the_limits_in_each_solvers_own_words() -> None:
    scip = BACKENDS["SCIP"].options(ASKED)["scip_params"]
    assert (scip["limits/time"], scip["limits/absgap"], scip["lp/threads"]) == (2.5, 1e-6, 3)
    clarabel = BACKENDS["CLARABEL"].options(ASKED)
    assert (clarabel["time_limit"], clarabel["max_threads"]) == (2.5, 3)
    assert BACKENDS["SCS"].options(ASKED) == {"time_limit_secs": 2.5}
    unlimited = dataclasses.replace(ASKED, seconds=float("inf"))
    assert "limits/time" not in BACKENDS["SCIP"].options(unlimited)["scip_params"]
    assert "time_limit" not in BACKENDS["CLARABEL"].options(unlimited)
    assert BACKENDS["SCS"].options(unlimited) == {}


def test_gurobi_gets_its_limits(gurobi: None) -> None:
    options = BACKENDS["GUROBI"].options(ASKED)
    assert (options["TimeLimit"], options["MIPGapAbs"], options["Threads"]) == (2.5, 1e-6, 3)


# ------------------------------------------------------------------------------------------------------- statuses


class FakeScip:
    def __init__(self, dual: float) -> None:
        self.dual = dual

    def getDualbound(self) -> float:
        return self.dual

    def infinity(self) -> float:
        return 1e20

    def getNTotalNodes(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("said", "dual", "told"),
    [
        ("optimal", 0.5, Told("optimal", Termination.COMPLETED, 0.5, 7)),
        ("gaplimit", 0.5, Told("gaplimit", Termination.COMPLETED, 0.5, 7)),
        ("timelimit", -1e20, Told("timelimit", Termination.TIME_LIMIT, None, 7)),
        ("memlimit", 0.25, Told("memlimit", Termination.MEMORY_LIMIT, 0.25, 7)),
        ("totalnodelimit", 0.25, Told("totalnodelimit", Termination.NODE_LIMIT, 0.25, 7)),
        ("userinterrupt", 0.25, Told("userinterrupt", Termination.INTERRUPTED, 0.25, 7)),
        (
            "infeasible",
            1e20,
            Told("infeasible", Termination.FAILED, None, 7),
        ),  # it is not: an incumbent is known
    ],
)
def test_what_scip_says_is_translated(said: str, dual: float, told: Told) -> None:
    assert BACKENDS["SCIP"].told({"model": FakeScip(dual), "scip_status": said}) == told


@pytest.mark.parametrize(
    ("status", "termination"),
    [
        (2, "completed"),
        (8, "node_limit"),
        (9, "time_limit"),
        (11, "interrupted"),
        (17, "memory_limit"),
        (12, "failed"),
    ],
)
def test_what_gurobi_says_is_translated(status: int, termination: str) -> None:
    model = SimpleNamespace(Status=status, IsMIP=1, ObjBound=0.5, NodeCount=3.0)
    told = BACKENDS["GUROBI"].told({"model": model})
    assert (told.termination, told.bound, told.nodes) == (termination, 0.5, 3)
    continuous = SimpleNamespace(Status=status, IsMIP=0, NodeCount=0.0)
    assert BACKENDS["GUROBI"].told({"model": continuous}).bound is None


def test_an_incumbent_of_an_interrupted_scip_is_kept() -> None:
    mend = BACKENDS["SCIP"].mend
    assert mend is not None
    interrupted = {"status": "solver_error", "primal": np.zeros(2)}
    mend(interrupted)
    assert interrupted["status"] == "optimal_inaccurate"
    nothing = {"status": "solver_error"}
    mend(nothing)
    assert nothing["status"] == "solver_error"


# ---------------------------------------------------------------------------------------- failures and false claims


def claims(monkeypatch: pytest.MonkeyPatch, solver: str, **changes: Any) -> None:
    monkeypatch.setitem(BACKENDS, solver, dataclasses.replace(BACKENDS[solver], **changes))  # type: ignore[arg-type]


def test_a_bound_above_the_optimum_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BACKENDS["SCIP"].told

    def lie(raw: Any) -> Told:
        told = honest(raw)
        assert told.bound is not None
        return dataclasses.replace(told, bound=told.bound + 0.01)

    claims(monkeypatch, "SCIP", told=lie)
    problem = random_instance(1, "correlated", n=4, q=2)
    solution = problem.solve("cvxpy", form="big_m")
    assert solution.objective == pytest.approx(best_value_by_enumeration(problem), rel=1e-9)
    assert solution.bound_kind == "none"
    assert "so the bound was discarded" in solution.message


def test_the_claim_is_less_what_the_tolerances_may_have_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told("optimal", Termination.COMPLETED, bound=0.01)
    claims(monkeypatch, "SCIP", told=lambda raw: told, tolerance=1e-5)
    problem = random_instance(1, "correlated", n=4, q=2)
    solution = problem.solve("cvxpy", form="big_m")
    allowance = problem.to_cvxpy("big_m", value=solution.objective).allowance(1e-5)
    assert allowance > 1e-5 * problem.constant
    assert solution.bound == pytest.approx(0.01 * problem.constant - allowance, rel=1e-6)


def test_a_crash_keeps_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(method, "run_backend", crash)
    problem = instance(0, n=6, q=2)
    solution = problem.solve("cvxpy")
    assert solution.termination == "failed"
    assert problem.feasible(solution.support)
    assert solution.objective <= problem.solve("greedy").objective * (1 + 1e-9)
    assert (
        "raised RuntimeError: out of cheese; the best solution known before is returned" in solution.message
    )


def test_a_solver_that_finds_nothing_leaves_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "run_backend", lambda *_, **__: (None, "solver_error"))
    claims(monkeypatch, "SCIP", told=lambda raw: Told("unknown", Termination.FAILED))
    problem = random_instance(1, "correlated", n=4, q=2)
    solution = problem.solve("cvxpy")
    assert (solution.termination, solution.bound_kind) == ("failed", "none")
    assert solution.message == "SCIP stopped with status 'unknown'."


def test_a_solver_whose_bound_cannot_be_read(gurobi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gurobi as a stranger: found by trying, run without options, its optimal value less 1e-4 of it is the claim."""
    monkeypatch.delitem(BACKENDS, "GUROBI")  # type: ignore[attr-defined]
    problem = random_instance(2, "correlated", n=5, q=2)
    solution = problem.solve("cvxpy", solver="GUROBI", form="big_m", verbose=False)
    assert_bracketed(problem, solution, gap=1e-3)
    assert "the bound is the optimal value that GUROBI reports, less 0.0001 of it" in solution.message


@pytest.mark.parametrize(
    ("status", "termination", "claimed"),
    [
        ("optimal", "completed", True),
        (
            "optimal_inaccurate",
            "failed",
            False,
        ),  # what SCIP calls a time-out, whatever its incumbent is worth
        ("user_limit", "iteration_limit", False),
        ("solver_error", "failed", False),
        ("infeasible", "failed", False),
    ],
)
def test_statuses_of_a_solver_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch, status: str, termination: str, claimed: bool
) -> None:
    def solved(*arguments: Any, **keywords: Any) -> Any:
        keywords.pop("options")
        return run_backend(*arguments, **keywords)[0], status

    monkeypatch.setattr(method, "run_backend", solved)
    claims(monkeypatch, "SCIP", told=lambda raw: Told(""))
    solution = random_instance(1, "correlated", n=4, q=2).solve("cvxpy", form="big_m")
    assert solution.termination == termination
    assert (solution.bound_kind == "claimed") is claimed


def test_a_relaxation_that_runs_out_of_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, options: Any, **__: Any) -> Any:
        time.sleep(options["time_limit"])
        return None, "user_limit"  # cvxpy's word for a limit of time and for one of iterations

    monkeypatch.setattr(method, "run_backend", slow)
    solution = hard().solve("cvxpy", solver="CLARABEL", time_limit=1.0)
    assert (solution.termination, solution.bound_kind) == ("time_limit", "none")
    assert solution.message == "CLARABEL stopped with status 'user_limit'."


def test_all_runs_of_scip_share_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads of their own, some sixty runs of SCIP 10.0 crash the process: CppAD, within it, numbers threads."""
    threads = []

    def noted(*arguments: Any, **keywords: Any) -> Any:
        threads.append(threading.get_ident())
        return run_backend(*arguments, **keywords)

    monkeypatch.setattr(method, "run_backend", noted)
    for seed in range(3):
        random_instance(seed, "correlated", n=3, q=2).solve("cvxpy")
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


# ------------------------------------------------------------------------------------------------------- refusals


def test_solvers_that_are_not_there_are_refused_with_those_that_are() -> None:
    problem = instance(0, n=4, q=2)
    with pytest.raises(
        OptionError, match=r"there is no solver 'CIPS' in cvxpy; installed are CLARABEL.*SCIP.*SCS"
    ):
        problem.solve("cvxpy", solver="CIPS")
    with pytest.raises(UnavailableError, match=r"solver MOSEK is not installed; installed are CLARABEL"):
        problem.solve("cvxpy", solver="MOSEK")


def test_a_known_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = instance(0, n=4, q=2)
    claims(monkeypatch, "SCIP", package="pyscipopt_that_nobody_has")
    monkeypatch.setattr("cvxpy.installed_solvers", lambda: ["CLARABEL"])
    with pytest.raises(
        UnavailableError, match="run: pip install pyscipopt_that_nobody_has; installed are CLARABEL"
    ):
        problem.solve("cvxpy")


@pytest.mark.parametrize(
    ("solver", "form", "able"),
    [
        ("HIGHS", "auto", "SCIP"),
        ("HIGHS", "big_m", "SCIP"),
        ("CLARABEL", "big_m", "SCIP"),
        ("SCIP", "sdp", "CLARABEL"),
        ("OSQP", "relaxation", "CLARABEL"),
    ],
)
def test_solvers_that_cannot_are_refused_with_those_that_can(solver: str, form: str, able: str) -> None:
    with pytest.raises(
        CapabilityError, match=f"solver {solver} cannot solve models of the form .*can: .*{able}"
    ):
        instance(0, n=4, q=2).solve("cvxpy", solver=solver, form=form)


def test_the_small_licence_of_gurobi_is_explained(gurobi: None) -> None:
    rng = np.random.default_rng(0)
    problem = Problem.from_data(rng.normal(size=(50, 20)), rng.normal(size=(20, 12)), keep=10)
    with pytest.raises(
        CapabilityError, match=r"the model has 260 columns or more, and this licence.* allows 200"
    ):
        problem.solve("cvxpy", solver="GUROBI")


def test_a_licence_that_is_refused_late_keeps_the_incumbent(
    gurobi: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims(monkeypatch, "GUROBI", admit=None)
    rng = np.random.default_rng(0)
    problem = Problem.from_data(rng.normal(size=(50, 20)), rng.normal(size=(20, 12)), keep=10)
    solution = problem.solve("cvxpy", solver="GUROBI")
    assert solution.termination == "failed"
    assert "this licence of Gurobi" in solution.message
    assert solution.objective <= problem.solve("greedy").objective * (1 + 1e-9)


def test_columns_are_counted_as_gurobi_counts_them(gurobi: None) -> None:
    """Or a model that the licence does not allow would be found out only after the work of posing it."""
    problem = instance(0, n=5, q=2).with_limits(costs=None, budget=None, keep=2)
    for form in ("big_m", "perspective"):
        raw, _ = run_backend(problem.to_cvxpy(form).normalised(), "GUROBI", options={"OutputFlag": 0})  # type: ignore[arg-type]
        assert raw["model"].NumVars == method._columns(problem, form)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- conformance


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "CLARABEL"},
        pytest.param({"solver": "CLARABEL", "form": "sdp"}, marks=pytest.mark.slow),
        pytest.param({"solver": "SCS"}, marks=pytest.mark.slow),
        pytest.param({"solver": "SCIP"}, marks=pytest.mark.slow),
        pytest.param({"solver": "SCIP", "form": "big_m"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_conformance(options: dict[str, Any]) -> None:
    check_solver("cvxpy", options=options)


def test_conformance_of_gurobi(gurobi: None) -> None:
    check_solver("cvxpy", options={"solver": "GUROBI"})


def test_in_a_process_of_its_own() -> None:
    problem = random_instance(1, "correlated", n=4, q=2)
    here = problem.solve("cvxpy")
    there = problem.solve("cvxpy", isolation="process")
    np.testing.assert_array_equal(here.support, there.support)
    assert there.bound == pytest.approx(here.bound, rel=1e-6)
