"""The small models that other tests run on: each builds, runs, is always the same, and hides nothing behind a zero."""

from __future__ import annotations

import pytest
import torch
from models_zoo import ZOO, Entry, forward
from torch import nn


@pytest.fixture(params=ZOO)
def entry(request: pytest.FixtureRequest) -> Entry:
    found = ZOO[request.param]
    if not found.available:
        pytest.skip("needs transformers")
    return found


def test_it_runs_and_is_always_the_same(entry: Entry) -> None:
    model, again = entry.build(), entry.build()
    assert not any(module.training for module in model.modules())
    outputs = forward(model, entry.batch())
    assert torch.isfinite(outputs).all()
    assert outputs.std() > 0.05
    assert torch.equal(outputs, forward(again, entry.batch()))
    assert not torch.equal(outputs, forward(model, entry.batch(seed=1)))


def test_no_parameter_is_trivial(entry: Entry) -> None:
    model = entry.build()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.dim() == 1 and len(value) > 1 and value.is_floating_point() and "inv_freq" not in name:
            assert value.std() > 1e-2, name
            assert value.abs().min() > 0, name


def test_the_sites_it_names_are_layers_of_that_width(entry: Entry) -> None:
    """Of heads: the inputs are a multiple of the units; so are those of a Linear behind a flatten."""
    model = entry.build()
    for name, (kind, units) in entry.sites.items():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            assert layer.in_channels == units
            continue
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[0]
        assert width % units == 0
        assert kind == "heads" or width == units or kind == "channels"
    if entry.layers is not None:
        assert len(model.get_submodule(entry.layers)) == 2


def test_every_parameter_matters(entry: Entry) -> None:
    """The outputs' gradient reaches each parameter, so that one sliced wrongly is seen in the outputs."""
    model = entry.build()
    batch = entry.batch()
    outputs = model(**batch) if isinstance(batch, dict) else model(batch)
    parts = (
        [outputs]
        if isinstance(outputs, torch.Tensor)
        else [v for v in outputs.values() if torch.is_tensor(v)]
    )
    weights = torch.Generator().manual_seed(5)
    sum((part * torch.randn(part.shape, generator=weights)).sum() for part in parts).backward()
    for name, value in model.named_parameters():
        if "position" in name or "embed_positions" in name or name.endswith("wpe.weight"):
            continue
        assert value.grad is not None, name
        # Keys' biases shift all scores of a query alike, which the softmax does not see.
        if not name.endswith(("k_proj.bias", "key.bias")):
            assert value.grad.abs().max() > 1e-6, name
