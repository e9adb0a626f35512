"""A solution: the support, its weights, and numbers recomputed from the problem rather than reported by a solver."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray
from osscar_opt.certificates import Certificate
from osscar_opt.errors import SolverError, UnavailableError

if TYPE_CHECKING:
    import os

    from osscar_opt.formulations.problem import Problem

__all__ = [
    "BoundKind",
    "Solution",
    "Status",
    "Termination",
    "TraceEntry",
    "absolute_tolerance",
    "relative_gap",
]

_FLOOR = 1e-12
_SQUARED_ROUNDING = 1e-26
_CANCELLATION = 1e-14
"""Objectives closer than this part of what the layer explains are equal up to rounding."""


class Status(enum.StrEnum):
    """What is known of the solution.

    Examples
    --------
    >>> str(Status.OPTIMAL)
    'optimal'
    """

    OPTIMAL = "optimal"  # its bound meets its value
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    NONE = "none"


class Termination(enum.StrEnum):
    """Why the search ended.

    Examples
    --------
    >>> Termination("time_limit") is Termination.TIME_LIMIT
    True
    """

    COMPLETED = "completed"
    LOCAL_OPTIMUM = "local_optimum"
    TIME_LIMIT = "time_limit"
    NODE_LIMIT = "node_limit"
    ITERATION_LIMIT = "iteration_limit"
    GAP_LIMIT = "gap_limit"
    MEMORY_LIMIT = "memory_limit"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class BoundKind(enum.StrEnum):
    """How far a lower bound can be trusted: claimed by a solver, or checked apart from it.

    Examples
    --------
    >>> [str(kind) for kind in BoundKind]
    ['none', 'claimed', 'certified']
    """

    NONE = "none"
    CLAIMED = "claimed"
    CERTIFIED = "certified"


@dataclass(frozen=True)
class TraceEntry:
    """One improvement during the search: seconds since it began, best objective, best bound.

    Examples
    --------
    >>> TraceEntry(0.5, 2.0, 1.0).objective
    2.0
    """

    time: float
    objective: float
    bound: float


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """What `Problem.solve` returns; every number in it was recomputed from `problem`.

    Attributes
    ----------
    problem : Problem
        As posed, before presolve.
    method : str
    support : (n,) mask
        True = kept; data of its own, never inferred from zeros in the weights.
    weights : (p, q) array
        Exactly zero outside the support.
    objective : float
    bound : float
        No feasible support goes below it; -inf if unknown.
    bound_kind : BoundKind
    status : Status
        OPTIMAL only if the bound meets the objective.
    termination : Termination
    message : str
        One sentence about anything unusual, or "".
    trace : tuple of TraceEntry
        Improvements the solver claimed while it ran; the last entry holds the recomputed objective.
    stats : mapping
    options : mapping
        Every option of the method, as resolved.
    certificate : Certificate or object or None
        A proof of the bound, checked before it came here: `Certificate.save` writes it to a file that anyone can
        check, ``certificate.check()`` does so once more.  Methods of others may return objects of their own.
    setup_time, solve_time : float
        Seconds of presolve, and of the search itself.
    versions : mapping

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> solution = Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude_refit")
    >>> solution.support, solution.objective, solution.relative
    (array([False,  True]), 0.5, 0.1)
    """

    problem: Problem
    method: str
    support: BoolArray
    weights: FloatArray
    objective: float
    bound: float = -math.inf
    bound_kind: BoundKind = BoundKind.NONE
    status: Status = Status.FEASIBLE
    termination: Termination = Termination.COMPLETED
    message: str = ""
    trace: tuple[TraceEntry, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    certificate: object | None = None
    setup_time: float = 0.0
    solve_time: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def kept(self) -> IntArray:
        """Indices of the groups that stay.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).solve("magnitude").kept
        array([1, 2])
        """
        return np.flatnonzero(self.support)

    @property
    def relative(self) -> float:
        """Objective divided by the objective of keeping nothing; NaN if that is not positive.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), [[1.0], [3.0]], keep=0).solve("magnitude").relative
        1.0
        """
        nothing = self.problem.constant
        return self.objective / nothing if nothing > 0.0 else math.nan

    @property
    def intercept(self) -> FloatArray | None:
        """The best bias beside the weights, ``target_mean - W' input_mean``, shape (q,); None without means.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> inputs, weights = [[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]], [[1.0], [2.0]]
        >>> problem = Problem.from_data(inputs, weights, damping=1e-9, intercept=True, keep=1)
        >>> problem.solve("greedy").intercept.round(6)  # the second input is constant: 2 * 4 of it moves over
        array([8.])
        """
        means = self.problem.input_mean, self.problem.target_mean
        if means[0] is None or means[1] is None:
            return None
        return means[1] - self.weights.T @ means[0]

    @property
    def gap(self) -> float:
        """``(objective - bound) / abs(objective)``: 0 when they meet up to rounding, inf without a bound.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude").gap
        inf
        """
        rounding = _FLOOR * abs(self.objective) + absolute_tolerance(self.problem)
        return relative_gap(self.objective, self.bound, rounding)

    @property
    def seed(self) -> int | None:
        """The seed, for methods that have one.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("random", seed=7).seed
        7
        """
        return self.options.get("seed")

    @property
    def problem_hash(self) -> str:
        """Hash of the instance, the key under which its results are compared.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), [[1.0], [3.0]], keep=1)
        >>> problem.solve("magnitude").problem_hash == problem.hash
        True
        """
        return self.problem.hash

    def certify(self, time_limit: float | None = 60.0, **options: Any) -> Solution:
        """Return the same solution with a lower bound that the certificates' checker has verified.

        Whatever method found it: the bound is that of `Problem.lower_bound`, the better of the two if there is one
        already, and so the gap is proven.

        Parameters
        ----------
        time_limit : float, optional
            Seconds for the bound; its check comes on top.
        **options
            Of `osscar_opt.formulations.lower_bound.lower_bound`.

        Raises
        ------
        SolverError
            If the checker does not accept the proof.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> rough = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).solve("greedy")
        >>> rough.bound_kind.value, rough.certify(time_limit=5).bound_kind.value
        ('none', 'certified')
        """
        from osscar_opt.formulations.lower_bound import certified

        return certified(self, time_limit, **options)

    def verify(self) -> None:
        """Recompute everything that can be recomputed.

        Raises
        ------
        SolverError
            Naming the first thing that does not hold.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude").verify()
        """
        problem = self.problem
        if self.support.dtype != bool or self.support.shape != (problem.n,):
            raise SolverError(
                f"the support must be a mask over {problem.n} groups, but its shape is {self.support.shape}."
            )
        violation = problem.violation(self.support)
        if violation:
            raise SolverError(f"the support is not feasible: it {violation}.")
        if self.weights.shape != problem.cross.shape:
            raise SolverError(
                f"the weights must have shape {problem.cross.shape}, but theirs is {self.weights.shape}."
            )
        outside = ~problem.groups.row_mask(self.support)
        if np.any(self.weights[outside]):
            raise SolverError(
                f"the weights are not zero on row {_first_nonzero_row(self.weights, outside)}, which was removed."
            )
        recomputed = problem.objective(self.weights)
        slack = absolute_tolerance(problem)
        if not abs(recomputed - self.objective) <= 1e-9 * abs(recomputed) + slack:
            raise SolverError(f"the objective is {recomputed:.12g}, not {self.objective:.12g} as stated.")
        if self.bound > self.objective + 1e-6 * abs(self.objective) + slack:
            raise SolverError(f"the bound {self.bound:.12g} is above the objective {self.objective:.12g}.")
        if isinstance(self.certificate, Certificate) and self.bound_kind is BoundKind.CERTIFIED:
            report = self.certificate.check(problem)
            if not report.valid:
                raise SolverError(f"the certificate does not hold: {report.reasons[0]}")
            if self.bound > report.bound + 1e-9 * abs(self.bound) + slack:
                raise SolverError(f"the certificate proves only {report.bound:.12g}, not {self.bound:.12g}.")

    def apply_to(self, layer: Any, name: str | None = None) -> Any:
        """Write the weights into a torch layer; see `osscar_opt.torch.apply.apply_solution`.

        Parameters
        ----------
        layer : torch.nn.Module
            The layer, or a model that holds it.
        name : str, optional
            Dotted name of the layer within the model.

        Examples
        --------
        >>> import torch
        >>> from osscar_opt import Problem
        >>> layer = torch.nn.Linear(4, 3)
        >>> _ = Problem.from_torch_layer(layer, [torch.eye(4)], keep=2).solve("magnitude").apply_to(layer)
        >>> int((layer.weight != 0).any(dim=0).sum())
        2
        """
        from osscar_opt.torch.apply import apply_solution

        return apply_solution(self, layer, name)

    def plot(self, ax: Any = None) -> Any:
        """Draw objective and bound against time, on `ax` or on a new matplotlib axis, which is returned.

        Raises
        ------
        UnavailableError
            If matplotlib is not installed.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> solution = Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude")
        >>> axis = solution.plot()  # doctest: +SKIP
        """
        axis = new_axis() if ax is None else ax
        for label in ("objective", "bound"):
            points = [(entry.time, getattr(entry, label)) for entry in self.trace]
            finite = [point for point in points if math.isfinite(point[1])]
            if finite:
                axis.step(*zip(*finite, strict=True), where="post", label=label)
        axis.set_xlabel("seconds")
        axis.set_ylabel("objective")
        axis.set_title(self.method)
        axis.legend()
        return axis

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the solution to a .safetensors file.

        Examples
        --------
        >>> import os, tempfile
        >>> from osscar_opt import Problem
        >>> folder = tempfile.TemporaryDirectory()
        >>> solution = Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude")
        >>> solution.save(os.path.join(folder.name, "solution.safetensors"))
        >>> folder.cleanup()
        """
        from osscar_opt.instances import save_solution

        save_solution(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights and the certificate, as JSON can hold it; unknown numbers are None.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> d = Problem(np.eye(2), [[1.0], [3.0]], keep=1).solve("magnitude").to_dict()
        >>> d["kept"], d["objective"], d["bound"]
        ([1], 0.5, None)
        """
        return {
            "method": self.method,
            "options": _jsonable(self.options),
            "kept": [int(group) for group in self.kept],
            "n": self.problem.n,
            "objective": _jsonable(self.objective),
            "relative": _jsonable(self.relative),
            "bound": _jsonable(self.bound),
            "bound_kind": str(self.bound_kind),
            "gap": _jsonable(self.gap),
            "status": str(self.status),
            "termination": str(self.termination),
            "message": self.message,
            "setup_time": self.setup_time,
            "solve_time": self.solve_time,
            "trace": [[_jsonable(value) for value in (e.time, e.objective, e.bound)] for e in self.trace],
            "stats": _jsonable(self.stats),
            "seed": self.seed,
            "versions": dict(self.versions),
            "problem_hash": self.problem_hash,
        }

    def __repr__(self) -> str:
        gap = f", gap={self.gap:.2g}" if math.isfinite(self.gap) else ""
        return (
            f"Solution({self.method}, kept={len(self.kept)}/{self.problem.n}, objective={self.objective:.6g}, "
            f"relative={self.relative:.4g}{gap}, {self.status}, {self.termination})"
        )


def relative_gap(objective: float, bound: float, rounding: float = 0.0) -> float:
    """``(objective - bound) / abs(objective)``; 0 where they are no more than `rounding` apart, inf at objective 0.

    Examples
    --------
    >>> relative_gap(2.0, 1.5), relative_gap(2.0, 2.0), relative_gap(2.0, -math.inf)
    (0.25, 0.0, inf)
    """
    apart = objective - bound
    if apart <= rounding:
        return 0.0
    return apart / abs(objective) if objective else math.inf


def absolute_tolerance(problem: Problem) -> float:
    """Difference of two objectives of `problem` that is rounding, however small the objectives.

    An objective is base + 1/2 tr(D' H D). The second term is right to rounding relative to itself, down to the
    square of the weights' own rounding; base is what it was given as, or what is left of the constant by cancellation.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> absolute_tolerance(Problem(np.eye(1), [[2.0]]))
    2e-26
    """
    floor = _FLOOR * abs(problem.base) + _SQUARED_ROUNDING * max(problem.constant - problem.base, 0.0)
    return floor if problem.base_is_given else floor + _CANCELLATION * abs(problem.constant)


def new_axis() -> Any:
    """Make a matplotlib axis on a figure of its own.

    Raises
    ------
    UnavailableError
        If matplotlib is not installed.

    Examples
    --------
    >>> axis = new_axis()  # doctest: +SKIP
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "plotting needs matplotlib, which is not installed; run: pip install matplotlib."
        ) from error
    return pyplot.subplots()[1]


def _first_nonzero_row(weights: FloatArray, rows: BoolArray) -> int:
    return int(np.flatnonzero(rows & weights.any(axis=1))[0])


def _jsonable(value: Any) -> Any:
    """Numbers, texts and containers as JSON has them; NaN and infinity as None; anything else by its repr."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _jsonable(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else repr(value)
