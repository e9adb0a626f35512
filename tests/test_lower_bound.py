"""Lower bounds of layers of any size: below every value, proven, in time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import highspy
import numpy as np
import pytest
from test_exact import drawn, enumerated
from typer.testing import CliRunner

from osscar_opt import Problem, load
from osscar_opt.cli import app
from osscar_opt.errors import InputError
from osscar_opt.formulations.solution import BoundKind, Status

REAL = sorted((Path(__file__).parent / "data").glob("*.safetensors"))


def check_bound(seed: int) -> None:
    problem = drawn(seed)
    optimum = enumerated(problem)
    slack = 1e-9 * abs(optimum) + 1e-10 * abs(problem.constant)
    found = problem.lower_bound(time_limit=20)
    assert problem.base - slack <= found.value <= optimum + slack, seed
    proof = found.certificate()
    assert proof.check(problem).valid, seed
    assert proof.bound <= optimum + slack, seed
    assert proof.bound >= found.value - 1e-6 * abs(found.value) - slack, seed


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_no_bound_is_above_the_enumerated_optimum(first: int) -> None:
    for seed in range(first, first + 20):
        check_bound(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(5000, 7000, 100))
def test_no_bound_is_above_the_enumerated_optimum_often(first: int) -> None:
    for seed in range(first, first + 100):
        check_bound(seed)


def layer(p: int, q: int, keep: int) -> Problem:
    rng = np.random.default_rng(3)
    x = np.maximum(rng.normal(size=(3 * p, p)) + 0.3 * rng.normal(size=(3 * p, 1)), 0.0)
    gram = x.T @ x / len(x)
    gram += 1e-2 * np.mean(np.diag(gram)) * np.eye(p)
    return Problem(gram, dense_weights=rng.normal(size=(p, q)), keep=keep)


@pytest.mark.parametrize("q", [40, 600])
def test_a_larger_layer_is_bounded_to_a_few_per_cent(q: int) -> None:
    problem = layer(400, q, 200)  # steps in single precision
    rough = problem.solve("forward")
    sure = rough.certify(time_limit=20)
    assert sure.bound_kind is BoundKind.CERTIFIED
    assert sure.bound <= sure.objective
    assert sure.objective - sure.bound < 0.25 * (sure.objective - problem.base)
    assert np.array_equal(sure.support, rough.support)


def test_the_trace_rises_and_time_is_kept() -> None:
    problem = layer(300, 100, 100)
    began = time.monotonic()
    found = problem.lower_bound(time_limit=3)
    assert time.monotonic() - began < 30
    values = [value for _, value in found.trace]
    assert values == sorted(values)
    assert values[-1] == found.value
    assert repr(found).startswith("LowerBound(")


def test_no_time_gives_what_is_known_anyway() -> None:
    problem = layer(300, 100, 100)
    assert problem.lower_bound(time_limit=0.0).value >= problem.base - 1e-9 * problem.constant


@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_damping_does_not_matter_for_validity(damping: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 12)) @ rng.normal(size=(12, 12)) * 10.0 ** rng.uniform(-4, 4, 12)
    gram = x.T @ x / 20
    scale = np.sqrt(np.diag(gram))
    gram += damping * np.diag(scale**2)
    problem = Problem(gram, dense_weights=rng.normal(size=(12, 5)) / scale[:, None], keep=6)
    found, optimum = problem.lower_bound(time_limit=5), enumerated(problem)
    assert found.value <= optimum * (1 + 1e-9)
    assert found.certificate().bound <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_heuristics_on_real_layers_get_a_proven_gap(path: Path, tmp_path: Path) -> None:
    problem = load(path)
    problem = problem.with_keep(problem.n // 2)
    sure = problem.solve("greedy").certify(time_limit=10)
    assert sure.bound_kind is BoundKind.CERTIFIED
    optimum = problem.solve("exact").objective
    assert sure.bound <= optimum * (1 + 1e-9) <= sure.objective * (1 + 2e-9)
    assert sure.status in (Status.OPTIMAL, Status.FEASIBLE)
    file = tmp_path / "proof.safetensors"
    ran = CliRunner().invoke(
        app, ["bound", str(path), "--keep", str(problem.n // 2), "--certificate", str(file), "--json"]
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["bound"] <= optimum * (1 + 1e-9)
    assert CliRunner().invoke(app, ["verify", str(file)]).exit_code == 0


@pytest.mark.parametrize("suffix", [".mps", ".lp"])
def test_the_exported_program_bounds_the_problem(suffix: str, tmp_path: Path) -> None:
    problem = layer(10, 4, 4)
    problem.to_mps(tmp_path / f"layer{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == [f"layer{suffix}"]
    highs = highspy.Highs()
    highs.silent()
    highs.readModel(str(tmp_path / f"layer{suffix}"))
    highs.run()
    bound, optimum = highs.getInfo().objective_function_value, problem.solve("exhaustive").objective
    assert 0.3 * optimum < bound <= optimum * (1 + 1e-6)


def test_exports_are_called_mps_or_lp() -> None:
    with pytest.raises(InputError, match=r"must end in \.mps or \.lp"):
        layer(4, 3, 2).to_mps("layer.txt")
