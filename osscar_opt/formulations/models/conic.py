r"""The problem as cvxpy models: big-M, perspective, and two convex relaxations.

In normal form (`osscar_opt.formulations.models.normal`), with z_g whether group g stays:

    big_m        min |V|^2             lower_ij z_g <= U_ij <= upper_ij z_g,  U = U* + L^-T V
    perspective  min |F'(U - U*)|^2 + sum_g t_g - 2 <D U*, U>,   t_g z_g >= tr(U_g' D_g U_g),  FF' = H - D,
                 and the intervals of big_m: without them, a solver's tolerance on a cone, eps, lets through
                 weights of sqrt(eps) in groups that are removed, and its optimum falls visibly below the true one
    relaxation   perspective with 0 <= z <= 1, without the intervals
    sdp          min <H, Q> - 2 <G, U>   [[Q, U], [U', I]] >= 0,  [[Q_gg, U_g], [U_g', z_g I]] >= 0,  0 <= z <= 1:
                 the relaxation with the best D, which is found as the multiplier of the second inequality

all with the limits of the problem on z.  One output is one column of U; H enters once for each, hence normal form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.errors import CapabilityError, InputError, OptionError, SolverError
from osscar_opt.formulations.models.backend import run_backend
from osscar_opt.formulations.models.normal import NormalForm, normal_form
from osscar_opt.formulations.models.perspective import blended_split, eigenvalue_split, perspective_bound
from osscar_opt.formulations.models.weights import normal_weight_bounds
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import diagonal_scores, ranked_support

__all__ = ["CvxpyModel", "Form", "Split", "cvxpy_model", "require_posable"]

Form: TypeAlias = Literal["perspective", "big_m", "relaxation", "sdp"]
Split: TypeAlias = Literal["auto", "joint", "eigenvalue"]

_FORMS = ("perspective", "big_m", "relaxation", "sdp")
_SPLITS = ("auto", "joint", "eigenvalue")
_JOINT_UP_TO = 48
"""Rows and outputs together up to which the best D is looked for by default: a second or two; at 64, five or more."""

_MOST_NUMBERS = 20_000_000
"""Numbers in the constraints beyond which a model is refused: it would take gigabytes, and no solver would end."""


@dataclass(frozen=True, eq=False)
class CvxpyModel:
    """A problem as a cvxpy model, with the way back.

    ``model.problem`` is an ordinary cvxpy Problem whose objective is that of `source`; solve it with any solver that
    can, then ask for `support`, `weights` or, for a relaxation, `lower_bound`.  Solvers compare their tolerances with
    numbers near one, which ``unit`` may be far from: `normalised` is the same model with another objective, ``excess``
    in ``objective = offset + unit * excess``, and what the method ``cvxpy`` solves.

    Attributes
    ----------
    source : Problem
        As posed.
    form : str
    problem : cvxpy.Problem
        Its objective equals that of `source` wherever z is 0 or 1, up to 1e-14 of ``constant - base``.
    support_variable : cvxpy.Variable
        z, shape (n,), named "support"; boolean unless the form is a relaxation.
    weights_expression : cvxpy.Expression
        Weights times ``directions``, shape (p, r), in the units of the problem.
    directions : (q, r) array
        Orthonormal columns, r the rank of cross: ``weights @ directions @ directions.T == weights`` for every refit.
    lower, upper : (p, r) arrays or None
        The intervals of big-M, for `weights_expression`; derived in
        `osscar_opt.formulations.models.weights.weight_bounds`.
    value : float
        Objective that they rest on: supports above it may be cut off.
    split : (p, p) array or None
        D, block-diagonal, in the units of the problem: split <= gram.
    excess : cvxpy.Expression
    offset, unit : float

    Examples
    --------
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[4.0], [5.0]], keep=1)
    >>> model = problem.to_cvxpy(form="relaxation")
    >>> _ = model.problem.solve(solver="CLARABEL")
    >>> model.support(), model.lower_bound() <= problem.value(model.support())
    (array([False,  True]), True)
    """

    source: Problem
    form: Form
    problem: Any
    support_variable: Any
    weights_expression: Any
    directions: FloatArray
    lower: FloatArray | None
    upper: FloatArray | None
    value: float
    split: FloatArray | None
    excess: Any
    offset: float
    unit: float
    _normal: NormalForm
    _couplings: tuple[Any, ...]  # the constraints, one a group, whose multipliers are the best D

    def normalised(self) -> Any:
        """The same model as a cvxpy Problem that minimises `excess`: its numbers are near one, as solvers like them.

        Examples
        --------
        >>> model = Problem([[1.0]], [[2e6]], keep=0).to_cvxpy("relaxation")
        >>> round(float(model.normalised().solve(solver="CLARABEL") + model.offset / model.unit), 4)
        1.0
        """
        import cvxpy

        return cvxpy.Problem(cvxpy.Minimize(self.excess), self.problem.constraints)

    def support(self) -> BoolArray:
        """Support that z says: groups by decreasing z, each that still fits the limits; always feasible.

        Raises
        ------
        SolverError
            If z has no value.

        Examples
        --------
        >>> model = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).to_cvxpy("relaxation")
        >>> _ = model.problem.solve(solver="CLARABEL")
        >>> model.support()
        array([False,  True,  True])
        """
        wanted = np.argsort(-self._z(), kind="stable")
        allowed = wanted[~self.source.always_remove[wanted]]
        return self.source.limits.fill(allowed, self.source.always_keep)

    def weights(self) -> FloatArray:
        """Refitted weights on `support`, shape (p, q): what the model's own weights are but for its tolerances.

        Examples
        --------
        >>> model = Problem(np.eye(2), [[1.0], [3.0]], keep=1).to_cvxpy("relaxation")
        >>> _ = model.problem.solve(solver="CLARABEL")
        >>> model.weights().ravel()
        array([0., 3.])
        """
        return self.source.refit(self.support())

    def allowance(self, tolerance: float) -> float:
        r"""How far below the true optimum a solver may end that breaks each constraint by ``tolerance``.

        Let a removed row be off by :math:`\delta_{ij} = tolerance\,(1 + M_{ij})` in normal form: its interval is as
        wide as the tolerance, and z may be off by as much. The loss is convex, and its gradient at the refit vanishes
        on S and is at most :math:`2 \sqrt{loss}` elsewhere, the diagonal of H being one; so it falls by no more than

        .. math:: 2 \sqrt{loss} \Bigl( \sum_j \bigl(\sum_i \delta_{ij}\bigr)^2 \Bigr)^{1/2},

        with the loss of `value`. To this the cones add tolerance each, and the definitions of their terms twice the
        tolerance times the terms. Rounding in the solver's own arithmetic is not covered.

        Raises
        ------
        CapabilityError
            If the form is a relaxation, whose `lower_bound` needs no allowance.

        Examples
        --------
        >>> model = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).to_cvxpy("big_m")
        >>> 0.0 < model.allowance(1e-7) < 1e-4
        True
        """
        if self.lower is None or self.upper is None:
            raise CapabilityError(
                f"form {self.form!r} is a relaxation: use lower_bound, which needs no allowance."
            )
        normal = self._normal
        largest = np.maximum(np.abs(self.lower), np.abs(self.upper)) / (normal.sigma * normal.scale[:, None])
        off = tolerance * (1.0 + largest)
        pull = 2.0 * np.sqrt(normal.excess(self.value)) * float(np.linalg.norm(off.sum(axis=0)))
        rows, outputs = largest.shape
        cones = outputs + (2 * self.source.n if self.form == "perspective" else 0)
        return float(self.unit * (pull + tolerance * (cones + 2.0 * np.sqrt(rows * outputs))))

    def lower_bound(self) -> float:
        """Lower bound on the objective of every feasible support, from the solution of a relaxation.

        It is not the solver's optimal value, which is right only up to tolerances, but
        `osscar_opt.formulations.models.perspective.perspective_bound` at the z found (and the D found, for "sdp").

        Raises
        ------
        CapabilityError
            If the form is not a relaxation.
        SolverError
            If there is no solution to start from.

        Examples
        --------
        >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], [[4.0], [5.0]], keep=1)
        >>> model = problem.to_cvxpy("sdp")
        >>> _ = model.problem.solve(solver="CLARABEL")
        >>> round(model.lower_bound(), 6), round(problem.value([1]), 6)
        (0.75, 0.75)
        """
        if self.form in ("perspective", "big_m"):
            raise CapabilityError(
                f"form {self.form!r} has no bound of its own, only its solver's; use 'relaxation' or 'sdp'."
            )
        z = self._z()
        if self.form == "sdp":
            best = _multipliers(self)
            if best is None:
                raise SolverError("the model has no multipliers: solve it with a solver that gives them.")
            split = blended_split(self._normal, best, share=1e-6)
        else:
            assert self.split is not None
            split = self.split * self._normal.scale[:, None] * self._normal.scale[None, :]
        return perspective_bound(self._normal, z, split)

    def _z(self) -> FloatArray:
        if self.support_variable.value is None:
            raise SolverError("the model has no solution yet: solve model.problem first.")
        return np.asarray(self.support_variable.value, dtype=np.float64)


def cvxpy_model(
    problem: Problem, form: Form = "perspective", *, value: float | None = None, split: Split = "auto"
) -> CvxpyModel:
    """Pose a problem as a cvxpy model.

    Parameters
    ----------
    problem : Problem
        As posed or presolved; forced groups are fixed in the model.
    form : {"perspective", "big_m", "relaxation", "sdp"}, optional
        The first two are mixed-integer quadratic models of the problem itself. The perspective form is the tighter
        and needs a solver for second-order cones; of big-M, solvers for quadratic programs are enough. The other two
        are convex and give lower bounds; "sdp" is the tighter.
    value : float, optional
        Objective of a support already known, which the intervals of big-M are derived from: supports that are worse
        may be cut off. By default, the value of the support that ranking groups by themselves gives.
    split : {"auto", "joint", "eigenvalue"}, optional
        D of the perspective forms: "joint" solves "sdp" first (with Clarabel) and takes the best; "eigenvalue" is
        quick; "auto" is joint for up to 48 rows and outputs together.

    Raises
    ------
    OptionError
        If form or split is not one of those.
    InputError
        If the problem has no groups, or value is below what all groups together reach.
    CapabilityError
        If the model would be too large for any solver.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2)
    >>> model = cvxpy_model(problem, "big_m")
    >>> model.problem.is_mixed_integer(), [variable.name() for variable in model.problem.variables()]
    (True, ['residual[0]', 'support'])
    """
    _require_known(form, split)
    if problem.n == 0:
        raise InputError("this problem has no groups, so there is nothing to model.")
    require_posable(problem)
    if value is None:
        value = problem.value(ranked_support(problem, diagonal_scores(problem)))
    if value < problem.base:
        raise InputError(
            f"value = {value!r} is below {problem.base:.9g}, which is what all groups together reach."
        )
    return _Builder(normal_form(problem), form, value).build(split)


def require_posable(problem: Problem) -> None:
    """Refuse problems whose models would be too large for any solver; the work of finding out is small.

    Raises
    ------
    CapabilityError
        If rows^2 times the rank of cross is above twenty million.

    Examples
    --------
    >>> require_posable(Problem(np.eye(2), np.ones((2, 1)), keep=1))
    """
    rows, outputs = problem.p, min(problem.p, problem.q)
    if _MOST_NUMBERS < rows**2 * outputs <= 10 * _MOST_NUMBERS:
        outputs = normal_form(problem).optimum.shape[1]
    if rows**2 * outputs > _MOST_NUMBERS:
        raise CapabilityError(
            f"a model of {rows} rows and {outputs} outputs is too large for any solver; use method='search'."
        )


class _Builder:
    """The variables and constraints that the forms share, and then each form."""

    def __init__(self, normal: NormalForm, form: Form, value: float) -> None:
        import cvxpy

        self.cvxpy, self.normal, self.form, self.value = cvxpy, normal, form, value
        self.problem = normal.problem
        integer = form in ("perspective", "big_m")
        self.z = cvxpy.Variable(self.problem.n, name="support", boolean=integer)
        self.constraints: list[Any] = [] if integer else [self.z >= 0.0, self.z <= 1.0]
        limits = self.problem.limits
        if limits.names:
            self.constraints.append(limits.usage @ self.z <= limits.limit)
        for forced, to in ((self.problem.always_keep, 1.0), (self.problem.always_remove, 0.0)):
            if forced.any():
                self.constraints.append(self.z[np.flatnonzero(forced)] == to)
        self.lower: FloatArray | None = None
        self.upper: FloatArray | None = None
        self.split: FloatArray | None = None
        self.couplings: list[Any] = []

    def build(self, split: Split) -> CvxpyModel:
        if self.form == "big_m":
            weights, excess, constant = self._big_m()
        elif self.form == "sdp":
            weights, excess, constant = self._sdp()
        else:
            self.split = _split(self.normal, split)
            weights, excess, constant = self._perspective(self.split)
        normal, scale = self.normal, self.normal.sigma * self.normal.scale[:, None]
        offset = normal.objective(constant)
        in_units = scale @ np.ones((1, weights.shape[1]))
        return CvxpyModel(
            source=self.problem,
            form=self.form,
            problem=self.cvxpy.Problem(self.cvxpy.Minimize(offset + normal.unit * excess), self.constraints),
            support_variable=self.z,
            weights_expression=self.cvxpy.multiply(in_units, weights),
            directions=normal.directions,
            lower=None if self.lower is None else scale * self.lower,
            upper=None if self.upper is None else scale * self.upper,
            value=self.value,
            split=None if self.split is None else self.split / np.outer(normal.scale, normal.scale),
            excess=excess,
            offset=offset,
            unit=normal.unit,
            _normal=normal,
            _couplings=tuple(self.couplings),
        )

    def _big_m(self) -> tuple[Any, Any, float]:
        """The variables are V = L'(U - U*), a variable a column: nothing is added when cvxpy makes a program of it."""
        cvxpy, normal = self.cvxpy, self.normal
        rows, outputs = normal.optimum.shape
        residuals = [cvxpy.Variable((rows, 1), name=f"residual[{output}]") for output in range(outputs)]
        weights = normal.optimum + np.linalg.inv(normal.root.T) @ cvxpy.hstack(residuals)
        self._bound(weights)
        return weights, sum(cvxpy.sum_squares(residual) for residual in residuals), 0.0

    def _perspective(self, split: FloatArray) -> tuple[Any, Any, float]:
        cvxpy, normal = self.cvxpy, self.normal
        weights = cvxpy.Variable(normal.optimum.shape, name="weights")
        shares = cvxpy.Variable(self.problem.n, name="shares")
        for group in range(self.problem.n):
            rows = self.problem.groups.rows(group)
            root = np.linalg.cholesky(split[np.ix_(rows, rows)])
            part = cvxpy.vec(root.T @ weights[rows], order="C")
            z, share = self.z[group], shares[group]
            self.constraints.append(cvxpy.SOC(share + z, cvxpy.hstack([2.0 * part, share - z])))
        if self.form == "perspective":
            self._bound(weights)
        values, vectors = np.linalg.eigh(normal.gram - split)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        pull = split @ normal.optimum
        residual = factor.T @ (weights - normal.optimum)
        excess = (  # the squares a column at a time: solvers separate several small cones better than one large
            sum(cvxpy.sum_squares(residual[:, output]) for output in range(weights.shape[1]))
            + cvxpy.sum(shares)
            - 2.0 * cvxpy.sum(cvxpy.multiply(pull, weights))
        )
        return weights, excess, float(np.vdot(normal.optimum, pull))

    def _sdp(self) -> tuple[Any, Any, float]:
        cvxpy, normal = self.cvxpy, self.normal
        rows, outputs = normal.optimum.shape
        lifted = cvxpy.Variable((rows + outputs, rows + outputs), name="lifted", PSD=True)
        square, weights = lifted[:rows, :rows], lifted[:rows, rows:]
        self.constraints.append(lifted[rows:, rows:] == np.eye(outputs))
        self.couplings = [self._coupling(square, weights, group) for group in range(self.problem.n)]
        self.constraints.extend(self.couplings)
        excess = cvxpy.sum(cvxpy.multiply(normal.gram, square)) - 2.0 * cvxpy.sum(
            cvxpy.multiply(normal.cross, weights)
        )
        return weights, excess, float(np.vdot(normal.optimum, normal.cross))

    def _coupling(self, square: Any, weights: Any, group: int) -> Any:
        """Q_gg z_g >= U_g U_g': a rotated second-order cone for a single row, a matrix inequality for more."""
        cvxpy, z = self.cvxpy, self.z[group]
        rows = self.problem.groups.rows(group)
        if len(rows) == 1:
            row = int(rows[0])
            return cvxpy.SOC(square[row, row] + z, cvxpy.hstack([2.0 * weights[row], square[row, row] - z]))
        own, part = square[rows][:, rows], weights[rows]
        return cvxpy.bmat([[own, part], [part.T, z * np.eye(weights.shape[1])]]) >> 0

    def _bound(self, weights: Any) -> None:
        self.lower, self.upper = normal_weight_bounds(self.normal, self.normal.excess(self.value))
        cvxpy, labels = self.cvxpy, self.problem.groups.group_of_row
        per_row = cvxpy.reshape(self.z[labels], (len(labels), 1), order="C") @ np.ones((1, weights.shape[1]))
        self.constraints.append(weights <= cvxpy.multiply(self.upper, per_row))
        self.constraints.append(weights >= cvxpy.multiply(self.lower, per_row))


def _require_known(form: object, split: object) -> None:
    for name, given, known in (("form", form, _FORMS), ("split", split, _SPLITS)):
        if given not in known:
            raise OptionError(f"{name} = {given!r} must be one of {', '.join(map(repr, known))}.")


def _split(normal: NormalForm, split: Split) -> FloatArray:
    if split == "auto":
        split = "joint" if sum(normal.optimum.shape) <= _JOINT_UP_TO else "eigenvalue"
    if split == "eigenvalue":
        return eigenvalue_split(normal)
    model = _Builder(normal, "sdp", normal.problem.constant).build("auto")
    run_backend(model.normalised(), "CLARABEL", options={"accept_unknown": True})
    best = _multipliers(model)
    return eigenvalue_split(normal) if best is None else blended_split(normal, best, share=1e-3)


def _multipliers(model: CvxpyModel) -> FloatArray | None:
    """(p, p) multipliers of Q_gg in the couplings, block-diagonal, right up to a positive factor; None if unsolved."""
    groups = model.source.groups
    split = np.zeros((groups.p, groups.p))
    for group, coupling in enumerate(model._couplings):
        rows = groups.rows(group)
        dual = coupling.dual_variables[0].value
        if dual is None:
            return None
        if len(rows) == 1:  # of the cone (Q + z, 2 U, Q - z), whose first and last entries hold Q
            split[rows, rows] = float(np.squeeze(dual)) + float(
                np.ravel(coupling.dual_variables[1].value)[-1]
            )
        else:
            split[np.ix_(rows, rows)] = dual[: len(rows), : len(rows)]
    return _nonnegative(split)


def _nonnegative(split: FloatArray) -> FloatArray:
    """The nearest positive semidefinite matrix: multipliers are right up to tolerances only."""
    values, vectors = np.linalg.eigh(0.5 * (split + split.T))
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
