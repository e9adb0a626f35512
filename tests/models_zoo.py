"""Small models of the architectures that are supported, with random weights: what the tests of whole models run on.

``ZOO[name]`` has ``build()``, a new model in eval mode, always the same one; ``batch(seed)``, what its forward is
called with; and ``sites``, what can be removed by default. Transformers' families are their real classes with tiny
configurations. Widths are chosen to differ wherever the architecture allows it, and no norm, bias or running statistic
is left at its trivial initial value: a shrinking that forgets one of them, or mixes two widths up, changes the outputs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osscar_opt.torch.packaged.mobilenet import MobileNetV2

VOCABULARY = 101
HIDDEN = 48
TOKENS = 13
Batch = Tensor | dict[str, Tensor]
Sites = dict[str, tuple[str, int]]  # the consumer's name -> kind, units


@dataclass(frozen=True)
class Entry:
    """One model. `sites`: those that a single layer reads, in execution order.

    `layers`: attribute path of the list of blocks that run one after another, if there is one.
    `config`: what the checkpoint's config calls the widths, for uniform checkpoints: "neurons" and "heads".
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[..., Batch]
    sites: Sites
    layers: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    transformers: bool = False

    @property
    def available(self) -> bool:
        return not self.transformers or importlib.util.find_spec("transformers") is not None


ZOO: dict[str, Entry] = {}


def names(*, transformers: bool | None = None, language: bool | None = None) -> list[str]:
    """Names of entries, for parametrize; `language`: whether they are causal language models."""
    return [
        name
        for name, entry in ZOO.items()
        if (transformers is None or entry.transformers == transformers)
        and (language is None or (entry.batch is tokens) == language)
    ]


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The main output: logits, or the last hidden state."""
    with torch.no_grad():
        outputs = model(**batch) if isinstance(batch, Mapping) else model(batch)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def parameter_count(model: nn.Module) -> int:
    """Tied parameters once."""
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------------ random


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and running statistic, so that all of them matter and none is trivial."""
    draw = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, scale: float) -> Tensor:
        return torch.randn(shape, generator=draw) * scale

    def uniform(shape: torch.Size, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=draw) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                if isinstance(module, nn.Embedding):
                    value.copy_(normal(value.shape, 0.3))
                elif value.dim() > 1:
                    # transformers' Conv1D keeps (inputs, outputs), everything else (outputs, inputs, ...)
                    fan_in = value.shape[0] if type(module).__name__ == "Conv1D" else value[0].numel()
                    value.copy_(normal(value.shape, fan_in**-0.5))
                elif name == "bias":
                    value.copy_(normal(value.shape, 0.3))
                else:
                    value.copy_(uniform(value.shape, 0.5, 1.5))
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(normal(buffer.shape, 0.3))
                elif name == "running_var":
                    buffer.copy_(uniform(buffer.shape, 0.5, 1.5))
        if hasattr(model, "tie_weights"):
            model.tie_weights()
    return model.eval()


def tokens(seed: int = 0, *, rows: int = 3, length: int = TOKENS) -> Batch:
    draw = torch.Generator().manual_seed(1000 + seed)
    return {"input_ids": torch.randint(1, VOCABULARY, (rows, length), generator=draw)}


def padded_tokens(seed: int = 0, *, rows: int = 3, length: int = TOKENS) -> Batch:
    """Texts of different lengths, as encoders get them."""
    batch = tokens(seed, rows=rows, length=length)
    assert isinstance(batch, dict)
    lengths = torch.tensor([length - 3 * (row % 3) for row in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": batch["input_ids"] * mask, "attention_mask": mask}


def pictures(seed: int = 0, *, rows: int = 3, channels: int = 3, size: int = 16) -> Tensor:
    draw = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(rows, channels, size, size, generator=draw)


def pixel_values(seed: int = 0) -> Batch:
    return {"pixel_values": pictures(seed)}


def signals(seed: int = 0, *, rows: int = 3, length: int = 40) -> Tensor:
    draw = torch.Generator().manual_seed(3000 + seed)
    return torch.randn(rows, 2, length, generator=draw)


# ------------------------------------------------------------------------------------------------------ transformers


def _family(
    name: str,
    config: str,
    model: str,
    settings: dict[str, Any],
    batch: Callable[..., Batch],
    *,
    heads: tuple[str, int] | None = None,
    neurons: tuple[str, int] | None = None,
    layers: str | None = None,
    widths: Mapping[str, str] | None = None,
    sites: Sites | None = None,
) -> None:
    """Register a family whose blocks (two) each have one site of heads and one of neurons, or `sites`."""

    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return randomise(built)

    if sites is None:
        sites = {}
        for layer in range(2):
            if heads is not None:
                sites[f"{layers}.{layer}.{heads[0]}"] = ("heads", heads[1])
            if neurons is not None:
                sites[f"{layers}.{layer}.{neurons[0]}"] = ("neurons", neurons[1])
    ZOO[name] = Entry(name, build, batch, sites, layers, dict(widths or {}), transformers=True)


_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _TEXT | {"intermediate_size": 70, "num_attention_heads": 6, "num_key_value_heads": 3}
_GATED: dict[str, Any] = {
    "heads": ("self_attn.o_proj", 3),
    "neurons": ("mlp.down_proj", 70),
    "layers": "model.layers",
    "widths": {"neurons": "intermediate_size", "heads": "num_key_value_heads"},
}

_family(
    "opt",
    "OPTConfig",
    "OPTForCausalLM",
    _TEXT | {"word_embed_proj_dim": HIDDEN, "ffn_dim": 80, "num_attention_heads": 4},
    tokens,
    heads=("self_attn.out_proj", 4),
    neurons=("fc2", 80),
    layers="model.decoder.layers",
    widths={"neurons": "ffn_dim"},
)
_family(  # as OPT-350m: norms after the residual add, embeddings narrower than the model
    "opt_post_norm",
    "OPTConfig",
    "OPTForCausalLM",
    _TEXT
    | {"word_embed_proj_dim": 36, "ffn_dim": 80, "num_attention_heads": 4, "do_layer_norm_before": False},
    tokens,
    heads=("self_attn.out_proj", 4),
    neurons=("fc2", 80),
    layers="model.decoder.layers",
    widths={"neurons": "ffn_dim"},
)
_family(
    "gpt2",
    "GPT2Config",
    "GPT2LMHeadModel",
    {
        "vocab_size": VOCABULARY,
        "n_embd": HIDDEN,
        "n_inner": 100,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    tokens,
    heads=("attn.c_proj", 4),
    neurons=("mlp.c_proj", 100),
    layers="transformer.h",
    widths={"neurons": "n_inner"},
)
_family(  # tied embeddings, heads of a width of their own
    "llama",
    "LlamaConfig",
    "LlamaForCausalLM",
    _GROUPED | {"head_dim": 10, "tie_word_embeddings": True},
    tokens,
    **_GATED,
)
_family(  # every bias that the architecture can have
    "llama_biases",
    "LlamaConfig",
    "LlamaForCausalLM",
    _GROUPED | {"attention_bias": True, "mlp_bias": True},
    tokens,
    **_GATED,
)
_family("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _GROUPED, tokens, **_GATED)
_family("qwen3", "Qwen3Config", "Qwen3ForCausalLM", _GROUPED | {"head_dim": 10}, tokens, **_GATED)
_family(
    "mistral",
    "MistralConfig",
    "MistralForCausalLM",
    _GROUPED | {"head_dim": 10, "sliding_window": 6},
    tokens,
    **_GATED,
)
_family("gemma", "GemmaConfig", "GemmaForCausalLM", _GROUPED | {"head_dim": 10}, tokens, **_GATED)
_family(
    "gemma2",
    "Gemma2Config",
    "Gemma2ForCausalLM",
    _GROUPED | {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 6},
    tokens,
    **_GATED,
)
_family(
    "gemma3",
    "Gemma3TextConfig",
    "Gemma3ForCausalLM",
    _GROUPED
    | {
        "head_dim": 10,
        "query_pre_attn_scalar": 10,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    tokens,
    **_GATED,
)
_family(
    "phi",
    "PhiConfig",
    "PhiForCausalLM",
    _GROUPED | {"partial_rotary_factor": 0.5},
    tokens,
    heads=("self_attn.dense", 3),
    neurons=("mlp.fc2", 70),
    layers="model.layers",
    widths={"neurons": "intermediate_size", "heads": "num_key_value_heads"},
)
_family(
    "phi3",
    "Phi3Config",
    "Phi3ForCausalLM",
    _GROUPED | {"original_max_position_embeddings": 64},
    tokens,
    **_GATED,
)
_family(
    "bert",
    "BertConfig",
    "BertModel",
    _TEXT | {"intermediate_size": 70, "num_attention_heads": 4, "type_vocab_size": 2},
    padded_tokens,
    heads=("attention.output.dense", 4),
    neurons=("output.dense", 70),
    layers="encoder.layer",
    widths={"neurons": "intermediate_size"},
)
_family(
    "vit",
    "ViTConfig",
    "ViTForImageClassification",
    {
        "hidden_size": HIDDEN,
        "intermediate_size": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "num_labels": 7,
    },
    pixel_values,
    heads=("attention.o_proj", 4),
    neurons=("mlp.fc2", 70),
    layers="vit.layers",
    widths={"neurons": "intermediate_size"},
)
_STAGES = "resnet.encoder.stages"
_family(
    "resnet_basic",
    "ResNetConfig",
    "ResNetForImageClassification",
    {
        "embedding_size": 10,
        "hidden_sizes": [12, 18],
        "depths": [2, 2],
        "layer_type": "basic",
        "num_labels": 7,
    },
    pixel_values,
    sites={
        f"{_STAGES}.{stage}.layers.{layer}.layer.1.convolution": ("channels", width)
        for stage, width in enumerate((12, 18))
        for layer in range(2)
    },
)
_family(
    "resnet_bottleneck",
    "ResNetConfig",
    "ResNetForImageClassification",
    {
        "embedding_size": 10,
        "hidden_sizes": [24, 36],
        "depths": [1, 2],
        "layer_type": "bottleneck",
        "num_labels": 7,
    },
    pixel_values,
    sites={
        f"{_STAGES}.{stage}.layers.{layer}.layer.{inner}.convolution": ("channels", width)
        for stage, layer, width in ((0, 0, 6), (1, 0, 9), (1, 1, 9))
        for inner in (1, 2)
    },
)


# ------------------------------------------------------------------------------------------------- convolutional nets


def _add(name: str, make: Callable[[], nn.Module], batch: Callable[..., Batch], **facts: Any) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return randomise(make())

    ZOO[name] = Entry(name, build, batch, **facts)


class SamePadding(nn.Conv2d):
    """Pads by itself, in forward, as TensorFlow does: its `padding` stays 0."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in reversed(
            list(zip(x.shape[-2:], self.kernel_size, self.stride, strict=True))
        ):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MBConv(nn.Module):
    """EfficientNet's block, with or without squeeze and excitation; functional calls between its modules."""

    def __init__(self, inputs: int, inner: int, outputs: int, kernel: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.expand = SamePadding(inputs, inner, 1, bias=False)
        self.norm0 = nn.BatchNorm2d(inner)
        self.depthwise = SamePadding(inner, inner, kernel, stride, groups=inner, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.squeezed = squeeze > 0
        if self.squeezed:
            self.se_reduce = SamePadding(inner, squeeze, 1)
            self.se_expand = SamePadding(squeeze, inner, 1)
        self.project = SamePadding(inner, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu6(self.norm0(self.expand(inputs)))
        x = F.relu6(self.norm1(self.depthwise(x)))
        if self.squeezed:
            gate = self.se_expand(F.silu(self.se_reduce(F.adaptive_avg_pool2d(x, 1))))
            x = torch.sigmoid(gate) * x
        x = self.norm2(self.project(x))
        return x + inputs if self.skip else x


class EfficientNet(nn.Module):
    def __init__(self, squeeze: int = 0) -> None:
        super().__init__()
        self.stem = SamePadding(3, 8, 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(
            [
                MBConv(8, 18, 10, 3, 1, squeeze),
                MBConv(10, 22, 14, 5, 2, squeeze),
                MBConv(14, 26, 14, 3, 1, squeeze),
            ]
        )
        self.head = SamePadding(14, 30, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(30)
        self.fc = nn.Linear(30, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        x = F.relu6(self.head_norm(self.head(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concatenation(nn.Module):
    """Two branches side by side, then a convolution over both; flatten before the first Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 9, 3, padding=1)
        self.right = nn.Conv2d(3, 7, 5, padding=2)
        self.norm = nn.BatchNorm2d(7)
        self.both = nn.Conv2d(16, 11, 3, stride=2, padding=1)
        self.last = nn.Conv2d(11, 6, 3, stride=2, padding=1, dilation=1)
        self.fc1 = nn.Linear(6 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.left(x))
        right = F.relu(self.norm(self.right(x)))
        x = F.relu(self.both(torch.cat([left, right], dim=1)))
        x = F.relu(self.last(x))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Grouped(nn.Module):
    """Convolutions in groups that are not depthwise: three of four channels, then two of six."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.mix = nn.Conv2d(18, 12, 1)
        self.halves = nn.Conv2d(12, 10, 3, stride=2, groups=2)
        self.fc = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        x = F.relu(self.halves(F.relu(self.mix(x))))
        return self.fc(x.mean(dim=(2, 3)))


class Signals(nn.Module):
    """One-dimensional, like torchcrepe: the batch norm comes after the ReLU, the features are laid out time-major."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 12, 7, stride=2)
        self.norm1 = nn.BatchNorm1d(12)
        self.conv2 = nn.Conv1d(12, 9, 3, dilation=2)
        self.norm2 = nn.BatchNorm1d(9)
        self.conv3 = nn.Conv1d(9, 5, 3, padding=1)
        self.norm3 = nn.BatchNorm1d(5)
        self.classifier = nn.Linear(5 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.relu(self.conv1(x)))  # (rows, 12, 17)
        x = F.max_pool1d(self.norm2(F.relu(self.conv2(x))), 3)  # (rows, 9, 4)
        x = self.norm3(F.relu(self.conv3(x)))
        x = x.permute(0, 2, 1).reshape(len(x), -1)
        return self.classifier(x)


class Perceptron(nn.Module):
    """No convolution and no blocks: a batch norm, a gate whose two sides read the same inputs, two hidden widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.norm = nn.BatchNorm1d(20)
        self.gate = nn.Linear(20, 16, bias=False)
        self.up = nn.Linear(20, 16)
        self.down = nn.Linear(16, 14)
        self.out = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.first(x)))
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return self.out(torch.tanh(x))


def vectors(seed: int = 0, *, rows: int = 40) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(4000 + seed))


_add(
    "mobilenet_v2",
    lambda: MobileNetV2(table=((1, 6, 1, 1), (4, 10, 2, 2), (3, 14, 2, 1)), stem=8, last=24, classes=7),
    pictures,
    sites={
        "features.1.conv.1": ("channels", 8),
        "features.2.conv.0.0": ("channels", 6),
        "features.2.conv.2": ("channels", 24),
        "features.3.conv.2": ("channels", 40),
        "features.4.conv.2": ("channels", 30),
        "features.5.conv.2": ("channels", 42),
        "classifier.1": ("channels", 24),
    },
)
_EFFICIENT: Sites = {
    "blocks.0.expand": ("channels", 8),
    "blocks.0.project": ("channels", 18),
    "blocks.1.expand": ("channels", 10),
    "blocks.1.project": ("channels", 22),
    "blocks.2.project": ("channels", 26),
    "fc": ("channels", 30),
}
_add("efficientnet_lite", EfficientNet, pictures, sites=_EFFICIENT)
_add(
    "efficientnet",  # a gated block's inner channels have two consumers: they are no default site
    lambda: EfficientNet(squeeze=5),
    pictures,
    sites={
        "blocks.0.expand": ("channels", 8),
        "blocks.0.se_expand": ("channels", 5),
        "blocks.1.expand": ("channels", 10),
        "blocks.1.se_expand": ("channels", 5),
        "blocks.2.se_expand": ("channels", 5),
        "fc": ("channels", 30),
    },
)
_add(
    "concatenation",
    Concatenation,
    pictures,
    sites={
        "both": ("channels", 16),
        "last": ("channels", 11),
        "fc1": ("channels", 6),
        "fc2": ("neurons", 20),
    },
)
# Equal numbers of channels would have to go from each group of a grouped convolution: there is no site.
_add("grouped", Grouped, pictures, sites={})
_add(
    "signals",
    Signals,
    signals,
    sites={"conv2": ("channels", 12), "conv3": ("channels", 9), "classifier": ("channels", 5)},
)
_add(
    "perceptron",
    Perceptron,
    vectors,
    sites={"down": ("neurons", 16), "out": ("neurons", 14)},
)
