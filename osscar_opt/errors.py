"""The errors this library raises: one family, each member also the builtin a caller already catches.

Every message is one sentence that says what is wrong and what to do next.

Examples
--------
>>> from osscar_opt.errors import InputError, OsscarError
>>> issubclass(InputError, OsscarError) and issubclass(InputError, ValueError)
True
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CapabilityError",
    "FormatError",
    "InfeasibleError",
    "InputError",
    "LayerError",
    "NotPositiveDefiniteError",
    "OptionError",
    "OsscarError",
    "SolveAllError",
    "SolverError",
    "UnavailableError",
    "UnknownMethodError",
]


class OsscarError(Exception):
    """Base of every error this library raises on purpose.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> from osscar_opt.errors import OsscarError
    >>> try:
    ...     Problem([[2.0]], [[1.0]], keep=7)
    ... except OsscarError as error:
    ...     print(error)
    keep = 7 is out of range: it must lie between 0 and the number of groups, 1.
    """


class InputError(OsscarError, ValueError):
    """Arrays or numbers that cannot pose a problem: wrong sizes, NaN, asymmetry, keep out of range.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> Problem([[1.0, 0.0]], [[1.0]])
    Traceback (most recent call last):
    osscar_opt.errors.InputError: gram must be a square matrix, but its shape is (1, 2).
    """


class NotPositiveDefiniteError(InputError):
    """The Gram matrix is not positive definite, so refitted weights would not be unique.

    Attributes
    ----------
    suggested_damping : float or None
        Damping, relative to the mean of the diagonal, with which the matrix was seen to be positive definite.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt import Problem
    >>> from osscar_opt.errors import NotPositiveDefiniteError
    >>> gram = np.array([[1.0, 2.0], [2.0, 1.0]])
    >>> try:
    ...     Problem(gram, [[1.0], [1.0]])
    ... except NotPositiveDefiniteError as error:
    ...     damping = error.suggested_damping
    >>> problem = Problem(gram + damping * gram.diagonal().mean() * np.eye(2), [[1.0], [1.0]])
    """

    def __init__(self, message: str, *, suggested_damping: float | None = None) -> None:
        super().__init__(message)
        self.suggested_damping = suggested_damping


class InfeasibleError(InputError):
    """The constraints contradict one another: no support satisfies them all.

    Examples
    --------
    >>> from osscar_opt import Problem
    >>> Problem([[2.0, 0.0], [0.0, 2.0]], [[1.0], [1.0]], keep=1, always_keep=[0, 1])
    Traceback (most recent call last):
    osscar_opt.errors.InfeasibleError: always_keep alone uses 2 of keep = 1; the smallest feasible keep is 2.
    """


class OptionError(OsscarError, TypeError):
    """A solver option that does not exist, or whose value has the wrong type.

    Examples
    --------
    >>> from osscar_opt.solvers import get_solver
    >>> get_solver("random", {"sede": 1})
    Traceback (most recent call last):
    osscar_opt.errors.OptionError: method 'random' has no option 'sede'; did you mean 'seed'? Its options: seed.
    """


class UnknownMethodError(OsscarError, LookupError):
    """No solver of that name is registered.

    Examples
    --------
    >>> from osscar_opt.solvers import get_solver
    >>> get_solver("magnitud")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    osscar_opt.errors.UnknownMethodError: there is no method 'magnitud'; did you mean 'magnitude'? Methods: ...
    """


class CapabilityError(OsscarError, NotImplementedError):
    """The method exists but does not handle this kind of problem; the message names methods that do.

    Examples
    --------
    >>> from osscar_opt.errors import CapabilityError
    >>> issubclass(CapabilityError, NotImplementedError)
    True
    """


class UnavailableError(OsscarError, ImportError):
    """An optional package is missing; the message says how to install it.

    Examples
    --------
    >>> from osscar_opt.errors import UnavailableError
    >>> issubclass(UnavailableError, ImportError)
    True
    """


class FormatError(OsscarError, ValueError):
    """A file is truncated, altered, or written in a version this reader does not know.

    Examples
    --------
    >>> from osscar_opt.errors import FormatError
    >>> issubclass(FormatError, ValueError)
    True
    """


class LayerError(OsscarError, ValueError):
    """A layer that cannot be turned into a problem: unsupported, not found, or never reached by the batches.

    Examples
    --------
    >>> from osscar_opt.errors import LayerError
    >>> issubclass(LayerError, ValueError)
    True
    """


class SolverError(OsscarError, RuntimeError):
    """A solver failed before it had reported any solution, or a solution does not hold what it says.

    Examples
    --------
    >>> from osscar_opt.errors import SolverError
    >>> issubclass(SolverError, RuntimeError)
    True
    """


class SolveAllError(SolverError):
    """Some of the problems that were solved side by side failed; the others' solutions are here.

    Attributes
    ----------
    solutions : list of Solution or None
        What `osscar_opt.solve_all` would have returned; None for a problem that failed, and the solution itself where
        only `then` did.
    failures : dict of int to BaseException
        The errors, by the numbers of their problems, the first problem being 0.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt import Problem, solve_all
    >>> from osscar_opt.errors import SolveAllError
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> try:
    ...     solve_all([problem, (problem, {"keep": 7})], "greedy")
    ... except SolveAllError as error:
    ...     print(list(error.failures), error.solutions[0].objective)
    [1] 2.5
    """

    def __init__(
        self,
        message: str,
        *,
        solutions: list[Any] | None = None,
        failures: dict[int, BaseException] | None = None,
    ) -> None:
        super().__init__(message)
        self.solutions = solutions or []
        self.failures = failures or {}
