"""The referee against solvers that lie, crash, hang and cheat; time limits, Ctrl-C, traces, starts."""

from __future__ import annotations

import contextvars
import ctypes
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hanging import over

from osscar_opt import Problem
from osscar_opt.errors import CapabilityError, InputError, SolverError
from osscar_opt.formulations.solution import BoundKind, Status, Termination
from osscar_opt.solvers import Deadline, Proposal, Report, Solver, solve
from osscar_opt.solvers.progress import Event

KEEP = 3
SLACK = 4.0
"""Seconds the machine may be slow for; every hang in this file would last for a minute."""


def _problem(p: int = 8, q: int = 3, **rest: Any) -> Problem:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((50, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p)))
    return Problem.from_data(inputs, rng.standard_normal((p, q)), **{"keep": KEEP, **rest})


def _first(problem: Problem, count: int = KEEP) -> np.ndarray:
    return np.arange(problem.n) < count


def _best(problem: Problem) -> tuple[np.ndarray, float]:
    supports = [
        np.isin(np.arange(problem.n), kept) for kept in itertools.combinations(range(problem.n), KEEP)
    ]
    values = [problem.value(support) for support in supports]
    return supports[int(np.argmin(values))], min(values)


@dataclass(frozen=True)
class Scripted(Solver):
    """Does whatever it is given to do."""

    name: ClassVar[str] = "scripted"

    script: Callable[..., Any] = lambda problem, **_: Proposal(_first(problem))

    def propose(
        self, problem: Problem, *, start: np.ndarray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        return self.script(problem, start=start, deadline=deadline, report=report)  # type: ignore[no-any-return]


def _run(script: Callable[..., Any], problem: Problem | None = None, **arguments: Any) -> Any:
    return solve(problem or _problem(), Scripted(script), **arguments)


# -------------------------------------------------------------------------------------------- honest work


def test_numbers_are_recomputed_on_the_problem_as_posed() -> None:
    problem = _problem(always_keep=[7], q=12)
    solution = solve(problem, "random", seed=3)
    np.testing.assert_allclose(solution.weights, problem.refit(solution.support))
    assert solution.objective == problem.value(solution.support)
    assert solution.problem is problem
    assert solution.support[7]
    assert solution.seed == 3
    assert set(solution.versions) == {"osscar_opt", "python", "numpy", "scipy"}
    solution.verify()


def test_a_bound_that_meets_the_value_makes_it_optimal() -> None:
    support, value = _best(_problem())
    optimal = _run(
        lambda problem, **_: Proposal(support, lower_bound=value * (1 - 1e-9), certificate="proof")
    )
    assert (optimal.status, optimal.bound_kind) == (Status.OPTIMAL, BoundKind.CLAIMED)
    assert optimal.gap < 1e-8
    assert optimal.certificate == "proof"
    close = _run(lambda problem, **_: Proposal(support, lower_bound=value * 0.99))
    assert close.status is Status.FEASIBLE
    assert close.gap == pytest.approx(0.01)
    assert (
        _run(lambda problem, **_: Proposal(support, lower_bound=value * 0.99), tolerance=0.02).status
        == "optimal"
    )


def test_a_name_does_not_make_anything_optimal() -> None:
    @dataclass(frozen=True)
    class Exact(Scripted):
        name: ClassVar[str] = "exact"
        proves: ClassVar[bool] = True

    assert solve(_problem(), Exact()).status is Status.FEASIBLE


def test_what_is_as_good_as_everything_is_optimal_without_a_claim() -> None:
    everything = solve(_problem(keep=8), "random")
    assert (everything.status, everything.bound_kind) == (Status.OPTIMAL, BoundKind.CERTIFIED)
    assert everything.bound == everything.objective == 0.0
    forced = solve(
        _problem(keep=8, always_remove=[1, 2]), Scripted(lambda problem, **_: Proposal(_first(problem, 6)))
    )
    assert forced.status is Status.OPTIMAL
    assert forced.bound == pytest.approx(forced.objective)


def test_nothing_left_to_decide() -> None:
    solution = _run(
        lambda problem, **_: pytest.fail("asked"), _problem(always_keep=[0, 1, 2], always_remove=range(3, 8))
    )
    assert solution.kept.tolist() == [0, 1, 2]
    assert solution.status is Status.OPTIMAL
    assert solution.stats["decided_by"] == "presolve"


def test_a_better_incumbent_beats_the_proposal() -> None:
    best, value = _best(_problem())

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        report.incumbent(best, value)
        return Proposal(_first(problem))

    assert _run(script).objective == pytest.approx(value)


def test_unclaimed_incumbents_count_too() -> None:
    best, value = _best(_problem())

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        report.incumbent(best)
        return Proposal(_first(problem))

    assert _run(script).objective == pytest.approx(value)


def test_start_is_never_made_worse_and_must_be_feasible() -> None:
    problem = _problem()
    best, value = _best(problem)
    assert solve(problem, "random", start=best).objective == pytest.approx(value)
    assert solve(problem, "random", start=np.flatnonzero(best)).objective == pytest.approx(value)
    with pytest.raises(InputError, match="start is not feasible: it uses 8 of keep = 3"):
        solve(problem, "random", start=np.ones(8, dtype=bool))
    seen = []
    forced = problem.with_limits(always_keep=np.flatnonzero(best)[:1])

    def script(problem: Problem, start: np.ndarray, **_: Any) -> Proposal:
        seen.append(start)
        return Proposal(start)

    assert _run(script, forced, start=best).objective == pytest.approx(value)
    assert seen[0].shape == (7,)


def test_the_trace_ends_with_the_recomputed_objective() -> None:
    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        for claim in (90.0, 80.0, 85.0):
            time.sleep(0.01)
            report.incumbent(np.roll(_first(problem), int(claim)), claim)
        report.bound(1.0)
        report.bound(0.5)
        return Proposal(_first(problem))

    solution = _run(script)
    objectives = [entry.objective for entry in solution.trace]
    assert objectives[:2] == [90.0, 80.0]
    assert solution.trace[-1].objective == solution.objective
    assert [entry.time for entry in solution.trace] == sorted(entry.time for entry in solution.trace)
    assert solution.trace[-2].bound == 1.0
    assert solution.bound == 1.0


def test_set_up_is_timed_apart_from_the_search() -> None:
    solution = _run(lambda problem, **_: time.sleep(0.3) or Proposal(_first(problem)))
    assert 0.3 <= solution.solve_time < 0.3 + SLACK
    assert 0.0 <= solution.setup_time < 0.3


def test_keep_as_an_argument_and_no_limit_at_all() -> None:
    problem = _problem(keep=None)
    assert len(solve(problem, "magnitude", keep=2).kept) == 2
    with pytest.raises(InputError, match="no limit on what may stay: pass keep="):
        solve(problem, "magnitude")
    assert solve(problem.with_limits(costs=np.ones(8), budget=2.5), "magnitude").support.sum() == 2


def test_context_variables_and_numpy_error_state_reach_the_worker() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    seen = []

    def script(problem: Problem, **_: Any) -> Proposal:
        seen.append(variable.get())
        return Proposal(_first(problem))

    _run(script)
    assert seen == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_limit": -1}, "time_limit = -1 must be a number of seconds"),
        ({"time_limit": math.nan}, "time_limit = nan must be"),
        ({"tolerance": -1e-3}, "tolerance = -0.001 must be a finite number"),
        ({"isolation": "fork"}, "isolation = 'fork' must be 'thread' or 'process'"),
        ({"keep": 99}, "keep = 99 is out of range"),
        ({"presolve": ["magic"]}, "no reduction 'magic'"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _run(lambda problem, **_: Proposal(_first(problem)), **arguments)


# ------------------------------------------------------------------------------------------------- liars


def _mutate(problem: Problem, **_: Any) -> Proposal:
    problem.gram[0, 0] = 9.0
    return Proposal(_first(problem))


REFUSED = {
    "too many groups": (
        lambda problem, **_: Proposal(_first(problem, 4)),
        "infeasible support, which uses 4 of keep = 3",
    ),
    "wrong length": (
        lambda problem, **_: Proposal(np.ones(3, dtype=bool)),
        r"shape \(3,\).*mask over 8 groups was due",
    ),
    "numbers for a mask": (
        lambda problem, **_: Proposal(np.arange(8.0)),
        "type float64 where a boolean mask",
    ),
    "a list for a mask": (lambda problem, **_: Proposal([True] * 8), "type list where a boolean mask"),
    "not a proposal": (lambda problem, **_: _first(problem), "returned a ndarray instead of a Proposal"),
    "nothing": (lambda problem, **_: None, "returned a NoneType instead of a Proposal"),
    "odd termination": (
        lambda problem, **_: Proposal(_first(problem), termination="done"),
        "is not a Termination",
    ),
    "odd stats": (lambda problem, **_: Proposal(_first(problem), stats=[1]), "stats are not a mapping"),
    "changes the problem": (_mutate, "raised ValueError: assignment destination is read-only"),
    "raises": (lambda problem, **_: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "leaves": (lambda problem, **_: sys.exit(3), "raised SystemExit: 3"),
    "interrupts itself": (lambda problem, **_: exec("raise KeyboardInterrupt"), "raised KeyboardInterrupt"),
}


@pytest.mark.parametrize("lie", REFUSED)
def test_what_cannot_be_used_is_an_error_or_the_incumbent_with_the_reason(lie: str) -> None:
    script, message = REFUSED[lie]
    with pytest.raises(SolverError, match=message):
        _run(script)

    def with_incumbent(problem: Problem, report: Report, **rest: Any) -> Any:
        report.incumbent(np.roll(_first(problem), 1), 1e-3)
        return script(problem, report=report, **rest)

    solution = _run(with_incumbent)
    assert solution.kept.tolist() == [1, 2, 3]
    assert solution.termination is Termination.FAILED
    assert solution.status is Status.FEASIBLE
    assert solution.message.endswith("; the best solution known before is returned.")
    assert _run(script, start=[5]).kept.tolist() == [5]
    solution.verify()


def test_errors_of_ours_come_through_unchanged() -> None:
    def script(problem: Problem, **_: Any) -> Proposal:
        raise CapabilityError("There are too many supports to enumerate.")

    with pytest.raises(CapabilityError, match="too many supports"):
        _run(script)


def test_running_out_of_memory_is_called_so() -> None:
    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        report.incumbent(_first(problem), 1.0)
        raise MemoryError

    assert _run(script).termination is Termination.MEMORY_LIMIT


def test_a_removed_group_that_is_forced_is_noticed() -> None:
    problem = _problem(always_keep=[7])
    with pytest.raises(SolverError, match="removes group 7, which is in always_keep"):
        solve(problem, type("Cheat", (Scripted,), {"presolve": False, "handles": frozenset({"forced"})})())


@pytest.mark.parametrize("factor", [1.001, 2.0, math.inf, math.nan])
def test_a_bound_above_the_value_is_discarded(factor: float) -> None:
    value = _problem().value(_first(_problem()))
    for script in (
        lambda problem, **_: Proposal(_first(problem), lower_bound=factor * value, certificate="forged"),
        lambda problem, report, **_: report.bound(factor * value) or Proposal(_first(problem)),
    ):
        solution = _run(script)
        if math.isnan(factor) and solution.message == "":  # report.bound takes no NaN in the first place
            assert solution.bound == -math.inf
            continue
        assert solution.bound == -math.inf
        assert solution.certificate is None
        assert solution.status is Status.FEASIBLE
        assert "so the bound was discarded" in solution.message


def test_a_false_bound_does_not_take_a_true_one_with_it() -> None:
    solution = _run(
        lambda problem, report, **_: report.bound(1e-3) or Proposal(_first(problem), lower_bound=1e9)
    )
    assert solution.bound == 1e-3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((8, 3)), "that are not zero outside the support"),
        (np.full((8, 3), 1e-300), "that are not zero outside the support"),
        (np.zeros((3, 8)), r"of shape \(3, 8\)"),
        (np.full((8, 3), np.nan), "that are not finite"),
        ([[0.0] * 3] * 8, "of shape None"),
    ],
)
def test_weights_that_cannot_be_are_refitted(weights: Any, message: str) -> None:
    solution = _run(lambda problem, **_: Proposal(_first(problem), weights=weights))
    assert re.search(message, solution.message)
    np.testing.assert_array_equal(solution.weights, solution.problem.refit(_first(solution.problem)))
    solution.verify()


def test_weights_of_a_presolved_problem_are_refitted() -> None:
    problem = _problem(always_keep=[7])
    solution = _run(lambda problem, **_: Proposal(_first(problem, 2), weights=np.zeros((7, 3))), problem)
    assert "only a method with presolve = False" in solution.message
    solution.verify()


def test_honest_weights_are_used_and_valued_as_they_are() -> None:
    weights = np.zeros((8, 3))
    weights[0] = 0.25
    solution = _run(lambda problem, **_: Proposal(_first(problem), weights=weights))
    assert solution.objective == solution.problem.objective(weights)
    assert solution.message == ""


def test_forged_claims_cost_nothing_but_their_slot() -> None:
    problem = _problem()
    best, value = _best(problem)

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        for shift in range(8):
            report.incumbent(np.roll(_first(problem), shift), -1e9)
        report.incumbent(np.ones(8, dtype=bool), 0.0)
        return Proposal(best)

    solution = _run(script)
    assert solution.objective == pytest.approx(value)
    assert solution.stats["rejected_incumbents"] == 1


def test_supports_handed_over_are_not_shared() -> None:
    handed = []

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        support = _first(problem)
        handed.append(support)
        report.incumbent(support, 1.0)
        support[:] = True
        raise RuntimeError("after changing what was reported")

    assert _run(script).kept.tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------- time limits


def _spin(problem: Problem, **_: Any) -> Proposal:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        pass
    return Proposal(_first(problem))


def _spin_swallowing_everything(problem: Problem, **_: Any) -> Proposal:
    ends = time.monotonic() + 8
    while time.monotonic() < ends and not over.is_set():
        try:
            while True:
                sum(range(1000))
        except Exception:
            pass
    return Proposal(_first(problem))


def _sleep(problem: Problem, **_: Any) -> Proposal:
    over.wait(60)
    return Proposal(_first(problem))


def _multiply(problem: Problem, **_: Any) -> Proposal:
    matrix = np.ones((2500, 2500))
    for _ in range(200):
        matrix = matrix @ matrix / 2500
    return Proposal(_first(problem))


@pytest.mark.parametrize("limit", [0.0, 1e-9, 0.5])
@pytest.mark.parametrize("hang", [_spin, _spin_swallowing_everything, _sleep, _multiply])
@pytest.mark.parametrize("reported", [False, True])
def test_the_limit_holds_whatever_the_solver_does(
    hang: Callable[..., Any], limit: float, reported: bool
) -> None:
    def script(problem: Problem, report: Report, **rest: Any) -> Any:
        if reported:
            report.incumbent(np.roll(_first(problem), 2), 1.0)
        return hang(problem, **rest)

    began = time.monotonic()
    solution = _run(script, time_limit=limit)
    assert time.monotonic() - began < 1.05 * limit + 0.5 + SLACK
    assert solution.termination is Termination.TIME_LIMIT
    solution.verify()
    if reported:
        assert solution.kept.tolist() == [2, 3, 4]
        assert solution.message == ""
    else:
        assert "no solution was reported in time" in solution.message


def test_a_refit_is_not_held_up_by_an_abandoned_product() -> None:
    """OpenBLAS makes threaded products wait for one another: the refit below would take as long as the hang."""
    problem = _problem(p=400, q=300, keep=200)

    def script(problem: Problem, **_: Any) -> Proposal:
        matrix = np.ones((4000, 4000))
        for _ in range(20):
            matrix @ matrix
        return Proposal(_first(problem))

    began = time.monotonic()
    solution = _run(script, problem, time_limit=0.5)
    assert time.monotonic() - began < 0.5 + SLACK
    solution.verify()


def test_a_solver_that_looks_at_the_clock_returns_its_own_best() -> None:
    def script(problem: Problem, deadline: Deadline, **_: Any) -> Proposal:
        while not deadline.expired():
            time.sleep(0.01)
        return Proposal(_first(problem), stats={"rounds": 3})

    solution = _run(script, time_limit=0.2)
    assert solution.termination is Termination.TIME_LIMIT, "it need not say so itself"
    assert solution.stats["rounds"] == 3
    assert solution.message == ""


def test_a_limit_that_is_not_needed_changes_nothing() -> None:
    solution = _run(lambda problem, **_: Proposal(_first(problem)), time_limit=60)
    assert solution.termination is Termination.COMPLETED
    assert solution.solve_time < 30


def test_the_limit_covers_presolve(monkeypatch: pytest.MonkeyPatch) -> None:
    from osscar_opt.solvers import referee

    monkeypatch.setattr(referee, "run_presolve", lambda *_: over.wait(60))
    began = time.monotonic()
    solution = _run(lambda problem, **_: Proposal(_first(problem)), time_limit=0.2)
    assert time.monotonic() - began < SLACK
    assert solution.solve_time == 0.0
    assert solution.setup_time > 0.0
    solution.verify()


def test_an_abandoned_solver_ends_and_nobody_listens_to_it() -> None:
    ended = threading.Event()
    reports: list[Report] = []

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        reports.append(report)
        report.incumbent(_first(problem), 1.0)
        try:
            time.sleep(1.0)
            while True:
                report.incumbent(np.roll(_first(problem), 1), 0.5)
        finally:
            ended.set()

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # an exception escaping from the thread would be a warning under pytest
        solution = _run(script, time_limit=0.0)
        assert ended.wait(10.0)
    assert len(reports[0].incumbents) == 1
    assert solution.kept.tolist() == [0, 1, 2]


def test_the_process_ends_while_an_abandoned_product_runs() -> None:
    code = """
import numpy as np, sys
from dataclasses import dataclass
from osscar_opt import Problem
from osscar_opt.solvers import Solver
@dataclass(frozen=True)
class Hang(Solver):
    name = "hang"
    def propose(self, problem, **_):
        matrix = np.ones((3000, 3000))
        while True:
            matrix @ matrix
print(Problem(np.eye(3), np.ones((3, 2)), keep=1).solve(Hang(), time_limit=0.3).termination, flush=True)
sys.exit(5)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, "time_limit\n", "")


# ------------------------------------------------------------------------------------------------- Ctrl-C


def _press_ctrl_c(after: float) -> None:
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()


@pytest.mark.parametrize("attentive", [True, False])
def test_ctrl_c_returns_the_best_so_far(attentive: bool) -> None:
    def script(problem: Problem, deadline: Deadline, report: Report, **_: Any) -> Proposal:
        report.incumbent(np.roll(_first(problem), 2), 1.0)
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            if attentive and deadline.expired():
                return Proposal(np.roll(_first(problem), 4))
        raise AssertionError

    _press_ctrl_c(0.3)
    began = time.monotonic()
    solution = _run(script)
    assert time.monotonic() - began < 2.0 + SLACK
    assert solution.termination is Termination.INTERRUPTED
    if not attentive:
        assert solution.kept.tolist() == [2, 3, 4]


def test_ctrl_c_before_anything_was_found_still_returns_a_solution() -> None:
    _press_ctrl_c(0.2)
    solution = _run(_sleep)
    assert solution.termination is Termination.INTERRUPTED
    solution.verify()


def test_a_second_ctrl_c_propagates_and_leaves_nothing_running() -> None:
    _press_ctrl_c(0.2)
    _press_ctrl_c(0.5)
    ended = threading.Event()

    def script(problem: Problem, **_: Any) -> Proposal:
        try:
            return _spin(problem)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        _run(script)
    assert ended.wait(10.0)


def test_ctrl_c_during_the_final_refit_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    refit, calls = Problem.refit, []

    def interrupted_once(self: Problem, support: Any) -> Any:
        calls.append(support)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return refit(self, support)

    monkeypatch.setattr(Problem, "refit", interrupted_once)
    assert _run(lambda problem, **_: Proposal(_first(problem))).kept.tolist() == [0, 1, 2]


def test_ctrl_c_ends_a_path() -> None:
    class Slow(Scripted):
        def removal_order(self, problem: Problem, **_: Any) -> Any:
            return _spin(problem)

    _press_ctrl_c(0.2)
    with pytest.raises(KeyboardInterrupt):
        _problem().path(Slow())


@pytest.mark.parametrize("order", [[0, 1], [0] * 8, None, "order"])
def test_a_path_must_be_an_order_of_the_groups(order: Any) -> None:
    class Odd(Scripted):
        def removal_order(self, problem: Problem, **_: Any) -> Any:
            return np.array(order) if isinstance(order, list) else order

    with pytest.raises(SolverError, match="did not return an order of the 8 groups"):
        _problem().path(Odd())


def test_an_error_on_a_path_comes_through() -> None:
    class Broken(Scripted):
        def removal_order(self, problem: Problem, **_: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _problem().path(Broken())


# ------------------------------------------------------------------------------------- events and progress


def test_events_tell_of_improvements() -> None:
    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        for step in range(4):
            report.incumbent(np.roll(_first(problem), step), 10.0 - step)
            report.bound(float(step))
            report.progress(step, 4, "steps")
            time.sleep(0.1)
        return Proposal(_first(problem))

    events: list[Event] = []
    _run(script, on_event=events.append)
    assert [event.objective for event in events] == sorted(
        (event.objective for event in events), reverse=True
    )
    assert events[-1].objective == 7.0
    assert events[-1].bound == 3.0
    assert events[-1].progress.fraction == 0.75


def test_an_event_handler_may_stop_the_search_as_ctrl_c_does() -> None:
    def stop(event: Event) -> None:
        if event.objective < math.inf:
            raise KeyboardInterrupt

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        report.incumbent(_first(problem), 1.0)
        return _spin(problem)

    assert _run(script, on_event=stop).termination is Termination.INTERRUPTED


def test_an_error_in_the_event_handler_stops_the_solver() -> None:
    ended = threading.Event()

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        try:
            report.incumbent(_first(problem), 1.0)
            return _spin(problem)
        finally:
            ended.set()

    with pytest.raises(ZeroDivisionError):
        _run(script, on_event=lambda event: 1 / 0)
    assert ended.wait(10.0)


@pytest.mark.parametrize("progress", [None, True, False])
def test_progress_is_drawn_on_stderr_and_only_for_a_terminal_or_on_demand(
    progress: bool | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osscar_opt.solvers.progress._SHOW_AFTER", 0.05)

    def script(problem: Problem, report: Report, **_: Any) -> Proposal:
        report.incumbent(_first(problem), 12.5)
        report.bound(11.5)
        report.progress(1, 2, "nodes")
        time.sleep(0.4)
        return Proposal(_first(problem))

    _run(script, progress=progress, time_limit=60)
    out, err = capsys.readouterr()
    assert out == ""
    if progress:
        assert "scripted" in err
        assert "objective 12.5, bound 11.5, 1/2 nodes" in err
    else:
        assert err == ""


# --------------------------------------------------------------------------------------------- isolation


@dataclass(frozen=True)
class Wild(Solver):
    """Misbehaves in a process of its own."""

    name: ClassVar[str] = "wild"

    deed: str = "nothing"

    def propose(
        self, problem: Problem, *, start: np.ndarray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        report.incumbent(np.roll(_first(problem), 1), 1.0)
        report.bound(0.25)
        report.progress(1, 2)
        if self.deed == "segfault":
            ctypes.string_at(0)
        elif self.deed == "exit":
            os._exit(7)
        elif self.deed == "raise":
            raise ValueError("in the child")
        elif self.deed == "hold the interpreter lock":
            sum(range(10**12))
        elif self.deed == "wait":
            while not deadline.expired():
                time.sleep(0.01)
        certificate = (lambda: 0) if self.deed == "unpicklable" else None
        return Proposal(_first(problem), certificate=certificate, stats={"pid": os.getpid()})


def test_a_child_process_does_the_work() -> None:
    solution = solve(_problem(), Wild(), isolation="process")
    assert solution.stats["pid"] != os.getpid()
    assert solution.termination is Termination.COMPLETED
    assert solution.bound == 0.25
    json.dumps(solution.to_dict())


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("segfault", "died with exit code -11"),
        ("exit", "died with exit code 7"),
        ("raise", "raised ValueError: in the child"),
        ("unpicklable", "cannot be sent from the child process"),
    ],
)
def test_a_child_that_dies_leaves_its_incumbent(deed: str, message: str) -> None:
    solution = solve(_problem(), Wild(deed), isolation="process")
    assert solution.termination is Termination.FAILED
    assert message in solution.message
    assert solution.kept.tolist() == [1, 2, 3]


def test_a_child_is_killed_at_the_deadline_even_if_it_holds_the_interpreter_lock() -> None:
    began = time.monotonic()
    solution = solve(_problem(), Wild("hold the interpreter lock"), isolation="process", time_limit=4)
    assert time.monotonic() - began < 4 * 1.05 + 0.5 + SLACK
    assert solution.termination is Termination.TIME_LIMIT
    solution.verify()


def test_a_child_hears_of_the_deadline_and_of_ctrl_c() -> None:
    _press_ctrl_c(2.0)
    solution = solve(_problem(), Wild("wait"), isolation="process", time_limit=60)
    assert solution.termination is Termination.INTERRUPTED
    assert solution.stats.get("pid") not in (None, os.getpid())


def test_what_cannot_be_sent_to_a_child_is_said() -> None:
    with pytest.raises(SolverError, match="cannot send the solver to a child process"):
        _run(lambda problem, **_: Proposal(_first(problem)), isolation="process")


# ------------------------------------------------------------------------------------------- found by review


def test_dead_inputs_with_weights_do_not_matter_without_presolve():
    problem = Problem(
        np.diag([1.0, 1.0, 0.0, 1.0]),
        dense_weights=[[1.0], [0.1], [100.0], [2.0]],
        groups=[0, 1, 1, 2],
        keep=1,
    )
    for method in ("greedy", "forward", "osscar", "swap", "search", "exhaustive"):
        for presolve in (True, False, ["forced"], "rank"):
            solution = problem.solve(method, presolve=presolve)
            assert solution.kept.tolist() == [2]
            assert solution.objective == pytest.approx(0.505)


def test_a_huge_scale_beside_a_small_one_does_not_make_everything_optimal():
    problem = Problem(np.diag([1e14, 1.0, 1.0, 1.0]), dense_weights=[[1.0], [1.0], [2.0], [3.0]], keep=2)
    worse = problem.solve("random", start=[0, 1])
    assert worse.status == "feasible" or worse.objective == pytest.approx(2.5)
    proved = problem.solve("exhaustive")
    assert proved.objective == pytest.approx(2.5)
    assert proved.status == "optimal"


@dataclass(frozen=True)
class Odd(Solver):
    """Misuses what it is given, one way at a time, after an honest report."""

    name: ClassVar[str] = "odd"
    how: str = "bound"

    def propose(self, problem, *, start, deadline, report):
        good = problem.limits.fill(range(problem.n), np.zeros(problem.n, dtype=bool))
        report.incumbent(good, problem.value(good))
        if self.how == "bound":
            return Proposal(good, lower_bound="x")
        if self.how == "message":
            return Proposal(good, message=3)
        if self.how == "stop":
            deadline.stop()
        if self.how == "shape":
            report.incumbent(np.ones(problem.n + 3, dtype=bool), 0.0)
        return Proposal(good)


@pytest.mark.parametrize("how", ["bound", "message", "stop", "shape"])
def test_a_careless_plug_in_costs_no_solution(how):
    problem = Problem(np.eye(4), np.ones((4, 2)), keep=2)
    solution = problem.solve(Odd(how))
    assert solution.kept.tolist() == [0, 1]
    assert solution.objective == pytest.approx(2.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"presolve": ["typo"], "start": [0, 1]},
        {"presolve": 3},
        {"time_limit": "1"},
        {"tolerance": None},
        {"on_event": 3},
        {"keep": True},
        {"start": [1, 0, 1, 0]},
    ],
    ids=str,
)
def test_slips_of_the_caller_are_told(bad):
    with pytest.raises(InputError):
        Problem(np.eye(4), np.ones((4, 2)), keep=2).solve("greedy", **bad)
