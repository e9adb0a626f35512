r"""Head importance: how much the loss changes with a gate on a head, on average over samples.

With a gate xi_h = 1 on head h's output Att_h, and L(x) the loss of sample x,

.. math::

    I_h = \mathbb E_x \Bigl| \frac{\partial L(x)}{\partial \xi_h} \Bigr|
        = \mathbb E_x \Bigl| \mathrm{Att}_h(x)^{\!\top} \frac{\partial L(x)}{\partial \mathrm{Att}_h(x)} \Bigr| ,

divided by the 2-norm over the layer's heads. P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than
One?", NeurIPS 2019 (arXiv 1905.10650), equation 2; the paper removes the heads of least importance in steps.
A neuron or a channel has a gate as well: any site is taken.

Needs: gradients of the model's loss.  Updates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.coupling import Coupling
from osscar_opt.torch.scores._gradients import Loss, batch_loss, differentiable
from osscar_opt.torch.scores._sites import Material, by_sample, per_unit, prepare
from osscar_opt.torch.watch import LayerCall, watch

__all__ = ["head_importance_scores"]


def head_importance_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    loss: Loss | None = None,
) -> PerProblem:
    """Mean over samples of the absolute gradient at each unit's gate, over the site's 2-norm.

    Parameters
    ----------
    model, batches, coupling, sites, loss
        As for `osscar_opt.torch.scores.taylor_scores`; the loss must be a mean over samples.

    Returns
    -------
    PerProblem

    Raises
    ------
    LayerError
        When a name fits no site, the loss is not known, or a layer's input does not tell its samples apart.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = head_importance_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    >>> round(float(np.linalg.norm(scores["2"])), 6)
    1.0
    """
    material = prepare(model, batches, coupling, sites)
    total = {name: np.zeros(site.n) for name, site in material.sites.items()}
    with differentiable(model):
        for number in range(len(material.batches)):
            for name, values in _gates(material, number, loss).items():
                # the gradient of the batch's mean is 1 / samples of that of one sample's loss
                total[name] += np.abs(values).sum(axis=0) * len(values)
    return PerProblem(
        {name: value / (np.linalg.norm(value) or 1.0) for name, value in total.items()},
        rule="head_importance",
    )


def _gates(material: Material, number: int, loss: Loss | None) -> dict[str, FloatArray]:
    """Gradient of the batch's loss with respect to every unit's gate, (samples, n) by site."""
    calls: list[tuple[str, torch.Tensor]] = []
    layers = material.consumers()
    args, kwargs = material.batches.call(number)

    def seen(name: str, call: LayerCall) -> torch.Tensor:
        gated = call.inputs.view_as(call.inputs)  # whose gradient is that through this layer alone
        calls.append((name, gated))
        return gated

    with watch(layers, seen):
        output = material.model(*args, **kwargs)
    value = batch_loss(material, number, loss, output)
    inputs_seen = [inputs for _, inputs in calls]
    gradients = torch.autograd.grad(value, inputs_seen, allow_unused=True) if calls else ()
    samples = material.samples(number)
    found = {name: np.zeros((samples, site.n)) for name, site in material.sites.items()}
    site_of = material.site_of
    for (consumer, inputs), gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        product = by_sample((inputs.detach() * gradient).double(), layers[consumer], samples, consumer)
        sums = product.sum(-1).cpu().numpy()  # (samples, channels)
        name = site_of[consumer]
        units = np.asarray(material.sites[name].consumers[consumer])
        found[name] += np.stack([per_unit(row, units, material.sites[name].n) for row in sums])
    return found
