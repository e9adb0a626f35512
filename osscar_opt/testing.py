"""The conformance kit: what every solver must do, checked on small problems against plain enumeration.

``check_solver("mymethod")`` or ``check_solver(MyMethod())`` runs a battery of problems through the referee and, apart
from it, straight through ``propose``, and raises AssertionError with one sentence at the first thing that is wrong.
The enumeration shares no code with the library: it is numpy.linalg.solve over itertools.product.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import CapabilityError, OsscarError
from osscar_opt.formulations.presolve import presolve
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Solution, Status, Termination
from osscar_opt.solvers.base import Deadline, Report, Solver
from osscar_opt.solvers.referee import solve
from osscar_opt.solvers.registry import get_solver

__all__ = ["Case", "battery", "best_value_by_enumeration", "check_solver"]


@dataclass(frozen=True, eq=False)
class Case:
    """A problem of the battery and what it is there for.

    Examples
    --------
    >>> Case("one group", Problem([[1.0]], [[1.0]], keep=1)).label
    'one group'
    """

    label: str
    problem: Problem


def check_solver(
    solver: str | Solver | type[Solver],
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    patience: float = 20.0,
) -> None:
    """Check that a solver keeps its side of the contract.

    Parameters
    ----------
    solver : str, Solver, or subclass of Solver
    options : mapping, optional
        Options of the solver.
    seed : int, optional
        Of the battery.
    patience : float, optional
        Seconds any one of the small problems may take.

    Raises
    ------
    AssertionError
        Naming the case and what is wrong.

    Examples
    --------
    >>> check_solver("magnitude_refit")
    """
    instance = get_solver(solver, options)
    _check_declaration(instance)
    for case in battery(seed):
        if _handled(instance, case.problem):
            _check_case(instance, case, patience)
        else:
            _check_refusal(instance, case)


def battery(seed: int = 0) -> Iterator[Case]:
    """Yield small problems, p != q: group sizes, limits of every kind, degenerate and ill-conditioned data.

    Examples
    --------
    >>> len({case.label for case in battery()}) >= 20
    True
    """
    for make in (_shapes, _budget_kinds, _degenerate, _hard_numerics):
        yield from make(np.random.default_rng(seed))


def best_value_by_enumeration(problem: Problem) -> float:
    """Smallest objective over all feasible supports: 2^n refits in plain numpy.

    Examples
    --------
    >>> best_value_by_enumeration(Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2))
    0.5
    """
    supports = (np.array(bits) for bits in itertools.product([False, True], repeat=problem.n))
    return min(_value(problem, support) for support in supports if _feasible(problem, support))


def _value(problem: Problem, support: BoolArray) -> float:
    """Return base + 1/2 tr(D' H D), D the difference of the refitted weights and the unconstrained optimum."""
    live = problem.gram.diagonal() > 0.0
    apart = _fitted(problem, live) - _fitted(problem, live & support[problem.groups.group_of_row])
    return problem.base + 0.5 * float(np.sum(apart * (problem.gram @ apart)))


def _fitted(problem: Problem, rows: BoolArray) -> FloatArray:
    weights = np.zeros(problem.cross.shape)
    scale = 1.0 / np.sqrt(problem.gram.diagonal()[rows])[:, None]
    scaled = problem.gram[np.ix_(rows, rows)] * scale * scale.T
    weights[rows] = scale * np.linalg.solve(scaled, scale * problem.cross[rows])
    return weights


def _feasible(problem: Problem, support: BoolArray) -> bool:
    met = [not np.any(problem.always_keep & ~support), not np.any(problem.always_remove & support)]
    if problem.keep is not None:
        met.append(support.sum() <= problem.keep)
    if problem.costs is not None and problem.budget is not None:
        met.append(problem.costs[support].sum() <= problem.budget * (1 + 1e-9))
    if problem.blocks is not None and problem.block_keep is not None:
        met += [support[problem.blocks == b].sum() <= most for b, most in enumerate(problem.block_keep)]
    return all(met)


def _check_declaration(solver: Solver) -> None:
    cls = type(solver)
    own = vars(cls).get("__dataclass_params__")
    _require(own is not None and own.frozen, "class", "is not itself a frozen dataclass")
    _require(isinstance(getattr(cls, "name", None), str) and bool(cls.name), "class", "has no name")
    generated = f"{cls.__name__}("  # what dataclass writes where there is no docstring
    documented = bool(cls.__doc__) and not str(cls.__doc__).startswith(generated)
    _require(documented, "class", "has no docstring, whose first line is its summary")
    known = {"budget", "blocks", "unequal_groups", "forced"}
    _require(cls.handles <= known, "class", f"handles {sorted(cls.handles - known)}, which nobody knows")
    if cls.required_options:
        again = dataclasses.replace(solver)
        _require(again == solver, "class", "has instances of the same options that are not equal")
    else:
        _require(cls() == cls(), "class", "has options without default, or instances that are not equal")


def _handled(solver: Solver, problem: Problem) -> bool:
    features = problem.features - {"forced"} if solver.presolve else problem.features
    return features <= solver.handles


def _check_refusal(solver: Solver, case: Case) -> None:
    try:
        solve(case.problem, solver, progress=False)
    except CapabilityError:
        return
    _require(False, case.label, "was solved, though the solver does not say that it handles it")


def _check_case(solver: Solver, case: Case, patience: float) -> None:
    problem, label = case.problem, case.label
    best = best_value_by_enumeration(problem)
    before = _state(problem)
    solution = _solved(solver, case, patience)
    _require(
        _same_state(before, _state(problem)),
        label,
        "the problem's arrays or a global random state were changed",
    )
    _check_solution(solver, case, solution, best)
    again = _solved(solver, case, patience)
    _require(np.array_equal(solution.support, again.support), label, "two runs gave two supports")
    _check_proposal(solver, case, best)
    _check_start(solver, case, patience)
    rushed = _solved(solver, case, patience, time_limit=0.0)
    _require(problem.feasible(rushed.support), label, "time_limit = 0 gave an infeasible support")


def _solved(solver: Solver, case: Case, patience: float, **arguments: Any) -> Solution:
    in_time = "time_limit" not in arguments
    arguments.setdefault("time_limit", patience)
    try:
        solution = solve(case.problem, solver, progress=False, **arguments)
    except OsscarError as error:
        raise AssertionError(f"{case.label}: {error}") from error
    if in_time:
        _require(
            solution.termination is not Termination.TIME_LIMIT, case.label, f"no end within {patience} s"
        )
        findings = solution.stats.get("findings")
        _require(not findings, case.label, f"the referee found: {findings}")
        rejected = solution.stats.get("rejected_incumbents")
        _require(not rejected, case.label, f"{rejected} infeasible incumbents were reported")
    return solution


def _check_solution(solver: Solver, case: Case, solution: Solution, best: float) -> None:
    label, problem = case.label, case.problem
    solution.verify()
    json.dumps(solution.to_dict(), allow_nan=False)
    refitted, tolerance = _value(problem, solution.support), _slack(problem, best)
    _require(
        solution.objective >= refitted - _slack(problem, refitted),
        label,
        "the objective is below that of the best weights",
    )
    _require(solution.objective >= best - tolerance, label, "the objective is below the true optimum")
    _require(
        solution.bound <= best + tolerance, label, f"the bound {solution.bound} is above the optimum {best}"
    )
    if solution.status is Status.OPTIMAL:
        _require(
            solution.objective <= best + tolerance,
            label,
            f"{solution.objective} is called optimal, {best} is",
        )
    elif solver.proves:
        _require(
            solution.termination is not Termination.COMPLETED,
            label,
            "completed without the proof it promises",
        )


def _check_proposal(solver: Solver, case: Case, best: float) -> None:
    """Run `propose` without the referee, and hold every claim against the truth."""
    problem = presolve(case.problem).problem if solver.presolve else case.problem
    if problem.n == 0:
        return
    listener = _Listener()
    proposal = solver.propose(problem, start=None, deadline=Deadline(), report=listener)
    _require(problem.feasible(proposal.support), case.label, "the proposal is infeasible")
    for support, claim in listener.claims:
        _require(problem.feasible(support), case.label, "an infeasible incumbent was reported")
        if claim is not None:
            true = _value(problem, support)
            _require(
                abs(claim - true) <= _claim_slack(problem, true),
                case.label,
                f"the objective {claim} was claimed for {true}",
            )
    bounds = [*listener.bounds, *([] if proposal.lower_bound is None else [proposal.lower_bound])]
    for bound in bounds:
        _require(
            bound <= best + _claim_slack(problem, best),
            case.label,
            f"the bound {bound} is above the optimum {best}",
        )


def _check_start(solver: Solver, case: Case, patience: float) -> None:
    start = case.problem.always_keep.copy()
    for group in np.random.default_rng(1).permutation(case.problem.n):
        start[group] = True
        if not case.problem.feasible(start):
            start[group] = False
    given, start_value = start.copy(), _value(case.problem, start)
    solution = _solved(solver, case, patience, start=start)
    _require(np.array_equal(start, given), case.label, "start was changed")
    harm = solution.objective - start_value - _slack(case.problem, start_value)
    same = np.array_equal(solution.support, start)  # where weights are not refitted
    _require(harm <= 0.0 or same, case.label, "the result is worse than start")


class _Listener(Report):
    """A report that forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[tuple[BoolArray, float | None]] = []
        self.bounds: list[float] = []

    def incumbent(self, support: BoolArray, objective: float | None = None) -> None:
        self.claims.append((np.array(support), objective))

    def bound(self, value: float) -> None:
        self.bounds.append(value)


def _require(holds: bool, label: str, complaint: str) -> None:
    if not holds:
        raise AssertionError(f"{label}: {complaint}.")


def _slack(problem: Problem, value: float) -> float:
    """Error of `_value` itself."""
    loss, scale = abs(value - problem.base), abs(problem.constant - problem.base)
    return (1e-8 + _relative_error(problem)) * loss + 1e-12 * scale + 1e-13 * abs(problem.base)


def _claim_slack(problem: Problem, value: float) -> float:
    """Error allowed in what a solver works out while it runs: relative to all that the layer explains."""
    scale = abs(problem.constant - problem.base)
    return _slack(problem, value) + (1e-9 + _relative_error(problem)) * scale


def _relative_error(problem: Problem) -> float:
    live = problem.gram.diagonal() > 0.0
    if not live.any():
        return 0.0
    scale = 1.0 / np.sqrt(problem.gram.diagonal()[live])[:, None]
    scaled = problem.gram[np.ix_(live, live)] * scale * scale.T
    return float(16.0 * np.finfo(float).eps * np.linalg.cond(scaled))


def _state(problem: Problem) -> list[Any]:
    fields = [getattr(problem, field.name) for field in dataclasses.fields(problem)]
    arrays = [value.copy() for value in fields if isinstance(value, np.ndarray)]
    global_random = pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002 - nobody may touch it
    return [*arrays, np.frombuffer(global_random, dtype=np.uint8)]


def _same_state(before: list[Any], after: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def _data(rng: np.random.Generator, p: int, q: int, **rest: Any) -> Problem:
    mixing = rng.standard_normal((p, p)) + 2.0 * np.eye(p)
    inputs = rng.standard_normal((4 * p, p)) @ mixing
    return Problem.from_data(inputs, rng.standard_normal((p, q)), damping=1e-2, **rest)


def _shapes(rng: np.random.Generator) -> Iterator[Case]:
    yield Case("single rows", _data(rng, 7, 3, keep=3))
    yield Case("one group", _data(rng, 2, 3, groups=2, keep=1))
    yield Case("groups of 3", _data(rng, 15, 4, groups=3, keep=2))
    yield Case(
        "groups of 1, 2 and 3, rows interleaved", _data(rng, 9, 2, groups=[0, 1, 2, 0, 1, 3, 0, 4, 3], keep=3)
    )
    yield Case("more outputs than inputs", _data(rng, 6, 11, groups=2, keep=2))
    yield Case("one output", _data(rng, 6, 1, keep=2))
    yield Case("keep = 0", _data(rng, 6, 2, groups=2, keep=0))
    yield Case("keep = n", _data(rng, 6, 2, groups=2, keep=3))
    targets = rng.standard_normal((40, 3))
    yield Case(
        "targets of their own", Problem.from_data(rng.standard_normal((40, 6)), targets=targets, keep=3)
    )


def _budget_kinds(rng: np.random.Generator) -> Iterator[Case]:
    costs = np.array([5.0, 1.0, 2.0, 4.0, 3.0, 0.0])
    yield Case("costs with a budget", _data(rng, 6, 2, costs=costs, budget=7.0))
    yield Case("costs with a budget, and keep", _data(rng, 6, 2, costs=costs, budget=7.0, keep=2))
    yield Case("a budget nothing but a free group meets", _data(rng, 6, 2, costs=costs, budget=0.0))
    yield Case("costs that only add up with rounding", _data(rng, 3, 2, costs=[0.1, 0.2, 0.3], budget=0.3))
    yield Case("blocks", _data(rng, 6, 2, blocks=[0, 1, 0, 1, 1, 0], block_keep=[1, 2]))
    yield Case(
        "a block of which nothing stays", _data(rng, 6, 2, blocks=[0, 1, 0, 1, 1, 0], block_keep=[0, 2])
    )
    yield Case("always_keep", _data(rng, 7, 3, keep=3, always_keep=[2]))
    yield Case("always_remove", _data(rng, 7, 3, keep=3, always_remove=[0, 4]))
    yield Case("always_keep uses up keep", _data(rng, 6, 2, keep=2, always_keep=[1, 3]))
    yield Case("every group forced", _data(rng, 3, 2, keep=2, always_keep=[0], always_remove=[1, 2]))
    everything: dict[str, Any] = {"costs": costs, "budget": 8.0, "keep": 3, "blocks": [0, 0, 0, 1, 1, 1]}
    everything |= {
        "block_keep": [2, 1],
        "always_keep": [1],
        "always_remove": [3],
        "groups": [0, 0, 1, 2, 3, 4, 5, 5],
    }
    yield Case("every kind of limit, groups of 1 and 2", _data(rng, 8, 3, **everything))


def _degenerate(rng: np.random.Generator) -> Iterator[Case]:
    yield Case("all groups alike", Problem(np.eye(6), np.ones((6, 2)), keep=3))
    yield Case("nothing to explain", Problem(np.eye(4) + 1.0, np.zeros((4, 3)), keep=2))
    gram = np.kron(np.eye(3), np.array([[2.0, 1.0], [1.0, 2.0]]))
    cross = rng.standard_normal((6, 3))
    cross[2:4] = 0.0
    yield Case("a group without gain", Problem(gram, cross, groups=2, keep=2))
    dead = rng.standard_normal((30, 6))
    dead[:, [1, 4]] = 0.0
    yield Case("dead inputs", Problem.from_data(dead, rng.standard_normal((6, 2)), damping=0.0, keep=3))
    grouped = Problem.from_data(dead, rng.standard_normal((6, 2)), damping=0.0, groups=2, keep=2)
    yield Case("dead inputs inside groups", grouped)
    twins = np.repeat(rng.standard_normal((30, 3)), 2, axis=1)
    twins += 1e-4 * rng.standard_normal(twins.shape)
    weights = rng.standard_normal((6, 2))
    yield Case("near duplicates", Problem.from_data(twins, weights, damping=1e-9, keep=3))
    shifted = _data(rng, 6, 2, keep=3)
    yield Case("a large constant", Problem(shifted.gram, shifted.cross, keep=3, constant=1e4))
    yield Case("a negative constant", Problem(shifted.gram, shifted.cross, keep=3, constant=-1e4))


def _hard_numerics(rng: np.random.Generator) -> Iterator[Case]:
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    yield Case("condition number 1e10", Problem(_symmetric(basis, 1e10), dense_weights=basis[:, :4], keep=3))
    scale = np.array([2000.0, 1.0, 1e-3, 1.0, 500.0, 0.02])
    inputs = rng.standard_normal((40, 6)) @ (rng.standard_normal((6, 6)) + 2.0 * np.eye(6)) * scale
    weights = rng.standard_normal((6, 4)) / scale[:, None]
    yield Case("inputs of very different size", Problem.from_data(inputs, weights, damping=0.0, keep=3))
    # Each input helps only in company: alone, the third looks best and is not part of the best pair.
    trap = np.array([[1.0, -0.95, 0.1], [-0.95, 1.0, 0.1], [0.1, 0.1, 1.0]])
    yield Case(
        "a trap for one-at-a-time selection", Problem(trap, dense_weights=[[3.0], [3.0], [0.5]], keep=2)
    )


def _symmetric(basis: FloatArray, condition: float) -> FloatArray:
    gram = basis @ np.diag(np.geomspace(1.0 / condition, 1.0, len(basis))) @ basis.T
    return (gram + gram.T) / 2.0
