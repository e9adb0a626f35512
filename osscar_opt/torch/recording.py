"""What the blocks of a chain are called with, and how to run one of them alone.

One pass for each batch records it, in which no block computes anything: each hands its input on as its output, in the
form in which the real block returns it.  What comes before the first block (embeddings, masks, rotary angles) runs as
always, what comes after the last does not run.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from osscar_opt.errors import LayerError

__all__ = [
    "Call",
    "Chain",
    "Recording",
    "Stop",
    "first_place",
    "hidden_at",
    "hidden_of",
    "holds",
    "home_of",
    "record",
    "without_cache",
]

_ALIKE = 4  # most recent tensors of a shape that a new one is compared with, to store equal ones once


class Stop(BaseException):
    """Ends a forward pass; not an Exception, so that a model's own error handling lets it through.

    Examples
    --------
    >>> issubclass(Stop, Exception)
    False
    """


@dataclass(frozen=True)
class Chain:
    """Modules of a model that run one after another, each on the tensor that the one before it returned.

    Attributes
    ----------
    blocks : tuple of str
        Dotted names, in the order in which they run.
    forms : tuple of (int or None)
        What each block returns: None for the tensor itself, otherwise the length of a tuple that begins with it.
    overwrites : tuple of bool
        Whether a block writes into the tensor it is given, as an in-place ReLU does.

    Examples
    --------
    >>> from osscar_opt.torch.chain import find_chains
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> find_chains(model, (torch.ones(4, 5),), {}, [["2"]])[0].blocks
    ('0', '1', '2')
    """

    blocks: tuple[str, ...]
    forms: tuple[int | None, ...]
    overwrites: tuple[bool, ...]

    def index_of(self, names: Sequence[str]) -> int | None:
        """Which block holds all the modules named, or None.

        Examples
        --------
        >>> Chain(("h.0", "h.1"), (None, None), (False, False)).index_of(["h.1.mlp.down"])
        1
        """
        for index, block in enumerate(self.blocks):
            if all(holds(block, name) for name in names):
                return index
        return None


def holds(block: str, name: str) -> bool:
    """Whether a dotted name is that of a block or of something within it.

    Examples
    --------
    >>> holds("h.1", "h.1.mlp"), holds("h.1", "h.10.mlp")
    (True, False)
    """
    return name == block or name.startswith(f"{block}.")


def without_cache(model: torch.nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a forward pass, with ``use_cache=False`` where the model's forward knows that.

    A cache that grows with every call would make the second run of a block differ from the first.

    Examples
    --------
    >>> without_cache(torch.nn.ReLU(), {"input": None})
    {'input': None}
    """
    if "use_cache" in inspect.signature(model.forward).parameters and "use_cache" not in kwargs:
        return {**kwargs, "use_cache": False}
    return dict(kwargs)


class _Hidden:
    """Stands in a recorded call where the tensor goes that the block before returned."""


_HIDDEN = _Hidden()


@dataclass(frozen=True)
class Call:
    """What a block is called with for one batch; a placeholder stands for the tensor handed on.

    Examples
    --------
    >>> Call((), {"scale": 2.0}).kwargs
    {'scale': 2.0}
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recording:
    """What the blocks of a chain are called with, batch by batch, and how to run one of them.

    Parameters
    ----------
    model : torch.nn.Module
    chain : Chain

    Examples
    --------
    >>> from osscar_opt.torch.chain import find_chains
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> chain = find_chains(model, (torch.ones(4, 5),), {}, [["2"]])[0]
    >>> recording = Recording(model, chain)
    >>> hidden = recording.add((torch.ones(4, 5),), {})
    >>> recording.run(0, 0, hidden).shape
    torch.Size([4, 8])
    """

    def __init__(self, model: torch.nn.Module, chain: Chain) -> None:
        self.chain = chain
        self.blocks = [model.get_submodule(name) for name in chain.blocks]
        self._model = model
        self._calls: list[list[Call]] = []  # batch, block
        self._stored: dict[Any, list[torch.Tensor]] = {}

    def add(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Run the model up to its first block, and record what all blocks are called with.

        Parameters
        ----------
        args, kwargs
            Of the model's forward pass.

        Returns
        -------
        torch.Tensor
            What enters the first block, on the model's device.

        Raises
        ------
        LayerError
            When the blocks are not called one after another, each once.

        Examples
        --------
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
        >>> Recording(model, Chain(("1",), (None,), (False,))).add((torch.zeros(4, 2),), {}).shape
        torch.Size([4, 2])
        """
        tape = _Tape(self.chain)
        with contextlib.ExitStack() as stack, torch.no_grad():
            for index, block in enumerate(self.blocks):
                stack.enter_context(_forward_replaced(block, tape.recorder(index)))
            with contextlib.suppress(Stop):
                self._model(*args, **without_cache(self._model, kwargs))
        if tape.first is None or len(tape.calls) != len(self.blocks):
            raise LayerError(
                f"on batch {len(self._calls)}, {len(tape.calls)} of the {len(self.blocks)} blocks from "
                f"{self.chain.blocks[0]} to {self.chain.blocks[-1]} were called: batches must all take the same "
                "way through the model."
            )
        self._calls.append([_mapped(call, self._store) for call in tape.calls])
        return tape.first

    def run(
        self, index: int, batch: int, hidden: torch.Tensor, device: torch.device | None = None
    ) -> torch.Tensor:
        """Run one block on what the block before it returned.

        Parameters
        ----------
        index : int
            Of the block.
        batch : int
            Of the batch, in the order in which they were added.
        hidden : torch.Tensor
            Left as it is, also by a block that overwrites its input.
        device : torch.device, optional
            Where the block is; by default where its parameters are.

        Returns
        -------
        torch.Tensor
            On the block's device.

        Raises
        ------
        LayerError
            When the block returns something else than when it was probed.

        Examples
        --------
        >>> model = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(2, 3))
        >>> recording = Recording(model, Chain(("0", "1"), (None, None), (True, False)))
        >>> hidden = recording.add((torch.tensor([[-1.0, 1.0]]),), {})
        >>> recording.run(0, 0, hidden), hidden
        (tensor([[0., 1.]]), tensor([[-1.,  1.]]))
        """
        block, call = self.blocks[index], self._calls[batch][index]
        where = device or home_of(block) or hidden.device
        given = hidden.to(where, copy=self.chain.overwrites[index])

        def placed(value: Any) -> Any:
            return (
                given if value is _HIDDEN else value.to(where) if isinstance(value, torch.Tensor) else value
            )

        with torch.no_grad():
            output = block(*_mapped(call.args, placed), **_mapped(call.kwargs, placed))
        returned, _ = hidden_of(output)
        if returned is None:
            raise LayerError(
                f"{self.chain.blocks[index]} returned a {type(output).__name__} where it had returned a tensor "
                "before: its output must not depend on how often it was called."
            )
        return returned

    def _store(self, value: Any) -> Any:
        """A tensor's copy on the CPU: that of an equal one, if there is one (batches share positions and masks)."""
        if not isinstance(value, torch.Tensor):
            return value
        alike = self._stored.setdefault((value.shape, value.dtype), [])
        here = value.detach().to("cpu")
        for other in reversed(alike[-_ALIKE:]):
            if other is here or torch.equal(other, here):
                return other
        alike.append(here.clone() if here is value else here)
        return alike[-1]


def record(
    model: torch.nn.Module, chain: Chain, batches: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
) -> tuple[Recording, list[torch.Tensor]]:
    """Record the calls of a chain's blocks for all batches.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    chain : Chain
    batches : sequence of pairs (args, kwargs)
        Of the model's forward pass.

    Returns
    -------
    recording : Recording
    hidden : list of torch.Tensor
        What enters the first block, for each batch, on the CPU.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    >>> chain = Chain(("1",), (None,), (False,))
    >>> recording, hidden = record(model, chain, [((torch.zeros(4, 2),), {})])
    >>> hidden[0].shape
    torch.Size([4, 2])
    """
    recording = Recording(model, chain)
    return recording, [recording.add(args, kwargs).detach().to("cpu") for args, kwargs in batches]


class _Tape:
    """The calls of one pass in which every block hands its input on."""

    def __init__(self, chain: Chain) -> None:
        self.first: torch.Tensor | None = None
        self.calls: list[Call] = []
        self._chain = chain
        self._handed_on: torch.Tensor | None = None

    def recorder(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            place = first_place(args, kwargs)
            hidden = None if place is None else hidden_at(place, args, kwargs)
            if hidden is None or index != len(self.calls) or (index and hidden is not self._handed_on):
                raise LayerError(
                    f"{self._chain.blocks[index]} was not called with what the block before it returned: "
                    "batches must all take the same way through the model."
                )
            if index == 0:
                self.first = hidden.clone()  # a model may write into it once the block has returned

            def blank(value: Any) -> Any:
                return _HIDDEN if value is hidden else value

            self.calls.append(Call(_mapped(args, blank), _mapped(kwargs, blank)))
            if index == len(self._chain.blocks) - 1:
                raise Stop
            self._handed_on = hidden
            form = self._chain.forms[index]
            return hidden if form is None else (hidden, *[None] * (form - 1))

        return forward


@contextlib.contextmanager
def _forward_replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward inside; one that it had as an attribute of its own comes back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def home_of(module: torch.nn.Module) -> torch.device | None:
    """Where a module's parameters or buffers are; None if it has none.

    Examples
    --------
    >>> home_of(torch.nn.Linear(2, 3)), home_of(torch.nn.ReLU())
    (device(type='cpu'), None)
    """
    return next((tensor.device for tensor in itertools.chain(module.parameters(), module.buffers())), None)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every leaf of nested tuples, lists, mappings and calls."""
    if isinstance(value, Call):
        return Call(_mapped(value.args, change), _mapped(value.kwargs, change))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, change) for name, item in value.items()}
    return change(value)


def first_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Where a block's first tensor is: a position, a keyword, or nowhere.

    Examples
    --------
    >>> first_place((), {"scale": 2.0, "hidden_states": torch.zeros(1)})
    'hidden_states'
    """
    for index, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return index
    return next((name for name, value in kwargs.items() if isinstance(value, torch.Tensor)), None)


def hidden_at(place: int | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The tensor at a place that `first_place` found.

    Examples
    --------
    >>> hidden_at(0, (torch.ones(1),), {})
    tensor([1.])
    """
    found = args[place] if isinstance(place, int) else kwargs[place]
    assert isinstance(found, torch.Tensor)  # first_place has looked
    return found


def hidden_of(output: Any) -> tuple[torch.Tensor | None, int | None]:
    """The tensor that a block hands on and the form it comes in; (None, None) for what a recorder cannot imitate.

    Examples
    --------
    >>> hidden_of((torch.ones(1), None))
    (tensor([1.]), 2)
    """
    if isinstance(output, torch.Tensor):
        return output, None
    if type(output) is tuple and output and isinstance(output[0], torch.Tensor):
        return (output[0], len(output)) if all(rest is None for rest in output[1:]) else (None, None)
    return None, None
