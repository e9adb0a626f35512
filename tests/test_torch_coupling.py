"""What goes together in a model: real families, and operations that are followed or must not be guessed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_zoo import ZOO, names
from torch import Tensor, nn

from osscar_opt.errors import LayerError
from osscar_opt.torch import trace_coupling
from osscar_opt.torch.coupling import Coupling

# ------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", names())
def test_default_sites_of_every_family(name: str) -> None:
    entry = ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    coupling = trace_coupling(entry.build(), entry.batch())
    found = {site: (coupling.sites[site].kind, coupling.sites[site].n) for site in coupling.default_sites()}
    assert found == entry.sites


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_the_kind_of_attention_does_not_matter(name: str, implementation: str) -> None:
    entry = ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build()
    model.set_attn_implementation(implementation)
    coupling = trace_coupling(model, entry.batch())
    assert {s: (coupling.sites[s].kind, coupling.sites[s].n) for s in coupling.default_sites()} == entry.sites


def test_what_a_gated_block_with_grouped_queries_consists_of() -> None:
    entry = ZOO["llama_biases"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    sites = trace_coupling(entry.build(), entry.batch()).sites
    block = "model.layers.1"
    heads = sites[f"{block}.self_attn.o_proj"]
    parts = {(s.parameter.removeprefix(f"{block}.self_attn."), s.axis): s.units for s in heads.slices}
    rows, pairs = (
        np.repeat(np.arange(3), 8),
        np.repeat(np.arange(3), 16),
    )  # 3 groups of 2 query heads of 8 rows
    for layer, units in (("q_proj", pairs), ("k_proj", rows), ("v_proj", rows)):
        np.testing.assert_array_equal(parts.pop((f"{layer}.weight", 0)), units)
        np.testing.assert_array_equal(parts.pop((f"{layer}.bias", 0)), units)
    np.testing.assert_array_equal(parts.pop(("o_proj.weight", 1)), pairs)
    assert not parts
    neurons = sites[f"{block}.mlp.down_proj"]
    assert {(s.parameter.removeprefix(f"{block}.mlp."), s.axis) for s in neurons.slices} == {
        ("gate_proj.weight", 0),
        ("gate_proj.bias", 0),
        ("up_proj.weight", 0),
        ("up_proj.bias", 0),
        ("down_proj.weight", 1),
    }


def test_query_heads_within_their_groups() -> None:
    entry = ZOO["llama"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    coupling = trace_coupling(entry.build(), entry.batch(), query_heads=True)
    site = coupling.sites["model.layers.0.self_attn.o_proj"]
    assert site.n == 6
    assert site.blocks is not None
    np.testing.assert_array_equal(site.blocks, [0, 0, 1, 1, 2, 2])
    assert site.producers == ("model.layers.0.self_attn.q_proj",)
    whys = {refusal.why for refusal in coupling.refused}
    assert any("keys stay" in why for why in whys)


def test_channels_of_a_residual_sum_are_one_site_with_several_consumers() -> None:
    entry = ZOO["resnet_basic"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    coupling = trace_coupling(entry.build(), entry.batch())
    stage = "resnet.encoder.stages.0.layers"
    site = coupling.sites[f"{stage}.1.layer.0.convolution"]
    assert set(site.producers) == {
        f"{stage}.0.layer.1.convolution",
        f"{stage}.0.shortcut.convolution",
        f"{stage}.1.layer.1.convolution",
    }
    assert len(site.consumers) == 3
    assert site.name not in coupling.default_sites()
    assert coupling.select([site.name]) == (site.name,)


# ------------------------------------------------------------------------------------------ one operation at a time


class Between(nn.Module):
    """A linear layer, something, two more linear layers: which channels does something leave to be pruned?"""

    def __init__(self, something: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(self.something(self.first(x)))))


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _zeroed(x: Tensor) -> Tensor:
    made = x.clone()
    made[:, :2] = 0.0
    return made


FOLLOWED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "in place": (lambda x: x.mul_(2).add_(1).relu_(), 8),
    "one half gates the other": (lambda x: torch.cat([x[:, :4] * x[:, 4:], x[:, :4]], -1), 4),
    "roll": (lambda x: x.roll(1, -1), 8),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 8),
    "reflected arithmetic": (lambda x: 1.0 - 2.0 / (2.0 + x.square()), 8),
    "batch norm": (nn.BatchNorm1d(8), 8),
    "a slope for each": (nn.PReLU(8), 8),
    "one slope": (nn.PReLU(1), 8),
    "chunks": (lambda x: torch.cat([part.tanh() for part in x.chunk(2, -1)], -1), 8),
    "unbind and stack": (lambda x: torch.stack(x.unbind(-1), -1), 8),
    "index": (lambda x: x[:, torch.tensor([3, 1, 2, 0, 7, 6, 5, 4])], 8),
    "a module that is a function": (Called(torch.tanh), 8),
    "overwritten with zeros": (_zeroed, 6),
    "one gates all": (lambda x: x * x[:, :1], 7),
}

_PACKED, _RECURRENT = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8)

REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(-1), "makes them one"),
    "layer norm": (nn.LayerNorm(8), "makes them one"),
    "mean": (lambda x: x - x.mean(-1, keepdim=True), "makes them one"),
    "group norm": (nn.GroupNorm(4, 8), "uses group_norm, which is not followed"),
    "sort": (lambda x: x.sort(dim=-1).values, "uses sort"),
    "largest": (lambda x: x * (x > x.topk(3, dim=-1).values[..., -1:]), "uses topk"),
    "einsum": (lambda x: torch.einsum("bi,bi->bi", x, x), "uses einsum"),
    "shuffle": (lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8), "two axes"),
    "unfold": (lambda x: x.unfold(1, 2, 2).reshape(-1, 8), "uses unfold"),
    "strides": (lambda x: torch.as_strided(x, (len(x), 8), (8, 1)), "uses as_strided"),
    "all with all": (lambda x: (x[:, :, None] * x[:, None, :]).sum(1), "several channels"),
    "computed weights": (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "weights that it computes"),
    "through numpy": (lambda x: torch.from_numpy(x.numpy() * 2), "no layer reads them"),
    "through lists": (lambda x: torch.tensor(x.tolist()), "no layer reads them"),
    "vmap": (Called(lambda x: torch.vmap(lambda row: row * 2)(x)), "cannot be watched"),
    "packed attention": (
        Called(lambda x: _PACKED(x[:, None], x[:, None], x[:, None])[0][:, 0]),
        "multi_head_attention_forward",
    ),
    "recurrence": (Called(lambda x: _RECURRENT(x[:, None])[0][:, 0]), "uses lstm"),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_followed(case: str) -> None:
    something, units = FOLLOWED[case]
    coupling = trace_coupling(Between(something), torch.randn(3, 5))
    assert coupling.sites["second"].n == units
    assert coupling.sites["third"].n == 6


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused_and_named(case: str) -> None:
    something, why = REFUSED[case]
    coupling = trace_coupling(Between(something), torch.randn(3, 5))
    assert list(coupling.sites) == ["third"]
    reasons = [refusal.why for refusal in coupling.refused if "first" in refusal.producers]
    assert any(why in reason for reason in reasons), reasons
    with pytest.raises(LayerError, match="left alone"):
        coupling.select("first")


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x)) @ self.encoder.weight


def test_a_weight_that_is_used_both_ways_round_is_refused() -> None:
    coupling = trace_coupling(TiedAutoencoder(), torch.randn(3, 5))
    assert not coupling.sites
    assert any("used in another way" in refusal.why for refusal in coupling.refused)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.same, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.same(torch.relu(self.into(x))).relu()
        return self.out(self.same(hidden).relu())


def test_a_layer_that_is_called_twice() -> None:
    """What it reads the second time is what it wrote the first time: inputs and outputs are the same units."""
    site = trace_coupling(Twice(), torch.randn(3, 5)).sites["same"]
    assert site.n == 8
    assert set(site.consumers) == {"same", "out"}
    assert {(part.parameter, part.axis) for part in site.slices} >= {("same.weight", 0), ("same.weight", 1)}


def test_the_trace_is_of_what_the_model_does_not_of_what_it_holds() -> None:
    """Layers that are held but never run are not in the way."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].unused = nn.Linear(8, 9)
    assert list(trace_coupling(model, torch.randn(2, 5)).sites) == ["2"]


def test_inputs_of_a_flattened_picture_belong_to_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 7, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(7 * 9, 4))
    site = trace_coupling(model, torch.randn(2, 2, 8, 8)).sites["3"]
    np.testing.assert_array_equal(site.consumers["3"], np.repeat(np.arange(7), 9))


# -------------------------------------------------------------------------------------------------- as it was found


def test_the_model_is_left_as_it_was_found() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model.train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_coupling(model, torch.randn(4, 5))
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error_and_the_sentence_names_it() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(7, 3)).train()
    with pytest.raises(
        LayerError, match=r"the Sequential could not be run on the batch .*: RuntimeError: mat1"
    ):
        trace_coupling(model, torch.randn(4, 5))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inputs_of_the_model_are_no_reason_to_give_up() -> None:
    coupling = trace_coupling(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 5))
    assert [refusal.why for refusal in coupling.refused] == ["they are outputs of the model"]


def test_wrong_calls() -> None:
    with pytest.raises(LayerError, match="expected a torch module first, got str"):
        trace_coupling("model", torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="there were no batches"):
        trace_coupling(nn.Linear(3, 2), [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    assert trace_coupling(model, torch.randn(2, 5, dtype=dtype)).sites["2"].n == 8


# ------------------------------------------------------------------------------------------------ names and pictures


@pytest.fixture(scope="module")
def language() -> Coupling:
    entry = ZOO["llama"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    return trace_coupling(entry.build(), entry.batch())


def test_selection(language: Coupling) -> None:
    heads = tuple(f"model.layers.{layer}.self_attn.o_proj" for layer in range(2))
    neurons = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(2))
    assert language.select("heads") == heads
    assert language.select("ffn") == language.select("neurons") == language.select("*.mlp.*") == neurons
    assert language.select(None) == (heads[0], neurons[0], heads[1], neurons[1])
    assert language.select([neurons[1], heads[0]]) == (heads[0], neurons[1]), "in execution order"
    with pytest.raises(
        LayerError, match=r"fits 'model.layers.0.mlp.downproj': .*model\.layers\.0\.mlp\.down_proj"
    ):
        language.select("model.layers.0.mlp.downproj")
    with pytest.raises(LayerError, match="no site of the LlamaForCausalLM fits 'channels'"):
        language.select("channels")


def test_blocks_that_repeat_are_told_once(language: Coupling) -> None:
    text = str(language).splitlines()
    assert text[0] == "LlamaForCausalLM: 4 sites to prune, 2 sets of channels left alone"
    assert text[1].startswith("model.layers.*.self_attn.o_proj  3 heads × 2 ")
    assert text[2].startswith("model.layers.*.mlp.down_proj     70 neurons × 2 ")
    assert text[3].startswith("left alone: 48 channels of model.embed_tokens, ")
    assert text[3].endswith("a norm or a product over all of them makes them one")


def test_the_graph(language: Coupling) -> None:
    graph = language.graph
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_bipartite(graph)
    label = "70 neurons of model.layers.0.mlp.down_proj"
    assert sorted(graph.predecessors(label)) == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
    assert list(graph.successors(label)) == ["model.layers.0.mlp.down_proj"]
    left = [node for node, facts in graph.nodes.items() if facts.get("why")]
    assert len(left) == 2
    residual = max(left, key=graph.degree)
    assert "model.embed_tokens" in graph.predecessors(residual)
    assert "model.layers.1.mlp.up_proj" in graph.successors(residual)


def test_the_picture(language: Coupling) -> None:
    axis: Any = language.plot()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[0] == "model.embed_tokens"
    assert "model.layers.*.mlp.down_proj" in labels
    assert [label.get_text() for label in axis.get_xticklabels()][:2] == ["3 heads × 2", "70 neurons × 2"]


def test_pooling_padding_and_resizing_keep_channels_apart() -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(F.avg_pool2d(self.a(x), 2), scale_factor=2)
            x = F.pad(x, (1, 0, 0, 1))
            return self.b(F.pad(x, (1, 1, 1, 1), mode="reflect"))

    assert trace_coupling(Resized(), torch.randn(1, 2, 9, 9)).sites["b"].n == 6


class Placed(nn.Module):
    """Takes positions that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.hidden, self.out = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.out(self.hidden(self.words(input_ids) + self.places(position_ids)).relu())


def test_what_rows_share_is_cut_with_the_tokens_and_not_with_the_rows() -> None:
    batch = {"input_ids": torch.randint(0, 20, (4, 25)), "position_ids": torch.arange(25)[None]}
    coupling = trace_coupling(Placed(), batch)
    assert {name: site.n for name, site in coupling.sites.items()} == {"hidden": 8, "out": 6}
