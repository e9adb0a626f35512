"""BudgetPrune: against enumeration of all prunings, the paper's program written out, and a minimum cut."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.optimize

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier

from osscar_opt.errors import InputError, OptionError, SolverError
from osscar_opt.formulations._splits import Program
from osscar_opt.formulations.forest import ForestProblem, ForestSolution
from osscar_opt.formulations.solution import BoundKind, Status, Termination


def data(seed=0, n=60, width=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    y = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.4 * rng.normal(size=n) > 0).astype(int)
    return x, y


def small(seed=0, trees=3, depth=2, **limits):
    x, y = data(seed)
    forest = RandomForestClassifier(trees, max_depth=depth, random_state=seed).fit(x[:30], y[:30])
    costs = np.array([1.0, 2.0, 0.5, 1.5])
    problem = ForestProblem.from_forest(forest, x[30:], y[30:], costs=costs, **(limits or {"price": 0.05}))
    return problem, forest, x[30:], y[30:], costs


def prunings(tree, node=0):
    """Every set of nodes that still split."""
    yield frozenset()
    left, right = tree.children_left[node], tree.children_right[node]
    if left >= 0:
        for a, b in itertools.product(list(prunings(tree, left)), list(prunings(tree, right))):
            yield frozenset({node}) | a | b


def by_walking(forest, splits, x, y, costs):
    """Mean error of the trees and mean cost of the features, one example and one node at a time."""
    wrong, cost = 0.0, 0.0
    for row, label in zip(x, y, strict=True):
        read = set()
        for estimator, kept in zip(forest.estimators_, splits, strict=True):
            tree, node = estimator.tree_, 0
            while node in kept:
                read.add(int(tree.feature[node]))
                goes_left = np.float32(row[tree.feature[node]]) <= tree.threshold[node]
                node = tree.children_left[node] if goes_left else tree.children_right[node]
            wrong += forest.classes_[np.argmax(tree.value[node, 0])] != label
        cost += sum(costs[k] for k in read)
    return wrong / (len(x) * len(splits)), cost / len(x)


def as_mask(problem, splits):
    mask = np.zeros(problem.n, dtype=bool)
    for first, kept in zip(problem.layout.first, splits, strict=False):
        for node in kept:
            mask[problem.layout.split_of_node[first + node]] = True
    return mask


def enumerated(forest, x, y, costs):
    """Error and cost of all prunings of a forest, literally."""
    options = [list(prunings(e.tree_)) for e in forest.estimators_]
    return [(splits, *by_walking(forest, splits, x, y, costs)) for splits in itertools.product(*options)]


# ------------------------------------------------------------------------------------------- against enumeration


@pytest.mark.parametrize("seed", range(3))
def test_program_is_the_best_of_all_prunings(seed):
    problem, forest, x, y, costs = small(seed)
    everything = enumerated(forest, x, y, costs)
    assert len(everything) > 20
    for splits, error, cost in everything[:: max(1, len(everything) // 40)]:
        mask = as_mask(problem, splits)
        assert problem.violation(mask) == ""
        assert problem.error(mask) == pytest.approx(error, abs=1e-12)
        assert problem.cost(mask) == pytest.approx(cost, abs=1e-12)
    for price in (0.0, 0.01, 0.05, 0.2, 10.0):
        best = min(error + price * cost for _, error, cost in everything)
        solution = problem.with_limits(price=price).solve()
        solution.verify()
        assert solution.objective == pytest.approx(best, abs=1e-9)
        assert (solution.status, solution.bound_kind) == (Status.OPTIMAL, BoundKind.CERTIFIED)
        assert solution.stats["fractional"] == 0
        greedy = problem.with_limits(price=price).solve("greedy")
        assert greedy.objective >= best - 1e-9
    for budget in (0.0, 0.7, 1.5, 2.2, 100.0):
        best = min(error for _, error, cost in everything if cost <= budget + 1e-9)
        limited = problem.with_limits(budget=budget)
        solution = limited.solve()
        assert solution.objective == pytest.approx(best, abs=1e-6)
        assert solution.status is Status.OPTIMAL
        assert solution.cost <= budget + 1e-9
        greedy = limited.solve("greedy")
        greedy.verify()
        assert greedy.objective >= best - 1e-9


# ------------------------------------------------------------------------------------ the paper's own program


def paths(tree):
    """For each node, the nodes from the root down to it."""
    above = {0: [0]}
    for node in range(tree.node_count):
        for child in (tree.children_left[node], tree.children_right[node]):
            if child >= 0:
                above[int(child)] = [*above[node], int(child)]
    return above


def first_nodes(tree, path):
    """For each feature on a path, the first node that splits by it."""
    found = {}
    for node in path[:-1]:
        found.setdefault(int(tree.feature[node]), node)
    return found


def papers_program(problem, forest, x, costs, price, errors_of):
    """Variables z_h of every node, w_ki^(t), w_ki; no examples put together, nothing substituted."""
    columns, equal, below, c = {}, [], [], {}

    def column(*key):
        return columns.setdefault(key, len(columns))

    for t, estimator in enumerate(forest.estimators_):
        tree = estimator.tree_
        above = paths(tree)
        for node, path in above.items():
            c[column("z", t, node)] = errors_of(t, node) / (len(x) * len(forest.estimators_))
            if tree.children_left[node] < 0:
                equal.append([column("z", t, u) for u in path])
        for i, leaf in enumerate(estimator.apply(x)):
            for k, u in first_nodes(tree, above[int(leaf)]).items():
                equal.append([column("w", t, k, i), *(column("z", t, v) for v in above[u])])
                below.append((column("w", t, k, i), column("w", k, i)))
                c[column("w", k, i)] = price * costs[k] / len(x)
    a_eq, a_ub = np.zeros((len(equal), len(columns))), np.zeros((len(below), len(columns)))
    for row, members in enumerate(equal):
        a_eq[row, members] = 1.0
    for row, (of_tree, of_all) in enumerate(below):
        a_ub[row, of_tree], a_ub[row, of_all] = 1.0, -1.0
    return np.array([c.get(index, 0.0) for index in range(len(columns))]), a_eq, a_ub


def node_errors(forest, x, y):
    def errors_of(t, node):
        tree = forest.estimators_[t]
        reached = tree.decision_path(x).toarray()[:, node].astype(bool)
        return int(np.sum(y[reached] != forest.classes_[np.argmax(tree.tree_.value[node, 0])]))

    return errors_of


@pytest.mark.parametrize("price", [0.0, 0.03, 0.2])
def test_the_papers_program_has_the_same_optimum_and_an_integral_vertex(price):
    problem, forest, x, y, costs = small(4, depth=3)
    c, a_eq, a_ub = papers_program(problem, forest, x, costs, price, node_errors(forest, x, y))
    ours = problem.with_limits(price=price).solve()
    found = scipy.optimize.linprog(
        c,
        A_ub=a_ub,
        b_ub=np.zeros(len(a_ub)),
        A_eq=a_eq,
        b_eq=np.ones(len(a_eq)),
        bounds=(0, 1),
        method="highs-ds",
    )
    np.testing.assert_allclose(found.x, np.rint(found.x), atol=1e-9)
    assert ours.objective == pytest.approx(found.fun, abs=1e-9)
    assert ours.stats["variables"] < len(c) / 3  # put together and substituted


def test_vertices_are_integral_whatever_the_objective():
    """Total unimodularity is of the constraints: errors and costs drawn at random give integral vertices too."""
    problem, forest, x, y, costs = small(1, trees=2, depth=3)
    c, a_eq, a_ub = papers_program(problem, forest, x, costs, 1.0, node_errors(forest, x, y))
    rng = np.random.default_rng(0)
    for _ in range(10):
        found = scipy.optimize.linprog(
            rng.normal(size=len(c)), A_ub=a_ub, b_ub=np.zeros(len(a_ub)), A_eq=a_eq, b_eq=np.ones(len(a_eq)),
            bounds=(0, 1), method="highs-ds",
        )  # fmt: skip
        np.testing.assert_allclose(found.x, np.rint(found.x), atol=1e-9)


def test_constraints_are_differences_of_two_variables():
    """Which makes the transpose the incidence matrix of a directed graph, and thus totally unimodular."""
    problem, *_ = small(2, trees=4, depth=3)
    program = Program.of(problem.layout, problem.uses, problem._gains, problem._charges)
    matrix = program.matrix.toarray()
    assert np.all((matrix == 1).sum(axis=1) == 1)
    assert np.all((matrix == -1).sum(axis=1) == 1)
    assert np.all(np.abs(matrix).sum(axis=1) == 2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 7))
        rows = rng.choice(len(matrix), size, replace=False)
        columns = rng.choice(matrix.shape[1], size, replace=False)
        assert round(np.linalg.det(matrix[np.ix_(rows, columns)])) in (-1, 0, 1)


def test_a_minimum_cut_says_the_same():
    """The program is a maximum closure: what splits gain, less what they make dear, as a cut of a graph."""
    networkx = pytest.importorskip("networkx")
    problem, *_ = small(3, trees=5, depth=4, price=0.04)
    program = Program.of(problem.layout, problem.uses, problem._gains, problem._charges)
    c = problem.price * program.charge
    c[: program.splits] -= program.gains
    graph = networkx.DiGraph()
    graph.add_nodes_from(["source", "sink"])
    for variable, value in enumerate(c):
        if value < 0:
            graph.add_edge("source", variable, capacity=-value)
        elif value > 0:
            graph.add_edge(variable, "sink", capacity=value)
    for row in program.matrix.toarray():
        graph.add_edge(int(np.argmax(row)), int(np.argmin(row)))  # without a capacity: it may not be cut
    cut, _ = networkx.minimum_cut(graph, "source", "sink")
    root = problem.errors[problem.layout.parent < 0].sum()
    assert problem.solve().objective == pytest.approx(root + np.minimum(c, 0).sum() + cut, abs=1e-9)


# ------------------------------------------------------------------------------------------------ a real forest


@pytest.fixture(scope="module")
def real():
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    forest = RandomForestClassifier(20, random_state=0).fit(x[:220], y[:220])
    return ForestProblem.from_forest(forest, x[220:400], y[220:400], price=0.002), forest, x[400:], y[400:]


def test_a_real_forest_is_pruned_to_proved_optimality(real):
    problem, _, _, _ = real
    before = None
    for price in (0.0005, 0.002, 0.01, 0.05):
        solution = problem.with_limits(price=price).solve()
        assert solution.stats["fractional"] == 0
        assert solution.status is Status.OPTIMAL
        assert problem.with_limits(price=price).solve("greedy").objective >= solution.objective - 1e-12
        if before is not None:  # dearer features: fewer are read, and more errors made
            assert solution.cost <= before.cost + 1e-9
            assert solution.error >= before.error - 1e-9
        before = solution
    assert solution.cost < 0.5 * problem.cost(np.ones(problem.n, dtype=bool))


def test_predictions_of_a_pruned_forest(real):
    problem, forest, x, y = real
    full = problem.solve().__class__(
        problem=problem, splits=np.ones(problem.n, dtype=bool), method="", problem_hash="", objective=0.0
    )
    np.testing.assert_array_equal(full.predict(x), forest.predict(x))
    pruned = problem.solve()
    shares = np.zeros((len(x), 2))
    for estimator, first in zip(forest.estimators_, problem.layout.first, strict=False):
        tree = estimator.tree_
        for i, row in enumerate(x):
            node = 0
            while (s := problem.layout.split_of_node[first + node]) < problem.n and pruned.splits[s]:
                goes_left = np.float32(row[tree.feature[node]]) <= tree.threshold[node]
                node = tree.children_left[node] if goes_left else tree.children_right[node]
            shares[i] += tree.value[node, 0]
    np.testing.assert_array_equal(pruned.predict(x), forest.classes_[np.argmax(shares, axis=1)])
    assert np.mean(pruned.predict(x) == y) > 0.9
    assert pruned.mean_cost(x) < full.mean_cost(x)
    assert set(pruned.features()) <= set(range(30))


def test_a_budget_that_is_met_by_time(real):
    problem, *_ = real
    budget = 0.5 * problem.cost(np.ones(problem.n, dtype=bool))
    solution = problem.with_limits(budget=budget).solve(time_limit=20)
    assert solution.cost <= budget
    assert solution.objective <= problem.with_limits(budget=budget).solve("greedy").objective
    hurried = problem.with_limits(budget=budget).solve(time_limit=1e-3)
    hurried.verify()
    assert hurried.termination is Termination.TIME_LIMIT
    assert hurried.bound <= solution.objective + 1e-9


def test_other_forests():
    x, y = load_diabetes(return_X_y=True)
    forest = RandomForestRegressor(6, max_depth=4, random_state=0).fit(x[:250], y[:250])
    problem = ForestProblem.from_forest(forest, x[250:], y[250:], price=30.0)
    solution = problem.solve()
    assert solution.status is Status.OPTIMAL
    assert problem.solve("greedy").objective >= solution.objective * (1 - 1e-12)
    whole = ForestSolution(
        problem=problem, splits=np.ones(problem.n, dtype=bool), method="", problem_hash="", objective=0.0
    )
    np.testing.assert_allclose(whole.predict(x), forest.predict(x))
    separate = np.mean([(e.predict(x[250:]) - y[250:]) ** 2 for e in forest.estimators_])
    assert whole.error == pytest.approx(separate)
    x, y = data()
    for model in (
        DecisionTreeClassifier(max_leaf_nodes=6, random_state=0),
        ExtraTreesClassifier(3, random_state=0),
    ):
        found = ForestProblem.from_forest(model.fit(x, y), x, y, price=0.02).solve()
        assert found.status is Status.OPTIMAL
    names = np.array(["no", "yes"])[y]
    named = ForestProblem.from_forest(
        ExtraTreesClassifier(3, random_state=0).fit(x, names), x, names, price=0.02
    )
    assert named.solve().objective == pytest.approx(found.objective)
    assert set(named.solve().predict(x)) <= {"no", "yes"}


# ----------------------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_pruned_is_refused_in_a_sentence():
    problem, forest, x, y, _ = small()
    with pytest.raises(InputError, match="no fitted trees"):
        ForestProblem.from_forest(RandomForestClassifier(), x, y, price=1.0)
    with pytest.raises(InputError, match="one of price and budget"):
        ForestProblem.from_forest(forest, x, y)
    with pytest.raises(InputError, match="not negative"):
        ForestProblem.from_forest(forest, x, y, price=-1.0)
    with pytest.raises(InputError, match="4 columns"):
        ForestProblem.from_forest(forest, x[:, :2], y, price=1.0)
    with pytest.raises(InputError, match="NaN"):
        ForestProblem.from_forest(forest, np.full_like(x, np.nan), y, price=1.0)
    with pytest.raises(InputError, match="does not know"):
        ForestProblem.from_forest(forest, x, y + 5, price=1.0)
    with pytest.raises(InputError, match="4 numbers"):
        ForestProblem.from_forest(forest, x, y, price=1.0, costs=[1.0])
    with pytest.raises(OptionError, match="not one of"):
        problem.solve("best")
    with pytest.raises(InputError, match="mask over"):
        problem.objective([True])
    upside_down = np.arange(problem.n) == 1
    lie = ForestSolution(problem=problem, splits=upside_down, method="", problem_hash="", objective=0.0)
    with pytest.raises(SolverError, match="not feasible"):
        lie.verify()


def test_a_solution_as_json():
    problem, *_ = small()
    told = json.loads(json.dumps(problem.solve().to_dict()))
    assert told["problem_hash"] == problem.hash
    assert told["status"] == "optimal"
    assert told["objective"] == pytest.approx(told["error"] + 0.05 * told["cost"])
