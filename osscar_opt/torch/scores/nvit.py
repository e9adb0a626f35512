r"""NViT: the same as Taylor over everything that goes with a unit, in all layers.

.. math:: I_u = \frac{1}{B} \sum_{b=1}^{B} \Bigl( \sum_{w \in u} w \, \frac{\partial L_b}{\partial w} \Bigr)^2

with w in u *all* parameters that are removed with the unit: the rows that write it, its biases and norms, and the
columns that read it. H. Yang, H. Yin, M. Shen, P. Molchanov, H. Li, J. Kautz, "Global Vision Transformer Pruning with
Hessian-Aware Saliency", CVPR 2023 (arXiv 2110.04869). The formula is the one that the published code evaluates (its
criterion sums weight times gradient over the structure and squares once per batch); how the paper derives it from the
Hessian was not read.

Needs: gradients of the model's loss.  Updates nothing.  Left out: the latency that is subtracted in the global ranking
(a rule of allocation), the alignment of heads, and training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling, Site, Slice
from osscar_opt.torch.scores._gradients import Loss, mean_square
from osscar_opt.torch.scores._sites import parameters_of, prepare

__all__ = ["nvit_scores"]


def nvit_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    loss: Loss | None = None,
) -> PerProblem:
    """Squared sum of weight times gradient over all parameters that go with each unit, mean over the batches.

    Parameters
    ----------
    model, batches, coupling, sites, loss
        As for `osscar_opt.torch.scores.taylor_scores`.

    Returns
    -------
    PerProblem

    Raises
    ------
    LayerError
        When a name fits no site, or the loss is not known.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = nvit_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    >>> scores["2"].shape
    (4,)
    """
    material = prepare(model, batches, coupling, sites)
    return PerProblem(mean_square(material, _all_parameters, loss), rule="nvit")


def _all_parameters(model: torch.nn.Module, site: Site) -> Iterator[tuple[Slice, torch.nn.Parameter]]:
    return parameters_of(model, site.slices)
