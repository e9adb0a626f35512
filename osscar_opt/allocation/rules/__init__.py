"""The allocation rules of other papers, on the same curves and under the same budgets as the exact program.

Each rule says widths by a formula with one number left open, a share, a threshold or a strength, and that number is
taken as far as the budgets allow: widths are among those allowed, and no budget is passed.  The result's objective is
the sum of the curves' losses, as that of the exact program, so that rules can be compared with what they leave on the
table; they prove nothing, and their bound is empty.
"""

from __future__ import annotations

from osscar_opt.allocation.rules.activations import als
from osscar_opt.allocation.rules.coefficients import spdy
from osscar_opt.allocation.rules.ramps import cfsp, slimgpt
from osscar_opt.allocation.rules.ranking import nvit
from osscar_opt.allocation.rules.shares import erk, uniform
from osscar_opt.allocation.rules.thresholds import flap, global_threshold
from osscar_opt.allocation.rules.vectors import pq_index, sap

__all__ = [
    "als",
    "cfsp",
    "erk",
    "flap",
    "global_threshold",
    "nvit",
    "pq_index",
    "sap",
    "slimgpt",
    "spdy",
    "uniform",
]
