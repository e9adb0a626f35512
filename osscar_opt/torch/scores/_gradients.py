"""Gradients of a model's loss, batch by batch; the model, its ``grad`` and ``requires_grad`` stay as they were."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.collect import as_found, attention_mask_of, tensors_in
from osscar_opt.torch.coupling import Site, Slice
from osscar_opt.torch.scores._sites import Material, parameters_of, per_unit

__all__ = ["Loss", "batch_loss", "differentiable", "weight_times_gradient"]

Loss = Callable[[Any, Any], torch.Tensor]
"""From what the model returns, and the batch as it was given, to a scalar: the mean over the batch's samples."""


@contextlib.contextmanager
def differentiable(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, with gradients recorded for all floating-point parameters."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with as_found(model), torch.enable_grad():
            for parameter, _ in before:
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
            yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def batch_loss(material: Material, number: int, loss: Loss | None, output: Any) -> torch.Tensor:
    """Loss of a batch, by the caller's function or the model's kind.

    Without a function: mean cross-entropy of the next tokens, where the model reads token numbers and returns logits
    for each; cross-entropy of the labels, where the batch holds one for each sample behind what the forward takes; and
    else cross-entropy of the class that the model itself finds likeliest.

    Raises
    ------
    LayerError
        When the model returns nothing that this makes sense for, or the loss is no finite scalar.
    """
    given = material.given[number]
    found = _own_loss(material, number, output) if loss is None else loss(output, given)
    if not isinstance(found, torch.Tensor) or found.ndim or not bool(torch.isfinite(found)):
        raise LayerError("the loss of a batch must be a finite scalar tensor: check what loss= returns.")
    return found


def _own_loss(material: Material, number: int, output: Any) -> torch.Tensor:
    logits = getattr(output, "logits", None)
    if logits is None:
        logits = next((t for t in tensors_in(output) if t.is_floating_point()), None)
    args, kwargs = material.batches.call(number)
    first = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    tokens = kwargs.get("input_ids", first)
    cross_entropy = torch.nn.functional.cross_entropy
    if (
        logits is not None
        and tokens is not None
        and hasattr(output, "logits")
        and _are_tokens(tokens, logits)
    ):
        mask = attention_mask_of(args, kwargs, inspect.signature(material.model.forward))
        counts = torch.ones_like(tokens[:, 1:]) if mask is None else mask[:, 1:] * mask[:, :-1]
        losses = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
        )
        return (losses * counts.flatten()).sum() / counts.sum()
    if logits is not None and logits.ndim == 2:
        return cross_entropy(logits.float(), _labels(material.given[number], args, logits))
    raise LayerError(
        f"the {type(material.model).__name__} returns neither logits of next tokens nor of classes, so its loss is not "
        "known: pass loss=, a function of its output and the batch."
    )


def _are_tokens(tokens: Any, logits: torch.Tensor) -> bool:
    whole = isinstance(tokens, torch.Tensor) and not tokens.is_floating_point()
    return logits.ndim == 3 and whole and tokens.shape == logits.shape[:2]


def _labels(given: Any, args: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor:
    behind = given[len(args) :] if isinstance(given, (tuple, list)) else ()
    named = [given["labels"]] if isinstance(given, Mapping) and "labels" in given else []
    for candidate in (*named, *behind):
        tensor = candidate if isinstance(candidate, torch.Tensor) else None
        if tensor is not None and tensor.shape == logits.shape[:1] and not tensor.is_floating_point():
            return tensor.to(logits.device)
    return logits.detach().argmax(-1)


def weight_times_gradient(
    material: Material, wanted: Callable[[Site, Slice, torch.Tensor], bool], loss: Loss | None
) -> Iterator[dict[str, FloatArray]]:
    """Yield for every batch and site the sums over each unit's weights w of w dL/dw, shape (n,).

    Parameters
    ----------
    material : Material
    wanted : callable
        Which slices of a site count.
    loss : callable, optional
    """
    parts = {
        name: [
            (part, parameter)
            for part, parameter in parameters_of(material.model, site.slices)
            if wanted(site, part, parameter)
        ]
        for name, site in material.sites.items()
    }
    with differentiable(material.model):
        parameters = list(dict.fromkeys(parameter for found in parts.values() for _, parameter in found))
        for number in range(len(material.batches)):
            args, kwargs = material.batches.call(number)
            value = batch_loss(material, number, loss, material.model(*args, **kwargs))
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            products = {
                parameter: None if gradient is None else (parameter.detach() * gradient).double()
                for parameter, gradient in zip(parameters, gradients, strict=True)
            }
            del gradients, value
            yield {name: _summed(material.sites[name], found, products) for name, found in parts.items()}


def _summed(
    site: Site,
    parts: list[tuple[Slice, torch.nn.Parameter]],
    products: Mapping[torch.nn.Parameter, torch.Tensor | None],
) -> FloatArray:
    total = np.zeros(site.n)
    for part, parameter in parts:
        product = products[parameter]
        if product is not None:
            along = product.movedim(part.axis, 0).flatten(1).sum(1) if product.ndim > 1 else product
            total += per_unit(along.cpu().numpy(), np.asarray(part.units), site.n)
    return total
