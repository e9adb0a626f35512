r"""Sensitivities of layers found by a search on the model itself, with an exact allocation inside: SPDY."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from osscar_opt._typing import FloatArray, IntArray
from osscar_opt.allocation.budgets import Budget, pose
from osscar_opt.allocation.curves import Curve
from osscar_opt.allocation.dynamic import dynamically
from osscar_opt.allocation.milp import exactly
from osscar_opt.allocation.posed import Posed
from osscar_opt.allocation.result import Allocation
from osscar_opt.errors import InputError, OptionError
from osscar_opt.formulations.solution import Termination

__all__ = ["spdy"]

_GRID = 10_000


def spdy(
    curves: Sequence[Curve],
    budgets: Budget | Mapping[str, float],
    *,
    evaluate: Callable[[dict[str, int]], float],
    prior: Literal["errors", "levels"] = "errors",
    starts: int = 100,
    patience: int = 100,
    part: float = 0.1,
    seed: int = 0,
) -> Allocation:
    r"""Structured pruning by dynamic programming, with sensitivities searched for by running the pruned model.

    With coefficients c in [0, 1]^J, the layers' widths are

    .. math:: \min_k \sum_j c_j\, \pi_j(k_j) \quad\text{under the budgets},

    and c is searched for so that the model with these widths does best: the best of `starts` random c, then a local
    search that draws h coefficients anew, at random, and moves whenever that is better; after `patience` failures h
    falls by one, from J times `part` down to 1.  A model is run only for widths not seen before.

    prior : what a layer's width costs before its sensitivity is known,

    - "errors": pi_j(k) = e_j(k) / e_j(0), the error relative to keeping nothing, as ZipLM has it;
    - "levels": pi_j(k) = (log(k / n_j) / log(k_min / n_j))^2, as SPDY has it: quadratic in the number of times that an
      equal part of what is left was removed.

    The program inside is SPDY's dynamic program over 10,000 buckets of the budget, with uses rounded up where theirs
    are rounded to the nearest, so that the budget holds; several budgets take `osscar_opt.allocation.milp`.

    E. Frantar, D. Alistarh, *SPDY: Accurate Pruning with Speedup Guarantees*, ICML 2022; E. Kurtić, E. Frantar, D.
    Alistarh, *ZipLM: Inference-Aware Structured Pruning of Language Models*, NeurIPS 2023.

    Parameters
    ----------
    curves : sequence of Curve
    budgets : Budget, or mapping of str to number
    evaluate : callable
        From widths by layer to a loss of the model with these widths, the smaller the better.
    prior : {"errors", "levels"}, optional
    starts, patience : int, optional
        At least 1.
    part : float, optional
        Share of the coefficients drawn anew at first.
    seed : int, optional

    Raises
    ------
    InputError
        If the loss of a model is NaN, or "errors" are asked for where the error of keeping nothing is not known.
    OptionError
        If a prior is unknown.

    Examples
    --------
    >>> curves = [Curve(name, 4, [1, 2, 4], [3.0, 2.0, 0.0], {"ms": 1.0}, empty_error=4.0) for name in "ab"]
    >>> spdy(curves, {"ms": 6}, evaluate=lambda widths: abs(widths["a"] - 2), starts=5, patience=5).widths
    {'a': 2, 'b': 4}
    """
    began = time.perf_counter()
    posed = pose(curves, budgets)
    if starts < 1 or patience < 1 or not 0.0 < part <= 1.0:
        raise InputError(
            f"starts = {starts} and patience = {patience} must be at least 1, part = {part} from 0 to 1."
        )
    priors = _priors(posed, prior)
    rng = np.random.default_rng(seed)
    seen: dict[tuple[int, ...], float] = {}
    runs = 0

    def tried(coefficients: FloatArray) -> tuple[float, IntArray]:
        nonlocal runs
        runs += 1
        at = _widths(posed.with_losses([c * loss for c, loss in zip(coefficients, priors, strict=True)]))
        key = tuple(int(i) for i in at)
        if key not in seen:
            widths = {
                layer: int(curve.widths[i])
                for curve, i in zip(posed.curves, key, strict=True)
                for layer in curve.layers
            }
            seen[key] = float(evaluate(widths))
            if math.isnan(seen[key]):
                raise InputError(
                    "evaluate returned NaN: it must return a number, inf for a model that fails."
                )
        return seen[key], at

    count = len(posed.curves)
    best, least = rng.uniform(size=count), math.inf
    chosen: IntArray | None = None
    for start in range(starts):
        coefficients = best if start == 0 else rng.uniform(size=count)
        value, at = tried(coefficients)
        if chosen is None or value < least:
            best, least, chosen = coefficients, value, at
    for several in range(max(1, round(part * count)), 0, -1):
        failures = 0
        while failures < patience:
            coefficients = best.copy()
            coefficients[rng.integers(0, count, size=several)] = rng.uniform(size=several)
            value, at = tried(coefficients)
            if value < least:
                best, least, chosen, failures = coefficients, value, at, 0
            else:
                failures += 1
    assert chosen is not None  # starts is at least 1
    return posed.allocation(
        chosen,
        "spdy",
        began,
        termination=Termination.LOCAL_OPTIMUM,
        options={"prior": prior, "starts": starts, "patience": patience, "part": part, "seed": seed},
        stats={"programs": runs, "evaluations": len(seen), "value": least, "coefficients": best},
    )


def _widths(posed: Posed) -> IntArray:
    if len(posed.limits) != 1:
        found = exactly(posed).widths
    else:
        resource = next(iter(posed.limits))
        few = posed.whole(resource) and posed.limits[resource] <= _GRID
        found = dynamically(posed, grid=None if few else _GRID).widths
    return np.array([curve.place(found[curve.layers[0]]) for curve in posed.curves])


def _priors(posed: Posed, prior: str) -> list[FloatArray]:
    if prior == "errors":
        return [curve.relative().losses for curve in posed.curves]
    if prior != "levels":
        raise OptionError(f"prior = {prior!r} is not one of errors, levels.")
    found = []
    for curve in posed.curves:
        least = max(1, int(curve.widths[curve.widths > 0].min(initial=curve.n)))
        if least == curve.n:
            found.append(np.where(curve.widths > 0, 0.0, 1.0))
            continue
        # A width of 0 has no logarithm: it counts as half a unit.
        levels = np.log(np.maximum(curve.widths, 0.5) / curve.n) / np.log(least / curve.n)
        found.append(np.asarray(levels**2))
    return found
