"""From one watched run to sites: classes of channels, and the parameters along whose axes they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch

from osscar_opt._typing import IntArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.batches import Batches
from osscar_opt.torch.collect import each_batch
from osscar_opt.torch.coupling.channels import Channels, Classes
from osscar_opt.torch.coupling.sites import Coupling, Kind, Refusal, Site, Slice
from osscar_opt.torch.coupling.trace import Watch, watch
from osscar_opt.torch.layers import view_of

__all__ = ["trace_coupling"]

_TOKENS = 8  # of a text, enough to see what goes through attention

Key = tuple[str, int]


def trace_coupling(model: torch.nn.Module, batches: Any, *, query_heads: bool = False) -> Coupling:
    """Run a model once on a few rows of a batch and find what goes together in it.

    Two channels are coupled when they meet: in a sum, a product, a norm, a product of queries and keys. A set of
    coupled channels that only supported layers read is a unit; it can go from everything that writes it, follows it
    (norms, depthwise convolutions, biases) and reads it. Units that lie along the same axes of the same parameters
    make a `Site`.

    Parameters
    ----------
    model : torch.nn.Module
        Run in evaluation mode without gradients, and left as it was found.
    batches
        One batch, or an iterable of which the first is taken, as in `osscar_opt.torch.problem_from_layer`.
    query_heads : bool, optional
        Where several query heads share keys and values: make units of query heads, of which equal numbers must stay
        on each, instead of whole groups with their keys and values.

    Returns
    -------
    Coupling

    Raises
    ------
    LayerError
        When there is no batch or the model cannot be run on it.

    Examples
    --------
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3, bias=False),
    ...     torch.nn.BatchNorm2d(8),
    ...     torch.nn.ReLU(),
    ...     torch.nn.Conv2d(8, 8, 3, groups=8),
    ...     torch.nn.Conv2d(8, 5, 1),
    ... )
    >>> site = trace_coupling(model, torch.zeros(1, 3, 9, 9)).sites["4"]
    >>> site.n, site.kind, site.modules
    (8, 'channels', ('0', '1', '3', '4'))
    """
    if not isinstance(model, torch.nn.Module):
        raise LayerError(f"expected a torch module first, got {type(model).__name__}.")
    batch = next(iter(each_batch(batches)), None)
    if batch is None:
        raise LayerError("there were no batches: give one to see what goes together in the model.")
    args, kwargs = Batches(model, [batch]).probe(rows=1, tokens=_TOKENS)
    watched = watch(model, lambda: model(*args, **kwargs), query_heads=query_heads)
    return _Builder(model, watched).coupling()


class _Builder:
    """Sorts what was watched."""

    def __init__(self, model: torch.nn.Module, watched: Watch) -> None:
        self._model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._channels: Channels = watched.channels
        self._classes: Classes = watched.channels.resolve()
        self._watched = watched
        self._axes: dict[Key, IntArray] = {
            key: self._classes[numbers] for key, numbers in self._channels.axes.items()
        }
        self._axes |= self._followers()
        self._touched: dict[int, list[Key]] = {}  # by class: the axes it lies on
        for key, classes in self._axes.items():
            for number in np.unique(classes).tolist():
                if number > 0:
                    self._touched.setdefault(number, []).append(key)
        self._why = self._refusals()

    def coupling(self) -> Coupling:
        sites, refused = [], []
        for classes in self._groups():
            why = self._why.get(classes[0], "")
            producers = self._layers(self._channels.written, classes)
            if not producers:
                continue
            if not why and len(classes) > 1:
                sites.append(self._site(classes, producers))
            else:
                consumers = self._layers(self._channels.read, classes)
                if len(classes) == 1 and classes[0] not in self._classes.frozen:
                    why = "a norm or a product over all of them makes them one"
                refused.append(Refusal(producers, consumers, self._size(classes), why))
        order = {name: place for place, (name, _) in enumerate(self._channels.read)}
        sites.sort(key=lambda site: order[f"{site.name}.weight"])
        seen = {refusal.why for refusal in refused}
        refused += [
            Refusal((where,), (), 0, why) for where, why in self._watched.refusals.items() if why not in seen
        ]
        by_name = {site.name: site for site in sites}
        return Coupling(type(self._model).__name__, by_name, tuple(refused), tuple(self._modules))

    def _size(self, classes: list[int]) -> int:
        """How many channels, counted along the longest axis that they lie on, some classes hold."""
        written = (key for key in self._keys(classes) if key in self._channels.written)
        return max(int(np.isin(self._axes[key], classes).sum()) for key in written)

    def _keys(self, classes: list[int]) -> dict[Key, None]:
        """The axes that some classes lie on."""
        return dict.fromkeys(key for number in classes for key in self._touched[number])

    # ------------------------------------------------------------------------------------------------- followers

    def _followers(self) -> dict[Key, IntArray]:
        """Axes of parameters used entry by entry whose every index met channels of one class only."""
        found: dict[Key, IntArray] = {}
        links = self._channels.links
        classes = self._classes.of[links[1]] if links.size else links[0]
        for name, numbers in self._channels.elements.items():
            first = int(numbers.reshape(-1)[0]) if numbers.numel() else 0
            mine = (links[0] <= first) & (links[0] > first - numbers.numel())
            if not mine.any() or numbers.ndim == 0:
                continue
            places = np.unravel_index(first - links[0, mine], tuple(numbers.shape))
            for axis, size in enumerate(numbers.shape):
                along = _one_class_each(places[axis], classes[mine], size)
                if along is not None and size > 1:
                    found[name, axis] = along
        return found

    # -------------------------------------------------------------------------------------------------- refusals

    def _refusals(self) -> dict[int, str]:
        """Classes that must stay: those the run says so of, those that something unsupported reads, and loose ends."""
        why = dict(self._classes.frozen)
        for key in self._channels.read:
            name = key[0].rpartition(".")[0]
            reason = self._unsupported(key)
            if reason:
                for number in np.unique(self._axes[key]):
                    why.setdefault(int(number), f"{name} reads them, {reason}")
        for number, keys in self._touched.items():
            if not any(key in self._channels.read for key in keys):
                why.setdefault(number, "no layer reads them")
            elif not any(key in self._channels.written for key in keys):
                why.setdefault(number, "no layer writes them")
        return why

    def _unsupported(self, key: Key) -> str:
        """Why a layer that reads channels cannot be refitted; empty if it can."""
        owner, _, leaf = key[0].rpartition(".")
        module = self._modules.get(owner)
        if leaf != "weight" or module is None:
            return f"and {leaf} is not the weight of a layer"
        try:
            view = view_of(module, owner)
        except LayerError:
            return f"a {type(module).__name__}, which cannot be refitted"
        if view.channels != len(self._axes[key]):
            return "which is used in another way than its kind of layer is"
        return ""

    # ---------------------------------------------------------------------------------------------------- groups

    def _groups(self) -> list[list[int]]:
        """Classes that lie along the same axes, those of a common consumer joined; all refused or none of a group."""
        by_signature: dict[tuple[Any, ...], list[int]] = {}
        for number, keys in self._touched.items():
            why = self._why.get(number, "")
            by_signature.setdefault((why, tuple(sorted(keys))), []).append(number)
        groups: list[tuple[set[Key], list[int]]] = []
        for (why, keys), numbers in by_signature.items():
            consumers = set() if why else {key for key in keys if key in self._channels.read}
            joined = [group for group in groups if group[0] & consumers]
            groups = [group for group in groups if not group[0] & consumers]
            for other in joined:
                consumers |= other[0]
                numbers = other[1] + numbers
            groups.append((consumers, numbers))
        return [numbers for _, numbers in groups]

    # ----------------------------------------------------------------------------------------------------- sites

    def _site(self, classes: list[int], producers: tuple[str, ...]) -> Site:
        keys, wanted = self._keys(classes), set(classes)
        reads = [key for key in self._channels.read if key in keys]
        met = dict.fromkeys(np.concatenate([self._axes[key] for key in reads]).tolist())
        ordered = [number for number in met if number in wanted]
        unit_of = np.full(int(self._classes.of.max()) + 1, -1, dtype=np.intp)
        unit_of[ordered] = np.arange(len(ordered))
        slices = tuple(Slice(name, axis, unit_of[self._axes[name, axis]]) for name, axis in keys)
        consumers = {key[0].rpartition(".")[0]: unit_of[self._axes[key]] for key in reads}
        return Site(
            name=next(iter(consumers)),
            kind=self._kind(ordered, consumers),
            n=len(ordered),
            consumers=consumers,
            producers=producers,
            slices=slices,
            blocks=self._blocks(ordered),
        )

    def _kind(self, classes: list[int], consumers: Iterable[str]) -> Kind:
        if any(number in self._classes.attention for number in classes):
            return "heads"
        layers = [self._modules[name] for name in consumers]
        convolutional = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        produced = self._layers(self._channels.written, classes)
        layers += [self._modules[name] for name in produced if name in self._modules]
        return "channels" if any(isinstance(layer, convolutional) for layer in layers) else "neurons"

    def _blocks(self, classes: list[int]) -> IntArray | None:
        """Keys that each query head looks at, where that was asked for."""
        for pairs in self._channels.groups_of_heads:
            heads, keys = (self._classes[part] for part in pairs)
            known = dict(zip(heads.tolist(), keys.tolist(), strict=True))
            if all(number in known for number in classes):
                _, labels = np.unique([known[number] for number in classes], return_inverse=True)
                return labels.astype(np.intp)
        return None

    def _layers(self, keys: Iterable[Key], classes: list[int]) -> tuple[str, ...]:
        """Names of the layers among `keys` whose axis holds one of the classes."""
        lies_on = self._keys(classes)
        return tuple(dict.fromkeys(key[0].rpartition(".")[0] for key in keys if key in lies_on))


def _one_class_each(places: IntArray, classes: IntArray, size: int) -> IntArray | None:
    """Class met at each place along an axis; None if a place met several, or none met any."""
    low = np.full(size, np.iinfo(np.int64).max)
    high = np.zeros(size, dtype=np.int64)
    np.minimum.at(low, places, classes)
    np.maximum.at(high, places, classes)
    if bool(((high > 0) & (low != high)).any()) or not high.any():
        return None
    return cast("IntArray", high)
