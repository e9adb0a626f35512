"""Outer approximation with HiGHS: its cuts, its bound and its answers against plain enumeration."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from osscar_opt.errors import InputError
from osscar_opt.instances.generators import FAMILIES, random_instance

REAL = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
FAMILY_NAMES = sorted(FAMILIES)


# ------------------------------------------------------------------------- the oracle: no code of the library's


def value(problem, support):
    """base + 1/2 tr((W* - W)'H(W* - W)) by solves from scratch, in units in which the gram has unit diagonal."""
    live = problem.gram.diagonal() > 0
    rows = live & support[problem.groups.group_of_row]
    scale = 1 / np.sqrt(np.where(live, problem.gram.diagonal(), 1.0))
    gram, cross = problem.gram * scale[:, None] * scale, problem.cross * scale[:, None]

    def fitted(chosen):
        weights = np.zeros(cross.shape)
        weights[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], cross[chosen])
        return weights

    apart = fitted(live) - fitted(rows)
    return problem.base + 0.5 * float(np.sum(apart * (gram @ apart)))


def all_supports(n):
    return np.array(list(itertools.product([False, True], repeat=n)))


def feasible(problem, support):
    met = [not (problem.always_keep & ~support).any(), not (problem.always_remove & support).any()]
    if problem.keep is not None:
        met.append(support.sum() <= problem.keep)
    if problem.costs is not None:
        met.append(problem.costs[support].sum() <= problem.budget * (1 + 1e-9))
    if problem.blocks is not None:
        met += [support[problem.blocks == b].sum() <= k for b, k in enumerate(problem.block_keep)]
    return all(met)


def best_value(problem):
    return min(value(problem, s) for s in all_supports(problem.n) if feasible(problem, s))


def instance(seed):
    """A problem of any family: n <= 9, group sizes 1 to 4 or mixed, q from 1 to 3n, damping 1e-3 to 1e-1."""
    rng = np.random.default_rng([20, seed])
    family = FAMILY_NAMES[seed % len(FAMILY_NAMES)]
    n = int(rng.integers(5, 10))
    options = {"n": n, "q": int(rng.integers(1, 3 * n + 1))}
    try:
        return random_instance(
            seed,
            family,
            group_sizes=[1, 2, 3, 4, "mixed"][seed % 5],
            damping=float(10.0 ** rng.uniform(-3, -1)),
            **options,
        )
    except (InputError, TypeError):
        return random_instance(seed, family, **options)
