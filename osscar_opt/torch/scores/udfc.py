r"""Inner products of the filters that make a site's units: what UDFC tells redundant channels by.

With a layer's row for unit u after folding its batch norm in, v_u = (gamma_u w_u / sigma_u, shift), and several layers
one after another (an expansion and a depthwise convolution) or multiplied with each other (gate and up), whose linear
parts compose to the Kronecker product of their filters,

.. math::

    \Gamma_{uv} = \prod_{\ell} \bigl( v^{\ell}_u \cdot v^{\ell}_v \bigr) .

What lies between, activations above all, is taken for linear, as UDFC does (see `osscar_opt.solvers.published.udfc`).
The product over several layers is ours: the paper's channels are made by one. Layers whose outputs are added (a
residual sum) would have the sum of their inner products; they are not told apart: do not take this rule for such sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.coupling import Coupling, Site, Slice
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.scores._sites import (
    Material,
    filters,
    layer_name,
    parameters_of,
    prepare,
    writing_weights,
)

__all__ = ["filter_gram"]


def filter_gram(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
) -> PerProblem:
    """Inner products of the filters of each site's units.

    Parameters
    ----------
    model, batches, coupling, sites
        As for `osscar_opt.torch.scores.taylor_scores`; the batches are only looked at to find the sites.

    Returns
    -------
    PerProblem
        For each site an array (n, n); what the option ``filters`` of method ``"udfc"`` takes.

    Raises
    ------
    LayerError
        When a name fits no site, or a unit of a site has several channels, such as a head.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    >>> filter_gram(model, torch.ones(2, 2))["2"]
    array([[1., 0., 1.],
           [0., 4., 2.],
           [1., 2., 2.]])
    """
    material = prepare(model, batches, coupling, sites)
    return PerProblem({name: _gram(material, site) for name, site in material.sites.items()}, rule="udfc")


def _gram(material: Material, site: Site) -> FloatArray:
    model, product = material.model, np.ones((site.n, site.n))
    parts = list(writing_weights(model, site))
    norms = _norms(material, site)
    biases = {p.parameter: (p, value) for p, value in parameters_of(model, site.slices) if value.ndim == 1}
    for part, parameter in parts:
        layer = layer_name(part.parameter)
        if np.bincount(np.asarray(part.units)[np.asarray(part.units) >= 0]).max() > 1:
            raise LayerError(
                f"the {site.kind} of {site.name} have several channels each, which no filters combine to: udfc is for "
                "neurons and channels."
            )
        rows = filters(site, part, parameter).numpy()
        bias = biases.get(f"{layer}.bias")
        shift = np.zeros(site.n) if bias is None else _of_units(bias[1], bias[0], site.n)
        scale, offset = norms.get(layer, (np.ones(site.n), np.zeros(site.n)))
        rows, shift = rows * scale[:, None], shift * scale + offset
        product *= rows @ rows.T + np.outer(shift, shift)
    return product


def _norms(material: Material, site: Site) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Scale and offset of the batch norm behind each layer that writes the units."""
    model = material.model
    parts = {layer_name(p.parameter): p for p in site.slices if p.parameter.endswith(".running_var")}
    written: dict[str, torch.Tensor] = {}
    pairs: dict[str, str] = {}

    def after(name: str, output: torch.Tensor) -> None:
        written[name] = output

    def before(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        for layer, output in written.items():
            if inputs and inputs[0] is output:
                pairs.setdefault(layer, name)

    norms = {name: find_layer(model, name) for name in parts}
    norms = {
        name: norm for name, norm in norms.items() if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm)
    }
    handles = [
        find_layer(model, name).register_forward_hook(lambda _, __, output, name=name: after(name, output))
        for name in site.producers
    ] + [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs))
        for name, norm in norms.items()
    ]
    try:
        if norms:
            args, kwargs = material.batches.probe()
            with as_found(model), torch.no_grad():
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    _pair_by_order(site, norms, pairs)
    return {layer: _affine(norms[name], parts[name], site.n) for layer, name in pairs.items()}


def _pair_by_order(site: Site, norms: Mapping[str, Any], pairs: dict[str, str]) -> None:
    """Give a norm that takes no layer's very output, but an activation of it, say, to the last layer before it."""
    last = ""
    for part in site.slices:
        name = layer_name(part.parameter)
        if name in site.producers:
            last = name
        elif last and last not in pairs and name in norms and name not in pairs.values():
            pairs[last] = name


def _affine(norm: Any, part: Slice, n: int) -> tuple[FloatArray, FloatArray]:
    mean, variance = (_of_units(getattr(norm, key), part, n) for key in ("running_mean", "running_var"))
    scale = 1.0 / np.sqrt(variance + norm.eps)
    scale = scale if norm.weight is None else scale * _of_units(norm.weight, part, n)
    bias = np.zeros(n) if norm.bias is None else _of_units(norm.bias, part, n)
    return scale, bias - mean * scale


def _of_units(values: Any, part: Slice, n: int) -> FloatArray:
    """Entries of a vector in the order of the units they belong to."""
    numbers = values.detach().cpu().double().numpy()
    ordered = np.zeros(n)
    units = np.asarray(part.units)
    ordered[units[units >= 0]] = numbers[units >= 0]
    return ordered
