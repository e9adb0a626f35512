"""What a layer's weight is really multiplied with.

A hook on a module sees what its forward was called with. That is not always the X of Y = X W: a subclass of
``Conv2d`` may pad by itself, a ``padding_mode`` wraps around, and some models use a layer's weight without ever
calling the layer. So the multiplication itself is watched: `torch.nn.functional.linear`, ``conv1d``, ``conv2d``,
``addmm`` and ``matmul``, whenever one of their arguments is the very `Parameter` of a layer that is watched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from osscar_opt.errors import LayerError

__all__ = ["LayerCall", "Seen", "call_of", "watch"]


@dataclass(frozen=True)
class LayerCall:
    """One multiplication by a layer's weight, with the arguments that decide which rows X has.

    Attributes
    ----------
    inputs : torch.Tensor
        Of shape (..., p), or (batch, channels, positions...) for a convolution, after any padding that the layer
        does by itself.
    stride, padding, dilation : int, tuple of int or str
        As the convolution was called with; the defaults for a matrix.
    groups : int
        Convolution groups.

    Examples
    --------
    >>> LayerCall(torch.zeros(2, 5)).inputs.shape
    torch.Size([2, 5])
    """

    inputs: torch.Tensor
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1


Seen = Callable[[str, LayerCall], torch.Tensor | None]
"""Called with the name of a layer and its call; see `watch`."""

_CONVOLUTION = ("inputs", "weight", "bias", "stride", "padding", "dilation", "groups")

# function -> (how it multiplies, names of its positional arguments)
_OPERATIONS: dict[Any, tuple[str, tuple[str, ...]]] = {
    torch.nn.functional.linear: ("transposed", ("inputs", "weight", "bias")),
    torch.nn.functional.conv1d: ("convolution", _CONVOLUTION),
    torch.nn.functional.conv2d: ("convolution", _CONVOLUTION),
    torch.addmm: ("matrix", ("bias", "inputs", "weight")),
    torch.Tensor.addmm: ("matrix", ("bias", "inputs", "weight")),
    torch.mm: ("matrix", ("inputs", "weight")),
    torch.matmul: ("matrix", ("inputs", "weight")),
    torch.Tensor.mm: ("matrix", ("inputs", "weight")),
    torch.Tensor.matmul: ("matrix", ("inputs", "weight")),
}
_SPELLINGS = {"input": "inputs", "mat1": "inputs", "mat2": "weight", "other": "weight"}


def _operation_of(layer: torch.nn.Module) -> str:
    """How a layer of this kind multiplies by its weight."""
    if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
        return "convolution"
    return "transposed" if isinstance(layer, torch.nn.Linear) else "matrix"


class _Watch(TorchFunctionMode):
    def __init__(self, layers: Mapping[str, torch.nn.Module], seen: Seen) -> None:
        super().__init__()
        self._layers = [(name, layer, _operation_of(layer)) for name, layer in layers.items()]
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OPERATIONS:
            args, kwargs = self._look(func, args, kwargs)
        return func(*args, **kwargs)

    def _look(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tell who is watching; arguments of the product, with what was handed back in place of its inputs."""
        operation, names = _OPERATIONS[func]
        given = dict(zip(names, args, strict=False))
        given |= {_SPELLINGS.get(key, key): value for key, value in kwargs.items()}
        weight = given.get("weight")
        for name, layer, own in self._layers:
            # asked for at every call: offloading puts another parameter in its place for the time of a forward
            if weight is not None and own == operation and weight is layer._parameters.get("weight"):
                scaled = given.get("alpha", 1) != 1  # then X is not what was multiplied
                instead = None if scaled else self._seen(name, _call(given))
                if instead is not None:
                    return _with_inputs(instead, names, args, kwargs)
        return args, kwargs


def _with_inputs(
    inputs: torch.Tensor, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    place = names.index("inputs")
    if place < len(args):
        return (*args[:place], inputs, *args[place + 1 :]), kwargs
    key = next(key for key in kwargs if _SPELLINGS.get(key, key) == "inputs")
    return args, kwargs | {key: inputs}


def _call(given: Mapping[str, Any]) -> LayerCall:
    options = {key: given[key] for key in ("stride", "padding", "dilation", "groups") if key in given}
    return LayerCall(given["inputs"], **options)


@contextlib.contextmanager
def watch(layers: Mapping[str, torch.nn.Module], seen: Seen) -> Iterator[None]:
    """Call ``seen(name, call)`` at every multiplication by the weight of one of the layers, in this thread.

    Parameters
    ----------
    layers : mapping of str to torch.nn.Module
        Layers that `osscar_opt.torch.view_of` supports.
    seen : callable
        Called before the product is computed. What it raises goes up through the model's forward, which is a way to
        end it early. What it returns, unless that is None, is multiplied in place of the inputs: a copy of them, say,
        whose gradient is that through this layer alone.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with watch({"last": model[2]}, lambda name, call: print(name, tuple(call.inputs.shape))):
    ...     output = model(torch.zeros(4, 5))
    last (4, 3)
    """
    with _eager(), _Watch(layers, seen):
        yield


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Run compiled modules as they were written: their graphs would hide the products, or compile the watching in."""
    if "torch._dynamo" not in sys.modules:  # then nothing was compiled, and this is a slow import
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Caught(BaseException):
    """Ends a forward before its product is computed; no Exception, so that no error handling keeps it."""


def call_of(layer: torch.nn.Module, inputs: Any, name: str = "the layer") -> LayerCall:
    """Return the multiplication that the layer's forward does on these inputs, without doing it.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer that `osscar_opt.torch.view_of` supports.
    inputs : torch.Tensor or LayerCall
        What its forward takes; a call is returned as it is.
    name : str, optional
        Name of the layer, for the sentences of errors.

    Raises
    ------
    LayerError
        When the inputs are no tensor, the forward fails on them, or it does not multiply by its own weight.

    Examples
    --------
    >>> layer = torch.nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular")
    >>> call = call_of(layer, torch.zeros(4, 3, 10))
    >>> tuple(call.inputs.shape), call.padding
    ((4, 3, 12), (0,))
    """
    if isinstance(inputs, LayerCall):
        return inputs
    if not isinstance(inputs, torch.Tensor):
        raise LayerError(f"{name} takes tensors as its inputs, got {type(inputs).__name__}.")
    found: list[LayerCall] = []

    def caught(_: str, call: LayerCall) -> None:
        found.append(call)
        raise _Caught

    try:
        with torch.no_grad(), watch({name: layer}, caught):
            layer.forward(inputs)
    except _Caught:
        return found[0]
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise LayerError(
            f"{name} cannot be called on inputs of shape {tuple(inputs.shape)}: {reason}"
        ) from error
    raise LayerError(
        f"the forward of {name} ({type(layer).__name__}) does not multiply its inputs by its own weight, so there is "
        "nothing to fit: choose the layer that does."
    )
