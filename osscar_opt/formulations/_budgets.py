"""Checks on the budgets of a problem: each by itself, then whether any support can meet them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray, read_only
from osscar_opt.errors import InfeasibleError, InputError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.limits import Limits

__all__ = ["Budgets", "checked_budgets"]


@dataclass(frozen=True, eq=False)
class Budgets:
    """Every budget of a problem with n groups, checked; its fields become attributes of `Problem`."""

    keep: int | None
    costs: FloatArray | None
    budget: float | None
    always_keep: BoolArray
    always_remove: BoolArray
    blocks: IntArray | None
    block_keep: IntArray | None

    def limits(self) -> Limits:
        """The packing constraints among them."""
        return Limits.of(
            len(self.always_keep),
            keep=self.keep,
            costs=self.costs,
            budget=self.budget,
            blocks=self.blocks,
            block_keep=self.block_keep,
        )


def checked_budgets(
    n: int,
    *,
    keep: Any = None,
    costs: Any = None,
    budget: Any = None,
    always_keep: Any = None,
    always_remove: Any = None,
    blocks: Any = None,
    block_keep: Any = None,
) -> Budgets:
    """Check budgets over n groups.

    Raises
    ------
    InputError
        If one of them is malformed by itself.
    InfeasibleError
        If always_keep alone passes a limit, or shares a group with always_remove.
    """
    block_of_group, block_limits = _checked_blocks(blocks, block_keep, n)
    budgets = Budgets(
        keep=None if keep is None else _validate.count(keep, "keep", n),
        costs=None if costs is None else read_only(_validate.nonnegative_vector(costs, "costs", n)),
        budget=_checked_budget(budget, costs),
        always_keep=read_only(_validate.group_mask(always_keep, "always_keep", n)),
        always_remove=read_only(_validate.group_mask(always_remove, "always_remove", n)),
        blocks=block_of_group,
        block_keep=block_limits,
    )
    _require_feasible(budgets)
    return budgets


def _require_feasible(budgets: Budgets) -> None:
    both = np.flatnonzero(budgets.always_keep & budgets.always_remove)
    if both.size:
        raise InfeasibleError(
            f"group {both[0]} is in always_keep and in always_remove; take it out of one of them."
        )
    limits = budgets.limits()
    excess = limits.excess(budgets.always_keep)
    if np.any(excess):
        worst = int(np.argmax(excess))
        name, smallest = limits.names[worst], limits.limit[worst] + excess[worst]
        raise InfeasibleError(
            f"always_keep alone {limits.violation(budgets.always_keep)}; "
            f"the smallest feasible {name} is {smallest:.12g}."
        )


def _checked_budget(budget: Any, costs: Any) -> float | None:
    if budget is None:
        return None
    if costs is None:
        raise InputError("budget was given without costs: pass costs, one number per group, or use keep.")
    number = _validate.scalar(budget, "budget")
    if number < 0.0:
        raise InputError(f"budget = {number:.6g} must not be negative.")
    return number


def _checked_blocks(blocks: Any, block_keep: Any, n: int) -> tuple[IntArray | None, IntArray | None]:
    if blocks is None:
        if block_keep is not None:
            raise InputError("block_keep was given without blocks: pass blocks, one label per group.")
        return None, None
    labels = np.asarray(blocks)
    if labels.shape != (n,) or (n and not np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"blocks must hold one integer label for each of the {n} groups.")
    if n and labels.min() < 0:
        raise InputError(f"blocks must be labelled from 0, but one label is {labels.min()}.")
    frozen_labels = read_only(labels.astype(np.int64))
    if block_keep is None:
        return frozen_labels, None
    given = np.asarray(block_keep)
    needed = int(labels.max()) + 1 if n else 0
    if given.ndim != 1 or len(given) < needed:
        raise InputError(f"block_keep must hold one number for each of the {needed} blocks.")
    counts = [_validate.count(value, f"block_keep[{b}]", n) for b, value in enumerate(given)]
    return frozen_labels, read_only(np.array(counts, dtype=np.int64))
