r"""Inner products of the filters that make a site's units: what UDFC tells redundant channels by.

With a layer's row for unit u after folding its batch norm in, v_u = (gamma_u w_u / sigma_u, shift), and several layers
one after another (an expansion and a depthwise convolution) or multiplied with each other (gate and up), whose linear
parts compose to the Kronecker product of their filters,

.. math::

    \Gamma_{uv} = \prod_{\ell} \bigl( v^{\ell}_u \cdot v^{\ell}_v \bigr) .

What lies between, activations above all, is taken for linear, as UDFC does (see `osscar_opt.solvers.published.udfc`).
The product over several layers is ours: the paper's channels are made by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling, Site, Slice
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.scores._sites import filters, is_weight, layer_name, parameters_of, prepare

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
    return PerProblem({name: _gram(model, site) for name, site in material.sites.items()}, rule="filter_gram")


def _gram(model: torch.nn.Module, site: Site) -> FloatArray:
    if any(
        np.bincount(np.asarray(units)[np.asarray(units) >= 0]).max() > 1 for units in site.consumers.values()
    ):
        raise LayerError(
            f"the {site.kind} of {site.name} have several channels each, which no filters combine to: udfc is for "
            "neurons and channels."
        )
    product = np.ones((site.n, site.n))
    found = False
    norms = _norms(model, site)
    biases = {p.parameter: (p, value) for p, value in parameters_of(model, site.slices) if value.ndim == 1}
    for part, parameter in parameters_of(model, site.slices):
        if not is_weight(site, part, parameter):
            continue
        layer = layer_name(part.parameter)
        rows = filters(site, part, parameter).numpy()
        bias = biases.get(f"{layer}.bias")
        shift = np.zeros(site.n) if bias is None else _of_units(bias[1], bias[0], site.n)
        scale, offset = norms.get(layer, (np.ones(site.n), np.zeros(site.n)))
        rows, shift = rows * scale[:, None], shift * scale + offset
        product *= rows @ rows.T + np.outer(shift, shift)
        found = True
    if not found:
        raise LayerError(f"no layer with weights writes the units of {site.name}.")
    return product


def _norms(model: torch.nn.Module, site: Site) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Scale and offset of the batch norm behind each layer that writes the units, in the order of execution."""
    found: dict[str, tuple[FloatArray, FloatArray]] = {}
    last = ""
    for part in site.slices:
        name = layer_name(part.parameter)
        if name in site.producers:
            last = name
            continue
        module = find_layer(model, name)
        whole = part.parameter.endswith(".running_var")
        if (
            not whole
            or not isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            or last in found
            or not last
        ):
            continue
        mean, variance = (
            _of_units(getattr(module, key), part, site.n) for key in ("running_mean", "running_var")
        )
        deviation = np.sqrt(variance + module.eps)
        scale = (
            np.ones(site.n) if module.weight is None else _of_units(module.weight, part, site.n)
        ) / deviation
        bias = np.zeros(site.n) if module.bias is None else _of_units(module.bias, part, site.n)
        found[last] = scale, bias - mean * scale
    return found


def _of_units(values: Any, part: Slice, n: int) -> FloatArray:
    """Entries of a vector in the order of the units they belong to."""
    numbers = values.detach().cpu().double().numpy()
    ordered = np.zeros(n)
    units = np.asarray(part.units)
    ordered[units[units >= 0]] = numbers[units >= 0]
    return ordered
