"""Solvers, the registry that finds them, and the referee that runs them.

``osscar_opt.solvers()`` lists the methods; ``osscar_opt.solvers.Solver`` and its companions are what a new one needs.

Examples
--------
>>> import osscar_opt
>>> "magnitude" in osscar_opt.solvers().names
True
"""

from __future__ import annotations

import sys
import types

from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver
from osscar_opt.solvers.paths import path
from osscar_opt.solvers.referee import solve
from osscar_opt.solvers.registry import OptionInfo, SolverInfo, SolverTable, get_solver, solvers

__all__ = [
    "Deadline",
    "OptionInfo",
    "Proposal",
    "Report",
    "Solver",
    "SolverInfo",
    "SolverTable",
    "get_solver",
    "path",
    "solve",
    "solvers",
]


class CallableModule(types.ModuleType):
    """Makes ``osscar_opt.solvers()`` work where ``osscar_opt.solvers`` is this package."""

    def __call__(self) -> SolverTable:
        return solvers()


sys.modules[__name__].__class__ = CallableModule
