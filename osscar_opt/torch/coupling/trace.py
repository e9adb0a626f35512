"""One run of a model, watched: which operations its channels go through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from osscar_opt.errors import LayerError
from osscar_opt.torch.collect import as_found, tensors_in
from osscar_opt.torch.coupling.channels import Channels
from osscar_opt.torch.coupling.rules import Call, Scene
from osscar_opt.torch.coupling.table import CONSTANT, RULES

__all__ = ["Watch", "watch"]

_PROPERTIES = frozenset({"T", "mT", "H", "data"})
_ARITHMETIC = frozenset(["add", "sub", "mul", "div", "truediv", "pow"])


class Watch(TorchFunctionMode):
    """Runs every torch function as it is, and keeps the companions of what goes in and comes out.

    Attributes
    ----------
    channels : Channels
    refusals : dict of str to str
        What could not be followed, and why.
    """

    def __init__(self, model: torch.nn.Module, query_heads: bool) -> None:
        super().__init__()
        self.channels = Channels()
        self.refusals: dict[str, str] = {}
        self._names: dict[int, str] = {}
        self._kept: dict[
            int, tuple[torch.Tensor, torch.Tensor | None]
        ] = {}  # held, so that no id is used twice
        self._inside: list[tuple[str, torch.nn.Module, list[torch.Tensor]]] = []
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._names.setdefault(id(tensor), name)
        for module in model.modules():  # tensors that are attributes are constants
            for value in vars(module).values():
                if isinstance(value, torch.Tensor):
                    self._kept[id(value)] = (value, None)
        self._scene = Scene(self.channels, self._numbers_of, self._name_of, query_heads)

    # ------------------------------------------------------------------------------------------------ companions

    def _name_of(self, tensor: torch.Tensor) -> str | None:
        return self._names.get(id(tensor))

    def _numbers_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        held = self._kept.get(id(tensor))
        if held is not None:
            return held[1]
        name = self._names.get(id(tensor))
        if name is not None and tensor.is_floating_point():
            return self.channels.entries(name, tensor)
        return None

    def know(self, tensor: torch.Tensor, numbers: torch.Tensor | None = None) -> None:
        """Note a tensor's companion; None for a constant."""
        if numbers is not None and not bool(numbers.any()):
            numbers = None
        self._kept[id(tensor)] = (tensor, numbers)
        if self._inside:
            self._inside[-1][2].append(tensor)

    # -------------------------------------------------------------------------------------------------- the run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = _short(func)
        operands = list(tensors_in((args, kwargs)))
        for operand in operands:
            self._came_from_nowhere(operand)
        followed = name in _LAYERS or any(self._is_followed(operand) for operand in operands)
        out = func(*args, **kwargs)
        results = list(tensors_in(out))
        if not results and name != "setitem":
            return out
        if not followed:
            for result in results:
                self.know(result)
            return out
        self._apply(Call(name, func, args, kwargs, out), results, operands)
        return out

    def _is_followed(self, tensor: torch.Tensor) -> bool:
        held = self._kept.get(id(tensor))
        return id(tensor) in self._names if held is None else held[1] is not None

    def _apply(self, call: Call, results: list[torch.Tensor], operands: list[torch.Tensor]) -> None:
        name = call.name
        rule = RULES.get(name)
        if rule is None:
            floating = [result for result in results if result.is_floating_point()]
            if floating and name not in CONSTANT:
                self._refuse(name, operands)
            for result in results:
                self.know(result)
            return
        found = rule(self._scene, call)
        if name == "setitem":
            self.know(call.out, found if isinstance(found, torch.Tensor) else None)
            return
        companions = list(tensors_in(found)) if found is not None else []
        for result, numbers in zip(results, [*companions, *[None] * len(results)], strict=False):
            self.know(result, numbers if numbers is None else numbers.expand(result.shape))

    def _refuse(self, operation: str, operands: list[torch.Tensor]) -> None:
        where = (self._inside[-1][0] if self._inside else "") or "the model"
        why = f"{where} uses {operation}, which is not followed"
        for operand in operands:
            held = self._kept.get(id(operand))
            if held is not None and held[1] is not None:
                self.channels.freeze(held[1], why)
                self.refusals[where] = why

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        return tensor.is_floating_point() and id(tensor) not in self._kept and id(tensor) not in self._names

    def _came_from_nowhere(self, tensor: torch.Tensor) -> None:
        """A floating tensor that no watched function made: whatever the module holds may have gone into it."""
        if not self._is_unknown(tensor):
            return
        self._kept[id(tensor)] = (tensor, None)
        if isinstance(tensor, torch.nn.Parameter) or not self._inside:
            return
        self._give_up(self._inside[-1][0], self._inside[-1][1], self._inside[-1][2])

    def _give_up(self, name: str, module: torch.nn.Module, seen: list[torch.Tensor]) -> None:
        why = f"{name or 'the model'} ({type(module).__name__}) computes something in a way that cannot be watched"
        self.refusals[name or "the model"] = why
        for tensor in seen:
            numbers = self._numbers_of(tensor)
            if numbers is not None:
                self.channels.freeze(numbers, why)

    # -------------------------------------------------------------------------------------------------- modules

    def enter(self, name: str, module: torch.nn.Module, inputs: Any) -> None:
        """A module begins; what the model itself is called with has no channels."""
        if not self._inside:
            for tensor in tensors_in(inputs):
                self.know(tensor)
        self._inside.append((name, module, list(tensors_in(inputs))))

    def leave(self, outputs: Any) -> None:
        """A module ends; what it returns must have been made by functions that were watched."""
        name, module, seen = self._inside.pop()
        unknown = [tensor for tensor in tensors_in(outputs) if self._is_unknown(tensor)]
        if unknown:
            self._give_up(name, module, seen)
            for tensor in unknown:
                self._kept[id(tensor)] = (tensor, None)
        if self._inside:
            self._inside[-1][2].extend(tensors_in(outputs))

    def end(self, outputs: Any) -> None:
        """The model is done: channels of its outputs must stay."""
        for tensor in tensors_in(outputs):
            numbers = self._numbers_of(tensor)
            if numbers is not None:
                self.channels.freeze(numbers, "they are outputs of the model")


_LAYERS = frozenset(
    {"linear", "embedding", "conv1d", "conv2d", "conv3d"}
)  # they make channels out of anything


def watch(model: torch.nn.Module, run: Callable[[], Any], *, query_heads: bool = False) -> Watch:
    """Run a model once, in evaluation mode and without gradients, and watch it.

    Parameters
    ----------
    model : torch.nn.Module
    run : callable
        Calls the model once on a small batch and returns what it returns.
    query_heads : bool, optional
        Whether query heads that share keys and values are channels of their own.

    Raises
    ------
    LayerError
        When the model cannot be run this way.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> watched = watch(model, lambda: model(torch.zeros(2, 5)))
    >>> sorted(watched.channels.axes)
    [('0.bias', 0), ('0.weight', 0), ('2.bias', 0), ('2.weight', 0), ('2.weight', 1)]
    """
    watched = Watch(model, query_heads)
    with as_found(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(
                module.register_forward_pre_hook(_entering(watched, name), with_kwargs=True).remove
            )
            hooks.callback(module.register_forward_hook(_leaving(watched), always_call=False).remove)
        try:
            with watched:
                outputs = run()
        except Exception as error:
            raise LayerError(
                f"the {type(model).__name__} could not be run on the batch to see what goes together: "
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            ) from error
    watched.end(outputs)
    return watched


def _entering(watched: Watch, name: str) -> Callable[..., None]:
    return lambda module, args, kwargs: watched.enter(name, module, (args, kwargs))


def _leaving(watched: Watch) -> Callable[..., None]:
    return lambda module, args, outputs: watched.leave(outputs)


def _short(func: Any) -> str:
    """Name of an operation without underscores: `add` for `torch.add`, `Tensor.add_`, `Tensor.__radd__`."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
        return name if name in _PROPERTIES else f"property {name}"
    if name.startswith("__"):
        name = name.strip("_")
        for prefix in "ri":
            if name[:1] == prefix and name[1:] in _ARITHMETIC:
                return name[1:]
        return name
    return name.strip("_")
