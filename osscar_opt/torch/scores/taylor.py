r"""Taylor: the squared first-order change of the loss when the weights that write a unit are set to zero.

.. math:: I_u = \frac{1}{B} \sum_{b=1}^{B} \Bigl( \sum_{w \in u} w \, \frac{\partial L_b}{\partial w} \Bigr)^2

over minibatches b, with w in u the weights of the unit's rows in the layers that write it. P. Molchanov, A. Mallya,
S. Tyree, I. Frosio, J. Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019 (arXiv 1906.10771), the
joint first-order estimate of a set of parameters.

Needs: gradients of the model's loss.  Updates nothing.  Left out: averaging over training, and the estimate at gates
after batch norm, which the paper prefers for networks that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.scores._gradients import Loss, mean_square
from osscar_opt.torch.scores._sites import prepare, writing_weights

__all__ = ["taylor_scores"]


def taylor_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    loss: Loss | None = None,
) -> PerProblem:
    """Squared sum of weight times gradient over the weights that write each unit, mean over the batches.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    batches
        As `osscar_opt.torch.prune_model` takes them.
    coupling : Coupling, optional
        None: `trace_coupling` finds it.
    sites : str or sequence of str, optional
        Names, patterns or kinds; None: all that one layer alone reads.
    loss : callable, optional
        ``loss(output, batch)``, a scalar; None: next tokens, labels in the batch, or the model's own likeliest class.

    Returns
    -------
    PerProblem
        For each site an array (n,); what method ``"scores"`` takes.

    Raises
    ------
    LayerError
        When a name fits no site, or the loss is not known.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = taylor_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    >>> scores["2"].shape
    (4,)
    """
    material = prepare(model, batches, coupling, sites)
    return PerProblem(mean_square(material, writing_weights, loss), rule="taylor")
