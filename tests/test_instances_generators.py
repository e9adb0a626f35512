"""The seeded families: reproducible, as documented, and the traps do trap."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.errors import InputError
from osscar_opt.instances import FAMILIES, generators, random_instance


def mask(n: int, kept: Any) -> np.ndarray:
    support = np.zeros(n, dtype=bool)
    support[list(kept)] = True
    return support


def enumerated(problem: Problem, keep: int) -> tuple[float, tuple[int, ...]]:
    """Best value over all supports of one size, by enumeration."""
    return min((problem.value(mask(problem.n, kept)), kept) for kept in combinations(range(problem.n), keep))


def literal_greedy(problem: Problem, keep: int) -> list[int]:
    kept = list(range(problem.n))
    while len(kept) > keep:
        values = [problem.value(mask(problem.n, [g for g in kept if g != out])) for out in kept]
        del kept[int(np.argmin(values))]
    return kept


def best_swap(problem: Problem, kept: list[int]) -> float:
    others = [g for g in range(problem.n) if g not in kept]
    return min(
        problem.value(mask(problem.n, [*(g for g in kept if g != out), into]))
        for out in kept
        for into in others
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_problem(family: str) -> None:
    one, same, other = (random_instance(seed, family, n=10, q=2) for seed in (4, 4, 5))
    assert one.hash == same.hash
    assert one.hash != other.hash
    assert one.name == one.provenance["generator"] == family
    assert one.provenance["seed"] == 4
    assert (one.n, one.q) == (10, 2)
    shared = np.random.default_rng(4)
    assert random_instance(shared, family, n=10, q=2).hash == one.hash
    assert random_instance(shared, family, n=10, q=2).hash != one.hash


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_arrive(family: str) -> None:
    problem = random_instance(0, family, n=8, group_sizes=2, q=5, keep=3, damping=0.3)
    assert (problem.n, problem.p, problem.q, problem.keep) == (8, 16, 5, 3)
    assert problem.provenance["damping"] == 0.3
    assert problem.hash != random_instance(0, family, n=8, group_sizes=2, q=5, keep=3, damping=0.2).hash


def test_any_family_any_sizes() -> None:
    drawn = {random_instance(seed, n=6, q=2).name for seed in range(80)}
    assert drawn == set(FAMILIES)
    for seed in range(20):
        problem = random_instance(seed, n=6, group_sizes="mixed", q=2)
        assert "trap" not in problem.name
        assert problem.groups.sizes.max() <= 4
    assert random_instance(0, n=3, group_sizes=[1, 5, 2]).groups.sizes.tolist() == [1, 5, 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"family": "nonsense"}, "the families are correlated"),
        ({"n": 0}, "at least one group"),
        ({"group_sizes": [1, 2]}, "each of the 12 groups"),
        ({"group_sizes": 0}, "each of the 12 groups"),
        ({"group_sizes": "many"}, "'mixed'"),
        ({"family": "greedy_trap", "group_sizes": "mixed"}, "one size"),
        ({"family": "swap_trap", "n": 4}, "at least 5 groups"),
        ({"family": "correlated", "pattern": "plaid"}, "toeplitz"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        random_instance(0, **{"family": "correlated", **options})


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("n", [3, 7, 9])
def test_greedy_trap(n: int, size: int) -> None:
    problem = generators.greedy_trap(n + size, n=n, group_sizes=size, q=4)
    assert problem.keep == n // 3
    best, kept = enumerated(problem, problem.keep)
    greedy = literal_greedy(problem, problem.keep)
    assert sorted(greedy) != list(kept)
    assert problem.value(mask(n, greedy)) > 20 * best


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("n", [5, 10, 11])
def test_swap_trap(n: int, size: int) -> None:
    problem = generators.swap_trap(n + size, n=n, group_sizes=size, q=3)
    assert problem.keep == 2 * (n // 5)
    best, _ = enumerated(problem, problem.keep)
    greedy = literal_greedy(problem, problem.keep)
    reached = problem.value(mask(n, greedy))
    assert reached > 20 * best
    assert best_swap(problem, greedy) >= reached


def test_near_duplicates_are_near() -> None:
    problem = generators.near_duplicates(1, n=5, group_sizes=[2, 3, 1, 1, 2], distance=0.01)
    scale = np.sqrt(np.diag(problem.gram))
    correlation = problem.gram / np.outer(scale, scale)
    assert correlation[0, 2] > 0.98  # the first row of the copy and of its model
    assert correlation[0, 4] > 0.98  # row 2 of the copy repeats row 2 mod 2
    assert correlation[5, 6] > 0.98
    assert abs(correlation[0, 7]) < 0.6


def test_equal_scores_are_equal() -> None:
    problem = generators.equal_scores(3, n=9, group_sizes=2, levels=2)
    leave_one_out = [problem.value(np.arange(9) != g) for g in range(9)]
    assert len({round(value, 9) for value in leave_one_out}) == 2


def test_rank_deficient_rests_on_the_ridge() -> None:
    problem = generators.rank_deficient(0, n=10, group_sizes=2, damping=1e-3)
    eigenvalues = np.linalg.eigvalsh(problem.gram)
    assert np.allclose(eigenvalues[:10], eigenvalues[0])
    assert eigenvalues[10] > 2 * eigenvalues[0]


def test_heavy_tailed_and_ill_conditioned() -> None:
    inputs = np.sqrt(np.diag(generators.heavy_tailed(2, n=40, damping=0.0).gram))
    assert 1000 < inputs.max() / inputs.min() < 5000
    assert 0.5e10 < np.linalg.cond(generators.ill_conditioned(2, n=12).gram) < 2e10


def test_planted_is_found_by_enumeration() -> None:
    problem = generators.planted(6, n=8, group_sizes=2, q=3, keep=3, noise=0.01, damping=1e-6)
    best, _ = enumerated(problem, 3)
    runner_up = sorted(problem.value(mask(8, kept)) for kept in combinations(range(8), 3))[1]
    assert best < 0.01 * runner_up
    assert problem.base > 0  # the noise no support explains


def test_limits_of_the_constrained_families() -> None:
    budgeted = generators.knapsack(0, n=9, group_sizes=3, fill=0.4)
    assert budgeted.costs is not None
    assert budgeted.budget == np.floor(0.4 * budgeted.costs.sum())
    assert np.all(budgeted.costs % 3 == 0)
    parted = generators.blocks(0, n=13)
    assert parted.blocks is not None
    assert parted.block_keep is not None
    assert parted.block_keep.tolist() == [max(1, size // 2) for size in np.bincount(parted.blocks)]
    decided = generators.forced(0, n=10, keep=1)
    assert (decided.always_keep.sum(), decided.always_remove.sum()) == (1, 1)
    assert "unequal_groups" in generators.unequal_groups(0).features
