"""Kinds of layers: where their weights lie, and which of their inputs go together.

A kind enters through one line of `_KINDS`: a test on the module and a view. Everything else in
`osscar_opt.torch` speaks to `LayerView`, in the layout of the library: weights inputs by outputs, one row of
X for each output position.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.groups import Groups
from osscar_opt.torch.convolution import ConvolutionView
from osscar_opt.torch.watch import LayerCall, call_of

__all__ = ["GroupSpec", "LayerView", "find_layer", "row_groups", "view_of"]

GroupSpec = str | int | Sequence[int] | NDArray[Any] | Groups | None


class LayerView(Protocol):
    """A layer as Y = X W + b: its weights in the layout (p, q) and its inputs as rows of X."""

    @property
    def kind(self) -> str:
        """Name of the layer's kind, for provenance and sentences."""
        ...

    @property
    def name(self) -> str:
        """Name of the layer, for sentences."""
        ...

    @property
    def width(self) -> int:
        """Rows p of W."""
        ...

    @property
    def outputs(self) -> int:
        """Columns q of W."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the layer's weights."""
        ...

    @property
    def channels(self) -> int:
        """Input features, or input channels of a convolution: what producers' outputs are matched with."""
        ...

    @property
    def rows_per_channel(self) -> int:
        """Consecutive rows of W that belong to one input channel: 1, or the number of a kernel's positions."""
        ...

    @property
    def conv_groups(self) -> int:
        """Blocks on the diagonal outside which W is zero: the groups of a convolution, else 1."""
        ...

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias to hold an intercept."""
        ...

    def read_weight(self) -> torch.Tensor:
        """Weights (p, q) as float64 on the CPU, a copy."""
        ...

    def write_weight(self, weight: torch.Tensor) -> None:
        """Write weights (p, q) in place, in the layer's dtype and on its device."""
        ...

    def read_bias(self) -> torch.Tensor | None:
        """Bias (q,) as float64 on the CPU, a copy; None without one."""
        ...

    def write_bias(self, bias: torch.Tensor) -> None:
        """Write a bias (q,) in place, in the layer's dtype and on its device."""
        ...

    def row_blocks(self, inputs: torch.Tensor | LayerCall) -> Iterator[torch.Tensor]:
        """Rows of X, shape (rows, p) each, from what the layer's forward takes; in pieces of bounded size."""
        ...

    def positions(self, call: LayerCall) -> tuple[int, ...]:
        """Shape of the rows of a call before they are flattened: (batch, length) for a sequence."""
        ...

    def output_rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """Rows of Y, shape (rows, q), from what the layer's forward returns; in the order of `row_blocks`."""
        ...


@dataclass(frozen=True)
class _MatrixView:
    """A layer that multiplies by one matrix, stored as W (`transposed` False) or as W' (True)."""

    layer: torch.nn.Module
    kind: str
    name: str
    transposed: bool

    @property
    def _parameter(self) -> torch.Tensor:
        parameter = self.layer.weight
        assert isinstance(parameter, torch.Tensor)  # view_of has checked it
        return parameter

    @property
    def _bias(self) -> torch.Tensor | None:
        bias = getattr(self.layer, "bias", None)
        return bias if isinstance(bias, torch.Tensor) else None

    @property
    def width(self) -> int:
        return int(self._parameter.shape[1 if self.transposed else 0])

    @property
    def outputs(self) -> int:
        return int(self._parameter.shape[0 if self.transposed else 1])

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype

    @property
    def channels(self) -> int:
        return self.width

    @property
    def rows_per_channel(self) -> int:
        return 1

    @property
    def conv_groups(self) -> int:
        return 1

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def read_weight(self) -> torch.Tensor:
        stored = self._parameter.detach().cpu().to(torch.float64, copy=True)
        return stored.T.contiguous() if self.transposed else stored

    def write_weight(self, weight: torch.Tensor) -> None:
        with torch.no_grad():
            self._parameter.copy_(weight.T if self.transposed else weight)

    def read_bias(self) -> torch.Tensor | None:
        return None if self._bias is None else self._bias.detach().cpu().to(torch.float64, copy=True)

    def write_bias(self, bias: torch.Tensor) -> None:
        if self._bias is None:
            raise LayerError(f"{self.name} has no bias that could be written.")
        with torch.no_grad():
            self._bias.copy_(bias)

    def row_blocks(self, inputs: torch.Tensor | LayerCall) -> Iterator[torch.Tensor]:
        x = call_of(self.layer, inputs, self.name).inputs.detach()
        if x.ndim == 0 or x.shape[-1] != self.width:
            raise LayerError(f"{self.name} expects inputs of width {self.width}, got shape {tuple(x.shape)}.")
        yield x.reshape(-1, self.width)

    def positions(self, call: LayerCall) -> tuple[int, ...]:
        return tuple(call.inputs.shape[:-1])

    def output_rows(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.reshape(-1, self.outputs)


def _is_linear(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear)


def _is_conv1d(layer: torch.nn.Module) -> bool:
    # by name: transformers is never imported for a model that does not use it
    return any(
        c.__name__ == "Conv1D" and c.__module__.partition(".")[0] == "transformers"
        for c in type(layer).__mro__
    )


def _is_convolution(layer: torch.nn.Module) -> bool:
    return isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d))


def _linear(layer: torch.nn.Module, name: str) -> LayerView:
    return _MatrixView(layer, "torch.nn.Linear", name, transposed=True)


def _conv1d(layer: torch.nn.Module, name: str) -> LayerView:
    return _MatrixView(layer, "transformers Conv1D", name, transposed=False)


def _convolution(layer: torch.nn.Module, name: str) -> LayerView:
    assert isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d))
    return ConvolutionView(layer, f"torch.nn.Conv{len(layer.kernel_size)}d", name)


# name, test, dimensions of the weight, view
_KINDS: tuple[
    tuple[
        str, Callable[[torch.nn.Module], bool], tuple[int, ...], Callable[[torch.nn.Module, str], LayerView]
    ],
    ...,
] = (
    ("torch.nn.Linear", _is_linear, (2,), _linear),
    ("torch.nn.Conv1d, torch.nn.Conv2d", _is_convolution, (3, 4), _convolution),
    ("transformers Conv1D", _is_conv1d, (2,), _conv1d),
)


def view_of(layer: torch.nn.Module, name: str = "the layer") -> LayerView:
    """Return the view through which a layer is read and written.

    Parameters
    ----------
    layer : torch.nn.Module
        A ``torch.nn.Linear``, ``Conv1d`` or ``Conv2d`` (any stride, padding, dilation and groups), or a
        transformers ``Conv1D``, or an instance of a subclass, which may pad by itself.
    name : str, optional
        Name of the layer, for the sentences of errors.

    Returns
    -------
    LayerView

    Raises
    ------
    LayerError
        When the kind of layer is not supported, or its weights are not one plain floating-point array.

    Examples
    --------
    >>> import torch
    >>> view = view_of(torch.nn.Linear(5, 3))
    >>> view.kind, view.width, view.outputs
    ('torch.nn.Linear', 5, 3)
    """
    for _, matches, dims, make in _KINDS:
        if matches(layer):
            _check_weight(layer, name, dims)
            return make(layer, name)
    *others, last = (kind for kind, _, _, _ in _KINDS)
    raise LayerError(
        f"{name} is a {type(layer).__name__}, which is not supported: "
        f"supported are {', '.join(others)} and {last}, and their subclasses."
    )


def _check_weight(layer: torch.nn.Module, name: str, dims: tuple[int, ...]) -> None:
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        raise LayerError(f"{name} is a lazy layer without weights yet: run one batch through it first.")
    if torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
        raise LayerError(
            f"{name} computes its weight by a parametrization, so that writing to it would be lost: call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first."
        )
    if not isinstance(weight, torch.Tensor) or weight.ndim not in dims or not weight.is_floating_point():
        held = (
            f"{weight.dtype} of shape {tuple(weight.shape)}"
            if isinstance(weight, torch.Tensor)
            else type(weight)
        )
        raise LayerError(
            f"{name} holds its weights as {held}, not as a floating-point matrix: dequantise it first."
        )
    if weight.is_meta:
        raise LayerError(f"{name} has no weights in memory (meta device): load them first.")
    # the sum is finite if all weights are, but for an overflow, and ten times faster to look at
    if not bool(torch.isfinite(weight.sum())) and not bool(torch.isfinite(weight).all()):
        raise LayerError(f"{name} has NaN or infinite weights: there is nothing to reconstruct.")


def find_layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """Find the submodule at a dotted path.

    Parameters
    ----------
    model : torch.nn.Module
        The whole model.
    name : str
        As `torch.nn.Module.named_modules` spells it: ``"model.layers.3.mlp.down_proj"``.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    LayerError
        When there is none of that name; the sentence shows the closest names.

    Examples
    --------
    >>> import torch
    >>> find_layer(torch.nn.Sequential(torch.nn.Linear(5, 3)), "0")
    Linear(in_features=5, out_features=3, bias=True)
    """
    modules: dict[str, torch.nn.Module] = dict(model.named_modules(remove_duplicate=False))
    modules.pop("", None)
    module = modules.get(name)
    if module is not None:
        return module
    close = difflib.get_close_matches(name, modules, n=3, cutoff=0.5)
    if not close:
        close = [
            path for path, other in modules.items() if any(matches(other) for _, matches, _, _ in _KINDS)
        ][:3]
    hint = (
        f"the closest names are {', '.join(close)}" if close else "it has no submodules that could be pruned"
    )
    raise LayerError(f"the {type(model).__name__} has no layer named {name!r}: {hint}.")


def row_groups(
    groups: GroupSpec,
    width: int,
    *,
    head_dim: int | None = None,
    num_heads: int | None = None,
    rows_per_channel: int = 1,
) -> Groups:
    """Decide which rows of W are kept or removed together.

    Parameters
    ----------
    groups : {"neurons", "channels", "heads"}, int, array_like of int, Groups or None
        ``"neurons"``, ``"channels"`` (or None): every input channel alone. ``"heads"``: consecutive blocks of
        `head_dim` channels, the layout of the concatenated heads that enter an attention's output projection.
        An int: consecutive groups of that many channels. An array: a label for each channel, or for each row.
    width : int
        Rows p.
    head_dim, num_heads : int, optional
        For ``"heads"``, one of them (or both, if they agree): head_dim * num_heads channels.
    rows_per_channel : int, optional
        Rows of an input channel: 1 for a matrix, the positions of the kernel for a convolution.

    Returns
    -------
    Groups

    Raises
    ------
    InputError
        When the head sizes are missing, do not divide the width, or are given without ``"heads"``.

    Examples
    --------
    >>> row_groups("heads", 12, num_heads=3).n
    3
    >>> row_groups("channels", 12, rows_per_channel=3)
    Groups(n=4, sizes=3)
    """
    channels = width // rows_per_channel
    if isinstance(groups, str) and groups == "heads":
        return _over_rows(_head_rows(channels, head_dim, num_heads), channels, rows_per_channel)
    if head_dim is not None or num_heads is not None:
        raise InputError('head_dim and num_heads belong to groups="heads": pass that too, or leave them out.')
    if isinstance(groups, str):
        if groups not in ("neurons", "channels"):
            raise InputError(
                f'groups={groups!r} is not known: pass "neurons", "channels", "heads", a group size, or a label '
                "for each channel."
            )
        return _over_rows(None, channels, rows_per_channel)
    if rows_per_channel > 1 and (
        groups is None or isinstance(groups, int) or len(_labels(groups)) == channels
    ):
        return _over_rows(groups, channels, rows_per_channel)
    return Groups.coerce(groups, width)


def _labels(groups: Any) -> Any:
    return groups.group_of_row if isinstance(groups, Groups) else groups


def _over_rows(groups: GroupSpec, channels: int, rows_per_channel: int) -> Groups:
    """Groups of channels as groups of their rows."""
    of_channels = Groups.coerce(groups, channels)
    return Groups(np.repeat(of_channels.group_of_row, rows_per_channel))


def _head_rows(channels: int, head_dim: int | None, num_heads: int | None) -> int:
    """Channels of a head, from either number."""
    if head_dim is None and num_heads is None:
        raise InputError(f'groups="heads" needs head_dim= or num_heads= for a layer of width {channels}.')
    size = head_dim if head_dim is not None else channels // (num_heads or 1)
    heads = num_heads if num_heads is not None else channels // max(size, 1)
    if size < 1 or heads < 1 or size * heads != channels:
        raise InputError(
            f"{heads} heads of {size} rows do not make a layer of width {channels}: "
            "head_dim * num_heads must equal it."
        )
    return size
