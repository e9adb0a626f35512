"""Numbers for channels, and the record of which of them turned out to be one.

While a model runs once, every tensor that depends on its weights has a companion of the same shape that holds, for each
entry, the number of the channel it belongs to. Zero stands for no channel: a constant, or padding. Negative numbers
stand for the entries of parameters that are neither matrices nor kernels, such as the weights of a norm: they follow
the channels they meet.

Operations then say one of three things: two channels are one (`unite`: a residual sum, a gate, a norm over both), a
channel scales several others (`share`), or a channel must stay (`freeze`). `resolve` draws the conclusions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Channels", "Classes", "compact"]

_SHIFT = 32  # two numbers in one 64-bit key
_FOLLOWED_ENTRIES = 4_000_000  # a parameter with more entries that is no matrix or kernel is not followed


def compact(*numbers: torch.Tensor) -> list[torch.Tensor]:
    """Views of equally shaped companions without the axes along which all of them are constant by construction.

    Examples
    --------
    >>> [part.shape for part in compact(torch.arange(3).expand(500, 3), torch.zeros(3).expand(500, 3))]
    [torch.Size([1, 3]), torch.Size([1, 3])]
    """
    parts = list(numbers)
    for axis in range(parts[0].ndim):
        if parts[0].shape[axis] > 1 and all(part.stride(axis) == 0 for part in parts):
            parts = [part.narrow(axis, 0, 1) for part in parts]
    return parts


@dataclass(frozen=True)
class Classes:
    """What is left when everything that turned out to be one has one number.

    Attributes
    ----------
    of : ndarray
        Class of every channel number; `of[0]` is no class.
    frozen : dict of int to str
        Classes that must stay, and why.
    attention : frozenset of int
        Classes that went through a product of two activations.
    """

    of: NDArray[np.int64]
    frozen: dict[int, str]
    attention: frozenset[int]

    def __getitem__(self, numbers: torch.Tensor | NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of channel numbers, 0 for none and for negative numbers."""
        values = np.asarray(numbers)
        return np.where(values > 0, self.of[np.maximum(values, 0)], 0)


@dataclass
class Channels:
    """The record of one run.

    Attributes
    ----------
    axes : dict
        Channel numbers along an axis of a parameter or buffer, by its name and axis.
    elements : dict
        Negative numbers of the entries of a parameter or buffer that is used entry by entry, by its name.
    read, written : dict
        Axes of weights along which inputs are read, and outputs written, in the order in which they were met.

    Examples
    --------
    >>> channels = Channels()
    >>> up, down = channels.axis("up", 0, 3), channels.axis("down", 1, 3)
    >>> channels.unite(up, down)
    >>> classes = channels.resolve()
    >>> bool((classes[up] == classes[down]).all())
    True
    """

    axes: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    elements: dict[str, torch.Tensor] = field(default_factory=dict)
    read: dict[tuple[str, int], None] = field(default_factory=dict)
    written: dict[tuple[str, int], None] = field(default_factory=dict)
    groups_of_heads: list[torch.Tensor] = field(default_factory=list)
    _next: int = 1
    _lowest: int = -1
    _united: list[NDArray[np.int64]] = field(default_factory=list)
    _shared: list[NDArray[np.int64]] = field(default_factory=list)
    _links: list[NDArray[np.int64]] = field(default_factory=list)
    _frozen: list[tuple[torch.Tensor, str]] = field(default_factory=list)
    _attention: list[torch.Tensor] = field(default_factory=list)
    _shapes: list[torch.Tensor] = field(default_factory=list)
    _fixed: list[tuple[torch.Tensor, int]] = field(default_factory=list)

    def axis(self, name: str, axis: int, size: int) -> torch.Tensor:
        """Channel numbers along an axis of a parameter, new ones on the first call."""
        if (name, axis) not in self.axes:
            self.axes[name, axis] = torch.arange(self._next, self._next + size)
            self._next += size
        return self.axes[name, axis]

    def entries(self, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        """Negative numbers for the entries of a parameter; None if it is too large to be one that follows."""
        if name not in self.elements and parameter.numel() <= _FOLLOWED_ENTRIES:
            last = self._lowest - parameter.numel()
            self.elements[name] = torch.arange(self._lowest, last, -1).reshape(parameter.shape)
            self._lowest = last
        return self.elements.get(name)

    def unite(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Channels at the same place are one; a parameter's entry follows the channel at its place."""
        pairs = _pairs(one, other)
        self._united.append(self._of_channels(pairs))

    def share(self, one: torch.Tensor, many: torch.Tensor) -> None:
        """`one` acts on several channels: unless they turn out to be one with it, it must stay."""
        pairs = _pairs(one, many)
        self._shared.append(self._of_channels(pairs))

    def _of_channels(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs of two channels; those of a channel with a parameter's entry are noted by the way."""
        channels = (pairs > 0).all(axis=0)
        mixed = (pairs > 0).any(axis=0) & ~channels
        if mixed.any():
            self._links.append(np.sort(pairs[:, mixed], axis=0))  # (entry, channel)
        return pairs[:, channels]

    def freeze(self, numbers: torch.Tensor, why: str) -> None:
        """These channels must stay."""
        (part,) = compact(numbers)
        found = torch.unique(part[part > 0])
        if len(found):
            self._frozen.append((found, why))

    def through_attention(self, numbers: torch.Tensor) -> None:
        """These channels went through a product of two activations."""
        (part,) = compact(numbers)
        self._attention.append(torch.unique(part[part > 0]))

    def one_axis(self, numbers: torch.Tensor) -> None:
        """Remember a new shape: channels that differ along two of its axes cannot be removed one by one."""
        (part,) = compact(numbers)
        if sum(size > 1 for size in part.shape) > 1:
            self._shapes.append(part)

    def fixed(self, numbers: torch.Tensor, axis: int) -> None:
        """Remember an axis that cannot get shorter: channels that differ along it must stay."""
        (part,) = compact(numbers)
        if part.shape[axis] > 1:
            self._fixed.append((part, axis))

    @property
    def links(self) -> NDArray[np.int64]:
        """Pairs (entry of a parameter, channel) in two rows."""
        return np.unique(_joined(self._links), axis=1)

    def resolve(self) -> Classes:
        """Draw the conclusions."""
        pairs = _joined(self._united)
        ones = np.ones(pairs.shape[1], dtype=np.int8)
        _, of = connected_components(coo_array((ones, (pairs[0], pairs[1])), shape=(self._next, self._next)))
        of = of.astype(np.int64) + 1
        of[0] = 0
        frozen: dict[int, str] = {}
        for numbers, why in self._frozen:
            for number in np.unique(of[numbers.numpy()]):
                frozen.setdefault(int(number), why)
        shared = of[_joined(self._shared)]
        for number in np.unique(shared[0, shared[0] != shared[1]]):
            frozen.setdefault(int(number), "they scale several channels at once")
        for shape in self._shapes:
            for number in _on_two_axes(np.where(shape.numpy() > 0, of[np.maximum(shape.numpy(), 0)], 0)):
                frozen.setdefault(number, "they are laid out along two axes of a tensor")
        for part, axis in self._fixed:
            for number in _along(np.where(part.numpy() > 0, of[np.maximum(part.numpy(), 0)], 0), axis):
                frozen.setdefault(number, "they meet a tensor of a fixed size")
        attention = frozenset(int(n) for part in self._attention for n in np.unique(of[part.numpy()]))
        return Classes(of=of, frozen=frozen, attention=attention)


def _pairs(one: torch.Tensor, other: torch.Tensor) -> NDArray[np.int64]:
    """Distinct pairs of different numbers, zeros left out, in two rows."""
    shape = np.broadcast_shapes(one.shape, other.shape)
    a, b = (part.numpy().ravel() for part in compact(one.expand(shape), other.expand(shape)))
    use = (a != 0) & (b != 0) & (a != b)
    a, b = a[use], b[use]
    half = 1 << (_SHIFT - 1)
    keys = np.unique((a << _SHIFT) + (b + half))
    return np.stack([keys >> _SHIFT, (keys & ((1 << _SHIFT) - 1)) - half])


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts, axis=1) if parts else np.empty((2, 0), dtype=np.int64)


def _on_two_axes(classes: NDArray[np.int64]) -> list[int]:
    """Classes of an array that varies along more than one axis, wherever it has any."""
    varying = [axis for axis in range(classes.ndim) if _along(classes, axis)]
    return [int(number) for number in np.unique(classes) if number > 0] if len(varying) > 1 else []


def _along(classes: NDArray[np.int64], axis: int) -> list[int]:
    """Classes of an array that varies along an axis, wherever it has any; none if it does not vary."""
    if not bool(((classes != classes.max(axis=axis, keepdims=True)) & (classes > 0)).any()):
        return []
    return [int(number) for number in np.unique(classes) if number > 0]
