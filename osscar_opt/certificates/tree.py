"""The tree a search writes while it runs: branches, relaxations, and how each leaf was closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from osscar_opt._typing import AnyArray, BoolArray, FloatArray, IntArray
from osscar_opt.certificates.checker import BOUND, ENUMERATED, INFEASIBLE, OPEN, SUPERSET
from osscar_opt.errors import InputError

__all__ = ["PackedTree", "ProofTree", "Relaxation"]

_ASYMMETRY = 1e-8
"""Largest |D_ij - D_ji| relative to the diagonal that is read as rounding."""


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The numbers behind a bound at a node, over its free groups.

    Attributes
    ----------
    node : int
    z : array
        Of a perspective relaxation; y of a dual one.
    blocks : tuple of arrays
        D, one array for every term; of a dual relaxation delta alone.
    prices : array or None
        Of the limits.
    lam : (rows, k) array or None
        Of a dual relaxation.

    Examples
    --------
    >>> Relaxation(0, np.ones(2), (np.ones(2),), None, None).dual
    False
    """

    node: int
    z: FloatArray
    blocks: tuple[FloatArray, ...]
    prices: FloatArray | None
    lam: AnyArray | None

    @property
    def dual(self) -> bool:
        """Whether it is a dual relaxation.

        Examples
        --------
        >>> Relaxation(0, np.ones(1), (np.ones(1),), None, np.ones((1, 3))).dual
        True
        """
        return self.lam is not None


class PackedTree(NamedTuple):
    """A tree as arrays, nodes in preorder; ``docs/certificates.md`` says what they hold.

    Examples
    --------
    >>> ProofTree(2).packed(np.array([1, 1]), 1).cites
    array([-1])
    """

    tree: IntArray
    cites: IntArray
    relaxed_at: IntArray
    z: FloatArray
    d: FloatArray
    prices: FloatArray
    dual: BoolArray
    y: FloatArray
    delta: FloatArray
    lam: AnyArray


class ProofTree:
    """A binary tree over the choices of a problem of n groups, grown from its root, node 0.

    Every inner node decides one group: its first child removes the group, its second keeps it.  What is not closed
    stays open, and is bounded by the deepest relaxation at or above it.

    Parameters
    ----------
    n : int
        Number of groups.
    removed, kept : (n,) mask, optional
        Groups decided at the root: those always removed (and groups all of whose rows are dead), and those always
        kept.  `ProofTree.of` reads them off a problem.

    Raises
    ------
    InputError
        From any method, on a node that does not exist or is no open leaf, or a group that is decided there.

    Examples
    --------
    >>> tree = ProofTree(3)
    >>> without, with_it = tree.branch(0, 1)
    >>> tree.close_superset(without)
    >>> tree.close_enumerated(with_it)
    >>> tree
    ProofTree(n=3, nodes=3, open=0, relaxations=0)
    """

    def __init__(self, n: int, *, removed: BoolArray | None = None, kept: BoolArray | None = None) -> None:
        self.n = n
        self.removed = np.zeros(n, dtype=bool) if removed is None else np.array(removed, dtype=bool)
        self.kept = np.zeros(n, dtype=bool) if kept is None else np.array(kept, dtype=bool)
        if self.removed.shape != (n,) or self.kept.shape != (n,) or np.any(self.removed & self.kept):
            raise InputError(f"removed and kept must be masks over {n} groups that share none.")
        self._parent = [-1]
        self._first_child = [0]  # 0: a leaf
        self._code = [OPEN]  # of an inner node, the group it decides
        self._cites = [-1]
        self._free = [int(n - self.removed.sum() - self.kept.sum())]
        self._relaxations: list[Relaxation] = []
        self._latest: dict[int, int] = {}  # node -> its latest relaxation

    @classmethod
    def of(cls, problem: Any) -> ProofTree:
        """Start the tree of a problem: forced groups are decided at the root, dead ones removed.

        Parameters
        ----------
        problem : Problem
            Or anything with its gram, cross, groups, always_keep and always_remove.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> tree = ProofTree.of(Problem(np.eye(3), np.ones((3, 1)), keep=2, always_remove=[1]))
        >>> tree.removed
        array([False,  True, False])
        """
        live = live_rows(problem.gram, problem.cross)
        groups = problem.groups.group_of_row
        removed, kept = root_decisions(live, groups, problem.always_keep, problem.always_remove)
        return cls(len(kept), removed=removed, kept=kept)

    @property
    def nodes(self) -> int:
        """Number of nodes.

        Examples
        --------
        >>> ProofTree(3).nodes
        1
        """
        return len(self._parent)

    @property
    def relaxations(self) -> int:
        """Number of relaxations.

        Examples
        --------
        >>> ProofTree(3).relaxations
        0
        """
        return len(self._relaxations)

    def state(self, node: int) -> tuple[BoolArray, BoolArray]:
        """Groups removed and groups kept at a node, as two masks.

        Examples
        --------
        >>> tree = ProofTree(2)
        >>> _ = tree.branch(0, 1)
        >>> tree.state(2)
        (array([False, False]), array([False,  True]))
        """
        self._require(0 <= node < self.nodes, f"there is no node {node}")
        removed, kept = self.removed.copy(), self.kept.copy()
        while node:
            parent = self._parent[node]
            (removed if node == self._first_child[parent] else kept)[self._code[parent]] = True
            node = parent
        return removed, kept

    def branch(self, node: int, group: int) -> tuple[int, int]:
        """Decide a group at an open leaf.

        Returns
        -------
        tuple of int
            The nodes in which the group is removed and kept.

        Examples
        --------
        >>> ProofTree(2).branch(0, 1)
        (1, 2)
        """
        self._require_open(node)
        removed, kept = self.state(node)
        undecided = 0 <= group < self.n and not (removed[group] or kept[group])
        self._require(undecided, f"group {group} is not free at node {node}")
        first = self.nodes
        self._code[node], self._first_child[node] = int(group), first
        self._parent += [node, node]
        self._first_child += [0, 0]
        self._code += [OPEN, OPEN]
        self._cites += [-1, -1]
        self._free += [self._free[node] - 1] * 2
        return first, first + 1

    def relax(
        self, node: int, z: FloatArray, blocks: Sequence[FloatArray], prices: FloatArray | None = None
    ) -> int:
        """Record a perspective relaxation at a node.

        Parameters
        ----------
        node : int
        z : (free groups,) array
            In (0, 1], the groups free at the node in ascending order.
        blocks : list of arrays
            For every term the blocks of D over the same groups, each s x s and row-major, one after another.  D must
            lie below the Gram matrix of the node with a margin; see ``docs/certificates.md``.
        prices : (m,) array, optional
            One for every limit, at least 0; not needed under a single limit.

        Returns
        -------
        int
            The number by which leaves cite it.

        Examples
        --------
        >>> tree = ProofTree(2)
        >>> tree.close(0, relaxation=tree.relax(0, np.array([0.5, 0.5]), [np.array([0.9, 0.9])]))
        """
        point = self._point(node, z, "z")
        flat = tuple(np.array(block, dtype=np.float64).ravel() for block in blocks)
        self._require(bool(np.all(point > 0.0)), "z must lie in (0, 1]")
        sound = bool(flat) and all(np.isfinite(b).all() for b in flat)
        self._require(sound, "blocks must be finite, for one term or more")
        terms = {len(relaxation.blocks) for relaxation in self._relaxations if not relaxation.dual}
        self._require(terms <= {len(flat)}, "all relaxations of a tree must have equally many terms")
        return self._recorded(Relaxation(node, point, flat, _prices(prices), None))

    def relax_dual(
        self,
        node: int,
        y: FloatArray,
        delta: FloatArray,
        multipliers_matrix: AnyArray,
        prices: FloatArray | None = None,
    ) -> int:
        """Record a dual relaxation at a node.

        Parameters
        ----------
        node : int
        y : (free groups,) array
            In [0, 1]: the share of each free group, in ascending order, that is removed.
        delta : (free groups,) array
            A diagonal with diag(delta) - Q positive semidefinite; see ``docs/certificates.md``.
        multipliers_matrix : (rows, k) array
            Lambda: rows of the free groups, group by group, k the outputs or the directions.  Kept as float32 where
            that loses nothing.
        prices : (m,) array, optional
            One for every limit, at least 0; not needed under a single limit.

        Returns
        -------
        int
            The number by which leaves cite it.

        Examples
        --------
        >>> tree = ProofTree(2)
        >>> tree.relax_dual(0, np.array([0.5, 0.5]), np.ones(2), np.ones((2, 3)))
        0
        """
        point = self._point(node, y, "y")
        diagonal = np.array(delta, dtype=np.float64)
        single = (
            getattr(multipliers_matrix, "dtype", None) == np.float32
        )  # half the memory while the search runs
        lam = np.array(multipliers_matrix, dtype=np.float32 if single else np.float64)
        self._require(diagonal.shape == point.shape, f"delta needs {len(point)} numbers at node {node}")
        self._require(lam.ndim == 2, "multipliers_matrix must be a matrix")
        finite = bool(np.isfinite(diagonal).all() and np.isfinite(lam).all())
        self._require(finite, "delta and multipliers_matrix must be finite")
        return self._recorded(Relaxation(node, point, (diagonal,), _prices(prices), lam))

    def close(self, node: int, *, relaxation: int) -> None:
        """Close a leaf by a relaxation at it or above it.

        Examples
        --------
        >>> tree = ProofTree(1)
        >>> tree.close(0, relaxation=tree.relax(0, np.ones(1), [np.array([0.5])]))
        """
        self._require_open(node)
        self._require(0 <= relaxation < self.relaxations, f"there is no relaxation {relaxation}")
        at, above = self._relaxations[relaxation].node, node
        while above > at:  # children are younger than their parents
            above = self._parent[above]
        self._require(
            above == at, f"node {node} is not at or below node {at}, where relaxation {relaxation} stands"
        )
        self._code[node], self._cites[node] = BOUND, relaxation

    def close_superset(self, node: int) -> None:
        """Close a leaf by the value of keeping all that is not removed there.

        Examples
        --------
        >>> ProofTree(1).close_superset(0)
        """
        self._close(node, SUPERSET)

    def close_enumerated(self, node: int) -> None:
        """Close a leaf by leaving its supports, at most 4096, to the checker.

        Examples
        --------
        >>> ProofTree(1).close_enumerated(0)
        """
        self._close(node, ENUMERATED)

    def close_infeasible(self, node: int) -> None:
        """Close a leaf whose kept groups pass a limit.

        Examples
        --------
        >>> ProofTree(1).close_infeasible(0)
        """
        self._close(node, INFEASIBLE)

    def packed(self, sizes: IntArray, limits: int) -> PackedTree:
        """Arrays of the tree: nodes in preorder, relaxations that nothing cites left out.

        Parameters
        ----------
        sizes : (n,) array of int
            Rows of every group.
        limits : int
            How many limits there are.

        Raises
        ------
        InputError
            If blocks, multipliers or prices do not have the sizes they should, or a block is not symmetric.

        Examples
        --------
        >>> tree = ProofTree(2)
        >>> _ = tree.branch(0, 1)
        >>> tree.packed(np.array([1, 1]), 1).tree
        array([ 1, -5, -5])
        """
        order, cites = self._preorder()
        used = sorted(set(cites) - {-1})
        number = {old: new for new, old in enumerate(used)} | {-1: -1}
        place = np.empty(self.nodes, dtype=np.int64)
        place[order] = np.arange(self.nodes)
        relaxations = [self._relaxations[index] for index in used]
        prices = np.zeros((len(used), limits))
        for row, relaxation in zip(prices, relaxations, strict=True):
            if relaxation.prices is not None:
                self._require(relaxation.prices.shape == (limits,), f"prices must be {limits} numbers")
                row[:] = relaxation.prices
        plain = [relaxation for relaxation in relaxations if not relaxation.dual]
        dual = [relaxation for relaxation in relaxations if relaxation.dual]
        return PackedTree(
            tree=np.array([self._code[node] for node in order], dtype=np.int64),
            cites=np.array([number[cites[node]] for node in order], dtype=np.int64),
            relaxed_at=np.array([place[relaxation.node] for relaxation in relaxations], dtype=np.int64),
            z=np.concatenate([np.zeros(0), *(relaxation.z for relaxation in plain)]),
            d=np.concatenate([np.zeros(0), *(self._triangles(relaxation, sizes) for relaxation in plain)]),
            prices=prices,
            dual=np.array([relaxation.dual for relaxation in relaxations], dtype=bool),
            y=np.concatenate([np.zeros(0), *(relaxation.z for relaxation in dual)]),
            delta=np.concatenate([np.zeros(0), *(relaxation.blocks[0] for relaxation in dual)]),
            lam=self._multipliers(dual, sizes),
        )

    def _preorder(self) -> tuple[list[int], list[int]]:
        """Nodes in preorder; and what every node cites, open leaves the deepest relaxation there is for them."""
        order, cites, due = [], list(self._cites), [(0, -1)]
        while due:
            node, above = due.pop()
            latest = self._latest.get(node, above)
            order.append(node)
            if self._first_child[node]:
                due += [(self._first_child[node] + 1, latest), (self._first_child[node], latest)]
            elif self._code[node] == OPEN:
                cites[node] = latest
        return order, cites

    def _triangles(self, relaxation: Relaxation, sizes: IntArray) -> FloatArray:
        """Lower triangles of the blocks, term by term and group by group."""
        removed, kept = self.state(relaxation.node)
        free = sizes[~(removed | kept)]
        wanted = int((free**2).sum())
        for term in relaxation.blocks:
            self._require(
                term.shape == (wanted,),
                f"the blocks at node {relaxation.node} need {wanted} numbers for every term",
            )
        if np.all(free == 1):
            return np.concatenate(relaxation.blocks)
        cuts = np.cumsum(free**2)[:-1]
        return np.concatenate(
            [
                _triangle(block.reshape(size, size))
                for term in relaxation.blocks
                for size, block in zip(free.tolist(), np.split(term, cuts), strict=True)
            ]
        )

    def _multipliers(self, dual: list[Relaxation], sizes: IntArray) -> AnyArray:
        """Lambda of all dual relaxations, one below the other; float32 if every number is one."""
        for relaxation in dual:
            removed, kept = self.state(relaxation.node)
            rows = int(sizes[~(removed | kept)].sum())
            self._require(
                relaxation.lam is not None and len(relaxation.lam) == rows,
                f"multipliers_matrix needs {rows} rows at node {relaxation.node}",
            )
        lams = [relaxation.lam for relaxation in dual if relaxation.lam is not None]
        self._require(
            len({lam.shape[1] for lam in lams}) <= 1,
            "multipliers_matrix must have equally many columns everywhere",
        )
        if not lams:
            return np.zeros((0, 0), dtype=np.float32)
        lam = np.concatenate(lams)
        with np.errstate(over="ignore"):
            rounded = lam.astype(np.float32)
        return rounded if np.array_equal(rounded, lam) else lam

    def _point(self, node: int, values: FloatArray, name: str) -> FloatArray:
        self._require(0 <= node < self.nodes, f"there is no node {node}")
        point = np.array(values, dtype=np.float64)
        self._require(
            point.shape == (self._free[node],), f"{name} needs {self._free[node]} numbers at node {node}"
        )
        self._require(bool(np.all((point >= 0.0) & (point <= 1.0))), f"{name} must lie in [0, 1]")
        return point

    def _recorded(self, relaxation: Relaxation) -> int:
        prices = relaxation.prices
        sound = prices is None or bool(np.all(prices >= 0.0) and np.isfinite(prices).all())
        self._require(sound, "prices must be finite and not negative")
        self._relaxations.append(relaxation)
        self._latest[relaxation.node] = len(self._relaxations) - 1
        return self._latest[relaxation.node]

    def _close(self, node: int, code: int) -> None:
        self._require_open(node)
        self._code[node] = code

    def _require_open(self, node: int) -> None:
        is_open = 0 <= node < self.nodes and self._code[node] == OPEN
        self._require(is_open, f"node {node} is not an open leaf")

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"this is no step of a proof: {what}.")

    def __repr__(self) -> str:
        still = self._code.count(OPEN)
        return f"ProofTree(n={self.n}, nodes={self.nodes}, open={still}, relaxations={self.relaxations})"


def _prices(prices: FloatArray | None) -> FloatArray | None:
    return None if prices is None else np.array(prices, dtype=np.float64)


def _triangle(block: FloatArray) -> FloatArray:
    scale = np.abs(block.diagonal()).max(initial=0.0)
    if not np.abs(block - block.T).max(initial=0.0) <= _ASYMMETRY * scale:
        raise InputError("this is no step of a proof: a block of D is not symmetric.")
    return np.asarray((0.5 * (block + block.T))[np.tril_indices(len(block))])


def live_rows(gram: FloatArray, cross: FloatArray) -> BoolArray:
    """Mask of the rows that are not zero in gram and in cross alike."""
    live: BoolArray = gram.diagonal() != 0.0
    for row in np.flatnonzero(~live):
        live[row] = bool(np.any(gram[row]) or np.any(cross[row]))
    return live


def root_decisions(
    live: BoolArray, group_of_row: IntArray, always_keep: BoolArray, always_remove: BoolArray
) -> tuple[BoolArray, BoolArray]:
    """Groups removed and kept at the root of every proof: the forced ones, and those without a live row are removed."""
    dead = np.bincount(group_of_row, live, len(always_keep)) == 0.0
    return always_remove | (dead & ~always_keep), always_keep
