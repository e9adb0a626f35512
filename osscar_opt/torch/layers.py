"""Kinds of layers: where their weights lie, and which of their inputs go together.

A kind enters through one line of `_KINDS`: a test on the module and a view. Everything else in
`osscar_opt.torch` speaks to `LayerView`, in the layout of the library: weights inputs by outputs, one row of
X for each output position.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations.groups import Groups

__all__ = ["GroupSpec", "LayerView", "find_layer", "row_groups", "view_of"]

GroupSpec = str | int | Sequence[int] | NDArray[Any] | Groups | None


class LayerView(Protocol):
    """A layer as Y = X W: its weights in the layout (p, q) and its inputs as rows of X."""

    @property
    def kind(self) -> str:
        """Name of the layer's kind, for provenance and sentences."""
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

    def read_weight(self) -> torch.Tensor:
        """Weights (p, q) as float64 on the CPU, a copy."""
        ...

    def write_weight(self, weight: torch.Tensor) -> None:
        """Write weights (p, q) in place, in the layer's dtype and on its device."""
        ...

    def input_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn what the layer's forward was called with into rows of X: shape (..., p)."""
        ...


@dataclass(frozen=True)
class _MatrixView:
    """A layer that multiplies by one matrix, stored as W (`transposed` False) or as W' (True)."""

    layer: torch.nn.Module
    kind: str
    transposed: bool

    @property
    def _parameter(self) -> torch.Tensor:
        parameter = self.layer.weight
        assert isinstance(parameter, torch.Tensor)  # view_of has checked it
        return parameter

    @property
    def width(self) -> int:
        return int(self._parameter.shape[1 if self.transposed else 0])

    @property
    def outputs(self) -> int:
        return int(self._parameter.shape[0 if self.transposed else 1])

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype

    def read_weight(self) -> torch.Tensor:
        stored = self._parameter.detach().cpu().to(torch.float64, copy=True)
        return stored.T.contiguous() if self.transposed else stored

    def write_weight(self, weight: torch.Tensor) -> None:
        with torch.no_grad():
            self._parameter.copy_(weight.T if self.transposed else weight)

    def input_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def _is_linear(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear)


def _is_conv1d(layer: torch.nn.Module) -> bool:
    # by name: transformers is never imported for a model that does not use it
    return any(
        c.__name__ == "Conv1D" and c.__module__.partition(".")[0] == "transformers"
        for c in type(layer).__mro__
    )


_KINDS: tuple[tuple[str, Callable[[torch.nn.Module], bool], Callable[[torch.nn.Module], LayerView]], ...] = (
    ("torch.nn.Linear", _is_linear, lambda layer: _MatrixView(layer, "torch.nn.Linear", transposed=True)),
    (
        "transformers Conv1D",
        _is_conv1d,
        lambda layer: _MatrixView(layer, "transformers Conv1D", transposed=False),
    ),
)


def view_of(layer: torch.nn.Module, name: str = "the layer") -> LayerView:
    """Return the view through which a layer is read and written.

    Parameters
    ----------
    layer : torch.nn.Module
        A ``torch.nn.Linear`` or a transformers ``Conv1D``, or an instance of a subclass.
    name : str, optional
        Name of the layer, for the sentences of errors.

    Returns
    -------
    LayerView

    Raises
    ------
    LayerError
        When the kind of layer is not supported, or its weights are not one plain floating-point matrix.

    Examples
    --------
    >>> import torch
    >>> view = view_of(torch.nn.Linear(5, 3))
    >>> view.kind, view.width, view.outputs
    ('torch.nn.Linear', 5, 3)
    """
    for _, matches, make in _KINDS:
        if matches(layer):
            _check_weight(layer, name)
            return make(layer)
    supported = " and ".join(kind for kind, _, _ in _KINDS)
    raise LayerError(
        f"{name} is a {type(layer).__name__}, which is not supported: "
        f"supported are {supported} and their subclasses."
    )


def _check_weight(layer: torch.nn.Module, name: str) -> None:
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        raise LayerError(f"{name} is a lazy layer without weights yet: run one batch through it first.")
    if torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
        raise LayerError(
            f"{name} computes its weight by a parametrization, so that writing to it would be lost: call "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first."
        )
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
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
    if not bool(torch.isfinite(weight).all()):
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
        close = [path for path, other in modules.items() if _is_linear(other) or _is_conv1d(other)][:3]
    hint = (
        f"the closest names are {', '.join(close)}" if close else "it has no submodules that could be pruned"
    )
    raise LayerError(f"the {type(model).__name__} has no layer named {name!r}: {hint}.")


def row_groups(
    groups: GroupSpec, width: int, *, head_dim: int | None = None, num_heads: int | None = None
) -> Groups:
    """Decide which rows of W are kept or removed together.

    Parameters
    ----------
    groups : {"neurons", "heads"}, int, array_like of int, Groups or None
        ``"neurons"`` (or None): every row alone. ``"heads"``: consecutive blocks of `head_dim` rows, the
        layout of the concatenated heads that enter an attention's output projection. An int: consecutive
        groups of that many rows. An array: a label for each row.
    width : int
        Rows p.
    head_dim, num_heads : int, optional
        For ``"heads"``, one of them (or both, if they agree): head_dim * num_heads = p.

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
    """
    if isinstance(groups, str) and groups == "heads":
        return Groups.coerce(_head_rows(width, head_dim, num_heads), width)
    if head_dim is not None or num_heads is not None:
        raise InputError('head_dim and num_heads belong to groups="heads": pass that too, or leave them out.')
    if isinstance(groups, str):
        if groups != "neurons":
            raise InputError(
                f'groups={groups!r} is not known: pass "neurons", "heads", a group size, or a label '
                "for each row."
            )
        return Groups.coerce(None, width)
    return Groups.coerce(groups, width)


def _head_rows(width: int, head_dim: int | None, num_heads: int | None) -> int:
    """Rows of a head, from either number."""
    if head_dim is None and num_heads is None:
        raise InputError(f'groups="heads" needs head_dim= or num_heads= for a layer of width {width}.')
    rows = head_dim if head_dim is not None else width // (num_heads or 1)
    heads = num_heads if num_heads is not None else width // max(rows, 1)
    if rows < 1 or heads < 1 or rows * heads != width:
        raise InputError(
            f"{heads} heads of {rows} rows do not make a layer of width {width}: "
            "head_dim * num_heads must equal it."
        )
    return rows
