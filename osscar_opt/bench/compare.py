"""All rules that apply to one problem, side by side: what each chooses, what it makes of the weights, what that costs.

Each rule is run as published, and its choice is judged once more with the best weights on it. So two questions are
answered apart: how well a rule chooses, and how well it repairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt.bench.comparison import Comparison, Row
from osscar_opt.bench.rules import RULES, Rule, rule, why_not
from osscar_opt.errors import InfeasibleError, InputError, LayerError, OptionError, OsscarError
from osscar_opt.formulations.problem import Problem
from osscar_opt.linalg.blas import cholesky_lower, inverse_from_cholesky_lower
from osscar_opt.solvers.progress import Tally
from osscar_opt.solvers.published._surgeon import scaled_gram

if TYPE_CHECKING:
    import torch

__all__ = ["compare", "compare_layer"]

_REFERENCE = "exact"


def compare(
    problem: Problem,
    *,
    rules: Iterable[str] | None = None,
    arrays: Mapping[str, Any] | None = None,
    exact: bool = False,
    time_limit: float | None = 20.0,
    progress: bool | None = None,
) -> Comparison:
    """Run every rule that applies to a problem, as published and with a refit.

    Parameters
    ----------
    problem : Problem
        With a limit on what may stay.
    rules : iterable of str, optional
        Names of `osscar_opt.bench.rules.RULES`; None: all but those that prove optimality.
    arrays : mapping of str to array or PerProblem, optional
        By rule, what needs a model: what `osscar_opt.torch.scores` computes.
    exact : bool, optional
        Run branch and bound too, for a reference with a bound.
    time_limit : float, optional
        Seconds for each method.
    progress : bool, optional
        Show a line on stderr after two seconds; None: only if stderr is a terminal.

    Returns
    -------
    Comparison

    Raises
    ------
    UnknownMethodError
        When a name is no rule's.
    InputError
        When the problem has no limit.
    InfeasibleError
        When no choice meets the problem's limits.

    Examples
    --------
    >>> from osscar_opt.instances import random_instance
    >>> problem = random_instance(0, "correlated", n=8, q=3).with_keep(4)
    >>> found = compare(problem, rules=["magnitude", "ziplm", "osscar"], exact=True)
    >>> found.rows[0].rule.name, round(found.excess(found.rows[0].refitted), 9)
    ('exact', 0.0)
    """
    if not problem.limits.names:
        raise InputError(
            "this problem has no limit on what may stay: pose it with keep=, or use problem.with_keep(k)."
        )
    names = [*([_REFERENCE] if exact else []), *(_default_rules() if rules is None else rules)]
    chosen = [rule(name) for name in dict.fromkeys(names)]
    given = dict(arrays or {})
    for name in given:
        if not rule(name).option:
            raise InputError(
                f"arrays has an entry for rule {name!r}, which needs none: it takes the problem alone."
            )
    skipped: list[tuple[str, str]] = []
    rows: list[Row] = []
    bounds: list[float] = []
    tally = Tally(len(chosen), progress)
    try:
        for number, found in enumerate(chosen):
            tally.look(number, 1)
            reason = why_not(found, problem, frozenset(given))
            if reason:
                skipped.append((found.name, reason))
                continue
            try:
                row, bound = _run(problem, found, given.get(found.name), time_limit)
            except (
                InfeasibleError,
                OptionError,
            ):  # nothing fits, or what was handed over is not what the rule takes
                raise
            except OsscarError as error:
                skipped.append((found.name, str(error)))
                continue
            rows.append(row)
            bounds += [] if bound is None else [bound]
    finally:
        tally.close()
    least = min((row.best for row in rows), default=0.0) or 1.0

    def rank(row: Row) -> tuple[float, int]:
        """By error, and where rounding alone tells them apart in the order of the rules' table."""
        return round(row.refitted / least, 9), chosen.index(row.rule)

    ranked = sorted(rows, key=rank)
    return Comparison(
        problem, tuple(ranked), tuple(skipped), _inverse_seconds(problem), max(bounds, default=None)
    )


def compare_layer(
    model: torch.nn.Module,
    layer: str,
    batches: Any,
    *,
    sparsity: float | None = None,
    keep: int | None = None,
    damping: float = 1e-2,
    rules: Iterable[str] | None = None,
    exact: bool = False,
    time_limit: float | None = 20.0,
    score_batches: int | None = 4,
    progress: bool | None = None,
) -> Comparison:
    """Run every rule on the problem of one site of a model, those that need gradients, maps or filters among them.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    layer : str
        Name of the site: that of the layer that reads the units (``"model.layers.3.mlp.down_proj"``).
    batches
        As `osscar_opt.torch.prune_model` takes them.
    sparsity, keep : float, int
        One of them.
    damping : float, optional
    rules, exact, time_limit
        As for `compare`.
    score_batches : int, optional
        How many of the batches the model's gradients and feature maps are taken on; None: all.
    progress : bool, optional
        As for `compare`.

    Returns
    -------
    Comparison
        Rows of rules that need the model count the time of their scores, for this site.

    Raises
    ------
    LayerError, InputError
        As `osscar_opt.torch.prune_model`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    >>> found = compare_layer(model, "2", batches, sparsity=0.5, rules=["taylor", "flap", "osscar"])
    >>> sorted(row.rule.name for row in found.rows)
    ['flap', 'osscar', 'taylor']
    """
    from osscar_opt.torch.plan import hold_and_trace
    from osscar_opt.torch.prune import collect_problems
    from osscar_opt.torch.scores import MODEL_RULES

    names = [rule(name).name for name in (_default_rules() if rules is None else rules)]
    if (sparsity is None) == (keep is None):
        raise InputError("give either sparsity, the share of units that goes, or keep, how many stay.")
    held, coupling = hold_and_trace(model, batches)
    sites = coupling.select(layer)
    if len(sites) != 1:
        raise LayerError(f"{layer!r} stands for {len(sites)} sites: name one of {', '.join(sites[:5])}.")
    site = sites[0]
    collected = collect_problems(
        model,
        held,
        sites=[site],
        sparsity=sparsity,
        keep=keep,
        damping=damping,
        coupling=coupling,
        progress=progress,
    )
    with contextlib.closing(collected):  # type: ignore[type-var]
        problem = next(found for name, found in collected if name == site)
    arrays: dict[str, Any] = {}
    spent: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in names:
        if name not in MODEL_RULES:
            continue
        began = time.perf_counter()
        try:
            arrays[name] = MODEL_RULES[name].make(
                model, held[:score_batches], coupling=coupling, sites=[site]
            )
        except LayerError as error:
            reasons[name] = str(error)
        spent[name] = time.perf_counter() - began
    found = compare(
        problem, rules=names, arrays=arrays, exact=exact, time_limit=time_limit, progress=progress
    )
    return dataclasses.replace(
        found,
        rows=tuple(
            dataclasses.replace(row, seconds=row.seconds + spent.get(row.rule.name, 0.0))
            for row in found.rows
        ),
        skipped=tuple((name, reasons.get(name, why)) for name, why in found.skipped),
    )


def _default_rules() -> Sequence[str]:
    return [
        found.name
        for found in RULES
        if found.kind != "exact" and found.name not in ("scores", "magnitude_refit")
    ]


def _run(problem: Problem, found: Rule, array: Any, time_limit: float | None) -> tuple[Row, float | None]:
    options = {found.option: array} if found.option else {}
    began = time.perf_counter()
    first = problem.solve(found.method, time_limit=time_limit, progress=False, **options)
    seconds = time.perf_counter() - began
    refitted = first.objective if found.refits else problem.value(first.support)
    own = found.kind == "exact" and found.name != "cvxpy"  # whose bound is another solver's word
    bound = float(first.bound) if own and math.isfinite(first.bound) else None
    published = None if found.refits else first.objective
    row = Row(found, published, refitted, first.support, seconds, first.termination)
    return row, bound


def _inverse_seconds(problem: Problem) -> float:
    """Seconds of one Cholesky inverse of the gram, the median of three."""
    gram, _ = scaled_gram(problem)
    times = []
    for _ in range(3):
        copy = np.array(gram, order="F")
        began = time.perf_counter()
        cholesky_lower(copy)
        inverse_from_cholesky_lower(copy)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
