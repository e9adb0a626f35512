"""Fits with an intercept, from arrays and from layers, against least squares with a column of ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt import Problem, load
from osscar_opt.errors import FormatError, InputError, LayerError
from osscar_opt.instances import instance_info, random_instance
from osscar_opt.instances.sealed import SealedFile, write_file
from osscar_opt.torch import problem_from_layer

N, P, Q = 50, 6, 3


def _data(seed: int = 0, level: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, P)) @ rng.normal(size=(P, P)) + level * rng.normal(size=P)
    w = rng.normal(size=(P, Q))
    return x, w, x @ w + 0.1 * rng.normal(size=(N, Q)) - level


def _least_squares(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, kept: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights, intercept and objective by one stacked least-squares problem; the ones are not damped."""
    rows = np.flatnonzero(kept)
    design = np.block(
        [[x[:, rows], np.ones((N, 1))], [np.sqrt(N * ridge) * np.eye(P)[:, rows], np.zeros((P, 1))]]
    )
    goal = np.vstack([y, np.sqrt(N * ridge) * w])
    fit = np.linalg.lstsq(design, goal, rcond=None)[0]
    weights = np.zeros((P, Q))
    weights[rows] = fit[:-1]
    return weights, fit[-1], 0.5 * float(((goal - design @ fit) ** 2).sum()) / N


@given(
    seed=st.integers(0, 20),
    kept=st.lists(st.booleans(), min_size=P, max_size=P),
    damping=st.sampled_from([0.0, 1e-2, 1.0]),
    level=st.sampled_from([0.0, 5.0, 1e4]),
)
def test_from_data_it_is_least_squares_with_a_column_of_ones(
    seed: int, kept: list[bool], damping: float, level: float
) -> None:
    x, w, y = _data(seed, level)
    ridge = damping * np.var(x, axis=0).mean()
    problem = Problem.from_data(x, w, targets=y, damping=damping, intercept=True)
    mask = np.array(kept)
    weights, intercept, value = _least_squares(x - x.mean(0), y, w, mask, ridge)
    np.testing.assert_allclose(problem.refit(mask), weights, rtol=1e-6, atol=1e-7)
    assert problem.value(mask) == pytest.approx(value, rel=1e-6, abs=1e-9)
    limits = {"keep": int(mask.sum()), "always_keep": mask, "always_remove": ~mask}
    solution = problem.with_limits(**limits).solve("magnitude_refit")
    np.testing.assert_allclose(
        solution.intercept + weights.T @ x.mean(0), intercept, rtol=1e-6, atol=1e-6 * (1.0 + level)
    )


def _layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(P, Q).double()


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_of_a_layer_it_is_least_squares_and_the_new_bias(damping: float, teacher: bool) -> None:
    layer, (x, _, _) = _layer(), _data(1)
    inputs = torch.from_numpy(x)
    taught = inputs.roll(1, 1) + 1.0 if teacher else inputs
    with torch.no_grad():
        y = layer(taught).numpy()
    dense = layer.weight.detach().numpy().T.copy()
    problem = problem_from_layer(
        layer, inputs, target_inputs=taught if teacher else None, keep=3, damping=damping
    )
    solution = problem.solve("greedy")
    ridge = damping * np.var(x, axis=0).mean()
    weights, intercept, value = _least_squares(x, y, dense, solution.support, ridge)
    solution.apply_to(layer)
    np.testing.assert_allclose(layer.weight.detach().numpy().T, weights, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(layer.bias.detach().numpy(), intercept, rtol=1e-8, atol=1e-9)
    assert solution.objective == pytest.approx(value, rel=1e-8)


def test_the_objective_with_an_intercept_is_never_above_the_one_without() -> None:
    layer, (x, _, _) = _layer(), _data(2)
    inputs = torch.from_numpy(x)
    values = [
        problem_from_layer(layer, inputs, damping=0.0, intercept=intercept).value([0, 2])
        for intercept in (True, False)
    ]
    assert values[0] < values[1]


def test_a_layer_without_bias() -> None:
    layer, x = torch.nn.Linear(P, Q, bias=False).double(), torch.from_numpy(_data()[0])
    assert problem_from_layer(layer, x, keep=2).solve("greedy").intercept is None
    batches = iter([x])
    with pytest.raises(
        LayerError, match=r"fc2 has no bias to hold an intercept: pass intercept=False, or give"
    ):
        problem_from_layer(layer, batches, intercept=True, name="fc2")
    assert next(batches) is x  # told before any batch is read
    with_bias = _layer()
    solution = problem_from_layer(with_bias, x, keep=2).solve("greedy")
    before = layer.weight.detach().clone()
    with pytest.raises(LayerError, match="an intercept but the layer has no bias"):
        solution.apply_to(layer)
    assert torch.equal(layer.weight.detach(), before)


def test_a_shared_bias_is_refused_when_it_would_change() -> None:
    model = torch.nn.ModuleList([_layer(), _layer()])
    model[1].bias = model[0].bias
    x = torch.from_numpy(_data()[0])
    with pytest.raises(LayerError, match="0 shares its bias with 1"):
        problem_from_layer(model[0], x, keep=2).solve("greedy").apply_to(model, "0")
    problem_from_layer(model[0], x, keep=2, intercept=False).solve("greedy").apply_to(model, "0")


def _centred(**rest: Any) -> Problem:
    x, w, _ = _data()
    return Problem.from_data(x, w, intercept=True, **rest)


def test_problems_derived_from_one_keep_its_means() -> None:
    problem = _centred(keep=3)
    for derived in (problem.with_keep(2), problem.with_limits(always_keep=[1])):
        np.testing.assert_array_equal(derived.input_mean, problem.input_mean)
        np.testing.assert_array_equal(derived.target_mean, problem.target_mean)
    with pytest.raises(ValueError, match="read-only"):
        problem.input_mean[0] = 1.0


def test_the_hash_holds_the_means_only_where_there_are_any() -> None:
    # noted down before problems had means
    known = "050183d11730cae91808e7eb169053e6edcc8a7490313d9346b9cf73a5cbb853"
    assert random_instance(0, "correlated", n=6, q=2).hash == known
    problem = _centred()
    plain = Problem(problem.gram, dense_weights=problem.dense_weights)
    other = Problem(
        problem.gram,
        dense_weights=problem.dense_weights,
        input_mean=problem.input_mean + 1.0,
        target_mean=problem.target_mean,
    )
    assert len({problem.hash, plain.hash, other.hash}) == 3


def test_presolve_solves_problems_with_means() -> None:
    problem = _centred(keep=3, always_keep=[0], always_remove=[5])
    solution = problem.solve("greedy")
    assert solution.problem is problem
    np.testing.assert_allclose(
        solution.intercept, problem.target_mean - solution.weights.T @ problem.input_mean
    )


def test_malformed_means() -> None:
    gram, weights = np.eye(3), np.ones((3, 2))
    with pytest.raises(InputError, match="belong together"):
        Problem(gram, dense_weights=weights, input_mean=np.zeros(3))
    with pytest.raises(InputError, match="target_mean must hold 2 numbers"):
        Problem(gram, dense_weights=weights, input_mean=np.zeros(3), target_mean=np.zeros(3))
    with pytest.raises(InputError, match=r"input_mean\[1\] is nan"):
        Problem(gram, dense_weights=weights, input_mean=[0.0, np.nan, 0.0], target_mean=np.zeros(2))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_instance_files_keep_the_means(dtype: str, tmp_path: Path) -> None:
    from osscar_opt.instances import save

    problem = _centred(keep=3)
    save(problem, tmp_path / "a", dtype=dtype)
    again = load(tmp_path / "a")
    np.testing.assert_array_equal(again.input_mean, problem.input_mean)
    np.testing.assert_array_equal(again.target_mean, problem.target_mean)
    assert instance_info(tmp_path / "a").version == "1.1"
    if dtype == "float64":
        assert again.hash == problem.hash
    plain = Problem(problem.gram, dense_weights=problem.dense_weights)
    plain.save(tmp_path / "b")
    assert instance_info(tmp_path / "b").version == "1.0"
    assert load(tmp_path / "b").input_mean is None


def test_the_golden_file_of_version_1_1() -> None:
    """Written when version 1.1 of instance files was new; the numbers were noted down then."""
    problem = load(Path(__file__).parent / "golden" / "instance-1.1-means.safetensors")
    assert problem.hash == "038e4f90d7e09816d1b8ad61a6ef0b5e8799b2dbdab04740b18885f6338d5cf3"
    solution = problem.solve("exhaustive")
    assert solution.kept.tolist() == [1, 2]
    assert solution.objective == pytest.approx(1.2745710232678102, rel=1e-12)
    np.testing.assert_allclose(solution.intercept, [-2.7665654503406083, -14.853030453035815], rtol=1e-10)


def test_files_with_one_of_the_means_or_of_the_wrong_version_are_refused(tmp_path: Path) -> None:
    from osscar_opt.instances.format import KIND

    _centred(keep=3).save(tmp_path / "a")
    with SealedFile(tmp_path / "a", KIND, "1.1") as file:
        arrays = {name: file.read(name) for name in file.entries}
        metadata = {key: value for key, value in file.metadata.items() if key not in ("sha256", "seal")}
    write_file(tmp_path / "old", KIND, "1.0", metadata, arrays)
    with pytest.raises(FormatError, match=r"'input_mean' is not part of version 1\.0"):
        load(tmp_path / "old")
    del arrays["target_mean"]
    write_file(tmp_path / "half", KIND, "1.1", metadata, arrays)
    with pytest.raises(FormatError, match="only one is there"):
        load(tmp_path / "half")
    arrays["target_mean"] = np.zeros(P)
    write_file(tmp_path / "long", KIND, "1.1", metadata, arrays)
    with pytest.raises(FormatError, match=r"'target_mean' has shape \[6\]"):
        load(tmp_path / "long")
