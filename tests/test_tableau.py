"""The tableau against plain numpy: every loss, gain and exchange by solving from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.linalg import blas
from osscar_opt.linalg.kernels import make_kernels
from osscar_opt.linalg.numpy_kernels import NumpyKernels
from osscar_opt.linalg.swaps import swap_changes
from osscar_opt.linalg.tableau import Tableau
from osscar_opt.linalg.torch_kernels import TorchKernels

SIZES = {"ones": [1], "threes": [3], "nines": [9], "mixed": [1, 2, 3, 4]}


def layer(seed, sizes, n=7, spread=1.0):
    """gram, cross, group_of_row with rows of groups scattered and input sizes over `spread` orders of magnitude."""
    rng = np.random.default_rng(seed)
    per_group = rng.choice(SIZES[sizes], n)
    p = int(per_group.sum())
    group_of_row = rng.permutation(np.repeat(np.arange(n), per_group))
    inputs = rng.normal(size=(3 * p + 2, p)) * 10.0 ** rng.uniform(-spread, spread, p)
    gram = inputs.T @ inputs / len(inputs)
    return gram, gram @ rng.normal(size=(p, int(rng.integers(1, 5)))), group_of_row


def value(gram, cross, group_of_row, support):
    """-1/2 tr(G_S' inv(H_SS) G_S), by a solve from scratch."""
    rows = support[group_of_row]
    if not rows.any():
        return 0.0
    return -0.5 * float(np.trace(cross[rows].T @ np.linalg.solve(gram[np.ix_(rows, rows)], cross[rows])))


def flipped(support, *groups):
    other = support.copy()
    other[list(groups)] ^= True
    return other


def kernels(name):
    return TorchKernels("cpu") if name == "torch" else NumpyKernels()


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("sizes", list(SIZES))
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.sampled_from(["both", "kept", "removed"]),
    panel=st.sampled_from([None, 1, 4]),
)
def test_losses_gains_and_changes_are_those_of_fresh_solves(backend, sizes, seed, side, panel):
    gram, cross, group_of_row = layer(seed, sizes)
    rng = np.random.default_rng(seed)
    support = {"both": rng.random(7) < 0.5, "kept": np.ones(7, bool), "removed": np.zeros(7, bool)}[side]
    optimum = np.linalg.solve(gram, cross) if seed % 2 else None
    tableau = Tableau(
        gram, cross, group_of_row, support, side=side, kernels=kernels(backend), panel=panel, optimum=optimum
    )
    scale = abs(value(gram, cross, group_of_row, np.ones(7, bool)))
    began = value(gram, cross, group_of_row, support)
    for _ in range(7 if side != "both" else 10):
        now = tableau.support.copy()
        here = value(gram, cross, group_of_row, now)
        assert abs(tableau.change - (here - began)) <= 1e-9 * scale
        losses, gains = tableau.losses(), tableau.gains()
        for group in range(7):
            there = value(gram, cross, group_of_row, flipped(now, group))
            if now[group] and side != "removed":
                assert abs(losses[group] - (there - here)) <= 1e-9 * scale
            elif not now[group] and side != "kept":
                assert abs(gains[group] - (here - there)) <= 1e-9 * scale
            assert np.isposinf(losses[group]) if not now[group] else np.isneginf(gains[group])
        choice = {"both": np.arange(7), "kept": np.flatnonzero(now), "removed": np.flatnonzero(~now)}[side]
        tableau.pivot(int(rng.choice(choice)))


@pytest.mark.parametrize("side", ["both", "kept", "removed"])
@pytest.mark.parametrize("sizes", list(SIZES))
@given(seed=st.integers(0, 2**32 - 1))
def test_the_cheapest_group_is_that_of_all_scores(sizes, side, seed):
    """Though few groups may have been valued exactly to find it."""
    gram, cross, group_of_row = layer(seed, sizes, n=24)
    support = np.full(24, side != "removed")
    tableau = Tableau(gram, cross, group_of_row, support, side=side, panel=20)
    for _ in range(20):
        scores = -tableau.gains() if side == "removed" else tableau.losses()
        group = tableau.cheapest()
        assert scores[group] <= scores.min() + 1e-9 * abs(scores.min())
        tableau.move(group)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("sizes", list(SIZES))
@given(seed=st.integers(0, 2**32 - 1))
def test_every_exchange_has_its_exact_value(backend, sizes, seed):
    gram, cross, group_of_row = layer(seed, sizes)
    rng = np.random.default_rng(seed)
    tableau = Tableau(gram, cross, group_of_row, rng.random(7) < 0.5, kernels=kernels(backend))
    for _ in range(4):  # so that kept and removed groups no longer stand in the order they were stored
        tableau.pivot(int(rng.integers(7)))
    now = tableau.support.copy()
    here = value(gram, cross, group_of_row, now)
    kept, removed, changes = swap_changes(tableau)
    assert sorted(kept) == list(np.flatnonzero(now))
    assert sorted(removed) == list(np.flatnonzero(~now))
    scale = abs(value(gram, cross, group_of_row, np.ones(7, bool)))
    for a, i in enumerate(kept):
        for b, j in enumerate(removed):
            change = value(gram, cross, group_of_row, flipped(now, i, j)) - here
            if np.isinf(changes[a, b]):  # not worth valuing: no improvement
                assert change >= -1e-9 * scale
            else:
                assert abs(changes[a, b] - change) <= 1e-9 * scale


def test_cancellation_is_noticed_and_mended():
    """Twins make inv(H) huge; when one of each pair has left, what is left must have all its digits again."""
    rng = np.random.default_rng(3)
    half = rng.normal(size=(400, 40))
    inputs = np.hstack([half, half + 1e-5 * rng.normal(size=half.shape)])
    gram = inputs.T @ inputs / 400
    cross = gram @ rng.normal(size=(80, 3))
    group_of_row = np.arange(80)
    tableau = Tableau(gram, cross, group_of_row, np.ones(80, bool), side="kept")
    for group in range(40):
        tableau.pivot(group)
    tableau.flush()
    assert tableau.factorizations > 1
    here = value(gram, cross, group_of_row, tableau.support)
    losses = tableau.losses()
    for group in range(40, 80):
        exact = value(gram, cross, group_of_row, flipped(tableau.support, group)) - here
        assert losses[group] == pytest.approx(exact, rel=1e-8)


def test_inputs_of_size_2000_beside_inputs_of_size_1():
    """After many pivots the values still agree with fresh solves."""
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(500, 120)) @ (np.eye(120) + 0.3 * rng.normal(size=(120, 120)))
    inputs[:, :3] *= 2000.0
    gram = inputs.T @ inputs / 500
    cross = gram @ rng.normal(size=(120, 7))
    group_of_row = np.arange(120)
    tableau = Tableau(gram, cross, group_of_row, rng.random(120) < 0.5)
    for _ in range(3000):
        tableau.pivot(int(rng.integers(120)))
    now = tableau.support.copy()
    here = value(gram, cross, group_of_row, now)
    scale = abs(value(gram, cross, group_of_row, np.ones(120, bool)))
    losses, gains = tableau.losses(), tableau.gains()
    for group in range(120):
        exact = value(gram, cross, group_of_row, flipped(now, group)) - here
        assert (losses[group] if now[group] else -gains[group]) == pytest.approx(
            exact, rel=1e-6, abs=1e-11 * scale
        )


def test_float32_is_float64_to_its_precision():
    gram, cross, group_of_row = layer(11, "threes", spread=0.3)
    exact = Tableau(gram, cross, group_of_row, np.ones(7, bool))
    for name in ("numpy", "torch"):
        coarse = make_kernels("cpu" if name == "numpy" else "torch:cpu", "float32")
        single = Tableau(gram, cross, group_of_row, np.ones(7, bool), kernels=coarse)
        np.testing.assert_allclose(single.losses(), exact.losses(), rtol=2e-3)


def test_float32_is_not_refactored_for_its_own_rounding():
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(400, 160))
    gram = inputs.T @ inputs / 400
    cross = gram @ rng.normal(size=(160, 7))
    exact, single = (
        Tableau(
            gram,
            cross,
            np.arange(160),
            np.ones(160, bool),
            side="kept",
            kernels=make_kernels("cpu", precision),
        )
        for precision in ("float64", "float32")
    )
    for _ in range(80):
        group = exact.cheapest()
        exact.pivot(group)
        single.pivot(group)
    single.flush()
    assert single.factorizations == 1
    assert single.change == pytest.approx(exact.change, rel=1e-4)


def test_a_one_sided_tableau_refuses_the_other_direction():
    tableau = Tableau(np.eye(2), np.ones((2, 1)), np.arange(2), np.array([True, True]), side="kept")
    tableau.pivot(0)
    with pytest.raises(ValueError, match="cannot move"):
        tableau.pivot(0)
    with pytest.raises(ValueError, match="two-sided"):
        swap_changes(tableau)


# ------------------------------------------------------------------------------------ in-place kernels on blocks


@pytest.fixture(params=["float64", "float32"])
def big(request):
    """A column-major array to take blocks of, and the tolerance of its type."""
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(30, 30)).astype(request.param))
    return array, 1e-12 if request.param == "float64" else 1e-4


def spd(n, dtype):
    a = np.random.default_rng(1).normal(size=(2 * n, n)).astype(dtype)
    return a.T @ a


def test_updates_touch_their_block_alone(big):
    array, tolerance = big
    a, b = array[:7, :5].copy(order="F"), array[7:16, :5].copy(order="F")
    before = array.copy()
    blas.update(array[10:17, 3:12], a, b, -2.0)
    expected = before.copy()
    expected[10:17, 3:12] -= 2.0 * a @ b.T
    np.testing.assert_allclose(array, expected, atol=tolerance)


def test_symmetric_updates_write_the_lower_triangle(big):
    array, tolerance = big
    a, b = array[:6, :4].copy(order="F"), array[6:12, :4].copy(order="F")
    before = array.copy()
    blas.square_update(array[5:11, 5:11], a, 3.0)
    blas.symmetric_update(array[15:21, 15:21], a, b, -1.0)
    expected = before.copy()
    expected[5:11, 5:11] += np.tril(3.0 * a @ a.T)
    expected[15:21, 15:21] -= np.tril(a @ b.T + b @ a.T)
    np.testing.assert_allclose(array, expected, atol=20 * tolerance)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
def test_triangular_solves(big, right, transpose):
    array, tolerance = big
    lower = np.linalg.cholesky(spd(6, array.dtype)).astype(array.dtype, order="F")
    block = array[2:8, 3:9]
    rhs = block.copy()
    blas.solve_lower(lower, block, transpose=transpose, right=right)
    factor = lower.T if transpose else lower
    np.testing.assert_allclose(block @ factor if right else factor @ block, rhs, atol=100 * tolerance)


def test_inverse_by_cholesky_on_a_block(big):
    array, tolerance = big
    matrix = spd(8, array.dtype)
    block = array[4:12, 10:18]
    block[...] = matrix
    blas.cholesky_lower(block)
    blas.inverse_from_cholesky_lower(block)
    np.testing.assert_allclose(
        np.tril(block), np.tril(np.linalg.inv(matrix.astype(float))), atol=1e3 * tolerance
    )


@pytest.mark.parametrize("row_major", [False, True])
def test_large_matrices_are_worked_on_in_strips(monkeypatch, row_major):
    """With the numbers that call for strips made small; nothing above the diagonal is touched."""
    monkeypatch.setattr(blas, "_LARGE", 20)
    monkeypatch.setattr(blas, "_STRIP", 8)
    rng = np.random.default_rng(4)
    above = np.triu(rng.normal(size=(45, 45)), 1)
    matrix = spd(45, float)
    work = np.asfortranarray(np.tril(matrix) + above)
    blas.cholesky_lower(work)
    np.testing.assert_allclose(np.tril(work), np.linalg.cholesky(matrix), atol=1e-12)
    blas.inverse_from_cholesky_lower(work)
    np.testing.assert_allclose(np.tril(work), np.tril(np.linalg.inv(matrix)), atol=1e-12)
    panel = np.asfortranarray(rng.normal(size=(45, 7)))
    square = np.array(np.tril(matrix) + above, order="C" if row_major else "F")
    blas.square_update(square, panel if not row_major else np.ascontiguousarray(panel), 2.0, keep=0.5)
    np.testing.assert_allclose(np.tril(square), np.tril(0.5 * matrix + 2.0 * panel @ panel.T), atol=1e-10)
    for touched in (work, square):
        np.testing.assert_array_equal(np.triu(touched, 1), above)
    with pytest.raises(np.linalg.LinAlgError, match="leading minor 31"):
        blas.cholesky_lower(np.asfortranarray(np.diag(np.where(np.arange(45) < 30, 1.0, -1.0))))


def test_a_lower_triangle_is_mirrored(monkeypatch):
    monkeypatch.setattr(blas, "_MIRRORED", 4)
    matrix = spd(11, float)
    half = np.asfortranarray(np.tril(matrix))
    blas.mirror_lower(half)
    np.testing.assert_array_equal(half, np.tril(matrix) + np.tril(matrix, -1).T)


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        blas.cholesky_lower(np.asfortranarray(-np.eye(3)))


def test_strided_arrays_and_mixed_types_are_refused():
    column = np.asfortranarray(np.eye(3))
    with pytest.raises(ValueError, match="column-major"):
        blas.update(np.eye(4)[::2, ::2], column[:2, :1], column[:2, :1], 1.0)
    with pytest.raises(TypeError, match="mixed"):
        blas.update(column, column.astype(np.float32), column, 1.0)


# ------------------------------------------------------------------------------------ taking back, weights, storage


def snapshot(tableau):
    tableau.flush()
    inside, outside = tableau.members(kept=True), tableau.members(kept=False)
    rows = [np.concatenate([m.rows for m in side]) for side in (inside, outside)]
    between = [tableau.kernels.numpy(block) for block in tableau.between(*rows)]
    return [tableau.losses(), tableau.gains(), np.array(tableau.change), tableau.support.copy(), *between]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("sizes", list(SIZES))
@given(seed=st.integers(0, 2**32 - 1), moves=st.integers(1, 6))
def test_rollback_leaves_everything_as_it_was(backend, sizes, seed, moves):
    gram, cross, group_of_row = layer(seed, sizes, n=10)
    rng = np.random.default_rng(seed)
    support = rng.permutation(np.arange(10) < 5)
    taken, untouched = (
        Tableau(gram, cross, group_of_row, support, kernels=kernels(backend), panel=120) for _ in range(2)
    )
    for tableau in (taken, untouched):
        tableau.move(int(np.flatnonzero(support)[0]))  # a pivot that is gathered before, and stays
    taken.checkpoint(6 * 9)
    for group in rng.integers(1, 10, moves):  # the same group may go out and in again
        taken.move(int(group))
    assert taken.rollback()
    movable = taken.support & (np.arange(10) > 5)
    if movable.any():
        for tableau in (taken, untouched):
            tableau.move(int(np.flatnonzero(movable)[0]))
    for now, expected in zip(snapshot(taken), snapshot(untouched), strict=True):
        finite = np.abs(expected[np.isfinite(expected)])
        np.testing.assert_allclose(now, expected, rtol=1e-12, atol=1e-12 * finite.max(initial=0.0))


def test_rollback_says_when_it_comes_too_late():
    gram, cross, group_of_row = layer(1, "ones", n=10)
    tableau = Tableau(gram, cross, group_of_row, np.ones(10, bool), panel=2)
    assert not tableau.rollback()
    tableau.checkpoint(1)
    for group in range(3):
        tableau.move(group)
    assert not tableau.rollback()
    assert tableau.support.tolist() == [False] * 3 + [True] * 7


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("side", ["both", "kept"])
def test_weights_are_those_of_a_fresh_solve(backend, side):
    gram, cross, group_of_row = layer(4, "mixed", n=12)
    tableau = Tableau(gram, cross, group_of_row, np.ones(12, bool), side=side, kernels=kernels(backend))
    for group in (3, 0, 7, 11):
        tableau.move(group)
    rows = tableau.support[group_of_row]
    expected = np.zeros_like(cross)
    expected[rows] = np.linalg.solve(gram[np.ix_(rows, rows)], cross[rows])
    np.testing.assert_allclose(tableau.weights(), expected, rtol=0, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("known", [False, True])
def test_outputs_are_read_in_parts(backend, known, monkeypatch):
    monkeypatch.setattr("osscar_opt.linalg.tableau._COLUMNS", 3)
    rng = np.random.default_rng(8)
    gram, _, group_of_row = layer(8, "threes")
    cross = gram @ rng.normal(size=(len(gram), 10))
    support = np.ones(7, bool) if known else np.arange(7) < 4
    optimum = np.linalg.solve(gram, cross) if known else None
    tableau = Tableau(gram, cross, group_of_row, support, optimum=optimum, kernels=kernels(backend))
    here = value(gram, cross, group_of_row, support)
    for group in range(4):
        there = value(gram, cross, group_of_row, flipped(support, group))
        assert tableau.losses()[group] == pytest.approx(there - here, rel=1e-8)


def test_a_pair_takes_the_memory_of_one_matrix():
    t, n = NumpyKernels().pair(200)
    lowest = min(np.lib.array_utils.byte_bounds(c)[0] for c in (t, n))
    highest = max(np.lib.array_utils.byte_bounds(c)[1] for c in (t, n))
    assert highest - lowest < 1.1 * t.nbytes
    for i in range(200):
        t[i, : i + 1], n[i, : i + 1] = i, -i
    assert all((t[i, : i + 1] == i).all() and (n[i, : i + 1] == -i).all() for i in range(200))


def test_a_pivot_without_digits_is_mended_by_refactoring(monkeypatch):
    gram, cross, group_of_row = layer(6, "ones")
    tableau = Tableau(gram, cross, group_of_row, np.ones(7, bool))
    tableau.move(0)
    tableau.flush()
    tableau._t[3, 3] = 1.0  # -inv(H_SS) cannot have such a diagonal
    loss = value(gram, cross, group_of_row, flipped(tableau.support, 3)) - value(
        gram, cross, group_of_row, tableau.support
    )
    assert tableau.pivot(3) == pytest.approx(loss)
    assert tableau.factorizations == 2
