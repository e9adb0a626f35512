"""How far the tableau drifts from the truth in many pivots, on real layers, in float64 and in float32.

    python benchmarks/real_layers.py --out DIR
    python benchmarks/accuracy.py --data DIR

A two-sided tableau starts with half the groups kept and makes 10,000 pivots: random groups leave and enter in turn.
Then its weights, inv(H_SS) G_S by its own inv(H_SS), are compared with those of a fresh Cholesky solve in float64: the
norm of the difference over the norm of the weights, and the largest such ratio over rows; and the objective it has
carried along over all pivots is compared with the recomputed one, relative to the objective. `drift` is the largest
backward error its monitor saw, `factorizations` above one says that the monitor refactored.

Each layer also comes with its damping lowered to 1e-5, where the matrix is worse conditioned than anybody would pose
it; `largest / smallest input` is the ratio of root mean squares of the inputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import osscar_opt
from osscar_opt import Problem
from osscar_opt.linalg.kernels import make_kernels
from osscar_opt.linalg.tableau import Tableau

DAMPING = 1e-2  # of the files, as `real_layers.py` writes them


def with_damping(problem: Problem, damping: float) -> Problem:
    """The same layer, its targets from the same inputs, with another damping."""
    raw = problem.gram.diagonal().mean() / (1.0 + DAMPING)
    gram = np.array(problem.gram)
    np.fill_diagonal(gram, gram.diagonal() + (damping - DAMPING) * raw)
    return Problem(gram, dense_weights=problem.optimum, groups=problem.groups, name=problem.name, copy=False)


def pivots(problem: Problem, precision: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Make the pivots; what is left of the digits."""
    rng = np.random.default_rng(seed)
    support = rng.permutation(problem.n) < problem.n // 2
    group_of_row = problem.groups.group_of_row
    kernels = make_kernels("cpu", precision)  # type: ignore[arg-type]
    tableau = Tableau(problem.gram, problem.cross, group_of_row, support, kernels=kernels)
    began = problem.value(support)
    for turn in range(count):
        side = np.flatnonzero(tableau.support == (turn % 2 == 0))
        tableau.move(int(rng.choice(side)))
    weights, exact = tableau.weights(), problem.refit(tableau.support)
    row_error, row_size = (np.linalg.norm(array, axis=1) for array in (weights - exact, exact))
    value = problem.value(tableau.support)
    return {
        "precision": precision,
        "pivots": tableau.pivots,
        "weights": float(np.linalg.norm(weights - exact) / np.linalg.norm(exact)),
        "worst_row": float((row_error[row_size > 0] / row_size[row_size > 0]).max()),
        "objective": abs(began + tableau.change - value) / value,
        "drift": tableau.drift,
        "factorizations": tableau.factorizations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of instances with damping 1e-2")
    parser.add_argument("--pivots", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    files = sorted(options.data.glob("*.safetensors"))
    if not files:
        raise SystemExit(
            f"{options.data} holds no instances; write some with benchmarks/real_layers.py --out {options.data}."
        )
    rows = []
    print(
        "| layer | p | damping | largest / smallest input | precision | weights | worst row | objective | drift |"
        " factorizations |"
    )
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    with threadpool_limits(options.threads):
        for number, file in enumerate(files):
            layer = osscar_opt.load(file)
            for damping in (DAMPING, 1e-5):
                problem = with_damping(layer, damping)
                size = np.sqrt(problem.gram.diagonal())
                for precision in ("float64", "float32"):
                    print(f"\r{number + 1} of {len(files)}: {file.stem:40}", end="", file=sys.stderr)
                    row = {
                        "layer": file.stem,
                        "p": problem.p,
                        "damping": damping,
                        "inputs": float(size.max() / size.min()),
                        **pivots(problem, precision, options.pivots),
                    }
                    rows.append(row)
                    print(
                        "| {layer} | {p} | {damping:.0e} | {inputs:.0f} | {precision} | {weights:.1e} |"
                        " {worst_row:.1e} | {objective:.1e} | {drift:.1e} | {factorizations} |".format(**row),
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
