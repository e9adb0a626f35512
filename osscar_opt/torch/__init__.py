"""From torch layers to problems and back.

`problem_from_layer` (the face of `osscar_opt.Problem.from_torch_layer`) streams the inputs of a layer into a
Gram matrix and poses its pruning; `apply_solution` (the face of `osscar_opt.Solution.apply_to`) writes
refitted weights back. Nothing here is imported, torch included, before a name is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osscar_opt.torch.apply import apply_solution as apply_solution
    from osscar_opt.torch.evaluation import perplexity as perplexity
    from osscar_opt.torch.extract import problem_from_layer as problem_from_layer
    from osscar_opt.torch.extract_file import extract_to_file as extract_to_file
    from osscar_opt.torch.gram import GramAccumulator as GramAccumulator
    from osscar_opt.torch.layers import LayerView as LayerView
    from osscar_opt.torch.layers import view_of as view_of

_HOMES = {
    "GramAccumulator": "gram",
    "LayerView": "layers",
    "apply_solution": "apply",
    "extract_to_file": "extract_file",
    "perplexity": "evaluation",
    "problem_from_layer": "extract",
    "view_of": "layers",
}

__all__ = [
    "GramAccumulator",
    "LayerView",
    "apply_solution",
    "extract_to_file",
    "perplexity",
    "problem_from_layer",
    "view_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
