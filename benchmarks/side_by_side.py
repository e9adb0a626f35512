"""What solving several layers at a time gains: the same layers with jobs x threads of BLAS each, in one run.

    python benchmarks/side_by_side.py
    python benchmarks/side_by_side.py --layers 16 --p 1536 --method greedy --setups 1x1 1x4 4x1 4x4 --json

Each set-up is a number of jobs and the threads of BLAS that each of them may use. `1x1` is the yardstick; a set-up
whose product is above the number of idle cores shows what oversubscription costs. The set-ups take turns, round by
round, and the ratios are medians over the rounds, so that other work on the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from osscar_opt import Problem, solve_all
from osscar_opt.linalg.threads import available_cores


def layer(p: int, seed: int) -> Problem:
    """Inputs as in an LLM's FFN: correlated by a shared low-rank part, scales of a few orders of magnitude."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(2 * p, p // 8)) @ rng.normal(size=(p // 8, p)) / np.sqrt(p // 8)
    inputs += rng.normal(size=inputs.shape)
    inputs *= rng.lognormal(sigma=0.7, size=p)
    weights = rng.normal(size=(p, 3 * p // 8)) / np.sqrt(p)
    return Problem.from_data(inputs, weights, keep=p // 2, name=f"layer {seed}")


def setup(text: str) -> tuple[int, int]:
    jobs, _, each = text.partition("x")
    try:
        return int(jobs), int(each)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a set-up is written JOBSxTHREADS, not {text!r}") from None


def measure(problems: list[Problem], method: str, jobs: int, each: int) -> tuple[float, list[float]]:
    began = time.perf_counter()
    solutions = solve_all(problems, method, jobs=jobs, threads=jobs * each, progress=False)
    return time.perf_counter() - began, [solution.objective for solution in solutions]


def run(options: argparse.Namespace) -> dict[str, Any]:
    problems = [layer(options.p, seed) for seed in range(options.layers)]
    reference = measure(problems[:1], options.method, 1, 1)  # loads and warms up what there is to
    seconds: dict[tuple[int, int], list[float]] = {(jobs, each): [] for jobs, each in options.setups}
    worst = 0.0
    for done in range(options.rounds):
        for jobs, each in seconds:
            took, objectives = measure(problems, options.method, jobs, each)
            seconds[jobs, each].append(took)
            reference = reference if len(reference[1]) == len(objectives) else (took, objectives)
            worst = max(worst, float(np.max(np.abs(np.divide(objectives, reference[1]) - 1.0))))
        print(f"round {done + 1} of {options.rounds} is done", file=sys.stderr, flush=True)
    unit = seconds[options.setups[0]]
    return {
        "layers": options.layers,
        "p": options.p,
        "q": problems[0].q,
        "method": options.method,
        "cores": available_cores(),
        "largest_difference_of_objectives": worst,
        "rows": [
            {
                "jobs": jobs,
                "threads_each": each,
                "seconds": statistics.median(took),
                "times_as_fast": statistics.median(one / this for one, this in zip(unit, took, strict=True)),
            }
            for (jobs, each), took in seconds.items()
        ],
    }


def table(found: dict[str, Any]) -> str:
    head = "{layers} layers, p = {p}, q = {q}, {method}, {cores} cores; objectives differ by {largest:.1e} at most"
    lines = [head.format(**found, largest=found["largest_difference_of_objectives"]), ""]
    lines += [
        "| jobs | threads each | seconds | times as fast as the first |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        lines.append("| {jobs} | {threads_each} | {seconds:.2f} | {times_as_fast:.2f} |".format(**row))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument(
        "--p", type=int, default=768, help="rows of each layer; q = 3 p / 8, half of them stay"
    )
    parser.add_argument("--method", default="osscar")
    parser.add_argument(
        "--setups", type=setup, nargs="+", default=[(1, 1), (1, 2), (2, 1), (2, 2)], metavar="JOBSxTHREADS"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(options)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
