"""Write a solution's refitted weights back into a torch layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.layers import find_layer, view_of

if TYPE_CHECKING:
    from osscar_opt.formulations.solution import Solution

__all__ = ["apply_solution", "write_layer"]


def apply_solution(solution: Solution, target: torch.nn.Module, name: str | None = None) -> None:
    """Mask a layer: kept rows get the refitted weights, removed rows are exactly zero, shapes stay.

    Weights are written in place, in the layer's dtype and on its device. The bias becomes the solution's intercept
    if the problem was posed with one, and is left alone otherwise.

    Parameters
    ----------
    solution : Solution
        Of a problem extracted from this layer.
    target : torch.nn.Module
        The layer, or with `name` the model that holds it.
    name : str, optional
        The layer's dotted name in the model.

    Raises
    ------
    LayerError
        When the layer is missing or not supported, its shape is not that of the solution, its weight or bias is
        shared with another module of the model, there is an intercept and no bias to hold it, or a number does not fit
        the layer's dtype; nothing was written then.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import problem_from_layer
    >>> layer = torch.nn.Linear(8, 3)
    >>> inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    >>> solution = problem_from_layer(layer, inputs, keep=4).solve("greedy")
    >>> apply_solution(solution, layer)
    >>> int((layer.weight != 0).any(dim=0).sum())
    4
    """
    layer = target if name is None else find_layer(target, name)
    label = name or "the layer"
    view_of(layer, label)  # an unsupported kind is told before a shared weight
    if name is not None:
        _refuse_shared(target, layer, label, with_bias=solution.intercept is not None)
    support = solution.problem.groups.row_mask(solution.support)  # (p,)
    weights = np.where(support[:, None], solution.weights, 0.0)  # zeros exact, whatever the refit left
    write_layer(layer, weights, solution.intercept, label)


def write_layer(
    layer: torch.nn.Module, weights: FloatArray, bias: FloatArray | None = None, name: str = "the layer"
) -> None:
    """Write weights (p, q), and a bias (q,) unless it is None, in the layer's dtype and on its device.

    Parameters
    ----------
    layer : torch.nn.Module
        A layer that `osscar_opt.torch.view_of` supports.
    weights : (p, q) array
    bias : (q,) array, optional
    name : str, optional
        Name of the layer, for the sentences of errors.

    Raises
    ------
    LayerError
        When the shapes are not the layer's, there is no bias to write to, or a number does not fit the dtype; nothing
        was written then.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2)
    >>> write_layer(layer, np.zeros((3, 2)), np.ones(2))
    >>> layer(torch.ones(3)).tolist()
    [1.0, 1.0]
    """
    view = view_of(layer, name)
    if weights.shape != (view.width, view.outputs):
        raise LayerError(
            f"the solution has weights of shape {weights.shape} (inputs by outputs) but {name} has "
            f"{(view.width, view.outputs)}: apply it to the layer it was extracted from."
        )
    if bias is not None and not view.has_bias:
        raise LayerError(
            f"the solution has an intercept but {name} has no bias to hold it: extract the problem with "
            f"intercept=False, or give the layer one (layer.bias = torch.nn.Parameter(torch.zeros({view.outputs})))."
        )
    cast = _cast(weights, view.dtype, f"refitted weights of {name}")
    level = None if bias is None else _cast(bias, view.dtype, f"the refitted bias of {name}")
    view.write_weight(cast)
    if level is not None:
        view.write_bias(level)


def _cast(values: FloatArray, dtype: torch.dtype, what: str) -> torch.Tensor:
    cast = torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise LayerError(f"{what} do not fit {dtype}: convert the layer to a wider dtype first.")
    return cast


def _refuse_shared(model: torch.nn.Module, layer: torch.nn.Module, label: str, *, with_bias: bool) -> None:
    """Masking a tied weight would change another module too."""
    for what in ("weight", "bias") if with_bias else ("weight",):
        own = getattr(layer, what, None)
        for path, module in model.named_modules():
            if module is not layer and any(p is own for p in module.parameters(recurse=False)):
                raise LayerError(
                    f"{label} shares its {what} with {path}, which masking would change too: give the layer "
                    f"a copy of its own (layer.{what} = torch.nn.Parameter(layer.{what}.clone())) first."
                )
