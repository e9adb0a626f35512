"""Running batches up to a layer: what reaches it, and that the model is left as it was found."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode
from torch.utils.data import DataLoader, TensorDataset

from osscar_opt.errors import LayerError
from osscar_opt.torch import problem_from_layer
from osscar_opt.torch.collect import visit_layer_inputs
from osscar_opt.torch.watch import LayerCall


class Net(torch.nn.Module):
    """Embeds tokens and runs two layers on every position, the second on what the caller says how often."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, 5)
        self.first = torch.nn.Linear(5, 8)
        self.drop = torch.nn.Dropout(0.5)
        self.second = torch.nn.Linear(8, 3)
        self.unused = torch.nn.Linear(8, 3)
        self.pooled = torch.nn.Linear(8, 2)
        self.calls = calls
        self.finished = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.drop(torch.relu(self.first(self.embed(input_ids))))
        for _ in range(self.calls):
            out = self.second(hidden)
        self.pooled(hidden[:, 0])
        self.finished += 1
        return out


def _tokens(rows: int = 6, length: int = 4) -> torch.Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(2))


def _reached(net: Net, batches: Any, layer: str = "second") -> torch.Tensor:
    rows = []

    def consume(call: LayerCall, mask: torch.Tensor | None) -> None:
        flat = call.inputs.reshape(-1, call.inputs.shape[-1])
        rows.append(flat if mask is None else flat[mask.reshape(-1) != 0])

    visit_layer_inputs(net, net.get_submodule(layer), layer, batches, consume)
    return torch.cat(rows)


def _hidden(net: Net, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.relu(net.first(net.embed(tokens)))


def _forms(tokens: torch.Tensor) -> dict[str, Any]:
    ones = torch.ones_like(tokens)
    return {
        "one tensor": tokens,
        "list of tensors": list(tokens.split(4)),
        "generator": (part for part in tokens.split(1)),
        "tuples": [(part, torch.ones_like(part)) for part in tokens.split(2)],
        "one dict": {"input_ids": tokens, "attention_mask": ones},
        "user dicts": [UserDict({"input_ids": part}) for part in tokens.split(3)],
        "data loader": DataLoader(TensorDataset(tokens), batch_size=4),
        "data loader of dicts": DataLoader([{"input_ids": row} for row in tokens], batch_size=5),
        "too many positional": [(tokens, ones, torch.zeros(6))],
    }


@pytest.mark.parametrize("form", _forms(_tokens()))
def test_every_form_of_batches_reaches_the_layer(form: str) -> None:
    net, tokens = Net(), _tokens()
    expected = _hidden(net, tokens).reshape(-1, 8)
    torch.testing.assert_close(_reached(net, _forms(tokens)[form]), expected)


def test_padding_is_dropped_positional_or_by_name() -> None:
    net, tokens = Net(), _tokens()
    mask = torch.ones_like(tokens)
    mask[1, 2:] = 0
    expected = _hidden(net, tokens)[mask.bool()]
    torch.testing.assert_close(_reached(net, {"input_ids": tokens, "attention_mask": mask}), expected)
    torch.testing.assert_close(_reached(net, [(tokens, mask)]), expected)


def test_a_layer_that_sees_one_row_a_sequence_ignores_the_mask() -> None:
    tokens = _tokens(rows=9)
    mask = torch.ones_like(tokens)
    mask[:, 3] = 0
    problem = problem_from_layer(Net(), "pooled", {"input_ids": tokens, "attention_mask": mask})
    assert problem.provenance["calibration_rows"] == 9


def test_masks_that_cannot_be_matched_are_refused() -> None:
    net, tokens = Net(), _tokens()
    with pytest.raises(LayerError, match=r"shape \(batch, length\)"):
        _reached(net, {"input_ids": tokens, "attention_mask": torch.ones(6, 1, 4, 4)})
    with pytest.raises(LayerError, match=r"second has rows of shape \(6, 4\).*does not cover"):
        problem_from_layer(net, "second", {"input_ids": tokens, "attention_mask": torch.ones(6, 9)})


def test_passes_after_the_first_stop_at_the_layer() -> None:
    net = Net()
    _reached(net, list(_tokens().split(1)))
    assert net.finished == 1


def test_a_layer_called_twice_is_seen_twice() -> None:
    net = Net(calls=2)
    assert _reached(net, list(_tokens().split(2))).shape == (2 * 6 * 4, 8)
    assert net.finished == 3


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(fails: bool) -> None:
    net = Net()
    net.train()
    net.first.eval()
    net.second.weight.requires_grad_(False)
    net.first.bias.grad = torch.ones(8)
    modes = {name: module.training for name, module in net.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    seen = []

    def consume(call: LayerCall, mask: torch.Tensor | None) -> None:
        assert not net.drop.training
        assert not torch.is_grad_enabled()
        seen.append(call)
        if fails and len(seen) == 2:
            raise RuntimeError("planted")

    batches = list(_tokens().split(2))
    if fails:
        with pytest.raises(RuntimeError, match="planted"):
            visit_layer_inputs(net, net.second, "second", batches, consume)
    else:
        visit_layer_inputs(net, net.second, "second", batches, consume)
    assert _get_current_function_mode() is None
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == grads
    assert torch.is_grad_enabled()
    assert torch.equal(net.first.bias.grad, torch.ones(8))
    count = len(seen)
    net(_tokens())
    assert len(seen) == count


def test_nothing_watches_any_more_when_the_model_itself_fails() -> None:
    net = Net()
    with pytest.raises(IndexError):
        _reached(net, torch.full((2, 3), 99))
    assert _get_current_function_mode() is None


def test_a_models_own_error_handling_does_not_swallow_the_stop() -> None:
    class Guarded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            try:
                return self.net(input_ids)
            except Exception:
                return torch.zeros(1)

    guarded = Guarded()
    rows = []
    visit_layer_inputs(
        guarded, guarded.net.second, "s", list(_tokens().split(2)), lambda call, mask: rows.append(call)
    )
    assert len(rows) == 3


def test_a_compiled_model_is_run_as_it_was_written() -> None:
    net, tokens = Net(), _tokens()
    compiled = torch.compile(net, backend="eager")
    compiled(tokens)
    rows: list[torch.Tensor] = []
    visit_layer_inputs(
        compiled, net.second, "second", tokens, lambda call, mask: rows.append(call.inputs.reshape(-1, 8))
    )
    torch.testing.assert_close(torch.cat(rows), _hidden(net, tokens).reshape(-1, 8))


def test_batch_encodings() -> None:
    transformers = pytest.importorskip("transformers")
    net, tokens = Net(), _tokens()
    mask = torch.ones_like(tokens)
    mask[0, 1:] = 0
    encoding = transformers.BatchEncoding({"input_ids": tokens, "attention_mask": mask})
    assert _reached(net, [encoding, encoding]).shape == (2 * (6 * 4 - 3), 8)


def test_sentences() -> None:
    net = Net()
    with pytest.raises(LayerError, match="unused was never called in 3 batches"):
        _reached(net, list(_tokens().split(2)), "unused")
    with pytest.raises(LayerError, match="no batches"):
        _reached(net, [])
    with pytest.raises(LayerError, match="not int"):
        _reached(net, 3)
    with pytest.raises(LayerError, match="a batch must be"):
        _reached(net, ["text"])
