"""A whole language model pruned: perplexity on held-out texts, method by method.

    python benchmarks/whole_model.py --out whole.jsonl                  # all rows, 64 windows of 512 (about 2 hours)
    python benchmarks/whole_model.py --out whole.jsonl --table          # the table of what is there so far
    python benchmarks/whole_model.py --out w.jsonl --only ffn25/osscar --windows 16 --eval-windows 8
    python benchmarks/whole_model.py --out whole.jsonl --save DIR --only "ffn50/osscar sequential, student"

SmolLM2-135M-Instruct (4-bit weights dequantised) loses 25 % or 50 % of the FFN neurons of every layer, or one of three
KV groups (3 of 9 query heads) of every layer. It is calibrated on windows of the calibration half of the news;
perplexity is measured on the held-out half, on speeches and on essays. One row for each case and method; finished rows
are skipped, so that an interrupted run goes on. With --save, each pruned model also goes to a folder of its own.

What must be installed: see real_models.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from measuring import Record, Results, done_already, machine, markdown, number, run, say
from real_models import LENGTH, TEXTS, calibration, held_out
from torch import Tensor, nn

from osscar_opt.torch.evaluation import perplexity
from osscar_opt.torch.extract_file import PACKAGED_MODEL, load_language_model

BATCH = 4  # windows run at once


@dataclass(frozen=True)
class Case:
    """What is removed: `sites` is a pattern of consumers, `sparsity` the share of each site's units."""

    name: str
    said: str
    sites: str
    sparsity: float


@dataclass(frozen=True)
class Way:
    """How it is chosen: arguments of prune_model."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("ffn25", "25 % of FFN neurons", "model.layers.*.mlp.down_proj", 0.25),
    Case("ffn50", "50 % of FFN neurons", "model.layers.*.mlp.down_proj", 0.5),
    Case("heads", "1 of 3 KV groups", "model.layers.*.self_attn.o_proj", 1 / 3),
)
WAYS = (
    Way("magnitude", {"method": "magnitude", "order": "parallel"}),
    Way("magnitude_refit", {"method": "magnitude_refit", "order": "parallel"}),
    Way("osscar parallel", {"method": "osscar", "order": "parallel"}),
    Way("osscar sequential, teacher", {"method": "osscar", "order": "sequential", "targets": "teacher"}),
    Way("osscar sequential, student", {"method": "osscar", "order": "sequential", "targets": "student"}),
)
LIGHTER = Way(
    "osscar sequential, student, damping 1e-3",
    {"method": "osscar", "order": "sequential", "targets": "student", "damping": 1e-3},
)
DENSE = "dense"


@cache
def _material(
    windows: int, eval_windows: int, blank_lines: bool
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Calibration batches, and the held-out windows of each text."""
    _, tokenizer, _ = load_language_model(PACKAGED_MODEL)
    return calibration(tokenizer, windows, LENGTH, BATCH, blank_lines=blank_lines), held_out(
        tokenizer, eval_windows
    )


def measure(model: nn.Module, texts: dict[str, Tensor], label: str) -> Record:
    found: Record = {}
    for text, windows in texts.items():
        found[text] = perplexity(model, windows, progress=_every(f"{label}: {text}"))
    return found


def _every(label: str, seconds: float = 15.0) -> Callable[[int, int], None]:
    """Progress that speaks up now and then, with the time left."""
    begin = last = time.perf_counter()

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= seconds and done:
            last = now
            say(f"    {label}: {done}/{total}, about {(now - begin) / done * (total - done):.0f} s left")

    return told


def prune_and_measure(case: Case, way: Way, options: argparse.Namespace) -> Record:
    from osscar_opt.torch.checkpoint import save_pruned
    from osscar_opt.torch.prune import prune_model

    batches, texts = _material(options.windows, options.eval_windows, options.blank_lines)
    model, tokenizer, _ = load_language_model(PACKAGED_MODEL)
    label = f"{case.name}/{way.name}"
    begin = time.perf_counter()
    report = prune_model(
        model,
        batches,
        sites=[case.sites],
        sparsity=case.sparsity,
        **way.arguments,
    )
    seconds = time.perf_counter() - begin
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        folder = options.save / label.replace("/", "-").replace(", ", "-").replace(" ", "-")
        save_pruned(model, folder, report=report, tokenizer=tokenizer)
    return {
        "seconds": seconds,
        "parameters": report.parameters_after,
        "parameters_removed": 1 - report.parameters_after / report.parameters_before,
        "rows": report.rows[0].rows,
        "relative": [row.relative for row in report.rows],
        "parts": report.seconds,
        "passes": report.passes,
        "peak_memory": report.peak_memory,
        **measure(model, texts, label),
    }


def dense(options: argparse.Namespace) -> Record:
    _, texts = _material(options.windows, options.eval_windows, options.blank_lines)
    model, _, _ = load_language_model(PACKAGED_MODEL)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": 0.0, "parameters": parameters, **measure(model, texts, DENSE)}


def tasks(options: argparse.Namespace) -> list[tuple[Record, Callable[[], Record]]]:
    settings = f"{options.windows} windows of {LENGTH}, {options.eval_windows} held out"
    settings += ", articles joined by blank lines" if options.blank_lines else ""

    def task(case: str, method: str) -> Record:
        threads = torch.get_num_threads()
        return {
            "kind": "whole_model",
            "case": case,
            "method": method,
            "limit": None,
            "hash": settings,
            "threads": threads,
        }

    todo: list[tuple[Record, Callable[[], Record]]] = [(task(DENSE, ""), lambda: dense(options))]
    for case in CASES:
        for way in (*WAYS, LIGHTER):
            if f"{case.name}/{way.name}".startswith(tuple(options.only)):
                work = lambda case=case, way=way: prune_and_measure(case, way, options)  # noqa: E731
                todo.append((task(case.name, way.name), work))
    return todo


def table(records: Iterable[Record]) -> str:
    said = {case.name: case.said for case in CASES}
    rows: list[Sequence[Any]] = [
        (
            said.get(record["case"], record["case"]),
            record["method"],
            f"{record['parameters'] / 1e6:.1f} M",
            *(number(record[text], 4) for text in TEXTS),
            number(record["seconds"]),
        )
        for record in records
    ]
    return markdown(("removed", "method", "parameters", *TEXTS, "seconds"), rows, "ll")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON object a line")
    parser.add_argument("--only", nargs="*", default=[""], help='only rows whose "case/method" starts so')
    parser.add_argument("--windows", type=int, default=64, help="to calibrate on (default 64)")
    parser.add_argument("--eval-windows", type=int, default=40, help="of each held-out text (default 40)")
    parser.add_argument(
        "--blank-lines",
        action="store_true",
        help="between the articles calibrated on, as in the held-out texts",
    )
    parser.add_argument("--save", type=Path, help="folder for the pruned models")
    parser.add_argument("--table", action="store_true", help="only the table of what is done")
    options = parser.parse_args()
    results = Results(options.out)
    todo = tasks(options)
    print(table(done_already(todo, results) if options.table else run(todo, results)))
    print(
        f"\n{todo[0][0]['hash']}; {machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
