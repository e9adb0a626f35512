"""Paths down to a keep: the first part of the whole path, for less work; their values against exact arithmetic."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from osscar_opt import Problem
from osscar_opt.cli import app
from osscar_opt.errors import CapabilityError, InputError, SolverError
from osscar_opt.formulations.path import path_of
from osscar_opt.linalg.tableau import Tableau
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

METHODS = ["greedy", "forward", "magnitude_refit"]


def _problem(p: int = 14, q: int = 3, *, dead: tuple[int, ...] = (), **rest: Any) -> Problem:
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((p + 26, p)) @ (np.eye(p) + 0.4 * rng.standard_normal((p, p)))
    inputs[:, list(dead)] = 0.0
    return Problem.from_data(inputs, rng.standard_normal((p, q)), damping=0.0 if dead else 0.01, **rest)


POSED: list[dict[str, Any]] = [
    {},
    {"groups": 2},
    {"groups": [0, 1, 2, 0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 6]},
    {"always_keep": [0, 5, 9], "always_remove": [2, 3]},
    {"dead": (1, 4), "always_keep": [4], "always_remove": [13]},
    {"groups": 2, "dead": (1, 4, 5)},
]


@pytest.mark.parametrize("posed", POSED)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("presolve", [True, False])
def test_a_path_down_to_a_keep_is_the_first_part_of_the_whole(
    method: str, posed: dict[str, Any], presolve: bool
) -> None:
    problem = _problem(**posed)
    whole = problem.path(method, presolve=presolve)
    assert np.array_equal(np.sort(whole.order), np.arange(problem.n))
    for keep in range(problem.n + 1):
        part = problem.path(method, keep=keep, presolve=presolve)
        removed = problem.n - keep
        np.testing.assert_array_equal(part.order, whole.order[:removed])
        np.testing.assert_allclose(part.objectives, whole.objectives[: removed + 1], rtol=1e-11)
        assert part.keeps.tolist() == list(range(problem.n, keep - 1, -1))
        assert part.objective(keep) == pytest.approx(problem.value(part.support(keep)), rel=1e-9)
        assert part.support(keep).sum() == keep
        with pytest.raises(InputError, match="out of range" if keep == 0 else "below the"):
            part.support(keep - 1)
        with pytest.raises(InputError, match="out of range"):
            part.objective(problem.n + 1)


def test_always_keep_comes_last_and_always_remove_first_in_a_part_too() -> None:
    problem = _problem(always_keep=[0, 5, 9], always_remove=[2, 3])
    for method in METHODS:
        assert set(problem.path(method, keep=12).order) == {2, 3}
        assert not {0, 5, 9} & set(problem.path(method, keep=3).order)
        assert len({0, 5, 9} & set(problem.path(method, keep=1).order)) == 2


@dataclass(frozen=True)
class Ranks(Solver):
    """Removes groups in the order of their numbers, and notes how far it was asked to go."""

    name: ClassVar[str] = "ranks"
    beyond: int = 0
    asked: list[int] = field(default_factory=list)

    def propose(self, problem: Problem, **_: Any) -> Proposal:
        return Proposal(np.zeros(problem.n, dtype=bool))

    def removal_order(self, problem: Problem, *, keep: int, deadline: Deadline, report: Report) -> np.ndarray:
        self.asked.append(keep)
        return np.arange(max(0, problem.n - keep + self.beyond))


def test_the_method_is_told_how_many_groups_need_not_go() -> None:
    """Of 14 groups presolve decides five: two that stay, one that goes, and two that are dead."""
    problem = _problem(dead=(4, 6), always_keep=[0, 5], always_remove=[2])
    ranks = Ranks()
    orders = [problem.path(ranks, keep=keep).order.tolist() for keep in (14, 12, 7, 2, 1, 0)]
    assert ranks.asked == [9, 9, 5, 0, 0, 0]
    assert orders[2] == [2, 4, 6, 1, 3, 7, 8]
    assert orders[4] == [2, 4, 6, 1, 3, 7, 8, 9, 10, 11, 12, 13, 0]
    ranks.asked.clear()
    assert problem.path(ranks, keep=7, presolve=False).order.tolist() == [2, 1, 3, 4, 6, 7, 8]
    assert ranks.asked == [0]


def test_an_order_that_goes_on_is_cut_and_one_that_stops_short_is_refused() -> None:
    problem = _problem()
    assert problem.path(Ranks(beyond=3), keep=10).order.tolist() == [0, 1, 2, 3]
    with pytest.raises(SolverError, match="did not return an order of the 14 groups, or of the 4 that go"):
        problem.path(Ranks(beyond=-1), keep=10)
    with pytest.raises(SolverError, match="did not return an order"):
        problem.path(Ranks(beyond=1), keep=0)  # names a group that does not exist
    with pytest.raises(CapabilityError, match="no path"):
        problem.path("exhaustive", keep=3)


def test_greedy_does_not_remove_what_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    move = Tableau.move
    monkeypatch.setattr(Tableau, "move", lambda self, group: (moved.append(group), move(self, group)))
    _problem().path("greedy", keep=9)
    assert len(moved) == 5


def test_it_says_where_it_ends_and_refuses_a_keep_that_makes_no_sense() -> None:
    problem = Problem(np.eye(4), [[1.0], [3.0], [2.0], [4.0]])
    path = problem.path("magnitude_refit", keep=2)
    assert repr(path) == "Path(magnitude_refit, n=4, keep=2, objectives 0 to 2.5)"
    assert repr(problem.path("magnitude_refit")) == "Path(magnitude_refit, n=4, objectives 0 to 15)"
    with pytest.raises(InputError, match="keep = 1 is below the 2 groups that this path ends with"):
        path.objective(1)
    for keep in (-1, 5, 1.5, None):
        with pytest.raises(InputError, match="keep"):
            problem.path("magnitude_refit", keep=keep)
    for order in ([0, 0], [4], [-1]):
        with pytest.raises(InputError, match="none of them twice"):
            path_of(problem, np.array(order), "by hand")
    empty = path_of(problem, np.array([], dtype=np.int64), "by hand")
    assert (empty.keeps.tolist(), empty.objectives.tolist()) == ([4], [0.0])


def _exact_losses(gram: np.ndarray, weights: np.ndarray, order: list[int]) -> list[float]:
    """Losses along an order in rational arithmetic: sweep the rows that stay out of H, and sum over what is left."""
    p, values = len(gram), []
    h = [[Fraction(x) for x in row] for row in gram]
    w = [[Fraction(x) for x in row] for row in weights]
    for removed in range(1, p + 1):
        gone = sorted(order[:removed])
        left = [row[:] for row in h]
        for k in set(range(p)) - set(gone):
            for i in range(p):
                factor = left[i][k] / left[k][k]
                if i != k:
                    left[i] = [a - factor * b for a, b in zip(left[i], left[k], strict=True)]
        lost = sum(
            left[i][j] * sum(a * b for a, b in zip(w[i], w[j], strict=True)) for i in gone for j in gone
        )
        values.append(float(lost / 2))
    return values


@pytest.mark.parametrize("own_targets", [False, True])
def test_values_have_all_their_digits_beside_a_huge_constant(own_targets: bool) -> None:
    """Losses from 1e-18 of the constant on, inputs of size 2000 beside 1, against exact arithmetic."""
    rng = np.random.default_rng(0)
    p, q = 9, 2
    inputs = rng.standard_normal((30, p)) * np.where(np.arange(p) % 3 == 0, 2000.0, 1.0)
    weights = rng.standard_normal((p, q)) * np.geomspace(1e-9, 1.0, p)[rng.permutation(p), None]
    gram = inputs.T @ inputs / 30
    problem = Problem(gram, gram @ weights if own_targets else None, dense_weights=weights)
    path = problem.path("magnitude_refit")
    exact = _exact_losses(problem.gram, problem.optimum, path.order.tolist())
    assert exact[0] < 1e-15 * exact[-1]
    np.testing.assert_allclose(path.objectives[1:], exact, rtol=1e-11)
    np.testing.assert_allclose(problem.path("magnitude_refit", keep=4).objectives[1:], exact[:5], rtol=1e-11)


@pytest.mark.parametrize("keep", [0, 100, 599])
def test_values_of_more_rows_than_are_taken_at_once(keep: int) -> None:
    problem = _problem(
        600, 4, groups=np.random.default_rng(0).permutation(np.arange(600) // 2), dead=(3, 4, 5)
    )
    problem = problem if keep < problem.n else _problem(600, 4)
    path = problem.path("magnitude_refit", keep=keep)
    for at in {keep, (keep + problem.n) // 2, problem.n - 1, problem.n}:
        assert path.objective(at) == pytest.approx(problem.value(path.support(at)), rel=1e-8, abs=1e-12)


def test_values_hold_one_array_of_the_size_of_gram() -> None:
    p = 1536
    factors = np.random.default_rng(0).standard_normal((p, 40))
    dense = np.random.default_rng(1).standard_normal((p, 4))
    problem = Problem(factors @ factors.T / 40 + np.eye(p), dense_weights=dense, copy=False)
    problem.path("magnitude_refit")
    tracemalloc.start()
    try:
        problem.path("magnitude_refit")
        peak = tracemalloc.get_traced_memory()[1] / 8
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * p * p  # the rest: a few hundred rows at a time


def test_the_command_takes_keep(tmp_path: Path) -> None:
    file = tmp_path / "layer.safetensors"
    problem = _problem()
    problem.save(file)

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["path", str(file), *words], env={"COLUMNS": "100"})

    document = json.loads(run("--keep", "9", "--json").stdout)
    assert document["keeps"] == [14, 13, 12, 11, 10, 9]
    assert document["order"] == problem.path().order[:5].tolist()
    assert len(document["objectives"]) == 6
    table = [line.split() for line in run("--keep", "9").stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row[0]) for row in table] == document["keeps"]
    few = [
        line.split()
        for line in run("--keep", "9", "--rows", "2").stdout.splitlines()
        if line.strip()[:1].isdigit()
    ]
    assert [int(row[0]) for row in few] == [14, 9]
    refused = run("--keep", "15")
    assert refused.exit_code == 2
    assert "keep = 15 is out of range" in refused.stderr
