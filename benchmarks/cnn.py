"""Convolutional networks pruned: how much of what the dense network says remains on held-out pictures.

    python benchmarks/cnn.py --out cnn.jsonl
    python benchmarks/cnn.py --out cnn.jsonl --table
    python benchmarks/cnn.py --out c.jsonl --only mobilenet_v2/osscar --views 1 --pictures 64

MobileNetV2 and EfficientNet-Lite0 (ImageNet weights) lose 30 % of the channels of every expanded layer: the rows of the
1 x 1 convolution that expands, its batch norms, the depthwise filters, and the inputs of the 1 x 1 convolution that
projects. They are calibrated on half of Tux Paint's stamps, whole and in random crops, and compared with the dense
network on the other half: share of equal top-1, mean KL divergence. Finished rows are skipped.

What must be installed: see real_models.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from measuring import Record, Results, done_already, machine, markdown, number, run
from real_models import compare, logits, sizes
from torch import Tensor
from whole_model import WAYS, Way

from osscar_opt.torch.packaged.networks import NETWORKS, Batches
from osscar_opt.torch.packaged.pictures import calibration_pictures, held_out_pictures

DENSE = "dense"


@cache
def _pictures(views: int) -> tuple[Tensor, Tensor]:
    return calibration_pictures(views), held_out_pictures()


@cache
def _dense_logits(name: str, views: int) -> Tensor:
    network = NETWORKS[name]
    return logits(network.load(), Batches(_pictures(views)[1], network))


def dense(name: str) -> Record:
    parameters, adds = sizes(NETWORKS[name].load())
    return {
        "agreement": 1.0,
        "kl": 0.0,
        "parameters": parameters,
        "multiply_adds": adds,
        "seconds": 0.0,
    }


def prune_and_compare(name: str, way: Way, options: argparse.Namespace) -> Record:
    from osscar_opt.torch.prune import prune_model

    network = NETWORKS[name]
    calibrate, hold = _pictures(options.views)
    batches = Batches(calibrate[: options.pictures], network)
    model = network.load()
    begin = time.perf_counter()
    report = prune_model(
        model,
        batches,
        sites=list(network.inner),
        sparsity=options.sparsity,
        multiple=options.multiple,
        **way.arguments,
    )
    seconds = time.perf_counter() - begin
    parameters, adds = sizes(model)
    found = compare(_dense_logits(name, options.views), logits(model, Batches(hold, network)))
    return {
        "seconds": seconds,
        "sites": len(report.rows),
        "parameters": parameters,
        "multiply_adds": adds,
        "parts": report.seconds,
        "peak_memory": report.peak_memory,
        **found,
    }


def tasks(options: argparse.Namespace) -> list[tuple[Record, Callable[[], Record]]]:
    settings = (
        f"sparsity {options.sparsity}, multiple {options.multiple}, {options.views} views, {options.pictures}"
    )
    todo: list[tuple[Record, Callable[[], Record]]] = []
    for name in NETWORKS:
        wanted = [way for way in WAYS if f"{name}/{way.name}".startswith(tuple(options.only))]
        task: Record = {"kind": "cnn", "case": name, "limit": None, "hash": settings}
        if wanted:
            todo.append((task | {"method": DENSE}, lambda name=name: dense(name)))
        for way in wanted:
            work = lambda name=name, way=way: prune_and_compare(name, way, options)  # noqa: E731
            todo.append((task | {"method": way.name}, work))
    return todo


def table(records: Iterable[Record]) -> str:
    rows: list[Sequence[Any]] = [
        (
            NETWORKS[record["case"]].name,
            record["method"],
            f"{record['parameters'] / 1e6:.2f} M",
            f"{record['multiply_adds'] / 1e6:.0f} M",
            f"{100 * record['agreement']:.1f} %",
            number(record["kl"]),
            number(record["seconds"]),
        )
        for record in records
    ]
    head = ("network", "method", "parameters", "multiply-adds", "same top-1", "KL", "seconds")
    return markdown(head, rows, "ll")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON object a line")
    parser.add_argument("--only", nargs="*", default=[""], help='only rows whose "network/method" starts so')
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--multiple", type=int, default=1, help="widths are rounded to a multiple of this")
    parser.add_argument("--views", type=int, default=3, help="of each calibration picture (default 3)")
    parser.add_argument("--pictures", type=int, help="at most so many calibration views (default: all)")
    parser.add_argument("--table", action="store_true", help="only the table of what is done")
    options = parser.parse_args()
    results = Results(options.out)
    todo = tasks(options)
    print(table(done_already(todo, results) if options.table else run(todo, results)))
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
