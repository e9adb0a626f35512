"""Published rules that score groups or operate on them, against literal computations of their formulas from data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import osscar_opt
from osscar_opt import Problem, testing
from osscar_opt.errors import CapabilityError
from osscar_opt.instances import random_instance
from osscar_opt.instances.cutting import subproblem
from osscar_opt.solvers import solvers
from osscar_opt.solvers.base import Deadline, Report
from osscar_opt.solvers.published import _inputs
from osscar_opt.solvers.published.slimgpt import SlimGPT
from osscar_opt.solvers.published.ziplm import ZipLM

RULES = [info.name for info in solvers() if ".published." in info.source and not info.required_options]
PATHS = {"channel_lasso", "group_lasso"}  # they go down a path of penalties, and rank nothing
REFITTED = {"channel_lasso", "abess"}  # least squares is part of the published rule
NAMED = [name for name in RULES if name != "flap"]
KINDS: dict[str, tuple[list[int], int]] = {
    "single rows": (list(range(8)), 3),
    "groups of 3": ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], 4),
    "unequal groups": ([0, 1, 2, 0, 1, 3, 0, 4, 3, 5], 2),
    "more outputs than inputs": (list(range(6)), 11),
}
DAMPING = 0.02

Array = np.ndarray[Any, Any]


class Data:
    """Inputs X, weights W (p x q), the groups' rows, and what the formulas of the papers need."""

    def __init__(self, kind: str, seed: int = 0, level: float = 0.0) -> None:
        labels, q = KINDS[kind]
        rng, p = np.random.default_rng(seed), len(labels)
        self.inputs = rng.normal(size=(50, p)) @ rng.normal(size=(p, p)) + level * rng.normal(size=p)
        self.weights = rng.normal(size=(p, q)) * rng.lognormal(size=(p, 1))
        self.labels = labels
        self.n = max(labels) + 1
        self.rows = [[j for j, label in enumerate(labels) if label == g] for g in range(self.n)]
        second = self.inputs.T @ self.inputs / 50
        self.gram = second + DAMPING * np.mean(np.diag(second)) * np.eye(p)

    def problem(self, keep: int, **rest: Any) -> Problem:
        rest = {"provenance": {"damping": DAMPING}, **rest}
        return Problem.from_data(
            self.inputs, self.weights, damping=DAMPING, groups=self.labels, keep=keep, **rest
        )


def kept_of(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda g: -scores[g])[:keep])


def masked(data: Data, kept: list[int]) -> Array:
    weights = np.zeros_like(data.weights)
    for g in kept:
        weights[data.rows[g]] = data.weights[data.rows[g]]
    return weights


kinds = pytest.mark.parametrize("kind", KINDS)


# ------------------------------------------------------------------------------------------------ scores


@kinds
def test_wanda_sums_weight_times_input_norm(kind: str) -> None:
    data = Data(kind)
    scores = []
    for rows in data.rows:
        score = 0.0
        for j in rows:
            norm = np.sqrt(sum(x**2 for x in data.inputs[:, j]))
            for i in range(data.weights.shape[1]):
                score += abs(data.weights[j, i]) * norm
        scores.append(score)
    for keep in range(data.n + 1):
        solution = data.problem(keep).solve("wanda")
        assert solution.kept.tolist() == kept_of(scores, keep)
        np.testing.assert_array_equal(solution.weights, masked(data, kept_of(scores, keep)))


@kinds
def test_activation_is_the_norm_of_the_inputs(kind: str) -> None:
    data = Data(kind)
    scores = [np.linalg.norm(data.inputs[:, rows]) for rows in data.rows]
    for keep in range(data.n + 1):
        solution = data.problem(keep).solve("activation")
        assert solution.kept.tolist() == kept_of(scores, keep)
        np.testing.assert_array_equal(solution.weights, masked(data, kept_of(scores, keep)))


@kinds
def test_flap_weighs_fluctuations_and_moves_the_means_into_the_bias(kind: str) -> None:
    data = Data(kind, level=3.0)
    samples = len(data.inputs)
    mean = [sum(data.inputs[:, j]) / samples for j in range(len(data.labels))]
    scores = []
    for rows in data.rows:
        score = 0.0
        for j in rows:
            fluctuation = sum((x - mean[j]) ** 2 for x in data.inputs[:, j]) / (samples - 1)
            score += fluctuation * sum(w**2 for w in data.weights[j])
        scores.append(score)
    keep = data.n // 2
    solution = data.problem(keep, intercept=True).solve("flap")
    kept = kept_of(scores, keep)
    assert solution.kept.tolist() == kept
    np.testing.assert_array_equal(solution.weights, masked(data, kept))
    bias = np.zeros(data.weights.shape[1])  # W ((1 - M) . mean), the dense layer having none
    for j, label in enumerate(data.labels):
        if label not in kept:
            bias += mean[j] * data.weights[j]
    np.testing.assert_allclose(solution.intercept, bias, rtol=1e-12, atol=1e-12)


@kinds
@pytest.mark.parametrize("powers", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("relative_to", ["channel", "output"])
def test_cfsp_is_relative_weight_times_activation_norm(
    kind: str, powers: tuple[float, float], relative_to: str
) -> None:
    data = Data(kind)
    p, q = data.weights.shape
    b, c = powers
    norm = [np.linalg.norm(data.inputs[:, j]) / np.sqrt(50) for j in range(p)]
    under = [[abs(data.weights[j, i]) * norm[j] ** b for i in range(q)] for j in range(p)]
    scores = []
    for rows in data.rows:
        score = 0.0
        for j in rows:
            for i in range(q):
                total = sum(under[j]) if relative_to == "channel" else sum(under[k][i] for k in range(p))
                score += under[j][i] / total * norm[j] ** c / q
        scores.append(score)
    problem = data.problem(data.n // 2)
    solution = problem.solve("cfsp", relative_to=relative_to, inner_power=b, outer_power=c)
    assert solution.kept.tolist() == kept_of(scores, data.n // 2)


@kinds
@pytest.mark.parametrize("saliency", ["cholesky", "inverse"])
def test_sparsegpt_is_algorithm_1_with_one_block(kind: str, saliency: str) -> None:
    data = Data(kind)
    inverse = np.linalg.inv(data.gram)
    upper = np.linalg.cholesky(inverse).T
    divisor = np.diag(upper) ** 2 if saliency == "cholesky" else np.diag(inverse)
    scores = [sum(np.sum(data.weights[j] ** 2) / divisor[j] for j in rows) for rows in data.rows]
    keep = data.n // 2
    kept = kept_of(scores, keep)
    weights = data.weights.T.copy()  # outputs by inputs, as in the paper
    for j, label in enumerate(data.labels):
        if label not in kept:
            error = weights[:, j] / upper[j, j]
            weights[:, j:] -= np.outer(error, upper[j, j:])
            weights[:, j] = 0.0
    solution = data.problem(keep).solve("sparsegpt", saliency=saliency)
    assert solution.kept.tolist() == kept
    np.testing.assert_allclose(solution.weights, weights.T, rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------ optimal brain surgery


def literal_ziplm(data: Data, keep: int) -> tuple[list[int], Array]:
    """Algorithm 1, outputs by inputs, with the inverse of everything at hand."""
    weights, inverse = data.weights.T.copy(), np.linalg.inv(data.gram)
    left, removed = list(range(data.n)), []
    while len(left) > keep:
        costs = {}
        for g in left:
            m = data.rows[g]
            middle = np.linalg.inv(inverse[np.ix_(m, m)])
            costs[g] = sum(weights[i, m] @ middle @ weights[i, m] for i in range(len(weights)))
        g = min(left, key=lambda g: costs[g])
        m = data.rows[g]
        middle = np.linalg.inv(inverse[np.ix_(m, m)])
        weights = weights - weights[:, m] @ middle @ inverse[m, :]
        inverse = inverse - inverse[:, m] @ middle @ inverse[m, :]
        weights[:, m] = 0.0
        left.remove(g)
        removed.append(g)
    return removed, weights.T


def literal_slimgpt(data: Data, keep: int, sizes: list[int] | None = None) -> tuple[list[int], Array]:
    """Rounds of head errors, and columns taken out one after the other."""
    weights, inverse = data.weights.T.copy(), np.linalg.inv(data.gram)
    left, removed = list(range(data.n)), []
    while len(left) > keep:
        errors = {}
        for g in left:
            m = data.rows[g]
            pivots = np.diag(np.linalg.cholesky(inverse[np.ix_(m, m)]))
            errors[g] = sum(
                weights[i, j] ** 2 / d**2 for i in range(len(weights)) for j, d in zip(m, pivots, strict=True)
            )
        count = sizes.pop(0) if sizes else 1
        for g in sorted(left, key=lambda g: errors[g])[:count]:
            for j in data.rows[g]:
                weights = weights - np.outer(weights[:, j] / inverse[j, j], inverse[j])
                inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
                inverse[j, j] = 1.0  # nothing looks at it again
            left.remove(g)
            removed.append(g)
    for g in removed:
        weights[:, data.rows[g]] = 0.0
    return removed, weights.T


@kinds
def test_ziplm_is_its_algorithm_1(kind: str) -> None:
    data = Data(kind)
    for keep in (1, data.n // 2, data.n - 1):
        removed, weights = literal_ziplm(data, keep)
        solution = data.problem(keep).solve("ziplm")
        assert sorted(removed) == np.flatnonzero(~solution.support).tolist()
        np.testing.assert_allclose(solution.weights, weights, rtol=1e-7, atol=1e-9)
    order = data.problem(1).path("ziplm").order
    assert order[: data.n - 1].tolist() == literal_ziplm(data, 1)[0]


@kinds
def test_slimgpt_is_rounds_of_head_errors(kind: str) -> None:
    data = Data(kind)
    keep = data.n // 2
    removed, weights = literal_slimgpt(data, keep)
    solution = data.problem(keep).solve("slimgpt", fewest=1, most=1)
    assert sorted(removed) == np.flatnonzero(~solution.support).tolist()
    np.testing.assert_allclose(solution.weights, weights, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("fewest", "most", "sizes"), [(2, 2, [2, 2]), (3, 9, [3, 1]), (64, 1024, [4])])
def test_slimgpt_takes_single_rows_in_batches(fewest: int, most: int, sizes: list[int]) -> None:
    data = Data("single rows")
    removed, weights = literal_slimgpt(data, 4, list(sizes))
    solution = data.problem(4).solve("slimgpt", fewest=fewest, most=most)
    assert sorted(removed) == np.flatnonzero(~solution.support).tolist()
    assert solution.stats["rounds"] == len(sizes)
    np.testing.assert_allclose(solution.weights, weights, rtol=1e-7, atol=1e-9)


def test_slimgpts_batches_shrink_as_in_the_published_code() -> None:
    from osscar_opt.solvers.published.slimgpt import _Rule

    rule, due, batches = _Rule(Problem(np.eye(1), [[1.0]]), 64, 1024), 4000, []
    while due:
        batches.append(rule.batch(due))
        due -= batches[-1]
    # (4000 - 512) // 2 = 1744, then 616, 52, and below
    assert batches == [1024, 616, *[64] * 36, 56]


# ------------------------------------------------------------------------------------------------ what the papers say


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_ziplm_chooses_as_greedy_does_and_needs_no_refit(kind: str, seed: int) -> None:
    data = Data(kind, seed)
    for keep in range(data.n + 1):
        problem = data.problem(keep)
        ziplm, greedy = problem.solve("ziplm"), problem.solve("greedy")
        assert ziplm.kept.tolist() == greedy.kept.tolist()
        np.testing.assert_allclose(ziplm.weights, greedy.weights, rtol=1e-7, atol=1e-8)


def test_ziplm_goes_on_approximating_the_dense_layer_where_targets_are_others() -> None:
    data = Data("groups of 3")
    targets = data.inputs @ data.weights + np.random.default_rng(1).normal(size=(50, 4))
    problem, own = data.problem(2, targets=targets), data.problem(2)
    ziplm = problem.solve("ziplm")
    np.testing.assert_allclose(ziplm.weights, own.refit(ziplm.support), rtol=1e-7, atol=1e-9)
    assert ziplm.kept.tolist() == own.solve("greedy").kept.tolist()
    assert problem.solve("ziplm", refit=True).objective < ziplm.objective


def test_slimgpt_one_row_at_a_time_is_ziplm() -> None:
    data = Data("single rows", 4)
    for keep in range(data.n + 1):
        slimgpt = data.problem(keep).solve("slimgpt", fewest=1, most=1)
        ziplm = data.problem(keep).solve("ziplm")
        assert slimgpt.kept.tolist() == ziplm.kept.tolist()
        np.testing.assert_allclose(slimgpt.weights, ziplm.weights, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", ["wanda", "flap", "sparsegpt"])
def test_one_output_and_uncorrelated_centred_inputs_make_these_one_rule(method: str) -> None:
    # |w|^2 H_jj for all: Wanda is the diagonal case of SparseGPT (Sun et al. 2024, section 3), and there it is optimal
    rng = np.random.default_rng(5)
    problem = Problem(
        np.diag(rng.lognormal(size=9)),
        dense_weights=rng.normal(size=(9, 1)),
        keep=4,
        input_mean=np.zeros(9),
        target_mean=np.zeros(1),
    )
    solution = problem.solve(method)
    assert solution.kept.tolist() == problem.solve("exhaustive").kept.tolist()
    assert solution.objective == pytest.approx(problem.solve("exhaustive").objective, rel=1e-12)


def test_flaps_score_is_twice_the_loss_where_inputs_are_uncorrelated() -> None:
    rng = np.random.default_rng(6)
    inputs = np.linalg.qr(rng.normal(size=(40, 7)) - 0.0)[0]
    inputs = (inputs - inputs.mean(axis=0)) @ np.diag(rng.lognormal(size=7))
    inputs = np.linalg.qr(inputs)[0] * rng.lognormal(size=7) + rng.normal(
        size=7
    )  # columns still sum to a constant
    problem = Problem.from_data(inputs, rng.normal(size=(7, 3)), damping=0.0, intercept=True, keep=3)
    solution = problem.solve("flap")
    assert solution.kept.tolist() == problem.solve("exhaustive").kept.tolist()
    assert solution.objective == pytest.approx(problem.solve("exhaustive").objective, rel=1e-9)


def test_flap_keeps_the_mean_of_the_outputs() -> None:
    data = Data("groups of 3", level=4.0)
    solution = data.problem(2, intercept=True).solve("flap")
    outputs = data.inputs @ solution.weights + solution.intercept
    np.testing.assert_allclose(outputs.mean(axis=0), (data.inputs @ data.weights).mean(axis=0), rtol=1e-9)


def test_flap_says_how_to_pose_a_problem_it_can_solve() -> None:
    with pytest.raises(CapabilityError, match="intercept=True"):
        Data("single rows").problem(3).solve("flap")


def test_wanda_does_not_mind_the_units_of_inputs_and_magnitude_does() -> None:
    data = Data("single rows", 2)
    before = data.problem(4).solve("wanda").kept.tolist()
    scale = np.geomspace(1e-2, 1e2, 8)
    data.inputs, data.weights = data.inputs * scale, data.weights / scale[:, None]
    assert data.problem(4).solve("wanda").kept.tolist() == before
    assert data.problem(4).solve("magnitude").kept.tolist() != before


def test_cfsp_as_published_ranks_by_the_activation_norm_whatever_the_weights() -> None:
    data = Data("single rows", 3)
    for keep in range(9):
        problem = data.problem(keep)
        assert problem.solve("cfsp").kept.tolist() == problem.solve("activation").kept.tolist()


def test_sparsegpt_changes_nothing_left_of_the_first_removed_row() -> None:
    data = Data("single rows", 1)
    problem = data.problem(5, always_keep=[0, 1, 2])
    solution = problem.solve("sparsegpt")
    first = int(np.flatnonzero(~solution.support)[0])
    np.testing.assert_allclose(solution.weights[:first], data.weights[:first], rtol=1e-12)
    leading = data.problem(5, always_remove=[0, 1, 2]).solve(
        "sparsegpt"
    )  # nothing is frozen: optimal brain surgery
    np.testing.assert_allclose(leading.weights, leading.problem.refit(leading.support), rtol=1e-8, atol=1e-10)


def test_magnitude_refit_is_magnitudes_support_with_least_squares() -> None:
    data = Data("unequal groups")
    problem = data.problem(3)
    plain, refitted = problem.solve("magnitude"), problem.solve("magnitude_refit")
    assert plain.kept.tolist() == refitted.kept.tolist()
    rows = [j for g in plain.kept for j in data.rows[g]]
    ridge = data.gram - data.inputs.T @ data.inputs / 50
    stacked = np.vstack([data.inputs, np.sqrt(50 * ridge.clip(0.0))])
    fit = np.linalg.lstsq(stacked[:, rows], stacked @ data.weights, rcond=None)[0]
    np.testing.assert_allclose(refitted.weights[rows], fit, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------------ the ridge


def test_the_ridge_is_taken_off_where_provenance_tells() -> None:
    data = Data("single rows", 1, level=2.0)
    known, unknown = data.problem(4), data.problem(4, provenance={})
    second = np.mean(data.inputs**2, axis=0)
    np.testing.assert_allclose(_inputs.input_energy(known), second, rtol=1e-12)
    np.testing.assert_array_equal(_inputs.input_energy(unknown), unknown.gram.diagonal())
    centred = data.problem(4, intercept=True)
    np.testing.assert_allclose(_inputs.input_variance(centred), data.inputs.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(_inputs.input_energy(centred), second, rtol=1e-12)
    cut = subproblem(known, [1, 4, 6], keep=2)
    assert _inputs.ridge_in_gram(cut) == 0.0
    told = Problem(cut.gram, cut.cross, provenance={**cut.provenance, "ridge": 0.25})
    assert _inputs.ridge_in_gram(told) == 0.25
    assert (
        _inputs.ridge_in_gram(Problem(np.diag([1e-6, 1.0]), np.ones((2, 1)), provenance={"damping": 1})) == 0
    )
    assert _inputs.ridge_in_gram(data.problem(4, provenance={"damping": "much"})) == 0.0


# ------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize("refit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rules_keep_the_contract(method: str, refit: bool) -> None:
    testing.check_solver(method, options={"refit": refit})


@pytest.mark.parametrize("refit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_flap_keeps_the_contract_on_problems_with_means(refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = testing.battery

    def with_means(seed: int = 0) -> Any:
        for case in plain(seed):
            means = {"input_mean": np.ones(case.problem.p), "target_mean": np.ones(case.problem.q)}
            yield dataclasses.replace(case, problem=Problem._trusted(**{**case.problem._state(), **means}))

    monkeypatch.setattr(testing, "battery", with_means)
    testing.check_solver("flap", options={"refit": refit})


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("kind", ["single rows", "unequal groups"])
def test_refit_keeps_the_support_and_makes_the_weights_the_best(method: str, kind: str) -> None:
    problem = Data(kind, 7, level=1.0).problem(3, intercept=True)
    published, refitted = problem.solve(method), problem.solve(method, refit=True)
    assert published.kept.tolist() == refitted.kept.tolist()
    assert len(published.kept) == 3
    np.testing.assert_allclose(refitted.weights, problem.refit(published.support), rtol=1e-12, atol=1e-14)
    assert refitted.objective <= published.objective * (1 + 1e-9)
    if method in REFITTED:
        np.testing.assert_array_equal(published.weights, refitted.weights)
    assert not np.any(published.weights[~problem.groups.row_mask(published.support)])


@pytest.mark.parametrize("method", [name for name in RULES if name not in (*PATHS, "abess")])
def test_orders_of_removal_are_those_of_the_rule(method: str) -> None:
    problem = Data("unequal groups", 3, level=1.0).problem(3, intercept=True)
    path = problem.path(method, **({"fewest": 1} if method == "slimgpt" else {}))
    assert sorted(path.order.tolist()) == list(range(problem.n))
    assert path.support(3).tolist() == problem.solve(method).support.tolist()


@pytest.mark.parametrize("family", ["knapsack", "blocks", "forced"])
@pytest.mark.parametrize("method", RULES)
def test_every_limit_is_met(method: str, family: str) -> None:
    if method == "flap":
        pytest.skip("needs means; its ranking is that of the others")
    problem = random_instance(2, family, n=9, q=3)
    assert problem.feasible(problem.solve(method).support)


@pytest.mark.parametrize("solver", [ZipLM(), SlimGPT()])
def test_without_time_the_rest_goes_at_once_with_one_update(solver: Any) -> None:
    problem = Data("groups of 3").problem(2)
    proposal = solver.propose(problem, start=None, deadline=Deadline.after(0.0), report=Report())
    assert proposal.support.sum() == 2
    assert proposal.termination == "time_limit"
    np.testing.assert_allclose(proposal.weights, problem.refit(proposal.support), rtol=1e-8, atol=1e-10)


def test_an_inverse_that_rounding_spoils_is_made_anew() -> None:
    rng = np.random.default_rng(0)
    twins = np.repeat(rng.standard_normal((60, 6)), 4, axis=1)
    twins += 1e-7 * rng.standard_normal(twins.shape)
    problem = Problem.from_data(twins, rng.normal(size=(24, 3)), damping=1e-13, groups=2, keep=6)
    for method in ("ziplm", "slimgpt"):
        solution = problem.solve(method)
        assert np.isfinite(solution.objective)
        assert solution.objective < 0.5 * problem.constant


def test_the_table_of_methods_names_the_rules() -> None:
    assert RULES == [
        "wanda",
        "activation",
        "flap",
        "cfsp",
        "ziplm",
        "slimgpt",
        "sparsegpt",
        "thinet",
        "channel_lasso",
        "group_lasso",
        "abess",
    ]
    assert "abess" not in str(osscar_opt.solvers()["abess"].why_not), "the package of that name is not needed"
