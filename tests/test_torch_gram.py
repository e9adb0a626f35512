"""Streamed second moments against numpy, whatever the batches, dtypes and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
    monkeypatch.setattr("osscar_opt.torch.gram._CHUNK_ROWS", 8)
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
