r"""CHIP: how much the nuclear norm of the feature maps falls without a unit's own.

With A (units x positions) the feature maps of one sample, one unit a row,

.. math:: I_u = \mathbb E \bigl[ \lVert A \rVert_* - \lVert A_{-u} \rVert_* \bigr],

A_{-u} being A with row u set to zero. Y. Sui, M. Yin, Y. Xie, H. Phan, S. Zonouz, B. Yuan, "CHIP: CHannel
Independence-based Pruning for Compact Neural Networks", NeurIPS 2021 (arXiv 2110.13981), equations 2 and 4. The maps
are what the layer that reads the units is called with, padding left out; where several read different ones, the mean.
The neurons of a text model have one as well: their values over the tokens of a sequence; a head's rows go together.

The published code computes n + 1 singular value decompositions of a sample. Here one eigendecomposition does for all
units of one row: with M = A'A = Q diag(d) Q', a the row and v = Q'a,

.. math::

    \operatorname{tr} M^{1/2} - \operatorname{tr} (M - a a')^{1/2}
      = \frac1\pi \int_0^\infty \frac{\sqrt t \; \sum_i v_i^2 / (d_i + t)^2}{1 - \sum_i v_i^2 / (d_i + t)} \, dt ,

by the trapezoidal rule in log t, which converges exponentially.

Needs: feature maps.  Updates nothing.  Left out: training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.scores._sites import Material, by_sample, prepare
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["chip_scores", "nuclear_norm_drops"]

_STEP = 0.5  # of log t: the error is exp(-2 pi^2 / step)
_BELOW, _ABOVE = (
    80.0,
    48.0,
)  # how far from log of the largest eigenvalue: the integrand falls as exp(-|s| / 2)


def chip_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    samples: int = 16,
) -> PerProblem:
    """Mean fall of the nuclear norm of a sample's feature maps without each unit's.

    Parameters
    ----------
    model, batches, coupling, sites
        As for `osscar_opt.torch.scores.taylor_scores`.
    samples : int, optional
        How many samples to look at, the first ones of the batches. The paper takes five batches of 128.

    Returns
    -------
    PerProblem

    Raises
    ------
    InputError
        When `samples` is not at least 1.
    LayerError
        When a name fits no site, or a layer's input does not tell its samples apart.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))
    >>> scores = chip_scores(model, torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0)))
    >>> scores["2"].shape
    (4,)
    """
    if samples < 1:
        raise InputError(f"samples = {samples} must be at least 1.")
    material = prepare(model, batches, coupling, sites)
    total = {name: np.zeros(site.n) for name, site in material.sites.items()}
    seen = 0
    for number in range(len(material.batches)):
        if seen >= samples:
            break
        count = min(material.samples(number), samples - seen)
        _add(material, number, count, total)
        seen += count
    return PerProblem({name: value / max(seen, 1) for name, value in total.items()}, rule="chip")


def _add(material: Material, number: int, count: int, total: dict[str, FloatArray]) -> None:
    """Add the falls of the first samples of a batch."""
    layers = material.consumers()
    site_of = material.site_of
    samples = material.samples(number)
    mask = material.batches.masks[number]
    inputs: dict[str, dict[int, torch.Tensor]] = {
        name: {} for name in material.sites
    }  # held, so that ids stay theirs
    falls = {name: np.zeros(site.n) for name, site in material.sites.items()}

    def look(consumer: str, call: LayerCall) -> None:
        name = site_of[consumer]
        if id(call.inputs) in inputs[name]:  # several layers read the same maps
            return
        inputs[name][id(call.inputs)] = call.inputs
        maps = (
            by_sample(call.inputs.detach(), layers[consumer], samples, consumer)[:count]
            .double()
            .cpu()
            .numpy()
        )
        site = material.sites[name]
        units = np.asarray(site.consumers[consumer])
        for place, sample in enumerate(maps):
            real = (
                None if mask is None or mask.shape[1] != sample.shape[1] else mask[place].bool().cpu().numpy()
            )
            seen = sample if real is None else sample[:, real]
            rows, of_row = (seen, units) if site.kind == "heads" else _one_row_each(seen, units)
            falls[name] += nuclear_norm_drops(rows, of_row, site.n)

    args, kwargs = material.batches.call(number)
    with as_found(material.model), torch.no_grad(), watch(layers, look):
        material.model(*args, **kwargs)
    for name, seen in inputs.items():
        total[name] += falls[name] / max(len(seen), 1)


def _one_row_each(maps: FloatArray, units: IntArray) -> tuple[FloatArray, IntArray]:
    """Maps of channels that were flattened into several inputs each, a row a channel again."""
    counts = np.bincount(units[units >= 0])
    if (counts != counts[0]).any() or counts[0] == 1:
        return maps, units
    order = np.argsort(units, kind="stable")[np.count_nonzero(units < 0) :]
    return maps[order].reshape(len(counts), -1), np.arange(len(counts))


def nuclear_norm_drops(maps: FloatArray, units: IntArray, n: int) -> FloatArray:
    """Fall of the nuclear norm of a matrix without the rows of each unit, shape (n,).

    Parameters
    ----------
    maps : (rows, positions) array
    units : (rows,) array of int
        The unit of each row, 0..n-1; rows of unit -1 are left out from the start.
    n : int

    Examples
    --------
    >>> nuclear_norm_drops(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), np.arange(3), 3).round(9)
    array([3., 4., 0.])
    """
    own = units >= 0
    rows, of_unit = maps[own], units[own]
    if (np.bincount(of_unit, minlength=n) == 1).all():
        drops = np.empty(n)
        drops[of_unit] = _single_rows(rows)
        return drops
    whole = _nuclear(rows)
    return np.array([whole - _nuclear(rows[of_unit != unit]) for unit in range(n)])


def _nuclear(matrix: FloatArray) -> float:
    return float(scipy.linalg.svdvals(matrix).sum()) if matrix.size else 0.0


def _single_rows(maps: FloatArray) -> FloatArray:
    """The falls by the integral; maps are scaled to a largest singular value of 1 first."""
    left, values, _ = scipy.linalg.svd(maps, full_matrices=False)
    if not values.size or values[0] == 0.0:
        return np.zeros(len(maps))
    spectrum = (values / values[0]) ** 2
    # v_i^2: row u of A is the combination left[u] * values of Q's columns
    squares = (left * values / values[0]) ** 2
    # what of a row's unit vector the left singular vectors do not span: nothing, where they are as many as the rows
    outside = np.zeros(len(maps))
    if left.shape[0] > left.shape[1]:
        outside = np.maximum(1.0 - np.einsum("ij,ij->i", left, left), 0.0)
    falls = np.zeros(len(maps))
    for point in np.arange(-_BELOW, _ABOVE, _STEP):
        t = np.exp(point)
        second = squares @ (1.0 / (spectrum + t) ** 2)
        # 1 - sum_i v_i^2 / (d_i + t) without cancellation
        rest = outside + left**2 @ (t / (spectrum + t))
        falls += np.divide(t**1.5 * second, rest, out=np.zeros_like(second), where=rest > 0.0)
    return np.asarray(falls * _STEP / np.pi * values[0])
