"""Make the small real instances in this folder: some neurons or heads of layers of SmolLM2-135M-Instruct.

    osscar-opt extract smollm2 model.layers.10.mlp.down_proj l10.safetensors
    osscar-opt extract smollm2 model.layers.28.mlp.down_proj l28.safetensors
    osscar-opt extract smollm2 model.layers.5.self_attn.o_proj o5.safetensors --groups heads --num-heads 9
    python tests/data/make.py l10.safetensors l28.safetensors o5.safetensors

The rows chosen become a layer of their own: their inputs, their weights, targets from these alone. Weights W0 are
replaced by a factor of W0 W0' with as few columns as it needs, which changes no objective.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import osscar_opt
from osscar_opt import Problem

HERE = Path(__file__).parent


def part(problem: Problem, groups: np.ndarray, rows_per_group: int, name: str) -> Problem:
    rows = np.concatenate([problem.groups.rows(g)[:rows_per_group] for g in groups])
    factor = np.linalg.qr(problem.dense_weights[rows].T, mode="r").T
    provenance = {
        **problem.provenance,
        "part": f"{len(groups)} groups of {name}, {rows_per_group} rows of each",
    }
    return Problem(
        problem.gram[np.ix_(rows, rows)].astype(np.float32),
        dense_weights=factor.astype(np.float32),
        groups=rows_per_group,
        keep=len(groups) // 2,
        name=name,
        provenance=provenance,
    )


def main() -> None:
    ordinary, hard, heads = (osscar_opt.load(path) for path in sys.argv[1:4])
    rng = np.random.default_rng(0)
    loudest = np.argsort(-hard.gram.diagonal(), kind="stable")[:4]  # the inputs of size 2000
    others = rng.choice(np.setdiff1d(np.arange(hard.n), loudest), 44, replace=False)
    osscar_opt.instances.save(
        part(ordinary, np.sort(rng.choice(ordinary.n, 48, replace=False)), 1, "smollm2-l10-ffn-48"),
        HERE / "smollm2-l10-ffn-48.safetensors",
        dtype="float32",
    )
    osscar_opt.instances.save(
        part(hard, np.sort(np.append(loudest, others)), 1, "smollm2-l28-ffn-48"),
        HERE / "smollm2-l28-ffn-48.safetensors",
        dtype="float32",
    )
    osscar_opt.instances.save(
        part(heads, np.arange(9), 12, "smollm2-l5-heads-9x12"),
        HERE / "smollm2-l5-heads-9x12.safetensors",
        dtype="float32",
    )


if __name__ == "__main__":
    main()
