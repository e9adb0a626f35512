"""Solution: what it derives, what it verifies, what JSON gets."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from osscar_opt import Problem, Solution
from osscar_opt.errors import SolverError, UnavailableError
from osscar_opt.formulations.solution import BoundKind, Status, Termination, TraceEntry
from osscar_opt.solvers.base import Proposal, Report, Solver


@pytest.fixture
def solution() -> Solution:
    problem = Problem(2.0 * np.eye(4), dense_weights=np.arange(12.0).reshape(4, 3), keep=2)
    return problem.solve("magnitude_refit")


def test_numbers_agree_with_the_problem(solution: Solution) -> None:
    assert solution.kept.tolist() == [2, 3]
    lost = sum(value**2 for value in range(6))  # rows 0 and 1 hold 0..5; gram is 2 I
    assert solution.objective == lost
    assert solution.relative == lost / sum(value**2 for value in range(12))
    assert solution.gap == math.inf
    assert solution.bound == -math.inf
    assert solution.bound_kind is BoundKind.NONE
    assert solution.status is Status.FEASIBLE
    assert solution.problem_hash == solution.problem.hash
    assert solution.seed is None
    solution.verify()


def test_gap_is_relative_and_zero_within_rounding(solution: Solution) -> None:
    assert dataclasses.replace(solution, bound=0.9 * solution.objective).gap == pytest.approx(0.1)
    assert dataclasses.replace(solution, bound=solution.objective * (1 - 1e-15)).gap == 0.0
    dense = solution.problem.solve("magnitude", keep=4)
    assert dense.objective == 0.0
    assert dense.gap == 0.0


def test_relative_is_nan_where_nothing_kept_is_worth_nothing() -> None:
    problem = Problem(np.eye(2), np.zeros((2, 1)), keep=1)
    assert math.isnan(problem.solve("random").relative)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": np.ones(4, dtype=bool)}, "not feasible: it uses 4 of keep = 2"),
        ({"support": np.ones(3, dtype=bool)}, "mask over 4 groups"),
        ({"support": np.array([0, 0, 1, 1])}, "mask over 4 groups"),
        ({"support": np.array([False, True, False, True])}, "not zero on row 2, which was removed"),
        ({"weights": np.zeros((4, 2))}, r"weights must have shape \(4, 3\)"),
        ({"weights": np.zeros((4, 3))}, r"the objective is 506, not 55 as stated"),
        ({"objective": 54.9999}, r"the objective is 55, not 54\.9999 as stated"),
        ({"objective": math.nan}, "not nan as stated"),
        ({"bound": 56.0}, "the bound 56 is above the objective 55"),
    ],
)
def test_verify_finds_what_is_off(solution: Solution, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        dataclasses.replace(solution, **changes).verify()


def test_to_dict_is_json_without_nan(solution: Solution) -> None:
    odd = dataclasses.replace(
        solution,
        stats={
            "array": np.arange(2),
            "number": np.float32(1.5),
            "bad": math.inf,
            "set": {1},
            "object": Status,
        },
        trace=(TraceEntry(0.0, math.inf, -math.inf), TraceEntry(1.0, 55.0, 50.0)),
    )
    back = json.loads(json.dumps(odd.to_dict(), allow_nan=False))
    assert back["kept"] == [2, 3]
    assert back["n"] == 4
    assert back["bound"] is None
    assert back["gap"] is None
    assert back["status"] == "feasible"
    assert back["trace"] == [[0.0, None, None], [1.0, 55.0, 50.0]]
    assert back["stats"]["array"] == [0, 1]
    assert back["stats"]["bad"] is None
    assert back["options"] == {"norm": "l1"}
    assert back["problem_hash"] == solution.problem.hash


def test_weights_and_support_are_read_only(solution: Solution) -> None:
    for array in (solution.weights, solution.support):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.objective = 0.0  # type: ignore[misc]


def test_repr_is_one_line(solution: Solution) -> None:
    text = repr(dataclasses.replace(solution, bound=50.0))
    assert text.startswith(
        "Solution(magnitude_refit, kept=2/4, objective=55, relative=0.1087, gap=0.091, feasible"
    )
    assert "\n" not in text


def test_plots_without_matplotlib_say_what_to_install(
    solution: Solution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match="pip install matplotlib"):
        solution.plot()
    with pytest.raises(UnavailableError, match="pip install matplotlib"):
        solution.problem.path("magnitude_refit").plot()


class _Axis:
    """Stands in for a matplotlib axis, which need not be installed."""

    def __init__(self) -> None:
        self.drawn: dict[str, list[list[float]]] = {}

    def step(self, *data: Any, label: str, **_: Any) -> None:
        self.drawn[label] = [list(values) for values in data]

    plot = step

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_plot_draws_what_is_finite(solution: Solution) -> None:
    trace = (
        TraceEntry(0.0, math.inf, -math.inf),
        TraceEntry(1.0, 60.0, -math.inf),
        TraceEntry(2.0, 55.0, 50.0),
    )
    axis = _Axis()
    assert dataclasses.replace(solution, trace=trace).plot(axis) is axis
    assert axis.drawn == {"objective": [[1.0, 2.0], [60.0, 55.0]], "bound": [[2.0], [50.0]]}
    path_axis = _Axis()
    solution.problem.path("magnitude_refit").plot(path_axis)
    assert path_axis.drawn["magnitude_refit"][0] == [4, 3, 2, 1, 0]


def test_statuses_are_lower_case_words() -> None:
    for kind in (Status, Termination, BoundKind):
        assert all(member == member.name.lower() for member in kind)


# ------------------------------------------------------------------------------------------------ memory


class Tableau:
    """Stands for what is large."""


_tableaux: list[weakref.ref[Tableau]] = []


@dataclass(frozen=True)
class Fails(Solver):
    """Builds something large, reports a solution, and fails on the way to a better one."""

    name: ClassVar[str] = "fails"

    def propose(self, problem: Problem, *, report: Report, **_: Any) -> Proposal:
        tableau = Tableau()
        _tableaux.append(weakref.ref(tableau))
        report.incumbent(np.arange(problem.n) < 2, 1.0)
        try:
            raise KeyError("a first fault, in whose handler the second occurs")
        except KeyError:
            raise MemoryError("no room for more") from None


def test_a_failed_solver_leaves_its_memory_to_the_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[bool] = []
    refit = Problem.refit

    def watched(self: Problem, support: Any) -> Any:
        alive.append(_tableaux[-1]() is not None)
        return refit(self, support)

    monkeypatch.setattr(Problem, "refit", watched)
    solution = Problem(np.eye(4), np.ones((4, 1)), keep=2).solve(Fails())
    assert solution.termination == "memory_limit"
    assert solution.kept.tolist() == [0, 1]
    assert alive == [False]
