"""How the blocks of a model run one after another, so that a calibration can advance block by block.

A chain is found by watching the model run once on a small batch, not by knowing its family: blocks are children of
``ModuleList`` and ``Sequential`` containers that are called once, and follow each other when one is called with the
very tensor that the other returned.  Whatever else they are called with (attention masks, rotary embeddings, one mask
for each kind of layer) is recorded by a pass in which no block computes anything: each hands its input on as its
output.  That this is all they depend on is not assumed but tried: the recorded calls must give the last block's output
again, or the model has no such chain and is run as a whole.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from osscar_opt.torch.recording import (
    Chain,
    Recording,
    Stop,
    first_place,
    hidden_at,
    hidden_of,
    holds,
    without_cache,
)

__all__ = ["find_chains"]

_ROUNDING = 256  # times the dtype's epsilon: what two ways to run the same blocks may differ by


# ------------------------------------------------------------------------------------------------- finding


@dataclass
class _Seen:
    """What was seen of the one call of a module; a tensor is known by its identity and its version."""

    name: str
    came: tuple[int, int]
    began: int
    overwrites: bool = False
    ended: int = -1
    left: tuple[int, int] | None = None  # None: returned something that cannot be handed on
    form: int | None = None
    calls: int = 1
    held: list[torch.Tensor] = field(default_factory=list)  # an id is only unique while its tensor lives


def find_chains(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: Sequence[Sequence[str]]
) -> list[Chain]:
    """Find the chains of blocks that hold what is wanted, the one that holds most of it first.

    Among chains that hold equally much, the one of the most, and thus the smallest, blocks is taken.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is run a few times, without gradients.
    args, kwargs
        Of its forward pass: a small batch.
    wanted : sequence of sequences of str
        Dotted names of modules; those of one inner sequence must lie in the same block.

    Returns
    -------
    list of Chain
        They have no module in common.  What is in none of them must be reached by running the whole model.

    Examples
    --------
    >>> class Twice(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
    ...     def forward(self, x):
    ...         return x + self.b(self.a(x).relu())
    >>> model = torch.nn.Sequential(Twice(), Twice(), torch.nn.Linear(5, 2))
    >>> find_chains(model, (torch.ones(4, 5),), {}, [["0.b"], ["1.b"]])[0].blocks
    ('0', '1')
    """
    kwargs = without_cache(model, kwargs)
    seen = _watch(model, args, kwargs)
    left = [tuple(names) for names in wanted]
    chains: list[Chain] = []
    while left:
        path = _best_path(seen, left)
        if not path:
            return chains
        chain = Chain(
            tuple(node.name for node in path),
            tuple(node.form for node in path),
            tuple(node.overwrites for node in path),
        )
        if _reproduces(model, chain, args, kwargs):
            chains.append(chain)
            left = [names for names in left if chain.index_of(names) is None]
        taken = set(chain.blocks)  # also of a chain that does not reproduce: another may
        seen = [node for node in seen if not any(_overlap(node.name, name) for name in taken)]
    return chains


def _overlap(a: str, b: str) -> bool:
    return holds(a, b) or holds(b, a)


def _watch(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[_Seen]:
    """Run the model once; what was seen of every child of a container that was called once, in order."""
    seen: dict[str, _Seen] = {}
    clock = itertools.count()

    def before(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            place = first_place(args, kwargs)
            hidden = None if place is None else hidden_at(place, args, kwargs)
            if name in seen or hidden is None or not _plain((args, kwargs)):
                seen.setdefault(name, _Seen(name, (0, 0), -1)).calls += 1  # one too many: it is left out
            else:
                seen[name] = _Seen(name, _key(hidden), next(clock), held=[hidden])

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            node = seen[name]
            if node.calls > 1:
                return
            node.ended = next(clock)
            node.overwrites = _key(node.held[0]) != node.came
            hidden, node.form = hidden_of(output)
            if hidden is not None:
                node.left = _key(hidden)
                node.held.append(hidden)

        return hook

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, child in _candidates(model):
            hooks.callback(child.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            hooks.callback(child.register_forward_hook(after(name)).remove)
        model(*args, **kwargs)
    return sorted((node for node in seen.values() if node.calls == 1), key=lambda node: node.began)


def _candidates(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        if isinstance(parent, containers):
            yield name, module


def _key(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _plain(value: Any) -> bool:
    """Whether a block can be called twice with the same: nothing that keeps a state, as a cache of keys does."""
    if isinstance(value, (tuple, list)):
        return all(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(_plain(item) for item in value.values())
    simple = (torch.Tensor, bool, int, float, str, torch.dtype, torch.device, torch.Size)
    return value is None or isinstance(value, simple)


def _best_path(seen: Sequence[_Seen], wanted: Sequence[Sequence[str]]) -> list[_Seen]:
    """Of nodes linked by their tensors, the sequence that holds most; then of most nodes; then the innermost."""
    best: dict[str, tuple[tuple[int, int, int], list[_Seen]]] = {}
    by_output: dict[tuple[int, int], list[_Seen]] = {}
    for node in seen:
        if node.left is not None:
            by_output.setdefault(node.left, []).append(node)
    for node in seen:  # by the time they began, and a link goes from one that has ended: a longest path
        own = sum(all(holds(node.name, name) for name in names) for names in wanted)
        before = [b for b in by_output.get(node.came, []) if 0 <= b.ended < node.began]
        score, path = max((best[b.name] for b in before), key=lambda entry: entry[0], default=((0, 0, 0), []))
        depth = score[2] + node.name.count(".")
        best[node.name] = (score[0] + own, score[1] + 1, depth), [*path, node]
    (held, *_), path = max(best.values(), key=lambda entry: entry[0], default=((0, 0, 0), []))
    if held == 0:
        return []
    while not any(all(holds(path[-1].name, name) for name in names) for names in wanted):
        path.pop()  # what comes after the last site is never run
    return path


def _reproduces(
    model: torch.nn.Module, chain: Chain, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the recorded calls, run one after another, return what the model's own pass does."""
    last: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden, _ = hidden_of(output)
        if hidden is not None:
            last.append(hidden.clone())
        raise Stop

    handle = model.get_submodule(chain.blocks[-1]).register_forward_hook(hook)
    try:
        with torch.no_grad(), contextlib.suppress(Stop):
            model(*args, **kwargs)
    finally:
        handle.remove()
    try:
        recording = Recording(model, chain)
        hidden = recording.add(args, kwargs)
        for index in range(len(chain.blocks)):
            with torch.no_grad():
                hidden = recording.run(index, 0, hidden)
    except Exception:  # whatever a model objects to when its blocks do nothing: then it has no such chain
        return False
    return len(last) == 1 and _same(last[0], hidden)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b.to(a.device))
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b.to(a.device))):
        return False
    if not bool(finite.any()):
        return True
    slack = _ROUNDING * torch.finfo(a.dtype).eps
    a, b = a[finite].double(), b.to(a.device)[finite].double()
    return float((a - b).abs().max()) <= slack * float(a.abs().max())
