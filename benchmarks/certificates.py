"""Time of checking a certificate: random trees on correlated inputs, every leaf with a relaxation of its own.

    python benchmarks/certificates.py [--groups 48] [--size 1] [--outputs 64] [--leaves 654]

The relaxations are arbitrary: how tight they are makes no difference to the time. It is given in seconds, and in units
of one Cholesky inverse of the same Gram matrix (numpy) in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from osscar_opt import Problem
from osscar_opt.certificates import Certificate, ProofTree, check


def posed(groups: int, size: int, outputs: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    p = groups * size
    inputs = rng.normal(size=(3 * p, p)) @ rng.normal(size=(p, p))
    weights = rng.normal(size=(p, outputs))
    return Problem.from_data(inputs, weights, groups=size, keep=groups // 2)


def certificate(problem: Problem, leaves: int, kind: str, seed: int = 0) -> Certificate:
    rng, size = np.random.default_rng(seed), int(problem.groups.sizes[0])
    least = np.linalg.eigvalsh(problem.gram)[0]
    block, tree, open_nodes = 0.9 * least * np.eye(size).ravel(), ProofTree.of(problem), [0]
    while len(open_nodes) < leaves:
        node = open_nodes.pop(int(rng.integers(len(open_nodes))))
        removed, kept = tree.state(node)
        open_nodes += tree.branch(node, int(rng.choice(np.flatnonzero(~(removed | kept)))))
    for node in open_nodes:
        removed, kept = tree.state(node)
        free = int((~(removed | kept)).sum())
        point = rng.uniform(0.1, 1.0, free)
        if kind == "perspective":
            relaxation = tree.relax(node, point, [np.tile(block, free)])
        else:
            lam = rng.normal(size=(free * size, problem.q)).astype(np.float32)
            delta = np.full(free, float(np.sum(lam.astype(float) ** 2)) / least)
            relaxation = tree.relax_dual(node, point, delta, lam)
        tree.close(node, relaxation=relaxation)
    return Certificate.of(problem, tree, bound=-1e300)


def inverse_seconds(gram: np.ndarray) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        factor = np.linalg.inv(np.linalg.cholesky(gram))
        factor.T @ factor
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("groups", 48), ("size", 1), ("outputs", 64), ("leaves", 654)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    problem = posed(given.groups, given.size, given.outputs)
    unit = inverse_seconds(problem.gram)
    for kind in ("perspective", "dual"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "proof.safetensors"
            certificate(problem, given.leaves, kind).save(path)
            reports = [check(path) for _ in range(3)]
            assert all(report.valid for report in reports), reports[0]
            seconds, size = min(report.seconds for report in reports), path.stat().st_size / 1024
        print(
            f"{kind:12} {given.leaves} leaves  {size:8.0f} KiB  {seconds:7.2f} s  {seconds / unit:8.0f} inverses"
        )


if __name__ == "__main__":
    main()
