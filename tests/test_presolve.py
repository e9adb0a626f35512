"""Presolve: every support of the reduced problem has the value of its lift, and limits mean the same."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem
from osscar_opt.errors import InputError
from osscar_opt.formulations.presolve import REDUCTIONS, Presolved, presolve


def _problem(seed: int = 0, *, p: int = 10, q: int = 3, dead: tuple[int, ...] = (), **rest: Any) -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((40, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p)))
    inputs[:, list(dead)] = 0.0
    damping = 0.0 if dead else 1e-2
    return Problem.from_data(inputs, rng.standard_normal((p, q)), damping=damping, **rest)


def _supports(n: int) -> list[np.ndarray]:
    return [np.array(bits, dtype=bool) for bits in itertools.product([False, True], repeat=n)]


def _require_equivalent(presolved: Presolved) -> None:
    original, reduced = presolved.original, presolved.problem
    lifted = [presolved.lift_support(support) for support in _supports(reduced.n)]
    for support, full in zip(_supports(reduced.n), lifted, strict=True):
        assert reduced.value(support) == pytest.approx(original.value(full), rel=1e-9, abs=1e-12)
        assert reduced.feasible(support) == original.feasible(full)
        np.testing.assert_array_equal(presolved.restrict_support(full), support)
    assert reduced.base == pytest.approx(min(original.value(full) for full in lifted), rel=1e-9, abs=1e-12)
    assert reduced.constant == pytest.approx(original.value(lifted[0]), rel=1e-9)
    np.testing.assert_array_equal(reduced.gram, reduced.gram.T)


FORCED: list[dict[str, Any]] = [
    {"always_keep": [1, 3]},
    {"always_remove": [0, 4]},
    {"always_keep": [2], "always_remove": [0, 4]},
    {"always_keep": [2], "groups": [0, 1, 2, 0, 1, 3, 3, 3, 4, 4]},
    {"always_keep": [0, 1, 2, 3, 4]},
    {"always_keep": [0, 1], "always_remove": [2, 3, 4]},
]


@pytest.mark.parametrize("forced", FORCED)
@pytest.mark.parametrize("own_targets", [False, True])
def test_forced_groups_are_eliminated_exactly(forced: dict[str, Any], own_targets: bool) -> None:
    problem = _problem(**{"groups": 2, **forced})
    if own_targets:
        cross = problem.cross + np.random.default_rng(5).standard_normal(problem.cross.shape)
        problem = Problem(problem.gram, cross, constant=100.0, **{"groups": problem.groups, **forced})
    presolved = presolve(problem)
    forced_groups = len(forced.get("always_keep", [])) + len(forced.get("always_remove", []))
    assert presolved.problem.n == problem.n - forced_groups
    assert "forced" not in presolved.problem.features
    _require_equivalent(presolved)


def test_forced_groups_lower_every_limit() -> None:
    problem = _problem(
        groups=2,
        keep=3,
        costs=[4.0, 1.0, 2.0, 3.0, 0.5],
        budget=7.0,
        blocks=[0, 0, 1, 1, 1],
        block_keep=[2, 1],
        always_keep=[0],
        always_remove=[3],
    )
    presolved = presolve(problem)
    reduced = presolved.problem
    assert (reduced.keep, reduced.budget) == (2, 3.0)
    assert reduced.block_keep is not None
    assert reduced.block_keep.tolist() == [1, 1]
    _require_equivalent(presolved)


def test_keep_is_never_more_than_what_is_left() -> None:
    reduced = presolve(_problem(groups=2, keep=5, always_remove=[0, 1])).problem
    assert (reduced.n, reduced.keep) == (3, 3)


@pytest.mark.parametrize("groups", [None, 2, [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]])
@pytest.mark.parametrize("dead", [(5,), (0, 5), (4, 5, 9), tuple(range(10))])
def test_dead_inputs_go(dead: tuple[int, ...], groups: Any) -> None:
    problem = _problem(dead=dead, groups=groups, keep=3)
    presolved = presolve(problem)
    assert presolved.problem.live_rows.all()
    if groups is None:
        assert presolved.problem.n == 10 - len(dead)
    _require_equivalent(presolved)


def test_dead_groups_that_must_stay_do() -> None:
    problem = _problem(dead=(4, 5), groups=2, keep=3, always_keep=[2])
    for names in (True, ["dead_inputs"]):
        presolved = presolve(problem, names)
        for support in _supports(presolved.problem.n):
            if presolved.problem.feasible(support):
                assert presolved.lift_support(support)[2]


@pytest.mark.parametrize("q", [11, 40])
def test_rank_keeps_the_products_of_cross(q: int) -> None:
    problem = _problem(q=q, groups=2)
    presolved = presolve(problem)
    assert presolved.problem.q == 10
    np.testing.assert_allclose(
        presolved.problem.cross @ presolved.problem.cross.T, problem.cross @ problem.cross.T, rtol=1e-11
    )
    _require_equivalent(presolved)


def test_all_reductions_together() -> None:
    problem = _problem(q=25, dead=(1, 6), groups=2, keep=3, always_keep=[1], always_remove=[4])
    presolved = presolve(problem)
    assert [name for name, _ in presolved.steps] == ["forced", "dead_inputs", "rank"]
    assert presolved.log[0] == "forced: 1 kept and 1 removed"
    _require_equivalent(presolved)


def test_nothing_to_reduce_is_the_problem_itself() -> None:
    problem = _problem(groups=2, keep=3)
    presolved = presolve(problem)
    assert presolved.problem is problem
    assert presolved.log == ()
    support = np.array([True, False, True, False, False])
    assert presolved.lift_support(support) is support


@pytest.mark.parametrize(
    ("names", "applied"), [(False, []), (["rank"], ["rank"]), ({"forced"}, ["forced"]), ([], [])]
)
def test_reductions_are_switched_by_name(names: Any, applied: list[str]) -> None:
    problem = _problem(q=25, dead=(1, 6), groups=2, keep=3, always_keep=[1])
    assert [name for name, _ in presolve(problem, names).steps] == applied


def test_unknown_reductions_are_refused() -> None:
    with pytest.raises(InputError, match="no reduction 'ranks': reductions are forced, dead_inputs, rank"):
        presolve(_problem(), ["ranks"])
    assert all(reduction.summary for reduction in REDUCTIONS.values())


def test_original_is_not_changed() -> None:
    problem = _problem(q=25, dead=(1,), groups=2, keep=3, always_keep=[1])
    before = problem.gram.copy(), problem.cross.copy()
    presolve(problem)
    np.testing.assert_array_equal(problem.gram, before[0])
    np.testing.assert_array_equal(problem.cross, before[1])


# ------------------------------------------------------------------------------------------------ large problems


def _large(p: int, q: int = 4, *, dead: int = 0, **rest: Any) -> Problem:
    rng = np.random.default_rng(0)
    factors, dense = rng.standard_normal((p, 40)), rng.standard_normal((p, q))
    gram = factors @ factors.T / 40 + np.eye(p)
    gram[:dead] = gram[:, :dead] = 0.0
    return Problem(gram, dense_weights=dense, copy=False, **rest)


@pytest.mark.parametrize("kept", [3, 900])
def test_forced_groups_of_more_rows_than_are_taken_at_once(kept: int) -> None:
    problem = _large(1500, always_keep=np.arange(0, kept), always_remove=[1400, 1499])
    reduced = presolve(problem).problem
    h, k, f = problem.gram, np.arange(kept), np.setdiff1d(np.arange(kept, 1500), [1400, 1499])
    swept = np.linalg.solve(h[np.ix_(k, k)], np.hstack([h[np.ix_(k, f)], problem.cross[k]]))
    schur = np.hstack([h[np.ix_(f, f)], problem.cross[f]]) - h[np.ix_(f, k)] @ swept
    np.testing.assert_allclose(reduced.gram, schur[:, : len(f)], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(reduced.cross, schur[:, len(f) :], rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(reduced.gram, reduced.gram.T)
    np.testing.assert_allclose(reduced.gram @ reduced.optimum, reduced.cross, rtol=1e-9, atol=1e-10)


def test_the_optimum_is_handed_on_where_dead_inputs_go() -> None:
    """And is what solving anew gives, with weights of dead inputs zero."""
    problem = _problem(dead=(1, 4, 6), groups=[0, 1, 2, 3, 1, 4, 5, 5, 6, 6])
    reduced = presolve(problem).problem
    assert (problem.n, reduced.n) == (7, 6)
    assert "optimum" in vars(reduced)
    np.testing.assert_allclose(
        reduced.optimum, np.linalg.solve(reduced.gram, reduced.cross), rtol=1e-9, atol=1e-12
    )
    assert not reduced.optimum.flags.writeable


def test_nothing_to_reduce_leaves_the_very_problem() -> None:
    problem = _problem()
    assert presolve(problem).problem is problem


@pytest.mark.parametrize(
    "posed",
    [
        {"always_keep": np.arange(150), "always_remove": np.arange(700, 850)},
        {"always_keep": np.arange(750)},
        {"always_remove": np.arange(150)},
        {"dead": 20},
    ],
    ids=["both", "keep", "remove", "dead"],
)
def test_a_reduction_holds_one_array_more_of_the_size_of_gram(posed: dict[str, Any]) -> None:
    p = 1500
    problem = _large(p, **posed)
    presolve(problem)  # what is cached on the way does not count
    tracemalloc.start()
    try:
        reduced = presolve(problem).problem
        peak = tracemalloc.get_traced_memory()[1] / 8
    finally:
        tracemalloc.stop()
    assert reduced.p < p
    assert peak < 1.45 * p * p  # the rest: a few hundred rows at a time
