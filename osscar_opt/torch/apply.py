"""Write a solution's refitted weights back into a torch layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch.layers import find_layer, view_of

if TYPE_CHECKING:
    from osscar_opt.formulations.solution import Solution

__all__ = ["apply_solution"]


def apply_solution(solution: Solution, target: torch.nn.Module, name: str | None = None) -> None:
    """Mask a layer: kept rows get the refitted weights, removed rows are exactly zero, shapes stay.

    Weights are written in place, in the layer's dtype and on its device; a bias is left alone.

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
        When the layer is missing or not supported, its shape is not that of the solution, its weight is
        shared with another module of the model, or a weight does not fit its dtype; nothing was written then.

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
    view = view_of(layer, label)
    support = solution.problem.groups.row_mask(solution.support)  # (p,)
    weights = np.where(support[:, None], solution.weights, 0.0)  # zeros exact, whatever the refit left
    if weights.shape != (view.width, view.outputs):
        raise LayerError(
            f"the solution has weights of shape {weights.shape} (inputs by outputs) but {label} has "
            f"{(view.width, view.outputs)}: apply it to the layer it was extracted from."
        )
    if name is not None:
        _refuse_shared(target, layer, label)
    cast = torch.from_numpy(weights).to(view.dtype)
    if not bool(torch.isfinite(cast).all()):
        raise LayerError(
            f"refitted weights of {label} do not fit {view.dtype}: convert the layer to a wider dtype first."
        )
    view.write_weight(cast)


def _refuse_shared(model: torch.nn.Module, layer: torch.nn.Module, label: str) -> None:
    """Masking a tied weight would change another module too."""
    for path, module in model.named_modules():
        if module is not layer and any(p is layer.weight for p in module.parameters(recurse=False)):
            raise LayerError(
                f"{label} shares its weight with {path}, which masking would change too: give the layer "
                "a copy of its own (layer.weight = torch.nn.Parameter(layer.weight.clone())) first."
            )
