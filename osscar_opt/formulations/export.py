"""The outer approximation that `highs` solves, as an LP or MPS file for any other solver."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from osscar_opt.errors import InputError

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["to_mps"]

_SUFFIXES = (".mps", ".lp")
_LEAST_SCALE = 1e-12


def to_mps(problem: Problem, path: str | os.PathLike[str], *, rounds: int = 10) -> None:
    """Write a mixed-integer linear program whose optimum is a lower bound of the problem's.

    No linear program is equal to the quadratic one; this is the outer approximation that method ``highs`` starts from,
    after `rounds` rounds of cuts at fractional points:

        minimise base + sum_t loss_t    over keep_g in {0, 1}, loss_t >= 0,   usage keep <= limit,   and the cuts
        loss_t >= loss_t(z') + gradient . (keep - z')   of the convex loss of each term of the outputs.

    Columns are called keep_0, keep_1, ..., loss_0, ...; rows limit_keep, ..., cut_0, ...  A support that is optimal
    there still has to be valued (`Problem.value`), and cut off, to go on.

    Parameters
    ----------
    problem : Problem
    path : path-like
        Ends in .mps or .lp.
    rounds : int
        More rounds, more cuts, a better bound.

    Raises
    ------
    InputError
        If the path ends otherwise, or `rounds` is negative.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_mps(Problem(np.eye(2), [[1.0], [2.0]], keep=1), Path(folder, "layer.mps"))
    ...     Path(folder, "layer.mps").read_text().startswith("NAME")
    True
    """
    from osscar_opt.formulations.cuts import Separator, Terms
    from osscar_opt.formulations.outer import Master

    target = Path(path)
    if target.suffix not in _SUFFIXES:
        raise InputError(f"the file must end in .mps or .lp, but is called {target.name!r}.")
    if rounds < 0:
        raise InputError(f"rounds must be at least 0, but is {rounds}.")
    terms = Terms(problem)
    separator = Separator(terms)
    lost = problem.constant - problem.base
    master = Master(
        problem, terms, max(0.1 * lost, _LEAST_SCALE * abs(problem.constant), np.finfo(float).tiny)
    )
    used = problem.limits.usage.sum(axis=1)
    shares = problem.limits.limit[used > 0.0] / used[used > 0.0]
    share = float(np.clip(shares, 0.0, 1.0).min(initial=1.0))
    center, relaxed = np.full(problem.n, max(share, 1e-3)), None
    for _ in range(rounds):
        master.add(separator.inside(center), None if relaxed is None else relaxed.z)
        relaxed = master.relax() or relaxed
        if relaxed is None:
            break
        center = 0.5 * (center + relaxed.z)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # aside, then renamed: never half a file
        aside = Path(folder, "master" + target.suffix)
        master.write(str(aside))
        aside.replace(target)
