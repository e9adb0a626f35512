"""Scores that need a model, each against a literal computation of its formula, and a property of its paper.

Models are in float64, so that finite differences and other orders of summation agree to many digits. What belongs to
which unit is written down by hand here (`CASES`), not asked of the library.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models_zoo
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch import prune_model, trace_coupling
from osscar_opt.torch.scores import (
    beta_rank_scores,
    chip_scores,
    filter_gram,
    fpgm_scores,
    head_importance_scores,
    loraprune_scores,
    lrp_scores,
    nvit_scores,
    taylor_scores,
)
from osscar_opt.torch.scores.chip import nuclear_norm_drops

Array = np.ndarray[Any, Any]
Part = tuple[
    str, int, Array, bool
]  # parameter, axis, unit of each index, whether it is a weight that writes the units

GRADIENTS: dict[str, Callable[..., PerProblem]] = {
    "taylor": taylor_scores,
    "nvit": nvit_scores,
    "head_importance": head_importance_scores,
    "loraprune": loraprune_scores,
}
OTHERS: dict[str, Callable[..., PerProblem]] = {
    "fpgm": fpgm_scores,
    "filter_gram": filter_gram,
    "chip": chip_scores,
    "beta_rank": beta_rank_scores,
    "lrp": lrp_scores,
}
RULES = GRADIENTS | OTHERS
transformers = pytest.mark.skipif(
    not models_zoo.ZOO["llama"].available, reason="transformers is not installed"
)


OWN = 5e-6  # the library's own losses are worked out in float32


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Products as small as these are much slower where threads wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ models


def mlp(*, bias: bool = True, seed: int = 0) -> nn.Module:
    """6 inputs, 9 and 7 neurons, 4 classes."""
    model = nn.Sequential(
        nn.Linear(6, 9, bias=bias),
        nn.ReLU(),
        nn.Linear(9, 7, bias=bias),
        nn.ReLU(),
        nn.Linear(7, 4, bias=bias),
    )
    return models_zoo.randomise(model, seed).double()


class SmallNet(nn.Module):
    """A stem with stride and padding, a depthwise convolution, batch norm and ReLU6 behind both, as MobileNet."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.project, self.norm2 = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.relu6, self.relu = nn.ReLU6(inplace=inplace), nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.norm0(self.stem(x)))
        x = self.relu6(self.norm1(self.depthwise(x)))
        x = self.relu(self.norm2(self.project(x)))
        return self.fc(x.mean(dim=(2, 3)))


def small_net(inplace: bool = False) -> nn.Module:
    return models_zoo.randomise(SmallNet(inplace), 3).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zoo(name: str) -> nn.Module:
    return models_zoo.ZOO[name].build().double()


def call(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of log sum exp z - z_c, sample by sample."""
    losses = [row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True)]
    return torch.stack(losses).mean()


def likeliest(model: nn.Module, batch: Any) -> Tensor:
    logits = call(model, batch)
    return cross_entropy(logits, logits.detach().argmax(1))


def next_tokens(model: nn.Module, batch: Any) -> Tensor:
    logits, found = model(**batch).logits, []
    for row, tokens in zip(logits, batch["input_ids"], strict=True):
        for t in range(len(tokens) - 1):
            found.append(row[t].exp().sum().log() - row[t][tokens[t + 1]])
    return torch.stack(found).mean()


def first_state(output: Any, batch: Any) -> Tensor:
    """A loss for encoders: mean over samples of the squared length of the first token's state."""
    return output.last_hidden_state[:, 0].pow(2).sum(1).mean()


@dataclass(frozen=True)
class Case:
    """A model, two batches, its loss in plain words, and what belongs to which unit."""

    build: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    sites: dict[str, list[Part]]
    own: Any = None
    step: float = 1e-5  # of differences: transformers' norms and softmax are in float32

    def given(self) -> dict[str, Any]:
        return {} if self.own is None else {"loss": self.own}

    def units(self, site: str) -> Array:
        """The unit of each input of the layer that reads the site."""
        return self.sites[site][-1][2]


def _own_rows(names: list[str], n: int) -> list[Part]:
    return [(name, 0, np.arange(n), False) for name in names]


def _of_heads(prefix: str, writers: dict[str, int], reader: str, n: int, biases: bool) -> list[Part]:
    """Rows of each head in order; `writers` maps a layer to how many rows one head has."""
    parts: list[Part] = []
    for name, size in writers.items():
        units = np.repeat(np.arange(n), size)
        parts.append((f"{prefix}{name}.weight", 0, units, True))
        if biases:
            parts.append((f"{prefix}{name}.bias", 0, units, False))
    return [*parts, (f"{prefix}{reader}.weight", 1, np.repeat(np.arange(n), max(writers.values())), False)]


def _neurons(prefix: str, writers: list[str], reader: str, n: int, biases: bool) -> list[Part]:
    return _of_heads(prefix, dict.fromkeys(writers, 1), reader, n, biases)


_SMALL_NET: dict[str, list[Part]] = {
    "project": [
        ("stem.weight", 0, np.arange(6), True),
        ("depthwise.weight", 0, np.arange(6), True),
        *_own_rows(["norm0.weight", "norm0.bias", "depthwise.bias", "norm1.weight", "norm1.bias"], 6),
        ("project.weight", 1, np.arange(6), False),
    ],
    "fc": [
        ("project.weight", 0, np.arange(8), True),
        *_own_rows(["project.bias", "norm2.weight", "norm2.bias"], 8),
        ("fc.weight", 1, np.arange(8), False),
    ],
}
_LLAMA: dict[str, list[Part]] = {}
_BERT: dict[str, list[Part]] = {}
for _layer in range(2):
    _at = f"model.layers.{_layer}."
    _LLAMA[f"{_at}self_attn.o_proj"] = _of_heads(
        f"{_at}self_attn.", {"q_proj": 20, "k_proj": 10, "v_proj": 10}, "o_proj", 3, False
    )
    _LLAMA[f"{_at}mlp.down_proj"] = _neurons(f"{_at}mlp.", ["gate_proj", "up_proj"], "down_proj", 70, False)
    _at = f"encoder.layer.{_layer}."
    _BERT[f"{_at}attention.output.dense"] = _of_heads(
        f"{_at}attention.", {"self.query": 12, "self.key": 12, "self.value": 12}, "output.dense", 4, True
    )
    _BERT[f"{_at}output.dense"] = _neurons(_at, ["intermediate.dense"], "output.dense", 70, True)

CASES: dict[str, Case] = {
    "mlp": Case(
        mlp,
        lambda: [normal(5, 6, seed=1), normal(8, 6, seed=2)],
        likeliest,
        {"2": _neurons("", ["0"], "2", 9, True), "4": _neurons("", ["2"], "4", 7, True)},
    ),
    "small_net": Case(
        small_net,
        lambda: [normal(4, 3, 9, 9, seed=1), normal(3, 3, 9, 9, seed=2)],
        likeliest,
        _SMALL_NET,
    ),
    "llama": Case(
        lambda: zoo("llama"),
        lambda: [models_zoo.tokens(0, rows=2, length=7), models_zoo.tokens(1, rows=3, length=5)],
        next_tokens,
        _LLAMA,
        step=3e-3,
    ),
    "bert": Case(
        lambda: zoo("bert"),
        lambda: [
            models_zoo.padded_tokens(0, rows=3, length=9),
            models_zoo.padded_tokens(1, rows=2, length=7),
        ],
        lambda model, batch: first_state(model(**batch), batch),
        _BERT,
        own=first_state,
        step=1e-4,
    ),
}
cases = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=transformers if name in ("llama", "bert") else ()) for name in CASES]
)


@cases
def test_the_cases_know_the_sites_of_their_models(name: str) -> None:
    """What the literal computations take as given: no site is forgotten, and no two widths agree but BERT's own."""
    case = CASES[name]
    assert list(trace_coupling(case.build(), case.batches()).default_sites()) == list(case.sites)
    for site in case.sites:
        outputs, inputs = case.build().get_submodule(site).weight.shape[:2]
        assert len(case.units(site)) == inputs
        assert inputs != outputs or "attention.output" in site


def relative(found: Array, expected: Array, tolerance: float) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------ Taylor and NViT


@contextlib.contextmanager
def scaled(model: nn.Module, parts: list[Part], unit: int, factor: float) -> Iterator[None]:
    """Multiply all entries of a unit."""
    known = dict(model.named_parameters())
    before = {name: known[name].detach().clone() for name, *_ in parts}
    with torch.no_grad():
        for name, axis, units, _ in parts:
            for index in np.flatnonzero(units == unit):
                known[name].select(axis, int(index)).mul_(factor)
        try:
            yield
        finally:
            for name, value in before.items():
                known[name].copy_(value)


def derivative(case: Case, model: nn.Module, parts: list[Part], unit: int, batch: Any) -> float:
    """d/dt of the loss with the unit's entries times t, at t = 1: the sum of w dL/dw, by central differences."""
    labels = None
    if case.loss is likeliest:  # the class is that of the model as it is
        with torch.no_grad():
            labels = call(model, batch).argmax(1)
    step, values = case.step, []
    for factor in (1.0 + step, 1.0 - step):
        with scaled(model, parts, unit, factor):
            value = case.loss(model, batch) if labels is None else cross_entropy(call(model, batch), labels)
        values.append(float(value))
    return (values[0] - values[1]) / (2.0 * step)


@cases
@pytest.mark.parametrize("rule", ["taylor", "nvit"])
def test_taylor_and_nvit_square_a_directional_derivative_once_for_every_batch(name: str, rule: str) -> None:
    case = CASES[name]
    model, batches = case.build(), case.batches()
    found = RULES[rule](model, batches, **case.given())
    for site in list(case.sites)[:2]:
        parts = [part for part in case.sites[site] if part[3] or rule == "nvit"]
        units = range(min(len(found[site]), 9))
        literal = [
            np.mean([derivative(case, model, parts, u, batch) ** 2 for batch in batches]) for u in units
        ]
        relative(found[site][: len(units)], np.array(literal), 5e-3 if name == "llama" else 2e-5)


@cases
@pytest.mark.parametrize("rule", ["taylor", "nvit"])
def test_taylor_and_nvit_against_gradients_of_the_named_parameters(name: str, rule: str) -> None:
    case = CASES[name]
    model, batches = case.build(), case.batches()
    found = RULES[rule](model, batches, **case.given())
    for site, parts in case.sites.items():
        literal = np.zeros(len(found[site]))
        for batch in batches:
            model.zero_grad()
            case.loss(model, batch).backward()
            known, sums = dict(model.named_parameters()), np.zeros(len(literal))
            for parameter, axis, units, writes in parts:
                if writes or rule == "nvit":
                    product = (known[parameter].detach() * known[parameter].grad).numpy()
                    for index, unit in enumerate(units):
                        sums[unit] += product.take(index, axis=axis).sum()
            literal += sums**2 / len(batches)
        relative(found[site], literal, 1e-9 if case.own else OWN)


def test_without_biases_what_comes_in_and_what_goes_out_weigh_the_same() -> None:
    """A ReLU is homogeneous: the sums of w dL/dw before and behind it are both the gate's gradient."""
    model, batches = mlp(bias=False), [normal(1, 6, seed=seed) for seed in range(5)]
    taylor, nvit = taylor_scores(model, batches), nvit_scores(model, batches)
    for site in ("2", "4"):
        relative(nvit[site], 4.0 * taylor[site], 1e-9)  # the same loss in both
        gates = np.array([gates_of(model, site, np.arange(len(taylor[site])), likeliest, x) for x in batches])
        relative(taylor[site], (gates**2).mean(axis=0), OWN)


def test_nvit_is_taylor_where_nothing_else_of_a_unit_carries_a_gradient() -> None:
    """Behind a layer that passes no gradient to its own weights, only the rows that write the unit are left."""

    class Frozen(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (
                F.linear(x, self.weight * 1.0).detach()
                + (x @ self.weight.detach().T) * 1.0
                - x.detach() @ (self.weight.detach().T)
            )

    torch.manual_seed(0)
    first, last = nn.Linear(5, 7, bias=False), Frozen(7, 3, bias=False)
    model = nn.Sequential(first, nn.ReLU(), last).double()
    coupling = trace_coupling(nn.Sequential(first, nn.ReLU(), nn.Linear(7, 3)).double(), normal(2, 5))
    batches = [normal(6, 5, seed=1)]
    taylor = taylor_scores(model, batches, coupling=coupling)
    relative(nvit_scores(model, batches, coupling=coupling)["2"], taylor["2"], 1e-9)


def test_minibatches_are_squared_one_by_one() -> None:
    model, x = mlp(), normal(8, 6)
    whole, halves = taylor_scores(model, x)["2"], taylor_scores(model, [x[:4], x[4:]])["2"]
    apart = [taylor_scores(model, part)["2"] for part in (x[:4], x[4:])]
    relative(halves, np.mean(apart, axis=0), 1e-12)
    assert np.abs(whole - halves).max() > 1e-6


# ------------------------------------------------------------------------------------------------ head importance


class Gated(nn.Module):
    """A layer whose inputs are multiplied by their units' gates, all of them 1."""

    def __init__(self, layer: nn.Module, units: Array, n: int) -> None:
        super().__init__()
        self.layer, self.units = layer, torch.from_numpy(units)
        self.gates = nn.Parameter(torch.ones(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gates[self.units]
        return self.layer(x * (gate[:, None, None] if isinstance(self.layer, nn.Conv2d) else gate))


@contextlib.contextmanager
def gated(model: nn.Module, site: str, units: Array) -> Iterator[Gated]:
    parent, _, last = site.rpartition(".")
    layer = model.get_submodule(site)
    gate = Gated(layer, units, int(units.max()) + 1)
    setattr(model.get_submodule(parent), last, gate)
    try:
        yield gate
    finally:
        setattr(model.get_submodule(parent), last, layer)


def gates_of(model: nn.Module, site: str, units: Array, loss: Any, batch: Any) -> Array:
    with gated(model, site, units) as gate:
        return torch.autograd.grad(loss(model, batch), gate.gates)[0].numpy()


def one_by_one(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        size = len(batch["input_ids"])
        return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(size)]
    return [batch[i : i + 1] for i in range(len(batch))]


@cases
def test_head_importance_is_the_mean_size_of_the_gates_gradients_of_single_samples(name: str) -> None:
    case = CASES[name]
    model, batches = case.build(), case.batches()
    found = head_importance_scores(model, batches, **case.given())
    samples = [sample for batch in batches for sample in one_by_one(batch)]
    for site in case.sites:
        gates = [np.abs(gates_of(model, site, case.units(site), case.loss, sample)) for sample in samples]
        mean = np.mean(gates, axis=0)
        relative(found[site], mean / np.linalg.norm(mean), 1e-9 if case.own else OWN)


@cases
def test_head_importance_is_the_change_of_the_loss_to_first_order(name: str) -> None:
    case = CASES[name]
    model, batches = case.build(), case.batches()
    found = head_importance_scores(model, batches, **case.given())
    site = next(iter(case.sites))
    changes = np.zeros(min(len(found[site]), 9))
    for batch in batches:
        for sample in one_by_one(batch):
            with torch.no_grad(), gated(model, site, case.units(site)) as gate:
                labels = call(model, sample).argmax(1) if case.loss is likeliest else None
                for unit in range(len(changes)):
                    values = []
                    for value in (1.0 + case.step, 1.0 - case.step):
                        gate.gates[unit] = value
                        out = (
                            case.loss(model, sample)
                            if labels is None
                            else cross_entropy(model(sample), labels)
                        )
                        values.append(float(out))
                    changes[unit] += abs(values[0] - values[1])
                    gate.gates[unit] = 1.0
    expected = found[site][: len(changes)] / np.linalg.norm(found[site][: len(changes)])
    relative(changes / np.linalg.norm(changes), expected, 5e-3 if name == "llama" else 2e-5)


def test_the_size_of_batches_does_not_matter_to_head_importance() -> None:
    model, x = mlp(), normal(7, 6)
    whole = head_importance_scores(model, x)
    for parts in ([x[:3], x[3:]], list(x.split(1))):
        for site in whole:
            relative(head_importance_scores(model, parts)[site], whole[site], OWN)


def test_opposite_gradients_of_two_samples_do_not_cancel_in_head_importance() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.5]]))
        model[2].weight.fill_(1.0)
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return (output * signs[: len(output)]).mean()

    x = torch.ones(2, 1, dtype=torch.float64)
    np.testing.assert_allclose(
        head_importance_scores(model, x, loss=loss)["2"], np.array([2.0, 1.0]) / np.sqrt(5.0)
    )
    assert not taylor_scores(model, x, loss=loss)["2"].any()


# ------------------------------------------------------------------------------------------------ invariances


def test_a_dead_unit_has_no_score() -> None:
    model, batches = mlp(), [normal(6, 6)]
    with torch.no_grad():
        model[0].bias[4] = -100.0
    for rule in ("taylor", "nvit", "head_importance", "lrp", "chip"):
        scores = RULES[rule](model, batches, sites="2")["2"]
        assert scores[4] == 0.0
        assert scores.max() > 0.0


def test_a_unit_whose_weights_move_from_one_side_to_the_other_keeps_its_score() -> None:
    """The function is the same, and so are the rules that look at nothing but it."""
    model, batches = mlp(), [normal(6, 6), normal(5, 6, seed=1)]
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight[3] *= 7.0
        moved[0].bias[3] *= 7.0
        moved[2].weight[:, 3] /= 7.0
    for rule in ("taylor", "nvit", "head_importance", "lrp"):
        relative(RULES[rule](moved, batches)["2"], RULES[rule](model, batches)["2"], 1e-7)
    for rule in ("fpgm", "chip"):  # these do look at the size of the weights, or of the maps
        apart = RULES[rule](moved, batches)["2"] / RULES[rule](model, batches)["2"]
        assert np.abs(apart - 1.0).max() > 0.1


@pytest.mark.parametrize("rule", ["taylor", "nvit", "head_importance", "fpgm", "chip", "beta_rank", "lrp"])
def test_units_in_another_order_have_their_scores_in_that_order(rule: str) -> None:
    model, batches, order = mlp(), [normal(6, 6)], np.array([3, 0, 8, 1, 7, 2, 5, 6, 4])
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight.copy_(model[0].weight[order])
        moved[0].bias.copy_(model[0].bias[order])
        moved[2].weight.copy_(model[2].weight[:, order])
    relative(RULES[rule](moved, batches)["2"], RULES[rule](model, batches)["2"][order], 1e-8)


# ------------------------------------------------------------------------------------------------ FPGM


def rows_of(model: nn.Module, parts: list[Part]) -> list[Array]:
    """All weights that write each unit, entry by entry."""
    known, n = dict(model.named_parameters()), int(parts[-1][2].max()) + 1
    found: list[list[float]] = [[] for _ in range(n)]
    for name, axis, units, writes in parts:
        if writes:
            value = known[name].detach().double().numpy()
            for index, unit in enumerate(units):
                found[unit].extend(value.take(index, axis=axis).ravel())
    return [np.array(entries) for entries in found]


@cases
def test_fpgm_sums_the_distances_to_all_others(name: str) -> None:
    case = CASES[name]
    model = case.build()
    found = fpgm_scores(model, case.batches())
    for site, parts in case.sites.items():
        rows = rows_of(model, parts)
        literal = [sum(np.sqrt(sum((one - other) ** 2)) for other in rows) for one in rows]
        relative(found[site], np.array(literal), 1e-10)


def test_the_filter_nearest_to_the_geometric_median_has_the_least_score_of_fpgm() -> None:
    """Pairs on opposite sides of a filter make it the median of all, however unlike in length."""
    model = nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Conv2d(7, 3, 3)).double()
    median, arms = normal(2, 3, 3, seed=5) * 4.0, normal(3, 2, 3, 3, seed=6)
    with torch.no_grad():
        for i in range(3):
            model[0].weight[i] = median + (i + 1.0) * arms[i]
            model[0].weight[6 - i] = median - (i + 1.0) * arms[i]
        model[0].weight[3] = median
    scores = fpgm_scores(model, normal(1, 2, 9, 9))["2"]
    assert scores.argmin() == 3
    literal = 2.0 * sum((i + 1.0) * float(arms[i].norm()) for i in range(3))
    assert scores[3] == pytest.approx(literal, rel=1e-12)
    lengths = model[0].weight.detach().flatten(1).norm(dim=1)
    assert lengths.argmin() != 3  # a small norm is something else
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[0].weight += 10.0 * normal(2, 3, 3, seed=8)
    relative(fpgm_scores(shifted, normal(1, 2, 9, 9))["2"], scores, 1e-9)


def test_near_duplicates_keep_their_small_distance_in_fpgm() -> None:
    model = nn.Sequential(nn.Linear(40, 2, bias=False), nn.ReLU(), nn.Linear(2, 3)).double()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0] * 100.0
        model[0].weight[0] = model[0].weight[1]
        model[0].weight[1, 7] += 1e-9
    gap = abs(float(model[0].weight[0, 7].detach() - model[0].weight[1, 7].detach()))
    np.testing.assert_allclose(fpgm_scores(model, normal(1, 40))["2"], [gap, gap], rtol=1e-12)


# ------------------------------------------------------------------------------------------------ the filters' gram


def folded(layer: Any, norm: Any = None) -> list[Array]:
    """Filter and shift of every output, the batch norm folded in by torch."""
    if norm is not None:
        if isinstance(layer, nn.Linear):
            layer = torch.nn.utils.fusion.fuse_linear_bn_eval(layer.eval(), norm.eval())
        else:
            layer = fuse_conv_bn_eval(layer.eval(), norm.eval())
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    return [
        np.append(row.detach().numpy().ravel(), float(shift))
        for row, shift in zip(layer.weight, bias, strict=True)
    ]


def kronecker(*layers: list[Array]) -> Array:
    """Inner products of the Kronecker products of the layers' filters, written out."""
    vectors = []
    for filters in zip(*layers, strict=True):
        whole = np.ones(1)
        for one in filters:
            whole = np.kron(whole, one)
        vectors.append(whole)
    return np.array([[one @ other for other in vectors] for one in vectors])


def test_filter_gram_of_neurons_has_the_bias_as_one_more_entry() -> None:
    model = mlp()
    found = filter_gram(model, normal(2, 6))
    relative(found["2"], kronecker(folded(model[0])), 1e-12)
    relative(found["4"], kronecker(folded(model[2])), 1e-12)


def test_filter_gram_folds_batch_norms_and_multiplies_layers_one_after_another() -> None:
    model = small_net()
    found = filter_gram(model, normal(1, 3, 9, 9))
    stem, depthwise = folded(model.stem, model.norm0), folded(model.depthwise, model.norm1)
    relative(found["project"], kronecker(stem, depthwise), 1e-10)
    relative(found["fc"], kronecker(folded(model.project, model.norm2)), 1e-10)
    assert np.linalg.eigvalsh(found["project"]).min() > -1e-9


def test_filter_gram_of_a_whole_mobilenet() -> None:
    model = zoo("mobilenet_v2")
    found = filter_gram(model, models_zoo.pictures().double())
    assert list(found) == list(models_zoo.ZOO["mobilenet_v2"].sites)
    for block, site in ((2, "features.2.conv.2"), (5, "features.5.conv.2")):
        conv = model.features[block].conv
        literal = kronecker(folded(conv[0][0], conv[0][1]), folded(conv[1][0], conv[1][1]))
        relative(found[site], literal, 1e-10)
    relative(found["classifier.1"], kronecker(folded(model.features[6][0], model.features[6][1])), 1e-10)
    # a projection has a norm and no activation
    relative(
        found["features.2.conv.0.0"],
        kronecker(folded(model.features[1].conv[1], model.features[1].conv[2])),
        1e-10,
    )


def test_filter_gram_of_a_gate_multiplies_both_its_sides() -> None:
    model = zoo("perceptron")
    found = filter_gram(model, models_zoo.vectors().double(), sites=["gate", "down", "out"])
    relative(found["gate"], kronecker(folded(model.first, model.norm)), 1e-10)
    relative(found["down"], kronecker(folded(model.gate), folded(model.up)), 1e-10)
    relative(found["out"], kronecker(folded(model.down)), 1e-10)


def test_filter_gram_takes_an_activation_before_the_norm_for_linear() -> None:
    model = zoo("signals")
    found = filter_gram(model, models_zoo.signals().double(), sites=["conv2", "conv3"])
    relative(found["conv2"], kronecker(folded(model.conv1, model.norm1)), 1e-10)
    relative(found["conv3"], kronecker(folded(model.conv2, model.norm2)), 1e-10)


def test_filter_gram_of_norms_without_weights() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False, eps=0.1), nn.ReLU(), nn.Conv2d(6, 4, 3)
    )
    model = models_zoo.randomise(model, 2).double()
    relative(filter_gram(model, normal(1, 3, 9, 9))["3"], kronecker(folded(model[0], model[1])), 1e-10)


def test_filter_gram_folds_each_norm_into_its_own_layer_whatever_the_order_of_execution() -> None:
    class SideBySide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)
            self.norm_a, self.norm_b = nn.BatchNorm1d(7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)  # both before either norm
            return self.c(torch.sigmoid(self.norm_a(a)) * self.norm_b(b))

    model = models_zoo.randomise(SideBySide(), 4).double()
    literal = kronecker(folded(model.a, model.norm_a), folded(model.b, model.norm_b))
    relative(filter_gram(model, normal(4, 5))["c"], literal, 1e-10)


def test_udfc_on_filters_that_are_combinations_of_others_changes_no_output() -> None:
    """The paper's assumption, where it holds to the letter: no activation between the two layers."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Identity(), nn.Conv2d(6, 4, 3))
    model = models_zoo.randomise(model, 1).double()
    norm = model[1]
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale + model[0].bias * scale
        for gone, kept, factor in ((1, 0, -0.3), (4, 2, 0.2)):
            model[0].weight[gone] = factor * scale[kept] / scale[gone] * model[0].weight[kept]
            norm.bias[gone] += factor * shift[kept] - shift[gone]
    x = normal(5, 3, 9, 9)
    with torch.no_grad():
        before = model(x)
    table = filter_gram(model, x)
    report = prune_model(
        model, x, keep=4, method="udfc", options={"filters": table, "ridge": 0.0}, intercept=False
    )
    assert [row.site for row in report.rows] == ["3"]
    assert model[3].in_channels == 4
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------ CHIP


def nuclear(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def drops(matrix: Array, units: Array, n: int) -> Array:
    """One singular value decomposition for every unit, its rows set to zero."""
    found = np.zeros(n)
    for unit in range(n):
        without = matrix.copy()
        without[units == unit] = 0.0
        found[unit] = nuclear(matrix) - nuclear(without)
    return found


def matrices() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    full = rng.normal(size=(7, 30))
    low = rng.normal(size=(9, 3)) @ rng.normal(size=(3, 20))
    twins = rng.normal(size=(8, 25))
    twins[5] = twins[2]
    parallel = rng.normal(size=(6, 10))
    parallel[1:4] = np.outer([2.0, -0.5, 1e-3], parallel[0])
    holes = np.maximum(rng.normal(size=(8, 12)), 0.0)
    holes[[0, 6]] = 0.0
    return {
        "full rank": full,
        "low rank": low,
        "more rows than columns": rng.normal(size=(13, 5)),
        "square": rng.normal(size=(8, 8)),
        "one column": rng.normal(size=(9, 1)),
        "one row": rng.normal(size=(1, 9)),
        "duplicate rows": twins,
        "parallel rows": parallel,
        "rows of zeros": holes,
        "all zero": np.zeros((4, 6)),
        "one row alone not zero": np.eye(5)[[2]].repeat(4, 0) * np.array([[0.0], [3.0], [0.0], [0.0]]),
        "very unlike in size": full * np.geomspace(1e-6, 1e6, 7)[:, None],
        "tiny": 1e-30 * full,
        "huge": 1e30 * full,
        "ill conditioned": full @ np.diag(np.geomspace(1.0, 1e-9, 30)),
    }


@pytest.mark.parametrize("kind", matrices())
def test_chip_s_integral_is_a_singular_value_decomposition_for_every_row(kind: str) -> None:
    matrix = matrices()[kind]
    n, norm = len(matrix), nuclear(matrix)
    found = nuclear_norm_drops(matrix, np.arange(n), n)
    np.testing.assert_allclose(found, drops(matrix, np.arange(n), n), rtol=1e-8, atol=1e-9 * norm)
    lengths = np.linalg.norm(matrix, axis=1)
    assert (found >= -1e-12 * norm).all()
    assert (found <= lengths * (1.0 + 1e-7) + 1e-12 * norm).all()


@pytest.mark.parametrize("kind", matrices())
def test_chip_of_rows_that_go_together_and_of_rows_that_belong_to_nobody(kind: str) -> None:
    matrix = np.repeat(matrices()[kind], 2, axis=0)
    matrix[::2] += 0.3 * np.abs(matrix).max() * np.random.default_rng(1).normal(size=matrix[::2].shape)
    n = len(matrix) // 2
    for units in (np.repeat(np.arange(n), 2), np.tile(np.arange(n), 2), np.append(np.arange(n), [0] * n)):
        np.testing.assert_allclose(
            nuclear_norm_drops(matrix, units, n),
            drops(matrix, units, n),
            rtol=1e-8,
            atol=1e-10 * nuclear(matrix),
        )
    units = np.append(np.arange(n), [-1] * n)[::-1].copy()
    literal = drops(matrix[units >= 0], units[units >= 0], n)
    found = nuclear_norm_drops(matrix, units, n)
    np.testing.assert_allclose(found, literal, rtol=1e-8, atol=1e-9 * nuclear(matrix))
    order = np.random.default_rng(2).permutation(n)  # single rows in any order
    shuffled = nuclear_norm_drops(matrix[:n], order, n)
    literal = drops(matrix[:n], order, n)
    np.testing.assert_allclose(shuffled, literal, rtol=1e-8, atol=1e-9 * nuclear(matrix))


def test_a_channel_that_another_one_repeats_is_worth_less_to_chip_than_an_independent_one() -> None:
    """Orthogonal rows are worth their length; of two equal ones each is worth sqrt(2) - 1 of it, and a zero nothing."""
    found = nuclear_norm_drops(np.array([[3.0, 0, 0], [0, 3.0, 0], [0, 3.0, 0], [0, 0, 0]]), np.arange(4), 4)
    twin = 3.0 * (np.sqrt(2.0) - 1.0)
    np.testing.assert_allclose(found, [3.0, twin, twin, 0.0], rtol=1e-10, atol=1e-12)


def inputs_of(model: nn.Module, layer: str, batch: Any) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        call(model, batch)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


@cases
@pytest.mark.parametrize("samples", [1, 4, 16])
def test_chip_is_the_mean_over_the_first_samples(name: str, samples: int) -> None:
    case = CASES[name]
    model, batches = case.build(), case.batches()
    found = chip_scores(model, batches, samples=samples)
    total = sum(len(one_by_one(batch)) for batch in batches)
    for site in case.sites:
        units, falls = case.units(site), []
        for batch in batches:
            for sample, values in zip(one_by_one(batch), inputs_of(model, site, batch), strict=True):
                maps = values.double().numpy()
                if isinstance(sample, dict) and "attention_mask" in sample:
                    maps = maps[sample["attention_mask"][0].numpy() == 1]  # padding is left out
                maps = maps.reshape(len(units), -1) if site == "project" else maps.reshape(-1, len(units)).T
                falls.append(maps)
        literal = [drops(maps, units, len(found[site])) for maps in falls[:samples]]
        assert len(literal) == min(samples, total)
        np.testing.assert_allclose(found[site], np.mean(literal, axis=0), rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------------ Beta-Rank


def literal_beta(weight: Array, inputs: Array, outputs: Array, windows: Callable[[int, int], Array]) -> Array:
    """(outputs,): mean |w| times the sum over positions of the deviations' ratio, unscaled.

    `outputs` is (samples, outputs, positions); `windows(output, position)` all that the filter sees there.
    """
    found = np.zeros(len(weight))
    for u, s in itertools.product(range(outputs.shape[1]), range(outputs.shape[2])):
        values, seen = outputs[:, u, s], windows(u, s)
        above = np.sqrt(np.mean((values - values.mean()) ** 2))
        below = np.sqrt(np.mean((seen - seen.mean()) ** 2))
        found[u] += above / below if below > 0.0 else 0.0
    return found * np.abs(weight).reshape(len(weight), -1).mean(axis=1)


def unit_interval(scores: Array) -> Array:
    return (scores - scores.min()) / (scores.max() - scores.min())


def conv_ratios(layer: nn.Conv2d, inputs: Array) -> Array:
    """Unscaled scores of a convolution's outputs; every window is cut out by hand, and padding is not in it."""
    weight, stride, pad, dilation = layer.weight.detach().numpy(), layer.stride, layer.padding, layer.dilation
    with torch.no_grad():
        out = layer(torch.from_numpy(inputs)).numpy()
    per_group, of_group = len(weight) // layer.groups, inputs.shape[1] // layer.groups

    def window(u: int, s: int) -> Array:
        row, column = divmod(s, out.shape[3])
        first, seen = (u // per_group) * of_group, []
        for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            y = row * stride[0] - pad[0] + i * dilation[0]
            x = column * stride[1] - pad[1] + j * dilation[1]
            if 0 <= y < inputs.shape[2] and 0 <= x < inputs.shape[3]:
                seen.append(inputs[:, first : first + of_group, y, x].ravel())
        return np.concatenate(seen)

    return literal_beta(weight, inputs, out.reshape(*out.shape[:2], -1), window)


def linear_ratios(layer: nn.Linear, inputs: Array) -> Array:
    """Inputs (samples, positions, channels)."""
    with torch.no_grad():
        out = layer(torch.from_numpy(inputs)).numpy()
    return literal_beta(
        layer.weight.detach().numpy(), inputs, out.transpose(0, 2, 1), lambda _, s: inputs[:, s].ravel()
    )


def test_beta_rank_of_neurons() -> None:
    model, batches = mlp(), CASES["mlp"].batches()
    found = beta_rank_scores(model, batches)
    for layer, site in (("0", "2"), ("2", "4")):
        ratios = [
            linear_ratios(model.get_submodule(layer), inputs_of(model, layer, batch).numpy()[:, None])
            for batch in batches
        ]
        relative(found[site], unit_interval(np.mean(ratios, axis=0)), 1e-9)


def test_beta_rank_of_channels_with_stride_padding_and_one_channel_each() -> None:
    model, batches = small_net(), CASES["small_net"].batches()
    found = beta_rank_scores(model, batches)
    scores = {
        layer: unit_interval(
            np.mean(
                [
                    conv_ratios(model.get_submodule(layer), inputs_of(model, layer, b).numpy())
                    for b in batches
                ],
                0,
            )
        )
        for layer in ("stem", "depthwise", "project")
    }
    relative(found["project"], (scores["stem"] + scores["depthwise"]) / 2.0, 1e-8)
    relative(found["fc"], scores["project"], 1e-8)


class Wide(nn.Module):
    """A convolution between two others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, **settings), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(self.first(x)))).mean((2, 3))


def wide(**settings: Any) -> Any:
    return models_zoo.randomise(Wide(**settings), 5).double()


def test_beta_rank_of_two_outputs_to_a_channel() -> None:
    """Groups of one channel with two outputs each, which go together; the channel has a filter of its own as well."""
    model, x = wide(kernel_size=3, groups=4, padding=1), normal(4, 2, 6, 7)
    first = unit_interval(conv_ratios(model.first, x.numpy()))
    conv = conv_ratios(model.conv, inputs_of(model, "conv", x).numpy()).reshape(4, 2).sum(axis=1)
    found = beta_rank_scores(model, x, sites="last")["last"]
    relative(found, (first + unit_interval(conv)) / 2.0, 1e-8)


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 2},
        {"stride": (1, 2), "padding": (0, 1)},
        {"dilation": 2, "padding": 2},
        {"kernel_size": (3, 1)},
    ],
    ids=["padded", "uneven", "dilated", "tall"],
)
def test_beta_rank_of_every_kind_of_convolution(settings: dict[str, Any]) -> None:
    model, x = wide(**{"kernel_size": 3} | settings), normal(4, 2, 6, 7)
    literal = conv_ratios(model.conv, inputs_of(model, "conv", x).numpy())
    relative(beta_rank_scores(model, x, sites="last")["last"], unit_interval(literal), 1e-8)


def test_beta_rank_of_signals_in_one_dimension() -> None:
    model, x = zoo("signals"), models_zoo.signals().double()
    as_pictures = nn.Conv2d(2, 12, (1, 7), stride=(1, 2)).double()
    with torch.no_grad():
        as_pictures.weight.copy_(model.conv1.weight[:, :, None])
        as_pictures.bias.copy_(model.conv1.bias)
    literal = conv_ratios(as_pictures, x.numpy()[:, :, None])
    relative(beta_rank_scores(model, x, sites="conv2")["conv2"], unit_interval(literal), 1e-8)


@transformers
def test_beta_rank_of_heads_and_of_gated_neurons() -> None:
    case = CASES["llama"]
    model, batch = case.build(), case.batches()[0]
    found = beta_rank_scores(model, batch)
    at = "model.layers.1."
    for site, layers in (
        ("self_attn.o_proj", "self_attn.{q,k,v}_proj"),
        ("mlp.down_proj", "mlp.{gate,up}_proj"),
    ):
        prefix, _, rest = layers.partition("{")
        names, _, suffix = rest.partition("}")
        parts = []
        for short in names.split(","):
            layer = f"{at}{prefix}{short}{suffix}"
            rows = linear_ratios(model.get_submodule(layer), inputs_of(model, layer, batch).numpy())
            n = len(found[at + site])
            parts.append(unit_interval(rows.reshape(n, -1).sum(axis=1)))
        relative(found[at + site], np.mean(parts, axis=0), 1e-7)


def test_beta_rank_leaves_out_positions_where_nothing_varies() -> None:
    model, x = small_net(), normal(4, 3, 9, 9)
    x[:, :, :4] = 0.7  # the first window's rows see a constant
    literal = conv_ratios(model.stem, np.round(x.numpy(), 15))
    other = conv_ratios(model.depthwise, inputs_of(model, "depthwise", x).numpy())
    found = beta_rank_scores(model, x, sites="project")["project"]
    relative(found, (unit_interval(literal) + unit_interval(other)) / 2.0, 1e-6)


def test_beta_rank_of_branches_side_by_side_scales_each_layer_s_own_units() -> None:
    """Each unit is written by one layer alone, so that there is nothing to average."""
    model, x = zoo("concatenation"), models_zoo.pictures().double()
    found = beta_rank_scores(model, x, sites="both")["both"]
    left, right = (unit_interval(conv_ratios(layer, x.numpy())) for layer in (model.left, model.right))
    relative(found, np.concatenate([left, right]), 1e-8)


def test_beta_rank_does_not_care_for_the_size_of_the_inputs_but_for_that_of_the_weights() -> None:
    model, x = mlp(bias=False), normal(7, 6)
    found = beta_rank_scores(model, x)
    relative(beta_rank_scores(model, 9.0 * x)["2"], found["2"], 1e-9)
    larger = copy.deepcopy(model)
    least = int(found["2"].argmin())
    with torch.no_grad():
        larger[0].weight[least] *= 100.0
    assert beta_rank_scores(larger, x)["2"].argmax() == least


# ------------------------------------------------------------------------------------------------ LoRAPrune


class LowRank(nn.Module):
    """W + B A, as a parametrization of a weight seen as a matrix."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.detach() + (self.b @ self.a).reshape(weight.shape)


def literal_loraprune(
    case: Case, layers: list[str], *, rank: int, rate: float, seed: int, batches: list[Any]
) -> dict[str, Array]:
    model, draw = case.build(), torch.Generator().manual_seed(seed)
    adapters: dict[str, LowRank] = {}
    for layer in layers:
        module = model.get_submodule(layer)
        rest = module.weight[0].numel()
        a = (2.0 * torch.rand(rank, rest, generator=draw).double() - 1.0) / np.sqrt(rest)
        adapters[layer] = LowRank(a, torch.zeros(len(module.weight), rank, dtype=torch.float64))
        parametrize.register_parametrization(module, "weight", adapters[layer])
    scores = {site: np.zeros(int(case.units(site).max()) + 1) for site in case.sites}
    first = dict.fromkeys(itertools.product(layers, "ab"), 0.0)
    second = dict(first)
    for step, batch in enumerate(batches, start=1):
        for adapter in adapters.values():
            adapter.zero_grad()
        case.loss(model, batch).backward()
        for site, parts in case.sites.items():
            now = np.zeros(len(scores[site]))
            for name, axis, units, _ in parts:
                layer, _, kind = name.rpartition(".")
                if kind != "weight" or layer not in adapters:
                    continue
                a, b = adapters[layer].a.detach(), adapters[layer].b.detach()
                da, db = adapters[layer].a.grad, adapters[layer].b.grad
                estimate = (db @ a + b @ da - db @ da).numpy()
                weight = model.get_submodule(layer).weight.detach().numpy()
                product = np.abs(estimate.reshape(weight.shape) * weight)
                own = np.array(
                    [product.take(np.flatnonzero(units == u), axis=axis).sum() for u in range(len(now))]
                )
                now += own / np.linalg.norm(own)
            scores[site] = 0.9 * scores[site] + 0.1 * now
        with torch.no_grad():  # AdamW
            for (layer, factor), value in first.items():
                p = getattr(adapters[layer], factor)
                p *= 1.0 - rate * 0.01
                first[layer, factor] = 0.9 * value + 0.1 * p.grad
                second[layer, factor] = 0.999 * second[layer, factor] + 0.001 * p.grad**2
                mean, square = (
                    first[layer, factor] / (1 - 0.9**step),
                    second[layer, factor] / (1 - 0.999**step),
                )
                p -= rate * mean / (square.sqrt() + 1e-8)
    return scores


@pytest.mark.parametrize(("name", "layers"), [("mlp", ["0", "2", "4"]), ("small_net", [])])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_loraprune_is_a_loop_over_steps_of_its_factors(name: str, layers: list[str], steps: int) -> None:
    case = CASES[name]
    layers = layers or ["stem", "depthwise", "project", "fc"]
    batches = (case.batches() * 2)[:steps]
    found = loraprune_scores(case.build(), batches, rank=3, learning_rate=0.05, seed=4)
    literal = literal_loraprune(case, layers, rank=3, rate=0.05, seed=4, batches=batches)
    for site in case.sites:
        relative(found[site], literal[site], 1e-6)


@transformers
def test_loraprune_of_heads_and_of_gated_neurons() -> None:
    case = CASES["llama"]
    layers = []
    for layer in range(2):
        at = f"model.layers.{layer}."
        layers += [f"{at}self_attn.{x}_proj" for x in "qkvo"] + [
            f"{at}mlp.{x}_proj" for x in ("gate", "up", "down")
        ]
    batches = case.batches()
    found = loraprune_scores(case.build(), batches, rank=2, learning_rate=0.01)
    literal = literal_loraprune(case, layers, rank=2, rate=0.01, seed=0, batches=batches)
    for site in case.sites:
        relative(found[site], literal[site], 1e-6)


def test_loraprune_depends_on_its_seed_and_learning_rate_and_on_nothing_global() -> None:
    model, batches = mlp(), CASES["mlp"].batches()
    torch.manual_seed(1)
    found = loraprune_scores(model, batches)["2"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(loraprune_scores(model, batches)["2"], found)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.abs(loraprune_scores(model, batches, seed=1)["2"] - found).max() > 1e-4
    assert np.abs(loraprune_scores(model, batches, learning_rate=0.1)["2"] - found).max() > 1e-4


def test_loraprune_of_very_many_random_rows_is_the_plain_gradient() -> None:
    """A' A is then near a multiple of the identity, and the estimate near the same multiple of dL/dW."""
    model, x = mlp(), normal(20, 6)
    found = loraprune_scores(model, x, rank=20000)
    model.zero_grad()
    likeliest(model, x).backward()
    for site, parts in CASES["mlp"].sites.items():
        literal = np.zeros(len(found[site]))
        for name, axis, _, _ in parts:
            if name.endswith("weight"):
                parameter = dict(model.named_parameters())[name]
                product = (parameter.detach() * parameter.grad).abs().sum(1 - axis).numpy()
                literal += 0.1 * product / np.linalg.norm(product)
        relative(found[site], literal, 0.03)


# ------------------------------------------------------------------------------------------------ LRP


def positive_rule(matrix: Array, x: Array, relevance: Array, bias: Array | None = None) -> Array:
    """R_i = sum_j (x_i w_ij)^+ / (sum_i' (x_i' w_i'j)^+ + b_j^+) R_j, with w_ij = matrix[j, i]."""
    found = np.zeros(len(x))
    for j in range(len(matrix)):
        shares = np.maximum(x * matrix[j], 0.0)
        total = shares.sum() + (0.0 if bias is None else max(bias[j], 0.0))
        if total > 0.0:
            found += shares / total * relevance[j]
    return found


def chosen(logits: Array, label: int | None = None) -> Array:
    c = int(logits.argmax()) if label is None else label
    return np.where(np.arange(len(logits)) == c, logits, 0.0)


def literal_lrp_of_mlp(model: Any, x: Array, *, bias: bool = False, labels: Any = None) -> dict[str, Array]:
    layers = {
        name: (layer.weight.detach().numpy(), layer.bias)
        for name, layer in model.named_children()
        if isinstance(layer, nn.Linear)
    }
    offset = {k: np.zeros(len(w)) if b is None else b.detach().numpy() for k, (w, b) in layers.items()}
    w0, w2, w4 = (layers[name][0] for name in ("0", "2", "4"))
    totals = {"2": np.zeros(9), "4": np.zeros(7)}
    for i, sample in enumerate(x):
        h = np.maximum(w0 @ sample + offset["0"], 0.0)
        g = np.maximum(w2 @ h + offset["2"], 0.0)
        top = chosen(w4 @ g + offset["4"], None if labels is None else int(labels[i]))
        r4 = positive_rule(w4, g, top, offset["4"] if bias else None)
        r2 = positive_rule(w2, h, r4, offset["2"] if bias else None)
        totals["4"] += np.abs(r4)
        totals["2"] += np.abs(r2)
    return totals


@pytest.mark.parametrize("bias", [False, True])
def test_lrp_of_neurons_is_propagation_layer_by_layer(bias: bool) -> None:
    model, batches = mlp(), CASES["mlp"].batches()
    found = lrp_scores(model, batches, bias=bias)
    literal = literal_lrp_of_mlp(model, torch.cat(batches).numpy(), bias=bias)
    for site in ("2", "4"):
        relative(found[site], literal[site], 1e-7)


def test_lrp_takes_the_labels_where_a_batch_has_them() -> None:
    model, x, labels = mlp(), normal(9, 6), torch.arange(9) % 4
    found = lrp_scores(model, [(x, labels)])
    literal = literal_lrp_of_mlp(model, x.numpy(), labels=labels)
    for site in ("2", "4"):
        relative(found[site], literal[site], 1e-7)
    assert np.abs(lrp_scores(model, x)["2"] - found["2"]).max() > 1e-3


def as_matrix(layer: nn.Module, norm: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A convolution with its norm, on maps of a shape, as matrix (outputs, inputs) and offset; by unit vectors."""
    fused = layer if norm is None else fuse_conv_bn_eval(layer, norm)
    size = int(np.prod(shape))
    with torch.no_grad():
        offset = fused(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        return (fused(units).flatten(1) - offset).numpy().T, offset.numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_lrp_of_channels_folds_batch_norms_and_hands_on_through_activations_and_averages(
    bias: bool, inplace: bool
) -> None:
    model, x = small_net(), normal(3, 3, 9, 9)
    stem = as_matrix(model.stem, model.norm0, (3, 9, 9))
    depthwise = as_matrix(model.depthwise, model.norm1, (6, 5, 5))
    project = as_matrix(model.project, model.norm2, (6, 5, 5))
    last, shift = model.fc.weight.detach().numpy(), model.fc.bias.detach().numpy()
    totals = {"project": np.zeros(6), "fc": np.zeros(8)}
    for sample in x.numpy():
        a = np.clip(stem[0] @ sample.ravel() + stem[1], 0.0, 6.0)
        b = np.clip(depthwise[0] @ a + depthwise[1], 0.0, 6.0)
        c = np.maximum(project[0] @ b + project[1], 0.0)
        pooled = c.reshape(8, 25).mean(axis=1)
        r = positive_rule(last, pooled, chosen(last @ pooled + shift), shift if bias else None)
        totals["fc"] += np.abs(r)
        sums = c.reshape(8, 25).sum(axis=1, keepdims=True)
        maps = c.reshape(8, 25) / np.where(sums > 0.0, sums, 1.0) * r[:, None]
        r = positive_rule(project[0], b, maps.ravel(), project[1] if bias else None)
        totals["project"] += np.abs(r).reshape(6, 25).sum(axis=1)
    found = lrp_scores(small_net(inplace), x, bias=bias)
    for site in ("project", "fc"):
        relative(found[site], totals[site], 1e-6)


def test_relevance_goes_on_below_a_depthwise_convolution() -> None:
    """Sites further from the logits: the literal propagation through three convolutions and their norms."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU6(),
        nn.Conv2d(5, 7, 1), nn.BatchNorm2d(7), nn.ReLU6(),
        nn.Conv2d(7, 7, 3, stride=2, groups=7, bias=False), nn.BatchNorm2d(7), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(7, 4),
    )  # fmt: skip
    model, x = models_zoo.randomise(model, 6).double(), normal(3, 2, 6, 6)
    shapes = {"0": (2, 6, 6), "3": (5, 6, 6), "6": (7, 6, 6)}
    maps = {k: as_matrix(model[int(k)], model[int(k) + 1], shape) for k, shape in shapes.items()}
    last, shift = model[11].weight.detach().numpy(), model[11].bias.detach().numpy()
    total = np.zeros(5)
    for sample in x.numpy():
        a = np.clip(maps["0"][0] @ sample.ravel() + maps["0"][1], 0.0, 6.0)
        b = np.clip(maps["3"][0] @ a + maps["3"][1], 0.0, 6.0)
        c = np.maximum(maps["6"][0] @ b + maps["6"][1], 0.0).reshape(7, 4)
        r = positive_rule(last, c.max(axis=1), chosen(last @ c.max(axis=1) + shift))
        winners = np.zeros((7, 4))
        winners[np.arange(7), c.argmax(axis=1)] = r
        r = positive_rule(maps["6"][0], b, winners.ravel())
        r = positive_rule(maps["3"][0], a, r)
        total += np.abs(r).reshape(5, -1).sum(axis=1)
    relative(lrp_scores(model, x, sites="3")["3"], total, 1e-6)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu of tensors": lambda x: x.relu(),
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(0.0, 0.5),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "tanh": torch.tanh,
    "tanh of tensors": lambda x: x.tanh(),
    "sigmoid": F.sigmoid,
    "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lrp_hands_on_through_every_activation(name: str) -> None:
    """An activation hands on what it gets, so that the layer before it shares what the one behind it got."""
    act = ACTIVATIONS[name]

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(act(self.b(F.relu(self.a(x)))))

    model, x = models_zoo.randomise(Bent(), 1).double(), normal(6, 6)
    total = np.zeros(9)
    with torch.no_grad():
        h = F.relu(model.a(x))
        g = act(model.b(h))
        logits = model.c(g)
    for i in range(len(x)):
        r = positive_rule(model.c.weight.detach().numpy(), g[i].numpy(), chosen(logits[i].numpy()))
        total += np.abs(positive_rule(model.b.weight.detach().numpy(), h[i].numpy(), r))
    relative(lrp_scores(model, x, sites="b")["b"], total, 1e-6)


class Sums(nn.Module):
    """Nonnegative maps all along: a residual sum, a pooled maximum, an average, a branch beside another."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.inner, self.outer = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.Conv2d(5, 6, 1, bias=False)
        self.left, self.right = nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.mix, self.fc = nn.Conv2d(7, 8, 3, bias=False), nn.Linear(8, 5, bias=False)
        self.relu, self.inplace = nn.ReLU(inplace=inplace), inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.stem(x)), 2)
        branch = 1.0 * self.relu(
            self.outer(self.relu(self.inner(x)))
        )  # what a ReLU returned, torch forbids to change
        if self.inplace:
            branch += x
            x = branch
        else:
            x = x + branch
        x = torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], dim=1)
        x = F.avg_pool2d(self.relu(self.mix(x)), 2)
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_relevance_is_conserved_where_none_can_be_lost(inplace: bool) -> None:
    """Every cut through the network holds the logit.

    No layer has a bias: an output that is positive, the only kind that a ReLU lets have relevance, then has a positive
    contribution to share it among. All that is summed is nonnegative, so every share has the sign of the logit, and
    the absolute values sum to its absolute value.  What enters the residual block's branch is part of a cut only.
    """
    model, x = models_zoo.randomise(Sums(inplace), 2).double(), normal(6, 2, 12, 12)
    with torch.no_grad():
        whole = float(model(x).max(dim=1).values.abs().sum())
    found = {site: values.sum() for site, values in dict(lrp_scores(model, x)).items()}
    assert list(found) == ["outer", "mix", "fc"]
    assert found["mix"] == pytest.approx(whole, rel=1e-6)
    assert found["fc"] == pytest.approx(whole, rel=1e-6)
    assert 0.1 * whole < found["outer"] < whole


def test_relevance_counts_once_where_several_layers_read_the_same_maps() -> None:
    """`left` and `right` share the whole; `inner` gets what leaves `outer`, and the rest goes by on the shortcut."""
    model, x = models_zoo.randomise(Sums(), 2).double(), normal(6, 2, 12, 12)
    found = {site: values.sum() for site, values in dict(lrp_scores(model, x, sites="*")).items()}
    assert found["inner"] == pytest.approx(found["mix"] + found["outer"], rel=1e-6)


def test_relevance_of_the_whole_network_is_the_logit_whatever_its_depth() -> None:
    model, x = mlp(bias=False), normal(20, 6)
    with torch.no_grad():
        whole = float(model(x).max(dim=1).values.abs().sum())
    for scores in dict(lrp_scores(model, x)).values():
        assert scores.sum() == pytest.approx(whole, rel=1e-6)
    biased = mlp()
    with torch.no_grad():
        biased[2].bias.fill_(1.0)
    lost, kept = (lrp_scores(biased, x, bias=flag)["2"].sum() for flag in (True, False))
    assert lost < kept  # the bias took its share


def outputs_under_lrp(model: nn.Module, x: Tensor) -> Tensor:
    """What the model returns while its relevances are computed."""
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, args, output: seen.append(output.detach().clone()))
    try:
        lrp_scores(model, x, sites="*")  # whatever reads its units
    finally:
        handle.remove()
    return seen[-1]


class InPlaceThenNorm(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv, self.relu, self.norm = nn.Conv2d(2, 5, 3), nn.ReLU(inplace=inplace), nn.BatchNorm2d(5)
        self.last = nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.relu(self.conv(x)))).mean((2, 3))


class Residual(nn.Module):
    """A block of ResNet: convolution, norm, the shortcut added to it, ReLU."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem, self.relu, self.inplace = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=inplace), inplace
        self.inner, self.norm0 = nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.outer, self.norm1 = nn.Conv2d(7, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.norm1(self.outer(self.relu(self.norm0(self.inner(x)))))
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.last(self.relu(y).mean((2, 3)))


class SumThenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.short = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 5, 1)
        self.norm, self.last = nn.BatchNorm2d(5), nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += self.short(x)
        return self.last(F.relu(self.norm(y))).mean((2, 3))


class ReadAfterwards(nn.Module):
    """A pre-activation block: the shortcut sees what the activation wrote in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU6(inplace=True)
        self.inner, self.last = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.inner(self.act(x))
        return self.last(x + y).mean((2, 3))


@pytest.mark.parametrize("make", [InPlaceThenNorm, SumThenNorm, ReadAfterwards, Sums, SmallNet, Residual])
def test_the_model_computes_what_it_always_does_while_lrp_looks(make: Any) -> None:
    model = make() if make in (SumThenNorm, ReadAfterwards) else make(inplace=True)
    model = models_zoo.randomise(model, 3).double()
    x = normal(4, 3 if make is SmallNet else 2, 12, 12)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(outputs_under_lrp(model, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "resnet_basic", "resnet_bottleneck", "concatenation", "signals"]
)
def test_the_zoo_s_networks_compute_what_they_always_do_while_lrp_looks(name: str) -> None:
    if not models_zoo.ZOO[name].available:
        pytest.skip("transformers is not installed")
    model, batch = zoo(name), models_zoo.ZOO[name].batch(0)
    batch = {k: v.double() for k, v in batch.items()} if isinstance(batch, dict) else batch.double()
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda _, args, output: seen.append(output))
    found = lrp_scores(model, batch)
    handle.remove()
    torch.testing.assert_close(
        getattr(seen[-1], "logits", seen[-1]).detach(), models_zoo.forward(model, batch), rtol=1e-8, atol=1e-8
    )
    assert list(found) == list(models_zoo.ZOO[name].sites)
    for site, (_, n) in models_zoo.ZOO[name].sites.items():
        assert found[site].shape == (n,)
        assert found[site].max() > 0.0


@pytest.mark.parametrize("make", [InPlaceThenNorm, Sums, SmallNet, Residual])
def test_an_operation_in_place_changes_no_relevance(make: Any) -> None:
    here, there = (models_zoo.randomise(make(inplace=flag), 3).double() for flag in (True, False))
    x = normal(3, 3 if make is SmallNet else 2, 12, 12)
    one, other = lrp_scores(here, x), lrp_scores(there, x)
    for site in other:
        relative(one[site], other[site], 1e-9)


@pytest.mark.parametrize("site", ["outer", "inner"])
@pytest.mark.parametrize("bias", [False, True])
def test_lrp_of_a_residual_block_shares_a_sum_in_proportion_to_its_parts(bias: bool, site: str) -> None:
    model, x = models_zoo.randomise(Residual(), 4).double(), normal(3, 2, 5, 5)
    stem, inner, outer = (
        as_matrix(layer, norm, shape)
        for layer, norm, shape in (
            (model.stem, None, (2, 5, 5)),
            (model.inner, model.norm0, (5, 5, 5)),
            (model.outer, model.norm1, (7, 5, 5)),
        )
    )
    last, shift = model.last.weight.detach().numpy(), model.last.bias.detach().numpy()
    totals = {"outer": np.zeros(7), "inner": np.zeros(5)}
    for sample in x.numpy():
        a = np.maximum(stem[0] @ sample.ravel() + stem[1], 0.0)
        b = np.maximum(inner[0] @ a + inner[1], 0.0)
        c = outer[0] @ b + outer[1]
        top = np.maximum(c + a, 0.0)
        pooled = top.reshape(5, 25).mean(axis=1)
        r = positive_rule(last, pooled, chosen(last @ pooled + shift), shift if bias else None)
        totals["inner"] += np.abs(r)  # the layer behind the average reads the same units
        share = top.reshape(5, 25) / np.maximum(top.reshape(5, 25).sum(axis=1, keepdims=True), 1e-300)
        r = (share * r[:, None]).ravel()
        r = positive_rule(outer[0], b, np.where(top > 0.0, c / (c + a), 0.0) * r, outer[1] if bias else None)
        totals["outer"] += np.abs(r).reshape(7, 25).sum(axis=1)
        r = positive_rule(inner[0], a, r, inner[1] if bias else None)
        totals["inner"] += np.abs(r).reshape(5, 25).sum(axis=1)
    relative(lrp_scores(model, x, bias=bias, sites="*")[site], totals[site], 1e-6)


@transformers
@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_lrp_refuses_transformers_by_name(name: str) -> None:
    model, batch = zoo(name), models_zoo.ZOO[name].batch(0)
    if name == "vit":
        batch = {k: v.double() for k, v in batch.items()}
    with pytest.raises(LayerError, match=r"^lrp has no rule for \w+: it is for networks of conv.*\.$"):
        lrp_scores(model, batch)


@pytest.mark.parametrize("name", ["efficientnet", "perceptron"])
def test_lrp_refuses_gates_by_name(name: str) -> None:
    model, batch = zoo(name), models_zoo.ZOO[name].batch(0)
    with pytest.raises(LayerError, match=r"^lrp has no rule for _*mul_*: "):
        lrp_scores(model, batch.double())


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "*": lambda a, b: a * b,
    "*=": lambda a, b: a.mul_(b),
    "torch.mul": torch.mul,
    "multiply": torch.multiply,
    "@": lambda a, b: a @ (b.T @ a),
    "mm": lambda a, b: a.mm(b.T).mm(a),
    "einsum": lambda a, b: torch.einsum("ij,ij->ij", a, b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "/": lambda a, b: a / (b + 9.0),
    "square": lambda a, b: a**2 + b,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_lrp_refuses_products_of_activations_however_they_are_spelled(name: str) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(PRODUCTS[name](self.a(x), self.b(x)))

    model = models_zoo.randomise(Product(), 1).double()
    coupling = trace_coupling(_plain(), normal(2, 5))
    with pytest.raises(LayerError, match="lrp has no rule for"):
        lrp_scores(model, normal(6, 5), coupling=coupling)


def _plain() -> nn.Module:
    """Names and widths as those of `Product`, so that its one site is found whatever the product."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(x))

    return Plain().double()


# ------------------------------------------------------------------------------------------------ layers shared


class Loop(nn.Module):
    """`fc` reads and writes the same neurons; its weight is square, 7 of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + F.relu(self.fc(x))
        return self.out(x)


LOOP: list[Part] = [
    ("stem.weight", 0, np.arange(7), True),
    ("fc.weight", 0, np.arange(7), True),
    ("out.weight", 1, np.arange(7), False),
]


def loop() -> nn.Module:
    return models_zoo.randomise(Loop(), 1).double()


def test_weights_that_read_a_unit_do_not_write_it_though_the_layer_does_both() -> None:
    model, x = loop(), normal(6, 5)
    rows = rows_of(model, LOOP)
    literal = [sum(np.linalg.norm(one - other) for other in rows) for one in rows]
    relative(fpgm_scores(model, x, sites="fc")["fc"], np.array(literal), 1e-10)


def test_taylor_takes_the_weights_that_write_though_the_layer_reads_as_well() -> None:
    model, x = loop(), normal(6, 5)
    case = Case(loop, lambda: [x], likeliest, {"fc": LOOP})
    writes = [part for part in LOOP if part[3]]
    literal = [derivative(case, model, writes, u, x) ** 2 for u in range(7)]
    relative(taylor_scores(model, x, sites="fc")["fc"], np.array(literal), 2e-5)


def test_head_importance_of_units_that_several_layers_read() -> None:
    """One gate for a unit, in front of all its readers; what goes by on the shortcut passes the last of them."""
    model, samples = loop(), [normal(1, 5, seed=seed) for seed in range(6)]
    gates = np.zeros(7)
    for x in samples:
        with gated(model, "fc", np.arange(7)) as one, gated(model, "out", np.arange(7)) as other:
            found = torch.autograd.grad(likeliest(model, x), [one.gates, other.gates])
        gates += np.abs(sum(found).numpy())  # type: ignore[union-attr]
    expected = gates / np.linalg.norm(gates)
    relative(head_importance_scores(model, samples, sites="fc")["fc"], expected, OWN)


def test_a_weight_that_both_reads_and_writes_a_unit_counts_once_in_nvit() -> None:
    model, x = loop(), normal(6, 5)
    model.zero_grad()
    likeliest(model, x).backward()
    product = {name: (p.detach() * p.grad).numpy() for name, p in model.named_parameters()}
    literal = np.zeros(7)
    for u in range(7):
        both = product["fc.weight"]
        literal[u] = (
            product["stem.weight"][u].sum()
            + product["stem.bias"][u]
            + product["fc.bias"][u]
            + product["out.weight"][:, u].sum()
            + both[u].sum()
            + both[:, u].sum()
            - both[u, u]
        )
    relative(nvit_scores(model, x, sites="fc")["fc"], literal**2, OWN)


def test_beta_rank_of_a_layer_that_reads_and_writes() -> None:
    model, x = loop(), normal(6, 5)
    stem, fc = (
        unit_interval(linear_ratios(model.get_submodule(name), inputs_of(model, name, x).numpy()[:, None]))
        for name in ("stem", "fc")
    )
    relative(beta_rank_scores(model, x, sites="fc")["fc"], (stem + fc) / 2.0, 1e-8)


# ------------------------------------------------------------------------------------------------ losses


def test_labels_of_a_batch_are_taken_from_tuples_and_mappings() -> None:
    model, x, labels = mlp(), normal(9, 6), torch.arange(9) % 4
    for rule, score in GRADIENTS.items():
        own = score(model, x, loss=lambda output, batch: cross_entropy(output, labels))
        for batches in ([(x, labels)], [[x, labels]]):
            for site in own:
                relative(score(model, batches)[site], own[site], OWN)
        assert np.abs(score(model, x)["2"] - own["2"]).max() > 1e-4, rule


@transformers
@pytest.mark.parametrize("rule", GRADIENTS)
def test_labels_of_a_mapping_that_the_forward_takes_itself(rule: str) -> None:
    model, labels = zoo("resnet_basic"), torch.tensor([2, 0, 5])
    batch = {"pixel_values": models_zoo.pictures().double()}
    found = RULES[rule](model, {**batch, "labels": labels})
    own = RULES[rule](model, batch, loss=lambda output, given: cross_entropy(output.logits, labels))
    for site in own:
        relative(found[site], own[site], OWN)
    plain = RULES[rule](model, batch)
    assert max(np.abs(plain[site] - own[site]).max() for site in own) > 1e-5


def test_a_loss_is_handed_what_the_model_returns_and_the_batch_as_it_was() -> None:
    model, x, weights = mlp(), normal(5, 6), normal(5, 1)
    seen: list[Any] = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        seen.append((output.shape, batch))
        return (output * batch[1]).mean()

    batch = (x, weights, "anything")
    for score in GRADIENTS.values():
        score(model, [batch], loss=loss)
    assert len(seen) == len(GRADIENTS)
    assert all(shape == (5, 4) and given is batch for shape, given in seen)


def padded(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Texts of these lengths behind one another, padded at their ends with tokens that mean something."""
    batch = models_zoo.tokens(seed, rows=len(lengths), length=max(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": batch["input_ids"], "attention_mask": mask}


def tokens_that_count(model: nn.Module, batch: Any) -> Tensor:
    """Mean over texts of the mean over a text's predictions of a token from tokens, neither being padding."""
    logits, found = model(**batch).logits, []
    for row, tokens, mask in zip(logits, batch["input_ids"], batch["attention_mask"], strict=True):
        own = []
        for t in range(len(tokens) - 1):
            if mask[t] and mask[t + 1]:
                own.append(row[t].exp().sum().log() - row[t][tokens[t + 1]])
        found.append(torch.stack(own).mean())
    return torch.stack(found).mean()


@transformers
@pytest.mark.parametrize("rule", ["taylor", "nvit", "loraprune"])
def test_padding_does_not_count_in_the_loss_of_next_tokens(rule: str) -> None:
    model, batch = zoo("llama"), padded([8, 5, 3])
    found = RULES[rule](model, batch)
    own = RULES[rule](model, batch, loss=lambda output, given: tokens_that_count(lambda **_: output, given))  # type: ignore[arg-type]
    other = {key: value.clone() for key, value in batch.items()}
    other["input_ids"][batch["attention_mask"] == 0] = 77
    for site in own:
        relative(found[site], own[site], OWN)
        relative(RULES[rule](model, other)[site], found[site], OWN)
    whole = RULES[rule](model, {"input_ids": batch["input_ids"]})
    assert max(np.abs(whole[site] / found[site] - 1.0).max() for site in own) > 0.01


@transformers
def test_padding_changes_no_sample_s_head_importance() -> None:
    """The loss of a short text is the mean over its own tokens, whatever it is padded to."""
    model, lengths = zoo("llama"), [8, 5, 3]
    batch = padded(lengths)
    alone = [{"input_ids": batch["input_ids"][i : i + 1, :length]} for i, length in enumerate(lengths)]
    found, expected = head_importance_scores(model, batch), head_importance_scores(model, alone)
    for site in expected:
        relative(found[site], expected[site], OWN)


# ------------------------------------------------------------------------------------------------ the model stays


class Mixed(nn.Module):
    """Dropout, a norm with running statistics; parts in training, parts not; fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.5)
        self.b, self.c = nn.Linear(9, 7), nn.Linear(7, 4)
        self.fails_from, self.calls = 10**9, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.c(F.relu(self.b(self.drop(F.relu(self.norm(self.a(x)))))))
        if self.calls >= self.fails_from:
            raise RuntimeError("on purpose")
        return y


def mixed() -> Mixed:
    model = Mixed()
    models_zoo.randomise(model, 1)
    model.double().train()
    model.drop.eval()
    model.b.requires_grad_(False)
    model.a.weight.grad = torch.full_like(model.a.weight, 0.5)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"modes": [module.training for module in model.modules()]}
    found["wanted"] = [parameter.requires_grad for parameter in model.parameters()]
    found["same"] = [id(parameter) for parameter in model.parameters()]
    found["grads"] = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    found["values"] = [value.clone() for value in model.state_dict().values()]
    found["hooks"] = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    ]
    found["modes of torch"] = (torch._C._len_torch_function_stack(), torch.is_grad_enabled())
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = state(model)
    for key, value in before.items():
        assert same(value, after[key]), key


@pytest.mark.parametrize("rule", RULES)
def test_the_model_is_left_as_it_was_found(rule: str) -> None:
    model, batches = mixed(), [normal(5, 6), normal(8, 6, seed=1)]
    before = state(model)
    found = RULES[rule](model, batches)
    unchanged(before, model)
    for site in found:  # and evaluated in eval mode, without dropout: the same once more
        np.testing.assert_array_equal(RULES[rule](copy.deepcopy(model).eval(), batches)[site], found[site])
    with torch.no_grad():
        for site in found:
            np.testing.assert_array_equal(RULES[rule](model, batches)[site], found[site])


@pytest.mark.parametrize("rule", GRADIENTS)
def test_the_model_is_left_as_it_was_found_when_the_loss_raises(rule: str) -> None:
    model, calls = mixed(), []

    def loss(output: Tensor, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("on purpose")
        return output.mean()

    before = state(model)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        RULES[rule](model, [normal(5, 6), normal(8, 6, seed=1)], loss=loss)
    unchanged(before, model)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("fpgm", "filter_gram")])
def test_the_model_is_left_as_it_was_found_when_its_forward_raises(rule: str) -> None:
    model = mixed()
    coupling = trace_coupling(model, normal(5, 6))
    model.fails_from, model.calls = 2, 0
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        RULES[rule](model, [normal(5, 6), normal(8, 6, seed=1)], coupling=coupling)
    unchanged(before, model)


# ------------------------------------------------------------------------------------------------ sites, bad input


@pytest.mark.parametrize("rule", RULES)
def test_sites_are_chosen_by_name_pattern_and_kind(rule: str) -> None:
    model, x = mlp(), normal(5, 6)
    score = RULES[rule]
    everything = score(model, x)
    assert list(everything) == ["2", "4"]
    for wanted, names in (("4", ["4"]), ("[0-3]", ["2"]), (["4", "2"], ["2", "4"]), ("neurons", ["2", "4"])):
        chosen_ones = score(model, x, sites=wanted)
        assert list(chosen_ones) == names
        if rule != "loraprune":  # whose random factors are drawn in the order of the sites
            for name in names:
                np.testing.assert_allclose(chosen_ones[name], everything[name], rtol=1e-12)
    name = "udfc" if rule == "filter_gram" else rule
    assert chosen_ones.rule == name
    assert repr(chosen_ones).startswith(f"PerProblem({name!r}, 2 arrays, ")


@pytest.mark.parametrize("rule", RULES)
def test_bad_input_gets_a_sentence(rule: str) -> None:
    score, model = RULES[rule], mlp()
    for batches in ([], iter(())):
        with pytest.raises(
            LayerError, match=r"^there were no batches to run through the model: give at least one\.$"
        ):
            score(model, batches)
    with pytest.raises(
        LayerError, match=r"^no site of the Sequential fits 'layer': the closest names are 2, 4\.$"
    ):
        score(model, normal(5, 6), sites="layer")
    with pytest.raises(LayerError, match=r"^4 of|^no site of the Sequential fits '0'|^0 of the Sequential"):
        score(model, normal(5, 6), sites="0")
    with pytest.raises(LayerError, match=r"^expected a torch module, got str\.$"):
        score("model", normal(5, 6))
    with pytest.raises(LayerError, match="batches must be a tensor"):
        score(model, 3)
    with pytest.raises(LayerError, match="batch"):
        score(model, ["text"])


@pytest.mark.parametrize("rule", GRADIENTS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda output, batch: 1.0,
        lambda output, batch: output,
        lambda output, batch: output.sum() * float("nan"),
        lambda output, batch: output.sum() * float("inf"),
        lambda output, batch: None,
    ],
    ids=["float", "vector", "nan", "infinity", "nothing"],
)
def test_a_loss_is_a_finite_scalar(rule: str, loss: Any) -> None:
    model = mixed()
    before = state(model)
    with pytest.raises(LayerError, match=r"^the loss of a batch must be a finite scalar tensor"):
        RULES[rule](model, normal(5, 6), loss=loss)
    unchanged(before, model)


@pytest.mark.parametrize("rule", GRADIENTS)
def test_a_loss_that_nothing_depends_on_gets_a_sentence(rule: str) -> None:
    with pytest.raises(LayerError):
        RULES[rule](mlp(), normal(5, 6), loss=lambda output, batch: torch.tensor(1.0))


@transformers
@pytest.mark.parametrize("rule", GRADIENTS)
def test_an_encoder_has_no_loss_of_its_own(rule: str) -> None:
    with pytest.raises(
        LayerError, match=r"^the BertModel returns neither .* pass loss=, a function of its output"
    ):
        RULES[rule](zoo("bert"), models_zoo.padded_tokens())


@transformers
@pytest.mark.parametrize("rule", GRADIENTS)
def test_a_model_that_labels_tokens_has_no_loss_of_its_own(rule: str) -> None:
    """Its logits are of classes: no token follows another there, and their numbers are no classes."""
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        num_labels=3,
    )
    model = hf.BertForTokenClassification(config).eval()
    batch = {"input_ids": torch.arange(10, 24).reshape(2, 7)}
    with pytest.raises(LayerError, match="loss="):
        RULES[rule](model, batch, sites="neurons")


@transformers
def test_filter_gram_refuses_heads_by_name() -> None:
    for name, site in (
        ("llama", "model.layers.0.self_attn.o_proj"),
        ("bert", "encoder.layer.0.attention.output.dense"),
    ):
        entry = models_zoo.ZOO[name]
        with pytest.raises(LayerError, match=f"^the heads of {site} have several channels each"):
            filter_gram(entry.build(), entry.batch(0))
        assert len(filter_gram(entry.build(), entry.batch(0), sites="neurons")) == 2


def test_fpgm_refuses_units_of_unequal_filters() -> None:
    with pytest.raises(
        LayerError,
        match=r"^the units of both have unequal shares of left\.weight: choose other sites, or another rule\.$",
    ):
        fpgm_scores(zoo("concatenation"), models_zoo.pictures().double(), sites="both")


@pytest.mark.parametrize("rank", [0, -3])
def test_loraprune_needs_a_rank(rank: int) -> None:
    with pytest.raises(InputError, match=rf"^rank = {rank} must be at least 1\.$"):
        loraprune_scores(mlp(), normal(5, 6), rank=rank)


@pytest.mark.parametrize("rule", ["head_importance", "chip", "beta_rank"])
def test_inputs_whose_rows_are_nobody_s_are_refused(rule: str) -> None:
    class Folded(nn.Sequential):
        """Its layers see fewer rows than there are samples."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[1:])

    model = mlp()
    folded_model = Folded(*model.children())
    coupling = trace_coupling(model, normal(5, 6))

    def loss(output: Tensor, batch: Any) -> Tensor:
        return output.mean()

    with pytest.raises(LayerError, match="nobody can tell which sample a row belongs to: choose other sites"):
        RULES[rule](
            folded_model, normal(5, 6), coupling=coupling, **({"loss": loss} if rule in GRADIENTS else {})
        )


@pytest.mark.parametrize("rule", RULES)
def test_a_model_without_sites_is_refused(rule: str) -> None:
    with pytest.raises(LayerError, match=r"no .*site"):
        RULES[rule](nn.Sequential(nn.Linear(6, 4)).double(), normal(5, 6))


# ------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_weights_and_nothing_else(dtype: torch.dtype) -> None:
    half = models_zoo.randomise(mlp(), 2).to(dtype)
    double = copy.deepcopy(half).double()
    x = normal(5, 6).to(dtype)
    for score in (fpgm_scores, filter_gram):
        for site in ("2", "4"):
            np.testing.assert_array_equal(score(half, x)[site], score(double, x.double())[site])
    found = chip_scores(half, x)
    for site, n in (("2", 9), ("4", 7)):
        maps = inputs_of(half, site, x).double().numpy()
        literal = np.mean([drops(row[:, None], np.arange(n), n) for row in maps], axis=0)
        np.testing.assert_allclose(found[site], literal, rtol=1e-8, atol=1e-10)
        ranks = beta_rank_scores(half, x)[site]
        np.testing.assert_allclose(ranks, beta_rank_scores(double, x.double())[site], atol=0.05)
        assert ranks.dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", [*GRADIENTS, "lrp"])
def test_gradients_in_lower_precision_are_near_those_in_double(rule: str, dtype: torch.dtype) -> None:
    low = mlp().to(dtype)
    x = normal(5, 6).to(dtype)
    found, expected = RULES[rule](low, x)["2"], RULES[rule](copy.deepcopy(low).double(), x.double())["2"]
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float32: 1e-4}[dtype]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * expected.max())


# ------------------------------------------------------------------------------------------------ into pruning


def kept_inputs(model: nn.Module, site: str, units: Array) -> list[int]:
    """Units whose columns are not zero."""
    columns = model.get_submodule(site).weight.detach().movedim(1, 0).flatten(1).abs().sum(1) > 0.0
    return sorted({int(unit) for unit, used in zip(units, columns.tolist(), strict=True) if used})


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param(name, rule, marks=transformers if name == "llama" else ())
        for name in ("mobilenet_v2", "llama")
        for rule in RULES
        if rule != "filter_gram" and (name, rule) != ("llama", "lrp")  # refused by name
    ],
)
def test_pruning_by_scores_keeps_the_units_of_the_largest(name: str, rule: str) -> None:
    entry = models_zoo.ZOO[name]
    batches = [entry.batch(seed) for seed in range(20 if name == "mobilenet_v2" else 2)]
    table = RULES[rule](entry.build(), batches)
    assert {site: len(table[site]) for site in table} == {site: n for site, (_, n) in entry.sites.items()}
    options = {"scores": table}
    model = entry.build()
    report = prune_model(model, batches, sparsity=0.4, method="scores", options=options, apply="mask")
    assert [row.site for row in report.rows] == list(entry.sites)
    for site, (kind, n) in entry.sites.items():
        width = model.get_submodule(site).weight.shape[1]
        kept = kept_inputs(
            model, site, np.arange(width) // (width // n) if kind == "heads" else np.arange(width)
        )
        assert 0 < len(kept) < n
        assert kept == sorted(np.argsort(-table[site], kind="stable")[: len(kept)].tolist())
    shrunk = entry.build()
    prune_model(shrunk, batches, sparsity=0.4, method="scores", options=options)
    torch.testing.assert_close(
        models_zoo.forward(shrunk, batches[0]), models_zoo.forward(model, batches[0]), rtol=1e-4, atol=1e-4
    )


def test_a_run_goes_on_with_the_same_scores_and_not_with_others(tmp_path: Path) -> None:
    x = normal(30, 6)
    table = taylor_scores(mlp(), x)
    given: dict[str, Any] = {"sparsity": 0.5, "method": "scores", "folder": tmp_path / "work"}
    first = mlp()
    prune_model(first, x, options={"scores": table}, **given)
    again = mlp()
    prune_model(again, x, options={"scores": PerProblem(dict(table), rule="taylor")}, **given)
    torch.testing.assert_close(again[4].weight, first[4].weight, rtol=0.0, atol=0.0)
    with pytest.raises(InputError):
        prune_model(mlp(), x, options={"scores": nvit_scores(mlp(), x)}, **given)


def test_a_site_whose_reader_has_other_inputs_too() -> None:
    """Inputs of the model itself beside the neurons: a further group of the problem, which has no score."""

    class Beside(nn.Module):
        def __init__(self, extra: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(extra, 7), nn.Linear(7 + extra, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat([F.relu(self.a(x)), x], dim=1))

    for extra in (1, 5):
        model, x = models_zoo.randomise(Beside(extra), 1).double(), normal(30, extra)
        scores = taylor_scores(model, x)
        assert scores["b"].shape == (7,)
        prune_model(model, x, keep=3, method="scores", options={"scores": scores}, apply="mask")
        kept = kept_inputs(model, "b", np.arange(7 + extra))
        assert kept == [*sorted(np.argsort(-scores["b"])[:3].tolist()), *range(7, 7 + extra)]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "filter_gram"])
def test_scores_of_fewer_sites_are_missed_by_name(rule: str) -> None:
    model, x = mlp(), normal(30, 6)
    table = RULES[rule](model, x, sites="2")
    with pytest.raises(TypeError, match="option 'scores' has nothing for the problem named '4', only for 2"):
        prune_model(model, x, sparsity=0.5, method="scores", options={"scores": table})


# --------------------------------------------------------------------------------- how products are spelled


class Spelled(nn.Module):
    """The same two layers, the second one as a product written out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(5, 6), nn.Linear(6, 3), how
        self.turned = nn.Parameter(torch.zeros(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if self.how == "linear":
            return self.b(y)
        if self.how == "addmm":
            return torch.addmm(self.b.bias, y, self.turned)
        return y @ self.turned + self.b.bias


@pytest.mark.parametrize("how", ["addmm", "@"])
def test_lrp_shares_a_product_alike_however_it_is_spelled(how: str) -> None:
    plain, other = models_zoo.randomise(Spelled("linear"), 1).double(), Spelled(how).double()
    if how == "@":
        nn.init.zeros_(plain.b.bias)  # added by itself, it would take its share of the sum
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        other.turned.copy_(plain.b.weight.T)
    deeper = [
        nn.Sequential(nn.Linear(4, 5, dtype=torch.float64), nn.ReLU(), model) for model in (plain, other)
    ]
    deeper[1][0].load_state_dict(deeper[0][0].state_dict())
    x = normal(6, 4)
    found, expected = (lrp_scores(model, x, sites="2.a")["2.a"] for model in (deeper[1], deeper[0]))
    relative(found, expected, 1e-9)


class Attends(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 3), how
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        if self.how == "glu":
            y = torch.cat([F.glu(y, 1)] * 2, 1)
        else:
            y = self.attention(y[:, None], y[:, None], y[:, None])[0][:, 0]
        return self.c(y)


@pytest.mark.parametrize("how", ["glu", "attention"])
def test_lrp_refuses_what_multiplies_inside_one_function(how: str) -> None:
    with pytest.raises(LayerError, match="lrp has no rule for"):
        lrp_scores(models_zoo.randomise(Attends(how), 1), normal(4, 5).float(), sites="b")


def test_chip_takes_the_mean_over_layers_that_read_different_maps() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.h = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.stem(x))
            return self.a(y).mean((2, 3)).sum(1, keepdim=True) + self.h(y.mean((2, 3)))

    model, x = models_zoo.randomise(Two(), 2), normal(3, 2, 9, 9).float()
    (site,) = trace_coupling(model, x).sites.values()
    assert len(site.consumers) == 2
    with torch.no_grad():
        maps = F.relu(model.stem(x)).double().numpy()
    units = np.arange(4)
    wide = np.mean([drops(m.reshape(4, -1), units, 4) for m in maps], axis=0)
    narrow = np.mean([drops(m.mean((1, 2))[:, None], units, 4) for m in maps], axis=0)
    np.testing.assert_allclose(
        chip_scores(model, x, sites=site.name)[site.name], (wide + narrow) / 2, rtol=1e-5
    )


def test_beta_rank_asks_for_two_samples_a_batch() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(LayerError, match="at least two samples"):
        beta_rank_scores(model, [normal(1, 5).float()] * 2)


def test_loraprune_in_half_precision_keeps_its_factors_in_single() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    batches = [normal(8, 5, seed=i).float() for i in range(5)]
    expected = loraprune_scores(model, batches)["2"]
    half = loraprune_scores(copy.deepcopy(model).bfloat16(), [x.bfloat16() for x in batches])["2"]
    np.testing.assert_allclose(half, expected, rtol=0.2)
