"""Chains of blocks: found by watching the model, run block by block, given up where they see more."""

from __future__ import annotations

from typing import Any

import models_zoo
import pytest
import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch.chain import find_chains
from osscar_opt.torch.recording import Chain, record

FAMILIES = [name for name in models_zoo.names() if models_zoo.ZOO[name].sites]


def call_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(batch)) if isinstance(batch, dict) else ((batch,), {})


def output_of(model: torch.nn.Module, name: str, batch: Any) -> torch.Tensor:
    """What the named module returns in the model's own pass."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.append(
            (
                output if isinstance(output, torch.Tensor) else output[0]
            ).clone()  # an in-place ReLU may come next
        )
    )
    args, kwargs = call_of(batch)
    with torch.no_grad():
        model(*args, **kwargs)
    handle.remove()
    return found[0]


def advance(model: torch.nn.Module, chain: Chain, batches: list[Any]) -> list[torch.Tensor]:
    recording, hidden = record(model, chain, [call_of(batch) for batch in batches])
    for index in range(len(chain.blocks)):
        hidden = [recording.run(index, batch, state) for batch, state in enumerate(hidden)]
    return hidden


def hooks_of(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__)
        for module in model.modules()
    )


class Residual(torch.nn.Module):
    """A block x + down(relu(up(x)))."""

    def __init__(self, width: int = 5, hidden: int = 7) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Stack(torch.nn.Module):
    """A list of blocks; `between` says how a model goes from one block to the next."""

    def __init__(self, blocks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x
        for layer in self.layers:
            x = self.step(layer, x, first)
        return x

    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x)


WANTED = [["layers.0.down"], ["layers.1.down"], ["layers.2.down"]]


def stack(kind: type[Stack] = Stack, block: type[torch.nn.Module] = Residual) -> Stack:
    torch.manual_seed(0)
    return kind([block() for _ in range(3)]).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_run_one_by_one_as_the_model_runs_them(name: str) -> None:
    entry = models_zoo.ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build().eval()
    args, kwargs = call_of(entry.batch(0))
    chains = find_chains(model, args, kwargs, [[site] for site in entry.sites or {}])
    assert hooks_of(model) == 0
    if entry.layers is not None:
        assert chains, "its blocks were not found"
        assert all(
            chains[0].index_of([site]) is not None for site in entry.sites or {} if entry.layers in site
        )
    for chain in chains:
        batches = [entry.batch(1), entry.batch(2)]  # not those that it was probed with
        for batch, hidden in zip(batches, advance(model, chain, batches), strict=True):
            torch.testing.assert_close(
                hidden, output_of(model, chain.blocks[-1], batch), rtol=1e-5, atol=1e-5
            )
    assert hooks_of(model) == 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_padding_masks_are_those_of_each_batch(name: str) -> None:
    entry = models_zoo.ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build().eval()
    batches = [models_zoo.padded_tokens(1), models_zoo.padded_tokens(2, rows=2)]
    chain = find_chains(model, (), dict(batches[0]), [[site] for site in entry.sites or {}])[0]
    for batch, hidden in zip(batches, advance(model, chain, batches), strict=True):
        rows = batch["attention_mask"].bool()
        expected = output_of(model, chain.blocks[-1], batch)
        torch.testing.assert_close(hidden[rows], expected[rows], rtol=1e-5, atol=1e-5)


def test_pruned_blocks_are_seen_by_the_blocks_after_them() -> None:
    model, x = stack(), torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, WANTED)[0]
    recording, hidden = record(model, chain, [((x,), {})])
    with torch.no_grad():
        model.layers[0].down.weight[:, 2] = 0.0
    state = hidden[0]
    for index in range(3):
        state = recording.run(index, 0, state)
    torch.testing.assert_close(state, model(x))


def test_the_chain_of_most_sites_and_smallest_blocks_is_taken() -> None:
    model = torch.nn.Sequential(torch.nn.Sequential(Residual(), Residual()), torch.nn.Sequential(Residual()))
    chains = find_chains(model, (torch.ones(4, 5),), {}, [["0.0.down"], ["0.1.down"], ["1.0.down"]])
    assert [chain.blocks for chain in chains] == [("0.0", "0.1", "1.0")]


def test_a_site_of_two_layers_needs_a_block_that_holds_both() -> None:
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 5)), Residual())
    together = find_chains(model, (torch.ones(4, 5),), {}, [["0.0", "0.1"], ["1.down"]])
    apart = find_chains(model, (torch.ones(4, 5),), {}, [["0.0"], ["0.1"], ["1.down"]])
    assert [chain.blocks for chain in together] == [("0", "1")]
    assert [chain.blocks for chain in apart] == [("0.0", "0.1", "1")]


def test_blocks_after_the_last_site_are_left_out() -> None:
    model = stack()
    assert find_chains(model, (torch.ones(4, 5),), {}, WANTED[:2])[0].blocks == ("layers.0", "layers.1")


class Cloned(Stack):
    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x.clone())


class Viewed(Stack):
    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x.view(x.shape))


class WrittenInto(Stack):
    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x).add_(1.0)


@pytest.mark.parametrize("kind", [Cloned, Viewed, WrittenInto])
def test_something_between_the_blocks_makes_no_chain(kind: type[Stack]) -> None:
    chains = find_chains(stack(kind), (torch.ones(4, 5),), {}, WANTED)
    assert all(len(chain.blocks) == 1 for chain in chains)


class Skipping(torch.nn.Module):
    """A block that is also told something about an earlier tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()
        self.down = self.inner.down

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner(x) + (0.0 if other is None else other)


class SkipsBack(Stack):
    """The third block sees what the first returned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        after = self.layers[0](x)
        x = self.layers[1](after)
        return self.layers[2](x, after)


class SeesMean(Stack):
    """Every block sees a number that depends on what the block before it returned."""

    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x, x.mean(dim=0))


@pytest.mark.parametrize("kind", [SkipsBack, SeesMean])
def test_blocks_that_see_more_than_the_block_before_make_no_chain(kind: type[Stack]) -> None:
    model = stack(kind, Skipping)
    chains = find_chains(model, (torch.randn(4, 5),), {}, WANTED)
    assert not any(len(chain.blocks) == 3 for chain in chains)
    assert hooks_of(model) == 0


class Twofold(Stack):
    """The hidden tensor is passed twice."""

    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x, other=x)


class FromTheStart(Stack):
    """Every block sees the model's input, which no block changes."""

    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return layer(x, other=2.0 * first)


@pytest.mark.parametrize("kind", [Twofold, FromTheStart])
def test_blocks_may_see_the_hidden_tensor_again_and_what_no_block_changes(kind: type[Stack]) -> None:
    model, x = stack(kind, Skipping), torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, WANTED)[0]
    assert len(chain.blocks) == 3
    other = torch.randn(6, 5)
    torch.testing.assert_close(advance(model, chain, [other])[0], model(other))


class Tupled(Residual):
    extra: Any = None

    def forward(self, x: torch.Tensor) -> Any:
        return (super().forward(x), self.extra)


class TakesFirst(Stack):
    def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        hidden, _ = layer(x)
        return hidden


def test_blocks_that_return_tuples() -> None:
    model, x = stack(TakesFirst, Tupled), torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, WANTED)[0]
    assert chain.forms == (2, 2, 2)
    torch.testing.assert_close(advance(model, chain, [x])[0], model(x))


def test_blocks_that_return_more_than_the_hidden_tensor_make_no_chain() -> None:
    model = stack(TakesFirst, Tupled)
    for layer in model.layers:
        layer.extra = torch.ones(1)  # nobody knows what a model does with it
    assert not any(len(chain.blocks) > 1 for chain in find_chains(model, (torch.randn(4, 5),), {}, WANTED))


class Remembering(Residual):
    def forward(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
        cache.append(x)
        return super().forward(x)


class WithCache(Stack):
    def forward(self, x: torch.Tensor, use_cache: bool = True) -> torch.Tensor:
        class Cache(list):  # type: ignore[type-arg]
            pass

        cache = object() if not use_cache else Cache()
        for layer in self.layers:
            x = layer(x, cache=cache) if use_cache else layer.down(layer.up(x).relu()) + x
        return x


class HoldsState(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        class Cache:
            def append(self, value: torch.Tensor) -> None: ...

        cache = Cache()
        for layer in self.layers:
            x = layer(x, cache=cache)
        return x


def test_blocks_that_are_called_with_an_object_that_may_keep_a_state_make_no_chain() -> None:
    assert find_chains(stack(HoldsState, Remembering), (torch.randn(4, 5),), {}, WANTED) == []


def test_caches_are_switched_off_where_the_model_can() -> None:
    model = stack(WithCache, Remembering)
    find_chains(model, (torch.randn(4, 5),), {}, WANTED)  # blocks called with the object() would fail


def test_a_block_that_overwrites_its_input_leaves_the_stored_one_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(inplace=True), torch.nn.Linear(7, 3))
    x = torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, [["2"]])[0]
    assert chain.blocks == ("0", "1", "2")
    assert chain.overwrites == (False, True, False)
    recording, hidden = record(model, chain, [((x,), {})])
    before = recording.run(0, 0, hidden[0])
    kept = before.clone()
    recording.run(1, 0, before)
    torch.testing.assert_close(before, kept, rtol=0, atol=0)
    torch.testing.assert_close(advance(model, chain, [x])[0], model(x))


def test_a_module_called_twice_is_not_a_block() -> None:
    shared = Residual()
    model = Stack([Residual(), shared, shared]).eval()
    chains = find_chains(model, (torch.randn(4, 5),), {}, WANTED[:2])
    assert [chain.blocks for chain in chains] == [("layers.0",)]


def test_equal_tensors_of_all_batches_are_stored_once() -> None:
    model = stack(FromTheStart, Skipping)
    x = torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, WANTED)[0]
    recording, _ = record(model, chain, [((x.clone(),), {}) for _ in range(5)])
    stored = {id(call.kwargs["other"]) for calls in recording._calls for call in calls}
    assert len(stored) == 1


def test_a_failing_pass_leaves_no_trace() -> None:
    class Failing(Stack):
        broken = False

        def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            if self.broken and layer is self.layers[1]:
                raise RuntimeError("between two blocks")
            return layer(x)

    model, x = stack(Failing), torch.randn(4, 5)
    chain = find_chains(model, (x,), {}, WANTED)[0]
    own = model.layers[0].forward = model.layers[0].forward  # as a library that wraps forwards leaves it
    model.broken = True
    with pytest.raises(RuntimeError, match="between two blocks"):
        record(model, chain, [((x,), {})])
    with pytest.raises(RuntimeError, match="between two blocks"):
        find_chains(model, (x,), {}, WANTED)
    assert model.layers[0].__dict__["forward"] == own
    del model.layers[0].forward
    assert hooks_of(model) == 0


def test_a_batch_that_takes_another_way_is_refused() -> None:
    class Choosing(Stack):
        def step(self, layer: torch.nn.Module, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            return x if len(x) > 5 and layer is self.layers[1] else layer(x)

    model = stack(Choosing)
    chain = find_chains(model, (torch.randn(4, 5),), {}, WANTED)[0]
    with pytest.raises(LayerError, match="same way through the model"):
        record(model, chain, [((torch.randn(4, 5),), {}), ((torch.randn(6, 5),), {})])
    assert hooks_of(model) == 0
