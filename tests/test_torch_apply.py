"""Refitted weights written back: what the layer then computes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch import apply_solution, problem_from_layer

P, Q, ROWS = 12, 5, 90


def _inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(ROWS, P, generator=torch.Generator().manual_seed(8)).to(dtype)


def _linear(dtype: torch.dtype = torch.float64, p: int = P, q: int = Q) -> torch.nn.Linear:
    torch.manual_seed(9)
    return torch.nn.Linear(p, q, dtype=dtype)


@pytest.mark.parametrize("intercept", [False, True])
def test_round_trip_gives_x_times_weights_plus_the_bias(intercept: bool) -> None:
    layer, x = _linear(), _inputs()
    pointer = layer.weight.data_ptr()
    solution = problem_from_layer(layer, x, groups=3, keep=2, intercept=intercept).solve("magnitude_refit")
    bias = torch.from_numpy(solution.intercept) if intercept else layer.bias.detach().clone()
    solution.apply_to(layer)
    with torch.no_grad():
        output = layer(x).numpy()
    np.testing.assert_allclose(output, x.numpy() @ solution.weights + bias.numpy(), rtol=1e-12, atol=1e-12)
    removed = ~solution.problem.groups.row_mask(solution.support)
    assert removed.sum() == 6
    assert (layer.weight.detach().numpy().T[removed] == 0.0).all()
    assert layer.weight.data_ptr() == pointer
    assert layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_arrive_in_the_layers_dtype(dtype: torch.dtype) -> None:
    layer, x = _linear(dtype), _inputs(dtype)
    solution = problem_from_layer(layer, x, keep=7).solve("magnitude_refit")
    apply_solution(solution, layer)
    assert layer.weight.dtype == dtype
    expected = torch.from_numpy(np.ascontiguousarray(solution.weights.T)).to(dtype)
    assert torch.equal(layer.weight.detach(), expected)


def test_conv1d_and_a_layer_inside_a_model() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(9)
    model = torch.nn.Sequential(torch.nn.Linear(4, P), torch.nn.Tanh(), Conv1D(Q, P))
    solution = problem_from_layer(model, "2", torch.randn(ROWS, 4), keep=5).solve("magnitude_refit")
    apply_solution(solution, model, "2")
    np.testing.assert_allclose(model[2].weight.detach().numpy(), solution.weights, rtol=1e-6)


def test_applying_the_objective_of_the_masked_layer_is_the_solutions() -> None:
    layer, x = _linear(), _inputs()
    problem = problem_from_layer(layer, x, keep=6)
    solution = problem.solve("magnitude")
    apply_solution(solution, layer)
    assert problem.objective(layer.weight.detach().numpy().T) == pytest.approx(solution.objective, rel=1e-12)


def test_refusals_write_nothing() -> None:
    layer = _linear()
    solution = problem_from_layer(layer, _inputs(), keep=6).solve("magnitude_refit")
    other = _linear(p=P, q=Q + 1)
    before = other.weight.detach().clone()
    with pytest.raises(LayerError, match=r"weights of shape \(12, 5\).*has \(12, 6\)"):
        apply_solution(solution, other)
    assert torch.equal(other.weight.detach(), before)
    with pytest.raises(LayerError, match="Tanh, which is not supported"):
        apply_solution(solution, torch.nn.Tanh())
    with pytest.raises(LayerError, match="no layer named 'b'"):
        apply_solution(solution, torch.nn.ModuleDict({"a": layer}), "b")


def test_weights_too_large_for_the_dtype_are_refused() -> None:
    layer = _linear()
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    solution = problem_from_layer(layer, _inputs(), keep=12).solve("magnitude_refit")
    with pytest.raises(LayerError, match=r"do not fit torch\.float16"):
        apply_solution(solution, _linear(torch.float16))


def test_a_tied_weight_is_refused() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(Q, P), "head": torch.nn.Linear(P, Q, bias=False)}
    )
    model["head"].weight = model["embed"].weight
    solution = problem_from_layer(model["head"], _inputs(torch.float32), keep=6).solve("magnitude_refit")
    with pytest.raises(LayerError, match="head shares its weight with embed"):
        apply_solution(solution, model, "head")
