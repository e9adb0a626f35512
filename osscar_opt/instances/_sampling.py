"""Building blocks of the generators: sizes, correlated inputs, and problems out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from osscar_opt.errors import InputError
from osscar_opt.formulations.problem import Problem

Seed: TypeAlias = int | np.random.Generator
Sizes: TypeAlias = int | Sequence[int] | Literal["mixed"]
Array: TypeAlias = NDArray[np.float64]


def generator(seed: Seed) -> np.random.Generator:
    """Return ``seed`` itself when it is a generator already, so that a caller can share one."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


def draw_sizes(rng: np.random.Generator, n: int, group_sizes: Sizes) -> NDArray[np.int64]:
    """Rows per group: one number for all, one each, or "mixed" for 1 to 4 at random."""
    if n < 1:
        raise InputError(f"a problem needs at least one group, not n = {n}.")
    if isinstance(group_sizes, str):
        if group_sizes != "mixed":
            raise InputError(f"group_sizes is a number, a list of numbers or 'mixed', not {group_sizes!r}.")
        return rng.integers(1, 5, size=n)
    sizes = np.asarray(group_sizes, dtype=np.int64)
    if sizes.ndim == 0:
        sizes = np.full(n, sizes)
    if sizes.shape != (n,) or sizes.min() < 1:
        raise InputError(f"group_sizes must give a size of at least 1 for each of the {n} groups.")
    return sizes


def labels(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group of each row when the groups follow one another."""
    return np.repeat(np.arange(sizes.size), sizes)


def correlated_inputs(
    rng: np.random.Generator, samples: int | None, p: int, rho: float, pattern: str = "toeplitz"
) -> Array:
    """Gaussian inputs (samples x p, 4p samples by default) with correlation rho^|i-j| or rho."""
    if pattern == "toeplitz":
        correlation = rho ** np.abs(np.subtract.outer(np.arange(p), np.arange(p)))
    elif pattern == "equicorrelated":
        correlation = (1 - rho) * np.eye(p) + rho
    else:
        raise InputError(f"pattern is 'toeplitz' or 'equicorrelated', not {pattern!r}.")
    factor = np.linalg.cholesky(correlation)
    return rng.standard_normal((4 * p if samples is None else samples, p)) @ factor.T


def rotation(rng: np.random.Generator, size: int) -> Array:
    """Draw an orthogonal matrix."""
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return q


def origin(family: str, seed: Seed, **parameters: Any) -> dict[str, Any]:
    """Provenance of a generated problem; a seed that was a generator cannot be written down."""
    return {"generator": family, "seed": seed if isinstance(seed, int) else None, **parameters}


def from_data(
    inputs: Array,
    weights: Array | None,
    sizes: NDArray[np.int64],
    keep: int | None,
    damping: float,
    provenance: dict[str, Any],
    targets: Array | None = None,
) -> Problem:
    """Problem of a drawn layer; half of the groups may stay unless ``keep`` says otherwise."""
    return Problem.from_data(
        inputs,
        weights,
        targets=targets,
        damping=damping,
        groups=labels(sizes),
        keep=sizes.size // 2 if keep is None else keep,
        name=provenance["generator"],
        provenance={**provenance, "damping": damping, "samples": inputs.shape[0]},
    )


def from_gram(
    gram: Array,
    weights: Array,
    sizes: NDArray[np.int64],
    keep: int | None,
    damping: float,
    provenance: dict[str, Any],
) -> Problem:
    """Problem of a stated H with the dense weights optimal."""
    ridge = damping * float(np.mean(np.diag(gram)))
    return Problem(
        gram + ridge * np.eye(gram.shape[0]),
        dense_weights=weights,
        groups=labels(sizes),
        keep=sizes.size // 2 if keep is None else keep,
        name=provenance["generator"],
        provenance={**provenance, "damping": damping},
    )


def from_gadgets(
    rng: np.random.Generator,
    gadget: Array,
    weights: Array,
    kept_each: int,
    n: int,
    group_sizes: Sizes,
    q: int,
    keep: int | None,
    damping: float,
    provenance: dict[str, Any],
) -> Problem:
    """Independent copies of a small trap, disguised by rotations within groups and a shuffle of the groups.

    With groups of s rows the gadget (m x m) becomes its Kronecker product with I_s, and the weights of its
    rows are weights (x) U with U (s x q) of norm near 1: every loss is the gadget's own times |U|^2.  The
    ``n mod m`` left-over groups are uncorrelated and carry a thousandth of the weight.
    """
    m = gadget.shape[0]
    if n < m:
        raise InputError(f"{provenance['generator']} needs at least {m} groups, not {n}.")
    sizes = draw_sizes(rng, n, group_sizes)
    s = int(sizes[0])
    if (sizes != s).any():
        raise InputError(f"{provenance['generator']} needs groups of one size; give group_sizes as a number.")
    copies, rest = divmod(n, m)
    parts = [np.kron(gadget, np.eye(s))] * copies + [np.eye(s)] * rest
    rows = [np.kron(weights[:, None], _unit(rng, s, q) * rng.uniform(0.95, 1.05)) for _ in range(copies)]
    rows += [1e-3 * _unit(rng, s, q) for _ in range(rest)]
    turn = scipy.linalg.block_diag(*(rotation(rng, s) for _ in range(n)))
    gram = turn @ scipy.linalg.block_diag(*parts) @ turn.T
    order = (rng.permutation(n)[:, None] * s + np.arange(s)).ravel()
    gram = ((gram + gram.T) / 2)[np.ix_(order, order)]
    dense = (turn @ np.vstack(rows))[order]
    return from_gram(gram, dense, sizes, copies * kept_each if keep is None else keep, damping, provenance)


def constrained(family: str, base: Problem, seed: Seed, **limits: Any) -> Problem:
    """Put the problem ``base`` under other limits."""
    return Problem(
        base.gram,
        dense_weights=base.dense_weights,
        groups=base.groups,
        name=family,
        provenance={**base.provenance, **origin(family, seed)},
        **limits,
    )


def _unit(rng: np.random.Generator, s: int, q: int) -> Array:
    """Draw an (s x q) matrix of Frobenius norm 1."""
    drawn = rng.standard_normal((s, q))
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float64)
