r"""LRP: how much of the model's decision runs through a unit, by layer-wise relevance propagation.

The decision, the logit y_c of a sample's class, is handed back from layer to layer. A product with weights shares what
its output j has among its inputs i by their positive contributions (alpha = 1, beta = 0),

.. math:: R_i = \sum_j \frac{(x_i w_{ij})^+}{\sum_{i'} (x_{i'} w_{i'j})^+ + (b_j)^+} R_j ,

batch norm folded into the product before it (elsewhere its scale hands on, and its shift keeps its share); activations
hand on what they get; sums and averages share it in proportion to their parts; a maximum hands it to the largest. A
unit's score is

.. math:: I_u = \sum_{\text{samples, positions}} | R_u | .

S.-K. Yeom, P. Seegerer, S. Lapuschkin, A. Binder, S. Wiedemann, K.-R. Müller, W. Samek, "Pruning by Explaining: A Novel
Criterion for Deep Neural Network Pruning", Pattern Recognition 2021 (arXiv 1912.08881), with the absolute values of the
published code. Biases are left out of the sums there and counted here only where ``bias=True``.

All of this is one backward pass with other derivatives: a layer whose gradient is g = R / y hands back R_i / x_i.

Needs: gradients of the logits, in a network of convolutions, matrices, norms, sums and pooling. Attention, gates and
other products of activations have no rule here: they are refused by name; what else is not listed here hands on by its
derivative.  Updates nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from osscar_opt.errors import LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.scores._gradients import classes_of, differentiable, logits_of
from osscar_opt.torch.scores._sites import Material, by_sample, per_unit, prepare
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["lrp_scores"]

_F = torch.nn.functional
_PRODUCTS = {_F.linear, _F.conv1d, _F.conv2d, torch.conv1d, torch.conv2d}
_ACTIVATIONS = {
    _F.relu6, _F.hardtanh, _F.silu, _F.gelu, _F.elu, _F.leaky_relu, _F.hardswish, _F.mish, _F.selu, _F.celu,
    _F.softplus, _F.hardsigmoid, _F.logsigmoid, _F.sigmoid, _F.tanh, torch.tanh, torch.sigmoid, torch.Tensor.tanh,
    torch.Tensor.sigmoid, torch.clamp, torch.clip, torch.Tensor.clamp, torch.Tensor.clip, torch.selu, torch.celu,
}  # fmt: skip
_REFUSED = {
    _F.softmax, _F.scaled_dot_product_attention, _F.layer_norm, _F.group_norm, _F.embedding, _F.rms_norm,
    torch.softmax, torch.Tensor.softmax, torch.layer_norm, torch.pow, torch.Tensor.pow, torch.Tensor.__pow__,
    torch.square, torch.Tensor.square, torch.exp, torch.Tensor.exp, _F.multi_head_attention_forward, _F.glu,
    _F.conv3d, _F.conv_transpose1d, _F.conv_transpose2d, _F.conv_transpose3d, torch.addmm, torch.Tensor.addmm,
    torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, torch.baddbmm, torch.Tensor.baddbmm,
}  # fmt: skip
_BETWEEN = {
    torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.multiply, torch.Tensor.__mul__,
    torch.Tensor.__rmul__, torch.Tensor.__imul__, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm,
    torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm, torch.einsum, torch.addcmul, torch.Tensor.addcmul, torch.div,
    torch.true_divide, torch.Tensor.div, torch.Tensor.div_, torch.Tensor.__truediv__, torch.Tensor.__itruediv__,
}  # fmt: skip


def lrp_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    bias: bool = False,
) -> PerProblem:
    """Sum over samples and positions of the absolute relevance of each unit for the model's likeliest class.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier of convolutions and matrices, whose output, or its ``logits``, is (samples, classes). Not changed.
    batches, coupling, sites
        As for `osscar_opt.torch.scores.taylor_scores`. Labels behind what the forward takes name the class; without
        them the likeliest is taken.
    bias : bool, optional
        Let biases take their share of what a layer hands back.

    Returns
    -------
    PerProblem

    Raises
    ------
    LayerError
        When a name fits no site, or the model does what no rule is known for.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = lrp_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    >>> scores["2"].shape
    (4,)
    """
    material = prepare(model, batches, coupling, sites)
    total = {name: np.zeros(site.n) for name, site in material.sites.items()}
    with differentiable(model):
        for number in range(len(material.batches)):
            _add(material, number, bias, total)
    return PerProblem(total, rule="lrp")


def _add(material: Material, number: int, bias: bool, total: dict[str, Any]) -> None:
    """Add the absolute relevances of one batch."""
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # inputs are held, so that ids stay theirs
    layers = material.consumers()
    args, kwargs = material.batches.call(number)

    def seen(name: str, call: LayerCall) -> torch.Tensor:
        own = call.inputs.view_as(call.inputs)  # whose gradient is that through this layer alone
        calls.append((name, call.inputs, own))
        return own

    with _Rules(bias), watch(layers, seen):
        output = material.model(*args, **kwargs)
    logits = logits_of(output)
    if logits is None or logits.ndim != 2:
        raise LayerError(
            f"the {type(material.model).__name__} returns no logits of classes, whose relevance lrp follows."
        )
    chosen = logits.gather(1, classes_of(material, number, logits)[:, None]).sum()
    if not calls:  # the batch reaches none of the layers
        return
    gradients = torch.autograd.grad(chosen, [own for _, _, own in calls], allow_unused=True)
    site_of = material.site_of
    relevance: dict[tuple[str, int], tuple[str, torch.Tensor]] = {}
    for (consumer, inputs, own), gradient in zip(calls, gradients, strict=True):
        if gradient is not None:  # several layers that read the same tensor get their shares of one relevance
            share = by_sample((own.detach() * gradient).double(), layers[consumer], len(logits), consumer)
            key = site_of[consumer], id(inputs)
            relevance[key] = consumer, share + (relevance[key][1] if key in relevance else 0.0)
    for (name, _), (consumer, whole) in relevance.items():
        units = np.asarray(material.sites[name].consumers[consumer])
        total[name] += per_unit(whole.abs().sum((0, 2)).cpu().numpy(), units, material.sites[name].n)


class _Rules(TorchFunctionMode):
    """Forward passes as ever, whose backward passes hand relevance back."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self._bias = bias
        self._made: dict[int, tuple[torch.Tensor, int, Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func, args, kwargs = _as_linear(func, args, kwargs or {})
        if func in _REFUSED or (func in _BETWEEN and _between_activations(args)):
            name = getattr(func, "__name__", str(func))
            raise LayerError(
                f"lrp has no rule for {name}: it is for networks of convolutions and matrices, so choose another rule."
            )
        if func in _PRODUCTS:
            output = self._product(func, args, kwargs)
            # the output is held, so that its id stays its own
            self._made[id(output)] = (output, output._version, func, args, kwargs)
            return output
        if func is _F.batch_norm and self._is_product(args[0]):
            return self._folded(args, kwargs)
        if func in _ACTIVATIONS:
            return self._activation(func, args, kwargs)
        return func(*args, **kwargs)

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        inputs, weight, offset = given.pop("input"), given.pop("weight"), given.pop("bias", None)

        def multiply(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            return func(x, w, b, **given)  # type: ignore[no-any-return]

        return _Positive.apply(inputs, weight, offset, multiply, self._bias)  # type: ignore[no-any-return,no-untyped-call]

    def _is_product(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is what a product returned, with nothing written into it since."""
        made = self._made.get(id(tensor))
        return made is not None and made[0] is tensor and tensor._version == made[1]

    def _activation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        inputs = args[0].clone()
        with torch.no_grad():
            output = func(args[0].clone(), *args[1:], **kwargs)
        handed: torch.Tensor = _HandOn.apply(inputs, output)  # type: ignore[no-untyped-call]
        return args[0].copy_(handed) if _in_place(func, args, kwargs) else handed

    def _folded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The batch norm of a product as a product with other weights."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        norm = dict(zip(names, args, strict=False)) | kwargs
        _, _, func, own, options = self._made[id(norm["input"])]
        given = dict(
            zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), own, strict=False)
        )
        given |= options
        scale = (norm["running_var"] + norm.get("eps", 1e-5)).rsqrt()
        scale = scale if norm.get("weight") is None else scale * norm["weight"]
        mean = norm["running_mean"] if given.get("bias") is None else norm["running_mean"] - given["bias"]
        shift = -mean * scale if norm.get("bias") is None else norm["bias"] - mean * scale
        given["weight"] = given["weight"] * scale.view(-1, *[1] * (given["weight"].ndim - 1))
        return self._product(func, (), given | {"bias": shift})


def _as_linear(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A product with a parameter, however it is spelled, as `torch.nn.functional.linear`."""
    if func in (torch.addmm, torch.Tensor.addmm) and not kwargs and isinstance(args[2], torch.nn.Parameter):
        return _F.linear, (args[1], args[2].T, args[0]), {}
    plain = func in (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
    if plain and len(args) == 2 and isinstance(args[1], torch.nn.Parameter) and args[1].ndim == 2:
        return _F.linear, (args[0], args[1].T), {}
    return func, args, kwargs


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an activation writes into what it is given."""
    try:
        return bool(inspect.signature(func).bind(*args, **kwargs).arguments.get("inplace", False))
    except ValueError:  # built in, without such an option
        return False


def _between_activations(args: tuple[Any, ...]) -> bool:
    """Whether two of the factors were computed from the input."""
    return sum(isinstance(value, torch.Tensor) and value.grad_fn is not None for value in args) > 1


class _HandOn(torch.autograd.Function):
    """An activation y = f(x): what it gets it hands on, so that x' gradient is y' times y / x."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs, output)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        inputs, output = ctx.saved_tensors
        safe = torch.where(inputs == 0.0, 1.0, inputs)
        return gradients[0] * torch.where(inputs == 0.0, 0.0, output / safe), None


class _Positive(torch.autograd.Function):
    """A product with weights, whose inputs share the output's relevance by their positive contributions."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        offset: Any,
        multiply: Callable[..., Any],
        bias: bool,
    ) -> torch.Tensor:
        output = multiply(inputs, weight, offset)
        ctx.save_for_backward(
            inputs, weight, offset if bias else None, output.clone()
        )  # what follows may be in place
        ctx.multiply = multiply
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        inputs, weight, offset, output = ctx.saved_tensors
        positive, negative = weight.detach().clamp(min=0.0), weight.detach().clamp(max=0.0)
        with torch.enable_grad():
            above = inputs.detach().clamp(min=0.0).requires_grad_()
            below = inputs.detach().clamp(max=0.0).requires_grad_()
            shares = ctx.multiply(above, positive, None if offset is None else offset.clamp(min=0.0))
            shares = shares + ctx.multiply(below, negative, None)
        positive_part = shares.detach() > 0.0  # elsewhere nothing spoke for the output
        relevance = torch.where(
            positive_part, gradients[0] * output / torch.where(positive_part, shares.detach(), 1.0), 0.0
        )
        parts = torch.autograd.grad(shares, (above, below), relevance)
        return torch.where(inputs >= 0.0, *parts), None, None, None, None
