"""Seeded families of problems for tests, benchmarks and documentation.

Every family is a function ``family(seed, *, n, group_sizes, q, keep, damping, ...)`` that returns a
`Problem`; `FAMILIES` lists them by name.  The same arguments give the same problem.  Notation: X (N x p)
inputs, W0 (p x q) dense weights, H = X'X/N + ridge I, ridge = damping * mean diag(X'X/N).  Families that
state H directly have no samples; there ridge = damping * mean diag(H).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from osscar_opt.errors import InputError
from osscar_opt.formulations.problem import Problem
from osscar_opt.instances import _sampling as draw
from osscar_opt.instances._sampling import Seed, Sizes

__all__ = [
    "blocks",
    "correlated",
    "drifted",
    "equal_scores",
    "forced",
    "greedy_trap",
    "heavy_tailed",
    "ill_conditioned",
    "knapsack",
    "near_duplicates",
    "planted",
    "random_instance",
    "rank_deficient",
    "swap_trap",
    "unequal_groups",
]


def random_instance(
    seed: Seed = 0,
    family: str | None = None,
    *,
    n: int = 12,
    group_sizes: Sizes | None = None,
    q: int = 3,
    keep: int | None = None,
    damping: float | None = None,
    **options: Any,
) -> Problem:
    """Draw one problem of a family.

    Parameters
    ----------
    seed : int or numpy Generator
        Source of all chance.
    family : str, optional
        A name in :data:`FAMILIES`; drawn from those that fit ``group_sizes`` when left out.
    n : int
        Number of groups.
    group_sizes : int, sequence of int, or "mixed", optional
        Rows per group; "mixed" draws each size from 1 to 4.  The family's default (mostly 1) when left out.
    q : int
        Number of outputs.
    keep : int, optional
        Groups that may stay; the family's default (mostly half) when left out.
    damping : float, optional
        Relative ridge; the family's default when left out.
    **options
        Further arguments of the family.

    Returns
    -------
    Problem

    Raises
    ------
    InputError
        For an unknown family or sizes that a family cannot do.

    Examples
    --------
    >>> problem = random_instance(7, "near_duplicates", n=6, q=2)
    >>> problem.n, problem.p, problem.q, problem.keep
    (6, 6, 2, 3)
    >>> problem.hash == random_instance(7, "near_duplicates", n=6, q=2).hash
    True
    """
    if family is None:
        names = [
            name
            for name in FAMILIES
            if group_sizes is None or isinstance(group_sizes, int) or name not in _UNIFORM
        ]
        seed = draw.generator(seed)
        family = names[int(seed.integers(len(names)))]
    if family not in FAMILIES:
        raise InputError(f"there is no family {family!r}; the families are {', '.join(FAMILIES)}.")
    given = {"group_sizes": group_sizes, "damping": damping}
    options |= {name: value for name, value in given.items() if value is not None}
    return FAMILIES[family](seed, n=n, q=q, keep=keep, **options)


def correlated(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
    rho: float = 0.7,
    pattern: Literal["toeplitz", "equicorrelated"] = "toeplitz",
) -> Problem:
    """Gaussian inputs whose correlation is rho^|i-j| (toeplitz) or rho for all pairs (equicorrelated).

    X = Z L' with Z standard normal (``samples`` x p, 4p rows by default) and L L' the correlation matrix; W0
    standard normal.

    Examples
    --------
    >>> correlated(1, n=4, group_sizes=3, q=5).p
    12
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    inputs = draw.correlated_inputs(rng, samples, int(sizes.sum()), rho, pattern)
    weights = rng.standard_normal((inputs.shape[1], q))
    return draw.from_data(
        inputs, weights, sizes, keep, damping, draw.origin("correlated", seed, rho=rho, pattern=pattern)
    )


def planted(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
    rho: float = 0.5,
    noise: float = 0.1,
) -> Problem:
    """Plant a sparse true model: Y = X W + noise * E, W zero outside ``keep`` groups drawn at random.

    There are no dense weights: G = X'Y/N, so the constant is tr(Y'Y)/2N, not zero at the optimum.

    Examples
    --------
    >>> problem = planted(1, n=8, keep=3)
    >>> problem.dense_weights is None
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    keep = n // 2 if keep is None else keep
    inputs = draw.correlated_inputs(rng, samples, int(sizes.sum()), rho)
    true = np.isin(draw.labels(sizes), rng.permutation(n)[:keep])
    weights = rng.standard_normal((inputs.shape[1], q)) * true[:, None]
    targets = inputs @ weights + noise * rng.standard_normal((inputs.shape[0], q))
    origin = draw.origin("planted", seed, rho=rho, noise=noise)
    return draw.from_data(inputs, None, sizes, keep, damping, origin, targets=targets)


def drifted(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
    rho: float = 0.7,
    drift: float = 0.2,
) -> Problem:
    """Change the inputs after the targets: X = Z + drift * E but Y = Z W0, so W0 is not the optimum.

    G = X'Y/N + ridge W0, as in a layer whose predecessors were pruned
    already; dense weights and G both belong to the problem.

    Examples
    --------
    >>> drifted(1, n=8).dense_weights is None
    False
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    clean = draw.correlated_inputs(rng, samples, int(sizes.sum()), rho)
    weights = rng.standard_normal((clean.shape[1], q))
    inputs = clean + drift * rng.standard_normal(clean.shape)
    origin = draw.origin("drifted", seed, rho=rho, drift=drift)
    return draw.from_data(inputs, weights, sizes, keep, damping, origin, targets=clean @ weights)


def near_duplicates(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
    distance: float = 0.05,
) -> Problem:
    """Pair the groups: every second one repeats the one before it plus ``distance`` * standard normal noise.

    Row r of the copy repeats row r modulo the size of its model.  W0 is standard normal: pairs share work.

    Examples
    --------
    >>> problem = near_duplicates(1, n=4)
    >>> bool(problem.gram[0, 1] > 0.95 * problem.gram[0, 0])
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    inputs = draw.correlated_inputs(rng, samples, int(sizes.sum()), 0.3)
    for group in range(1, n, 2):
        model = starts[group - 1] + np.arange(sizes[group]) % sizes[group - 1]
        copy = slice(starts[group], starts[group + 1])
        inputs[:, copy] = inputs[:, model] + distance * rng.standard_normal((inputs.shape[0], sizes[group]))
    weights = rng.standard_normal((inputs.shape[1], q))
    return draw.from_data(
        inputs, weights, sizes, keep, damping, draw.origin("near_duplicates", seed, distance=distance)
    )


def equal_scores(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 0.0,
    rho: float = 0.25,
    levels: int = 3,
) -> Problem:
    """Make ties: H = (1 - rho) I + rho u u', u marking the first row of every group, and W0_g = level_g * V.

    V is one matrix of small integers, level_g one of 1 ... ``levels``.  Groups of one level and size can be
    exchanged without changing any value, so scores tie and only a rule can break the tie.

    Examples
    --------
    >>> problem = equal_scores(0, n=6, levels=1, keep=2)
    >>> mask = [True, True, False, False, False, False]
    >>> bool(np.isclose(problem.value(np.array(mask)), problem.value(np.array(mask[::-1]))))
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    p = int(sizes.sum())
    first = np.zeros(p)
    first[np.concatenate([[0], np.cumsum(sizes)[:-1]])] = 1.0
    gram = (1 - rho) * np.eye(p) + rho * np.outer(first, first)
    shared = rng.integers(1, 4, size=(int(sizes.max()), q)).astype(np.float64)
    level = rng.integers(1, levels + 1, size=n)
    weights = np.vstack([level[g] * shared[: sizes[g]] for g in range(n)])
    return draw.from_gram(
        gram, weights, sizes, keep, damping, draw.origin("equal_scores", seed, rho=rho, levels=levels)
    )


def rank_deficient(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
) -> Problem:
    """Fewer samples than rows (p/2 by default): X'X/N is singular and only the ridge makes H definite.

    Examples
    --------
    >>> problem = rank_deficient(0, n=10, damping=1e-3)
    >>> eigenvalues = np.linalg.eigvalsh(problem.gram)
    >>> bool(eigenvalues[4] < 1.1 * eigenvalues[0])
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    p = int(sizes.sum())
    inputs = draw.correlated_inputs(rng, max(2, p // 2) if samples is None else samples, p, 0.3)
    weights = rng.standard_normal((p, q))
    return draw.from_data(inputs, weights, sizes, keep, damping, draw.origin("rank_deficient", seed))


def heavy_tailed(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-2,
    samples: int | None = None,
    largest: float = 2000.0,
) -> Problem:
    """Put inputs of size ``largest`` beside inputs of size 1, as real language models have them.

    Row i of the inputs is scaled by a_i = largest^(u_i^3), u_i uniform on [0, 1] with both ends attained; W0
    is normal with deviation a_i^(-1/2), so that large inputs matter most without deciding everything.

    Examples
    --------
    >>> diagonal = np.diag(heavy_tailed(0, n=10).gram)
    >>> bool(diagonal.max() / diagonal.min() > 20)
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    inputs = draw.correlated_inputs(rng, samples, int(sizes.sum()), 0.5)
    p = inputs.shape[1]
    place = np.asarray(rng.random(p))
    place[rng.permutation(p)[:2]] = [0.0, 1.0][:p]
    scale = largest ** (place**3)
    weights = rng.standard_normal((p, q)) / np.sqrt(scale)[:, None]
    return draw.from_data(
        inputs * scale, weights, sizes, keep, damping, draw.origin("heavy_tailed", seed, largest=largest)
    )


def ill_conditioned(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 0.0,
    condition: float = 1e10,
) -> Problem:
    """H = Q diag(d) Q' with Q a random rotation and d falling geometrically from 1 to 1/``condition``.

    A rotation, so that scaling the rows to unit diagonal does not undo it.  W0 standard normal.

    Examples
    --------
    >>> bool(np.linalg.cond(ill_conditioned(0, n=8).gram) > 1e9)
    True
    """
    rng = draw.generator(seed)
    sizes = draw.draw_sizes(rng, n, group_sizes)
    p = int(sizes.sum())
    rotation = draw.rotation(rng, p)
    gram = (rotation * np.geomspace(1.0, 1.0 / condition, p)) @ rotation.T
    weights = rng.standard_normal((p, q))
    origin = draw.origin("ill_conditioned", seed, condition=condition)
    return draw.from_gram((gram + gram.T) / 2, weights, sizes, keep, damping, origin)


def greedy_trap(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-4,
    epsilon: float = 0.1,
) -> Problem:
    """Trap one-at-a-time removal: n // 3 separate triples (a, b, c), c = a + b + epsilon * noise, y = a + b.

    Per triple H = [[1, 0, 1], [0, 1, 1], [1, 1, 2 + epsilon^2]] and W0 = (1, 1, epsilon): c is almost free to
    remove and goes first, but with one group per triple left (``keep`` = n // 3, the default) c alone costs
    about epsilon^2 / 4 and a or b alone 1/2.  Left-over groups carry next to nothing.  Groups of s rows are s
    copies of the triple, each group rotated, all groups shuffled; each triple has a strength near 1.

    Raises
    ------
    InputError
        If n < 3 or the groups are not all of one size.

    Examples
    --------
    >>> problem = greedy_trap(0, n=3)
    >>> values = [problem.value(np.arange(3) == g) for g in range(3)]
    >>> bool(min(values) < 0.05 * sorted(values)[1])
    True
    """
    triple = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0 + epsilon**2]])
    weights = np.array([1.0, 1.0, epsilon])
    origin = draw.origin("greedy_trap", seed, epsilon=epsilon)
    return draw.from_gadgets(
        draw.generator(seed), triple, weights, 1, n, group_sizes, q, keep, damping, origin
    )


def swap_trap(
    seed: Seed = 0,
    *,
    n: int = 15,
    group_sizes: Sizes = 1,
    q: int = 3,
    keep: int | None = None,
    damping: float = 1e-4,
    epsilon: float = 0.1,
) -> Problem:
    """Trap single swaps after greedy: n // 5 independent quintuples (a, b, e, c, d), two of each to be kept.

    With a, b, z orthonormal, e orthogonal to them, e'e = 0.3, y = a + b + e: c = y + 3z and d = y - 3z (and
    epsilon * noise each), W0 = (1, 1, 1, 0, 0).  Removal one at a time drops c, d and then e; from {a, b}
    (loss 0.15) every single swap is worse, because c and d are mostly z when alone, while together they give
    y up to a loss of epsilon^2 / 4.  Left-over groups, sizes and shuffling as in `greedy_trap`; ``keep`` is
    2 * (n // 5) by default.

    Raises
    ------
    InputError
        If n < 5 or the groups are not all of one size.

    Examples
    --------
    >>> problem = swap_trap(0, n=5)
    >>> problem.keep
    2
    """
    a, b, e, z = np.diag([1.0, 1.0, np.sqrt(0.3), 3.0])
    y = a + b + e
    latent = np.vstack([a, b, e, y + z, y - z])
    gram = latent @ latent.T + epsilon**2 * np.diag([0.0, 0.0, 0.0, 1.0, 1.0])
    origin = draw.origin("swap_trap", seed, epsilon=epsilon)
    return draw.from_gadgets(
        draw.generator(seed), gram, np.array([1.0, 1, 1, 0, 0]), 2, n, group_sizes, q, keep, damping, origin
    )


def unequal_groups(seed: Seed = 0, *, n: int = 12, group_sizes: Sizes = "mixed", **options: Any) -> Problem:
    """Draw `correlated` inputs in groups of 1 to 4 rows.

    Examples
    --------
    >>> sorted(set(unequal_groups(0, n=30).groups.sizes.tolist()))
    [1, 2, 3, 4]
    """
    rng = draw.generator(seed)
    base = correlated(rng, n=n, group_sizes=group_sizes, **options)
    return draw.constrained("unequal_groups", base, seed, keep=base.keep)


def knapsack(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    keep: int | None = None,
    fill: float = 0.5,
    **options: Any,
) -> Problem:
    """Add whole costs to `correlated`, 1 to 9 times the group's size; the budget is ``fill`` of their sum.

    No cardinality limit unless ``keep`` is given.

    Examples
    --------
    >>> problem = knapsack(0, n=6)
    >>> problem.keep is None, bool(problem.budget <= problem.costs.sum() / 2)
    (True, True)
    """
    rng = draw.generator(seed)
    base = correlated(rng, n=n, group_sizes=group_sizes, **options)
    costs = (rng.integers(1, 10, size=n) * base.groups.sizes).astype(np.float64)
    return draw.constrained(
        "knapsack", base, seed, costs=costs, budget=float(np.floor(fill * costs.sum())), keep=keep
    )


def blocks(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    keep: int | None = None,
    fill: float = 0.5,
    **options: Any,
) -> Problem:
    """Partition the groups of `correlated` into about n/4 blocks, of each of which ``fill`` may stay.

    Block b of size m keeps at most max(1, floor(fill * m)).  No overall limit unless ``keep`` is given.

    Examples
    --------
    >>> problem = blocks(0, n=8)
    >>> int(problem.blocks.max()) + 1 == problem.block_keep.size
    True
    """
    rng = draw.generator(seed)
    base = correlated(rng, n=n, group_sizes=group_sizes, **options)
    labels = rng.permutation(np.arange(n) % max(1, round(n / 4)))
    block_keep = np.maximum(1, np.floor(fill * np.bincount(labels))).astype(np.int64)
    return draw.constrained("blocks", base, seed, blocks=labels, block_keep=block_keep, keep=keep)


def forced(
    seed: Seed = 0,
    *,
    n: int = 12,
    group_sizes: Sizes = 1,
    keep: int | None = None,
    share: float = 0.2,
    **options: Any,
) -> Problem:
    """Decide about `correlated` beforehand: ``share`` of the groups always stay and as many always go.

    Examples
    --------
    >>> problem = forced(0, n=10)
    >>> int(problem.always_keep.sum()), int(problem.always_remove.sum())
    (2, 2)
    """
    rng = draw.generator(seed)
    base = correlated(rng, n=n, group_sizes=group_sizes, keep=keep, **options)
    count = min(int(share * n), n // 2 if keep is None else keep)
    order = rng.permutation(n)
    always_keep, always_remove = np.zeros((2, n), dtype=bool)
    always_keep[order[:count]] = True
    always_remove[order[count : 2 * count]] = True
    return draw.constrained(
        "forced", base, seed, always_keep=always_keep, always_remove=always_remove, keep=base.keep
    )


FAMILIES: Mapping[str, Callable[..., Problem]] = MappingProxyType(
    {
        family.__name__: family
        for family in (
            correlated,
            planted,
            drifted,
            near_duplicates,
            equal_scores,
            rank_deficient,
            heavy_tailed,
            ill_conditioned,
            greedy_trap,
            swap_trap,
            unequal_groups,
            knapsack,
            blocks,
            forced,
        )
    }
)
"""All families by name."""

_UNIFORM = {"greedy_trap", "swap_trap"}
