"""What each operation does to channels.

A rule is called after the operation ran, with its arguments and what it returned, and gives the companion (see
`osscar_opt.torch.coupling.channels`) of what was returned. Operations that have no rule are not guessed at: what goes
into them must stay, and the coupling names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from osscar_opt.torch.coupling.channels import Channels, compact

__all__ = ["Call", "Rule", "Scene"]


@dataclass
class Scene:
    """What rules may ask of the run: companions of tensors, names of parameters, and the record of channels."""

    channels: Channels
    numbers_of: Callable[[torch.Tensor], torch.Tensor | None]
    name_of: Callable[[torch.Tensor], str | None]
    query_heads: bool = False

    def numbers(self, tensor: torch.Tensor) -> torch.Tensor:
        """Companion of a tensor; zeros for one that has none."""
        found = self.numbers_of(tensor)
        return torch.zeros((), dtype=torch.int64).expand(tensor.shape) if found is None else found


@dataclass
class Call:
    """An operation that ran: its short name, its arguments and what it returned."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was passed."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Rule = Callable[[Scene, Call], "torch.Tensor | tuple[torch.Tensor, ...] | None"]


# ------------------------------------------------------------------------------------------------- entry by entry


def same(scene: Scene, call: Call) -> torch.Tensor:
    """One tensor in, one of the same shape out."""
    return scene.numbers(call.get(0, "input")).expand(call.out.shape)


def elementwise(scene: Scene, call: Call) -> torch.Tensor | None:
    """Several tensors, broadcast; channels that meet are one, but for one that meets many along a broadcast axis."""
    operands = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, torch.Tensor)]
    known = [(value, found) for value in operands if (found := scene.numbers_of(value)) is not None]
    if not known or not isinstance(call.out, torch.Tensor):
        return None
    shape = call.out.shape
    total = known[0][1]
    spread = _spread_axes(known[0][0], shape)
    for value, numbers in known[1:]:
        other_spread = _spread_axes(value, shape)
        total = _meet(scene, total.expand(shape), spread, numbers.expand(shape), other_spread)
        spread &= other_spread
    total = total.expand(shape)
    for value in operands:
        if scene.numbers_of(value) is None:
            for axis in set(range(len(shape))) - _spread_axes(value, shape):
                scene.channels.fixed(total, axis)
    return total


def _spread_axes(value: torch.Tensor, shape: torch.Size) -> set[int]:
    """Axes of `shape` along which a tensor was broadcast."""
    missing = len(shape) - value.ndim
    return {
        axis
        for axis in range(len(shape))
        if shape[axis] > 1 and (axis < missing or value.shape[axis - missing] == 1)
    }


def _meet(
    scene: Scene, one: torch.Tensor, one_spread: set[int], other: torch.Tensor, other_spread: set[int]
) -> torch.Tensor:
    shape = one.shape
    one, other = compact(one, other)
    one_many = any(_varies(other, axis) for axis in one_spread)  # one entry of `one` acts on several channels
    other_many = any(_varies(one, axis) for axis in other_spread)
    if one_many:
        scene.channels.share(one, other)
    if other_many:
        scene.channels.share(other, one)
    if not one_many and not other_many:
        scene.channels.unite(one, other)
    _absent(scene, one, one_spread, other)
    _absent(scene, other, other_spread, one)
    first, second = (other, one) if one_many else (one, other)
    entries_last = torch.where(first > 0, first, torch.where(second > 0, second, first))
    return torch.where(entries_last == 0, second, entries_last).expand(shape)


def _absent(scene: Scene, one: torch.Tensor, one_spread: set[int], other: torch.Tensor) -> None:
    """Where `one` holds no channel at all, as in a constant part of a concatenation, it cannot get shorter."""
    if not bool(((one == 0) & (other > 0)).any()):
        return
    for axis in set(range(one.ndim)) - one_spread:
        if _varies(other, axis):
            empty = (_at(one.abs(), axis) == 0).expand(other.shape)
            scene.channels.freeze(torch.where(empty, other, 0), "they meet a tensor of a fixed size")


def _varies(numbers: torch.Tensor, axis: int) -> bool:
    if numbers.shape[axis] == 1 or numbers.stride(axis) == 0:
        return False
    return bool((numbers != numbers.narrow(axis, 0, 1)).any())


def copied(scene: Scene, call: Call) -> torch.Tensor:
    """The second tensor is written over the first."""
    return scene.numbers(call.args[1]).expand(call.out.shape)


# ----------------------------------------------------------------------------------------------------- movement


def moved(scene: Scene, call: Call) -> Any:
    """The same movement, of the companions; indices and masks stay what they are."""
    return call.function(
        *(_companions(scene, value) for value in call.args),
        **{key: _companions(scene, value) for key, value in call.kwargs.items()},
    )


def reshaped(scene: Scene, call: Call) -> Any:
    numbers = moved(scene, call)
    scene.channels.one_axis(numbers)
    return numbers


def _companions(scene: Scene, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return scene.numbers(value) if value.is_floating_point() else value.cpu()
    if isinstance(value, (tuple, list)):
        return type(value)(_companions(scene, item) for item in value)
    return value


def assigned(scene: Scene, call: Call) -> torch.Tensor:
    """Not a value but a deed: part of a tensor is overwritten."""
    target, index, value = call.args
    numbers = scene.numbers(target).clone()
    numbers[index] = scene.numbers(value) if isinstance(value, torch.Tensor) else 0
    call.out = target
    return numbers


def padded(scene: Scene, call: Call) -> torch.Tensor:
    mode = call.get(2, "mode", "constant")
    numbers = scene.numbers(call.get(0, "input"))
    pad = list(call.get(1, "pad"))
    if mode == "constant":
        return torch.nn.functional.pad(numbers, pad, value=0)
    # the other modes repeat entries of the same channels, and have no kernel for whole numbers
    return torch.nn.functional.pad(numbers.double(), pad, mode=mode).round().long()


# --------------------------------------------------------------------------------------------------- reductions


def _dims(call: Call, ndim: int) -> list[int]:
    dims = call.get(1, "dim")
    if dims is None or isinstance(dims, torch.dtype):
        return list(range(ndim))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)]


def _merged(scene: Scene, numbers: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """Unite all channels along some axes; their number, with those axes of length 1."""
    first = numbers
    for axis in dims:
        first = first.narrow(axis, 0, 1) if first.stride(axis) == 0 else first.amax(dim=axis, keepdim=True)
    scene.channels.unite(numbers, first.expand(numbers.shape))
    return first


def reduction(scene: Scene, call: Call) -> torch.Tensor | tuple[torch.Tensor, ...]:
    numbers = scene.numbers(call.get(0, "input"))
    first = _merged(scene, numbers, _dims(call, numbers.ndim))
    if isinstance(call.out, torch.Tensor):
        return first.reshape(call.out.shape)
    return tuple(first.reshape(part.shape) for part in call.out)


def along(scene: Scene, call: Call) -> torch.Tensor:
    """Softmax and its kin: every entry depends on all entries along an axis."""
    numbers = scene.numbers(call.get(0, "input"))
    return _merged(scene, numbers, _dims(call, numbers.ndim)).expand(numbers.shape)


def pooled(scene: Scene, call: Call) -> Any:
    """Every output position is made of positions of its own channel."""
    source = call.get(0, "input")
    numbers = scene.numbers(source)
    spatial = 3 if "3d" in call.name else 1 if "1d" in call.name else 2
    if call.name in ("interpolate", "upsample"):
        spatial = source.ndim - 2
    first = _merged(scene, numbers, list(range(source.ndim - spatial, source.ndim)))
    if isinstance(call.out, torch.Tensor):
        return first.expand(call.out.shape)
    return tuple(first.expand(part.shape) for part in call.out)


# -------------------------------------------------------------------------------------------------------- layers


def _at(numbers: torch.Tensor, axis: int) -> torch.Tensor:
    """Channel numbers along one axis, shaped to be broadcast; positions with no channel do not count."""
    first = numbers
    for other in range(numbers.ndim):
        if other != axis:
            strided = first.stride(other) == 0
            first = first.narrow(other, 0, 1) if strided else first.amax(dim=other, keepdim=True)
    return first


def _read(scene: Scene, source: torch.Tensor, axis: int, weight: str, weight_axis: int, size: int) -> bool:
    """Inputs along `axis` are read by a weight; whether any of them is a channel."""
    found = scene.numbers_of(source)
    if found is None:
        return False
    own = scene.channels.axis(weight, weight_axis, size)
    shape = [1] * source.ndim
    shape[axis] = size
    scene.channels.unite(found, own.reshape(shape).expand(found.shape))
    scene.channels.read[weight, weight_axis] = None
    return True


def _write(
    scene: Scene, out: torch.Tensor, axis: int, weight: str, weight_axis: int, bias: torch.Tensor | None
) -> torch.Tensor:
    axis %= out.ndim
    own = scene.channels.axis(weight, weight_axis, out.shape[axis])
    scene.channels.written[weight, weight_axis] = None
    _follow(scene, bias, own)
    shape = [1] * out.ndim
    shape[axis] = out.shape[axis]
    return own.reshape(shape).expand(out.shape)


def _follow(scene: Scene, vector: torch.Tensor | None, channels: torch.Tensor) -> None:
    """A vector of the layer, such as its bias, has one entry a channel."""
    if vector is None:
        return
    name = scene.name_of(vector)
    if name is None:
        scene.channels.freeze(
            channels, "a layer adds or scales by a vector that is not one of its parameters"
        )
    else:
        scene.channels.unite(channels, scene.channels.axis(name, 0, len(vector)))


def _stop(scene: Scene, tensor: torch.Tensor, why: str) -> None:
    found = scene.numbers_of(tensor)
    if found is not None:
        scene.channels.freeze(found, why)


def _product_with(
    scene: Scene, call: Call, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, read: int
) -> torch.Tensor | None:
    """Source times a matrix whose axis `read` (0 or 1) meets the last axis of the source."""
    name = scene.name_of(weight)
    if name is None:
        _stop(scene, source, "a layer multiplies by weights that it computes")
        return None
    _read(scene, source, source.ndim - 1, name, read, weight.shape[read])
    return _write(scene, call.out, -1, name, 1 - read, bias)


def linear(scene: Scene, call: Call) -> torch.Tensor | None:
    return _product_with(
        scene, call, call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"), read=1
    )


def embedding(scene: Scene, call: Call) -> torch.Tensor | None:
    name = scene.name_of(call.get(1, "weight"))
    return None if name is None else _write(scene, call.out, -1, name, 1, None)


def convolution(scene: Scene, call: Call) -> torch.Tensor | None:
    source, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    groups = call.get(6, "groups", 1)
    name = scene.name_of(weight)
    if name is None:
        _stop(scene, source, "a convolution uses kernels that it computes")
        return None
    axis = source.ndim - (weight.ndim - 2) - 1
    channels = source.shape[axis]
    out = _write(scene, call.out, axis, name, 0, bias)
    if groups == 1:
        _read(scene, source, axis, name, 1, channels)
    elif groups == channels:
        found = scene.numbers_of(source)
        if found is None:
            scene.channels.freeze(out, "a depthwise convolution reads the model's input")
        else:
            own = scene.channels.axis(name, 0, weight.shape[0]).reshape(channels, -1)
            of_input = _at(found, axis).reshape(channels, 1).expand(own.shape)
            scene.channels.unite(own, of_input)
            scene.channels.freeze(
                torch.where(of_input == 0, own, 0), "a depthwise convolution reads constants"
            )
    else:
        why = f"{name.removesuffix('.weight')} has {groups} groups, of which equal numbers of channels would have to go"
        _stop(scene, source, why)
        scene.channels.freeze(out, why)
    return out


def batch_norm(scene: Scene, call: Call) -> torch.Tensor:
    source = call.get(0, "input")
    numbers = scene.numbers(source)
    channels = _at(numbers, 1).reshape(-1)
    for position, key in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        vector = call.get(position, key)
        if scene.numbers_of(source) is not None:
            _follow(scene, vector, channels)
    return numbers


def layer_norm(scene: Scene, call: Call) -> torch.Tensor:
    numbers = scene.numbers(call.get(0, "input"))
    last = len(call.get(1, "normalized_shape"))
    _merged(scene, numbers, list(range(numbers.ndim - last, numbers.ndim)))
    for position, key in ((2, "weight"), (3, "bias")):
        vector = call.get(position, key)
        if isinstance(vector, torch.Tensor):
            scene.channels.unite(scene.numbers(vector).expand(numbers.shape), numbers)
    return numbers


# ----------------------------------------------------------------------------------------- products of activations


def matmul(scene: Scene, call: Call) -> torch.Tensor | None:
    left, right = call.get(0, "input"), call.get(1, "other", call.kwargs.get("mat2"))
    return _product(scene, call, left, right, None)


def addmm(scene: Scene, call: Call) -> torch.Tensor | None:
    bias, left, right = call.get(0, "input"), call.get(1, "mat1"), call.get(2, "mat2")
    return _product(scene, call, left, right, bias)


def _product(
    scene: Scene, call: Call, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    name = scene.name_of(right)
    if name is not None and right.ndim == 2:
        return _product_with(scene, call, left, right, bias, read=0)
    base = right._base
    if base is not None and scene.name_of(base) is not None and _is_transposed(right, base):
        return _product_with(scene, call, left, base, bias, read=1)
    if scene.numbers_of(left) is None and scene.numbers_of(right) is None:
        return None
    if bias is not None or left.ndim < 2 or right.ndim < 2:
        for tensor in (left, right, bias):
            if isinstance(tensor, torch.Tensor):
                _stop(scene, tensor, f"they enter {call.name} in a way that is not followed")
        return None
    return _contracted(scene, scene.numbers(left), scene.numbers(right), call.out.shape)


def _is_transposed(view: torch.Tensor, base: torch.Tensor) -> bool:
    return view.ndim == 2 and view.shape == base.shape[::-1] and view.stride() == base.stride()[::-1]


def _contracted(scene: Scene, left: torch.Tensor, right: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sum over an axis of two activations: what meets there, and what it makes, is one."""
    batch = shape[:-2]
    left, right = left.expand(*batch, *left.shape[-2:]), right.expand(*batch, *right.shape[-2:])
    if not _varies(left, left.ndim - 1) and not _varies(right, right.ndim - 2):
        rows, columns = left[..., :, :1].expand(shape), right[..., :1, :].expand(shape)
        if scene.query_heads and _fewer(columns, rows):
            scene.channels.freeze(columns, "values stay: query heads are removed within their groups")
            return rows
        scene.channels.unite(rows, columns)
        scene.channels.through_attention(rows)
        scene.channels.through_attention(columns)
        return torch.where(columns > 0, columns, rows)
    a = _merged(scene, left, [left.ndim - 2, left.ndim - 1])
    b = _merged(scene, right, [right.ndim - 2, right.ndim - 1])
    scene.channels.through_attention(a)
    if scene.query_heads and _fewer(b, a):
        scene.channels.groups_of_heads.append(torch.stack([a.reshape(-1), b.reshape(-1)]))
        scene.channels.freeze(b, "keys stay: query heads are removed within their groups")
    else:
        scene.channels.unite(a, b)
    return torch.where(a > 0, a, b).expand(shape)


def _fewer(few: torch.Tensor, many: torch.Tensor) -> bool:
    """Whether several heads of `many` share one of `few`: heads are the third axis from the end."""
    if few.ndim < 3 or many.ndim < 3 or few.shape[-3] == 1:
        return False
    heads = [part.movedim(-3, 0).reshape(part.shape[-3], -1).amax(dim=1) for part in (few, many)]
    return len(torch.unique(heads[0])) < len(torch.unique(heads[1]))


def attention(scene: Scene, call: Call) -> torch.Tensor | None:
    """softmax(Q K') V, head by head."""
    tensors = [call.get(i, key) for i, key in enumerate(("query", "key", "value"))]
    if all(scene.numbers_of(tensor) is None for tensor in tensors):
        return None
    query, key, value = (scene.numbers(tensor) for tensor in tensors)
    if call.kwargs.get("enable_gqa") and query.ndim > 3:
        times = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(times, dim=-3) for part in (key, value))
    mask = call.get(3, "attn_mask")
    scores = _contracted(scene, query, key.transpose(-1, -2), torch.Size((*query.shape[:-1], key.shape[-2])))
    if isinstance(mask, torch.Tensor) and scene.numbers_of(mask) is not None:
        scene.channels.unite(scores, scene.numbers(mask).expand(scores.shape))
    return _contracted(scene, scores, value, call.out.shape)
