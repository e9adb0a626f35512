"""Pose the pruning of a layer of a torch model as a `Problem`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from osscar_opt.errors import InputError, LayerError
from osscar_opt.formulations._budgets import checked_budgets
from osscar_opt.formulations.moments import keep_at_sparsity
from osscar_opt.torch import ranks
from osscar_opt.torch.collect import each_batch, visit_layer_inputs
from osscar_opt.torch.layers import GroupSpec, find_layer, row_groups
from osscar_opt.torch.moments import LayerMoments

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["problem_from_layer"]


def problem_from_layer(
    source: torch.nn.Module,
    inputs_or_name: Any,
    batches: Any = None,
    /,
    *,
    keep: int | None = None,
    sparsity: float | None = None,
    damping: float = 1e-2,
    groups: GroupSpec = "neurons",
    head_dim: int | None = None,
    num_heads: int | None = None,
    target_inputs: Any = None,
    intercept: bool | None = None,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Problem:
    r"""Pruning of a layer's inputs, with its dense outputs on calibration data as the targets.

    Called as ``problem_from_layer(layer, inputs, ...)`` or ``problem_from_layer(model, "path.to.layer",
    batches, ...)``. With X (N x p) the layer's inputs and W0 (p x q) its weights, inputs by outputs, the
    problem is

    .. math::

        H = X'X/N + \rho I, \quad G = H W_0, \quad \rho = \mathrm{damping} \cdot \mathrm{mean\,diag}(X'X/N).

    X is never held: X'X is summed batch by batch in float64, on the device where the inputs arrive. With an
    intercept the layer's bias is fitted too, so that what removed groups add on average is kept: X'X/N and X'Y/N are
    then taken about the means. Without one a bias stays as it is: it is added to the dense and to the pruned
    outputs alike, so the problem does not see it.

    Where a process group of ``torch.distributed`` is initialised, every rank runs its own batches, the sums of all
    ranks are combined, and every rank gets the same problem.

    Parameters
    ----------
    source : torch.nn.Module
        The layer, or the model that holds it. Supported layers: ``torch.nn.Linear``, ``Conv1d``, ``Conv2d`` and
        transformers' ``Conv1D``, with their subclasses.
    inputs_or_name : torch.Tensor, iterable of torch.Tensor, or str
        The layer's inputs as its forward takes them, (..., p) or (batch, channels, positions...), or the layer's
        dotted name in the model. Of batches that are tuples or lists, as a DataLoader gives them, the first entry is
        taken.
    batches : torch.Tensor, mapping, or iterable of tensors, mappings, tuples or lists, optional
        With a model: what it is run on (in evaluation mode, without gradients). Mappings are keyword
        arguments, tuples and lists positional ones, as many as the forward takes. Padding named by
        ``attention_mask`` is left out.
    keep : int, optional
        How many groups may stay.
    sparsity : float, optional
        In place of `keep`: keep = n - floor(sparsity * n).
    damping : float, optional
        Relative to the mean diagonal of X'X/N; it pulls towards the dense weights.
    groups : {"neurons", "channels", "heads"}, int, array_like of int or Groups, optional
        What is kept or removed as one; see `osscar_opt.torch.layers.row_groups`.
    head_dim, num_heads : int, optional
        For ``groups="heads"``.
    target_inputs : torch.Tensor or iterable of torch.Tensor, optional
        With a layer and its inputs: inputs Xt of the same layer in the dense model (the teacher), in batches
        of as many rows each. The targets are then Xt W0 in place of X W0, so G = X'Xt W0/N + rho W0.
    intercept : bool, optional
        Fit the bias too; by default, when the layer has one.
    name : str, optional
        Name of the problem; by default the layer's.
    provenance : mapping, optional
        More to record, such as the names of model and data.
    **limits
        Further budgets of the `Problem`: ``costs``, ``budget``, ``always_keep``, ``always_remove``,
        ``blocks``, ``block_keep``.

    Returns
    -------
    Problem
        Its ``provenance`` records the layer's name, kind, shape and dtype, the number of rows, and the
        damping.

    Raises
    ------
    LayerError
        When the layer is missing, not supported, never reached by the batches, sees NaN or infinity, or has no bias
        to hold an intercept that is asked for.
    InputError
        When options contradict each other or the sizes.

    Warns
    -----
    UserWarning
        When there are fewer rows than the layer is wide.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = torch.randn(10, 20, 5, generator=torch.Generator().manual_seed(0))
    >>> problem = problem_from_layer(model, "2", batches, sparsity=0.5)
    >>> problem.p, problem.q, problem.keep
    (8, 3, 4)
    """
    layer, label = _locate(source, inputs_or_name, batches, name)
    moments = LayerMoments(layer, label, intercept=intercept, teacher=target_inputs is not None)
    per_channel = moments.view.rows_per_channel
    heads = {"head_dim": head_dim, "num_heads": num_heads}
    row_group = row_groups(groups, moments.view.width, rows_per_channel=per_channel, **heads)
    kept = _keep(row_group.n, keep, sparsity)
    checked_budgets(row_group.n, keep=kept, **limits)  # before the batches, which may take long
    try:
        if isinstance(inputs_or_name, str):
            if target_inputs is not None:
                raise InputError(
                    "target_inputs goes with a layer and its inputs, not with a model and a layer's name."
                )
            alone = not ranks.several()  # one rank of several may have no batch
            visit_layer_inputs(
                source,
                layer,
                label,
                batches,
                lambda call, mask: moments.add(call, mask=mask),
                required=alone,
            )
        else:
            _add_inputs(moments, inputs_or_name, target_inputs)
    except Exception:
        moments.combine(failed=True)  # or the other ranks would wait for this one
        raise
    moments.combine()
    if moments.rows == 0:
        raise LayerError(f"there were no rows of inputs: {label} has nothing to be calibrated on.")
    return moments.problem(
        groups=row_group, keep=kept, damping=damping, name=name, provenance=provenance, **limits
    )


def _locate(
    source: torch.nn.Module, inputs_or_name: Any, batches: Any, name: str | None
) -> tuple[torch.nn.Module, str]:
    """Find the layer and what to call it."""
    if not isinstance(source, torch.nn.Module):
        raise LayerError(f"expected a torch module first, got {type(source).__name__}.")
    if isinstance(inputs_or_name, str):
        if batches is None:
            raise InputError(
                f"a model and the layer's name {inputs_or_name!r} need batches as the third argument."
            )
        return find_layer(source, inputs_or_name), inputs_or_name
    if batches is not None:
        raise InputError(
            "with batches, the second argument is the layer's dotted name in the model, a string."
        )
    return source, name or "the layer"


def _keep(n: int, keep: int | None, sparsity: float | None) -> int | None:
    """Resolve the two ways to say how many groups stay."""
    if sparsity is None:
        return keep
    if keep is not None:
        raise InputError(f"pass keep={keep} or sparsity={sparsity}, not both.")
    return keep_at_sparsity(sparsity, n)


def _add_inputs(moments: LayerMoments, inputs: Any, target_inputs: Any) -> None:
    label = moments.name
    if target_inputs is None:
        for batch in each_batch(inputs):
            moments.add(_tensor(batch, label))
        return
    for batch, teacher in zip_longest(each_batch(inputs), each_batch(target_inputs)):
        if batch is None or teacher is None:
            more = "target_inputs" if batch is None else "inputs"
            raise LayerError(f"{label} got more batches of {more} than of the other.")
        moments.add(_tensor(batch, label), _tensor(teacher, label))


def _tensor(batch: Any, label: str) -> torch.Tensor:
    """Take the inputs out of a batch; what follows them in a tuple are labels."""
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, torch.Tensor):
        raise LayerError(f"{label} takes tensors as its inputs, got {type(first).__name__}.")
    return first
