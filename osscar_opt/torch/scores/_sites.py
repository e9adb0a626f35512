"""What the rules share: sites and batches, sums over units, and what layers are called with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.batches import Batches
from osscar_opt.torch.coupling import Coupling, Site, Slice
from osscar_opt.torch.layers import find_layer
from osscar_opt.torch.plan import hold_and_trace

__all__ = [
    "Material",
    "by_sample",
    "channel_axis",
    "filters",
    "layer_name",
    "parameters_of",
    "per_unit",
    "prepare",
    "writing_weights",
]


class Material:
    """A model, its sites and its batches.

    Attributes
    ----------
    model : torch.nn.Module
    sites : dict of str to Site
    given : list
        The batches as they came, labels and all.
    batches : Batches
    """

    def __init__(self, model: torch.nn.Module, given: list[Any], sites: dict[str, Site]) -> None:
        self.model = model
        self.sites = sites
        self.given = given
        self.batches = Batches(model, given)

    def consumers(self) -> dict[str, torch.nn.Module]:
        """The layers that read the sites' units, by name."""
        return {name: find_layer(self.model, name) for site in self.sites.values() for name in site.consumers}

    @property
    def site_of(self) -> dict[str, str]:
        """The site that each of these layers reads."""
        return {consumer: name for name, site in self.sites.items() for consumer in site.consumers}

    def samples(self, number: int) -> int:
        """How many samples a batch has: the length of its first tensor."""
        args, kwargs = self.batches.call(number)
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        return len(first)


def prepare(
    model: torch.nn.Module,
    batches: Any,
    coupling: Coupling | None,
    sites: str | Sequence[str] | None,
) -> Material:
    """Hold the batches, and find the sites.

    Raises
    ------
    LayerError
        When there are no batches, or a name fits no site.
    """
    if not isinstance(model, torch.nn.Module):
        raise LayerError(f"expected a torch module, got {type(model).__name__}.")
    given, found = hold_and_trace(model, batches, coupling)
    names = set(found.select(sites))
    if not names:
        raise LayerError(
            f"the {found.model} has no site that one layer alone reads: name one of {', '.join(found.sites)}."
            if found.sites
            else f"the {found.model} has no site: there is nothing to score."
        )
    return Material(model, given, {name: site for name, site in found.sites.items() if name in names})


def per_unit(values: FloatArray, units: IntArray, n: int) -> FloatArray:
    """Sum of values over the entries of each of n units; entries of unit -1 are left out."""
    own = units >= 0
    return np.bincount(units[own], weights=values[own], minlength=n).astype(np.float64)


def parameters_of(
    model: torch.nn.Module, slices: Iterable[Slice]
) -> Iterator[tuple[Slice, torch.nn.Parameter]]:
    """The slices that are of parameters; those of buffers are left out."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for part in slices:
        if part.parameter in known:
            yield part, known[part.parameter]


def writing_weights(model: torch.nn.Module, site: Site) -> Iterator[tuple[Slice, torch.nn.Parameter]]:
    """The weights, not biases or norms, of the layers that write a site's units, along the axis of their outputs."""
    found = False
    for part, parameter in parameters_of(model, site.slices):
        name = layer_name(part.parameter)
        if name not in site.producers or parameter.ndim < 2:
            continue
        # a layer that writes units and reads them too has a slice along either axis
        if name in site.consumers and part.axis != _output_axis(find_layer(model, name)):
            continue
        found = True
        yield part, parameter
    if not found:
        raise LayerError(
            f"no layer with weights writes the units of {site.name}: choose other sites, or another rule."
        )


def _output_axis(layer: torch.nn.Module) -> int:
    """Axis of a layer's weight along which its outputs lie: 1 for transformers' Conv1D alone."""
    return 0 if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)) else 1


def filters(site: Site, part: Slice, parameter: torch.Tensor) -> torch.Tensor:
    """All weights that write each unit, flattened in order: shape (n, entries), float64.

    Raises
    ------
    LayerError
        When the units have unequal shares of the parameter.
    """
    rows = parameter.detach().to("cpu", torch.float64).movedim(part.axis, 0).flatten(1)
    units = torch.from_numpy(np.asarray(part.units))
    counts = torch.bincount(units[units >= 0], minlength=site.n)
    if int(counts.min()) != int(counts.max()):
        raise LayerError(
            f"the units of {site.name} have unequal shares of {part.parameter}: choose other sites, or another rule."
        )
    order = torch.argsort(units, stable=True)[int((units < 0).sum()) :]
    return rows[order].reshape(site.n, -1)


def channel_axis(layer: torch.nn.Module) -> int:
    """Axis of a layer's input, or output, along which its channels lie."""
    return 1 if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)) else -1


def by_sample(values: torch.Tensor, layer: torch.nn.Module, samples: int, name: str) -> torch.Tensor:
    """Values of a layer's input as (samples, channels, positions).

    Raises
    ------
    LayerError
        When the input's first axis does not hold the samples one after another.
    """
    moved = values.movedim(channel_axis(layer), -1)
    if moved.ndim < 2 or len(moved) % samples:
        raise LayerError(
            f"{name} is called with inputs of shape {tuple(values.shape)} for {samples} samples, so that nobody can "
            "tell which sample a row belongs to: choose other sites."
        )
    return moved.reshape(samples, -1, moved.shape[-1]).transpose(1, 2)


def layer_name(parameter: str) -> str:
    """Name of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]
