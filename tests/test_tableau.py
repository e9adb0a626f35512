"""The tableau against plain numpy: every loss, gain and exchange by solving from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.linalg import blas
from osscar_opt.linalg.kernels import NumpyKernels, TorchKernels, make_kernels
from osscar_opt.linalg.swaps import swap_changes
from osscar_opt.linalg.tableau import Tableau

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
            there = value(gram, cross, group_of_row, flipped(now, i, j))
            assert abs(changes[a, b] - (there - here)) <= 1e-9 * scale


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


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        blas.cholesky_lower(np.asfortranarray(-np.eye(3)))


def test_row_major_arrays_and_mixed_types_are_refused():
    column = np.asfortranarray(np.eye(3))
    with pytest.raises(ValueError, match="column-major"):
        blas.update(np.array([[1.0, 2.0], [3.0, 4.0]]), column[:2, :1], column[:2, :1], 1.0)
    with pytest.raises(TypeError, match="mixed"):
        blas.update(column, column.astype(np.float32), column, 1.0)
