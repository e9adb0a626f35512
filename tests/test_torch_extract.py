"""Problems extracted from torch layers against the same numbers made from scratch in numpy."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt import Problem
from osscar_opt.errors import InputError, LayerError
from osscar_opt.torch import problem_from_layer, view_of

P, Q, ROWS = 12, 5, 90


class Conv1D(torch.nn.Module):
    """transformers' GPT-2 layer in miniature: weight stored inputs by outputs."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(nx, nf))
        self.bias = torch.nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


class PaddedLinear(torch.nn.Linear):
    """A subclass, as libraries make them."""


def _seed() -> None:
    torch.manual_seed(3)


def _layer(kind: type[torch.nn.Module]) -> torch.nn.Module:
    _seed()
    return kind(Q, P) if kind is Conv1D else kind(P, Q)


def _dense(layer: Any) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    return weight if isinstance(layer, Conv1D) else weight.T


def _inputs() -> torch.Tensor:
    x = torch.randn(ROWS, P, generator=torch.Generator().manual_seed(4))
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    x[:, 2] *= 300.0
    return x


def _expected(x: torch.Tensor, w: np.ndarray, damping: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
    a = x.double().numpy().reshape(-1, P)
    second = a.T @ a / len(a)
    gram = second + damping * np.diag(second).mean() * np.eye(P)
    return gram, gram @ w


@pytest.mark.parametrize("kind", [torch.nn.Linear, PaddedLinear, Conv1D])
def test_layer_and_inputs_match_numpy(kind: type[torch.nn.Module]) -> None:
    layer, x = _layer(kind), _inputs()
    problem = Problem.from_torch_layer(layer, x.view(9, 10, P), keep=7, intercept=False)
    gram, cross = _expected(x, _dense(layer))
    np.testing.assert_allclose(problem.gram, gram, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(problem.cross, cross, rtol=1e-10, atol=1e-8)
    np.testing.assert_array_equal(problem.dense_weights, _dense(layer))
    assert (problem.p, problem.q, problem.n, problem.keep) == (P, Q, P, 7)
    assert problem.objective(_dense(layer)) == pytest.approx(0.0, abs=1e-12)


def test_the_objective_is_the_reconstruction_error_of_the_layer() -> None:
    layer, x = _layer(torch.nn.Linear), _inputs()
    problem = problem_from_layer(layer, x, damping=1e-12, intercept=False)
    pruned = _dense(layer).copy()
    pruned[3:6] = 0.0
    other = torch.nn.Linear(P, Q)
    with torch.no_grad():
        other.weight.copy_(torch.from_numpy(pruned.T))
        other.bias.copy_(layer.bias)
        difference = (layer.double()(x.double()) - other.double()(x.double())).numpy()
    assert problem.objective(pruned) == pytest.approx(0.5 * (difference**2).sum() / ROWS, rel=1e-7)


@pytest.mark.parametrize("sizes", [[1] * ROWS, [80, 10], [33, 33, 24]])
def test_same_problem_however_the_batches_are_cut(sizes: list[int]) -> None:
    layer, x = _layer(torch.nn.Linear), _inputs()
    whole = problem_from_layer(layer, x)
    cut = problem_from_layer(layer, [(part, "label") for part in x.split(sizes)])
    scale = np.sqrt(np.outer(np.diag(whole.gram), np.diag(whole.gram)))
    assert np.max(np.abs(cut.gram - whole.gram) / scale) < 1e-10
    assert cut.provenance["calibration_rows"] == ROWS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_and_inputs(dtype: torch.dtype) -> None:
    layer, x = _layer(torch.nn.Linear).to(dtype), _inputs().to(dtype)
    problem = problem_from_layer(layer, x, intercept=False)
    gram, cross = _expected(x, _dense(layer))
    np.testing.assert_allclose(problem.gram, gram, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(problem.cross, cross, rtol=1e-10, atol=1e-8)
    assert problem.provenance["layer_dtype"] == str(dtype).removeprefix("torch.")


def _model() -> torch.nn.Sequential:
    _seed()
    return torch.nn.Sequential(torch.nn.Linear(4, P), torch.nn.ReLU(), torch.nn.Linear(P, Q))


def test_model_name_and_batches_match_the_layer_alone() -> None:
    model = _model()
    batches = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        hidden = torch.relu(model[0](batches))
    alone = problem_from_layer(model[2], hidden, sparsity=0.5)
    inside = problem_from_layer(model, "2", list(batches.split(7)), sparsity=0.5)
    np.testing.assert_allclose(inside.gram, alone.gram, rtol=1e-5)
    assert inside.keep == alone.keep == 6
    assert inside.name == "2"
    assert model[2].weight.requires_grad
    assert model[2].weight.grad is None


def test_a_half_precision_model_is_extracted_in_its_own_dtype() -> None:
    model = _model().to(torch.bfloat16)
    batches = torch.randn(90, 4, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    problem = problem_from_layer(model, "2", batches, keep=3)
    assert problem.gram.dtype == np.float64
    assert problem.provenance["layer_dtype"] == "bfloat16"


def test_teacher_inputs_set_the_targets() -> None:
    layer, x = _layer(torch.nn.Linear), _inputs()
    teacher = x + 0.3 * torch.randn(ROWS, P, generator=torch.Generator().manual_seed(6))
    problem = problem_from_layer(
        layer, list(x.split(30)), target_inputs=list(teacher.split(30)), keep=4, intercept=False
    )
    a, b, w = x.double().numpy(), teacher.double().numpy(), _dense(layer)
    gram, _ = _expected(x, w)
    ridge = gram[0, 0] - (a.T @ a / ROWS)[0, 0]
    np.testing.assert_allclose(problem.cross, a.T @ (b @ w) / ROWS + ridge * w, rtol=1e-9, atol=1e-7)
    error = 0.5 * ((b @ w - a @ w) ** 2).sum() / ROWS
    assert problem.objective(w) == pytest.approx(error, rel=1e-9)
    assert problem.provenance["targets"] == "teacher"
    with pytest.raises(LayerError, match="more batches of inputs"):
        problem_from_layer(layer, list(x.split(30)), target_inputs=[teacher[:30]])
    with pytest.raises(InputError, match="target_inputs"):
        problem_from_layer(_model(), "2", torch.randn(90, 4), target_inputs=teacher)


@pytest.mark.parametrize("options", [{"head_dim": 3}, {"num_heads": 4}, {"head_dim": 3, "num_heads": 4}])
def test_heads_are_consecutive_rows(options: dict[str, int]) -> None:
    problem = problem_from_layer(_layer(torch.nn.Linear), _inputs(), groups="heads", sparsity=0.3, **options)
    np.testing.assert_array_equal(problem.groups.group_of_row, np.arange(P) // 3)
    assert problem.keep == 3


def test_group_sizes_and_labels() -> None:
    layer, x = _layer(torch.nn.Linear), _inputs()
    assert problem_from_layer(layer, x, groups=4).n == 3
    labels = np.arange(P) % 5
    np.testing.assert_array_equal(problem_from_layer(layer, x, groups=labels).groups.group_of_row, labels)
    for options, sentence in [
        ({"groups": "heads"}, "needs head_dim= or num_heads="),
        ({"groups": "heads", "num_heads": 5}, "do not make a layer of width 12"),
        ({"groups": "heads", "head_dim": 0}, "do not make a layer"),
        ({"groups": "filters"}, "not known"),
        ({"num_heads": 3}, 'belong to groups="heads"'),
    ]:
        with pytest.raises(InputError, match=sentence):
            problem_from_layer(layer, x, **options)  # type: ignore[arg-type]


def test_sparsity_rounds_towards_keeping() -> None:
    layer = torch.nn.Linear(100, Q)
    x = torch.randn(200, 100, generator=torch.Generator().manual_seed(7))
    assert (
        problem_from_layer(layer, x, sparsity=0.29).keep == 71
    )  # 0.29 * 100 falls below 29 in floating point
    assert problem_from_layer(layer, x, sparsity=0.295).keep == 71
    assert problem_from_layer(layer, x).keep is None
    with pytest.raises(InputError, match="not both"):
        problem_from_layer(layer, x, sparsity=0.5, keep=3)
    with pytest.raises(InputError, match="from 0 to 1"):
        problem_from_layer(layer, x, sparsity=50)


def test_few_rows_warn_with_their_number_and_go_on() -> None:
    layer, x = _layer(torch.nn.Linear), _inputs()
    with pytest.warns(UserWarning, match="calibrated on 8 rows for a width of 12"):
        problem = problem_from_layer(layer, x[:8], keep=3)
    assert problem.solve("magnitude_refit").support.sum() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem_from_layer(layer, x[:12], keep=3)


def test_provenance_tells_what_made_the_problem() -> None:
    problem = problem_from_layer(
        _model(), "2", torch.randn(90, 4), damping=0.05, provenance={"text": "noise"}
    )
    expected = {
        "source": "torch layer",
        "layer": "2",
        "layer_kind": "torch.nn.Linear",
        "layer_shape": [P, Q],
        "layer_dtype": "float32",
        "calibration_rows": 90,
        "damping": 0.05,
        "text": "noise",
        "torch": str(torch.__version__),
    }
    assert expected.items() <= dict(problem.provenance).items()


def test_further_constraints_reach_the_problem() -> None:
    problem = problem_from_layer(_layer(torch.nn.Linear), _inputs(), keep=5, always_keep=[2])
    assert problem.always_keep[2]
    reached = []
    batches = (reached.append(1) for _ in range(3))
    with pytest.raises(InputError, match="keep"):
        problem_from_layer(_model(), "2", batches, keep=13)
    with pytest.raises(TypeError, match="sparsty"):
        problem_from_layer(_model(), "2", batches, sparsty=0.5)
    assert not reached  # told before any batch is run


def test_sentences_about_layers() -> None:
    model = _model()
    named = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"down_proj": model[2], "up_proj": model[0]})})
    with pytest.raises(
        LayerError, match=r"no layer named 'mlp\.downproj': the closest names are mlp\.down_proj, "
    ):
        problem_from_layer(named, "mlp.downproj", torch.randn(90, 4))
    with pytest.raises(LayerError, match="no layer named 'zzz': the closest names are 0, 2"):
        problem_from_layer(model, "zzz", torch.randn(90, 4))
    with pytest.raises(
        LayerError,
        match=r"is a ReLU.*torch\.nn\.Linear, torch\.nn\.Conv1d, torch\.nn\.Conv2d and transformers Conv1D",
    ):
        problem_from_layer(model, "1", torch.randn(90, 4))
    with pytest.raises(LayerError, match="expected a torch module"):
        problem_from_layer("model", "1", torch.randn(90, 4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="need batches"):
        problem_from_layer(model, "2")
    with pytest.raises(InputError, match="dotted name"):
        problem_from_layer(model, torch.randn(90, 4), torch.randn(90, 4))
    with pytest.raises(LayerError, match="no rows of inputs"):
        problem_from_layer(model[2], [])
    with pytest.raises(LayerError, match="takes tensors"):
        problem_from_layer(model[2], ["text"])
    with pytest.raises(LayerError, match=r"^2 got NaN or infinite inputs"):
        problem_from_layer(model, "2", torch.full((90, 4), torch.nan))


def test_layers_whose_weights_cannot_be_written() -> None:
    with pytest.raises(LayerError, match="lazy layer"):
        view_of(torch.nn.LazyLinear(3))
    with pytest.raises(LayerError, match="meta device"):
        view_of(torch.nn.Linear(5, 3, device="meta"))
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
    with pytest.raises(LayerError, match="remove_parametrizations"):
        view_of(normed)
    broken = torch.nn.Linear(5, 3)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(LayerError, match="NaN or infinite weights"):
        view_of(broken)
    packed = torch.nn.Linear(5, 3)
    packed.weight = torch.nn.Parameter(torch.zeros(15, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(LayerError, match="dequantise"):
        view_of(packed)


def test_conv1d_is_known_without_importing_transformers() -> None:
    stranger = types.new_class("Conv1D", (torch.nn.Module,))
    with pytest.raises(LayerError, match="not supported"):
        view_of(stranger())
    before = "transformers" in sys.modules
    assert view_of(_layer(Conv1D)).width == P
    assert ("transformers" in sys.modules) == before


def test_the_real_conv1d() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D as RealConv1D

    _seed()
    layer, x = RealConv1D(Q, P), _inputs()
    problem = problem_from_layer(layer, x, keep=3)
    np.testing.assert_array_equal(problem.dense_weights, layer.weight.detach().double().numpy())


def test_padding_of_a_real_architecture_is_left_out() -> None:
    pytest.importorskip("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    _seed()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=9, n_embd=4, n_layer=2, n_head=2)).train()
    tokens = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 3, 5, 8, 2, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    layer = "transformer.h.1.mlp.c_proj"  # a Conv1D, 16 by 4
    padded = problem_from_layer(model, layer, [{"input_ids": tokens, "attention_mask": mask}])
    alone = problem_from_layer(model, layer, [row[None, :n] for row, n in zip(tokens, lengths, strict=True)])
    assert padded.provenance["calibration_rows"] == alone.provenance["calibration_rows"] == 36
    np.testing.assert_allclose(padded.gram, alone.gram, rtol=1e-4, atol=1e-9)
    assert (padded.p, padded.q) == (16, 4)
    assert model.training


def test_layers_inside_torchs_own_transformer() -> None:
    _seed()
    model = torch.nn.TransformerEncoderLayer(4, 2, dim_feedforward=P, batch_first=True)
    batches = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(1))
    assert problem_from_layer(model, "linear2", batches).p == P
    with pytest.raises(LayerError, match=r"self_attn\.out_proj was never called in 1 batch:"):
        problem_from_layer(model, "self_attn.out_proj", batches)
