"""From a language model on disk to an instance file: what ``osscar-opt extract`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osscar_opt.errors import InputError
from osscar_opt.torch.layers import GroupSpec
from osscar_opt.torch.news import TEXT_NAME, news_articles, split_articles
from osscar_opt.torch.smollm2 import MODEL_NAME, require_packages, smollm2_folder

if TYPE_CHECKING:
    import torch

    from osscar_opt.formulations.problem import Problem

__all__ = ["calibration_batches", "extract_to_file", "load_language_model"]

PACKAGED_MODEL = "smollm2"


def load_language_model(source: str | Path) -> tuple[torch.nn.Module, Any, str]:
    """Load a causal language model in float32, its tokenizer, and the name to report it under.

    Parameters
    ----------
    source : str or path
        ``"smollm2"`` for the packaged SmolLM2-135M-Instruct, or a Hugging Face folder. Nothing is downloaded.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode.
    tokenizer
        A transformers tokenizer.
    name : str

    Raises
    ------
    UnavailableError
        When transformers or the packaged model is not installed.
    InputError
        When the folder is not a checkpoint of a causal language model.

    Examples
    --------
    >>> model, tokenizer, name = load_language_model("smollm2")  # doctest: +SKIP
    >>> name  # doctest: +SKIP
    'SmolLM2-135M-Instruct, 4-bit weights dequantised to float32'
    """
    require_packages(["transformers"], "loading a language model")
    packaged = str(source) == PACKAGED_MODEL
    folder = smollm2_folder() if packaged else Path(source)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a Hugging Face checkpoint folder (it has no config.json): "
            f"give one, or {PACKAGED_MODEL!r}."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{folder} could not be loaded as a causal language model: {reason}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval(), tokenizer, MODEL_NAME if packaged else folder.name


def calibration_batches(
    tokenizer: Any, text: str | Path | None, *, windows: int, length: int, batch_size: int
) -> tuple[list[torch.Tensor], str]:
    """Batches of token windows to calibrate on, and the name of their text.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    text : str or path, optional
        A plain text file in UTF-8; None for the calibration half of the packaged news.
    windows, length, batch_size : int
        Windows in all, tokens in a window, windows in a batch.

    Returns
    -------
    batches : list of torch.Tensor
        Token numbers, at most (batch_size, length) each.
    name : str

    Raises
    ------
    InputError
        When the file cannot be read or is too short.

    Examples
    --------
    >>> batches, name = calibration_batches(
    ...     tokenizer, "book.txt", windows=8, length=512, batch_size=4
    ... )  # doctest: +SKIP
    """
    import torch

    from osscar_opt.torch.evaluation import token_windows

    if text is None:
        texts, name = split_articles(news_articles())[0], TEXT_NAME
    else:
        try:
            texts, name = [Path(text).read_text(encoding="utf-8")], Path(text).name
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the text {text} could not be read as UTF-8: {error}") from error
    return list(torch.split(token_windows(texts, tokenizer, windows, length), batch_size)), name


def extract_to_file(
    model_source: str | Path,
    layer_name: str,
    out_path: str | Path,
    *,
    text: str | Path | None = None,
    windows: int = 32,
    length: int = 512,
    batch_size: int = 4,
    keep: int | None = None,
    sparsity: float | None = None,
    damping: float = 1e-2,
    groups: GroupSpec = "neurons",
    head_dim: int | None = None,
    num_heads: int | None = None,
    intercept: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Problem:
    """Extract one layer of a causal language model into an instance file.

    Parameters
    ----------
    model_source : str or path
        ``"smollm2"`` for the packaged model, or a Hugging Face folder.
    layer_name : str
        Dotted name of a supported layer, such as ``"model.layers.0.mlp.down_proj"``.
    out_path : str or path
        Where `Problem.save` writes the instance.
    text : str or path, optional
        A text file to calibrate on; None for the packaged news.
    windows, length, batch_size : int, optional
        Windows to calibrate on, tokens in a window, windows run at once.
    keep, sparsity, damping, groups, head_dim, num_heads, intercept
        As in `osscar_opt.torch.problem_from_layer`. For ``groups="heads"`` without sizes, the number of heads
        is read from the model's configuration.
    progress : callable, optional
        Called with batches done and batches in all.

    Returns
    -------
    Problem
        The problem that was saved.

    Raises
    ------
    UnavailableError
        When a package is missing.
    LayerError, InputError
        As in `osscar_opt.torch.problem_from_layer`; nothing is written then.

    Examples
    --------
    >>> layer = "model.layers.0.mlp.down_proj"
    >>> extract_to_file("smollm2", layer, "layer0.safetensors", sparsity=0.5).keep  # doctest: +SKIP
    768
    """
    from osscar_opt.torch.extract import problem_from_layer
    from osscar_opt.torch.layers import find_layer, view_of

    model, tokenizer, model_name = load_language_model(model_source)
    view_of(find_layer(model, layer_name), layer_name)  # a wrong name is told before the text is read
    batches, text_name = calibration_batches(
        tokenizer, text, windows=windows, length=length, batch_size=batch_size
    )
    if groups == "heads" and head_dim is None and num_heads is None:
        num_heads = getattr(model.config, "num_attention_heads", None)

    def told() -> Any:
        for done, batch in enumerate(batches):
            yield {"input_ids": batch}
            if progress is not None:
                progress(done + 1, len(batches))

    problem = problem_from_layer(
        model,
        layer_name,
        told(),
        keep=keep,
        sparsity=sparsity,
        damping=damping,
        groups=groups,
        head_dim=head_dim,
        num_heads=num_heads,
        intercept=intercept,
        name=layer_name,
        provenance={"model": model_name, "text": text_name, "windows": windows, "window_length": length},
    )
    problem.save(out_path)
    return problem
