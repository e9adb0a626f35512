"""A path: one order of removing groups, all or down to some keep, with the value of every support along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.solution import new_axis
from osscar_opt.linalg.factor import factor, product

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["Path", "path_of"]

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """Values of nested supports for every number of groups kept, or for those from some keep k on.

    Attributes
    ----------
    problem : Problem
    method : str
    order : (n - k,) array of int
        Groups in order of removal; what is removed last comes last, and the k groups never removed are not named.
    objectives : (n - k + 1,) array
        Objective with n, n - 1, ..., k groups kept, weights refitted.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> path = Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit")
    >>> path.keeps, path.objectives
    (array([3, 2, 1, 0]), array([0. , 0.5, 2.5, 7. ]))
    """

    problem: Problem
    method: str
    order: IntArray
    objectives: FloatArray

    @property
    def keeps(self) -> IntArray:
        """Numbers of groups kept, n down to k; goes with `objectives`.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), np.ones((2, 1))).path("magnitude_refit").keeps
        array([2, 1, 0])
        """
        return np.arange(self.problem.n, self._least - 1, -1)

    def support(self, keep: int) -> BoolArray:
        """Groups kept when `keep` of them are.

        Raises
        ------
        InputError
            If the path does not go down to `keep`.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit").support(2)
        array([False,  True,  True])
        """
        support = np.ones(self.problem.n, dtype=bool)
        support[self.order[: self._removed(keep)]] = False
        return support

    def objective(self, keep: int) -> float:
        """Objective when `keep` groups are kept.

        Raises
        ------
        InputError
            If the path does not go down to `keep`.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit").objective(2)
        0.5
        """
        return float(self.objectives[self._removed(keep)])

    def plot(self, ax: Any = None) -> Any:
        """Draw the objective against the number of groups kept; returns the matplotlib axis.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> axis = Problem(np.eye(2), np.ones((2, 1))).path("magnitude_refit").plot()  # doctest: +SKIP
        """
        axis = new_axis() if ax is None else ax
        axis.plot(self.keeps, self.objectives, label=self.method)
        axis.set_xlabel("groups kept")
        axis.set_ylabel("objective")
        axis.legend()
        return axis

    def __repr__(self) -> str:
        first, last = self.objectives[[0, -1]]
        down_to = f", keep={self._least}" if self._least else ""
        return f"Path({self.method}, n={self.problem.n}{down_to}, objectives {first:.6g} to {last:.6g})"

    @property
    def _least(self) -> int:
        return self.problem.n - len(self.order)

    def _removed(self, keep: int) -> int:
        """How many groups are removed where `keep` are kept."""
        kept = _validate.count(keep, "keep", self.problem.n)
        if kept < self._least:
            raise InputError(
                f"keep = {kept} is below the {self._least} groups that this path ends with: compute it with "
                f"keep={kept} or less."
            )
        return self.problem.n - kept


def path_of(problem: Problem, order: IntArray, method: str) -> Path:
    """Compute the values along an order of removal, all from one Cholesky factorisation.

    With the rows sorted so that what is removed last comes first, H = L L' and Z = L' W*.  What weights W lose is half
    the squared norm of L' (W - W*); refitting the rows that stay makes their part of it zero, so that each group, when
    it is removed, loses half the squared norm of its rows of Z.  Those follow from the later rows of L and of W*
    alone, without a solve, and a small loss is known to all its digits, however large the constant is.

    Parameters
    ----------
    problem : Problem
    order : (m,) array of int
        Groups in order of removal, all n or the first m.
    method : str

    Raises
    ------
    InputError
        If `order` names a group twice, or one that does not exist.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> path_of(Problem(np.eye(2), [[1.0], [2.0]]), np.array([0, 1]), "by hand").objectives
    array([0. , 0.5, 2.5])
    """
    removal = np.asarray(order, dtype=np.int64)
    known = removal[(removal >= 0) & (removal < problem.n)]
    if len(np.unique(known)) < len(removal):
        raise InputError(f"a path must name groups 0..{problem.n - 1}, none of them twice.")
    lost = np.cumsum(problem.groups.total(_row_losses(problem, removal))[removal])
    return Path(problem, method, removal, problem.base + np.concatenate([[0.0], lost]))


def _row_losses(problem: Problem, removal: IntArray) -> FloatArray:
    """(p,) what each row adds to the objective when its group is removed; zero for rows that stay."""
    rank = np.zeros(problem.n, dtype=np.int64)  # those never removed come first, in any order
    rank[removal[::-1]] = np.arange(1, len(removal) + 1)
    rank_of_row = rank[problem.groups.group_of_row]
    rows = np.argsort(rank_of_row, kind="stable")
    rows = rows[problem.live_rows[rows]]
    stay = int(np.count_nonzero(rank_of_row[rows] == 0))
    losses = np.zeros(problem.p)
    if stay == len(rows):
        return losses
    factorisation = factor(problem.gram, rows)  # of D H D, so that Z = L' inv(D) W*
    lower, leaving = factorisation.lower[stay:, stay:], rows[stay:]
    weights = problem.optimum[leaving]
    weights /= factorisation.scale[stay:, None]
    for start in range(0, len(leaving), _ROWS_AT_ONCE):
        own = slice(start, start + _ROWS_AT_ONCE)
        columns = lower[start:, own].copy(order="F")
        width = columns.shape[1]
        columns[:width] = np.tril(columns[:width])  # what stands above the diagonal means nothing
        whitened = product(columns.T, weights[start:])
        losses[leaving[own]] = 0.5 * np.einsum("ij,ij->i", whitened, whitened)
    return losses
