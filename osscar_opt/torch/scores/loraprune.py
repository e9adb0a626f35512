r"""LoRAPrune: weight times a gradient that low-rank factors alone estimate.

Each weight W carries a low-rank change B A that is trained while W stays; from the gradients of the factors,

.. math::

    \hat g = \frac{\partial L}{\partial B} A + B \frac{\partial L}{\partial A}
           - \frac{\partial L}{\partial B} \frac{\partial L}{\partial A} , \qquad
    s^W_u = \sum_{ij \in u} \bigl| \hat g_{ij} (W + BA)_{ij} \bigr| , \quad
    S_u = \sum_{W} \frac{s^W_u}{\lVert s^W \rVert_2}

and scores move on from step to step, S <- 0.9 S + 0.1 S_b. M. Zhang, H. Chen, C. Shen, Z. Yang, L. Ou, X. Yu,
B. Zhuang, "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning", 2023 (arXiv 2305.18403);
formula, absolute values, norms and 0.9 are those of the published code (the paper squares in place of taking absolute
values, as far as its summaries say).

Here the factors are trained for the calibration batches, a step each, and thrown away: a score in one shot. B begins
at zero, so that the first estimate is the gradient projected on A's random rows.

Needs: gradients of the model's loss.  Updates nothing.  Left out: pruning a little at a time while the factors are
trained for epochs, and merging them into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.errors import InputError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.collect import as_found
from osscar_opt.torch.coupling import Coupling, Slice
from osscar_opt.torch.scores._gradients import Loss, batch_loss
from osscar_opt.torch.scores._sites import Material, parameters_of, per_unit, prepare

__all__ = ["loraprune_scores"]

_MEMORY = 0.9


@dataclass
class _Adapter:
    """Factors of one weight, seen as a matrix outputs by the rest; in float32, whatever the weight is in."""

    parameter: torch.nn.Parameter
    a: torch.Tensor  # (rank, rest)
    b: torch.Tensor  # (outputs, rank)

    @property
    def weight(self) -> torch.Tensor:
        return self.parameter.detach() + (self.b @ self.a).view_as(self.parameter).to(self.parameter.dtype)

    def products(self) -> FloatArray:
        """Absolute value of estimated gradient times weight, in the weight's shape."""
        if self.a.grad is None or self.b.grad is None:  # the batch does not use this weight
            return np.zeros(self.parameter.shape)
        with torch.no_grad():
            gradient = self.b.grad @ self.a + self.b @ self.a.grad - self.b.grad @ self.a.grad
            return np.asarray((gradient.view_as(self.parameter) * self.weight).abs().double().cpu().numpy())


def loraprune_scores(
    model: torch.nn.Module,
    batches: Any,
    *,
    coupling: Coupling | None = None,
    sites: str | Sequence[str] | None = None,
    loss: Loss | None = None,
    rank: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> PerProblem:
    """Absolute weight times low-rank gradient of each unit, over the weights that go with it, smoothed over batches.

    Parameters
    ----------
    model, batches, coupling, sites, loss
        As for `osscar_opt.torch.scores.taylor_scores`; every batch is one step of training.
    rank : int, optional
        Of the change.
    learning_rate : float, optional
        Of Adam with decoupled decay, on the factors.
    seed : int, optional
        Of A.

    Returns
    -------
    PerProblem

    Raises
    ------
    InputError
        When the rank is not at least 1.
    LayerError
        When a name fits no site, or the loss is not known.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    >>> scores = loraprune_scores(model, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), rank=2)
    >>> scores["2"].shape
    (4,)
    """
    if rank < 1:
        raise InputError(f"rank = {rank} must be at least 1.")
    material = prepare(model, batches, coupling, sites)
    parts = {
        name: [(p, value) for p, value in parameters_of(model, site.slices) if value.ndim > 1]
        for name, site in material.sites.items()
    }
    adapters = _adapters([p for found in parts.values() for p in found], rank, seed)
    factors = [factor for adapter in adapters.values() for factor in (adapter.a, adapter.b)]
    optimizer = torch.optim.AdamW(factors, lr=learning_rate)
    scores = {name: np.zeros(site.n) for name, site in material.sites.items()}
    for number in range(len(material.batches)):
        optimizer.zero_grad()
        _loss(material, number, loss, adapters).backward()  # type: ignore[no-untyped-call]
        for name, found in parts.items():
            now = sum(
                (_of_weight(p, adapters, material.sites[name].n) for p, _ in found),
                np.zeros(len(scores[name])),
            )
            scores[name] = _MEMORY * scores[name] + (1.0 - _MEMORY) * now
        optimizer.step()
    return PerProblem(scores, rule="loraprune")


def _adapters(parts: Sequence[tuple[Slice, torch.nn.Parameter]], rank: int, seed: int) -> dict[str, _Adapter]:
    """New factors for every weight, by its name; A as LoRA draws it, B zero."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, _Adapter] = {}
    for part, parameter in parts:
        if part.parameter in found:
            continue
        outputs, rest = len(parameter), parameter[0].numel()
        a = (2.0 * torch.rand(rank, rest, generator=generator) - 1.0) / np.sqrt(rest)
        b = torch.zeros(outputs, rank)
        found[part.parameter] = _Adapter(
            parameter, a.to(parameter.device).requires_grad_(), b.to(parameter.device).requires_grad_()
        )
    return found


def _loss(material: Material, number: int, loss: Loss | None, adapters: dict[str, _Adapter]) -> torch.Tensor:
    args, kwargs = material.batches.call(number)
    frozen = {name: p.detach() for name, p in material.model.named_parameters()}
    with as_found(material.model), torch.enable_grad():
        changed = frozen | {name: adapter.weight for name, adapter in adapters.items()}
        output = torch.func.functional_call(material.model, changed, args, kwargs)
        return batch_loss(material, number, loss, output)


def _of_weight(part: Slice, adapters: dict[str, _Adapter], n: int) -> FloatArray:
    products = adapters[part.parameter].products()
    along = np.moveaxis(products, part.axis, 0).reshape(products.shape[part.axis], -1).sum(axis=1)
    units: IntArray = np.asarray(part.units)
    sums = per_unit(along, units, n)
    return np.asarray(sums / (np.linalg.norm(sums) + 1e-8))
