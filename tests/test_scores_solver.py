"""Methods that are handed what they rank by: "scores", and "udfc" against a literal computation of its closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osscar_opt import Problem, testing
from osscar_opt.errors import InputError, OptionError, OsscarError
from osscar_opt.formulations.per_problem import PerProblem
from osscar_opt.instances import load_solution
from osscar_opt.solvers import get_solver, solvers
from osscar_opt.solvers.published.udfc import Udfc
from osscar_opt.solvers.registry import methods_handling
from osscar_opt.solvers.scores import Scores

KINDS: dict[str, tuple[list[int], int]] = {
    "single rows": (list(range(8)), 3),
    "groups of 3": ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], 4),
    "interleaved": ([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], 5),
    "shuffled": ([2, 0, 1, 1, 3, 2, 0, 3], 3),
    "more outputs than inputs": (list(range(6)), 11),
}
UNEQUAL = ([0, 1, 2, 0, 1, 3, 0, 4, 3, 5], 2)

Array = np.ndarray[Any, Any]
kinds = pytest.mark.parametrize("kind", KINDS)


class Data:
    """Inputs, dense weights (p x q) and labels of the rows."""

    def __init__(self, labels: list[int], q: int, seed: int = 0) -> None:
        rng, p = np.random.default_rng(seed), len(labels)
        assert p != q
        self.inputs = rng.normal(size=(40, p)) @ (rng.normal(size=(p, p)) + np.eye(p))
        self.weights = rng.normal(size=(p, q))
        self.labels, self.n = labels, max(labels) + 1
        self.rows = [[j for j, label in enumerate(labels) if label == g] for g in range(self.n)]

    def problem(self, **rest: Any) -> Problem:
        return Problem.from_data(self.inputs, self.weights, damping=0.02, groups=self.labels, **rest)

    def masked(self, kept: list[int]) -> Array:
        weights = np.zeros_like(self.weights)
        for g in kept:
            weights[self.rows[g]] = self.weights[self.rows[g]]
        return weights


def data_of(kind: str, seed: int = 0) -> Data:
    return Data(*KINDS[kind], seed)


def small(**rest: Any) -> Problem:
    """Three inputs, one output: whatever is kept by its weight is 1, by scores below something else."""
    return Problem(np.eye(3) + 0.5, dense_weights=[[1.0], [3.0], [2.0]], **{"keep": 1, "name": "fc"} | rest)


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, which is one sentence."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------------ scores: the rule


@kinds
@pytest.mark.parametrize("refit", [False, True])
def test_scores_keep_the_largest_and_leave_or_refit_the_weights(kind: str, refit: bool) -> None:
    data = data_of(kind)
    scores = np.random.default_rng(7).normal(size=data.n)
    gram = data.problem().gram
    for keep in range(data.n + 1):
        solution = data.problem(keep=keep).solve("scores", scores=scores, refit=refit)
        kept = sorted(sorted(range(data.n), key=lambda g: -scores[g])[:keep])
        assert solution.kept.tolist() == kept
        expected = data.masked(kept)
        rows = [j for g in kept for j in data.rows[g]]
        if refit and rows:
            gone = [j for j in range(len(data.labels)) if j not in rows]
            pull = gram[np.ix_(rows, gone)] @ data.weights[gone]
            expected[rows] += np.linalg.solve(gram[np.ix_(rows, rows)], pull)
        np.testing.assert_allclose(solution.weights, expected, rtol=1e-8, atol=1e-10)


def test_a_tie_is_the_first_group_s() -> None:
    assert small(keep=2).solve("scores", scores=[1.0, 1.0, 1.0]).kept.tolist() == [0, 1]


def test_negative_scores_rank_as_all_others_do() -> None:
    assert small(keep=2).solve("scores", scores=[-1.0, -3.0, -2.0]).kept.tolist() == [0, 2]


@pytest.mark.parametrize("refit", [False, True])
def test_unequal_groups_and_scores_on_groups_not_rows(refit: bool) -> None:
    data = Data(*UNEQUAL)
    scores = [3.0, 1.0, 6.0, 2.0, 5.0, 4.0]
    solution = data.problem(keep=3).solve("scores", scores=scores, refit=refit)
    assert solution.kept.tolist() == [2, 4, 5]


@pytest.mark.parametrize("refit", [False, True])
def test_budgets_blocks_and_forced_groups_are_respected(refit: bool) -> None:
    data = Data(list(range(6)), 3)
    scores = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]

    def kept(**limits: Any) -> list[int]:
        problem = data.problem(**limits)
        solution = problem.solve("scores", scores=scores, refit=refit)
        assert problem.feasible(solution.support)
        return list(solution.kept)

    # in order of decreasing score, each group that still fits
    assert kept(costs=[4.0, 3.0, 4.0, 1.0, 1.0, 2.0], budget=6.0) == [0, 3, 4]
    assert kept(costs=[4.0, 3.0, 4.0, 1.0, 1.0, 2.0], budget=6.0, keep=2) == [0, 3]
    assert kept(blocks=[0, 0, 0, 1, 1, 1], block_keep=[1, 2]) == [0, 3, 4]
    assert kept(keep=2, always_keep=[5]) == [0, 5]
    assert kept(keep=2, always_remove=[0]) == [1, 2]
    assert kept(keep=3, always_keep=[4], always_remove=[0, 1]) == [2, 3, 4]


def test_a_path_removes_the_groups_of_least_score_first() -> None:
    data = Data(list(range(6)), 3)
    scores = np.array([3.0, 1.0, 6.0, 2.0, 5.0, 4.0])
    problem = data.problem()
    path = problem.path("scores", scores=scores)
    for keep in range(7):
        kept = sorted(np.argsort(-scores)[:keep].tolist())
        assert path.support(keep).nonzero()[0].tolist() == kept


# ------------------------------------------------------------------------------------------------ scores: how given


def test_the_same_scores_however_they_are_given(tmp_path: Path) -> None:
    scores = np.array([0.1, 0.2, 0.7])
    np.save(tmp_path / "scores.npy", scores)
    ways: list[Any] = [
        scores,
        scores.tolist(),
        tuple(scores.tolist()),
        scores.astype(np.float32),
        {"fc": scores},
        {"other": [1.0, 2.0], "fc": scores},
        {"": scores},
        PerProblem({"fc": scores}, rule="mine"),
        lambda problem: scores,
        lambda problem: {"fc": scores}[problem.name],
        tmp_path / "scores.npy",
        str(tmp_path / "scores.npy"),
    ]
    for way in ways:
        assert small().solve("scores", scores=way).kept.tolist() == [2]
        assert small().solve(Scores(scores=way)).kept.tolist() == [2]
    assert small().solve("magnitude").kept.tolist() == [1]  # so it is not the weights that decided


def test_a_name_of_its_own_goes_before_the_one_for_all() -> None:
    scores = {"": [1.0, 0.0, 0.0], "fc": [0.0, 0.0, 1.0]}
    assert small().solve("scores", scores=scores).kept.tolist() == [2]
    assert small(name="another").solve("scores", scores=scores).kept.tolist() == [0]
    assert small(name="").solve("scores", scores=scores).kept.tolist() == [0]


def test_a_function_is_handed_the_problem_itself() -> None:
    problem, seen = small(), []

    def scores(given: Problem) -> Array:
        seen.append(given)
        return -given.dense_weights.sum(axis=1)

    assert problem.solve("scores", scores=scores).kept.tolist() == [0]
    assert seen
    assert all(given.name == "fc" and given.n == 3 for given in seen)


def test_integers_and_a_float32_file_are_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.array([1, 5, 9], dtype=np.int16))
    assert small().solve("scores", scores=tmp_path / "whole.npy").kept.tolist() == [2]
    assert small().solve("scores", scores=[9, 5, 1]).kept.tolist() == [0]


def test_a_last_group_that_always_stays_needs_no_score() -> None:
    problem = small(keep=2, always_keep=[2])
    assert problem.solve("scores", scores=[0.1, 0.2]).kept.tolist() == [1, 2]
    assert problem.solve("scores", scores=[0.1, 0.2, -5.0]).kept.tolist() == [1, 2]
    for other in ({"keep": 2}, {"keep": 2, "always_keep": [0]}):
        with pytest.raises(
            OptionError, match=r"one number for each of the 3 groups of fc, but has shape \(2,\)"
        ):
            small(**other).solve("scores", scores=[0.1, 0.2])
    with pytest.raises(OptionError, match=r"has shape \(1,\)"):
        problem.solve("scores", scores=[0.1])


# ------------------------------------------------------------------------------------------------ scores: bad input


@pytest.mark.parametrize("method", ["scores", "udfc"])
def test_what_is_needed_must_be_given(method: str) -> None:
    option = {"scores": "scores", "udfc": "filters"}[method]
    for make in (
        lambda: get_solver(method),
        lambda: small().solve(method),
        {"scores": Scores, "udfc": Udfc}[method],
    ):
        with pytest.raises(OptionError) as error:
            make()
        assert sentence(error) == f"method '{method}' needs {option}=: see its docstring for what it holds."


@pytest.mark.parametrize(
    ("scores", "shape"),
    [
        ([1.0, 2.0], "(2,)"),
        ([1.0, 2.0, 3.0, 4.0], "(4,)"),
        ([], "(0,)"),
        (3.0, "()"),
        ([[1.0, 2.0, 3.0]], "(1, 3)"),
        ([[1.0], [2.0], [3.0]], "(3, 1)"),
    ],
)
def test_one_number_for_each_group(scores: Any, shape: str) -> None:
    for way in (scores, {"fc": scores}, lambda problem: scores):
        with pytest.raises(OptionError) as error:
            small().solve("scores", scores=way)
        assert sentence(error) == (
            f"option 'scores' must hold one number for each of the 3 groups of fc, but has shape {shape}."
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float, tmp_path: Path) -> None:
    scores = [1.0, bad, 2.0]
    np.save(tmp_path / "bad.npy", np.array(scores))
    for way in (scores, {"fc": scores}, PerProblem, lambda problem: scores, tmp_path / "bad.npy"):
        with pytest.raises((InputError, OptionError), match="holds NaN or infinity") as error:
            small().solve("scores", scores=way({"fc": scores}) if way is PerProblem else way)
        sentence(error)


@pytest.mark.parametrize("name", ["fc", ""])
def test_a_mapping_without_the_problem_s_name(name: str) -> None:
    with pytest.raises(OptionError) as error:
        small(name=name).solve("scores", scores={"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]})
    assert sentence(error) == (
        f"option 'scores' has nothing for the problem named {name!r}, only for a, b, c, ...: name the problem as its "
        "site is named."
    )
    with pytest.raises(OptionError, match="only for a, b, c: name"):
        small(name=name).solve("scores", scores={"a": [1.0], "b": [2.0], "c": [3.0]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    pickled, text, archive = tmp_path / "pickled.npy", tmp_path / "text.npy", tmp_path / "many.npz"
    np.save(pickled, np.array([Evil(), 1.0, 2.0], dtype=object), allow_pickle=True)
    text.write_text("1 2 3\n4 5 6\n")
    np.savez(archive, scores=np.arange(3.0))
    for path in (pickled, text, archive, tmp_path / "missing.npy", tmp_path):
        with pytest.raises(OptionError, match="could not be read from") as error:
            small().solve("scores", scores=path)
        assert str(path) in sentence(error)
    assert not touched.exists()


@pytest.mark.parametrize(
    "scores", [["a", "b", "c"], object(), [[1.0], [2.0, 3.0]], [1.0, None, object()], 1j]
)
def test_what_are_no_numbers(scores: Any) -> None:
    with pytest.raises(OptionError, match="option 'scores' must be numbers, a mapping") as error:
        small().solve("scores", scores=scores)
    sentence(error)


@pytest.mark.parametrize("scores", [["a", "b", "c"], object(), [[1.0], [2.0, 3.0]]])
def test_a_mapping_to_what_are_no_numbers(scores: Any) -> None:
    """Errors that users cause are the library's own, whichever way the scores come."""
    with pytest.raises(OsscarError) as error:
        small().solve("scores", scores={"fc": scores})
    sentence(error)


# ------------------------------------------------------------------------------------------------ PerProblem


def test_a_table_is_a_read_only_mapping_of_its_own_arrays() -> None:
    given = np.array([1.0, 3.0])
    table = PerProblem({"fc1": given, "fc2": [2]}, rule="taylor")
    given[0] = 9.0
    assert table["fc1"].tolist() == [1.0, 3.0]
    assert table["fc2"].dtype == np.float64
    assert (len(table), list(table), "fc1" in table, "x" in table) == (2, ["fc1", "fc2"], True, False)
    assert {key: value.tolist() for key, value in dict(table).items()} == {"fc1": [1.0, 3.0], "fc2": [2.0]}
    with pytest.raises(ValueError, match="read-only"):
        table["fc1"][0] = 0.0
    with pytest.raises(KeyError):
        table["x"]


def test_a_digest_tells_names_numbers_and_shapes_apart_and_not_their_order() -> None:
    base = {"a": [1.0, 2.0], "b": [3.0]}
    digest = PerProblem(base).digest
    assert digest == PerProblem({"b": [3], "a": np.array([1, 2])}, rule="another").digest
    different = [
        {"a": [1.0, 2.0], "b": [3.0000001]},
        {"a": [1.0, 2.0], "c": [3.0]},
        {"a": [1.0, 2.0]},
        {"a": [3.0], "b": [1.0, 2.0]},
        {"a": [1.0], "b": [2.0, 3.0]},
        {"a": [[1.0, 2.0]], "b": [3.0]},
        {"a": [[1.0], [2.0]], "b": [3.0]},
    ]
    digests = {digest, *(PerProblem(arrays).digest for arrays in different)}
    assert len(digests) == 1 + len(different)


def test_a_repr_names_the_rule_and_the_numbers_but_is_short() -> None:
    many = PerProblem({f"layer.{i}": np.arange(1000.0) for i in range(50)}, rule="chip")
    assert repr(many) == f"PerProblem('chip', 50 arrays, {many.digest[:8]})"
    one = PerProblem({"": [1.0]})
    assert repr(one) == f"PerProblem(1 array, {one.digest[:8]})"
    assert repr(Scores(scores=[1.0])) == f"Scores(refit=False, scores={one!r})"


# ------------------------------------------------------------------------------------------------ both as methods


def backwards(problem: Problem) -> Array:
    return np.arange(problem.n, dtype=float)[::-1]


def some_filters(problem: Problem) -> Array:
    """Inner products of filters of fewer entries than there are channels: some are combinations of others."""
    filters = np.random.default_rng(5).normal(size=(problem.n, 4))
    return filters @ filters.T


@pytest.mark.parametrize("refit", [False, True])
def test_scores_pass_the_conformance_kit(refit: bool) -> None:
    testing.check_solver(Scores(scores=backwards, refit=refit))


@pytest.mark.parametrize("refit", [False, True])
def test_udfc_passes_the_conformance_kit(refit: bool) -> None:
    testing.check_solver(Udfc(filters=some_filters, refit=refit))


def test_the_conformance_kit_takes_what_is_needed_as_options_too() -> None:
    testing.check_solver("scores", options={"scores": backwards})


def test_the_table_of_methods_says_what_is_needed() -> None:
    assert solvers()["scores"].required_options == ("scores",)
    assert solvers()["udfc"].required_options == ("filters",)
    assert [info.name for info in solvers() if info.required_options] == ["scores", "udfc"]
    for features in ((), ("budget",), ("blocks", "forced")):
        fitting = methods_handling(features)
        assert "magnitude" in fitting
        assert not {"scores", "udfc"} & set(fitting)
    assert "scores=None" in str(solvers())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("scores", {"scores": [3.0, 1.0, 2.0]}),
        ("scores", {"scores": PerProblem({"fc": [3.0, 1.0, 2.0]}, rule="taylor"), "refit": True}),
        ("scores", {"scores": backwards}),
        ("udfc", {"filters": np.eye(3) * [3.0, 1.0, 2.0] + 0.5}),
    ],
)
def test_a_solution_is_saved_and_loaded(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    problem = small()
    solution = problem.solve(method, **options)
    assert solution.kept.tolist() == [0]
    solution.save(tmp_path / "solution")
    loaded = load_solution(tmp_path / "solution", problem)
    assert (loaded.method, loaded.kept.tolist(), loaded.objective) == (method, [0], solution.objective)
    np.testing.assert_array_equal(loaded.weights, solution.weights)
    told = json.loads(json.dumps(solution.to_dict(), allow_nan=False))["options"]
    table = solution.options.get("scores")
    if isinstance(table, PerProblem):
        assert told["scores"] == repr(table)  # short, and another one for other numbers


# ------------------------------------------------------------------------------------------------ UDFC


def literal_udfc(data: Data, filters: Array, kept: list[int], ridge: float) -> Array:
    """s = (Gamma_KK + lambda I)^-1 Gamma_KR column by column, W_j += sum_m s_jm W_m row by row."""
    count = len(filters)
    gram = np.array([[filters[i] @ filters[j] for j in range(count)] for i in range(count)])
    damping = ridge * sum(gram[i, i] for i in range(count)) / count
    weights = data.masked(kept)
    for m in range(data.n):
        if m in kept:
            continue
        # the ridge regression of one filter on the kept ones, by augmented least squares
        system = np.vstack([filters[kept].T, np.sqrt(damping) * np.eye(len(kept))])
        target = np.concatenate([filters[m], np.zeros(len(kept))])
        shares = np.linalg.lstsq(system, target, rcond=None)[0]
        for j, share in zip(kept, shares, strict=True):
            for position in range(len(data.rows[j])):
                for output in range(data.weights.shape[1]):
                    removed = data.weights[data.rows[m][position], output]
                    weights[data.rows[j][position], output] += share * removed
    return weights


@kinds
@pytest.mark.parametrize("ridge", [0.0, 1e-2, 0.3])
def test_udfc_is_its_closed_form(kind: str, ridge: float) -> None:
    data = data_of(kind, 2)
    filters = np.random.default_rng(9).normal(size=(data.n, data.n + 3))
    lengths = [np.sqrt(sum(x**2 for x in row)) for row in filters]
    for keep in range(1, data.n + 1):
        solution = data.problem(keep=keep).solve("udfc", filters=filters @ filters.T, ridge=ridge)
        kept = sorted(sorted(range(data.n), key=lambda g: -lengths[g])[:keep])
        assert solution.kept.tolist() == kept
        expected = literal_udfc(data, filters, kept, ridge)
        np.testing.assert_allclose(solution.weights, expected, rtol=1e-8, atol=1e-9)
    assert not data.problem(keep=0).solve("udfc", filters=filters @ filters.T).weights.any()


def test_udfc_s_default_ridge_is_a_hundredth_of_the_mean_diagonal() -> None:
    data = data_of("interleaved")
    filters = np.random.default_rng(9).normal(size=(data.n, 6))
    weights = data.problem(keep=2).solve("udfc", filters=filters @ filters.T).weights
    kept = data.problem(keep=2).solve("udfc", filters=filters @ filters.T).kept.tolist()
    np.testing.assert_allclose(weights, literal_udfc(data, filters, kept, 1e-2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["single rows", "groups of 3", "interleaved", "shuffled"])
def test_udfc_leaves_the_outputs_as_they_are_where_inputs_follow_filters_and_removed_ones_kept_ones(
    kind: str,
) -> None:
    data, rng = data_of(kind, 3), np.random.default_rng(4)
    keep = data.n - 2
    filters = rng.normal(size=(data.n, 7)) * 3.0
    filters[1] = -0.25 * filters[0]  # the short ones go
    filters[2] = 0.1 * filters[0] if keep < 3 else 0.1 * filters[0] - 0.05 * filters[3]
    inputs = np.zeros((60, len(data.labels)))
    for position in range(len(data.rows[0])):
        sources = rng.normal(size=(60, 7))  # what the filters see at this position of the kernel
        for g in range(data.n):
            inputs[:, data.rows[g][position]] = sources @ filters[g]
    problem = Problem.from_data(inputs, data.weights, damping=1e-8, groups=data.labels, keep=keep)
    solution = problem.solve("udfc", filters=filters @ filters.T, ridge=0.0)
    assert np.flatnonzero(~solution.support).tolist() == [1, 2]
    outputs = inputs @ data.weights
    np.testing.assert_allclose(
        inputs @ solution.weights, outputs, rtol=1e-9, atol=1e-9 * np.abs(outputs).max()
    )
    assert solution.objective <= 1e-6 * problem.constant  # the damping
    assert np.abs(inputs @ data.masked(solution.kept.tolist()) - outputs).max() > 0.1  # and it took an update


def test_duplicate_filters_share_what_the_removed_one_did() -> None:
    """A kept filter twice makes the system singular: the shares of least norm are taken."""
    filters = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    problem = Problem(np.eye(3), dense_weights=[[1.0, 0.0], [0.0, 1.0], [8.0, 4.0]], keep=2)
    solution = problem.solve("udfc", filters=filters @ filters.T, ridge=0.0)
    np.testing.assert_allclose(solution.weights, [[3.0, 1.0], [2.0, 2.0], [0.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize("ridge", [1e-3, 0.2])
def test_udfc_s_weights_are_the_refit_under_the_gram_of_the_filters(ridge: float) -> None:
    data, rng = data_of("single rows", 5), np.random.default_rng(6)
    filters = rng.normal(size=(8, 10))
    gram = filters @ filters.T
    ours = data.problem(keep=5).solve("udfc", filters=gram, ridge=ridge)
    damped = gram + ridge * np.trace(gram) / 8 * np.eye(8)
    other = Problem(damped, dense_weights=data.weights, keep=5, always_keep=ours.kept)
    refit = other.solve("scores", scores=np.zeros(8), refit=True)
    np.testing.assert_array_equal(refit.support, ours.support)
    np.testing.assert_allclose(ours.weights, refit.weights, rtol=1e-9, atol=1e-11)
    # and with the positions of a kernel, that of every position by itself
    data = data_of("interleaved", 5)
    filters = filters[:4]
    ours = data.problem(keep=2).solve("udfc", filters=filters @ filters.T, ridge=ridge)
    damped = filters @ filters.T + ridge * np.mean(np.diag(filters @ filters.T)) * np.eye(4)
    for position in range(3):
        at = [rows[position] for rows in data.rows]
        other = Problem(damped, dense_weights=data.weights[at], keep=2, always_keep=ours.kept)
        refit = other.solve("scores", scores=np.zeros(4), refit=True)
        np.testing.assert_allclose(ours.weights[at], refit.weights, rtol=1e-9, atol=1e-11)


def test_udfc_refitted_is_the_best_on_its_support() -> None:
    data = data_of("groups of 3", 6)
    filters = np.random.default_rng(1).normal(size=(5, 9))
    free = data.problem(keep=3).solve("udfc", filters=filters @ filters.T)
    best = data.problem(keep=3).solve("udfc", filters=filters @ filters.T, refit=True)
    np.testing.assert_array_equal(free.support, best.support)
    lengths = np.linalg.norm(filters, axis=1)
    literal = data.problem(keep=3).solve("scores", scores=lengths, refit=True)
    np.testing.assert_array_equal(best.weights, literal.weights)
    assert best.objective < free.objective


def test_udfc_respects_budgets_blocks_and_forced_groups() -> None:
    data = Data(list(range(6)), 3)
    filters = np.random.default_rng(2).normal(size=(6, 8))
    filters *= np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])[:, None] / np.linalg.norm(filters, axis=1)[:, None]
    for limits, kept in (
        ({"costs": [4.0, 3.0, 4.0, 1.0, 1.0, 2.0], "budget": 6.0}, [0, 3, 4]),
        ({"blocks": [0, 0, 0, 1, 1, 1], "block_keep": [1, 2]}, [0, 3, 4]),
        ({"keep": 3, "always_keep": [4], "always_remove": [0, 1]}, [2, 3, 4]),
    ):
        solution = data.problem(**limits).solve("udfc", filters=filters @ filters.T)
        assert solution.kept.tolist() == kept
        np.testing.assert_allclose(
            solution.weights, literal_udfc(data, filters, kept, 1e-2), rtol=1e-8, atol=1e-10
        )


def test_a_last_group_without_a_filter_stays_and_takes_no_part() -> None:
    data = Data(list(range(6)), 3)
    filters = np.random.default_rng(2).normal(size=(5, 8))
    problem = data.problem(keep=4, always_keep=[5])
    solution = problem.solve("udfc", filters=filters @ filters.T)
    kept = sorted(np.argsort(-np.linalg.norm(filters, axis=1))[:3].tolist())
    assert solution.kept.tolist() == [*kept, 5]
    whole = Data(list(range(6)), 3)
    whole.n = 5
    expected = literal_udfc(whole, filters, kept, 1e-2)
    expected[5] = data.weights[5]
    np.testing.assert_allclose(solution.weights, expected, rtol=1e-9, atol=1e-11)


def test_dead_inputs_get_no_weights() -> None:
    inputs = np.random.default_rng(0).normal(size=(20, 4))
    inputs[:, 1] = 0.0
    problem = Problem.from_data(inputs, np.ones((4, 2)), damping=0.0, keep=3)
    filters = np.eye(4) * [1.0, 4.0, 3.0, 2.0] + 0.25
    solution = problem.solve("udfc", filters=filters)
    assert solution.kept.tolist() == [1, 2, 3]
    assert not solution.weights[1].any()
    assert solution.weights[2:].all()


def test_udfc_takes_filters_by_name_as_a_function_and_from_a_file(tmp_path: Path) -> None:
    gram = np.eye(3) * [3.0, 1.0, 2.0] + 0.5
    np.save(tmp_path / "gram.npy", gram)
    first = small().solve("udfc", filters=gram)
    assert first.kept.tolist() == [0]
    for way in ({"fc": gram}, PerProblem({"fc": gram}), lambda problem: gram, tmp_path / "gram.npy"):
        np.testing.assert_array_equal(small().solve("udfc", filters=way).weights, first.weights)
    with pytest.raises(
        OptionError, match="option 'filters' has nothing for the problem named 'fc', only for a"
    ):
        small().solve("udfc", filters={"a": gram})


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (3, 2), (2, 3), (3,), (3, 3, 1)])
def test_filters_of_another_shape(shape: tuple[int, ...]) -> None:
    for way in (np.ones(shape), lambda problem: np.ones(shape)):
        with pytest.raises(OptionError) as error:
            small().solve("udfc", filters=way)
        assert sentence(error) == (
            f"option 'filters' must be a matrix with a row for each of the 3 groups of fc, but has shape {shape}."
        )


def test_a_single_number_is_no_matrix_of_filters() -> None:
    with pytest.raises(OptionError, match="must be a matrix") as error:
        small().solve("udfc", filters=3.0)
    sentence(error)


def test_a_negative_ridge_is_refused() -> None:
    with pytest.raises(OptionError, match="option 'ridge' of method 'udfc' must be at least 0, but is -1"):
        small().solve("udfc", filters=np.eye(3), ridge=-1.0)
