"""Take out of a model what its pruned sites no longer need: parameters get shorter, and modules are told."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import BoolArray
from osscar_opt.errors import InputError, LayerError
from osscar_opt.torch.coupling.sites import Coupling, Site

__all__ = ["Shrunk", "shrink"]

# What modules call the number of heads, of heads with keys and values, and of queries on each of these; and widths that
# are cut or reshaped by. Only these, and only where the old value fits, are changed.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_QUERIES_ON_A_KEY = ("num_key_value_groups", "num_queries_per_kv", "n_rep")
_HEAD_WIDTHS = ("all_head_size", "split_size", "inner_dim")
_NEURON_WIDTHS = ("intermediate_size", "ffn_dim", "hidden_features", "intermediate_dim", "d_ff")


class Shrunk:
    """What `shrink` did; holds the model's former parts until it is let go.

    Attributes
    ----------
    before, after : int
        Parameters of the model, shared ones counted once.

    Examples
    --------
    >>> from osscar_opt.torch import shrink, trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> done = shrink(model, trace_coupling(model, torch.zeros(1, 5)), {"2": [True, False, True, True]})
    >>> done.before, done.after
    (39, 30)
    """

    def __init__(self, before: int) -> None:
        self.before = before
        self.after = before
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put the former parts back.

        Examples
        --------
        >>> from osscar_opt.torch import shrink, trace_coupling
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> done = shrink(model, trace_coupling(model, torch.zeros(1, 5)), {"2": [True, False, True, True]})
        >>> done.undo()
        >>> model[0]
        Linear(in_features=5, out_features=4, bias=True)
        """
        while self._undo:
            self._undo.pop()()
        self.after = self.before

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, remembering the old value."""
        old = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, old))
        setattr(owner, name, value)


def shrink(model: torch.nn.Module, coupling: Coupling, supports: Mapping[str, Any]) -> Shrunk:
    """Remove units for good: producers and consumers get smaller, in place.

    Whatever the consumers' weights in the removed rows were is gone: to keep what the model computes they must be
    zero (`osscar_opt.torch.prune_model` sees to it, and to the comparison of both). Where all units that one of several
    producers writes would go, one of them stays, with its zero rows: no layer can have no outputs.

    Parameters
    ----------
    model : torch.nn.Module
    coupling : Coupling
        Of this model as it is now.
    supports : mapping of str to (n,) mask
        For sites by name: the units that stay.

    Returns
    -------
    Shrunk
        Can be undone.

    Raises
    ------
    LayerError
        When there is no such site, nothing of it would stay, or the model is not the one that was traced.
    InputError
        When a mask has another length than the site has units, or unequal numbers stay where they must be equal.

    Examples
    --------
    >>> import torch
    >>> from osscar_opt.torch import shrink, trace_coupling
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> coupling = trace_coupling(model, torch.zeros(1, 5))
    >>> shrink(model, coupling, {"2": [True, False, True, False]}).after
    21
    >>> model[0]
    Linear(in_features=5, out_features=2, bias=True)
    """
    masks = {
        site: _none_empty(coupling.sites[site], support)
        for name, support in supports.items()
        for site in coupling.select(name)
    }
    kept = _kept_indices(model, coupling, masks)
    done = Shrunk(_count(model))
    homes = _homes(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    try:
        for name, axes in kept.items():
            tensor = homes[name][0]
            shorter = _shorter(tensor, axes)
            for owner, leaf in homes[name][1]:
                _replace(done, owner, leaf, shorter)
        for name in kept:
            for owner, _ in homes[name][1]:
                _resize(done, owner)
        for name, mask in masks.items():
            _renumber(done, modules, coupling.sites[name], int(mask.sum()))
    except BaseException:
        done.undo()
        raise
    done.after = _count(model)
    return done


def _checked(site: Site, support: Any) -> BoolArray:
    mask = np.array(support, dtype=bool)
    if mask.shape != (site.n,):
        raise InputError(
            f"the support of {site.name} has shape {mask.shape}, but the site has {site.n} units."
        )
    if not mask.any():
        raise LayerError(f"nothing of {site.name} would stay: keep at least one of its {site.n} units.")
    if (
        site.blocks is not None
        and len(set(np.bincount(site.blocks[mask], minlength=site.blocks.max() + 1))) > 1
    ):
        raise InputError(
            f"{site.name} needs equal numbers of {site.kind} in each of its groups to be shrunk."
        )
    return mask


def _none_empty(site: Site, support: Any) -> BoolArray:
    """The checked mask, and one more unit for each layer that would have none: no layer can have an empty axis.

    That unit's rows are zero in the consumers, so it changes nothing.
    """
    mask = _checked(site, support)
    for part in site.slices:
        if (part.units >= 0).all() and not mask[part.units].any():
            mask[part.units[0]] = True
    return mask


def _kept_indices(
    model: torch.nn.Module, coupling: Coupling, masks: Mapping[str, BoolArray]
) -> dict[str, dict[int, BoolArray]]:
    """For each parameter and axis, what stays."""
    sizes = {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    kept: dict[str, dict[int, BoolArray]] = {}
    for site_name, mask in masks.items():
        for part in coupling.sites[site_name].slices:
            shape = sizes.get(part.parameter, ())
            if part.axis >= len(shape) or shape[part.axis] != len(part.units):
                raise LayerError(
                    f"{part.parameter} has shape {tuple(shape)}, not {len(part.units)} along axis {part.axis}: "
                    "the coupling was traced before the model changed, so trace it again."
                )
            stays = (part.units < 0) | mask[np.maximum(part.units, 0)]
            axes = kept.setdefault(part.parameter, {})
            axes[part.axis] = axes.get(part.axis, np.ones(len(stays), dtype=bool)) & stays
    return kept


def _homes(model: torch.nn.Module) -> dict[str, tuple[torch.Tensor, list[tuple[torch.nn.Module, str]]]]:
    """Every parameter and buffer by its first name, with all the modules that hold it."""
    found: dict[int, tuple[str, torch.Tensor, list[tuple[torch.nn.Module, str]]]] = {}
    for path, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for leaf, tensor in own:
            name = f"{path}.{leaf}" if path else leaf
            found.setdefault(id(tensor), (name, tensor, []))[2].append((module, leaf))
    return {name: (tensor, homes) for name, tensor, homes in found.values()}


def _shorter(tensor: torch.Tensor, axes: Mapping[int, BoolArray]) -> torch.Tensor:
    part = tensor.detach()
    for axis, stays in axes.items():
        index = torch.from_numpy(np.flatnonzero(stays)).to(part.device)
        part = part.index_select(axis, index)
    part = part.contiguous()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(part, requires_grad=tensor.requires_grad)
    return part


def _replace(done: Shrunk, owner: torch.nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    table = owner._parameters if leaf in owner._parameters else owner._buffers
    old = table[leaf]

    def back() -> None:
        table[leaf] = old  # type: ignore[assignment]

    done._undo.append(back)
    table[leaf] = tensor  # type: ignore[assignment]


def _resize(done: Shrunk, module: torch.nn.Module) -> None:
    """Make a layer's own numbers those of its parameters."""
    sizes: dict[str, int] = {}
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        if isinstance(module, torch.nn.Linear):
            sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(module, torch.nn.modules.conv._ConvNd):
            depthwise = module.groups == module.in_channels and module.groups > 1
            if depthwise:
                each = module.out_channels // module.in_channels
                inputs = weight.shape[0] // each
                sizes = {"out_channels": weight.shape[0], "in_channels": inputs, "groups": inputs}
            else:
                sizes = {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}
        elif isinstance(module, torch.nn.Embedding):
            sizes = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
        elif type(module).__name__ == "Conv1D":
            sizes = {"nx": weight.shape[0], "nf": weight.shape[1]}
    if isinstance(module, torch.nn.modules.batchnorm._NormBase):
        vector = module.running_mean if module.running_mean is not None else module.weight
        if vector is not None:
            sizes = {"num_features": len(vector)}
    for name, size in sizes.items():
        if isinstance(getattr(module, name, None), int) and getattr(module, name) != size:
            done.set(module, name, int(size))


def _renumber(done: Shrunk, modules: Mapping[str, torch.nn.Module], site: Site, kept: int) -> None:
    """Change the numbers of heads or neurons that the modules around a site hold."""
    if kept == site.n:
        return
    for path in _around(site):
        module = modules.get(path)
        if module is None:
            continue
        _scale(done, module, _NEURON_WIDTHS, site, kept, exact=True)
        if site.kind != "heads":
            continue
        names = (*_HEADS, *_HEAD_WIDTHS, *(_KEY_HEADS if site.blocks is None else _QUERIES_ON_A_KEY))
        _scale(done, module, names, site, kept)
        _own_config(done, module, names, site, kept)


def _around(site: Site) -> list[str]:
    """The modules that hold the site's layers, up to the innermost one that holds them all."""
    layers = [*site.producers, *site.consumers]
    parts = [layer.split(".")[:-1] for layer in layers]
    common = 0
    while all(len(p) > common for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    paths = {".".join(p[:end]) for p in parts for end in range(common, len(p) + 1)}
    return sorted(paths)


def _scale(
    done: Shrunk, owner: Any, names: tuple[str, ...], site: Site, kept: int, *, exact: bool = False
) -> None:
    for name in names:
        old = vars(owner).get(name)
        if not isinstance(old, int) or isinstance(old, bool):
            continue
        if old == site.n if exact else old > 0 and old * kept % site.n == 0:
            done.set(owner, name, old * kept // site.n)


def _own_config(done: Shrunk, module: torch.nn.Module, names: tuple[str, ...], site: Site, kept: int) -> None:
    """Some attentions ask the model's configuration for the number of heads while they run: give them a copy."""
    config = vars(module).get("config")
    code = getattr(type(module).forward, "__code__", None)
    if config is None or code is None:
        return
    used = tuple(name for name in names if name in code.co_names and name in vars(config))
    if "config" in code.co_names and used:
        done.set(module, "config", copy.copy(config))
        _scale(done, module.config, used, site, kept)


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
