"""Limits: every budget as packing constraints, against sums written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.errors import InfeasibleError, InputError
from osscar_opt.formulations.limits import Limits

N = 5
COSTS = np.array([4.0, 1.0, 2.5, 0.0, 3.0])
BLOCKS = np.array([0, 1, 0, 1, 1])


def _problem(**limits: object) -> Problem:
    return Problem(np.eye(N), np.ones((N, 2)), **limits)


def test_feasible_agrees_with_the_sums_on_every_support() -> None:
    problem = _problem(
        keep=3, costs=COSTS, budget=5.5, blocks=BLOCKS, block_keep=[1, 2], always_keep=[1], always_remove=[4]
    )
    for bits in itertools.product([False, True], repeat=N):
        kept = [g for g in range(N) if bits[g]]
        by_hand = (
            len(kept) <= 3
            and sum(COSTS[g] for g in kept) <= 5.5
            and sum(BLOCKS[g] == 0 for g in kept) <= 1
            and sum(BLOCKS[g] == 1 for g in kept) <= 2
            and 1 in kept
            and 4 not in kept
        )
        assert problem.feasible(np.array(bits)) == by_hand, kept
        assert problem.feasible(kept) == by_hand
        assert (problem.violation(kept) == "") == by_hand


def test_slack_and_excess_are_signed_right() -> None:
    limits = Limits.of(N, keep=2, costs=COSTS, budget=5.0)
    support = np.array([True, False, True, False, False])
    np.testing.assert_array_equal(limits.slack(support), [0.0, -1.5])
    np.testing.assert_array_equal(limits.excess(support), [0.0, 1.5])
    assert limits.violation(support) == "uses 6.5 of budget = 5"


def test_cardinality_only_of_one_plain_keep() -> None:
    assert Limits.of(N, keep=2).cardinality == 2
    assert Limits.of(N).cardinality is None
    assert Limits.of(N, keep=2, costs=COSTS, budget=5.0).cardinality is None
    assert Limits.of(N, costs=np.ones(N), budget=2.0).cardinality is None


def test_rounding_of_costs_is_not_an_excess() -> None:
    limits = Limits.of(2, costs=np.array([0.1, 0.2]), budget=0.3)
    assert 0.1 + 0.2 > 0.3
    both = np.ones(2, dtype=bool)
    assert limits.feasible(both)
    assert limits.excess(both).tolist() == [0.0]
    assert limits.fill([0, 1], np.zeros(2, dtype=bool)).all()
    assert not Limits.of(2, costs=np.array([0.1, 0.2]), budget=0.2999).feasible(both)
    assert not Limits.of(1, costs=np.array([1e-300]), budget=0.0).feasible(np.ones(1, dtype=bool))


@pytest.mark.parametrize("seed", range(20))
def test_fill_is_feasible_maximal_and_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 9
    limits = Limits.of(
        n,
        keep=int(rng.integers(0, n + 1)),
        costs=rng.integers(0, 5, n).astype(float),
        budget=float(rng.integers(0, 15)),
        blocks=rng.integers(0, 3, n),
        block_keep=rng.integers(0, 4, 3),
    )
    order = rng.permutation(n)
    support = limits.fill(order, np.zeros(n, dtype=bool))
    expected = np.zeros(n, dtype=bool)
    for group in order:  # the definition, one feasibility test at a time
        expected[group] = True
        expected[group] = limits.feasible(expected)
    np.testing.assert_array_equal(support, expected)
    for group in np.flatnonzero(~support):
        larger = support.copy()
        larger[group] = True
        assert not limits.feasible(larger)


def test_fill_keeps_its_start_and_does_not_change_it() -> None:
    limits = Limits.of(4, keep=3)
    start = np.array([False, False, False, True])
    support = limits.fill([0, 1, 2, 3], start)
    assert support.tolist() == [True, True, False, True]
    assert start.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"keep": 6}, "keep = 6 is out of range: it must lie between 0 and the number of groups, 5"),
        ({"keep": -1}, "keep = -1 is out of range"),
        ({"keep": 2.0}, "keep = 2.0 must be a whole number"),
        ({"keep": "half"}, "keep = 'half' must be a whole number"),
        ({"costs": [1, 2], "budget": 3}, r"costs must hold one number for each of the 5 groups, .* \(2,\)"),
        ({"costs": [1, 2, -3, 4, 5], "budget": 3}, r"costs must not be negative, but costs\[2\] = -3"),
        ({"costs": [1, np.nan, 1, 1, 1], "budget": 3}, r"costs\[1\] is nan"),
        ({"costs": ["a"] * 5, "budget": 3}, "costs must hold real numbers"),
        ({"budget": 3}, "budget was given without costs"),
        ({"costs": [1] * 5, "budget": -1}, "budget = -1 must not be negative"),
        ({"costs": [1] * 5, "budget": np.inf}, "budget = inf must be finite"),
        ({"costs": [1] * 5, "budget": "lots"}, "budget = 'lots' must be a number"),
        ({"blocks": [0, 1]}, "blocks must hold one integer label for each of the 5 groups"),
        ({"blocks": [0.5] * 5}, "blocks must hold one integer label"),
        ({"blocks": [0, 0, 0, 0, -1]}, "labelled from 0, but one label is -1"),
        ({"block_keep": [1]}, "block_keep was given without blocks"),
        ({"blocks": [0, 0, 1, 1, 2], "block_keep": [1, 1]}, "one number for each of the 3 blocks"),
        ({"blocks": [0, 0, 1, 1, 1], "block_keep": [1, 9]}, r"block_keep\[1\] = 9 is out of range"),
        ({"always_keep": [7]}, r"always_keep names group 7, but groups are 0\.\.4"),
        ({"always_keep": [-1]}, "always_keep names group -1"),
        ({"always_keep": [True, False]}, r"always_keep is a mask of shape \(2,\), but there are 5 groups"),
        ({"always_remove": [0.5]}, "always_remove must be a boolean mask over the groups or a list"),
    ],
)
def test_bad_budgets_are_refused_in_a_sentence(limits: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _problem(**limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"keep": 1, "always_keep": [0, 1, 2]}, "uses 3 of keep = 1; the smallest feasible keep is 3"),
        (
            {"costs": COSTS, "budget": 5, "always_keep": [0, 2]},
            "uses 6.5 of budget = 5; the smallest feasible budget is 6.5",
        ),
        (
            {"blocks": BLOCKS, "block_keep": [2, 1], "always_keep": [1, 3]},
            r"uses 2 of block_keep\[1\] = 1; the smallest feasible block_keep\[1\] is 2",
        ),
        ({"always_keep": [2, 3], "always_remove": [3]}, "group 3 is in always_keep and in always_remove"),
    ],
)
def test_contradictions_name_the_limit_and_what_would_do(limits: dict[str, object], message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        _problem(**limits)


def test_the_smallest_feasible_value_is_feasible() -> None:
    with pytest.raises(InfeasibleError) as caught:
        _problem(costs=COSTS, budget=1.0, always_keep=[0, 2])
    smallest = float(str(caught.value).rstrip(".").rsplit(" ", 1)[1])
    assert _problem(costs=COSTS, budget=smallest, always_keep=[0, 2]).feasible([0, 2])
