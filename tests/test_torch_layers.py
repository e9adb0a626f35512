"""Layers of every kind as Y = X W + b, against the outputs that torch itself computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from osscar_opt.errors import InputError, LayerError
from osscar_opt.torch import problem_from_layer, view_of
from osscar_opt.torch.layers import row_groups
from osscar_opt.torch.moments import LayerMoments
from osscar_opt.torch.watch import LayerCall, call_of, watch

# inputs are small, so that wrong positions cannot hide in averages
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*rows for a width:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),  # torch's own
]


class StaticSame(nn.Conv2d):
    """Pads by itself, unevenly, as EfficientNet-Lite's Conv2dStaticSamePadding does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (1, 2, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByKeyword(nn.Conv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(input=2.0 * x, weight=self.weight, bias=self.bias, stride=self.stride)


class Standardised(nn.Conv2d):
    """Multiplies by another weight than the one it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
    "pointwise": (lambda: nn.Conv2d(5, 4, 1), (2, 5, 3, 4)),
    "stride": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 0)), (2, 3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 3, 6, 7)),
    "valid": (lambda: nn.Conv2d(3, 4, 2, padding="valid"), (2, 3, 4, 5)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), (2, 3, 5, 6)),
    "reflect same": (lambda: nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect"), (2, 3, 5, 6)),
    "dilation": (lambda: nn.Conv2d(3, 4, 3, dilation=(2, 1), padding=2, bias=False), (2, 3, 6, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5, stride=2, padding=1), (2, 5, 7, 6)),
    "depthwise twice": (lambda: nn.Conv2d(3, 6, (1, 3), groups=3, bias=False), (2, 3, 5, 6)),
    "one image": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 7)),
    "own padding": (lambda: StaticSame(3, 4, 4, stride=2), (5, 3, 7, 8)),
    "sequence": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 3, 11)),
    "sequence groups": (lambda: nn.Conv1d(6, 4, 2, groups=2, padding="same"), (3, 6, 9)),
    "keywords": (lambda: ByKeyword(3, 4, 2, stride=3), (3, 3, 9)),
}


def _made(name: str) -> tuple[Any, torch.Tensor]:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = make().double()
    return layer, torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.7


def _other_weights(layer: Any) -> tuple[Any, np.ndarray]:
    """A copy of the layer with other weights and bias, and those weights as the library lays them out."""
    other = type(layer).__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other._parameters = {
        key: None if value is None else nn.Parameter(torch.randn_like(value))
        for key, value in layer._parameters.items()
    }
    return other, view_of(other).read_weight().numpy()


def _error(layer: Any, other: Any, x: torch.Tensor) -> float:
    """Half the squared distance of their outputs, a position."""
    with torch.no_grad():
        apart = layer(x) - other(x)
    return float(0.5 * apart.square().sum() / (apart.numel() / layer.out_channels))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_give_the_error_of_real_outputs(name: str) -> None:
    layer, x = _made(name)
    other, weights = _other_weights(layer)
    if layer.bias is not None:
        other.bias = layer.bias  # without an intercept it drops out
    moments = LayerMoments(layer, name, intercept=False)
    moments.add(x)
    parts = moments.parts()
    apart = weights - parts["weights"]
    assert 0.5 * np.trace(apart.T @ parts["second_moment"] @ apart) == pytest.approx(
        _error(layer, other, x), rel=1e-10
    )
    assert weights.shape == (moments.view.width, moments.view.outputs)
    assert moments.view.width == layer.in_channels * moments.view.rows_per_channel


@pytest.mark.parametrize(
    "name", [name for name, (make, _) in CONVOLUTIONS.items() if make().bias is not None]
)
def test_with_an_intercept_the_objective_is_the_error_of_the_written_layer(name: str) -> None:
    layer, x = _made(name)
    problem = problem_from_layer(layer, x, sparsity=0.4, damping=1e-9)
    solution = problem.solve("magnitude_refit")
    dense, _ = _other_weights(layer)
    dense._parameters = {key: value.clone() for key, value in layer._parameters.items()}
    solution.apply_to(layer)
    assert solution.objective == pytest.approx(_error(dense, layer, x), rel=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(_mean(layer(x), layer), _mean(dense(x), layer), atol=1e-9)
    removed = ~solution.support
    per_channel = view_of(layer).read_weight().view(layer.in_channels, -1)
    assert not per_channel[torch.from_numpy(removed)].any()


def _mean(outputs: torch.Tensor, layer: Any) -> np.ndarray:
    return view_of(layer).output_rows(outputs).mean(0).numpy()


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.one_of(st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 4]),
    budget=st.integers(1, 2000),
)
def test_any_convolution_in_any_pieces(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
    groups: int,
    budget: int,
) -> None:
    torch.manual_seed(3)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups).double()
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    view = view_of(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osscar_opt.torch.convolution._UNFOLDED", budget)
        pieces = list(view.row_blocks(x))
    # a row of positions is the least that is laid out at once
    assert all(len(piece) <= max(1, budget // view.width) for piece in pieces)
    with torch.no_grad():
        direct = view.output_rows(layer(x) - layer.bias[:, None, None])
    torch.testing.assert_close(torch.cat(pieces) @ view.read_weight(), direct)


@pytest.mark.parametrize("name", ["groups", "depthwise", "sequence", "plain"])
def test_weights_come_back_as_they_were_written(name: str) -> None:
    layer, _ = _made(name)
    view = view_of(layer)
    weight, bias = view.read_weight(), view.read_bias()
    before = layer.weight.detach().clone()
    view.write_weight(torch.zeros_like(weight))
    assert not layer.weight.any()
    view.write_weight(weight)
    view.write_bias(bias + 1.0)
    assert torch.equal(layer.weight.detach(), before)
    assert torch.equal(layer.bias.detach(), bias + 1.0)


def test_weights_between_convolution_groups_are_refused() -> None:
    layer, _ = _made("groups")
    view = view_of(layer, "block.conv")
    before = layer.weight.detach().clone()
    with pytest.raises(LayerError, match=r"block\.conv has 2 convolution groups"):
        view.write_weight(torch.ones(view.width, view.outputs))
    assert torch.equal(layer.weight.detach(), before)


def test_gram_and_cross_of_convolution_groups_are_block_diagonal() -> None:
    layer, x = _made("groups")
    problem = problem_from_layer(layer, torch.cat([x] * 3), keep=3)
    outside = np.kron(1 - np.eye(2), np.ones((18, 18))).astype(bool)
    assert not problem.gram[outside].any()
    assert not problem.cross[np.kron(1 - np.eye(2), np.ones((18, 3))).astype(bool)].any()
    assert problem.groups.n == 4


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", ["groups", "stride", "depthwise twice", "sequence"])
def test_a_teachers_inputs_and_outputs_are_the_same_targets(name: str, intercept: bool) -> None:
    layer, x = _made(name)
    if intercept and layer.bias is None:
        layer.bias = nn.Parameter(torch.randn(layer.out_channels, dtype=torch.float64))
    taught = x + 0.3 * torch.randn_like(x) + 0.5
    by_inputs = LayerMoments(layer, name, teacher=True, intercept=intercept)
    by_outputs = LayerMoments(layer, name, teacher=True, intercept=intercept)
    with torch.no_grad():
        for student, dense in zip(x.split(1), taught.split(1), strict=True):
            by_inputs.add(student, dense)
            by_outputs.add(student, teacher_outputs=layer(dense))
    a, b = by_inputs.parts(), by_outputs.parts()
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-10, atol=1e-10)
    # and the dense weights lose what the outputs of the two differ by, up to the means where there is an intercept
    w = a["weights"]
    loss = (
        0.5 * np.trace(w.T @ a["second_moment"] @ w - 2 * w.T @ a["cross_moment"]) + 0.5 * a["target_energy"]
    )
    with torch.no_grad():
        apart = view_of(layer).output_rows(layer(taught) - layer(x))
    if intercept:
        apart = apart - apart.mean(0)
    assert loss == pytest.approx(float(0.5 * apart.square().sum() / len(apart)), rel=1e-8)


def test_masked_positions_of_a_sequence_do_not_count() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 2, 3, padding=1)
    x = torch.randn(4, 3, 10)
    mask = torch.ones(4, 10)
    mask[1, 6:] = 0
    masked, cut = LayerMoments(layer), LayerMoments(layer)
    masked.add(x, mask=mask)
    rows = torch.cat(list(view_of(layer).row_blocks(x))).view(4, 10, 9)[mask.bool()]
    cut._gram.add(rows)
    assert masked.rows == cut.rows == 36
    np.testing.assert_allclose(masked.parts()["second_moment"], cut.parts()["second_moment"], rtol=1e-12)
    with pytest.raises(LayerError, match="does not cover"):
        masked.add(x, mask=torch.ones(4, 9))


def test_watching_sees_what_the_weight_is_multiplied_with() -> None:
    torch.manual_seed(0)
    conv, line = StaticSame(3, 4, 4), nn.Linear(5, 2)
    seen: dict[str, LayerCall] = {}
    with watch({"conv": conv, "line": line}, seen.__setitem__):
        conv(torch.ones(1, 3, 6, 6))
        F.linear(torch.ones(7, 5), line.weight)
        F.linear(torch.ones(8, 5), line.weight.clone())
    assert seen["conv"].inputs.shape == (1, 3, 7, 9)
    assert seen["line"].inputs.shape == (7, 5)
    assert call_of(line, seen["line"]) is seen["line"]


def test_the_real_convolution_that_pads_by_itself() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch.utils")
    torch.manual_seed(0)
    layer = package.Conv2dStaticSamePadding(3, 4, 3, stride=2, image_size=14).double()
    x = torch.randn(5, 3, 14, 14, dtype=torch.float64)
    problem = problem_from_layer(layer, x, keep=2, damping=1e-12, intercept=False)
    assert problem.provenance["calibration_rows"] == 5 * 7 * 7
    other, weights = _other_weights(layer)
    other.bias = layer.bias
    assert problem.objective(weights) == pytest.approx(_error(layer, other, x), rel=1e-8)


class Sharing(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.conv = nn.Conv1d(6, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, self.first.weight, self.first.bias).relu()
        return F.conv1d(hidden.mT, self.conv.weight, padding=1)


def test_a_weight_that_is_used_without_calling_the_layer() -> None:
    model, x = Sharing(), torch.randn(5, 8, 4)
    assert problem_from_layer(model, "first", x).p == 4
    problem = problem_from_layer(model, "conv", [x])
    assert (problem.p, problem.q, problem.n) == (18, 2, 6)
    assert problem.provenance["calibration_rows"] == 40


def test_layers_that_multiply_by_something_else_are_refused() -> None:
    layer = Standardised(3, 4, 2)
    with pytest.raises(LayerError, match=r"Standardised\) does not multiply its inputs by its own weight"):
        problem_from_layer(layer, torch.randn(2, 3, 6, 6))
    with pytest.raises(LayerError, match="was never called in 1 batch"):
        problem_from_layer(nn.Sequential(layer), "0", torch.randn(2, 3, 6, 6))
    with pytest.raises(LayerError, match="fc takes tensors"):
        LayerMoments(nn.Linear(4, 3), "fc").add([1.0])  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="stem cannot be called on inputs of shape"):
        LayerMoments(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "stem").add(torch.zeros(3))
    with pytest.raises(LayerError, match="stem expects inputs of 3 channels"):
        LayerMoments(nn.Conv2d(3, 4, 3), "stem").add(torch.zeros(2, 5, 8, 8))
    with pytest.raises(LayerError, match=r"^stem got NaN or infinite inputs"):
        problem_from_layer(nn.Conv2d(3, 4, 3), torch.full((2, 3, 8, 8), torch.inf), name="stem")


def test_groups_in_terms_of_channels() -> None:
    labels = row_groups([1, 0, 1], 12, rows_per_channel=4).group_of_row
    np.testing.assert_array_equal(labels, np.repeat([1, 0, 1], 4))
    assert row_groups(2, 16, rows_per_channel=4).n == 2
    assert row_groups("heads", 16, num_heads=2, rows_per_channel=4).n == 2
    assert row_groups(np.arange(12) % 2, 12, rows_per_channel=4).n == 2
    assert row_groups("channels", 12).n == 12
    with pytest.raises(InputError, match="does not divide the 3 rows"):
        row_groups(2, 12, rows_per_channel=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_convolutions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(dtype)
    x = (100.0 * torch.randn(3, 3, 7, 7) + 50.0).to(dtype)
    half = problem_from_layer(layer, x, keep=2)
    exact = problem_from_layer(layer.double(), x.double(), keep=2)
    np.testing.assert_allclose(half.gram, exact.gram, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(half.target_mean, exact.target_mean, rtol=1e-10)
    layer.to(dtype)
    half.solve("magnitude_refit").apply_to(layer)
    assert layer.weight.dtype == layer.bias.dtype == dtype
