"""Many problems side by side: the same answers, no thread too many, nothing lost to failures or to Ctrl-C."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - brings a BLAS of its own
from threadpoolctl import threadpool_info

import osscar_opt
from osscar_opt import Problem, Solution, solve_all
from osscar_opt.errors import InputError, OptionError, SolveAllError, SolverError, UnknownMethodError
from osscar_opt.formulations.solution import Termination
from osscar_opt.instances import random_instance
from osscar_opt.linalg.threads import available_cores, in_force
from osscar_opt.solvers import Deadline, Proposal, Report, Solver, solve
from osscar_opt.solvers._worker import abandoned_threads_run
from osscar_opt.solvers.progress import Tally, _tallied

SLACK = 20.0
"""Seconds the machine may be slow for; whatever hangs in this file would do so for longer."""


def pools() -> list[dict[str, Any]]:
    """The pools of this process, but for those that were built without threads (scs brings such a BLAS)."""
    return [pool for pool in threadpool_info() if pool.get("threading_layer") != "disabled"]


def blas() -> set[int]:
    return {pool["num_threads"] for pool in pools() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    own = blas()
    yield
    assert blas() == own
    assert in_force() is None


def problem(seed: int = 0, n: int = 8, keep: int = 3, **rest: Any) -> Problem:
    made = random_instance(seed, "correlated", n=n, q=3).with_keep(keep)
    return made.with_limits(**rest) if rest else made


def first(posed: Problem, count: int = 3) -> np.ndarray:
    return np.arange(posed.n) < count


@dataclass(frozen=True)
class Scripted(Solver):
    """Does whatever it is given to do."""

    name: ClassVar[str] = "scripted"

    script: Callable[..., Any] = lambda problem, **_: Proposal(first(problem))

    def propose(
        self, problem: Problem, *, start: np.ndarray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        return self.script(problem, start=start, deadline=deadline, report=report)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------- the answers


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("auto", {}),
    ("exact", {}),
    ("exhaustive", {}),
    ("highs", {}),
    ("greedy", {}),
    ("forward", {}),
    ("osscar", {}),
    ("swap", {}),
    ("search", {"seed": 0}),
    ("search", {"seed": 5}),
    ("magnitude", {}),
    ("random", {"seed": 3}),
]


@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_the_same_as_one_by_one(method: str, options: dict[str, Any]) -> None:
    posed = [problem(seed, n=6 + seed, keep=2 + seed % 3) for seed in range(5)]
    alone = [solve(p, method, **options) for p in posed]
    together = solve_all(posed, method, jobs=3, threads=3, **options)
    for one, other, p in zip(alone, together, posed, strict=True):
        assert other.problem is p
        np.testing.assert_array_equal(one.support, other.support)
        np.testing.assert_array_equal(one.weights, other.weights)
        assert (one.objective, one.bound, one.status) == (other.objective, other.bound, other.status)
        assert (one.method, one.options) == (other.method, other.options)


def test_one_problem_many_times() -> None:
    """What a problem computes once and keeps is computed by several threads at a time."""
    alone = [solve(problem(1, n=14, keep=6), "random", seed=seed).objective for seed in range(40)]
    posed = problem(1, n=14, keep=6)
    together = solve_all([(posed, {"seed": seed}) for seed in range(40)], "random", jobs=6)
    assert [solution.objective for solution in together] == alone


def test_solutions_are_in_the_order_given() -> None:
    def script(posed: Problem, **_: Any) -> Proposal:
        time.sleep(0.02 * (posed.keep or 0))
        return Proposal(first(posed, posed.keep or 0))

    posed = [problem(keep=keep) for keep in (5, 1, 4, 2, 3)]
    assert [len(s.kept) for s in solve_all(posed, Scripted(script), jobs=4)] == [5, 1, 4, 2, 3]


def test_pairs_bring_options_of_their_own() -> None:
    posed = problem()
    found = solve_all(
        [posed, (posed, {"keep": 5}), (posed, {"method": "random", "seed": 4})], "greedy", keep=2
    )
    assert [(s.method, len(s.kept), s.seed) for s in found] == [
        ("greedy", 2, None),
        ("greedy", 5, None),
        ("random", 2, 4),
    ]


def test_nothing_to_do() -> None:
    assert solve_all([]) == []
    assert solve_all(iter(()), "greedy", jobs=3) == []


def test_solve_itself_may_be_called_from_many_threads() -> None:
    """Eight threads, some of whose solvers hang and are abandoned, which limits the refits of all the others."""
    posed = [problem(seed, n=7, keep=3) for seed in range(40)]
    alone = [solve(p, "swap").objective for p in posed]
    wrong: list[object] = []

    def hang(posed: Problem, **_: Any) -> Proposal:
        time.sleep(0.4)
        return Proposal(first(posed))

    def work(thread: int) -> None:
        for index in range(thread, 40, 8):
            found = solve(posed[index], "swap")
            if found.objective != alone[index]:
                wrong.append((index, found.objective))
            if (
                index % 5 == 0
                and solve(posed[index], Scripted(hang), time_limit=0.0).termination != "time_limit"
            ):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert wrong == []
    ends = time.monotonic() + SLACK
    while abandoned_threads_run() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not abandoned_threads_run(), "one that ended is still listed, or was never noticed"


def test_context_variables_reach_the_solvers() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    found = solve_all(
        [problem()], Scripted(lambda p, **_: Proposal(first(p), stats={"seen": variable.get()}))
    )
    assert found[0].stats["seen"] == 7


# ------------------------------------------------------------------------------------------------------ the threads


def looking(together: threading.Barrier | None = None) -> Scripted:
    """Says how many threads the pools have, while another problem is being solved if there is a barrier."""

    def script(posed: Problem, **_: Any) -> Proposal:
        if together is not None:
            together.wait()
        seen = {pool["user_api"] + pool["prefix"]: pool["num_threads"] for pool in pools()}
        if together is not None:
            together.wait()
        return Proposal(first(posed), stats={"seen": sorted(set(seen.values()))})

    return Scripted(script)


@pytest.mark.parametrize(
    ("jobs", "threads", "each"), [(2, 4, 2), (2, 5, 2), (2, 2, 1), (4, 2, 1), (1, 3, 3), (3, 1, 1)]
)
def test_no_pool_has_more_than_its_share(jobs: int, threads: int, each: int) -> None:
    import torch  # noqa: F401 - brings a pool that counts for each thread apart

    together = threading.Barrier(jobs, timeout=SLACK)
    found = solve_all([problem()] * (2 * jobs), looking(together), jobs=jobs, threads=threads)
    assert [solution.stats["seen"] for solution in found] == [[each]] * (2 * jobs)


def test_the_final_refits_have_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in another thread than the solver; an OpenMP pool counts for each thread apart."""
    import torch  # noqa: F401 - brings one

    from osscar_opt.solvers import referee

    judge, seen = referee.judge, []

    def looking_judge(*args: Any) -> Any:
        seen.append({pool["num_threads"] for pool in pools()})
        return judge(*args)

    monkeypatch.setattr(referee, "judge", looking_judge)
    solve_all([problem()], "greedy", jobs=1, threads=3)
    assert seen == [{3}]


def test_by_default_the_limit_in_force_is_shared() -> None:
    with osscar_opt.threads(4):
        found = solve_all([problem()] * 4, looking(threading.Barrier(2, timeout=SLACK)), jobs=2)
        assert blas() == {4}
        assert [s.stats["seen"] for s in found] == [[2]] * 4
        busy = solve_all([problem()] * 8, looking(threading.Barrier(4, timeout=SLACK)))
    assert [s.stats["seen"] for s in busy] == [[1]] * 8, "four at a time, one thread each"


def test_by_default_no_pool_gets_more_than_it_has_by_itself() -> None:
    own = max(blas())
    found = solve_all([problem()], looking(), jobs=1)
    assert max(found[0].stats["seen"]) <= max(own, available_cores())
    assert blas() == {own}


def failing(posed: Problem, **_: Any) -> Proposal:
    raise ZeroDivisionError("on purpose")


def broken() -> Iterator[Problem]:
    yield problem()
    raise OSError("no such layer")


@pytest.mark.parametrize("problems", [lambda: [problem()], broken])
def test_the_limit_ends_with_errors_too(problems: Callable[[], Any]) -> None:
    with osscar_opt.threads(3):
        with pytest.raises(SolveAllError):
            solve_all(problems(), Scripted(failing), jobs=2, threads=4)
        assert blas() == {3}


def test_side_by_side_within_side_by_side() -> None:
    def script(posed: Problem, **_: Any) -> Proposal:
        inner = solve_all([problem()] * 2, looking(), jobs=2)
        return Proposal(first(posed), stats={"seen": inner[0].stats["seen"]})

    found = solve_all([problem()] * 2, Scripted(script), jobs=2, threads=4)
    assert [s.stats["seen"] for s in found] == [[1], [1]]


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("jobs", [1, 3])
def test_problems_are_taken_one_by_one_and_let_go(jobs: int) -> None:
    alive: weakref.WeakSet[Problem] = weakref.WeakSet()
    most = [0]

    def problems() -> Iterator[Problem]:
        for seed in range(12):
            made = problem(seed)
            alive.add(made)
            most[0] = max(most[0], len(alive))
            yield made
            del made

    def script(posed: Problem, **_: Any) -> Proposal:
        time.sleep(0.02)
        if posed.gram[0, 0] < 0.8:  # some of them fail; an error refers to variables, and they to the problem
            raise ZeroDivisionError
        return Proposal(first(posed))

    gc.collect()
    gc.disable()  # a reference cycle would keep a problem for an unknown time
    try:
        with pytest.raises(SolveAllError) as caught:
            solve_all(problems(), Scripted(script), jobs=jobs, then=lambda solution: solution.objective)
        assert 0 < len(caught.value.failures) < 12
        ends = time.monotonic() + SLACK
        while alive and time.monotonic() < ends:
            time.sleep(0.05)  # the last threads come to their end
        assert not alive
        assert most[0] <= jobs + 1
    finally:
        gc.enable()


def test_then_is_called_in_the_calling_thread_and_its_answers_are_the_list() -> None:
    callers = set()

    def then(solution: Solution) -> int:
        callers.add(threading.get_ident())
        return len(solution.kept)

    assert solve_all([problem(keep=k) for k in (1, 2, 3)], "random", jobs=2, then=then) == [1, 2, 3]
    assert callers == {threading.get_ident()}


# ------------------------------------------------------------------------------------------------------ failures


def test_a_failure_does_not_lose_the_others() -> None:
    def script(posed: Problem, **_: Any) -> Proposal:
        if posed.keep == 2:
            raise ZeroDivisionError("on purpose")
        return Proposal(first(posed, posed.keep or 0))

    posed = [problem(keep=keep) for keep in (1, 2, 3, 2, 5)]
    object.__setattr__(posed[1], "name", "layer 1")
    with pytest.raises(SolveAllError) as caught:
        solve_all(posed, Scripted(script), jobs=2)
    error = caught.value
    assert isinstance(error, SolverError)
    assert [None if s is None else len(s.kept) for s in error.solutions] == [1, None, 3, None, 5]
    assert sorted(error.failures) == [1, 3]
    assert error.__cause__ is error.failures[1]
    assert str(error) == (
        "2 of 5 problems failed, the first of them number 1 ('layer 1'): method 'scripted' raised "
        "ZeroDivisionError: on purpose, and no other solution is known; the attribute `solutions` of this error "
        "holds those of the others."
    )


def test_a_source_that_fails_does_not_lose_what_it_gave() -> None:
    with pytest.raises(SolveAllError, match=r"1 of 2 .* number 1: OSError: no such layer;") as caught:
        solve_all(broken(), "greedy")
    assert len(caught.value.solutions[0].kept) == 3


def test_a_failure_of_then_keeps_the_solution() -> None:
    with pytest.raises(SolveAllError, match="ZeroDivisionError") as caught:
        solve_all([problem(), problem(1)], "greedy", then=lambda solution: 1 / 0)
    assert [len(s.kept) for s in caught.value.solutions] == [3, 3]


def test_what_is_no_problem_is_named() -> None:
    with pytest.raises(SolveAllError, match="number 1: it is a str, where a Problem or a pair") as caught:
        solve_all([problem(), "layer.safetensors", (problem(), "greedy")], "greedy")
    assert list(caught.value.failures) == [1, 2]


def test_wrong_calls_are_refused_before_the_first_problem_is_taken() -> None:
    def untouched() -> Iterator[Problem]:
        pytest.fail("taken")
        yield problem()

    for error, message, arguments in [
        (UnknownMethodError, "no method 'gready'", {"method": "gready"}),
        (OptionError, "no option 'sede'", {"method": "random", "sede": 1}),
        (InputError, "jobs = 0 must be a whole number", {"jobs": 0}),
        (InputError, "threads = 1.5 must be a whole number", {"threads": 1.5}),
        (InputError, "then = 3 must be a function", {"then": 3}),
    ]:
        with pytest.raises(error, match=message):
            solve_all(untouched(), **arguments)
    for odd in (problem(), {"layer": problem()}, 3):
        with pytest.raises(InputError, match="must be an iterable of Problem, not a"):
            solve_all(odd)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- Ctrl-C


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stubborn(begun: threading.Semaphore) -> Scripted:
    """Ends at once where `keep` is 1; reports something, and then runs on for a minute, where it is more."""

    def script(posed: Problem, deadline: Deadline, report: Report, **_: Any) -> Proposal:
        if posed.keep == 1:
            return Proposal(first(posed, 1))
        report.incumbent(np.roll(first(posed, 2), 5), 1.0)
        begun.release()
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not deadline.expired():
            time.sleep(0.01)
        return Proposal(np.roll(first(posed, 2), 5))

    return Scripted(script)


def test_ctrl_c_ends_what_runs_begins_nothing_more_and_loses_nothing() -> None:
    begun = threading.Semaphore(0)

    def interrupt() -> None:
        for _ in range(2):
            begun.acquire()
        press_ctrl_c()

    threading.Thread(target=interrupt, daemon=True).start()
    posed = [problem(keep=1), problem(keep=1), *[problem(keep=2)] * 9]
    began = time.monotonic()
    with pytest.warns(UserWarning, match="interrupted after 4 problems were begun"):
        found = solve_all(posed, stubborn(begun), jobs=2, threads=4)
    assert time.monotonic() - began < SLACK
    assert [s.kept.tolist() for s in found] == [[0], [0], [5, 6], [5, 6]]
    assert [s.termination for s in found[:2]] == [Termination.COMPLETED] * 2
    assert [s.termination for s in found[2:]] == [Termination.INTERRUPTED] * 2


def test_ctrl_c_while_a_problem_is_being_made() -> None:
    def problems() -> Iterator[Problem]:
        yield problem()
        press_ctrl_c()
        time.sleep(SLACK)
        pytest.fail("went on")

    with pytest.warns(UserWarning, match="interrupted after 1 problems"):
        assert [len(s.kept) for s in solve_all(problems(), "greedy", jobs=2)] == [3]


def test_ctrl_c_within_then_keeps_the_solution() -> None:
    def then(solution: Solution) -> str:
        if len(solution.kept) == 1:
            raise KeyboardInterrupt
        return "done"

    with pytest.warns(UserWarning, match="interrupted"):
        found = solve_all([problem(keep=2), problem(keep=1), problem(keep=2)], "greedy", jobs=1, then=then)
    assert found[0] == "done"
    assert found[1].termination == "completed"


def test_ctrl_c_just_before_a_thread_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from osscar_opt.solvers.side_by_side import _Crew

    start, calls = _Crew._start, []

    def interrupted_once(self: Any, task: Any) -> None:
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        start(self, task)

    monkeypatch.setattr(_Crew, "_start", interrupted_once)
    with pytest.warns(UserWarning, match="interrupted after 2 problems"):
        assert len(solve_all([problem()] * 5, "greedy", jobs=2)) == 2


def test_a_second_ctrl_c_propagates_and_restores_the_threads() -> None:
    """The solver ends when it is told to, but its answer takes long to make: only then a second one is of use."""
    begun = threading.Event()

    def script(posed: Problem, deadline: Deadline, **_: Any) -> Proposal:
        begun.set()
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            time.sleep(0.01)
        return Proposal(first(posed))

    def interrupt() -> None:
        begun.wait(SLACK)
        press_ctrl_c()
        time.sleep(0.3)
        press_ctrl_c()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        solve_all([problem()] * 4, Scripted(script), jobs=2, threads=4)


# --------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("progress", [None, True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_one_line_for_the_whole(
    progress: bool | None, sized: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osscar_opt.solvers.progress._SHOW_AFTER", 0.05)

    def script(posed: Problem, **_: Any) -> Proposal:
        time.sleep(0.3)
        return Proposal(first(posed))

    posed = [problem()] * 4
    solve_all(posed if sized else iter(tuple(posed)), Scripted(script), jobs=2, progress=progress)
    solve_all((p for p in posed), Scripted(script), jobs=2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    if progress:
        assert "2/4 done, 2 running, about" in err
        assert "2 done, 2 running" in err
        assert "scripted" not in err
    else:
        assert err == ""


def test_the_time_left_counts_those_that_run_as_half_done() -> None:
    assert _tallied(3, 2, 10, 8.0) == "3/10 done, 2 running, about 12 s left"
    assert _tallied(0, 2, 10, 8.0) == "0/10 done, 2 running"
    assert _tallied(3, 2, None, 8.0) == "3 done, 2 running"


def test_lines_of_several_threads_do_not_mix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two searches that both want a line draws none; once the first is over, the next one may."""
    monkeypatch.setattr("osscar_opt.solvers.progress._SHOW_AFTER", 0.0)
    outer, inner = Tally(7, True), Tally(9, True)
    outer.look(1, 1)
    inner.look(1, 1)
    inner.close()
    outer.look(2, 1)
    outer.close()
    assert "/9 done" not in capsys.readouterr().err
    third = Tally(5, True)
    third.look(1, 1)
    third.close()
    assert "1/5 done" in capsys.readouterr().err


def test_no_warning_without_ctrl_c() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(solve_all([problem()] * 2, "greedy")) == 2
