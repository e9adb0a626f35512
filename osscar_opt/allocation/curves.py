r"""What each number of units kept costs: one layer's error, loss and resources at every width it may have.

Layer j with k of its n_j units kept has the reconstruction error e_j(k), from one path
(`osscar_opt.formulations.path.Path`), a loss f_j(k), which is what an allocation adds up over the layers, and uses
c_rj(k) of resource r, for the part of the model that goes with its units:

.. math:: \min_{k} \sum_j f_j(k_j) \quad\text{with}\quad \sum_j c_{rj}(k_j) \le B_r ,\quad k_j \in K_j .

Errors of different layers are not comparable as they are: f says what a layer's error is worth to the model.  It may be
the error itself, the error relative to keeping nothing, the error times a weight, or a loss of the whole model
measured at a few widths (`osscar_opt.allocation.interpolate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike, FloatArray, IntArray, read_only
from osscar_opt.errors import InputError
from osscar_opt.formulations import _validate
from osscar_opt.formulations.path import Path

__all__ = ["Curve", "allowed_widths"]


def allowed_widths(n: int, *, multiple: int = 1, least: int = 1, most: int | None = None) -> IntArray:
    """Multiples of `multiple` between `least` and `most`, and n itself unless `most` is given.

    Parameters
    ----------
    n : int
        Units of the layer.
    multiple : int, optional
        What a width must be a multiple of.  All n units may stay in any case.
    least : int, optional
        Fewest units kept; 0 lets the whole layer go.
    most : int, optional
        Most units kept.

    Returns
    -------
    (number of widths,) array of int
        Ascending.

    Raises
    ------
    InputError
        If a number is out of range, or no width is left.

    Examples
    --------
    >>> allowed_widths(20, multiple=8), allowed_widths(20, multiple=8, most=20)
    (array([ 8, 16, 20]), array([ 8, 16]))
    """
    if n < 1 or multiple < 1:
        raise InputError(f"n = {n} and multiple = {multiple} must be whole numbers, at least 1.")
    low = _validate.count(least, "least", n)
    high = n if most is None else _validate.count(most, "most", n)
    widths = np.arange(-(-low // multiple) * multiple, high + 1, multiple, dtype=np.int64)
    if most is None:
        widths = np.union1d(widths, [n])
    if len(widths) == 0:
        raise InputError(f"no multiple of {multiple} lies between least = {low} and most = {high}.")
    return widths.astype(np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """A layer's error, loss and use of each resource at every width allowed; immutable, its arrays read-only.

    Parameters
    ----------
    name : str
    n : int
        Units of the layer when nothing is removed.
    widths : (w,) array of int
        Numbers of units that may be kept, ascending.
    errors : (w,) array
        Reconstruction error at each width.
    costs : mapping of str to number or (w,) array
        Use of each resource at each width, in its own unit (parameters, FLOPs, bytes, seconds); a number is the use of
        one unit.
    losses : (w,) array, optional
        What an allocation minimises the sum of; the errors by default.
    dense_error, empty_error : float, optional
        Error with all n units kept, and with none.  By default those at widths n and 0, if these are allowed;
        otherwise 0 and unknown.
    dense_costs : mapping of str to float, optional
        Use with all n units kept: what shares of a budget refer to.  By default that at width n, or n times the use of
        one unit.
    layers : sequence of str, optional
        Layers that have this width, more than one where some are tied; the name alone by default.

    Raises
    ------
    InputError
        If the widths are not ascending whole numbers from 0 to n, or an array has another length or holds NaN.

    Examples
    --------
    >>> curve = Curve("ffn", 4, [1, 2, 4], [6.0, 1.0, 0.0], {"parameters": 10})
    >>> curve.costs["parameters"], curve
    (array([10., 20., 40.]), Curve(ffn, n=4, 3 widths from 1 to 4, loss 6 to 0, parameters 10 to 40))
    """

    name: str
    n: int
    widths: IntArray
    errors: FloatArray
    costs: Mapping[str, FloatArray]
    losses: FloatArray
    dense_error: float
    empty_error: float | None
    dense_costs: Mapping[str, float]
    layers: tuple[str, ...]

    def __init__(
        self,
        name: str,
        n: int,
        widths: ArrayLike,
        errors: ArrayLike,
        costs: Mapping[str, Any],
        *,
        losses: ArrayLike | None = None,
        dense_error: float | None = None,
        empty_error: float | None = None,
        dense_costs: Mapping[str, float] | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        allowed = _widths(widths, n, name)
        size = len(allowed)
        error = _validate.vector(errors, f"errors of {name}", size)
        loss = error.copy() if losses is None else _validate.vector(losses, f"losses of {name}", size)
        used, dense = {}, {}
        for resource, given in costs.items():
            label = f"costs of {name} in {resource}"
            each = np.ndim(given) == 0
            used[resource] = _validate.nonnegative_vector(
                _validate.scalar(given, label) * allowed if each else given, label, size
            )
            if allowed[-1] == n:
                dense[resource] = float(used[resource][-1])
            elif each:
                dense[resource] = float(given) * n
        dense |= {key: _validate.scalar(value, "dense_costs") for key, value in (dense_costs or {}).items()}
        at_zero = float(error[0]) if allowed[0] == 0 else None
        at_full = float(error[-1]) if allowed[-1] == n else 0.0
        for attribute, value in {
            "name": str(name),
            "n": int(n),
            "widths": read_only(allowed),
            "errors": read_only(error),
            "costs": {key: read_only(array) for key, array in used.items()},
            "losses": read_only(loss),
            "dense_error": at_full if dense_error is None else _validate.scalar(dense_error, "dense_error"),
            "empty_error": at_zero if empty_error is None else _validate.scalar(empty_error, "empty_error"),
            "dense_costs": dense,
            "layers": (str(name),) if layers is None else tuple(layers),
        }.items():
            object.__setattr__(self, attribute, value)

    @classmethod
    def from_path(
        cls,
        path: Path,
        widths: ArrayLike | None = None,
        costs: Mapping[str, Any] | None = None,
        *,
        name: str = "layer",
    ) -> Curve:
        """Read the errors off a path.

        Parameters
        ----------
        path : Path
            As `osscar_opt.Problem.path` returns it; it must reach down to the smallest width.
        widths : (w,) array of int, optional
            As `allowed_widths` makes them; by default every width the path has.
        costs : mapping of str to number or (w,) array, optional
            As in the class; one unit of "units" for each unit by default.
        name : str, optional

        Raises
        ------
        InputError
            If the path ends before the smallest width.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> path = Problem(np.eye(3), [[1.0], [3.0], [2.0]]).path("greedy")
        >>> Curve.from_path(path, allowed_widths(3)).errors
        array([2.5, 0.5, 0. ])
        """
        n = path.problem.n
        allowed = _widths(path.keeps[::-1] if widths is None else widths, n, name)
        return cls(
            name,
            n,
            allowed,
            [path.objective(int(width)) for width in allowed],
            {"units": 1.0} if costs is None else costs,
            dense_error=path.objective(n),
            empty_error=path.problem.constant,
        )

    def with_losses(self, losses: ArrayLike) -> Curve:
        """The same with other losses.

        Examples
        --------
        >>> Curve("a", 2, [1, 2], [3.0, 0.0], {}).with_losses([0.5, 0.0]).losses
        array([0.5, 0. ])
        """
        return self._changed(losses=losses)

    def absolute(self) -> Curve:
        """The same with the errors as losses.

        Examples
        --------
        >>> Curve("a", 2, [1, 2], [3.0, 0.0], {}, losses=[9.0, 0.0]).absolute().losses
        array([3., 0.])
        """
        return self._changed(losses=self.errors)

    def relative(self) -> Curve:
        """The same with the errors relative to keeping nothing as losses: e(k) / e(0).

        Raises
        ------
        InputError
            If the error of keeping nothing is unknown, or not positive.

        Examples
        --------
        >>> Curve("a", 2, [1, 2], [3.0, 0.0], {}, empty_error=6.0).relative().losses
        array([0.5, 0. ])
        """
        if self.empty_error is None or self.empty_error <= 0.0:
            raise InputError(
                f"the error of {self.name} with nothing kept is {self.empty_error}: pass a positive empty_error to "
                "make its errors relative."
            )
        return self._changed(losses=self.errors / self.empty_error)

    def weighted(self, weight: float) -> Curve:
        """The same with the losses times a weight that is not negative.

        Examples
        --------
        >>> Curve("a", 2, [1, 2], [3.0, 0.0], {}).weighted(2.0).losses
        array([6., 0.])
        """
        factor = _validate.scalar(weight, f"weight of {self.name}")
        if factor < 0.0:
            raise InputError(f"weight of {self.name} = {factor:.6g} must not be negative.")
        return self._changed(losses=factor * self.losses)

    def monotone(self) -> Curve:
        """The same where neither error nor loss rises with the width: running minima from the narrowest width on.

        A path's heuristic, or a measurement's noise, may make a wider layer look worse than a narrower one, of which it
        holds all that the narrower one has.

        Examples
        --------
        >>> Curve("a", 3, [1, 2, 3], [3.0, 3.5, 0.0], {}).monotone().errors
        array([3., 3., 0.])
        """
        return self._changed(
            errors=np.minimum.accumulate(self.errors), losses=np.minimum.accumulate(self.losses)
        )

    def restricted(self, least: int, most: int) -> Curve:
        """The same with the widths from `least` to `most` only.

        Examples
        --------
        >>> Curve("a", 3, [1, 2, 3], [3.0, 1.0, 0.0], {}).restricted(2, 3).widths
        array([2, 3])
        """
        stays = (self.widths >= least) & (self.widths <= most)
        return Curve(
            self.name,
            self.n,
            self.widths[stays],
            self.errors[stays],
            {resource: used[stays] for resource, used in self.costs.items()},
            losses=self.losses[stays],
            dense_error=self.dense_error,
            empty_error=self.empty_error,
            dense_costs=self.dense_costs,
            layers=self.layers,
        )

    def place(self, width: int) -> int:
        """Where a width stands among those allowed.

        Raises
        ------
        InputError
            If it is not allowed.

        Examples
        --------
        >>> Curve("a", 3, [1, 3], [3.0, 0.0], {}).place(3)
        1
        """
        at = int(np.searchsorted(self.widths, width))
        if at == len(self.widths) or self.widths[at] != width:
            shown = ", ".join(map(str, self.widths[:8])) + (", ..." if len(self.widths) > 8 else "")
            raise InputError(f"{width} is none of the widths that {self.name} may have: {shown}.")
        return at

    def __repr__(self) -> str:
        uses = "".join(f", {key} {used[0]:.6g} to {used[-1]:.6g}" for key, used in self.costs.items())
        return (
            f"Curve({self.name}, n={self.n}, {len(self.widths)} widths from {self.widths[0]} to {self.widths[-1]}, "
            f"loss {self.losses[0]:.6g} to {self.losses[-1]:.6g}{uses})"
        )

    def _changed(self, **changes: Any) -> Curve:
        kept: dict[str, Any] = {
            "errors": self.errors,
            "losses": self.losses,
            "dense_error": self.dense_error,
            "empty_error": self.empty_error,
            "dense_costs": self.dense_costs,
            "layers": self.layers,
        } | changes
        errors = kept.pop("errors")
        return Curve(self.name, self.n, self.widths, errors, self.costs, **kept)


def _widths(values: ArrayLike, n: int, name: str) -> IntArray:
    allowed = np.array(values)
    if allowed.ndim != 1 or len(allowed) == 0 or not np.issubdtype(allowed.dtype, np.integer):
        raise InputError(f"widths of {name} must be a list of whole numbers, at least one.")
    if np.any(np.diff(allowed) <= 0) or allowed[0] < 0 or allowed[-1] > n:
        raise InputError(f"widths of {name} must ascend, from 0 to its {n} units at most.")
    return allowed.astype(np.int64)
