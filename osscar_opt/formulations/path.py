"""A path: one order of removing all groups, with the value of every support along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.solution import new_axis
from osscar_opt.linalg.factor import factor

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["Path", "path_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """Values of nested supports for every number of groups kept.

    Attributes
    ----------
    problem : Problem
    method : str
    order : (n,) array of int
        Groups in order of removal; what is removed last comes last.
    objectives : (n + 1,) array
        Objective with n, n - 1, ..., 0 groups kept, weights refitted.

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
        """Numbers of groups kept, n down to 0; goes with `objectives`.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), np.ones((2, 1))).path("magnitude_refit").keeps
        array([2, 1, 0])
        """
        return np.arange(len(self.order), -1, -1)

    def support(self, keep: int) -> BoolArray:
        """Groups kept when `keep` of them are.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit").support(2)
        array([False,  True,  True])
        """
        removed = len(self.order) - self._checked(keep)
        support = np.ones(len(self.order), dtype=bool)
        support[self.order[:removed]] = False
        return support

    def objective(self, keep: int) -> float:
        """Objective when `keep` groups are kept.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit").objective(2)
        0.5
        """
        return float(self.objectives[len(self.order) - self._checked(keep)])

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
        return f"Path({self.method}, n={len(self.order)}, objectives {first:.6g} to {last:.6g})"

    def _checked(self, keep: int) -> int:
        return _validate.count(keep, "keep", len(self.order))


def path_of(problem: Problem, order: IntArray, method: str) -> Path:
    """Compute the values along an order of removal, all from one Cholesky factorisation.

    With the rows sorted so that what is removed last comes first, H = L L' and Z = L^-1 G, keeping the first k groups
    explains half the squared norm of their rows of Z; the value is base plus half the squared norm of the other rows.

    Parameters
    ----------
    problem : Problem
    order : (n,) array of int
        A permutation of the groups, in order of removal.
    method : str

    Raises
    ------
    InputError
        If `order` is not a permutation of the groups.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> path_of(Problem(np.eye(2), [[1.0], [2.0]]), np.array([0, 1]), "by hand").objectives
    array([0. , 0.5, 2.5])
    """
    removal = np.asarray(order, dtype=np.int64)
    if not np.array_equal(np.sort(removal), np.arange(problem.n)):
        raise InputError(f"a path must name each of the {problem.n} groups once.")
    rank = np.empty(problem.n, dtype=np.int64)
    rank[removal[::-1]] = np.arange(problem.n)
    rows = np.argsort(rank[problem.groups.group_of_row], kind="stable")
    rows = rows[problem.live_rows[rows]]
    whitened = factor(problem.gram[np.ix_(rows, rows)]).whiten(problem.cross[rows])
    explained = np.zeros(problem.p)
    explained[rows] = 0.5 * np.einsum("ij,ij->i", whitened, whitened)
    lost = np.cumsum(problem.groups.total(explained)[removal])
    return Path(problem, method, removal, problem.base + np.concatenate([[0.0], lost]))
