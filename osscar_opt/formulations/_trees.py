"""Decision trees as arrays, and what examples do in them; see `osscar_opt.formulations.forest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from osscar_opt._typing import AnyArray, ArrayLike, BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError

__all__ = ["Layout", "Tree", "Uses", "examples", "extract", "matrix", "predict"]


@dataclass(frozen=True, eq=False)
class Tree:
    """One tree: children (-1 at leaves), features, thresholds, and class shares or one number for each node."""

    left: IntArray
    right: IntArray
    feature: IntArray
    threshold: FloatArray
    shares: FloatArray
    classes: AnyArray | None
    width: int

    def leaf_of(self, x: FloatArray) -> IntArray:
        """The leaf that each row of x reaches; values are compared as float32, as scikit-learn does."""
        single = x.astype(np.float32)
        node = np.zeros(len(x), dtype=np.int64)
        while True:
            on_way = np.flatnonzero(self.left[node] >= 0)
            if len(on_way) == 0:
                return node
            at = node[on_way]
            goes_left = single[on_way, self.feature[at]] <= self.threshold[at]
            node[on_way] = np.where(goes_left, self.left[at], self.right[at])

    @cached_property
    def parent(self) -> IntArray:
        """Parents, -1 at the root."""
        parent = np.full(len(self.left), -1, dtype=np.int64)
        inner = np.flatnonzero(self.left >= 0)
        parent[self.left[inner]] = inner
        parent[self.right[inner]] = inner
        return parent

    @cached_property
    def first_uses(self) -> dict[int, dict[int, int]]:
        """For each leaf, the features on its path with the first node that splits by each."""
        found: dict[int, dict[int, int]] = {}
        due: list[tuple[int, dict[int, int]]] = [(0, {})]
        while due:
            node, above = due.pop()
            if self.left[node] < 0:
                found[node] = above
                continue
            below = above if int(self.feature[node]) in above else above | {int(self.feature[node]): node}
            due.append((int(self.left[node]), below))
            due.append((int(self.right[node]), below))
        return found

    def errors(self, x: FloatArray, y: AnyArray) -> FloatArray:
        """For each node the errors it would make as a leaf, summed over the rows of x that reach it."""
        reached = self.leaf_of(x)
        total = np.zeros(len(self.left))
        answer = None if self.classes is None else self.classes[np.argmax(self.shares, axis=1)]
        rows = np.arange(len(x))
        while len(rows):  # from the leaves up, every row one node at a time
            at = reached[rows]
            wrong = (y[rows] - self.shares[at, 0]) ** 2 if answer is None else (answer[at] != y[rows])
            np.add.at(total, at, wrong)
            rows = rows[self.parent[at] >= 0]
            reached[rows] = self.parent[reached[rows]]
        return total


@dataclass(frozen=True, eq=False)
class Layout:
    """Nodes of all trees numbered through."""

    first: IntArray  # of each tree
    parent: IntArray
    children: IntArray  # (nodes, 2), -1 at leaves
    splits: IntArray  # the nodes that split
    split_of_node: IntArray  # index into `splits`; that of none is one past its end

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Layout:
        first = np.concatenate([[0], np.cumsum([len(tree.left) for tree in trees])])
        parent = np.concatenate(
            [np.where(t.parent < 0, -1, t.parent + f) for t, f in zip(trees, first, strict=False)]
        )
        children = np.concatenate(
            [
                np.stack([np.where(side < 0, -1, side + f) for side in (t.left, t.right)], axis=1)
                for t, f in zip(trees, first, strict=False)
            ]
        )
        inner = children[:, 0] >= 0
        splits = np.flatnonzero(inner)
        where = np.full(len(inner), len(splits), dtype=np.int64)
        where[splits] = np.arange(len(splits))
        return cls(first.astype(np.int64), parent.astype(np.int64), children.astype(np.int64), splits, where)


@dataclass(frozen=True, eq=False)
class Uses:
    """Which feature is read first at which nodes, one of each tree at most, by which share of the examples.

    Use r is of feature[r] by a share weight[r]; its nodes are node[use_of_node == r].
    """

    feature: IntArray
    weight: FloatArray
    use_of_node: IntArray
    node: IntArray

    @classmethod
    def of(cls, trees: Sequence[Tree], leaves: Sequence[IntArray]) -> Uses:
        first = np.concatenate([[0], np.cumsum([len(tree.left) for tree in trees])])
        features, weights, rows, nodes, count = [], [], [], [], 0
        total = len(leaves[0])
        combinations, number = np.unique(np.stack(leaves, axis=1), axis=0, return_counts=True)
        for feature in range(trees[0].width):
            table = np.full(combinations.shape, -1, dtype=np.int64)
            for t, tree in enumerate(trees):
                of_leaf = np.full(len(tree.left), -1, dtype=np.int64)
                for leaf, seen in tree.first_uses.items():
                    if feature in seen:
                        of_leaf[leaf] = seen[feature] + first[t]
                table[:, t] = of_leaf[combinations[:, t]]
            used = np.any(table >= 0, axis=1)
            if not np.any(used):
                continue
            distinct, which = np.unique(table[used], axis=0, return_inverse=True)
            features.append(np.full(len(distinct), feature))
            weights.append(np.bincount(which.ravel(), weights=number[used]) / total)
            own, tree_of = np.nonzero(distinct >= 0)
            rows.append(own + count)
            nodes.append(distinct[own, tree_of])
            count += len(distinct)
        empty = [np.zeros(0, dtype=np.int64)]
        return cls(
            np.concatenate(features or empty).astype(np.int64),
            np.concatenate(weights or [np.zeros(0)]),
            np.concatenate(rows or empty).astype(np.int64),
            np.concatenate(nodes or empty).astype(np.int64),
        )

    def active(self, split_nodes: BoolArray) -> BoolArray:
        """Which uses remain when these nodes (a mask over all) split: those with a node that does."""
        return np.bincount(self.use_of_node, weights=split_nodes[self.node], minlength=len(self.feature)) > 0


def predict(trees: Sequence[Tree], layout: Layout, split: BoolArray, inputs: ArrayLike) -> Any:
    """The mean of the trees' shares at the pruned leaves; the class of the largest, or the number."""
    x = matrix(inputs, trees)
    total = np.zeros((len(x), trees[0].shares.shape[1]))
    for tree, first in zip(trees, layout.first, strict=False):
        node = tree.leaf_of(x)
        while True:  # up to the topmost node that no longer splits
            parent = tree.parent[node]
            up = (parent >= 0) & ~split[first + parent]
            if not np.any(up):
                break
            node = np.where(up, parent, node)
        total += tree.shares[node]
    classes = trees[0].classes
    return total[:, 0] / len(trees) if classes is None else classes[np.argmax(total, axis=1)]


def extract(forest: Any) -> tuple[Tree, ...]:
    """The trees of a fitted scikit-learn model."""
    members = getattr(forest, "estimators_", None)
    members = [forest] if members is None else list(np.asarray(members, dtype=object).ravel())
    if not members or not all(hasattr(member, "tree_") for member in members):
        raise InputError(
            f"{type(forest).__name__} has no fitted trees: pass a fitted scikit-learn forest or decision tree."
        )
    classes = getattr(forest, "classes_", None)
    if getattr(forest, "n_outputs_", 1) != 1:
        raise InputError(
            "a forest with several outputs cannot be pruned here: fit one forest for each output."
        )
    return tuple(_tree(member.tree_, classes) for member in members)


def _tree(tree: Any, classes: AnyArray | None) -> Tree:
    shares = np.asarray(tree.value, dtype=np.float64)[:, 0, :]
    if classes is not None:
        shares = shares / shares.sum(axis=1, keepdims=True)
        if shares.shape[1] != len(classes):
            raise InputError("the trees know other classes than the forest: it cannot be pruned here.")
    return Tree(
        left=np.asarray(tree.children_left, dtype=np.int64),
        right=np.asarray(tree.children_right, dtype=np.int64),
        feature=np.asarray(tree.feature, dtype=np.int64),
        threshold=np.asarray(tree.threshold, dtype=np.float64),
        shares=shares,
        classes=None if classes is None else np.asarray(classes),
        width=int(tree.n_features),
    )


def examples(inputs: ArrayLike, targets: ArrayLike, trees: Sequence[Tree]) -> tuple[FloatArray, AnyArray]:
    """Inputs and targets, checked."""
    x, y = matrix(inputs, trees), np.asarray(targets)
    if y.shape != (len(x),):
        raise InputError(f"targets must be {len(x)} values, one for each row of inputs.")
    if trees[0].classes is not None and not np.all(np.isin(y, trees[0].classes)):
        raise InputError("targets hold a class that the forest does not know.")
    return x, y


def matrix(inputs: ArrayLike, trees: Sequence[Tree]) -> FloatArray:
    """Inputs, checked."""
    x = np.asarray(inputs, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != trees[0].width or len(x) == 0:
        raise InputError(f"inputs must be a matrix with {trees[0].width} columns, and not empty.")
    if not np.all(np.isfinite(x)):
        raise InputError("inputs hold NaN or infinity: missing values are not supported here.")
    return x
