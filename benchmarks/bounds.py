"""How the lower bound of a large layer closes in: the proven gap against time, in seconds and in Cholesky inverses.

    python benchmarks/bounds.py layer.safetensors --seconds 20
    python benchmarks/bounds.py --generated 3072 --ratios 0.5 --seconds 60

The gap is (best - bound) / best above the value of keeping everything, best being the better of `forward` and `swap`.
One unit is one Cholesky inverse of the same gram in the same run. `benchmarks/exactness.py large` gives the ends alone.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pathlib import Path

from measuring import inverse_seconds

import osscar_opt
from osscar_opt import Problem
from osscar_opt.formulations.lower_bound import LowerBound
from osscar_opt.instances.layerlike import Shape, generated


def gap_after(bound: LowerBound, seconds: float, best: float) -> float:
    base = bound.problem.base
    reached = max(value for at, value in bound.trace if at <= seconds or value == bound.trace[0][1])
    return (best - reached) / (best - base)


def row(problem: Problem, seconds: float, looks: list[float], check: bool) -> str:
    inverse = inverse_seconds(problem.gram)
    best = min(problem.solve(method, progress=False).objective for method in ("forward", "swap"))
    bound = problem.lower_bound(seconds)
    checked = ""
    if check:
        report = bound.certificate().check(problem)
        checked = f"{report.seconds:.1f} s" if report.valid else "refused"
    gaps = " | ".join(f"{100.0 * gap_after(bound, look, best):.1f} %" for look in looks)
    return (
        f"| {problem.name or 'layer'} | {problem.p} | {problem.q} | {problem.keep} | {gaps} | {bound.iterations} | "
        f"{bound.seconds:.1f} s, {bound.seconds / inverse:.0f} inverses | {checked} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instances", type=Path, nargs="*", help="instance files, as `extract` writes")
    parser.add_argument(
        "--generated", type=int, nargs="*", default=[], help="p of generated layers, q = 3 p / 8"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--no-check", action="store_true", help="leave out the checks of the certificates")
    options = parser.parse_args()
    looks = sorted({min(look, options.seconds) for look in (1.0, 2.0, 5.0, options.seconds)})
    heads = " | ".join(f"after {look:g} s" for look in looks)
    print(f"| layer | p | q | keep | {heads} | steps | in all | check |")
    print("|" + " --- |" * (7 + len(looks)))
    makers = [lambda path=path: osscar_opt.load(path) for path in options.instances]
    makers += [lambda p=p: generated(Shape.of(p)) for p in options.generated]
    for make in makers:
        layer = make()
        for ratio in options.ratios:
            problem = layer.with_keep(round(ratio * layer.n))
            print(row(problem, options.seconds, looks, not options.no_check), flush=True)


if __name__ == "__main__":
    main()
