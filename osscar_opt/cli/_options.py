"""Solver options from the command line: ``name=value``, typed by the fields of the solver."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from osscar_opt.errors import OptionError
from osscar_opt.solvers.registry import get_solver, solver_class

__all__ = ["parse_options"]

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_options(
    method: str, pairs: Iterable[str], seed: int | None = None, *, given: Iterable[str] = ()
) -> dict[str, Any]:
    """Turn ``["rounds=3", "exact=yes"]`` into typed options, checked against the method.

    Parameters
    ----------
    method : str
        A registered name.
    pairs : iterable of str
        Each ``name=value``; None is written ``none``, tuples with commas.
    seed : int, optional
        Short for ``seed=...``.
    given : iterable of str, optional
        Options that the method needs and will be given otherwise.

    Raises
    ------
    UnknownMethodError, UnavailableError
        If there is no such method.
    OptionError
        If the method has no such option, or the value is not of its type.

    Examples
    --------
    >>> parse_options("random", ["seed=7"])
    {'seed': 7}
    >>> parse_options("random", ["seed=x"])
    Traceback (most recent call last):
    osscar_opt.errors.OptionError: option 'seed' of method 'random' must be int, and 'x' is not.
    """
    hints = typing.get_type_hints(solver_class(method))
    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise OptionError(f"an option is written name=value, not {pair!r}.")
        if name in options:
            raise OptionError(f"option {name!r} is given twice.")
        options[name] = _typed(text, hints[name], name, method) if name in hints else text
    get_solver(method, dict.fromkeys(given, ()) | options)  # complains of names there are not
    return options


def _typed(text: str, hint: Any, name: str, method: str) -> Any:
    for arm in _arms(hint):
        try:
            return _converted(text, arm)
        except ValueError:
            continue
    wanted = " or ".join(_spelled(arm) for arm in _arms(hint))
    raise OptionError(f"option {name!r} of method {method!r} must be {wanted}, and {text!r} is not.")


def _arms(hint: Any) -> list[Any]:
    """Types to try, the narrow ones first: with int | str, "3" is the number."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        order = [type(None), bool, int, float]
        return sorted(typing.get_args(hint), key=lambda arm: order.index(arm) if arm in order else len(order))
    return [hint]


def _converted(text: str, hint: Any) -> Any:
    """Read ``text`` as one type; ValueError if it is not."""
    if hint is type(None):
        if text.lower() == "none":
            return None
        raise ValueError
    if hint is bool:
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        raise ValueError
    if typing.get_origin(hint) is Literal:
        matching = [choice for choice in typing.get_args(hint) if str(choice) == text]
        if not matching:
            raise ValueError
        return matching[0]
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_converted(part.strip(), item) for part in text.split(",") if part.strip())
    return hint(text) if hint in (int, float) else text


def _spelled(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
