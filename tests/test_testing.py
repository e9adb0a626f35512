"""The conformance kit: it passes solvers that keep the contract and catches every planted liar."""

from __future__ import annotations

import contextlib
import ctypes
import random as python_random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hanging import over

from osscar_opt import Problem
from osscar_opt.formulations.scores import diagonal_scores, ranked_support
from osscar_opt.solvers import Deadline, Proposal, Report, Solver
from osscar_opt.testing import battery, best_value_by_enumeration, check_solver


@dataclass(frozen=True)
class Honest(Solver):
    """Ranks groups by what they would explain alone; the liars below differ from it in one thing each."""

    name: ClassVar[str] = "honest"

    def propose(
        self, problem: Problem, *, start: np.ndarray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        support = ranked_support(problem, diagonal_scores(problem))
        value = problem.value(support)
        report.incumbent(support, value)
        report.bound(problem.base)
        return self.lie(problem, support, value, report, start)

    def lie(
        self, problem: Problem, support: np.ndarray, value: float, report: Report, start: np.ndarray | None
    ) -> Proposal:
        return Proposal(support, lower_bound=problem.base)


def _liar(lie: Callable[..., Any], **declared: Any) -> Solver:
    return dataclass(frozen=True)(type("Liar", (Honest,), {"__doc__": "Lies.", "lie": lie, **declared}))()  # type: ignore[no-any-return]


def _mutates(self: Any, problem: Problem, support: np.ndarray, *_: Any) -> Proposal:
    address = problem.gram.__array_interface__["data"][0]
    ctypes.memset(address, 0, 1)  # the flags of the array cannot be lifted, but memory is memory
    return Proposal(support)


def _uses_global_numpy(self: Any, problem: Problem, support: np.ndarray, *_: Any) -> Proposal:
    np.random.random()  # noqa: NPY002
    return Proposal(support)


def _uses_global_random(self: Any, problem: Problem, support: np.ndarray, *_: Any) -> Proposal:
    python_random.random()
    return Proposal(support)


def _differs_between_runs(self: Any, problem: Problem, support: np.ndarray, *_: Any) -> Proposal:
    order = np.random.default_rng(time.time_ns()).permutation(problem.n)
    return Proposal(problem.limits.fill(order, np.zeros(problem.n, dtype=bool)))


def _reports_infeasible(
    self: Any, problem: Problem, support: np.ndarray, value: float, report: Report, _: Any
) -> Any:
    report.incumbent(np.ones(problem.n, dtype=bool), 0.0)
    return Proposal(support)


def _forges_objective(
    self: Any, problem: Problem, support: np.ndarray, value: float, report: Report, _: Any
) -> Any:
    report.incumbent(np.roll(support, 1), 0.9 * value)
    return Proposal(support)


def _raises_after_an_incumbent(self: Any, *_: Any) -> Proposal:
    raise RuntimeError("gave up")


def _sleeps(self: Any, problem: Problem, support: np.ndarray, *_: Any) -> Proposal:
    over.wait(60)
    return Proposal(support)


def _sits_in_a_loop(self: Any, problem: Problem, *_: Any) -> Proposal:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        with contextlib.suppress(Exception):
            sum(range(1000))
    raise AssertionError


LIARS: dict[str, tuple[Callable[..., Any], str]] = {
    "too many groups": (
        lambda self, problem, *_: Proposal(np.ones(problem.n, dtype=bool)),
        "infeasible support",
    ),
    "bound above value": (
        lambda self, p, s, value, *_: Proposal(s, lower_bound=value * 1.01),
        "bound was discarded",
    ),
    "bound between optimum and value": (
        lambda self, p, s, value, *_: Proposal(s, lower_bound=0.5 * (value + best_value_by_enumeration(p))),
        "the bound .* is above the optimum",
    ),
    "weights outside the support": (
        lambda self, problem, s, *_: Proposal(s, weights=np.ones(problem.cross.shape)),
        "not zero outside the support",
    ),
    "forged objective": (_forges_objective, "was claimed for"),
    "infeasible incumbent": (_reports_infeasible, "infeasible incumbents were reported"),
    "raises at once": (lambda self, *_: 1 / 0, "ZeroDivisionError"),
    "raises after an incumbent": (_raises_after_an_incumbent, "gave up"),
    "wrong shape": (lambda self, problem, s, *_: Proposal(s[:-1]), "a boolean mask over 7 groups was due"),
    "wrong dtype": (
        lambda self, problem, s, *_: Proposal(s.astype(int)),
        "a boolean mask over 7 groups was due",
    ),
    "calls sys.exit": (lambda self, *_: exit(1), "SystemExit"),
    "changes the problem": (_mutates, "arrays or a global random state were changed"),
    "global numpy random state": (_uses_global_numpy, "arrays or a global random state were changed"),
    "global random state": (_uses_global_random, "arrays or a global random state were changed"),
    "differs between runs": (_differs_between_runs, "two runs gave two supports"),
    "sleeps": (_sleeps, "no end within 1.0 s"),
    "loops and swallows exceptions": (_sits_in_a_loop, "no end within 1.0 s"),
}


@pytest.mark.parametrize("lie", LIARS)
def test_every_liar_is_caught(lie: str) -> None:
    how, message = LIARS[lie]
    with pytest.raises(AssertionError, match=message):
        check_solver(_liar(how), patience=1.0)


def test_honesty_passes() -> None:
    check_solver(Honest())
    check_solver(Honest)


@pytest.mark.parametrize("method", ["magnitude", "magnitude_refit", "random"])
def test_the_baselines_pass(method: str) -> None:
    check_solver(method)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_options_are_handed_on(norm: str) -> None:
    check_solver("magnitude", options={"norm": norm}, seed=1)


def test_what_is_not_declared_must_be_refused_and_what_is_must_work() -> None:
    check_solver(_liar(Honest.lie, handles=frozenset()))
    check_solver(_liar(Honest.lie, handles=frozenset({"budget"})))
    with pytest.raises(AssertionError, match="always_remove"):  # sees forced groups and ignores them
        check_solver(_liar(_ignores_forced, presolve=False, handles=Honest.handles | {"forced"}))


def _ignores_forced(self: Any, problem: Problem, *_: Any) -> Proposal:
    return Proposal(problem.limits.fill(range(problem.n), np.zeros(problem.n, dtype=bool)))


def test_a_promised_proof_must_come() -> None:
    with pytest.raises(AssertionError, match="completed without the proof it promises"):
        check_solver(_liar(Honest.lie, proves=True))


def test_declarations_are_checked() -> None:
    class NotADataclass(Honest):
        """Has a docstring."""

    with pytest.raises(AssertionError, match="not itself a frozen dataclass"):
        check_solver(NotADataclass())
    for declared, message in (
        ({"name": ""}, "has no name"),
        ({"__doc__": ""}, "has no docstring"),
        ({"handles": frozenset({"budgets"})}, r"handles \['budgets'\], which nobody knows"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_solver(_liar(Honest.lie, **declared))


def test_the_battery_covers_what_it_says() -> None:
    cases = list(battery())
    assert len({case.label for case in cases}) == len(cases)
    features = {feature for case in cases for feature in case.problem.features}
    assert features == {"budget", "blocks", "forced", "unequal_groups"}
    assert {case.problem.groups.uniform_size for case in cases} >= {1, 2, 3, None}
    assert all(case.problem.p != case.problem.q for case in cases)
    assert any(case.problem.q > case.problem.p for case in cases)
    assert any(not case.problem.live_rows.all() for case in cases)
    assert any(case.problem.keep == 0 for case in cases)
    assert any(case.problem.keep == case.problem.n for case in cases)
    assert max(np.linalg.cond(case.problem.gram) for case in cases if case.problem.live_rows.all()) > 1e9


def test_enumeration_is_right_where_the_answer_is_known() -> None:
    gains = np.array([4.0, 1.0, 3.0, 2.0])
    problem = Problem(np.eye(4), np.sqrt(2 * gains)[:, None], costs=[3, 1, 2, 2], budget=4)
    assert best_value_by_enumeration(problem) == pytest.approx(gains.sum() - 5.0)  # {0, 1} or {2, 3}
    assert best_value_by_enumeration(problem.with_limits(always_remove=[0, 2])) == pytest.approx(7.0)
