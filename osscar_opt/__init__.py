"""Structured pruning of network layers as cardinality-constrained group quadratic programs.

    minimise over W, S:  1/2 tr(W' H W) - tr(G' W) + c      W zero outside the groups in S,  |S| <= keep

`Problem` poses it (from arrays, data, a torch layer or a file), `Problem.solve` hands it to any registered method,
and `Solution` carries back numbers that were recomputed from the problem itself.  `solvers()` lists the methods.
Nothing heavy is imported before it is used.

Examples
--------
>>> import numpy as np
>>> from osscar_opt import Problem
>>> gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
>>> problem = Problem(gram, dense_weights=np.array([[1.0], [1.0], [0.5]]), keep=2)
>>> solution = problem.solve("magnitude_refit")
>>> solution.kept
array([0, 1])
>>> solution.objective
0.125
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osscar_opt import errors as errors
    from osscar_opt.formulations.groups import Groups
    from osscar_opt.formulations.path import Path
    from osscar_opt.formulations.problem import Problem
    from osscar_opt.formulations.solution import Solution
    from osscar_opt.instances import load
    from osscar_opt.linalg.threads import threads
    from osscar_opt.solvers import CallableModule
    from osscar_opt.solvers.referee import solve
    from osscar_opt.solvers.side_by_side import solve_all

    solvers: CallableModule  # the package osscar_opt.solvers; type checkers do not know that a module can be called

__version__ = "0.1.0"

__all__ = [
    "Groups",
    "Path",
    "Problem",
    "Solution",
    "__version__",
    "load",
    "solve",
    "solve_all",
    "solvers",
    "threads",
]

_HOME_OF = {
    "Groups": "osscar_opt.formulations.groups",
    "Path": "osscar_opt.formulations.path",
    "Problem": "osscar_opt.formulations.problem",
    "Solution": "osscar_opt.formulations.solution",
    "load": "osscar_opt.instances",
    "solve": "osscar_opt.solvers.referee",
    "solve_all": "osscar_opt.solvers.side_by_side",
    "threads": "osscar_opt.linalg.threads",
}
_SUBPACKAGES = frozenset(
    {"certificates", "errors", "formulations", "instances", "linalg", "solvers", "testing", "torch"}
)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    importlib.import_module("osscar_opt.linalg.threads").read_environment()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_SUBPACKAGES})
