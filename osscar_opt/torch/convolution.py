r"""Convolutions as Y = X W: one row of X for every position of every output.

A row holds the input values under the kernel, channel by channel: row number = channel * prod(kernel) + position, the
order of ``weight.reshape(outputs, -1).T``. With convolution groups an output sees the channels of its own group only:
W is block diagonal, and so the fit needs no more of X'X than the blocks on the diagonal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from osscar_opt.errors import LayerError
from osscar_opt.torch.watch import LayerCall, call_of

__all__ = ["ConvolutionView"]

_UNFOLDED = 1 << 23
"""Entries of X that are laid out at once: 64 MB in float64."""


@dataclass(frozen=True)
class ConvolutionView:
    """A ``Conv1d`` or ``Conv2d`` in the layout of the library; see `osscar_opt.torch.layers.LayerView`.

    Examples
    --------
    >>> view = ConvolutionView(torch.nn.Conv2d(3, 4, (3, 1), padding=1), "torch.nn.Conv2d", "stem")
    >>> view.width, view.outputs, view.rows_per_channel
    (9, 4, 3)
    >>> [tuple(rows.shape) for rows in view.row_blocks(torch.zeros(2, 3, 5, 6))]
    [(80, 9)]
    """

    layer: torch.nn.Conv1d | torch.nn.Conv2d
    kind: str
    name: str

    @property
    def conv_groups(self) -> int:
        return self.layer.groups

    @property
    def channels(self) -> int:
        return self.layer.in_channels

    @property
    def rows_per_channel(self) -> int:
        return math.prod(self.layer.kernel_size)

    @property
    def width(self) -> int:
        return self.channels * self.rows_per_channel

    @property
    def outputs(self) -> int:
        return self.layer.out_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    @property
    def has_bias(self) -> bool:
        return self.layer.bias is not None

    def read_weight(self) -> torch.Tensor:
        stored = self.layer.weight.detach().cpu().to(torch.float64)
        rows, columns = self._block
        weight = torch.zeros(self.width, self.outputs, dtype=torch.float64)
        for g in range(self.conv_groups):
            own = stored[g * columns : (g + 1) * columns].reshape(columns, rows)
            weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = own.T
        return weight

    def write_weight(self, weight: torch.Tensor) -> None:
        rows, columns = self._block
        blocks = [
            weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns].T
            for g in range(self.conv_groups)
        ]
        if sum(int(block.count_nonzero()) for block in blocks) != int(weight.count_nonzero()):
            raise LayerError(
                f"{self.name} has {self.conv_groups} convolution groups, but the weights connect inputs of one with "
                "outputs of another: they must be zero there."
            )
        with torch.no_grad():
            self.layer.weight.copy_(torch.cat(blocks).reshape(self.layer.weight.shape))

    def read_bias(self) -> torch.Tensor | None:
        return (
            None if self.layer.bias is None else self.layer.bias.detach().cpu().to(torch.float64, copy=True)
        )

    def write_bias(self, bias: torch.Tensor) -> None:
        if self.layer.bias is None:
            raise LayerError(f"{self.name} has no bias that could be written.")
        with torch.no_grad():
            self.layer.bias.copy_(bias)

    def row_blocks(self, inputs: torch.Tensor | LayerCall) -> Iterator[torch.Tensor]:
        """Rows of X in order (batch, then positions), in pieces of bounded size."""
        windows = self._windows(call_of(self.layer, inputs, self.name))
        spatial = len(self.layer.kernel_size)
        for piece in _pieces(windows, 1 + spatial, max(1, _UNFOLDED // self.width)):
            yield piece.reshape(-1, self.width)

    def positions(self, call: LayerCall) -> tuple[int, ...]:
        return tuple(self._windows(call).shape[: 1 + len(self.layer.kernel_size)])

    def output_rows(self, outputs: torch.Tensor) -> torch.Tensor:
        batched = outputs if outputs.ndim > 1 + len(self.layer.kernel_size) else outputs[None]
        return batched.movedim(1, -1).reshape(-1, self.outputs)

    @property
    def _block(self) -> tuple[int, int]:
        """Rows and columns of a convolution group's block of W."""
        return self.width // self.conv_groups, self.outputs // self.conv_groups

    def _windows(self, call: LayerCall) -> torch.Tensor:
        """View X as (batch, positions..., channels, kernel...); nothing is copied but what padding adds."""
        kernel = self.layer.kernel_size
        spatial = len(kernel)
        x = call.inputs.detach()
        if x.ndim == spatial + 1:
            x = x[None]  # torch takes one sample without a batch dimension
        if x.ndim != spatial + 2 or x.shape[1] != self.channels:
            raise LayerError(
                f"{self.name} expects inputs of {self.channels} channels and {spatial} more dimensions, got shape "
                f"{tuple(call.inputs.shape)}."
            )
        if call.groups != self.conv_groups:
            raise LayerError(
                f"{self.name} calls its convolution with groups = {call.groups}, but says it has "
                f"{self.conv_groups}: there is no telling which inputs belong together."
            )
        dilation, stride = _each(call.dilation, spatial), _each(call.stride, spatial)
        x = _padded(x, call.padding, kernel, dilation)
        for axis in range(spatial):
            # each turn takes one dimension of positions and adds one of the kernel at the end
            x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])[
                ..., :: dilation[axis]
            ]
        return x.movedim(1, 1 + spatial)


def _each(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * count if len(numbers) == 1 else numbers


def _padded(
    x: torch.Tensor, padding: int | tuple[int, ...] | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> torch.Tensor:
    """Add the zeros that the convolution would have added."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]  # an odd one goes to the end, as in torch
    else:
        sides = [(p, p) for p in _each(padding, len(kernel))]
    if not any(itertools.chain(*sides)):
        return x
    return torch.nn.functional.pad(x, list(itertools.chain(*reversed(sides))))  # last dimension first


def _pieces(windows: torch.Tensor, dims: int, limit: int) -> Iterator[torch.Tensor]:
    """Cut the first `dims` dimensions, in order, so that no piece holds more than `limit` of their positions."""
    shape = windows.shape[:dims]
    axis = 0
    while axis < dims - 1 and math.prod(shape[axis + 1 :]) > limit:
        axis += 1
    step = max(1, limit // max(1, math.prod(shape[axis + 1 :])))
    for index in itertools.product(*(range(size) for size in shape[:axis])):
        for start in range(0, shape[axis], step):
            yield windows[index][start : start + step]
