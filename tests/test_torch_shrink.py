"""Shrinking: a smaller model that computes what the masked one does, whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_zoo import ZOO, forward, names, parameter_count
from torch import Tensor, nn

from osscar_opt.errors import InputError, LayerError
from osscar_opt.torch import shrink, trace_coupling
from osscar_opt.torch.coupling import Coupling

Masks = dict[str, np.ndarray]


def random_masks(coupling: Coupling, chosen: tuple[str, ...], seed: int) -> Masks:
    """For each site some units that stay, at least one; equal numbers in each block where there are blocks."""
    draw = np.random.default_rng(seed)
    masks = {}
    for name in chosen:
        site = coupling.sites[name]
        blocks = np.zeros(site.n, dtype=int) if site.blocks is None else site.blocks
        count = int(draw.integers(1, max(2, np.bincount(blocks).min())))
        masks[name] = np.zeros(site.n, dtype=bool)
        for block in range(blocks.max() + 1):
            masks[name][draw.choice(np.flatnonzero(blocks == block), count, replace=False)] = True
    return masks


def mask(model: nn.Module, coupling: Coupling, masks: Masks) -> None:
    """Zero what the consumers read of removed units: written here without the library's own masking."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, stays in masks.items():
            for consumer, units in coupling.sites[name].consumers.items():
                weight = modules[consumer].weight
                assert isinstance(weight, Tensor)
                for index, unit in enumerate(units):
                    if unit >= 0 and not stays[unit]:
                        by_inputs = (
                            weight if type(modules[consumer]).__name__ == "Conv1D" else weight.transpose(0, 1)
                        )
                        by_inputs[index].zero_()


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * (1 + float(expected.abs().max()))


# --------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("which", ["default", "all", "query heads"])
@pytest.mark.parametrize("name", names())
def test_shrunk_is_masked(name: str, which: str) -> None:
    entry = ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build()
    dense = forward(model, entry.batch(7))
    coupling = trace_coupling(model, entry.batch(), query_heads=which == "query heads")
    chosen = tuple(coupling.sites) if which == "all" else coupling.default_sites()
    masks = random_masks(coupling, chosen, seed=len(name))
    mask(model, coupling, masks)
    masked = forward(model, entry.batch(7))
    before = parameter_count(model)
    done = shrink(model, coupling, masks)
    assert_close(forward(model, entry.batch(7)), masked)
    assert (done.before, done.after) == (before, parameter_count(model))
    if chosen:
        assert done.after < before
        assert float((masked - dense).abs().max()) > 1e-3, "the masks changed nothing: the test shows nothing"


COUNTS: dict[str, Callable[[int, int], int]] = {
    # (neurons, heads removed in each of two blocks) -> parameters removed; hidden width 48
    "llama": lambda neurons, heads: 2 * (neurons * 3 * 48 + heads * 10 * 48 * (2 + 1 + 1 + 2)),
    "llama_biases": lambda neurons, heads: 2 * (neurons * (3 * 48 + 2) + heads * 8 * (48 * 6 + 2 + 1 + 1)),
    "gpt2": lambda neurons, heads: 2 * (neurons * (2 * 48 + 1) + heads * 12 * (4 * 48 + 3)),
    "bert": lambda neurons, heads: 2 * (neurons * (2 * 48 + 1) + heads * 12 * (4 * 48 + 3)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_as_computed_by_hand(name: str) -> None:
    entry = ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build()
    coupling = trace_coupling(model, entry.batch())
    gone = {"neurons": 23, "heads": 1}
    masks = {}
    for site in coupling.default_sites():
        masks[site] = np.ones(coupling.sites[site].n, dtype=bool)
        masks[site][: gone[coupling.sites[site].kind]] = False
    done = shrink(model, coupling, masks)
    assert done.before - done.after == COUNTS[name](gone["neurons"], gone["heads"])


def test_modules_tell_their_new_sizes() -> None:
    entry = ZOO["llama"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model: Any = entry.build()
    coupling = trace_coupling(model, entry.batch())
    heads, neurons = "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"
    shrink(model, coupling, {heads: [True, False, True], neurons: np.arange(70) < 31})
    block = model.model.layers[0]
    assert (block.mlp.up_proj.in_features, block.mlp.up_proj.out_features) == (48, 31)
    assert (block.self_attn.o_proj.in_features, block.self_attn.k_proj.out_features) == (40, 20)
    assert block.mlp.intermediate_size == 31
    assert block.self_attn.num_key_value_groups == 2
    assert model.model.layers[1].mlp.intermediate_size == 70


# ---------------------------------------------------------------------------------------------- networks at random


class Drawn(nn.Module):
    """A convolutional network made of whatever a list of numbers says: sums, gates, concatenations, depthwise, ..."""

    def __init__(self, codes: list[int]) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []
        self.parts = nn.ModuleList()
        widths = [3]
        for code in codes:
            self._add(code % 10, code // 10, widths)
        self.out = nn.Linear(widths[-1] * (4 if codes[0] % 2 else 1), 3)
        self.flat = bool(codes[0] % 2)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean)
                    nn.init.uniform_(module.running_var, 0.5, 1.5)

    def _add(self, operation: int, choice: int, widths: list[int]) -> None:
        source = choice % len(widths)
        width = widths[source]
        partners = [i for i, w in enumerate(widths) if w == width]
        other = partners[choice // 7 % len(partners)]
        made: nn.Module = nn.Identity()
        step: tuple[Any, ...] = ("part", source, len(self.parts))
        if operation <= 2:
            made = nn.Conv2d(
                width, 4 + choice % 5, 1 + 2 * (choice % 2), padding=choice % 2, bias=choice % 3 > 0
            )
            width = made.out_channels
        elif operation == 3:
            made = nn.Conv2d(width, width, 3, padding=1, groups=width)
        elif operation == 4:
            made = nn.BatchNorm2d(width)
        elif operation == 5:
            step = ("add", source, other)
        elif operation == 6:
            step = ("gate", source, other)
        elif operation == 7:
            step, width = (
                ("cat", source, choice // 5 % len(widths)),
                width + widths[choice // 5 % len(widths)],
            )
        elif operation == 8:
            step = ("squeeze", source, len(self.parts))
            made = nn.Conv2d(width, width, 1)
        else:
            step = ("relu", source, 0)
        if step[0] in ("part", "squeeze"):
            self.parts.append(made)
        self.steps.append(step)
        widths.append(width)

    def forward(self, x: Tensor) -> Tensor:
        known = [x]
        for operation, one, two in self.steps:
            a = known[one]
            known.append(
                {
                    "part": lambda a=a, two=two: self.parts[two](a),
                    "add": lambda a=a, two=two: a + known[two],
                    "gate": lambda a=a, two=two: a * torch.sigmoid(known[two]),
                    "cat": lambda a=a, two=two: torch.cat([a, known[two]], dim=1),
                    "squeeze": lambda a=a, two=two: (
                        a * torch.sigmoid(self.parts[two](a.mean((2, 3), keepdim=True)))
                    ),
                    "relu": lambda a=a: torch.relu(a),
                }[operation]()
            )
        last = known[-1]
        pooled = nn.functional.adaptive_avg_pool2d(last, 2).flatten(1) if self.flat else last.mean((2, 3))
        return self.out(pooled)


@settings(max_examples=150)
@given(codes=st.lists(st.integers(0, 99_999), min_size=2, max_size=14), seed=st.integers(0, 99))
def test_shrunk_is_masked_on_networks_drawn_at_random(codes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Drawn(codes).eval()
    batch = torch.randn(2, 3, 6, 6)
    coupling = trace_coupling(model, batch)
    masks = random_masks(coupling, tuple(coupling.sites), seed)
    mask(model, coupling, masks)
    with torch.no_grad():
        masked = model(batch)
        done = shrink(model, coupling, masks)
        assert_close(model(batch), masked)
        if all(stays.all() for stays in masks.values()):
            assert done.after == done.before
        done.undo()
        assert torch.equal(model(batch), masked)


# ------------------------------------------------------------------------------------------------------ undo, errors


def small() -> tuple[nn.Sequential, Coupling]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    return model, trace_coupling(model, torch.randn(1, 2, 5, 5))


def test_undo_restores_the_very_same_parameters() -> None:
    model, coupling = small()
    before = list(model.parameters())
    numbers = [dict(vars(module)) for module in model]
    done = shrink(model, coupling, {"3": np.arange(6) < 2})
    assert (model[0].out_channels, model[1].num_features, model[3].in_channels) == (2, 2, 2)
    done.undo()
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    for module, numbers_before in zip(model, numbers, strict=True):
        assert {k: v for k, v in vars(module).items() if isinstance(v, int)} == {
            k: v for k, v in numbers_before.items() if isinstance(v, int)
        }


def test_requires_grad_and_device_stay() -> None:
    model, coupling = small()
    model[0].weight.requires_grad_(False)
    shrink(model, coupling, {"3": np.arange(6) < 2})
    assert not model[0].weight.requires_grad
    assert model[0].bias is not None
    assert model[0].bias.requires_grad
    model(torch.randn(1, 2, 5, 5)).sum().backward()
    assert model[3].weight.grad is not None


def test_a_depthwise_convolution_loses_groups() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 5, 1)).eval()
    batch = torch.randn(1, 2, 5, 5)
    coupling = trace_coupling(model, batch)
    assert coupling.sites["2"].n == 6, "both outputs of a channel are one with it"
    masks = {"2": np.array([True, False, False, True, True, False])}
    mask(model, coupling, masks)
    with torch.no_grad():
        masked = model(batch)
        shrink(model, coupling, masks)
        assert (model[1].groups, model[1].in_channels, model[1].out_channels) == (3, 3, 6)
        assert_close(model(batch), masked)


def test_wrong_supports_change_nothing() -> None:
    model, coupling = small()
    before = parameter_count(model)
    with pytest.raises(InputError, match=r"support of 3 has shape \(5,\), but the site has 6 units"):
        shrink(model, coupling, {"3": np.ones(5, dtype=bool)})
    with pytest.raises(LayerError, match="nothing of 3 would stay: keep at least one of its 6 units"):
        shrink(model, coupling, {"3": np.zeros(6, dtype=bool)})
    with pytest.raises(LayerError, match="no site of the Sequential fits '7'"):
        shrink(model, coupling, {"7": np.ones(6, dtype=bool)})
    assert parameter_count(model) == before


def test_a_coupling_that_is_out_of_date_is_refused() -> None:
    model, coupling = small()
    shrink(model, coupling, {"3": np.arange(6) < 4})
    with pytest.raises(LayerError, match="traced before the model changed, so trace it again"):
        shrink(model, coupling, {"3": np.arange(6) < 4})


def test_unequal_numbers_of_query_heads_are_refused() -> None:
    entry = ZOO["llama"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build()
    coupling = trace_coupling(model, entry.batch(), query_heads=True)
    with pytest.raises(InputError, match="equal numbers of heads in each of its groups"):
        shrink(model, coupling, {"model.layers.0.self_attn.o_proj": [True, True, True, False, True, False]})


def test_a_pattern_stands_for_all_sites_it_fits() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    coupling = trace_coupling(model, torch.randn(1, 5))
    shrink(model, coupling, {"[24]": np.arange(6) < 4})
    assert [module.weight.shape for module in model if isinstance(module, nn.Linear)] == [
        (4, 5),
        (4, 4),
        (3, 4),
    ]
