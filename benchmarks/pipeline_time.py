"""What pruning a whole model costs beyond the forward passes that sequential calibration cannot do without.

    python benchmarks/pipeline_time.py                        # FFN of all 30 layers of SmolLM2-135M, 64 windows of 512
    python benchmarks/pipeline_time.py --windows 16 --repeats 3
    python benchmarks/pipeline_time.py --method magnitude_refit

Sequential calibration runs every block twice on every batch: once to see the inputs of the layer that is pruned, once
more, pruned, for what the next block gets. Reported is the time of prune_model (sequential, student targets, half of
the FFN neurons) over the time of two passes of the dense model's blocks on the same batches: one measured right before
it, one right after, in the same process. The aim is at most 1.8. Solving takes the same time however many windows there
are, so that few of them make the ratio larger.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import copy
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from measuring import machine, markdown, say
from real_models import LENGTH, calibration
from torch import Tensor

from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model

SITES = "model.layers.*.mlp.down_proj"


def pass_seconds(model: Any, batches: Iterable[dict[str, Tensor]]) -> float:
    """One forward pass of all blocks, without the logits, which calibration does not need."""
    begin = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            model.model(**batch, use_cache=False)
    return time.perf_counter() - begin


def prune(
    model: Any, batches: list[dict[str, Tensor]], options: argparse.Namespace
) -> tuple[float, dict[str, float]]:
    """Seconds in all, and by the report's parts."""
    from osscar_opt.torch.prune import prune_model

    begin = time.perf_counter()
    report = prune_model(
        model,
        batches,
        sites=[SITES],
        sparsity=options.sparsity,
        method=options.method,
        order=options.order,
        targets=options.targets,
    )
    return time.perf_counter() - begin, report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--method", default="osscar")
    parser.add_argument("--order", default="sequential", choices=("sequential", "parallel"))
    parser.add_argument("--targets", default="student", choices=("student", "teacher"))
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    dense, tokenizer, name = load_language_model(PACKAGED_MODEL)
    batches = calibration(tokenizer, options.windows, LENGTH, options.batch_size)
    pass_seconds(dense, batches[:1])  # the first pass allocates
    rows = []
    begin = time.perf_counter()
    for repeat in range(options.repeats):
        before = pass_seconds(dense, batches)
        pruning, parts = prune(copy.deepcopy(dense), batches, options)
        passes = before + pass_seconds(dense, batches)
        rows.append((pruning, passes, pruning / passes))
        shares = ", ".join(f"{part} {seconds / passes:.2f}" for part, seconds in parts.items())
        say(f"parts, in units of two passes: {shares}")
        spent = time.perf_counter() - begin
        left = spent / (repeat + 1) * (options.repeats - repeat - 1)
        say(f"[{repeat + 1}/{options.repeats}] ratio {rows[-1][2]:.2f}, about {left:.0f} s left")
    print(
        f"{name}: {options.method}, {options.order}, {options.targets}; {options.windows} windows of {LENGTH}"
    )
    head = ("run", "prune_model, s", "two passes, s", "ratio")
    print(
        markdown(head, [(i + 1, f"{a:.1f}", f"{b:.1f}", f"{r:.2f}") for i, (a, b, r) in enumerate(rows)], "l")
    )
    print(f"\nmedian ratio {statistics.median(ratio for *_, ratio in rows):.2f}")
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
