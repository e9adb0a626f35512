"""Streamed second moments against numpy, whatever the batches, dtypes and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.errors import LayerError
from osscar_opt.torch.gram import GramAccumulator

WIDTH, OUTPUTS = 7, 3


def _inputs(rows: int = 60, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(rows, width, generator=generator)
    values[:, 0] *= 1000.0  # a large input beside small ones, as in real layers
    return values


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-10) -> None:
    scale = np.sqrt(np.outer(np.diag(b), np.diag(b))) if a.shape[0] == a.shape[1] else np.abs(b).max()
    assert np.max(np.abs(a - b) / scale) < tolerance


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 20, 33], [59, 1]])
def test_any_cut_gives_numpys_second_moment(sizes: list[int]) -> None:
    x = _inputs()
    gram = GramAccumulator(WIDTH)
    for part in x.split(sizes):
        gram.add(part)
    exact = x.double().numpy()
    _close(gram.second_moment(), exact.T @ exact / 60, 1e-13)
    assert gram.rows == 60
    assert gram.second_moment().dtype == np.float64


def test_blocks_wider_than_one_block_are_mirrored_exactly() -> None:
    x = _inputs(rows=50, width=700)
    gram = GramAccumulator(700)
    gram.add(x.view(5, 10, 700))
    moment = gram.second_moment()
    assert np.array_equal(moment, moment.T)
    exact = x.double().numpy()
    _close(moment, exact.T @ exact / 50)


def test_rows_beyond_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osscar_opt.torch.gram._FEWEST", 8)
    monkeypatch.setattr("osscar_opt.torch.gram._MOST", 8)
    x, y = _inputs(), _inputs(width=OUTPUTS)
    gram = GramAccumulator(WIDTH, target_width=OUTPUTS)
    gram.add(x, y)
    a, b = x.double().numpy(), y.double().numpy()
    _close(gram.second_moment(), a.T @ a / 60)
    np.testing.assert_allclose(gram.cross_moment(), a.T @ b / 60, rtol=1e-10)
    assert gram.target_energy() == pytest.approx((b * b).sum() / 60, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_low_precision_is_upcast_before_the_product(dtype: torch.dtype) -> None:
    x = _inputs().to(dtype)  # squares of 1000s overflow float16
    gram = GramAccumulator(WIDTH)
    gram.add(x)
    exact = x.double().numpy()
    _close(gram.second_moment(), exact.T @ exact / 60, 1e-13)


def test_masked_rows_do_not_count_not_even_when_nan() -> None:
    x = _inputs().view(6, 10, WIDTH).clone()
    mask = torch.ones(6, 10, dtype=torch.long)
    mask[2, 4:] = 0
    x[2, 4:] = torch.nan
    gram = GramAccumulator(WIDTH)
    gram.add(x, mask=mask)
    exact = x[mask.bool()].double().numpy()
    assert gram.rows == 54
    _close(gram.second_moment(), exact.T @ exact / 54)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rows_name_the_layer_and_add_nothing(bad: float) -> None:
    x = _inputs()
    x[3, 2] = bad
    gram = GramAccumulator(WIDTH, name="blocks.4.fc2")
    with pytest.raises(LayerError, match=r"blocks\.4\.fc2 got NaN or infinite inputs in 1 of 60 rows"):
        gram.add(x)
    assert gram.rows == 0


def test_misuse_is_one_sentence() -> None:
    gram = GramAccumulator(WIDTH, name="fc")
    with pytest.raises(LayerError, match="fc expects inputs of width 7"):
        gram.add(torch.zeros(4, 6))
    with pytest.raises(LayerError, match="floating-point"):
        gram.add(torch.zeros(4, 7, dtype=torch.long))
    with pytest.raises(LayerError, match="mask of shape"):
        gram.add(torch.zeros(4, 7), mask=torch.ones(5))
    with pytest.raises(LayerError, match="no targets"):
        gram.add(torch.zeros(4, 7), torch.zeros(4, 3))
    with pytest.raises(LayerError, match="no calibration rows"):
        gram.second_moment()
    paired = GramAccumulator(WIDTH, target_width=OUTPUTS, name="fc")
    with pytest.raises(LayerError, match="4 rows of inputs but 5 rows of targets"):
        paired.add(torch.zeros(4, 7), torch.zeros(5, 3))


def _two_pass(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Central moments in extended precision, the means first."""
    a, b = x.astype(np.longdouble), y.astype(np.longdouble)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    n = len(x)
    return (
        (a.T @ a / n).astype(float),
        (a.T @ b / n).astype(float),
        float((b * b).sum() / n),
    )


@st.composite
def _cuts(draw: st.DrawFn, rows: int) -> list[int]:
    marks = sorted(draw(st.lists(st.integers(0, rows), max_size=12)))
    return list(np.diff([0, *marks, rows]))


@given(cut=_cuts(60), room=st.integers(1, 80), central=st.booleans(), blocks=st.sampled_from([1, 2]))
def test_the_same_moments_however_the_batches_are_cut(
    cut: list[int], room: int, central: bool, blocks: int
) -> None:
    x, y = _inputs(width=8) + 20.0, _inputs(width=6)
    whole = GramAccumulator(8, target_width=6, central=central, blocks=blocks)
    whole.add(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osscar_opt.torch.gram._FEWEST", room)
        patch.setattr("osscar_opt.torch.gram._MOST", room)
        parts = GramAccumulator(8, target_width=6, central=central, blocks=blocks)
    for a, b in zip(x.split(cut), y.split(cut), strict=True):
        parts.add(a, b)
        if len(a) % 3 == 0 and parts.rows:
            parts.second_moment()  # reading in between changes nothing
    _close(parts.second_moment(), whole.second_moment() + 1e-300)
    np.testing.assert_allclose(parts.cross_moment(), whole.cross_moment(), rtol=1e-10, atol=1e-10)
    assert parts.target_energy() == pytest.approx(whole.target_energy(), rel=1e-12)


@given(
    cut=_cuts(60),
    room=st.integers(1, 80),
    level=st.sampled_from([0.0, 1.0, 1e4, 1e7]),
    drift=st.sampled_from([0.0, 1e3]),
)
def test_central_moments_keep_their_digits_beside_large_means(
    cut: list[int], room: int, level: float, drift: float
) -> None:
    x, y = _inputs(width=5).double() + level, _inputs(width=3).double() - 3 * level
    x += drift * torch.arange(60).double()[:, None] / 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osscar_opt.torch.gram._FEWEST", room)
        patch.setattr("osscar_opt.torch.gram._MOST", room)
        gram = GramAccumulator(5, target_width=3, central=True)
        for a, b in zip(x.split(cut), y.split(cut), strict=True):
            gram.add(a, b)
        second, cross, energy = _two_pass(x.numpy(), y.numpy())
        tolerance = 1e-12 + 1e-15 * level  # the means themselves are rounded
        _close(gram.second_moment(), second, tolerance)
        scale = np.sqrt(np.outer(np.diag(second), np.full(3, energy)))
        assert np.max(np.abs(gram.cross_moment() - cross) / scale) < tolerance
        assert gram.target_energy() == pytest.approx(energy, rel=tolerance)
        np.testing.assert_allclose(gram.input_mean(), x.numpy().mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(gram.target_mean(), y.numpy().mean(axis=0), rtol=1e-13)


def test_blocks_on_the_diagonal_are_those_of_the_whole() -> None:
    x, y = _inputs(width=12), _inputs(width=6)
    whole = GramAccumulator(12, target_width=6, central=True)
    blocks = GramAccumulator(12, target_width=6, central=True, blocks=3)
    for gram in (whole, blocks):
        gram.add(x, y)
    inside = np.kron(np.eye(3), np.ones((4, 4)))
    np.testing.assert_allclose(blocks.second_moment(), whole.second_moment() * inside, rtol=1e-12, atol=1e-12)
    inside = np.kron(np.eye(3), np.ones((4, 2)))
    np.testing.assert_allclose(blocks.cross_moment(), whole.cross_moment() * inside, rtol=1e-12, atol=1e-12)
    assert blocks.target_energy() == pytest.approx(whole.target_energy())


def test_what_was_given_is_left_alone() -> None:
    x = _inputs().double()
    before = x.clone()
    gram = GramAccumulator(WIDTH, central=True)
    gram.add(x)
    gram.second_moment()
    assert torch.equal(x, before)


def test_sums_that_overflow_are_not_taken_for_infinite_rows() -> None:
    x = torch.full((40, WIDTH), 6e4, dtype=torch.float16)
    gram = GramAccumulator(WIDTH)
    gram.add(x)
    assert gram.second_moment()[0, 1] == pytest.approx(float(x[0, 0]) ** 2)


def test_sums_begun_in_inference_mode_go_on_outside_it() -> None:
    x = _inputs()
    gram = GramAccumulator(WIDTH, central=True)
    with torch.inference_mode():
        gram.add(x[:20].clone())
    gram.add(x[20:])
    _close(gram.second_moment(), np.cov(x.double().numpy().T, bias=True))


def test_means_have_to_be_asked_for() -> None:
    gram = GramAccumulator(WIDTH, name="fc")
    gram.add(_inputs())
    with pytest.raises(LayerError, match="fc collects no means"):
        gram.input_mean()
