r"""Pruning a forest of decision trees so that it reads fewer features: BudgetPrune.

F. Nan, J. Wang, V. Saligrama, *Pruning Random Forests for Prediction on a Budget*, NeurIPS 2016 (arXiv 1606.05060).
Computing feature k for an example costs c_k, once, however many trees read it.  With N examples and T trees, e_h the
errors that node h would make on the examples that reach it if it were a leaf, z_h = 1 if it is one, w_ki = 1 if
example i has feature k computed, p(h) the path from the root to h, and u_tki the first node on i's path in tree t that
splits by k,

.. math:: \min\; \frac{1}{NT} \sum_h e_h z_h + \lambda \sum_k c_k \frac1N \sum_i w_{ki} \quad\text{with}\quad
          \sum_{u \in p(h)} z_u = 1 \text{ for every leaf } h ,

.. math:: w^{(t)}_{ki} + \sum_{h \in p(u_{tki})} z_h = 1, \qquad w^{(t)}_{ki} \le w_{ki}, \qquad z, w \in \{0, 1\} .

The paper proves the constraints totally unimodular.  Here is the same in fewer variables.  Let x_h = 1 if h still
splits, so that z_h = x_parent(h) - x_h and w^(t)_ki is x at u_tki:

.. math:: x_h \le x_{\mathrm{parent}(h)}, \qquad x_u \le w_{ki} \text{ for every } u = u_{tki} .

Each constraint is a difference of two variables: the transpose of the matrix is the incidence matrix of a graph, and
so it is totally unimodular, and every vertex of the relaxation is integral (it is a maximum-closure problem).  Examples
for which feature k has the same first nodes in all trees share one w, with their number as its weight; where there is
one first node, w is x itself.

With a limit on the mean cost instead of a price lambda the relaxation may be fractional, and it takes branch and bound.

The bound is recomputed from the dual: for any y >= 0, min c'x subject to A x <= b, 0 <= x <= 1 is at least
-b'y + sum_j min(0, c_j + (A'y)_j), whatever the solver that y came from.

Left out: the paper's primal-dual algorithm for very large forests, which solves the same linear program.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from osscar_opt._typing import ArrayLike, BoolArray, FloatArray, IntArray, read_only
from osscar_opt.errors import InputError, OptionError, SolverError
from osscar_opt.formulations import _splits, _trees
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations.outcome import Bound, Outcome, judged
from osscar_opt.formulations.solution import BoundKind, Termination

__all__ = ["ForestMethod", "ForestProblem", "ForestSolution"]

ForestMethod = Literal["program", "greedy"]


@dataclass(frozen=True, eq=False, repr=False)
class ForestProblem:
    """Which splits of a forest stay: fewer errors against a price, or a limit, on the features read.

    Made by `from_forest`.  Nodes of all trees are numbered through, each parent before its children.

    Attributes
    ----------
    trees : tuple
        The trees as arrays: children, features, thresholds, predictions.
    errors : (nodes,) array
        e_h / (N T): for classes the examples that the node would get wrong, for numbers their squared errors.
    costs : (features,) array
        c_k.
    uses : Uses
        For which share of the examples which feature is first read at which nodes.
    price : float or None
        lambda, for the mean cost of an example; or
    budget : float or None
        the limit on it.

    Examples
    --------
    >>> problem = _toy()
    >>> problem
    ForestProblem(trees=1, splits=2, features=2, price=0.1)
    >>> problem.solve().splits  # the second feature is not worth its cost
    array([ True, False])
    """

    trees: tuple[_trees.Tree, ...]
    errors: FloatArray
    costs: FloatArray
    uses: _trees.Uses
    price: float | None
    budget: float | None

    @classmethod
    def from_forest(
        cls,
        forest: Any,
        inputs: ArrayLike,
        targets: ArrayLike,
        *,
        costs: ArrayLike | None = None,
        price: float | None = None,
        budget: float | None = None,
    ) -> ForestProblem:
        """Take the trees of a fitted scikit-learn forest or tree, and what they do with some examples.

        Parameters
        ----------
        forest : object
            A fitted RandomForestClassifier or -Regressor, ExtraTrees..., BaggingClassifier over all features, or a
            single DecisionTree...; only its trees' arrays are read.
        inputs : (N, d) array
            Examples on which errors and costs are counted: better ones that the forest was not fitted to.
        targets : (N,) array
            Their classes, or numbers.
        costs : (d,) array, optional
            Cost of computing each feature, 1 by default.
        price, budget : float, optional
            One of the two: what a unit of mean cost is worth in mean error, or the limit on the mean cost.

        Raises
        ------
        InputError
            If the forest is of another make, or the examples do not fit it.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> x, y = load_breast_cancer(return_X_y=True)
        >>> forest = RandomForestClassifier(5, max_depth=4, random_state=0).fit(x[:300], y[:300])
        >>> ForestProblem.from_forest(forest, x[300:], y[300:], price=0.01)  # doctest: +ELLIPSIS
        ForestProblem(trees=5, splits=..., features=30, price=0.01)
        """
        trees = _trees.extract(forest)
        x, y = _trees.examples(inputs, targets, trees)
        width = x.shape[1]
        charges = np.ones(width) if costs is None else np.array(costs, dtype=np.float64)
        if charges.shape != (width,) or not np.all(np.isfinite(charges) & (charges >= 0.0)):
            raise InputError(f"costs must be {width} numbers that are not negative, one for each feature.")
        leaves = [tree.leaf_of(x) for tree in trees]
        errors = np.concatenate([tree.errors(x, y) for tree in trees]) / (len(x) * len(trees))
        uses = _trees.Uses.of(trees, leaves)
        return cls(trees, read_only(errors), read_only(charges), uses, None, None).with_limits(
            price=price, budget=budget
        )

    def with_limits(self, *, price: float | None = None, budget: float | None = None) -> ForestProblem:
        """The same forest at another price, or another budget.

        Examples
        --------
        >>> _toy().with_limits(budget=1.0)
        ForestProblem(trees=1, splits=2, features=2, budget=1)
        """
        if (price is None) == (budget is None):
            raise InputError("pass one of price and budget: what cost is worth, or the limit on it.")
        given = price if budget is None else budget
        if given is None or not np.isfinite(given) or given < 0.0:
            raise InputError(f"price and budget must be numbers that are not negative, not {given}.")
        return ForestProblem(self.trees, self.errors, self.costs, self.uses, price, budget)

    @cached_property
    def layout(self) -> _trees.Layout:
        """Nodes of all trees numbered through: parents, and which nodes split.

        Examples
        --------
        >>> _toy().layout.parent
        array([-1,  0,  0,  2,  2])
        """
        return _trees.Layout.of(self.trees)

    @property
    def n(self) -> int:
        """Number of splits of the whole forest.

        Examples
        --------
        >>> _toy().n
        2
        """
        return len(self.layout.splits)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of trees, errors, costs and uses; not of price and budget.

        Examples
        --------
        >>> _toy().hash == _toy().with_limits(budget=1.0).hash
        True
        """
        return content_hash(
            parent=self.layout.parent,
            errors=self.errors,
            costs=self.costs,
            feature=self.uses.feature,
            weight=self.uses.weight,
            use=self.uses.use_of_node,
            node=self.uses.node,
        )

    def error(self, splits: ArrayLike) -> float:
        """Mean error of the trees where only these splits are left, each tree counted by itself, as in the paper.

        Examples
        --------
        >>> _toy().error([True, False])
        0.25
        """
        return float(self.errors[self.leaves(splits)].sum())

    def cost(self, splits: ArrayLike) -> float:
        """Mean cost of the features that an example has computed.

        Examples
        --------
        >>> _toy().cost([True, False]), _toy().cost([True, True])
        (1.0, 4.0)
        """
        return float(self._charges @ self.uses.active(self._mask(splits)[self.layout.split_of_node]))

    def objective(self, splits: ArrayLike) -> float:
        """Mean error, plus the price of the mean cost where there is a price.

        Examples
        --------
        >>> _toy().objective([True, False])
        0.35
        """
        return self.error(splits) + (0.0 if self.price is None else self.price * self.cost(splits))

    def leaves(self, splits: ArrayLike) -> BoolArray:
        """Mask over all nodes of those that are leaves of the pruned trees.

        Examples
        --------
        >>> _toy().leaves([True, False])
        array([False,  True,  True, False, False])
        """
        left = self._split_nodes(splits)
        parent = self.layout.parent
        above = np.where(parent < 0, True, left[parent])
        return np.asarray(above & ~left)

    def violation(self, splits: ArrayLike) -> str:
        """One clause saying what is wrong with a choice of splits, or "".

        Examples
        --------
        >>> _toy().violation([False, True])
        'has a split below a leaf'
        """
        left = self._split_nodes(splits)
        parent = self.layout.parent
        if np.any(left & (parent >= 0) & ~left[parent]):
            return "has a split below a leaf"
        if self.budget is not None and self.cost(splits) > self.budget + 1e-9 * max(1.0, self.budget):
            return f"costs {self.cost(splits):.12g} of budget = {self.budget:.12g}"
        return ""

    def solve(self, method: ForestMethod = "program", *, time_limit: float | None = None) -> ForestSolution:
        """Prune.

        Parameters
        ----------
        method : {"program", "greedy"}, optional
            "program": HiGHS, the linear program for a price, the 0-1 program for a budget; exact.  "greedy": from the
            whole forest, turns into a leaf the node, with all below it, that gains most; a heuristic.
        time_limit : float, optional
            Seconds for HiGHS; if it has nothing better by then, the greedy pruning is returned, and a message.

        Examples
        --------
        >>> solution = _toy().solve()
        >>> solution.error, solution.cost, solution.status.value, solution.bound_kind.value
        (0.25, 1.0, 'optimal', 'certified')
        """
        began = time.perf_counter()
        stats: dict[str, Any] = {}
        bound, termination, message = Bound(), Termination.COMPLETED, ""
        if method == "greedy":
            splits, stats = _splits.greedy(self)
            if self.price is not None:
                termination = Termination.LOCAL_OPTIMUM
        elif method == "program":
            splits, bound, termination, message, stats = self._program(time_limit)
        else:
            raise OptionError(f"method = {method!r} is not one of program, greedy.")
        violation = self.violation(splits)
        if violation:
            raise SolverError(f"the pruning that {method!r} found is not feasible: it {violation}.")
        return ForestSolution(
            problem=self,
            splits=read_only(splits),
            method=method,
            problem_hash=self.hash,
            termination=termination,
            message=message,
            stats=stats,
            solve_time=time.perf_counter() - began,
            **judged(self.objective(splits), bound, self._rounding),
        )

    def __repr__(self) -> str:
        limit = f"price={self.price:.12g}" if self.budget is None else f"budget={self.budget:.12g}"
        return f"ForestProblem(trees={len(self.trees)}, splits={self.n}, features={len(self.costs)}, {limit})"

    # -------------------------------------------------------------------------------------------- the program

    @cached_property
    def _charges(self) -> FloatArray:
        """Cost of each use: that of its feature, times the share of the examples."""
        return self.costs[self.uses.feature] * self.uses.weight

    @cached_property
    def _gains(self) -> FloatArray:
        """By how much the mean error falls when a node splits, its children being leaves, for each split."""
        falls = self.errors.copy()
        child = np.flatnonzero(self.layout.parent >= 0)
        np.subtract.at(falls, self.layout.parent[child], self.errors[child])
        return falls[self.layout.splits]

    @property
    def _rounding(self) -> float:
        scale = float(np.abs(self.errors).sum()) + (self.price or 0.0) * float(self._charges.sum())
        return 1e-11 * scale

    def _program(self, time_limit: float | None) -> tuple[BoolArray, Bound, Termination, str, dict[str, Any]]:
        program = _splits.Program.of(self.layout, self.uses, self._gains, self._charges)
        root = float(self.errors[self.layout.parent < 0].sum())
        if self.budget is None:
            answer = program.priced(self.price or 0.0, time_limit=time_limit)
        else:
            answer = program.limited(self.budget, time_limit=time_limit)
        stats = {
            "variables": program.size,
            "constraints": program.constraints,
            "linear_programs": answer.programs,
            "fractional": answer.fractional,
            "relaxation_bound": root + answer.dual,
        }
        bound = Bound(root + answer.dual, BoundKind.CERTIFIED)
        if root + answer.claimed > bound.value + self._rounding:
            bound = Bound(root + answer.claimed, BoundKind.CLAIMED)
        if answer.chosen is not None:
            splits = answer.chosen[: self.n] > 0.5
            if answer.termination is Termination.COMPLETED:
                return splits, bound, answer.termination, "", stats
        other, _ = _splits.greedy(self)
        if answer.chosen is not None and self.objective(splits) <= self.objective(other):
            return splits, bound, answer.termination, "", stats
        message = "the time was up before HiGHS had a better pruning than the greedy one, which this is."
        return other, bound, answer.termination, message, stats

    # ---------------------------------------------------------------------------------------------- pieces

    def _mask(self, splits: ArrayLike) -> BoolArray:
        mask = np.asarray(splits)
        if mask.dtype != bool or mask.shape != (self.n,):
            raise InputError(f"splits must be a mask over the {self.n} splits of the forest.")
        return np.append(mask, False)  # the last stands for every node that never splits

    def _split_nodes(self, splits: ArrayLike) -> BoolArray:
        return self._mask(splits)[self.layout.split_of_node]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ForestSolution(Outcome):
    """A pruned forest, and what is known of it.

    Attributes
    ----------
    problem : ForestProblem
    splits : (number of splits,) mask
        True = the node still splits.

    Examples
    --------
    >>> _toy().solve("greedy")
    ForestSolution(greedy, objective=0.35, feasible, local_optimum)
    """

    problem: ForestProblem
    splits: BoolArray

    @property
    def error(self) -> float:
        """Mean error of the trees on the examples of the problem.

        Examples
        --------
        >>> _toy().solve().error
        0.25
        """
        return self.problem.error(self.splits)

    @property
    def cost(self) -> float:
        """Mean cost of the features read, on the examples of the problem.

        Examples
        --------
        >>> _toy().solve().cost
        1.0
        """
        return self.problem.cost(self.splits)

    def features(self) -> IntArray:
        """The features that are still read for some example.

        Examples
        --------
        >>> _toy().solve().features()
        array([0])
        """
        used = self.problem.uses.active(self.problem._split_nodes(self.splits))
        return np.unique(self.problem.uses.feature[used])

    def predict(self, inputs: ArrayLike) -> Any:
        """Predictions of the pruned forest, (N,): the mean of the trees' class shares or numbers, then the class.

        Examples
        --------
        >>> _toy().solve().predict([[0.0, 0.0], [1.0, 1.0]])
        array([0, 1])
        """
        return _trees.predict(self.problem.trees, self.problem.layout, self._split_nodes, inputs)

    def mean_cost(self, inputs: ArrayLike) -> float:
        """Mean cost of the features that the pruned forest reads for other examples.

        Examples
        --------
        >>> _toy().solve().mean_cost([[0.0, 0.0]])
        1.0
        """
        x = _trees.matrix(inputs, self.problem.trees)
        uses = _trees.Uses.of(self.problem.trees, [tree.leaf_of(x) for tree in self.problem.trees])
        return float((self.problem.costs[uses.feature] * uses.weight) @ uses.active(self._split_nodes))

    def verify(self) -> None:
        """Recompute what can be recomputed.

        Raises
        ------
        SolverError
            Naming the first thing that does not hold.

        Examples
        --------
        >>> _toy().solve().verify()
        """
        violation = self.problem.violation(self.splits)
        if violation:
            raise SolverError(f"the pruning is not feasible: it {violation}.")
        self.require_objective(self.problem.objective(self.splits))

    def to_dict(self) -> dict[str, Any]:
        """As `Outcome.to_dict`, with the splits that stay, error and cost.

        Examples
        --------
        >>> _toy().solve().to_dict()["splits"]
        [0]
        """
        return super().to_dict() | {
            "splits": np.flatnonzero(self.splits).tolist(),
            "n": self.problem.n,
            "error": self.error,
            "cost": self.cost,
        }

    @property
    def _split_nodes(self) -> BoolArray:
        return self.problem._split_nodes(self.splits)


def _toy() -> ForestProblem:
    """One tree of two splits, for the examples: by feature 0, and below it by feature 1, which costs 3."""
    tree = _trees.Tree(
        left=np.array([1, -1, 3, -1, -1]),
        right=np.array([2, -1, 4, -1, -1]),
        feature=np.array([0, -1, 1, -1, -1]),
        threshold=np.array([0.5, 0.0, 0.5, 0.0, 0.0]),
        shares=np.array([[0.5, 0.5], [1.0, 0.0], [0.4, 0.6], [1.0, 0.0], [0.0, 1.0]]),
        classes=np.array([0, 1]),
        width=2,
    )
    x = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    y = np.array([0, 0, 1, 1])
    trees = (tree,)
    uses = _trees.Uses.of(trees, [tree.leaf_of(x)])
    problem = ForestProblem(trees, tree.errors(x, y) / 4, np.array([1.0, 4.0]), uses, None, None)
    return problem.with_limits(price=0.1)
