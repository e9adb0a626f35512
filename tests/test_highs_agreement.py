"""Outer approximation against enumeration, and against branch and bound, with which it shares no bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_exact import drawn, enumerated

from osscar_opt import load
from osscar_opt.formulations.solution import Status, Termination

REAL = sorted((Path(__file__).parent / "data").glob("*ffn*.safetensors"))


def check_highs(seed: int) -> None:
    problem = drawn(seed)
    optimum = enumerated(problem)
    slack = 1e-7 * abs(optimum) + 1e-9 * abs(problem.constant)
    solution = problem.solve("highs", time_limit=60)
    assert solution.bound <= optimum + slack, seed
    assert solution.objective >= optimum - slack, seed
    if solution.status is Status.OPTIMAL:
        assert abs(solution.objective - optimum) <= 2e-6 * abs(optimum) + slack, seed
    else:
        assert solution.gap < 1e-3, (seed, solution.message)


@pytest.mark.parametrize("first", range(100, 140, 10))
def test_agrees_with_enumeration(first: int) -> None:
    for seed in range(first, first + 10):
        check_highs(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 5000, 100))
def test_agrees_with_enumeration_often(first: int) -> None:
    for seed in range(first, first + 100):
        check_highs(seed)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_agrees_with_exact_on_real_layers(path: Path) -> None:
    problem = load(path).with_limits(always_remove=range(16, 48)).with_keep(8)
    other, exact = problem.solve("highs", time_limit=60), problem.solve("exact")
    assert exact.status is Status.OPTIMAL
    assert other.objective == pytest.approx(exact.objective, rel=1e-6)
    assert other.bound <= exact.objective * (1 + 1e-6)
    assert exact.bound <= other.objective * (1 + 1e-6)


def test_a_time_limit_gives_incumbent_bound_and_gap() -> None:
    problem = load(REAL[0]).with_keep(24)
    solution = problem.solve("highs", time_limit=1.0)
    assert solution.support.sum() == 24
    assert solution.bound <= solution.objective
    assert solution.termination in (Termination.TIME_LIMIT, Termination.COMPLETED)
