"""A budget over many layers: how many units each keeps, so that the model loses least.

`Curve` is what a layer loses and uses at each width, `Budget` what the model may use, `allocate` chooses one width for
each layer: exactly, by an integer program, or by a rule of another paper.

Examples
--------
>>> import numpy as np
>>> widths = np.arange(1, 5)
>>> curves = [
...     Curve("early", 4, widths, [9.0, 4.0, 1.0, 0.0], {"parameters": 100}),
...     Curve("late", 4, widths, [3.0, 2.0, 1.0, 0.0], {"parameters": 100}),
... ]
>>> allocate(curves, {"parameters": 0.75}).widths, allocate(curves, {"parameters": 0.75}, rule="uniform").widths
({'early': 4, 'late': 2}, {'early': 3, 'late': 3})
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from osscar_opt.allocation import rules
from osscar_opt.allocation.budgets import Budget
from osscar_opt.allocation.curves import Curve, allowed_widths
from osscar_opt.allocation.dynamic import dynamic_program
from osscar_opt.allocation.interpolate import interpolated, with_measured
from osscar_opt.allocation.milp import best_widths, smallest_feasible
from osscar_opt.allocation.pareto import Front, pareto_front
from osscar_opt.allocation.result import Allocation
from osscar_opt.allocation.ties import tie
from osscar_opt.errors import OptionError, UnknownMethodError

__all__ = [
    "RULES",
    "Allocation",
    "Budget",
    "Curve",
    "Front",
    "allocate",
    "allowed_widths",
    "best_widths",
    "dynamic_program",
    "interpolated",
    "pareto_front",
    "smallest_feasible",
    "tie",
    "with_measured",
]

RULES: Mapping[str, Callable[..., Allocation]] = {
    "milp": best_widths,
    "dynamic": dynamic_program,
    "uniform": rules.uniform,
    "global_threshold": rules.global_threshold,
    "flap": rules.flap,
    "slimgpt": rules.slimgpt,
    "cfsp": rules.cfsp,
    "erk": rules.erk,
    "sap": rules.sap,
    "als": rules.als,
    "nvit": rules.nvit,
    "spdy": rules.spdy,
}
"""Ways to allocate, by name; each takes curves, budgets and options of its own."""


def allocate(
    curves: Sequence[Curve], budgets: Budget | Mapping[str, float], rule: str = "milp", **options: Any
) -> Allocation:
    """Choose one width for each layer under the budgets.

    Parameters
    ----------
    curves : sequence of Curve
        One for each layer, or each set of tied layers (`tie`).
    budgets : Budget, or mapping of str to number
        By resource: a float up to 1.0 is a share of the dense model's use, other numbers are in the resource's unit.
    rule : str, optional
        "milp" is exact; "dynamic" is exact too, for one budget of whole numbers; the others are rules of other papers
        (`osscar_opt.allocation.rules`).
    **options
        Of the rule.

    Returns
    -------
    Allocation

    Raises
    ------
    InfeasibleError
        If the budgets cannot be met, with the smallest that can.
    InputError
        If curves, budgets or a rule's data do not fit each other.
    OptionError
        If the rule has no option of that name, or needs one that is not given.
    UnknownMethodError
        If there is no rule of that name.

    Examples
    --------
    >>> curve = Curve("a", 2, [1, 2], [4.0, 0.0], {"units": 1})
    >>> allocate([curve], {"units": 1}).widths
    {'a': 1}
    >>> allocate([curve], {"units": 1}, rule="unifrom")
    Traceback (most recent call last):
    osscar_opt.errors.UnknownMethodError: there is no rule 'unifrom'; did you mean 'uniform'? Rules: milp, dynamic,
    uniform, global_threshold, flap, slimgpt, cfsp, erk, sap, als, nvit, spdy.
    """
    if rule not in RULES:
        close = difflib.get_close_matches(rule, RULES, n=1)
        hint = f"; did you mean {close[0]!r}? Rules: " if close else "; rules: "
        raise UnknownMethodError(f"there is no rule {rule!r}{hint}{', '.join(RULES)}.")
    known = list(inspect.signature(RULES[rule]).parameters.values())[2:]
    names = ", ".join(parameter.name for parameter in known) or "none"
    for name in options:
        if name not in [parameter.name for parameter in known]:
            raise OptionError(f"rule {rule!r} has no option {name!r}; its options: {names}.")
    for parameter in known:
        if parameter.default is inspect.Parameter.empty and parameter.name not in options:
            raise OptionError(f"rule {rule!r} needs the option {parameter.name!r}; its options: {names}.")
    return RULES[rule](curves, budgets, **options)
