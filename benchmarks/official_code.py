"""The official OSSCAR code (github.com/mazumder-lab/OSSCAR), called so that it shows its best.

- It gets float64 and contiguous groups (rows are permuted where they are not), and is timed without the conversions.
- It takes a group for removed when the signed sum of its weights is below 1e-12, and keeps in its last refit only rows
  whose weight for output 0 is not zero. Here the outputs are rotated first (a random orthogonal matrix), which changes
  no objective and none of its scores, and makes zeros by chance impossible. The support is read off all columns.
- Its local search exchanges a fixed number of groups, and fails where fewer are kept or removed: the number is lowered
  to what fits. It never shrinks by default, though the paper's does and the code has an option: both are run.
- Neurons get the settings of its script for FFNs (stages of 10, exchanges of 10, 30 rounds), larger groups those for
  attention (stages of 2, exchanges of 5, 30 rounds).
- Its inputs are copied for it, since it changes them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from measuring import say

from osscar_opt import Problem

__all__ = ["Official", "Variant", "load_official", "variants"]

ROUNDS = 30  # of local search, as in its script


def load_official(checkout: Path | None) -> ModuleType | None:
    """Its module prune_algo, or None, said aloud, where there is no checkout."""
    if checkout is None:
        say("no --official CHECKOUT of github.com/mazumder-lab/OSSCAR: the published code is left out")
        return None
    file = checkout / "prune_algo.py"
    if not file.is_file():
        raise SystemExit(
            f"{checkout} holds no prune_algo.py; give a checkout of github.com/mazumder-lab/OSSCAR."
        )
    spec = importlib.util.spec_from_file_location("prune_algo", file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


@dataclass(frozen=True)
class Variant:
    """One way to call the official code; `local` is 0, or the number of groups its local search exchanges."""

    name: str
    stage: int
    local: int = 0
    shrinking: bool = False


def variants(size: int) -> tuple[Variant, ...]:
    stage, local = (10, 10) if size == 1 else (2, 5)
    return (
        Variant("one at a time", 1),
        Variant("staged", stage),
        Variant("staged + local search", stage, local),
        Variant("staged + local search, shrinking", stage, local, shrinking=True),
    )


class Official:
    """The official functions on one problem."""

    def __init__(self, code: ModuleType, problem: Problem) -> None:
        size = problem.groups.uniform_size
        if size is None:
            raise ValueError("the official code has groups of one size only.")
        self.code, self.n, self.size = code, problem.n, size
        order = np.argsort(problem.groups.group_of_row, kind="stable")
        q = problem.q
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(q, q)))[0]
        self.gram = torch.tensor(problem.gram[np.ix_(order, order)])
        self.cross = torch.tensor(problem.cross[order] @ turn)
        self.optimum = torch.tensor(problem.optimum[order] @ turn)

    def run(self, variant: Variant, keep: int) -> tuple[float, np.ndarray]:
        """Seconds, and the support."""
        weights, exchanged = self.optimum.clone(), min(variant.local, keep - 1, self.n - keep)
        with contextlib.redirect_stdout(io.StringIO()):
            begin = time.perf_counter()
            found, _ = self.code.OSSCAR_fastprune(weights, self.gram, self.cross, self.n, keep, variant.stage)
            if exchanged > 0:
                least = 0.5 / self.n if variant.shrinking else 1
                found, _ = self.code.OSSCAR_local_search(
                    found, self.gram, self.cross, self.n, ROUNDS, exchanged, least
                )
            seconds = time.perf_counter() - begin
        return seconds, np.asarray(found.numpy().reshape(self.n, -1).any(axis=1))

    def estimate(self, keep: int, removals: int) -> float:
        """Seconds of one-at-a-time pruning, from its first removals."""
        few, more = (
            self.run(Variant("", 1), self.n - 1)[0],
            self.run(Variant("", 1), self.n - 1 - removals)[0],
        )
        rows = torch.arange(keep * self.size)
        begin = time.perf_counter()
        torch.linalg.inv(self.gram)
        torch.linalg.inv(self.gram[rows[:, None], rows]) @ self.cross[rows]
        return time.perf_counter() - begin + (self.n - keep) * max(0.0, more - few) / removals
