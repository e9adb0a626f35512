"""Which rule an operation follows, by its name in torch without underscores.

`add` stands for ``torch.add``, ``Tensor.add_``, ``Tensor.__radd__`` and the like.
"""

from __future__ import annotations

from osscar_opt.torch.coupling import rules
from osscar_opt.torch.coupling.rules import Rule

__all__ = ["CONSTANT", "RULES"]


def _each(names: str) -> list[str]:
    return names.split()


_SAME = _each("""
    relu relu6 gelu silu sigmoid logsigmoid tanh hardswish hardsigmoid hardtanh elu selu celu leaky_relu softplus
    softsign mish threshold exp expm1 log log1p sqrt rsqrt square neg positive abs sign erf sin cos tan atan reciprocal
    round floor ceil clamp clip clamp_min clamp_max nan_to_num isnan isinf isfinite logical_not
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    to type float half bfloat16 double bool int long cpu cuda contiguous clone detach requires_grad alias data
    zeros_like ones_like empty_like full_like rand_like randn_like
""")
_ELEMENTWISE = _each("""
    add sub subtract rsub mul multiply div divide true_divide truediv pow rpow float_power maximum minimum
    addcmul addcdiv where lerp prelu type_as masked_fill eq ne lt le gt ge logical_and logical_or
""")
_MOVED = _each("""
    transpose permute t T mT H movedim moveaxis swapaxes swapdims squeeze unsqueeze expand expand_as broadcast_to
    repeat repeat_interleave tile chunk split split_with_sizes tensor_split unbind select narrow getitem index_select
    gather take_along_dim cat concat concatenate stack hstack vstack roll flip channel_shuffle pixel_shuffle
    pixel_unshuffle
""")
_POOLED = _each("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool2d
    interpolate upsample
""")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, rules.same),
    **dict.fromkeys(_ELEMENTWISE, rules.elementwise),
    **dict.fromkeys(_MOVED, rules.moved),
    **dict.fromkeys(_each("view reshape flatten unflatten ravel view_as reshape_as"), rules.reshaped),
    **dict.fromkeys(_each("mean sum var std amax amin logsumexp prod nanmean"), rules.reduction),
    **dict.fromkeys(_each("softmax log_softmax softmin cumsum"), rules.along),
    **dict.fromkeys(_POOLED, rules.pooled),
    **dict.fromkeys(_each("conv1d conv2d conv3d"), rules.convolution),
    **dict.fromkeys(_each("matmul bmm mm"), rules.matmul),
    **dict.fromkeys(_each("layer_norm rms_norm"), rules.layer_norm),
    "addmm": rules.addmm,
    "batch_norm": rules.batch_norm,
    "copy": rules.copied,
    "embedding": rules.embedding,
    "linear": rules.linear,
    "pad": rules.padded,
    "scaled_dot_product_attention": rules.attention,
    "setitem": rules.assigned,
}

CONSTANT = frozenset(_each("new_zeros new_ones new_empty new_full new_tensor"))
"""Operations whose result has no channels, whatever goes into them."""
