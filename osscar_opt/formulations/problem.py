"""The problem: which groups of inputs a layer keeps, and with which weights, to lose least.

    minimise over W, S:  1/2 tr(W' H W) - tr(G' W) + c      W zero outside the groups in S,  S within the limits

with H = `gram` (p x p), G = `cross` (p x q), c = `constant`.  The minimiser over W alone is W* = inv(H) G, `optimum`,
with value `base`, and for every W

    objective(W) = base + 1/2 tr((W - W*)' H (W - W*)),

which is how values are computed: no cancellation when the loss is a tiny fraction of c, and never below base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray, IntArray, read_only
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate, _values
from osscar_opt.formulations._budgets import Budgets, checked_budgets
from osscar_opt.formulations._digest import content_hash
from osscar_opt.formulations.groups import Groups
from osscar_opt.formulations.limits import Limits
from osscar_opt.formulations.moments import column_means, fields_from_moments, keep_at_sparsity, moments
from osscar_opt.linalg.factor import factor

if TYPE_CHECKING:
    import os

    from osscar_opt.formulations.lower_bound import LowerBound
    from osscar_opt.formulations.models.conic import CvxpyModel, Form
    from osscar_opt.formulations.path import Path
    from osscar_opt.formulations.solution import Solution

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Problem:
    """One layer's pruning problem; immutable, validated once, its arrays read-only float64.

    Parameters
    ----------
    gram : (p, p) array
        H, symmetric positive definite: X'X/N plus damping.  Rows that are zero in gram and cross alike are dead
        inputs and allowed.  An asymmetry within rounding (1e-8 of the diagonal for float64 input, 1e-4 for
        float32, 1e-2 for float16) is averaged away.
    cross : (p, q) array, optional
        G = X'Y/N plus damping times the dense weights.  If None, gram @ dense_weights: targets from the same inputs.
    groups : None, int, (p,) array of int, or Groups, optional
        What is kept or removed as one: nothing (every row alone), a size, or labels 0..n-1 of the rows.
    keep : int, optional
        How many groups may stay.
    dense_weights : (p, q) array, optional
        W0, inputs by outputs (torch stores the transpose).
    constant : float, optional
        The constant c.  If None, the one that makes the objective 0 at the unconstrained optimum.
    costs, budget : (n,) array and float, optional
        The costs of the groups that stay may add up to budget.
    always_keep, always_remove : (n,) mask or list of group indices, optional
        Groups decided beforehand.
    blocks, block_keep : (n,) array of int and (number of blocks,) array of int, optional
        Of the groups labelled b in blocks, block_keep[b] may stay.
    input_mean, target_mean : (p,) and (q,) arrays, optional
        Means of inputs and targets, both or neither: gram and cross are then moments about them, and the fit has an
        intercept, ``target_mean - W' input_mean``, which no solver needs to know of.
    name : str, optional
    provenance : dict, optional
        Where the numbers come from; anything JSON can hold.
    copy : bool, optional
        If False, float64 arrays are taken as they are (read-only views; do not change them afterwards).

    Attributes
    ----------
    dense_is_optimal : bool
        Whether W0 is known to be the unconstrained optimum (cross was derived from it).

    Raises
    ------
    InputError
        If an array is malformed: sizes that disagree, NaN, asymmetry, keep out of range.
    NotPositiveDefiniteError
        If gram is not positive definite; says how much damping would make it so.
    InfeasibleError
        If always_keep alone passes a limit.

    Examples
    --------
    >>> gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> problem = Problem(gram, dense_weights=np.array([[1.0], [1.0], [0.5]]), keep=2)
    >>> problem
    Problem(p=3, q=1, groups=Groups(n=3, sizes=1), keep=2)
    >>> problem.value([True, True, False])
    0.125
    """

    gram: FloatArray
    cross: FloatArray
    groups: Groups
    dense_weights: FloatArray | None
    dense_is_optimal: bool
    keep: int | None
    costs: FloatArray | None
    budget: float | None
    always_keep: BoolArray
    always_remove: BoolArray
    blocks: IntArray | None
    block_keep: IntArray | None
    input_mean: FloatArray | None
    target_mean: FloatArray | None
    name: str
    _provenance: str = field(metadata={"note": "JSON text, so that nobody can change it"})
    _level: tuple[Literal["base", "constant"], float]  # which of the two was given; the other follows

    def __init__(
        self,
        gram: Any,
        cross: Any = None,
        *,
        groups: Any = None,
        keep: int | None = None,
        dense_weights: Any = None,
        constant: float | None = None,
        costs: Any = None,
        budget: float | None = None,
        always_keep: Any = None,
        always_remove: Any = None,
        blocks: Any = None,
        block_keep: Any = None,
        input_mean: Any = None,
        target_mean: Any = None,
        name: str = "",
        provenance: Mapping[str, Any] | None = None,
        copy: bool = True,
    ) -> None:
        h, itemsize = _validate.matrix(gram, "gram", copy=copy)
        h = _validate.symmetric(h, itemsize, owned=copy or itemsize != 8)
        g, dense = _cross_and_dense(cross, dense_weights, h, copy=copy)
        if g.shape[1] == 0:
            raise InputError("cross has no columns: pass at least one output of the layer to reconstruct.")
        grouping = Groups.coerce(groups, len(h))
        budgets = checked_budgets(
            grouping.n,
            keep=keep,
            costs=costs,
            budget=budget,
            always_keep=always_keep,
            always_remove=always_remove,
            blocks=blocks,
            block_keep=block_keep,
        )
        means = _means(input_mean, target_mean, g.shape)
        self._fill(
            gram=read_only(h, owned=copy),
            cross=read_only(g, owned=copy or cross is None),
            groups=grouping,
            dense_weights=None if dense is None else read_only(dense, owned=copy),
            dense_is_optimal=cross is None,
            input_mean=means[0],
            target_mean=means[1],
            name=str(name),
            _provenance=_json(provenance),
            _level=_level(constant),
            **vars(budgets),
        )
        factorisation = _validate.positive_definite(h, _validate.live_rows(h, g))
        if not self.dense_is_optimal:  # solved now, while the factor is at hand
            self.__dict__["optimum"] = read_only(_values.solved(factorisation, g), owned=True)

    @classmethod
    def from_data(
        cls,
        inputs: Any,
        weights: Any = None,
        *,
        targets: Any = None,
        damping: float = 1e-2,
        intercept: bool = False,
        sparsity: float | None = None,
        keep: int | None = None,
        **rest: Any,
    ) -> Problem:
        """Pose the problem of approximating targets, or the dense layer itself, from calibration inputs.

        Parameters
        ----------
        inputs : (N, p) array
            X, any floating type.
        weights : (p, q) array, optional
            W0.  Without targets, the targets are X W0.
        targets : (N, q) array, optional
            The targets Y.
        damping : float, optional
            Relative to mean diag(X'X/N); added to the diagonal, and pulling towards W0 (towards 0 without weights).
        intercept : bool, optional
            Fit X W + 1 b' instead of X W: moments are then taken about the means, and `Solution.intercept` is b.
        sparsity : float, optional
            Fraction of groups removed: keep = n - floor(sparsity n).
        keep : int, optional
        **rest
            groups, costs, budget, ... as for `Problem`.

        Examples
        --------
        >>> inputs = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> Problem.from_data(inputs, [[1.0], [2.0]], sparsity=0.5)
        Problem(p=2, q=1, groups=Groups(n=2, sizes=1), keep=1)
        """
        means = column_means(inputs, targets) if intercept else (None, None)
        second, cross, energy = moments(inputs, targets, about=means)
        if targets is None and weights is not None and len(weights) == len(inputs) != len(second):
            raise InputError(
                f"weights has {len(weights)} rows, one for each sample: pass the outputs of the layer as targets=."
            )
        parts = fields_from_moments(second, weights, cross, energy, damping, copy=False)
        if intercept:
            produced = parts["dense_weights"].T @ means[0] if means[1] is None else means[1]
            parts |= {"input_mean": means[0], "target_mean": produced}
        return cls._from_fields(parts, sparsity, keep, rest)

    @classmethod
    def from_moments(
        cls,
        second_moment: Any,
        weights: Any = None,
        *,
        cross_moment: Any = None,
        target_energy: float | None = None,
        damping: float = 1e-2,
        sparsity: float | None = None,
        keep: int | None = None,
        copy: bool = True,
        **rest: Any,
    ) -> Problem:
        """Pose the problem from moments accumulated elsewhere; see `from_data` for the meaning of the rest.

        With ``input_mean`` and ``target_mean`` among the rest, every moment is one about these means.

        Parameters
        ----------
        second_moment : (p, p) array
            X'X/N.
        weights : (p, q) array, optional
            W0.
        cross_moment : (p, q) array, optional
            X'Y/N; without it the targets are X W0.
        target_energy : float, optional
            tr(Y'Y)/N; without it the objective is measured from the unconstrained optimum.
        damping, sparsity, keep
            As for `from_data`.
        copy : bool, optional
            If False, float64 moments are damped in place and belong to the problem from then on, so that no second
            array of their size is needed.
        **rest
            As for `from_data`.

        Examples
        --------
        >>> Problem.from_moments([[2.0]], [[3.0]], damping=0.5).gram
        array([[3.]])
        """
        parts = fields_from_moments(second_moment, weights, cross_moment, target_energy, damping, copy=copy)
        return cls._from_fields(parts, sparsity, keep, rest)

    @classmethod
    def from_torch_layer(cls, *args: Any, **kwargs: Any) -> Problem:
        """Pose the problem of a torch layer; see `osscar_opt.torch.extract.problem_from_layer` for the arguments.

        Examples
        --------
        >>> import torch
        >>> layer, batches = torch.nn.Linear(4, 3), [torch.eye(4)]
        >>> Problem.from_torch_layer(layer, batches, sparsity=0.5).keep
        2
        """
        from osscar_opt.torch.extract import problem_from_layer

        return problem_from_layer(*args, **kwargs)

    @property
    def n(self) -> int:
        """Number of groups.

        Examples
        --------
        >>> Problem(np.eye(4), np.ones((4, 1)), groups=2).n
        2
        """
        return self.groups.n

    @property
    def p(self) -> int:
        """Number of rows, the inputs of the layer.

        Examples
        --------
        >>> Problem(np.eye(4), np.ones((4, 1)), groups=2).p
        4
        """
        return len(self.gram)

    @property
    def q(self) -> int:
        """Number of columns, the outputs of the layer.

        Examples
        --------
        >>> Problem(np.eye(4), np.ones((4, 1)), groups=2).q
        1
        """
        return int(self.cross.shape[1])

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from, as handed in; a fresh copy.

        Examples
        --------
        >>> Problem([[1.0]], [[1.0]], provenance={"model": "toy"}).provenance
        {'model': 'toy'}
        """
        return json.loads(self._provenance)  # type: ignore[no-any-return]

    @cached_property
    def limits(self) -> Limits:
        """Every budget as packing constraints.

        Examples
        --------
        >>> Problem(np.eye(2), np.ones((2, 1)), keep=1).limits.names
        ('keep',)
        """
        return Limits.of(
            self.n,
            keep=self.keep,
            costs=self.costs,
            budget=self.budget,
            blocks=self.blocks,
            block_keep=self.block_keep,
        )

    @cached_property
    def features(self) -> frozenset[str]:
        """What a solver must handle beside a plain keep: "budget", "blocks", "forced", "unequal_groups".

        Examples
        --------
        >>> sorted(Problem(np.eye(3), np.ones((3, 1)), groups=[0, 0, 1], always_keep=[1]).features)
        ['forced', 'unequal_groups']
        """
        present = {
            "budget": self.budget is not None,
            "blocks": self.block_keep is not None,
            "forced": bool(np.any(self.always_keep) or np.any(self.always_remove)),
            "unequal_groups": self.n > 0 and self.groups.uniform_size is None,
        }
        return frozenset(name for name, holds in present.items() if holds)

    @cached_property
    def live_rows(self) -> BoolArray:
        """Mask of the rows that are not dead, shape (p,); dead are inputs whose gram and cross rows are all zero.

        Examples
        --------
        >>> Problem(np.diag([1.0, 0.0]), [[1.0], [0.0]]).live_rows
        array([ True, False])
        """
        return _validate.live_rows(self.gram, self.cross)

    @cached_property
    def optimum(self) -> FloatArray:
        """Weights of the unconstrained optimum W* = inv(H) G, shape (p, q), read-only; zero on dead inputs.

        Where the dense weights are known to be optimal, they are returned as they are.

        Examples
        --------
        >>> Problem(2 * np.eye(2), [[2.0], [4.0]]).optimum.ravel()
        array([1., 2.])
        """
        if self.dense_is_optimal and self.dense_weights is not None:
            if self.live_rows.all() or not np.any(self.dense_weights[~self.live_rows]):
                return self.dense_weights
            return read_only(self.dense_weights * self.live_rows[:, None], owned=True)
        return read_only(self._refit_rows(np.ones(self.p, dtype=bool)), owned=True)

    @cached_property
    def base(self) -> float:
        """Objective at the unconstrained optimum: below it no weights can go.

        Examples
        --------
        >>> Problem([[2.0]], [[2.0]], constant=1.5).base
        0.5
        """
        kind, level = self._level
        return level if kind == "base" else level - self._explained

    @property
    def base_is_given(self) -> bool:
        """Whether `base` is exact, and `constant` follows from it, rather than the other way round.

        Examples
        --------
        >>> Problem([[2.0]], [[2.0]]).base_is_given, Problem([[2.0]], [[2.0]], constant=1.5).base_is_given
        (True, False)
        """
        return self._level[0] == "base"

    @cached_property
    def constant(self) -> float:
        """c: the objective of keeping nothing.

        Examples
        --------
        >>> Problem([[2.0]], [[2.0]]).constant
        1.0
        """
        kind, level = self._level
        return level if kind == "constant" else level + self._explained

    @cached_property
    def dense_objective(self) -> float:
        """Objective at the dense weights, or at the unconstrained optimum if there are none.

        Examples
        --------
        >>> Problem([[2.0]], [[2.0]], dense_weights=[[0.0]]).dense_objective
        1.0
        """
        return self.base if self.dense_weights is None else self.objective(self.dense_weights)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the mathematical content: data, groups, budgets; not of keep, name or provenance.

        Solutions of one instance at different keeps thus share it.

        Examples
        --------
        >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
        >>> problem.hash == problem.with_keep(2).hash
        True
        """
        derived = self.dense_is_optimal  # then cross is a product that another BLAS rounds otherwise
        return content_hash(
            gram=self.gram,
            cross=None if derived else self.cross,
            dense_weights=self.dense_weights,
            groups=self.groups.group_of_row,
            costs=self.costs,
            always_keep=self.always_keep,
            always_remove=self.always_remove,
            blocks=self.blocks,
            block_keep=self.block_keep,
            **{self._level[0]: self._level[1]},
            budget=self.budget,
            **self._means,
        )

    def objective(self, weights: Any) -> float:
        """Objective of given weights, whatever their zeros.

        Parameters
        ----------
        weights : (p, q) array

        Returns
        -------
        float
            base + 1/2 tr((W - W*)' H (W - W*)).

        Raises
        ------
        InputError
            If the shape is not (p, q) or an entry is not finite.

        Examples
        --------
        >>> Problem([[2.0]], [[2.0]]).objective([[0.0]])
        1.0
        """
        w, _ = _validate.matrix(weights, "weights", rows=self.p, copy=False)
        if w.shape != self.cross.shape:
            raise InputError(f"weights must have shape {self.cross.shape}, but theirs is {w.shape}.")
        return self.base + 0.5 * _values.excess(self.gram, w, self.optimum)

    def refit(self, support: Any) -> FloatArray:
        """Best weights on a support: the least-squares refit W_S = inv(H_SS) G_S, zero elsewhere.

        Parameters
        ----------
        support : (n,) mask or list of group indices
            True = kept.  Limits are not checked.

        Returns
        -------
        (p, q) array

        Examples
        --------
        >>> Problem([[2.0, 1.0], [1.0, 2.0]], [[3.0], [3.0]]).refit([True, False]).ravel()
        array([1.5, 0. ])
        """
        mask = _validate.group_mask(support, "support", self.n)
        if mask.all():
            return self.optimum.copy()
        return self._refit_rows(self.groups.row_mask(mask))

    def value(self, support: Any) -> float:
        """Objective of the refitted weights on a support.

        Parameters
        ----------
        support : (n,) mask or list of group indices

        Examples
        --------
        >>> Problem([[2.0, 1.0], [1.0, 2.0]], [[3.0], [3.0]]).value([0])
        0.75
        """
        return self.objective(self.refit(support))

    def feasible(self, support: Any) -> bool:
        """Whether a support meets every limit and every forced group.

        Examples
        --------
        >>> Problem(np.eye(2), np.ones((2, 1)), keep=1).feasible([True, True])
        False
        """
        return not self.violation(support)

    def violation(self, support: Any) -> str:
        """One clause saying what a support breaks, or "" if it is feasible.

        Examples
        --------
        >>> Problem(np.eye(2), np.ones((2, 1)), keep=1).violation([True, True])
        'uses 2 of keep = 1'
        """
        mask = _validate.group_mask(support, "support", self.n)
        dropped = np.flatnonzero(self.always_keep & ~mask)
        if dropped.size:
            return f"removes group {dropped[0]}, which is in always_keep"
        held = np.flatnonzero(self.always_remove & mask)
        if held.size:
            return f"keeps group {held[0]}, which is in always_remove"
        return self.limits.violation(mask)

    def with_keep(self, keep: int | None) -> Problem:
        """Return the same problem with another keep; arrays are shared, nothing is validated anew but keep.

        Examples
        --------
        >>> Problem(np.eye(3), np.ones((3, 1)), keep=1).with_keep(2).keep
        2
        """
        return self.with_limits(keep=keep)

    def with_limits(self, **changes: Any) -> Problem:
        """Return the same problem with some budgets replaced (None takes one away); arrays are shared.

        Parameters
        ----------
        **changes
            Any of keep, costs, budget, always_keep, always_remove, blocks, block_keep.

        Examples
        --------
        >>> problem = Problem(np.eye(3), np.ones((3, 1)), keep=1)
        >>> problem.with_limits(keep=None, costs=[1, 2, 3], budget=4)
        Problem(p=3, q=1, groups=Groups(n=3, sizes=1), budget=4)
        """
        names = [f.name for f in fields(Budgets)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise InputError(f"there is no limit {unknown[0]!r}: limits are {', '.join(names)}.")
        budgets = checked_budgets(self.n, **{name: changes.get(name, getattr(self, name)) for name in names})
        derived = Problem._trusted(**{**self._state(), **vars(budgets)})
        for cache in ("optimum", "base", "constant", "dense_objective"):
            if cache in self.__dict__:
                derived.__dict__[cache] = self.__dict__[cache]
        if set(changes) <= {"keep"} and "hash" in self.__dict__:
            derived.__dict__["hash"] = self.__dict__["hash"]
        return derived

    def solve(
        self,
        method: Any = "auto",
        *,
        keep: int | None = None,
        time_limit: float | None = None,
        start: Any = None,
        presolve: bool | Collection[str] = True,
        progress: bool | None = None,
        tolerance: float = 1e-6,
        on_event: Callable[[Any], object] | None = None,
        isolation: Literal["thread", "process"] = "thread",
        **options: Any,
    ) -> Solution:
        """Solve; see `osscar_opt.solvers.referee.solve`, to which all arguments go.

        Examples
        --------
        >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]])
        >>> problem.solve("magnitude", keep=2).kept
        array([1, 2])
        """
        from osscar_opt.solvers.referee import solve

        return solve(
            self,
            method,
            keep=keep,
            time_limit=time_limit,
            start=start,
            presolve=presolve,
            progress=progress,
            tolerance=tolerance,
            on_event=on_event,
            isolation=isolation,
            **options,
        )

    def path(self, method: Any = "greedy", *, keep: int = 0, **options: Any) -> Path:
        """Values for every number of groups kept, n down to 0 or to `keep`, from one run.

        See `osscar_opt.solvers.paths.path` for the arguments.

        Examples
        --------
        >>> Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("magnitude_refit").order
        array([0, 2, 1])
        """
        from osscar_opt.solvers.paths import path

        return path(self, method, keep=keep, **options)

    def to_cvxpy(self, form: Form = "perspective", **options: Any) -> CvxpyModel:
        """Pose the problem as a cvxpy model; see `osscar_opt.formulations.models.conic.cvxpy_model` for the arguments.

        Examples
        --------
        >>> model = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2).to_cvxpy("big_m")
        >>> model.problem.is_mixed_integer()
        True
        """
        from osscar_opt.formulations.models.conic import cvxpy_model

        return cvxpy_model(self, form, **options)

    def to_mps(self, path: str | os.PathLike[str], *, rounds: int = 10) -> None:
        """Write a linear outer approximation to a .mps or .lp file; see `osscar_opt.formulations.export.to_mps`.

        Examples
        --------
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Problem(np.eye(2), [[1.0], [2.0]], keep=1).to_mps(os.path.join(folder, "layer.lp"))
        """
        from osscar_opt.formulations.export import to_mps

        to_mps(self, path, rounds=rounds)

    def lower_bound(self, time_limit: float | None = 60.0, **options: Any) -> LowerBound:
        """Bound the value of every feasible support from below, also for layers too large to be solved exactly.

        See `osscar_opt.formulations.lower_bound.lower_bound` for the arguments.

        Examples
        --------
        >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=2)
        >>> problem.lower_bound(time_limit=5).value <= problem.solve("search").objective
        True
        """
        from osscar_opt.formulations.lower_bound import lower_bound

        return lower_bound(self, time_limit, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the instance to a .safetensors file, to be read by `osscar_opt.load`.

        Examples
        --------
        >>> import os, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> Problem(np.eye(2), np.ones((2, 1))).save(os.path.join(folder.name, "layer.safetensors"))
        >>> folder.cleanup()
        """
        from osscar_opt.instances import save

        save(self, path)

    def describe(self) -> str:
        """Several lines of text on the size, the scale and the limits of the problem.

        Examples
        --------
        >>> print(Problem(np.eye(2), [[1.0], [3.0]], keep=1, name="toy").describe())
        toy: 2 rows by 1 columns, 2 groups of 1
        limits:            keep = 1
        objective:         0 at best, 5 with nothing kept
        diagonal of gram:  1 to 1
        """
        limits = ", ".join(f"{name} = {limit:.6g}" for name, limit in _shown_limits(self)) or "none"
        forced = int(self.always_keep.sum()), int(self.always_remove.sum())
        diagonal = self.gram.diagonal()
        sizes = sorted({int(size) for size in self.groups.sizes})
        of = "" if not sizes else f" of {sizes[0]}" if len(sizes) == 1 else f" of {sizes[0]} to {sizes[-1]}"
        lines = [
            f"{self.name or 'problem'}: {self.p} rows by {self.q} columns, {self.n} groups{of}",
            f"limits:            {limits}",
            f"objective:         {self.base:.6g} at best, {self.constant:.6g} with nothing kept",
        ]
        if diagonal.size:
            lines.append(f"diagonal of gram:  {diagonal.min():.6g} to {diagonal.max():.6g}")
        if any(forced):
            lines.append(f"forced:            {forced[0]} groups kept, {forced[1]} removed")
        return "\n".join(lines)

    def __repr__(self) -> str:
        parts = [f"{self.name!r}"] if self.name else []
        parts += [f"p={self.p}", f"q={self.q}", f"groups={self.groups!r}"]
        parts += [f"{name}={limit:.6g}" for name, limit in _shown_limits(self)]
        return f"Problem({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = read_only(value, owned=True) if isinstance(value, np.ndarray) else value

    @classmethod
    def _from_fields(
        cls, parts: dict[str, Any], sparsity: float | None, keep: int | None, rest: dict[str, Any]
    ) -> Problem:
        if sparsity is not None:
            if keep is not None:
                raise InputError("keep and sparsity were both given: pass one of them.")
            grouping = Groups.coerce(rest.get("groups"), len(parts["gram"]))
            rest, keep = {**rest, "groups": grouping}, keep_at_sparsity(sparsity, grouping.n)
        return cls(keep=keep, copy=False, **parts, **rest)

    @classmethod
    def _trusted(cls, **state: Any) -> Problem:
        """Make a problem from fields known to be right: derived problems share arrays and skip every check."""
        problem = object.__new__(cls)
        problem.__setstate__(state)
        return problem

    def _state(self) -> dict[str, Any]:
        return {f.name: self.__dict__[f.name] for f in fields(self)}

    def _fill(self, **state: Any) -> None:
        self.__dict__.update(state)  # the dataclass is frozen: assignment would raise

    @property
    def _means(self) -> dict[str, FloatArray]:
        """The means where there are any; nothing else, so that hashes without them stay what they were."""
        if self.input_mean is None or self.target_mean is None:
            return {}
        return {"input_mean": self.input_mean, "target_mean": self.target_mean}

    @cached_property
    def _explained(self) -> float:
        return 0.5 * float(np.vdot(self.cross, self.optimum))

    def _refit_rows(self, rows: BoolArray) -> FloatArray:
        fitted = np.flatnonzero(rows & self.live_rows)
        return _values.solved(factor(self.gram, None if fitted.size == self.p else fitted), self.cross)


def _cross_and_dense(
    cross: Any, dense_weights: Any, gram: FloatArray, *, copy: bool
) -> tuple[FloatArray, FloatArray | None]:
    p = len(gram)
    if dense_weights is None:
        if cross is None:
            raise InputError(
                "pass cross (X'Y/N plus damping times the weights), or dense_weights to derive it from."
            )
        return _validate.matrix(cross, "cross", rows=p, copy=copy)[0], None
    dense, _ = _validate.matrix(dense_weights, "dense_weights", rows=p, copy=copy)
    if cross is None:
        return _values.cross_of(gram, dense), dense
    g, _ = _validate.matrix(cross, "cross", rows=p, copy=copy)
    if dense.shape != g.shape:
        raise InputError(f"dense_weights have shape {dense.shape}, but cross has {g.shape}.")
    return g, dense


def _means(
    input_mean: Any, target_mean: Any, shape: tuple[int, ...]
) -> tuple[FloatArray | None, FloatArray | None]:
    if input_mean is None and target_mean is None:
        return None, None
    if input_mean is None or target_mean is None:
        raise InputError("input_mean and target_mean belong together: pass both, or neither.")
    p, q = shape
    return (
        read_only(_validate.vector(input_mean, "input_mean", p)),
        read_only(_validate.vector(target_mean, "target_mean", q)),
    )


def _level(constant: Any) -> tuple[Literal["base", "constant"], float]:
    return ("base", 0.0) if constant is None else ("constant", _validate.scalar(constant, "constant"))


def _json(provenance: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(provenance or {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance must be a dict that JSON can hold: {error}.") from error


def _shown_limits(problem: Problem) -> list[tuple[str, float]]:
    named = list(zip(problem.limits.names, problem.limits.limit, strict=True))
    return named if len(named) <= 4 else [*named[:3], ("...", float(len(named)))]
