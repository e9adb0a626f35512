"""Run batches through a model and hand over what one of its layers is called with.

The model is left as it was found, also when something fails: nothing watches it any more, training flags return,
nothing is recorded for autograd, and no parameter's ``requires_grad`` is touched.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch.recording import home_of
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["arguments_of", "as_found", "attention_mask_of", "each_batch", "tensors_in", "visit_layer_inputs"]

Consumer = Callable[[LayerCall, torch.Tensor | None], None]


class _LayerReached(BaseException):
    """Ends a forward pass; not an Exception, so that a model's own error handling lets it through."""


@dataclass
class _Visit:
    """What has to be known about the forward pass that is under way."""

    consume: Consumer
    mask: torch.Tensor | None = None
    stop: bool = False
    calls: int = 0
    total: int = field(default=0)

    def seen(self, _: str, call: LayerCall) -> None:
        self.consume(call, self.mask)
        self.calls += 1
        self.total += 1
        if self.stop:
            raise _LayerReached


def visit_layer_inputs(
    model: torch.nn.Module,
    layer: torch.nn.Module,
    name: str,
    batches: Any,
    consume: Consumer,
    *,
    required: bool = True,
) -> None:
    """Call `consume(call, mask)` whenever the layer's weight is used while the model sees the batches.

    Forward passes end as soon as the layer was reached. Only the first runs to its end, to learn whether the
    layer is called more than once a pass; if it is, all passes run to their end.

    Parameters
    ----------
    model : torch.nn.Module
        Run in evaluation mode, without gradients.
    layer : torch.nn.Module
        One of the model's modules.
    name : str
        Its name, for the sentences of errors.
    batches
        A tensor, a mapping of keyword arguments, or an iterable (a list, a DataLoader, ...) of tensors,
        mappings, and tuples or lists of positional arguments, of which those are passed that the model's
        forward has room for (the rest are labels). Tensors are moved to the model's device. A batch's
        two-dimensional ``attention_mask`` (batch, length) tells which rows are padding.
    consume : callable
        Takes what the weight is multiplied with (`osscar_opt.torch.watch.LayerCall`) and the batch's attention mask,
        or None.
    required : bool, optional
        Whether it is an error if the layer is not reached.

    Raises
    ------
    LayerError
        When there is no batch, or no batch reaches the layer.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> visit_layer_inputs(model, model[2], "2", torch.zeros(4, 5), lambda call, mask: print(call.inputs.shape))
    torch.Size([4, 3])
    """
    device = home_of(model) or torch.device("cpu")
    signature = inspect.signature(model.forward)
    visit = _Visit(consume)
    seen = 0
    with as_found(model), torch.no_grad(), watch({name: layer}, visit.seen):
        for batch in each_batch(batches):
            args, kwargs = arguments_of(batch, signature, device)
            visit.mask = attention_mask_of(args, kwargs, signature)
            visit.calls = 0
            with contextlib.suppress(_LayerReached):
                model(*args, **kwargs)
            seen += 1
            visit.stop = visit.calls == 1 if seen == 1 else visit.stop
    if not required:
        return
    if seen == 0:
        raise LayerError(
            f"there were no batches to run through the model: {name} has nothing to be calibrated on."
        )
    if visit.total == 0:
        raise LayerError(
            f"{name} was never called in {seen} {'batch' if seen == 1 else 'batches'}: the model's forward does not "
            "multiply by its weight on such inputs, so choose another layer or other batches."
        )


def each_batch(batches: Any) -> Iterator[Any]:
    """Yield the batches of anything that is one batch or holds several.

    Parameters
    ----------
    batches
        A tensor or a mapping is one batch; everything else is iterated over.

    Yields
    ------
    object

    Raises
    ------
    LayerError
        When it is neither a batch nor iterable.

    Examples
    --------
    >>> len(list(each_batch(torch.zeros(4, 5)))), len(list(each_batch([torch.zeros(4, 5)] * 3)))
    (1, 3)
    """
    if isinstance(batches, (torch.Tensor, Mapping)):
        yield batches
    elif isinstance(batches, Iterable) and not isinstance(batches, (str, bytes)):
        yield from batches
    else:
        raise LayerError(
            "batches must be a tensor, a dict, or an iterable of tensors, tuples or dicts, "
            f"not {type(batches).__name__}."
        )


@contextlib.contextmanager
def as_found(model: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode inside; restore every module's own flag afterwards.

    Examples
    --------
    >>> model = torch.nn.Dropout()
    >>> with as_found(model):
    ...     inside = model.training
    >>> inside, model.training
    (False, True)
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def arguments_of(
    batch: Any, signature: inspect.Signature, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward pass, on the model's device.

    Parameters
    ----------
    batch
        A tensor, a mapping of keyword arguments, or a tuple or list of positional ones; those beyond what the forward
        takes are labels, and left out.
    signature : inspect.Signature
        Of the model's forward.
    device : torch.device

    Raises
    ------
    LayerError
        When the batch is something else.

    Examples
    --------
    >>> def forward(x): ...
    >>> args, kwargs = arguments_of((torch.ones(2), "label"), inspect.signature(forward), torch.device("cpu"))
    >>> args, kwargs
    ((tensor([1., 1.]),), {})
    """
    if isinstance(batch, torch.Tensor):
        return (batch.to(device),), {}
    if isinstance(batch, Mapping):
        return (), {str(key): _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_moved(value, device) for value in batch[: _room(signature)]), {}
    raise LayerError(f"a batch must be a tensor, a tuple, a list or a dict, not {type(batch).__name__}.")


def _room(signature: inspect.Signature) -> int | None:
    """How many positional arguments a forward takes; None when any number."""
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def attention_mask_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], signature: inspect.Signature
) -> torch.Tensor | None:
    """Find the batch's attention_mask, however it is passed; None if there is none.

    Raises
    ------
    LayerError
        When it is not two-dimensional.

    Examples
    --------
    >>> def forward(input_ids, attention_mask=None): ...
    >>> attention_mask_of((torch.zeros(1, 2), torch.ones(1, 2)), {}, inspect.signature(forward))
    tensor([[1., 1.]])
    """
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        bound = {}  # the model says by itself what it does not accept
    mask = kwargs.get("attention_mask", bound.get("attention_mask"))
    if not isinstance(mask, torch.Tensor):
        return None
    if mask.ndim != 2:
        raise LayerError(
            f"the attention_mask has shape {tuple(mask.shape)}: "
            "give one of shape (batch, length), zero for padding."
        )
    return mask


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a module takes or returns: tensors, mappings, tuples and lists of them.

    Examples
    --------
    >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": (torch.tensor(2), None)})]
    [1, 2]
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
