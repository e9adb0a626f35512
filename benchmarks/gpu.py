"""The same methods on a GPU: the same answers, and how much faster.

    python benchmarks/gpu.py                             # every CUDA device, or torch on the CPU where there is none
    python benchmarks/gpu.py --sizes 3072 12288 28672 --precision float32

Every layer (generated, see layers.py; q = p/4) is solved by numpy on the CPU and by torch on each device. A device's
unit is one Cholesky inverse (torch.linalg.cholesky and torch.cholesky_inverse) of the same gram in the same precision
on that device in the same run. Answers are the same if both keep the same groups, or if the objectives recomputed by
`Problem.value` agree to 1e-9: where two groups are worth the same to rounding, the devices may differ in their order.
`--no-reference` leaves the CPU out where it would take too long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from osscar_opt import Problem, Solution
from osscar_opt.instances.layerlike import Shape, generated


def devices() -> list[str]:
    """Every CUDA device; torch on the CPU where there is none."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["torch:cpu"]


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def unit(problem: Problem, device: str, precision: str) -> float:
    """Seconds of one Cholesky inverse on the device."""
    place = torch.device(device.removeprefix("torch:"))
    gram = torch.tensor(problem.gram).to(place, getattr(torch, precision))
    times = []
    for _ in range(4):
        wait(device)
        begin = time.perf_counter()
        torch.cholesky_inverse(torch.linalg.cholesky(gram))
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first call sets the library up


def solved(problem: Problem, method: str, device: str, precision: str) -> Solution:
    options: dict[str, Any] = {"device": device, "precision": precision}
    return problem.solve(method, progress=False, **options)


def same(one: Solution, other: Solution) -> bool:
    if np.array_equal(one.support, other.support):
        return True
    return abs(one.objective - other.objective) <= 1e-9 * abs(one.objective)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[768, 1536, 3072])
    parser.add_argument("--methods", nargs="+", default=["greedy", "osscar"])
    parser.add_argument("--precision", choices=["float64", "float32"], default="float64")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--no-reference", action="store_true", help="do not solve on the CPU for comparison")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(
        "| p | method | device | precision | objective | inverses of the device | CPU time / its time | same answer |"
    )
    print("| ---: | --- | --- | --- | ---: | ---: | ---: | --- |")
    with threadpool_limits(options.threads):
        for p in options.sizes:
            print(f"\rp = {p}: building ", end="", file=sys.stderr)
            problem = generated(Shape(p, 1, p // 4)).with_keep(p // 2)
            for method in options.methods:
                reference = None
                if not options.no_reference:
                    reference = solved(problem, method, "cpu", "float64")
                for device in devices():
                    print(f"\rp = {p}: {method} on {device} ", end="", file=sys.stderr)
                    solved(problem, method, device, options.precision)  # the first run sets the library up
                    found = solved(problem, method, device, options.precision)
                    row = {
                        "p": p,
                        "method": method,
                        "device": torch.cuda.get_device_name(device) if "cuda" in device else device,
                        "precision": options.precision,
                        "objective": problem.value(found.support),
                        "inverses": found.solve_time / unit(problem, device, options.precision),
                        "times_faster": None
                        if reference is None
                        else reference.solve_time / found.solve_time,
                        "same": None if reference is None else same(reference, found),
                    }
                    rows.append(row)
                    faster = "" if reference is None else f"{row['times_faster']:.2f}"
                    print(
                        f"| {p} | {method} | {row['device']} | {options.precision} | {row['objective']:.9g} |"
                        f" {row['inverses']:.2f} | {faster} | {row['same']} |",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
