r"""Beta-Rank: a filter's weights times how much it makes its inputs vary, position by position.

With f_u the weights of the layer that writes unit u, sigma_out(u, s) the standard deviation of its output at position
s over the samples of a batch, and sigma_in(s) that of the inputs the filter sees there, over samples, channels and its
window,

.. math:: I_u = \operatorname{mean} |f_u| \; \sum_s \frac{\sigma_{\mathrm{out}}(u, s)}{\sigma_{\mathrm{in}}(s)} ,

scaled to [0, 1] over the units of a layer. M. Homayounfar, M. Koohi-Moghadam, R. Rawassizadeh, V. Vardhanabhuti,
"Beta-Rank: A Robust Convolutional Filter Pruning Method For Imbalanced Medical Image Analysis", 2023 (arXiv
2304.07461), equation 5. The abstract and the published code were read. Where the code cuts its windows along the wrong
axes (it slices the channels in place of the rows), the definition above is followed.

Where several layers write a unit, the scaled scores are averaged. A position where the inputs do not vary is left out.
The zeros around a convolution's input do not count among its inputs; the padding tokens of a text do.

Needs: feature maps of the layers that write the units, before and after.  Updates nothing.  Left out: training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.scores._sites import Material, by_sample, layer_name, per_unit, prepare, writing_weights
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["beta_rank_scores"]


def beta_rank_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
) -> PerProblem:
    """Mean absolute weight of each unit's filter times the sum of its ratios of deviations, within [0, 1].

    Parameters
    ----------
    model, batches, coupling, sites
        As for `osscar_opt.torch.scores.taylor_scores`; ratios are averaged over the batches.

    Returns
    -------
    PerProblem

    Raises
    ------
    LayerError
        When a name fits no site, or no layer with weights writes a site's units.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = beta_rank_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))["2"]
    >>> float(scores.min()), float(scores.max())
    (0.0, 1.0)
    """
    material = prepare(model, batches, coupling, sites)
    writers = {
        name: [
            (layer_name(part.parameter), np.asarray(part.units), _size(parameter, part.axis))
            for part, parameter in writing_weights(model, site)
        ]
        for name, site in material.sites.items()
    }
    ratios = _ratios(material, {layer for layers in writers.values() for layer, _, _ in layers})
    return PerProblem(
        {name: _averaged(material.sites[name].n, layers, ratios) for name, layers in writers.items()},
        rule="beta_rank",
    )


def _averaged(n: int, layers: list[tuple[str, Any, FloatArray]], ratios: dict[str, FloatArray]) -> FloatArray:
    """Scaled scores of each layer's own units, mean over the layers that write a unit."""
    total, count = np.zeros(n), np.zeros(n)
    for layer, units, sizes in layers:
        own = np.unique(units[units >= 0])
        total[own] += _scaled(per_unit(sizes * ratios[layer], units, n)[own])
        count[own] += 1.0
    return np.asarray(total / np.maximum(count, 1.0))


def _size(parameter: torch.Tensor, axis: int) -> FloatArray:
    """Mean absolute weight of each output of a layer."""
    return np.asarray(parameter.detach().double().abs().movedim(axis, 0).flatten(1).mean(1).cpu().numpy())


def _scaled(scores: FloatArray) -> FloatArray:
    low, span = scores.min(), scores.max() - scores.min()
    return np.asarray((scores - low) / span if span > 0.0 else np.zeros_like(scores))


def _ratios(material: Material, names: set[str]) -> dict[str, FloatArray]:
    """Sum over positions of sigma_out / sigma_in for each output of some layers, mean over the batches."""
    layers = {name: find_layer(material.model, name) for name in names}
    total: dict[str, FloatArray] = {}
    spreads: dict[str, torch.Tensor] = {}

    def look(name: str, call: LayerCall) -> None:
        spreads[name] = _input_spread(call, layers[name], samples, name)

    def after(name: str, output: torch.Tensor) -> None:
        values = by_sample(
            output.detach().double(), layers[name], samples, name
        )  # (samples, outputs, positions)
        spread = spreads.pop(name)
        ratio = values.std(0, correction=0) / spread
        total[name] = total.get(name, 0.0) + torch.where(spread > 0.0, ratio, 0.0).sum(-1).cpu().numpy()

    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: after(name, output))
        for name, layer in layers.items()
    ]
    try:
        with as_found(material.model), torch.no_grad(), watch(layers, look):
            for number in range(len(material.batches)):
                samples = material.samples(number)
                if samples < 2:
                    raise LayerError(
                        "beta_rank compares the samples of a batch with each other: give at least two samples a batch."
                    )
                args, kwargs = material.batches.call(number)
                material.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    missing = names - total.keys()
    if missing:
        raise LayerError(
            f"{min(missing)} was never called by itself, so its outputs are not known: choose other sites."
        )
    return {name: value / len(material.batches) for name, value in total.items()}


def _input_spread(call: LayerCall, layer: torch.nn.Module, samples: int, name: str) -> torch.Tensor:
    """Deviation of what the layer sees at each position, over samples, channels and window; broadcasts to outputs.

    Shape (1, positions), or (outputs, positions) where groups of outputs see channels of their own.
    """
    inputs = call.inputs.detach().double()
    if not isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
        return by_sample(inputs, layer, samples, name).std((0, 1), correction=0)[None]
    convolve: Any = (
        torch.nn.functional.conv1d if isinstance(layer, torch.nn.Conv1d) else torch.nn.functional.conv2d
    )
    weight = layer.weight
    window = torch.ones((call.groups, 1, *weight.shape[2:]), dtype=torch.float64, device=inputs.device)
    options = {
        "stride": call.stride,
        "padding": call.padding,
        "dilation": call.dilation,
        "groups": call.groups,
    }

    def summed(values: torch.Tensor) -> torch.Tensor:
        grouped = values.reshape(len(values), call.groups, -1, *values.shape[2:])
        whole: torch.Tensor = convolve(grouped.sum((0, 2))[None], window, **options)
        return whole[0].flatten(1)

    count = summed(torch.ones_like(inputs))  # padding does not count
    mean, square = summed(inputs) / count, summed(inputs**2) / count
    variance = torch.clamp(square - mean**2, min=0.0)
    variance = torch.where(variance > 1e-12 * square, variance, 0.0)  # what is left there is rounding
    return variance.sqrt().repeat_interleave(weight.shape[0] // call.groups, dim=0)
