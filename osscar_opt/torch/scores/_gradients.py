"""Gradients of a model's loss, batch by batch; the model, its ``grad`` and ``requires_grad`` stay as they were."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.collect import as_found, attention_mask_of, tensors_in
from osscar_opt.torch.coupling import Site, Slice
from osscar_opt.torch.scores._sites import Material, per_unit

__all__ = [
    "Loss",
    "batch_loss",
    "classes_of",
    "differentiable",
    "logits_of",
    "mean_square",
    "weight_times_gradient",
]

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

    Without a function: cross-entropy of the next tokens, where a causal model reads token numbers and returns logits
    for each, a mean over each text's tokens and then over the texts; cross-entropy of the labels, where the batch holds
    one for each sample; and else cross-entropy of the class that the model itself finds likeliest.

    Raises
    ------
    LayerError
        When the model returns nothing that this makes sense for, or the loss is no finite scalar that depends on it.
    """
    given = material.given[number]
    found = _own_loss(material, number, output) if loss is None else loss(output, given)
    if not isinstance(found, torch.Tensor) or found.ndim or not bool(torch.isfinite(found)):
        raise LayerError("the loss of a batch must be a finite scalar tensor: check what loss= returns.")
    if not found.requires_grad:
        raise LayerError(
            "the loss of a batch does not depend on the model's weights: check what loss= returns."
        )
    return found


def _own_loss(material: Material, number: int, output: Any) -> torch.Tensor:
    logits = logits_of(output)
    args, kwargs = material.batches.call(number)
    first = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    tokens = kwargs.get("input_ids", first)
    if logits is not None and tokens is not None and _predicts_tokens(material.model, output, logits, tokens):
        mask = attention_mask_of(args, kwargs, inspect.signature(material.model.forward))
        counts = torch.ones_like(tokens[:, 1:]) if mask is None else mask[:, 1:] * mask[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
        )  # (texts, tokens)
        return ((losses * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()
    if logits is not None and logits.ndim == 2:
        return torch.nn.functional.cross_entropy(logits, classes_of(material, number, logits))
    raise LayerError(
        f"the {type(material.model).__name__} returns neither logits of next tokens nor of classes, so its loss is not "
        "known: pass loss=, a function of its output and the batch, to the function of osscar_opt.torch.scores, and "
        "what that returns to method 'scores'."
    )


def logits_of(output: Any) -> torch.Tensor | None:
    """Logits among what a model returns, or its first floating-point tensor; half precision as float32."""
    found = getattr(output, "logits", None)
    if found is None:
        found = next((t for t in tensors_in(output) if t.is_floating_point()), None)
    if not isinstance(found, torch.Tensor):
        return None
    return found if found.dtype == torch.float64 else found.float()


def _predicts_tokens(model: torch.nn.Module, output: Any, logits: torch.Tensor, tokens: torch.Tensor) -> bool:
    """Whether logits are of next tokens: one for each entry of a vocabulary at each token, in no masked model."""
    if not hasattr(output, "logits") or logits.ndim != 3 or tokens.is_floating_point():
        return False
    masked = "MaskedLM" in type(model).__name__
    return bool(tokens.shape == logits.shape[:2]) and int(tokens.max()) < logits.shape[2] and not masked


def classes_of(material: Material, number: int, logits: torch.Tensor) -> torch.Tensor:
    """A class for each sample: the batch's labels where it holds them, else those of the largest logits."""
    given, room = material.given[number], len(material.batches.call(number)[0])
    behind = given[room:] if isinstance(given, (tuple, list)) else ()
    named = [given["labels"]] if isinstance(given, Mapping) and "labels" in given else []
    for candidate in (*named, *behind):
        labels = isinstance(candidate, torch.Tensor) and not candidate.is_floating_point()
        if labels and candidate.shape == logits.shape[:1]:
            found: torch.Tensor = candidate.to(logits.device, torch.int64)
            return found
    return logits.detach().argmax(-1)


def weight_times_gradient(
    material: Material,
    parts_of: Callable[[torch.nn.Module, Site], Iterable[tuple[Slice, torch.nn.Parameter]]],
    loss: Loss | None,
) -> Iterator[dict[str, FloatArray]]:
    """Yield for every batch and site the sums over each unit's weights w of w dL/dw, shape (n,).

    Parameters
    ----------
    material : Material
    parts_of : callable
        The slices of a site that count, with their parameters.
    loss : callable, optional
    """
    parts = {name: list(parts_of(material.model, site)) for name, site in material.sites.items()}
    with differentiable(material.model):
        parameters = list(dict.fromkeys(parameter for found in parts.values() for _, parameter in found))
        for number in range(len(material.batches)):
            args, kwargs = material.batches.call(number)
            value = batch_loss(material, number, loss, material.model(*args, **kwargs))
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            products = {
                parameter: None if gradient is None else _product(parameter, gradient)
                for parameter, gradient in zip(parameters, gradients, strict=True)
            }
            del gradients, value
            yield {name: _summed(material.sites[name], found, products) for name, found in parts.items()}


def _product(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    """Weight times gradient, in float32 at least."""
    values = parameter.detach()
    if values.dtype in (torch.float32, torch.float64):
        return values * gradient
    return values.float() * gradient.float()


def mean_square(
    material: Material,
    parts_of: Callable[[torch.nn.Module, Site], Iterable[tuple[Slice, torch.nn.Parameter]]],
    loss: Loss | None,
) -> dict[str, FloatArray]:
    """Mean over the batches of the squared sums that `weight_times_gradient` yields, (n,) for each site."""
    total = {name: np.zeros(site.n) for name, site in material.sites.items()}
    for products in weight_times_gradient(material, parts_of, loss):
        for name, product in products.items():
            total[name] += product**2
    return {name: value / len(material.batches) for name, value in total.items()}


def _summed(
    site: Site,
    parts: list[tuple[Slice, torch.nn.Parameter]],
    products: Mapping[torch.nn.Parameter, torch.Tensor | None],
) -> FloatArray:
    total = np.zeros(site.n)
    for place, (part, parameter) in enumerate(parts):
        product = products[parameter]
        if product is None:
            continue
        along = product.movedim(part.axis, 0).reshape(len(part.units), -1).sum(1, dtype=torch.float64)
        total += per_unit(along.cpu().numpy(), np.asarray(part.units), site.n)
        for other, same in parts[:place]:
            # what lies where a unit's own row and column cross counts once
            if same is parameter and other.axis != part.axis:
                total -= _crossing(site, part, other, product)
    return total


def _crossing(site: Site, part: Slice, other: Slice, product: torch.Tensor) -> FloatArray:
    whole = product.movedim((part.axis, other.axis), (0, 1))
    whole = whole.flatten(2).sum(2) if whole.ndim > 2 else whole
    # one row an index, with a one at its unit; of unit -1 that is the last column, which is cut off
    ones = [np.eye(site.n + 1)[np.asarray(s.units)][:, : site.n] for s in (part, other)]
    return np.asarray(np.einsum("in,ij,jn->n", ones[0], whole.double().cpu().numpy(), ones[1], optimize=True))
