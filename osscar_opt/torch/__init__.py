"""From torch models to problems and back.

`prune_model` prunes a whole model; `trace_coupling` finds what goes together in it, `shrink` takes what was removed out
of it, `save_pruned` and `load_pruned` keep it. For a single layer, `problem_from_layer` (the face of
`osscar_opt.Problem.from_torch_layer`) streams its inputs into a Gram matrix and poses its pruning; `apply_solution`
(the face of `osscar_opt.Solution.apply_to`) writes refitted weights back. Nothing here is imported, torch included,
before a name is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osscar_opt.torch.apply import apply_solution as apply_solution
    from osscar_opt.torch.apply import write_layer as write_layer
    from osscar_opt.torch.checkpoint import load_pruned as load_pruned
    from osscar_opt.torch.checkpoint import save_pruned as save_pruned
    from osscar_opt.torch.coupling import Coupling as Coupling
    from osscar_opt.torch.coupling import Site as Site
    from osscar_opt.torch.coupling import trace_coupling as trace_coupling
    from osscar_opt.torch.evaluation import perplexity as perplexity
    from osscar_opt.torch.example import example_batch as example_batch
    from osscar_opt.torch.extract import problem_from_layer as problem_from_layer
    from osscar_opt.torch.extract_file import extract_to_file as extract_to_file
    from osscar_opt.torch.gram import GramAccumulator as GramAccumulator
    from osscar_opt.torch.layers import LayerView as LayerView
    from osscar_opt.torch.layers import view_of as view_of
    from osscar_opt.torch.moments import LayerMoments as LayerMoments
    from osscar_opt.torch.prune import collect_problems as collect_problems
    from osscar_opt.torch.prune import prune_model as prune_model
    from osscar_opt.torch.report import PruneReport as PruneReport
    from osscar_opt.torch.shrinking import shrink as shrink
    from osscar_opt.torch.sites import site_problem as site_problem
    from osscar_opt.torch.sites import site_solution as site_solution

_HOMES = {
    "Coupling": "coupling",
    "GramAccumulator": "gram",
    "LayerMoments": "moments",
    "LayerView": "layers",
    "PruneReport": "report",
    "Site": "coupling",
    "apply_solution": "apply",
    "collect_problems": "prune",
    "example_batch": "example",
    "extract_to_file": "extract_file",
    "load_pruned": "checkpoint",
    "perplexity": "evaluation",
    "problem_from_layer": "extract",
    "prune_model": "prune",
    "save_pruned": "checkpoint",
    "shrink": "shrinking",
    "site_problem": "sites",
    "site_solution": "sites",
    "trace_coupling": "coupling",
    "view_of": "layers",
    "write_layer": "apply",
}

__all__ = [
    "Coupling",
    "GramAccumulator",
    "LayerMoments",
    "LayerView",
    "PruneReport",
    "Site",
    "apply_solution",
    "collect_problems",
    "example_batch",
    "extract_to_file",
    "load_pruned",
    "perplexity",
    "problem_from_layer",
    "prune_model",
    "save_pruned",
    "shrink",
    "site_problem",
    "site_solution",
    "trace_coupling",
    "view_of",
    "write_layer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
