"""Pruned models on disk: a plain Hugging Face folder where its configuration can say it, else weights and structure.

A folder written here holds no pickle. Either it is an ordinary checkpoint, which transformers loads by itself, or, when
layers differ in width or the model is not transformers', it holds

- ``weights.safetensors``: parameters and buffers;
- ``structure.json``: the shape and dtype of each, the whole numbers that the modules keep (in_features, num_heads,
  ...), the model's class and, for transformers' models, the dense model's configuration.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from osscar_opt.errors import FormatError, InputError, LayerError, UnavailableError

__all__ = ["load_pruned", "save_pruned"]

FORMAT = "osscar_opt pruned model"
VERSION = (1, 0)
STRUCTURE = "structure.json"
WEIGHTS = "weights.safetensors"
REPORT = "pruning.json"

_NEURON_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff")
_KEY_FIELDS = ("num_key_value_heads",)
_HEAD_FIELDS = ("num_attention_heads", "n_head")


# ---------------------------------------------------------------------------------------------------------- saving


def save_pruned(
    model: torch.nn.Module,
    folder: str | os.PathLike[str],
    *,
    report: Any = None,
    tokenizer: Any = None,
) -> bool:
    """Write a model, pruned or not, to a new folder that `load_pruned` reads.

    Parameters
    ----------
    model : torch.nn.Module
        Masked or shrunk; left as it is, but for the widths in the configuration of a transformers model, which are set
        to those the model has where every layer has the same.
    folder : str or path
        Must not exist yet, or be empty. Written aside and renamed.
    report : optional
        Has ``to_dict()``, or can be written as JSON: kept in ``pruning.json``.
    tokenizer : optional
        Has ``save_pretrained(folder)``.

    Returns
    -------
    bool
        Whether it is a plain checkpoint that transformers loads without this library.

    Raises
    ------
    InputError
        When the folder exists and is not empty, or its parent does not exist.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_pruned(torch.nn.Linear(3, 2), Path(parent) / "small")
    ...     load_pruned(Path(parent) / "small", torch.nn.Linear(5, 4))
    False
    Linear(in_features=3, out_features=2, bias=True)
    """
    target = Path(folder)
    refuse_occupied(target)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        plain = _plain_configuration(model)
        if plain is not None:
            model.config = plain
            _without_noise(lambda: model.save_pretrained(aside))  # type: ignore[operator]
        else:
            _write_structured(model, aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        if report is not None:
            content = report.to_dict() if hasattr(report, "to_dict") else report
            (aside / REPORT).write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        for path in (
            aside,
            *aside.rglob("*"),
        ):  # temporary folders, and safetensors' files, are their owner's alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return plain is not None


def refuse_occupied(target: Path) -> None:
    """Refuse a folder that holds something, or that has no parent, before work goes into it.

    Raises
    ------
    InputError

    Examples
    --------
    >>> refuse_occupied(Path("nowhere/at/all"))
    Traceback (most recent call last):
    osscar_opt.errors.InputError: cannot write nowhere/at/all: there is no directory nowhere/at.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"cannot write {target}: it exists and is not an empty folder, so give another name."
        )
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no directory {target.parent}.")


def _write_structured(model: torch.nn.Module, folder: Path) -> None:
    from safetensors.torch import save_model

    dense: Any = getattr(model, "config", None)
    structure = {
        "format": FORMAT,
        "version": ".".join(map(str, VERSION)),
        "class": [type(model).__module__, type(model).__qualname__],
        "config": dense.to_dict() if hasattr(dense, "to_dict") else None,
        "tensors": {
            name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in _tensors(model)
        },
        "numbers": {
            path: numbers for path, module in model.named_modules() if (numbers := _numbers(module, dense))
        },
    }
    save_model(model, str(folder / WEIGHTS))
    (folder / STRUCTURE).write_text(json.dumps(structure), encoding="utf-8")


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a state dict holds, shared tensors under each of their names."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            yield name, tensor


def _numbers(module: torch.nn.Module, config: Any) -> dict[str, int]:
    """Whole numbers a module keeps; those of a configuration of its own as ``config.NAME``."""
    found = {name: value for name, value in vars(module).items() if type(value) is int}
    own = vars(module).get("config")
    if own is not None and config is not None and own is not config:
        found |= {
            f"config.{name}": value
            for name, value in vars(own).items()
            if type(value) is int and vars(config).get(name) != value
        }
    return found


# --------------------------------------------------------------------------------- what a configuration can express


def _plain_configuration(model: torch.nn.Module) -> Any:
    """A configuration from which transformers builds exactly this model; None if there is none."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained") or not hasattr(config, "to_dict"):
        return None
    for candidate in _candidates(model, config):
        if _same_structure(model, candidate):
            return candidate
    return None


def _candidates(model: torch.nn.Module, config: Any) -> Iterator[Any]:
    """The configuration as it is, and with the widths that the layers have."""
    yield config
    skeleton = _skeleton(model, config)
    if skeleton is None:
        return
    now = dict(_tensors(model))
    then = dict(_tensors(skeleton))
    changes = {
        (old, new)
        for name, tensor in then.items()
        if name in now
        for old, new in zip(tensor.shape, now[name].shape, strict=False)
        if old != new
    }
    neurons = [f for f in _NEURON_FIELDS if hasattr(config, f)]
    heads = [f for f in (*_HEAD_FIELDS, *_KEY_FIELDS) if isinstance(getattr(config, f, None), int)]
    widths: set[int | None] = {new for old, new in changes if old in _neuron_widths(config, neurons)}
    shares: set[tuple[int, int] | None] = {*_head_shares(model, config), None}
    for width in widths or {None}:
        for share in shares:
            changed = copy.deepcopy(config)
            for name in neurons:
                if width is not None:
                    setattr(changed, name, width)
            if share is not None:
                queries, keys = share
                if getattr(config, "head_dim", None) is None:
                    changed.head_dim = config.hidden_size // config.num_attention_heads
                for name in heads:
                    setattr(changed, name, keys if name in _KEY_FIELDS else queries)
            yield changed


def _neuron_widths(config: Any, fields: list[str]) -> set[int]:
    """Widths that the configuration gives to neurons; GPT-2's unset n_inner stands for four times the model's."""
    found: set[int | None] = {getattr(config, name) for name in fields}
    if None in found and hasattr(config, "hidden_size"):
        found |= {4 * config.hidden_size}
    return {width for width in found if isinstance(width, int)}


def _head_shares(model: torch.nn.Module, config: Any) -> set[tuple[int, int]]:
    """Numbers of query heads, and of heads with keys and values, that the attentions' projections have."""
    head_dim = getattr(config, "head_dim", None)
    if (
        head_dim is None
        and getattr(config, "num_attention_heads", None)
        and getattr(config, "hidden_size", None)
    ):
        head_dim = config.hidden_size // config.num_attention_heads
    if not isinstance(head_dim, int):
        return set()
    found = set()
    for module in model.modules():
        query, key = (getattr(module, name, None) for name in ("q_proj", "k_proj"))
        if isinstance(query, torch.nn.Linear) and isinstance(key, torch.nn.Linear):
            found.add((query.out_features // head_dim, key.out_features // head_dim))
        fused = getattr(module, "qkv_proj", None)
        own = vars(module).get("config")
        if isinstance(fused, torch.nn.Linear) and own is not None:
            found.add(
                (own.num_attention_heads, getattr(module, "num_key_value_heads", own.num_key_value_heads))
            )
    return found if len(found) == 1 else set()


def _skeleton(model: torch.nn.Module, config: Any) -> torch.nn.Module | None:
    """The model that transformers builds from a configuration, without memory for weights."""
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(config))
    except Exception:  # whatever the class does not accept, it cannot be a checkpoint of it
        return None
    return built if isinstance(built, torch.nn.Module) else None


def _same_structure(model: torch.nn.Module, config: Any) -> bool:
    skeleton = _skeleton(model, config)
    if skeleton is None:
        return False
    shapes = [{name: tuple(tensor.shape) for name, tensor in _tensors(m)} for m in (model, skeleton)]
    if shapes[0] != shapes[1]:
        return False
    ours, theirs = (dict(m.named_modules()) for m in (model, skeleton))
    return all(
        _plain_numbers(module, config, model) == _plain_numbers(theirs[path], config, skeleton)
        for path, module in ours.items()
        if path in theirs
    )


_COSMETIC = frozenset({"training", "embed_dim", "hidden_size", "layer_idx", "nf", "nx", "config"})
"""Numbers that no forward pass uses once weights are there, or that the shapes have already shown."""


def _plain_numbers(module: torch.nn.Module, config: Any, model: torch.nn.Module) -> dict[str, int]:
    numbers = {
        name: value for name, value in vars(module).items() if type(value) is int and name not in _COSMETIC
    }
    own = vars(module).get("config")
    if own is not None and own is not getattr(model, "config", None):
        numbers |= {
            f"config.{name}": getattr(own, name)
            for name in (*_HEAD_FIELDS, *_KEY_FIELDS)
            if type(getattr(own, name, None)) is int and getattr(own, name) != getattr(config, name, None)
        }
    return numbers


# --------------------------------------------------------------------------------------------------------- loading


def load_pruned(folder: str | os.PathLike[str], model: torch.nn.Module | None = None) -> torch.nn.Module:
    """Load what `save_pruned` wrote, in evaluation mode and in the dtypes it was saved with.

    Parameters
    ----------
    folder : str or path
    model : torch.nn.Module, optional
        For models that are not transformers': one of the same class and dense widths, with any weights; it gets the
        pruned shapes and weights, in place. Transformers' models are built from the folder alone.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    FormatError
        When the folder is not a checkpoint, is of a version this reader does not know, or its parts disagree.
    UnavailableError
        When transformers is needed and missing.
    InputError
        When a model is needed and was not given.

    Examples
    --------
    >>> load_pruned("nowhere")
    Traceback (most recent call last):
    osscar_opt.errors.FormatError: nowhere is not a folder with a pruned model: it has no config.json and no st...
    """
    source = Path(folder)
    if not (source / STRUCTURE).is_file():
        if not (source / "config.json").is_file():
            raise FormatError(
                f"{source} is not a folder with a pruned model: it has no config.json and no {STRUCTURE}."
            )
        return _load_plain(source)
    structure = _read_structure(source)
    built = _built(structure, model)
    _reshape(built, structure, source)
    from safetensors.torch import load_model

    try:
        load_model(built, str(source / WEIGHTS), strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(
            f"the weights in {source} do not fit its structure: {_first_line(error)}"
        ) from error
    except Exception as error:  # safetensors' own error is no subclass of any of the above
        raise FormatError(f"the weights in {source} could not be read: {_first_line(error)}") from error
    return built.eval()


def _load_plain(source: Path) -> torch.nn.Module:
    transformers = _transformers(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or ["AutoModel"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise FormatError(f"{source} holds a {names[0]}, which the installed transformers does not know.")
    try:
        model = _without_noise(lambda: kind.from_pretrained(source, local_files_only=True, dtype="auto"))
    except (OSError, ValueError, RuntimeError) as error:
        raise FormatError(f"{source} could not be loaded: {_first_line(error)}") from error
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def _transformers(source: Path) -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnavailableError(f"{source} holds a transformers model: pip install transformers.") from error


def _read_structure(source: Path) -> dict[str, Any]:
    try:
        structure = json.loads((source / STRUCTURE).read_text(encoding="utf-8"))
        known = structure["format"] == FORMAT
        major = int(structure["version"].split(".")[0])
        complete = all(key in structure for key in ("class", "config", "tensors", "numbers"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{source / STRUCTURE} is damaged: save the model again.") from error
    if not known or not complete:
        raise FormatError(f"{source / STRUCTURE} does not describe a pruned model.")
    if major != VERSION[0]:
        raise FormatError(
            f"{source} was written in version {structure['version']}, and this reader knows {VERSION[0]}.x: "
            "update osscar_opt."
        )
    return dict(structure)


def _built(structure: dict[str, Any], model: torch.nn.Module | None) -> torch.nn.Module:
    home, name = structure["class"]
    if model is not None:
        if type(model).__qualname__ != name:
            raise InputError(f"the folder holds a {name}, and the model given is a {type(model).__name__}.")
        return model
    if structure["config"] is None or not home.startswith("transformers."):
        raise InputError(f"the folder holds a {name}: build a dense one and pass it as model=.")
    transformers = _transformers(Path(home))
    kind = getattr(transformers, name, None)
    if kind is None:
        raise FormatError(f"the folder holds a {name}, which the installed transformers does not know.")
    built = kind(kind.config_class.from_dict(structure["config"]))
    assert isinstance(built, torch.nn.Module)
    return built


def _reshape(model: torch.nn.Module, structure: dict[str, Any], source: Path) -> None:
    """Give tensors their pruned shapes and modules their pruned numbers; shared tensors stay shared."""
    shapes = structure["tensors"]
    present = dict(_tensors(model))
    missing = sorted(set(shapes) ^ set(present))
    if missing:
        raise FormatError(f"{source} and the model do not hold the same tensors: {', '.join(missing[:3])}.")
    done: dict[int, torch.Tensor] = {}
    for name, tensor in present.items():
        shape, dtype = shapes[name]
        if id(tensor) not in done:
            fresh = torch.empty(shape, dtype=getattr(torch, dtype), device=tensor.device)
            if isinstance(tensor, torch.nn.Parameter):
                fresh = torch.nn.Parameter(fresh, requires_grad=tensor.requires_grad)
            done[id(tensor)] = fresh
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        table = owner._parameters if leaf in owner._parameters else owner._buffers
        table[leaf] = done[id(tensor)]  # type: ignore[assignment]
    for path, numbers in structure["numbers"].items():
        _renumber(model, path, numbers)


def _renumber(model: torch.nn.Module, path: str, numbers: dict[str, int]) -> None:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise LayerError(f"the model has no module {path!r}, which the folder's structure names.") from error
    for name, value in numbers.items():
        if not name.startswith("config."):
            setattr(module, name, value)
            continue
        if vars(module).get("config") is getattr(model, "config", None):
            module.config = copy.copy(module.config)
        setattr(module.config, name.removeprefix("config."), value)


def _without_noise(work: Any) -> Any:
    """Call something of transformers without its progress bars."""
    logging = importlib.import_module("transformers.utils.logging")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return work()
    finally:
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
