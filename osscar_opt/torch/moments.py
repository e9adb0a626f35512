r"""From the calls of one layer, or of several that read the same units, to a `Problem`.

With X (N x p) the rows of a layer's inputs, W0 and b0 its weights and bias, and Y its targets without the bias (X W0,
or what the dense model computes), the fit is

.. math::

    \min_{W, b} \; \tfrac{1}{2N} |Y + 1 b_0' - X W - 1 b'|^2 + \tfrac{\rho}{2} |W - W_0|^2,
    \qquad \rho = \mathrm{damping} \cdot \mathrm{mean\,diag}(\mathtt{gram}).

With an intercept, b is chosen too: then b = mean(Y) + b0 - W' mean(X) for any W, and what is left is the same problem
in central moments. Without one, b stays b0 and drops out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from osscar_opt._typing import FloatArray
from osscar_opt.errors import LayerError
from osscar_opt.torch.gram import GramAccumulator
from osscar_opt.torch.layers import GroupSpec, row_groups, view_of
from osscar_opt.torch.watch import LayerCall, call_of

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["LayerMoments"]


class LayerMoments:
    """What a layer's problem needs of its inputs, summed call by call.

    Parameters
    ----------
    layer : torch.nn.Module
        Its weights and bias are read now: make this before anything is written to the layer.
    name : str, optional
        For the problem and for the sentences of errors.
    intercept : bool, optional
        Whether the fit has an intercept, which becomes the layer's new bias; by default, when the layer has a bias.
    teacher : bool, optional
        Whether every call comes with the dense model's inputs, or outputs, of the same layer.

    Attributes
    ----------
    view : LayerView
    name : str
    intercept, teacher : bool

    Raises
    ------
    LayerError
        When the layer is not supported, or has no bias to hold an intercept.

    Examples
    --------
    >>> layer = torch.nn.Conv2d(4, 3, 3, padding=1)
    >>> moments = LayerMoments(layer, "conv")
    >>> handle = layer.register_forward_pre_hook(lambda layer, args: moments.add(args[0]))
    >>> output = layer(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    >>> handle.remove()
    >>> moments.problem(keep=2)
    Problem('conv', p=36, q=3, groups=Groups(n=4, sizes=9), keep=2)
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        name: str = "the layer",
        *,
        intercept: bool | None = None,
        teacher: bool = False,
    ) -> None:
        self.view = view_of(layer, name)
        self.name = name
        self.intercept = self.view.has_bias if intercept is None else intercept
        self.teacher = teacher
        if self.intercept and not self.view.has_bias:
            raise LayerError(
                f"{name} has no bias to hold an intercept: pass intercept=False, or give it one first "
                f"(layer.bias = torch.nn.Parameter(torch.zeros({self.view.outputs})))."
            )
        self._layer = layer
        self._weights = self.view.read_weight()  # (p, q)
        self._bias = self.view.read_bias()
        self._gram = GramAccumulator(
            self.view.width,
            target_width=self.view.outputs if teacher else None,
            name=name,
            central=self.intercept,
            blocks=self.view.conv_groups,
        )

    @property
    def rows(self) -> int:
        """Rows counted so far, padding left out; those of all ranks once they are combined.

        Examples
        --------
        >>> LayerMoments(torch.nn.Linear(4, 3)).rows
        0
        """
        return self._gram.rows

    def add(
        self,
        inputs: torch.Tensor | LayerCall,
        teacher_inputs: torch.Tensor | LayerCall | None = None,
        *,
        teacher_outputs: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        """Add one call of the layer.

        Parameters
        ----------
        inputs : torch.Tensor or LayerCall
            What its forward was called with, or the call as `osscar_opt.torch.watch.watch` saw it.
        teacher_inputs : torch.Tensor or LayerCall, optional
            With `teacher`: the inputs Xt of the same layer in the dense model. The targets are Xt W0.
        teacher_outputs : torch.Tensor, optional
            In place of them the outputs Xt W0 + b0, as the dense layer returned them: cheaper, and as exact as the
            dtype they come in.
        mask : torch.Tensor, optional
            Nonzero for what counts, zero for padding: one entry for each row of X, (batch, length) for a sequence.

        Raises
        ------
        LayerError
            When shapes disagree, teacher values are missing or not wanted, or a row that counts is not finite; the
            sums are then of no further use.

        Examples
        --------
        >>> moments = LayerMoments(torch.nn.Linear(4, 3), teacher=True)
        >>> moments.add(torch.ones(2, 5, 4), torch.ones(2, 5, 4), mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
        >>> moments.rows
        8
        """
        if (teacher_inputs is not None) + (teacher_outputs is not None) != self.teacher:
            wanted = "either teacher_inputs or teacher_outputs" if self.teacher else "no teacher's values"
            raise LayerError(f"{self.name} expects {wanted} with every call: pass them as it was set up.")
        call = call_of(self._layer, inputs, self.name)
        counts = None if mask is None else _row_mask(self.view.positions(call), mask, self.name)
        targets = self._targets(call, teacher_inputs, teacher_outputs)
        at = 0
        for rows in self.view.row_blocks(call):
            part = slice(at, at + len(rows))
            at = part.stop
            goal = None if targets is None else targets(part)
            self._gram.add(rows, goal, mask=None if counts is None else counts[part])

    def combine(self, *, failed: bool = False) -> None:
        """Add up what all ranks of torch.distributed saw; see `osscar_opt.torch.gram.GramAccumulator.combine`.

        `problem` and `osscar_opt.torch.sites.site_problem` do it by themselves. Every rank must call them, in the same
        order.

        Examples
        --------
        >>> moments = LayerMoments(torch.nn.Linear(4, 3))
        >>> moments.combine()  # nothing, without a process group
        """
        self._gram.combine(failed=failed)

    def problem(
        self,
        *,
        groups: GroupSpec = "neurons",
        head_dim: int | None = None,
        num_heads: int | None = None,
        keep: int | None = None,
        damping: float = 1e-2,
        name: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> Problem:
        """Pose the layer's problem from what was seen so far.

        Parameters
        ----------
        groups, head_dim, num_heads
            What is kept or removed as one; see `osscar_opt.torch.layers.row_groups`.
        keep : int, optional
        damping : float, optional
            Relative to the mean diagonal of the second moment; it pulls towards the dense weights.
        name : str, optional
            By default the layer's.
        provenance : mapping, optional
            More to record beside layer, rows and damping.
        **limits
            Further budgets of the `Problem`.

        Raises
        ------
        LayerError
            When no row was added.

        Warns
        -----
        UserWarning
            When there are fewer rows than the layer is wide.

        Examples
        --------
        >>> layer, inputs = torch.nn.Linear(4, 3), torch.eye(4)
        >>> moments = LayerMoments(layer, "fc2")
        >>> moments.add(inputs)
        >>> moments.problem(keep=2).keep
        2
        """
        from osscar_opt.formulations.problem import Problem

        row_group = row_groups(
            groups,
            self.view.width,
            head_dim=head_dim,
            num_heads=num_heads,
            rows_per_channel=self.view.rows_per_channel,
        )
        return Problem.from_moments(
            **self.parts(),
            copy=False,  # nobody else holds these arrays
            damping=damping,
            groups=row_group,
            keep=keep,
            name=self.name if name is None else name,
            provenance={**self.describe(), "damping": damping, **(provenance or {})},
            **limits,
        )

    def parts(self) -> dict[str, Any]:
        """Arguments of `Problem.from_moments` that hold the numbers: moments, weights and, with an intercept, means.

        Raises
        ------
        LayerError
            When no row was added.

        Examples
        --------
        >>> moments = LayerMoments(torch.nn.Linear(4, 3, bias=False))
        >>> moments.add(torch.eye(4))
        >>> sorted(moments.parts())
        ['second_moment', 'weights']
        """
        self.combine()
        second = self._gram.second_moment()
        _warn_if_few(self.rows, self.view.width // self.view.conv_groups, self.name)
        weights: FloatArray = self._weights.numpy()
        parts: dict[str, Any] = {"second_moment": second, "weights": weights}
        if self.teacher:
            parts |= {
                "cross_moment": self._gram.cross_moment(),
                "target_energy": self._gram.target_energy(),
            }
        if self.intercept and self._bias is not None:
            mean = self._gram.input_mean()
            produced = self._gram.target_mean() if self.teacher else weights.T @ mean
            parts |= {"input_mean": mean, "target_mean": produced + self._bias.numpy()}
        return parts

    def describe(self) -> dict[str, Any]:
        """What a problem's provenance says of the layer and its calibration.

        Examples
        --------
        >>> LayerMoments(torch.nn.Linear(4, 3), "fc2").describe()["layer_shape"]
        [4, 3]
        """
        return {
            "source": "torch layer",
            "layer": self.name,
            "layer_kind": self.view.kind,
            "layer_shape": [self.view.width, self.view.outputs],
            "layer_dtype": str(self.view.dtype).removeprefix("torch."),
            "calibration_rows": self.rows,
            "targets": "teacher" if self.teacher else "same inputs",
            "intercept": self.intercept,
            "torch": str(torch.__version__),
        }

    def _targets(
        self, call: LayerCall, inputs: torch.Tensor | LayerCall | None, outputs: torch.Tensor | None
    ) -> Callable[[slice], torch.Tensor] | None:
        """How to get some rows of the targets Y, asked for in order."""
        if outputs is not None:
            whole = self.view.output_rows(outputs.detach())
            self._match(call, len(whole))
            bias = 0.0 if self._bias is None else _at_home(self._bias, whole.device)
            return lambda part: _at_home(whole[part], whole.device) - bias
        if inputs is None:
            return None
        taught = call_of(self._layer, inputs, self.name)
        self._match(call, math.prod(self.view.positions(taught)))
        blocks = self.view.row_blocks(taught)
        weights = _at_home(self._blocks_of_weights, taught.inputs.device)  # (G, p/G, q/G)

        def product(_: slice) -> torch.Tensor:
            rows = _at_home(next(blocks), weights.device)
            parts = rows.view(len(rows), weights.shape[0], -1).transpose(0, 1)
            return torch.bmm(parts, weights).transpose(0, 1).reshape(len(rows), -1)

        return product

    def _match(self, call: LayerCall, taught: int) -> None:
        rows = math.prod(self.view.positions(call))
        if rows != taught:
            raise LayerError(
                f"{self.name} got {rows} rows of inputs but {taught} rows of the teacher's in one call."
            )

    @cached_property
    def _blocks_of_weights(self) -> torch.Tensor:
        count = self.view.conv_groups
        p, q = self.view.width // count, self.view.outputs // count
        blocks = self._weights.view(count, p, count, q)
        index = torch.arange(count)
        return blocks[index, :, index, :]


def _row_mask(positions: tuple[int, ...], mask: torch.Tensor, name: str) -> torch.Tensor | None:
    """Mask of the rows that count, shape (rows,); None when all do."""
    rows = math.prod(positions)
    if positions == tuple(mask.shape) or (len(positions) == 1 and rows == mask.numel()):
        return mask.reshape(-1)
    if len(positions) == 1 and rows == mask.shape[0]:
        return None  # pooled: a row stands for a whole sequence
    raise LayerError(
        f"{name} has rows of shape {positions}, which the attention_mask of shape {tuple(mask.shape)} does not cover: "
        "give batches without padding and without attention_mask."
    )


def _at_home(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """In float64, on the device if it knows such numbers."""
    return values.to("cpu" if device.type == "mps" else device).to(torch.float64)


def _warn_if_few(rows: int, width: int, name: str) -> None:
    if rows < width:
        warnings.warn(
            f"{name} was calibrated on {rows} rows for a width of {width}: in the other "
            f"{width - rows} directions only the damping decides, so give more batches if you can.",
            UserWarning,
            stacklevel=5,
        )
