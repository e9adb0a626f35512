"""Time of the heuristics in Cholesky inverses of the same matrix, and against the official OSSCAR code.

    python benchmarks/speed.py --sizes 768 1536 3072
    python benchmarks/speed.py --instance layer.safetensors --official path/to/OSSCAR

One unit is one Cholesky inverse (LAPACK potrf and potri through scipy, H kept) of the instance's own gram, the median
of several in the same run. Every objective is recomputed from the support. `--official` takes a checkout of
github.com/mazumder-lab/OSSCAR; its functions get the same H, G and k, in float64, on the CPU. `osscar-opt extract`
writes instances from real layers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

import osscar_opt
from osscar_opt import Problem

OURS = ("greedy", "forward", "osscar", "swap")


def generated(p: int, q: int, seed: int = 0) -> Problem:
    """Inputs as in an LLM's FFN: correlated by a shared low-rank part, scales of a few orders of magnitude."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(p // 8, p))
    inputs = rng.normal(size=(4 * p, p // 8)) @ shared / np.sqrt(p // 8) + rng.normal(size=(4 * p, p))
    inputs *= rng.lognormal(sigma=0.7, size=p)
    return Problem.from_data(
        inputs, rng.normal(size=(p, q)) / np.sqrt(p), damping=1e-2, name=f"generated-{p}x{q}"
    )


def unit(gram: np.ndarray, repeats: int = 7) -> float:
    """Seconds of one Cholesky inverse."""
    lapack = scipy.linalg.lapack
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        factor, _ = lapack.dpotrf(gram, lower=1, clean=0)
        lapack.dpotri(factor, lower=1, overwrite_c=1)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def official_methods(checkout: Path) -> dict[str, Callable[[Problem, int], np.ndarray]]:
    """The published functions as support -> mask, by name. num_sp is their word for the number kept."""
    spec = importlib.util.spec_from_file_location("prune_algo", checkout / "prune_algo.py")
    if spec is None or spec.loader is None or not (checkout / "prune_algo.py").is_file():
        raise SystemExit(
            f"{checkout} holds no prune_algo.py; give a checkout of github.com/mazumder-lab/OSSCAR."
        )
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)

    def run(problem: Problem, keep: int, *, at_a_time: int, local: bool) -> np.ndarray:
        weights, gram, cross = (torch.tensor(a) for a in (problem.optimum, problem.gram, problem.cross))
        with contextlib.redirect_stdout(io.StringIO()):
            found, _ = code.OSSCAR_fastprune(weights.clone(), gram, cross, problem.n, keep, at_a_time)
            if local:
                found, _ = code.OSSCAR_local_search(found, gram, cross, problem.n, 30, 10)
        rows = np.abs(found.numpy()).max(axis=1) > 0
        return np.array([rows[problem.groups.rows(g)].any() for g in range(problem.n)])

    return {
        "official, one at a time": lambda problem, keep: run(problem, keep, at_a_time=1, local=False),
        "official, ten at a time": lambda problem, keep: run(problem, keep, at_a_time=10, local=False),
        "official, ten + local search": lambda problem, keep: run(problem, keep, at_a_time=10, local=True),
    }


def measure(problem: Problem, keep: int, official: Path | None, repeats: int) -> dict[str, Any]:
    gram = np.array(problem.gram)
    before = unit(gram)
    rows = []
    for method in OURS:
        total, search = [], []
        for _ in range(repeats):
            begin = time.perf_counter()
            solution = problem.solve(method, keep=keep, progress=False)
            total.append(time.perf_counter() - begin)
            search.append(solution.solve_time)
        rows.append((method, solution.objective, statistics.median(search), statistics.median(total)))
    if official is not None:
        for name, method in official_methods(official).items():
            begin = time.perf_counter()
            support = method(problem, keep)
            seconds = time.perf_counter() - begin
            rows.append((name, problem.value(support), seconds, seconds))
    inverse = statistics.median([before, unit(gram)])
    return {
        "instance": problem.name,
        "p": problem.p,
        "q": problem.q,
        "n": problem.n,
        "keep": keep,
        "unit_seconds": inverse,
        "rows": [
            {
                "method": name,
                "objective": value,
                "search_units": search / inverse,
                "total_units": total / inverse,
            }
            for name, value, search, total in rows
        ],
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "{instance}: p = {p}, q = {q}, n = {n}, keep {keep}; one inverse took {unit_seconds:.3f} s".format(
            **result
        ),
        "",
        "| method | objective | search, inverses | with refit and check, inverses |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['method']} | {row['objective']:.8g} | {row['search_units']:.2f} | {row['total_units']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="p of generated layers, q = 3 p / 8")
    parser.add_argument(
        "--instance", type=Path, nargs="*", default=[], help="instance files, as `extract` writes"
    )
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--official", type=Path, help="checkout of the official OSSCAR repository")
    parser.add_argument("--threads", type=int, default=1, help="for BLAS and torch alike")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problems: list[Any] = [lambda p=p: generated(p, 3 * p // 8) for p in options.sizes]
    problems += [lambda path=path: osscar_opt.load(path) for path in options.instance]
    results = []
    with threadpool_limits(options.threads):
        for make in problems or [lambda: generated(1536, 576)]:
            problem = make()
            keep = problem.n - int(options.sparsity * problem.n)
            results.append(measure(problem, keep, options.official, options.repeats))
            if not options.json:
                print(table(results[-1]), end="\n\n", flush=True)
    if options.json:
        json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
