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
from osscar_opt.formulations.solution import BoundKind, Status, Termination

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


@pytest.mark.parametrize("rows", [12, 420])  # 420: single precision as far as it goes
def test_a_nearly_singular_gram_is_no_excuse(rows: int) -> None:
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
    gram = (turn * np.geomspace(1e-8, 1.0, rows)) @ turn.T
    problem = Problem(gram, dense_weights=rng.normal(size=(rows, 5)), keep=rows // 2)
    found = problem.lower_bound(time_limit=3)
    best = enumerated(problem) if rows == 12 else problem.solve("forward").objective
    assert problem.base <= found.value <= best * (1 + 1e-6)
    assert found.certificate().bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("keep", [0, 11, 12])
def test_extreme_limits_are_bounded_exactly(keep: int) -> None:
    problem = layer(12, 5, keep)
    sure = problem.solve("exhaustive").certify(time_limit=5)
    assert sure.gap < (0.02 if keep == 11 else 1e-6)


def test_an_interrupted_search_returns_what_it_has() -> None:
    problem = layer(60, 20, 30)

    def interrupt(seconds: float, value: float, steps: int) -> None:
        if steps == 7:
            raise KeyboardInterrupt

    found = problem.lower_bound(time_limit=60, report=interrupt)
    assert found.termination is Termination.INTERRUPTED
    assert found.iterations == 7
    assert problem.base < found.value <= problem.solve("forward").objective
    assert found.certificate().check().valid


def test_the_parts_of_a_bound_are_over_the_groups_as_posed() -> None:
    problem = layer(60, 20, 30).with_limits(always_keep=[3], always_remove=[5, 6])
    found = problem.lower_bound(time_limit=5)
    assert found.kept[3] == 1.0
    assert found.kept[5] == found.kept[6] == 0.0
    assert found.kept.sum() == pytest.approx(30, abs=1e-6)
    assert np.all(found.scores[[3, 5, 6]] == 0.0)
    assert np.all(found.scores >= 0.0)
    objective = problem.solve("forward").objective
    assert found.gap(objective) == pytest.approx((objective - found.value) / objective)


def test_certifying_never_loosens_a_certified_bound() -> None:
    problem = layer(20, 7, 10)
    solved = problem.solve("exact", certificate=True)
    assert solved.certify(time_limit=2) is solved
    claimed = problem.solve("exhaustive")
    sure = claimed.certify(time_limit=2)
    assert (claimed.bound_kind, sure.bound_kind) == (BoundKind.CLAIMED, BoundKind.CERTIFIED)
    assert sure.status is (Status.OPTIMAL if sure.gap <= 1e-6 else Status.FEASIBLE)
    sure.verify()


@pytest.mark.parametrize("wrong", [{"time_limit": -1.0}, {"tolerance": -1.0}, {"tolerance": np.nan}])
def test_arguments_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        layer(5, 3, 2).lower_bound(**wrong)
    with pytest.raises(InputError, match="no limit on what may stay"):
        layer(5, 3, 2).with_keep(None).lower_bound()


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
