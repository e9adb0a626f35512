"""Arrays that come from outside a problem, found by the problem's name: scores of its groups, Gram matrices of filters.

What a rule scores groups by may need gradients, feature maps or the weights of other layers, none of which a problem
holds.  Whoever has the model computes it once for every site (`osscar_opt.torch.scores`), and a solver looks up what
belongs to the problem at hand.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from osscar_opt._typing import FloatArray, read_only
from osscar_opt.errors import InputError, OptionError

if TYPE_CHECKING:
    from osscar_opt.formulations.problem import Problem

__all__ = ["ArraySource", "PerProblem"]

ArraySource = Mapping[str, Any] | Sequence[Any] | Callable[..., Any] | str | None
"""What an option takes that is such an array: see `PerProblem.coerce`."""

_DIGITS = 8


class PerProblem:
    """One read-only float64 array for each problem, by the problem's name.

    Parameters
    ----------
    arrays : mapping of str to array
        An array under "" is for any problem that has none of its own.
    rule : str, optional
        What made them, for the repr.

    Raises
    ------
    InputError
        If an array holds anything but finite numbers.

    Examples
    --------
    >>> table = PerProblem({"fc1": [1.0, 3.0], "fc2": [2.0]}, rule="taylor")
    >>> len(table), table["fc1"], list(table)
    (2, array([1., 3.]), ['fc1', 'fc2'])
    """

    def __init__(self, arrays: Mapping[str, Any], rule: str = "") -> None:
        self._arrays = {str(name): _checked(array, str(name)) for name, array in arrays.items()}
        self.rule = rule

    @classmethod
    def coerce(cls, source: Any, option: str) -> PerProblem | Callable[[Problem], Any]:
        """Take whatever an option may be given as.

        Parameters
        ----------
        source : PerProblem, mapping of str to array, array_like, callable, or path
            A callable is handed the problem and returns the array. A path is that of a ``.npy`` file.
        option : str
            Its name, for the sentence.

        Raises
        ------
        OptionError
            If it is none of these, or the file cannot be read.

        Examples
        --------
        >>> PerProblem.coerce([1.0, 2.0], "scores")[""]
        array([1., 2.])
        """
        if isinstance(source, PerProblem):
            return source
        if callable(source):
            return cast("Callable[[Problem], Any]", source)
        try:
            if isinstance(source, Mapping):
                return cls(source)
            return cls({"": _read(Path(source), option) if isinstance(source, str | os.PathLike) else source})
        except OptionError:
            raise
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"option {option!r} must be numbers, a mapping from problems' names to numbers, a function of the "
                f"problem, or a .npy file, but is {type(source).__name__}: {str(error).rstrip('.')}."
            ) from error

    def __getitem__(self, name: str) -> FloatArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def keys(self) -> Iterator[str]:
        """Names of the problems; with `__getitem__`, what ``dict(table)`` asks for.

        Examples
        --------
        >>> dict(PerProblem({"fc": [1.0]}))
        {'fc': array([1.])}
        """
        return iter(self)

    def of(self, problem: Problem, option: str) -> FloatArray:
        """Return the array for a problem.

        Raises
        ------
        OptionError
            If there is none.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> PerProblem({"fc": [1.0, 2.0]}).of(Problem(np.eye(2), np.ones((2, 1)), name="fc"), "scores")
        array([1., 2.])
        """
        found = self._arrays.get(problem.name or "", self._arrays.get(""))
        if found is None:
            names = ", ".join(list(self._arrays)[:3])
            raise OptionError(
                f"option {option!r} has nothing for the problem named {problem.name!r}, only for {names}"
                f"{', ...' if len(self) > 3 else ''}: name the problem as its site is named."
            )
        return found

    @classmethod
    def find(cls, source: Any, problem: Problem, option: str) -> FloatArray:
        """Return the array for a problem from what `coerce` returned, calling it if it is a function.

        Raises
        ------
        OptionError
            If there is none, or the function returns something else than finite numbers.

        Examples
        --------
        >>> from osscar_opt import Problem
        >>> problem = Problem(np.eye(2), np.ones((2, 1)))
        >>> PerProblem.find(lambda problem: problem.gram.diagonal(), problem, "scores")
        array([1., 1.])
        """
        table = source if isinstance(source, cls) else cls.coerce(source(problem), option)
        if not isinstance(table, cls):
            raise OptionError(
                f"option {option!r} is a function that returns {type(table).__name__}, not numbers."
            )
        return table.of(problem, option)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerProblem) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Hash of names and numbers: two tables of the same digest are the same.

        Examples
        --------
        >>> PerProblem({"a": [1.0]}).digest == PerProblem({"a": [2.0]}).digest
        False
        """
        sha = hashlib.sha256()
        for name, array in sorted(self._arrays.items()):
            sha.update(f"{name}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def __repr__(self) -> str:
        by = f"{self.rule!r}, " if self.rule else ""
        one = len(self) == 1
        return f"PerProblem({by}{len(self)} {'array' if one else 'arrays'}, {self.digest[:_DIGITS]})"


def _checked(array: Any, name: str) -> FloatArray:
    numbers = np.array(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(
            f"what is given for {name or 'the problem'} holds NaN or infinity: give finite numbers."
        )
    return read_only(numbers)


def _read(path: Path, option: str) -> FloatArray:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise OptionError(
            f"option {option!r} could not be read from {path} as a .npy file: {reason}."
        ) from error
