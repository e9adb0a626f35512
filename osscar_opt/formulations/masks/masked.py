"""What solutions with a mask of single weights have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import ArrayLike, BoolArray, FloatArray
from osscar_opt.errors import InputError, SolverError
from osscar_opt.formulations.outcome import Outcome

__all__ = ["Masked", "checked_mask"]


def checked_mask(mask: ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """Return a mask as an array, if it is one of that shape.

    Examples
    --------
    >>> checked_mask([True, False], (2,))
    array([ True, False])
    """
    kept = np.asarray(mask)
    if kept.dtype != bool or kept.shape != shape:
        raise InputError(f"the mask must be of booleans, of shape {shape}.")
    return kept


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Masked(Outcome):
    """A mask of the weights, and the weights.

    Attributes
    ----------
    problem : MaskProblem or DepthwiseProblem
    mask : mask
        True = the weight stays.
    weights : array
        Exactly zero outside the mask.
    """

    problem: Any
    mask: BoolArray
    weights: FloatArray

    def verify(self) -> None:
        """Recompute what can be recomputed.

        Raises
        ------
        SolverError
            Naming the first thing that does not hold.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> from osscar_opt.formulations.masks.layer import MaskProblem
        >>> MaskProblem(Problem(np.eye(2), [[1.0], [2.0]]), "1:2").solve("magnitude").verify()
        """
        violation = self.problem.violation(self.mask)
        if violation:
            raise SolverError(f"the mask is not feasible: it {violation}.")
        if np.any(self.weights[~self.mask]):
            raise SolverError("a weight outside the mask is not zero.")
        self.require_objective(self.problem.objective(self.weights))
