"""Scores of published rules that need a model: its gradients, its feature maps, the weights of other layers.

Each function takes a model and batches and returns a `PerProblem`: for every site an array that the methods
``"scores"`` and ``"udfc"`` take.

>>> import torch
>>> from osscar_opt.torch import prune_model
>>> from osscar_opt.torch.scores import taylor_scores
>>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> batches = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
>>> scores = taylor_scores(model, batches)
>>> report = prune_model(model, batches, sparsity=0.5, method="scores", options={"scores": scores, "refit": True})
>>> model[2].in_features
4

``prune_model(model, batches, sparsity=0.5, method="taylor")`` does the same in one call, with the calibration batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.torch.scores.beta_rank import beta_rank_scores
from osscar_opt.torch.scores.chip import chip_scores
from osscar_opt.torch.scores.fpgm import fpgm_scores
from osscar_opt.torch.scores.head_importance import head_importance_scores
from osscar_opt.torch.scores.loraprune import loraprune_scores
from osscar_opt.torch.scores.lrp import lrp_scores
from osscar_opt.torch.scores.nvit import nvit_scores
from osscar_opt.torch.scores.taylor import taylor_scores
from osscar_opt.torch.scores.udfc import filter_gram

__all__ = [
    "MODEL_RULES",
    "ModelRule",
    "beta_rank_scores",
    "chip_scores",
    "filter_gram",
    "fpgm_scores",
    "head_importance_scores",
    "loraprune_scores",
    "lrp_scores",
    "nvit_scores",
    "taylor_scores",
]


@dataclass(frozen=True)
class ModelRule:
    """A rule that needs a model: what makes its arrays, and the method and option that take them.

    Examples
    --------
    >>> MODEL_RULES["taylor"].method, MODEL_RULES["taylor"].option
    ('scores', 'scores')
    """

    make: Callable[..., PerProblem]
    method: str = "scores"
    option: str = "scores"


MODEL_RULES: dict[str, ModelRule] = {
    "udfc": ModelRule(filter_gram, "udfc", "filters"),
    "fpgm": ModelRule(fpgm_scores),
    "chip": ModelRule(chip_scores),
    "beta_rank": ModelRule(beta_rank_scores),
    "head_importance": ModelRule(head_importance_scores),
    "taylor": ModelRule(taylor_scores),
    "nvit": ModelRule(nvit_scores),
    "loraprune": ModelRule(loraprune_scores),
    "lrp": ModelRule(lrp_scores),
}
"""By the name that `osscar_opt.torch.prune_model` and ``osscar-opt compare`` take."""
