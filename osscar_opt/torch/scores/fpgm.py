r"""FPGM: the distance of a unit's filter to the geometric median, by the sum of its distances to all others.

With v_u all weights that write unit u, as one vector,

.. math:: I_u = \sum_{v=1}^{n} \lVert v_u - v_v \rVert_2 .

The filters of least sum are nearest to the geometric median, hence the most replaceable. Y. He, P. Liu, Z. Wang, Z. Hu,
Y. Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019 (arXiv
1811.00250), equation 8.

Needs: the weights of the layers that write the units; no data.  Updates nothing.  Left out: removal in steps between
epochs of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling, Site
from osscar_opt.torch.scores._sites import filters, prepare, writing_weights

__all__ = ["fpgm_scores"]


def fpgm_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
) -> PerProblem:
    """Sum of the distances of each unit's filter to those of the others.

    Parameters
    ----------
    model, batches, coupling, sites
        As for `osscar_opt.torch.scores.taylor_scores`; the batches are only looked at to find the sites.

    Returns
    -------
    PerProblem

    Raises
    ------
    LayerError
        When a name fits no site, or a site's units have no filters of equal size.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[0.0], [1.0], [5.0]]))
    >>> fpgm_scores(model, torch.ones(2, 1))["2"]
    array([6., 5., 9.])
    """
    material = prepare(model, batches, coupling, sites)
    return PerProblem(
        {name: _distances(model, site) for name, site in material.sites.items()},
        rule="fpgm",
    )


def _distances(model: torch.nn.Module, site: Site) -> FloatArray:
    parts = [filters(site, part, parameter) for part, parameter in writing_weights(model, site)]
    whole = torch.cat(parts, dim=1)
    exact = "donot_use_mm_for_euclid_dist"  # by products, distances of near duplicates would be rounding
    distances: Any = torch.cdist(whole, whole, compute_mode=exact).sum(1).numpy()
    return distances  # type: ignore[no-any-return]
