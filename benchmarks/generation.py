"""Is the smaller model faster? Wall time of generation and of prompt processing, as ratios to the dense model.

    python benchmarks/generation.py --neurons 768                 # of that shape, no pruning needed
    python benchmarks/generation.py --neurons 1152 --repeats 9
    python benchmarks/generation.py --groups 2                    # KV groups a layer, of three query heads each
    python benchmarks/generation.py DIR DIR2                      # checkpoints that were pruned and saved

Time depends on the widths alone; without folders, the weights of the smaller model are therefore random ones of that
shape. The models take turns within a repetition, the order is reversed from one to the next, and each ratio is of two
runs of the same repetition: what else the machine does meanwhile then touches both. Reported: median, lowest and
highest ratio. Generation: 64 new tokens, greedy, with the cache of keys and values, after a prompt of 32. Prompt: 512
tokens, one pass that fills that cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import machine, markdown, say
from torch import Tensor, nn

from osscar_opt.torch.checkpoint import load_pruned
from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model

PROMPT, SHORT_PROMPT, NEW = 512, 32, 64


def reshaped(model: Any, neurons: int | None, groups: int | None) -> nn.Module:
    """A model like this one with other widths, of random weights."""
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(model.config.to_dict())
    if neurons is not None:
        config.intermediate_size = neurons
    if groups is not None:
        each = config.num_attention_heads // config.num_key_value_heads
        config.num_attention_heads, config.num_key_value_heads = groups * each, groups
    return AutoModelForCausalLM.from_config(config).eval()


def generate(model: Any, prompt: Tensor) -> None:
    """Greedy, to the full length; own loop, so that nothing but the model's passes is timed."""
    with torch.inference_mode():
        outputs = model(input_ids=prompt[:, :SHORT_PROMPT], use_cache=True)
        for _ in range(NEW - 1):
            token = outputs.logits[:, -1:].argmax(-1)
            outputs = model(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True)


def read(model: Any, prompt: Tensor) -> None:
    """Process a prompt; only the last position's logits are computed, as generation would."""
    with torch.inference_mode():
        model(input_ids=prompt, use_cache=True, logits_to_keep=1)


WORK: dict[str, Callable[[Any, Tensor], None]] = {"generation": generate, "prompt": read}


def ratios(models: Sequence[Any], prompt: Tensor, repeats: int) -> dict[str, list[list[float]]]:
    """For each kind of work and each model after the first: the first one's time over its own, each time."""
    for model in models:  # first passes allocate
        read(model, prompt)
        generate(model, prompt)
    found: dict[str, list[list[float]]] = {kind: [[] for _ in models[1:]] for kind in WORK}
    begin = time.perf_counter()
    for repeat in range(repeats):
        for kind, work in WORK.items():
            seconds = [0.0] * len(models)
            order = range(len(models)) if repeat % 2 == 0 else reversed(range(len(models)))
            for index in order:
                start = time.perf_counter()
                work(models[index], prompt)
                seconds[index] = time.perf_counter() - start
            for other, own in enumerate(seconds[1:]):
                found[kind][other].append(seconds[0] / own)
        spent = time.perf_counter() - begin
        say(f"[{repeat + 1}/{repeats}] about {spent / (repeat + 1) * (repeats - repeat - 1):.0f} s left")
    return found


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="checkpoints of pruned models")
    parser.add_argument(
        "--dense", default=PACKAGED_MODEL, help="folder of the dense model (default: packaged)"
    )
    parser.add_argument("--neurons", type=int, nargs="*", default=[], help="FFN widths to try")
    parser.add_argument("--groups", type=int, nargs="*", default=[], help="numbers of KV groups to try")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    dense, _, name = load_language_model(options.dense)
    smaller = {folder.name: load_pruned(folder) for folder in options.folders}
    smaller |= {f"{width} FFN neurons": reshaped(dense, width, None) for width in options.neurons}
    smaller |= {f"{count} KV groups": reshaped(dense, None, count) for count in options.groups}
    if not smaller:
        parser.error("name a folder, or --neurons, or --groups")
    prompt = torch.randint(100, 10_000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    found = ratios([dense, *smaller.values()], prompt, options.repeats)
    whole = sum(parameter.numel() for parameter in dense.parameters())
    rows = [
        (
            label,
            f"{sum(parameter.numel() for parameter in model.parameters()) / whole:.3f}",
            *(_cell(found[kind][index]) for kind in WORK),
        )
        for index, (label, model) in enumerate(smaller.items())
    ]
    print(f"{name}: dense time over pruned time, median of {options.repeats} (lowest-highest)")
    print(markdown(("model", "parameters", f"{NEW} new tokens", f"prompt of {PROMPT}"), rows, "l"))
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
