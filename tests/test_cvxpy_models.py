"""The models behind `to_cvxpy`, against enumeration and against weights refitted by numpy alone."""

from __future__ import annotations

import itertools
from typing import Any

import cvxpy
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from osscar_opt import Problem
from osscar_opt.errors import (
    CapabilityError,
    InputError,
    NotPositiveDefiniteError,
    OptionError,
    SolverError,
)
from osscar_opt.formulations.models.backend import run_backend
from osscar_opt.formulations.models.conic import cvxpy_model
from osscar_opt.formulations.models.normal import normal_form
from osscar_opt.formulations.models.perspective import (
    blended_split,
    eigenvalue_split,
    most,
    perspective_bound,
)
from osscar_opt.formulations.models.weights import weight_bounds
from osscar_opt.testing import best_value_by_enumeration


def posed(seed: int, n: int = 6) -> Problem:
    """A problem with features drawn at random: sizes 1 to 4, q from 1 to 3n, every kind of limit, dead inputs."""
    rng = np.random.default_rng(seed)
    sizes = np.ones(n, int) if seed % 3 == 0 else rng.integers(1, 5 if seed % 3 == 1 else 3, n)
    p = int(sizes.sum())
    q = int(rng.integers(1, 3 * n + 1))
    q += q == p
    inputs = rng.normal(size=(3 * p, p)) @ (rng.normal(size=(p, p)) + 2.0 * np.eye(p))
    if seed % 7 == 0:
        inputs[:, rng.integers(p)] = 0.0
    limits: dict[str, Any] = {"keep": int(rng.integers(1, n))}
    if seed % 2:
        costs = rng.integers(0, 9, n).astype(float)
        limits |= {"costs": costs, "budget": 0.6 * costs.sum()}
    if seed % 5 == 1:
        limits |= {"blocks": np.arange(n) % 2, "block_keep": [2, 1]}
    if seed % 5 == 3:
        limits = {"keep": n // 2, "always_keep": [1], "always_remove": [0]}
    return Problem.from_data(
        inputs,
        rng.normal(size=(p, q)),
        damping=float(10.0 ** rng.uniform(-3, -1)) if seed % 7 else 0.0,
        groups=rng.permutation(np.repeat(np.arange(n), sizes)),
        **limits,
    )


def supports_of(problem: Problem) -> list[np.ndarray]:
    return [np.array(bits) for bits in itertools.product([False, True], repeat=problem.n)]


def rows_of(problem: Problem, support: np.ndarray) -> np.ndarray:
    live = problem.gram.diagonal() > 0.0
    return support[problem.groups.group_of_row] & live


def refitted(problem: Problem, support: np.ndarray) -> np.ndarray:
    weights, rows = np.zeros(problem.cross.shape), rows_of(problem, support)
    weights[rows] = np.linalg.solve(problem.gram[np.ix_(rows, rows)], problem.cross[rows])
    return weights


def value_of(problem: Problem, weights: np.ndarray) -> float:
    return float(
        0.5 * np.sum(weights * (problem.gram @ weights)) - np.sum(problem.cross * weights) + problem.constant
    )


# ---------------------------------------------------------------------------------------------------- normal form


@pytest.mark.parametrize("seed", range(40))
def test_normal_form_is_the_problem_in_other_units(seed: int) -> None:
    problem = posed(seed)
    form = normal_form(problem)
    rng = np.random.default_rng(seed)
    live = problem.gram.diagonal() > 0.0
    inner = rng.normal(size=form.optimum.shape) * live[:, None]
    weights = form.sigma * form.scale[:, None] * inner @ form.directions.T
    loss = np.sum((form.root.T @ (inner - form.optimum)) ** 2)
    assert form.objective(loss) == pytest.approx(value_of(problem, weights), rel=1e-8)
    assert np.allclose(np.diag(form.gram), 1.0)
    assert np.allclose(form.root @ form.root.T, form.gram)
    for support in supports_of(problem)[::7]:
        refit = refitted(problem, support)
        assert np.allclose(
            refit @ form.directions @ form.directions.T, refit, atol=1e-6 * np.abs(refit).max()
        )


def test_outputs_are_reduced_to_their_rank() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 9))
    problem = Problem.from_data(rng.normal(size=(30, 6)), weights, keep=3)
    model = problem.to_cvxpy("big_m")
    assert model.directions.shape == (9, 2)
    assert model.weights_expression.shape == (6, 2)


# ---------------------------------------------------------------------------------------------------------- big-M


def test_weight_bounds_hold_for_every_support_as_good_as_the_value() -> None:
    reach = []
    for seed in range(150):
        problem = posed(seed, n=5)
        form = normal_form(problem)
        refits = [(support, refitted(problem, support)) for support in supports_of(problem)]
        values = np.array([value_of(problem, weights) for _, weights in refits])
        value = float(np.sort(values)[len(values) // 2])
        lower, upper = weight_bounds(problem, max(value, problem.base))
        inverse = np.sqrt(np.diag(np.linalg.inv(form.gram)))  # the largest weight possible, in normal form
        room = 1e-7 * form.sigma * (form.scale * inverse)[:, None]  # of the margin that is added
        for (support, weights), this in zip(refits, values, strict=True):
            rows = rows_of(problem, support)
            if this > value or not rows.any():
                continue
            assert np.all(lower[rows] <= weights[rows])
            assert np.all(weights[rows] <= upper[rows])
            centre, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
            reach.append(np.max((np.abs(weights - centre)[rows] - room[rows]) / half[rows]))
    assert max(reach) > 0.85  # with intervals 15 % shorter, the assertions above would fail


def test_weight_bounds_are_as_tight_as_can_be_where_two_inputs_compete() -> None:
    problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    refit = refitted(problem, np.array([False, True]))
    lower, upper = weight_bounds(problem, value_of(problem, refit))
    assert upper[1, 0] == pytest.approx(refit[1, 0], rel=1e-6)
    assert lower[1, 0] == pytest.approx(2.0 * 2.0 - refit[1, 0], rel=1e-6)  # W* is 2, in the middle


def test_weight_bounds_shrink_with_the_value() -> None:
    problem = posed(3)
    form = normal_form(problem)
    worse, better = (weight_bounds(problem, form.objective(loss)) for loss in (0.5, 0.05))
    assert np.all(worse[0] <= better[0])
    assert np.all(better[1] <= worse[1])
    assert np.mean(better[1] - better[0]) < 0.5 * np.mean(worse[1] - worse[0])


@pytest.mark.parametrize("form", ["big_m", "perspective"])
@pytest.mark.parametrize("seed", range(12))
def test_every_support_as_good_as_the_value_is_in_the_model_with_its_objective(form: Any, seed: int) -> None:
    problem = posed(seed, n=5)
    feasible = [support for support in supports_of(problem) if problem.feasible(support)]
    values = {tuple(support): value_of(problem, refitted(problem, support)) for support in feasible}
    worst = float(np.median(list(values.values())))
    model = problem.to_cvxpy(form, value=max(worst, problem.base))
    variables = {variable.name(): variable for variable in model.problem.variables()}
    normal = normal_form(problem)
    for support in feasible:
        if values[tuple(support)] > worst:
            continue
        inner = refitted(problem, support) @ model.directions / (normal.sigma * normal.scale[:, None])
        variables["support"].value = support.astype(float)
        if form == "big_m":
            for output, residual in enumerate((normal.root.T @ (inner - normal.optimum)).T):
                variables[f"residual[{output}]"].value = residual[:, None]
        else:
            assert model.split is not None
            split = model.split * np.outer(normal.scale, normal.scale)
            variables["weights"].value = inner
            variables["shares"].value = problem.groups.total(np.sum(inner * (split @ inner), axis=1))
        with np.errstate(
            invalid="ignore"
        ):  # cvxpy divides 0 by 0 at the tip of a cone, and ignores the result
            assert max(np.max(constraint.violation()) for constraint in model.problem.constraints) < 1e-7
        assert model.problem.objective.value == pytest.approx(values[tuple(support)], rel=1e-7)
        assert np.allclose(model.weights_expression.value, refitted(problem, support) @ model.directions)


@pytest.mark.parametrize("form", ["big_m", "perspective"])
@pytest.mark.parametrize("seed", range(6))
def test_a_support_against_the_limits_is_not_in_the_model(form: Any, seed: int) -> None:
    problem = posed(seed, n=5)
    model = problem.to_cvxpy(form, split="eigenvalue")
    for support in supports_of(problem):
        model.support_variable.value = support.astype(float)
        over = [
            np.max(constraint.violation())
            for constraint in model.problem.constraints
            if [variable.name() for variable in constraint.variables()] == ["support"]
        ]
        assert (max(over) < 1e-9) == problem.feasible(support)


def test_the_allowance_covers_what_tolerances_can_gain() -> None:
    """The worst a solver may do: removed weights up to M + 1 times the tolerance, in the best direction."""
    share = []
    for seed in range(60):
        problem = posed(seed, n=5)
        form = normal_form(problem)
        support = min(
            (support for support in supports_of(problem) if problem.feasible(support)),
            key=lambda support: value_of(problem, refitted(problem, support)),
        )
        value = value_of(problem, refitted(problem, support))
        model = problem.to_cvxpy("big_m", value=value)
        assert model.lower is not None
        assert model.upper is not None
        tolerance = 1e-3
        largest = np.maximum(-model.lower, model.upper) / (form.sigma * form.scale[:, None])
        most_off = np.where(rows_of(problem, support)[:, None], np.inf, tolerance * (1.0 + largest))
        gained = 0.0
        for column in range(form.optimum.shape[1]):
            bounds = (-most_off[:, column], most_off[:, column])
            target = form.root.T @ form.optimum[:, column]
            gained += 2.0 * lsq_linear(form.root.T, target, bounds=bounds, tol=1e-12).cost
        short = value - form.objective(gained)
        assert -1e-9 * form.unit <= short <= model.allowance(tolerance)
        share.append(short / model.allowance(tolerance))
    assert max(share) > 0.1  # not so generous as to say nothing


# ----------------------------------------------------------------------------------------------- perspective bound


def random_split(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    blocks = np.zeros((problem.p, problem.p))
    for group in range(problem.n):
        rows = problem.groups.rows(group)
        factor = rng.normal(size=(len(rows), len(rows)))
        blocks[np.ix_(rows, rows)] = factor @ factor.T
    return blocks


def test_the_perspective_bound_holds_at_any_z_for_any_split() -> None:
    beaten = 0
    for seed in range(250):
        problem = posed(seed)
        rng = np.random.default_rng(seed)
        form, best = normal_form(problem), best_value_by_enumeration(problem)
        rounding = 1e-12 * (problem.constant - problem.base)
        splits = [eigenvalue_split(form), blended_split(form, random_split(problem, rng), share=1e-3)]
        for split in splits:
            for z in (rng.random(problem.n), rng.integers(0, 2, problem.n).astype(float)):
                assert perspective_bound(form, z, split) <= best + rounding
        guess = rng.random(problem.n)
        beaten += perspective_bound(form, guess, 6.0 * splits[0]) > best + rounding
    assert beaten > 5  # with D above H it is no bound, and these instances show it


def test_splits_are_below_the_gram_and_reach_it() -> None:
    for seed in range(40):
        problem = posed(seed)
        form = normal_form(problem)
        labels = problem.groups.group_of_row
        wanted = random_split(problem, np.random.default_rng(seed))
        for split in (eigenvalue_split(form), blended_split(form, wanted, share=1e-6)):
            least = np.linalg.eigvalsh(form.gram - split)[0]
            assert -1e-12 <= least <= 1e-6
            assert np.linalg.eigvalsh(split)[0] > 0.0
            assert not np.any(split[labels[:, None] != labels[None, :]])


def test_a_split_of_a_matrix_next_to_singular_is_refused() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    gram = basis @ np.diag(np.geomspace(1e-15, 1.0, 8)) @ basis.T + 1e-16 * np.eye(8)
    problem = Problem((gram + gram.T) / 2.0, dense_weights=rng.normal(size=(8, 3)), keep=4)
    with pytest.raises(NotPositiveDefiniteError, match="use form='big_m'"):
        problem.to_cvxpy("perspective")


def test_most_is_the_largest_sum_or_the_value_of_the_linear_relaxation() -> None:
    for seed in range(60):
        problem = posed(seed)
        scores = np.random.default_rng(seed).exponential(size=problem.n)
        sums = [scores[support].sum() for support in supports_of(problem) if problem.feasible(support)]
        bound = most(problem, scores)
        assert bound >= max(sums) - 1e-12
        z = cvxpy.Variable(problem.n)
        limits = [problem.limits.usage @ z <= problem.limits.limit, z >= 0, z <= 1]
        forced = [z[g] == float(problem.always_keep[g]) for g in range(problem.n) if forced_group(problem, g)]
        relaxed = cvxpy.Problem(cvxpy.Maximize(scores @ z), [*limits, *forced]).solve(solver="CLARABEL")
        assert bound == pytest.approx(relaxed, rel=1e-6)


def forced_group(problem: Problem, group: int) -> bool:
    return bool(problem.always_keep[group] or problem.always_remove[group])


# ------------------------------------------------------------------------------------------------- the relaxations


@pytest.mark.parametrize("seed", range(30))
def test_relaxations_bound_the_optimum_from_below(seed: int) -> None:
    problem = posed(seed, n=5)
    best, unit = best_value_by_enumeration(problem), problem.constant - problem.base
    bounds, values = {}, {}
    for form, split in (("relaxation", "eigenvalue"), ("relaxation", "joint"), ("sdp", "auto")):
        model = cvxpy_model(problem, form, split=split)  # type: ignore[arg-type]
        run_backend(model.normalised(), "CLARABEL", options={"accept_unknown": True})
        bounds[form, split], values[form, split] = model.lower_bound(), model.problem.objective.value
        assert bounds[form, split] <= best + 1e-12 * unit
        assert problem.feasible(model.support())
        assert model.weights() == pytest.approx(refitted(problem, model.support()), abs=1e-7)
        assert bounds[form, split] == pytest.approx(values[form, split], abs=2e-3 * unit)
    # The best D is no worse than another; the same D gives the same bound in either form.
    assert bounds["sdp", "auto"] >= bounds["relaxation", "eigenvalue"] - 1e-4 * unit
    assert values["relaxation", "joint"] == pytest.approx(values["sdp", "auto"], abs=2e-3 * unit)


def test_the_best_split_closes_part_of_the_gap() -> None:
    problem = Problem.from_data(
        np.random.default_rng(1).normal(size=(40, 8)) @ np.tril(np.ones((8, 8))),
        np.random.default_rng(2).normal(size=(8, 3)),
        keep=4,
    )
    bounds = []
    for split in ("eigenvalue", "joint"):
        model = problem.to_cvxpy("relaxation", split=split)
        run_backend(model.normalised(), "CLARABEL")
        bounds.append(model.lower_bound())
    best = best_value_by_enumeration(problem)
    assert best - bounds[1] < 0.8 * (best - bounds[0])


def test_lower_bounds_do_not_depend_on_units() -> None:
    """What a user solves is in the units of the problem, and so are the multipliers that the bound is made of."""
    problem = posed(4)
    large = Problem(100.0 * problem.gram, 100.0 * problem.cross, groups=problem.groups, keep=problem.keep)
    bounds = []
    for this in (problem.with_limits(costs=None, budget=None), large):
        model = this.to_cvxpy("sdp")
        model.problem.solve(solver="CLARABEL")
        bounds.append(model.lower_bound())
    assert bounds[1] == pytest.approx(100.0 * bounds[0], rel=1e-3)


# -------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_modelled_is_refused_in_a_sentence() -> None:
    problem = posed(0)
    with pytest.raises(OptionError, match="form = 'bigm' must be one of 'perspective', 'big_m'"):
        problem.to_cvxpy("bigm")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="split = 'best' must be one of"):
        problem.to_cvxpy(split="best")
    with pytest.raises(InputError, match="is below"):
        problem.to_cvxpy("big_m", value=problem.base - 1.0)
    with pytest.raises(InputError, match="is below"):
        weight_bounds(problem, problem.base - 1.0)
    with pytest.raises(InputError, match="no groups"):
        Problem(np.zeros((0, 0)), np.zeros((0, 2)), keep=0).to_cvxpy()
    rng = np.random.default_rng(0)
    large = Problem.from_data(rng.normal(size=(300, 280)), rng.normal(size=(280, 270)), keep=9)
    with pytest.raises(CapabilityError, match="280 rows and 270 outputs is too large"):
        large.to_cvxpy("big_m")
    with pytest.raises(CapabilityError, match="is too large"):
        large.solve("cvxpy")  # and not the greedy incumbent under its name
    few = Problem.from_data(rng.normal(size=(300, 280)), np.ones((280, 270)), keep=9)
    assert few.to_cvxpy("big_m", value=few.constant).directions.shape == (270, 1)


def test_questions_that_a_model_cannot_answer() -> None:
    problem = posed(0)
    with pytest.raises(SolverError, match="no solution yet"):
        problem.to_cvxpy("relaxation").support()
    with pytest.raises(CapabilityError, match="use 'relaxation' or 'sdp'"):
        problem.to_cvxpy("big_m").lower_bound()
    with pytest.raises(CapabilityError, match="needs no allowance"):
        problem.to_cvxpy("relaxation").allowance(1e-6)
    model = problem.to_cvxpy("sdp")
    model.support_variable.value = np.full(problem.n, 0.5)
    with pytest.raises(SolverError, match="no multipliers"):
        model.lower_bound()
