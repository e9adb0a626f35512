"""Which solvers there are: our own by a table of import strings, others' by the entry-point group.

A package offers a solver by an entry point in the group ``osscar_opt.solvers``, whose name is the method's name and
whose value is the class:

    [project.entry-points."osscar_opt.solvers"]
    mymethod = "mypackage.mymodule:MyMethod"
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osscar_opt.errors import OptionError, UnavailableError, UnknownMethodError
from osscar_opt.formulations.presolve import REDUCTIONS
from osscar_opt.solvers.base import Solver

__all__ = [
    "OptionInfo",
    "SolverInfo",
    "SolverTable",
    "default_reductions",
    "get_solver",
    "methods_handling",
    "own_source",
    "solver_class",
    "solvers",
]

ENTRY_POINT_GROUP = "osscar_opt.solvers"

_OWN: dict[str, str] = {
    "auto": "osscar_opt.solvers.auto:Auto",
    "exact": "osscar_opt.solvers.exact:Exact",
    "highs": "osscar_opt.solvers.highs:Highs",
    "exhaustive": "osscar_opt.solvers.exhaustive:Exhaustive",
    "greedy": "osscar_opt.solvers.greedy:Greedy",
    "forward": "osscar_opt.solvers.forward:Forward",
    "osscar": "osscar_opt.solvers.osscar:Osscar",
    "swap": "osscar_opt.solvers.swap:Swap",
    "patterns": "osscar_opt.solvers.patterns:Patterns",
    "search": "osscar_opt.solvers.search:Search",
    "magnitude": "osscar_opt.solvers.magnitude:Magnitude",
    "magnitude_refit": "osscar_opt.solvers.magnitude_refit:MagnitudeRefit",
    "random": "osscar_opt.solvers.random:Random",
    "scores": "osscar_opt.solvers.scores:Scores",
    "cvxpy": "osscar_opt.solvers.cvxpy:Cvxpy",
    "wanda": "osscar_opt.solvers.published.wanda:Wanda",
    "activation": "osscar_opt.solvers.published.activation:Activation",
    "flap": "osscar_opt.solvers.published.flap:Flap",
    "cfsp": "osscar_opt.solvers.published.cfsp:Cfsp",
    "ziplm": "osscar_opt.solvers.published.ziplm:ZipLM",
    "slimgpt": "osscar_opt.solvers.published.slimgpt:SlimGPT",
    "sparsegpt": "osscar_opt.solvers.published.sparsegpt:SparseGPT",
    "thinet": "osscar_opt.solvers.published.thinet:ThiNet",
    "channel_lasso": "osscar_opt.solvers.published.channel_lasso:ChannelLasso",
    "group_lasso": "osscar_opt.solvers.published.group_lasso:GroupLasso",
    "udfc": "osscar_opt.solvers.published.udfc:Udfc",
    "abess": "osscar_opt.solvers.published.abess:Abess",
}


@dataclass(frozen=True)
class OptionInfo:
    """An option of a method.

    Examples
    --------
    >>> solvers()["random"].options[0]
    OptionInfo(name='seed', type='int', default=0)
    """

    name: str
    type: str
    default: Any


@dataclass(frozen=True)
class SolverInfo:
    """What is known of a method without running it.

    Attributes
    ----------
    name, summary : str
    proves : bool
        Whether it can return a bound that meets the value.
    handles : frozenset of str
        Kinds of problems beside a plain keep: "budget", "blocks", "unequal_groups", "forced".
    available : bool
    why_not : str
        Why it is not available, or "".
    source : str
        Import string of the class.
    options : tuple of OptionInfo
    required_options : tuple of str
        Options that must be given.

    Examples
    --------
    >>> solvers()["magnitude"].proves, solvers()["scores"].required_options
    (False, ('scores',))
    """

    name: str
    summary: str
    proves: bool
    handles: frozenset[str]
    available: bool
    why_not: str
    source: str
    options: tuple[OptionInfo, ...]
    required_options: tuple[str, ...] = ()


class SolverTable(tuple[SolverInfo, ...]):
    """The list `solvers` returns; prints as a table, and can be indexed by name.

    Examples
    --------
    >>> table = solvers()
    >>> table["random"].name, "random" in table.names
    ('random', True)
    """

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods, in the order listed.

        Examples
        --------
        >>> "magnitude" in solvers().names
        True
        """
        return tuple(info.name for info in self)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for info in self:
            if info.name == key:
                return info
        raise _unknown_method(key, self.names)

    def __repr__(self) -> str:
        header = ("method", "proves", "handles", "options", "summary")
        rows = [header, *(_row(info) for info in self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def solvers() -> SolverTable:
    """List every method: ours and those of installed packages.

    Nothing heavy is imported: a method's own requirements are looked for, not loaded.

    Returns
    -------
    SolverTable

    Examples
    --------
    >>> [info.name for info in solvers() if "magnitude" in info.name]
    ['magnitude', 'magnitude_refit']
    """
    own = [_info(name, _load(source), source) for name, source in _OWN.items()]
    return SolverTable([*own, *(_plugin_info(entry) for entry in _plugins().values())])


def solver_class(name: str) -> type[Solver]:
    """Class registered under a name.

    Raises
    ------
    UnknownMethodError
        If there is none; lists the names there are.
    UnavailableError
        If a package it requires is missing.

    Examples
    --------
    >>> solver_class("random").__name__
    'Random'
    """
    if name in _OWN:
        found = _load(_OWN[name])
    elif name in (plugins := _plugins()):
        found = _checked_class(plugins[name].load(), plugins[name].value)
    else:
        raise _unknown_method(name, (*_OWN, *plugins))
    missing = _missing(found)
    if missing:
        raise UnavailableError(
            f"method {name!r} needs {missing}, which is not installed; run: pip install {missing}."
        )
    return found


def get_solver(spec: str | Solver | type[Solver], options: Mapping[str, Any] | None = None) -> Solver:
    """Make a solver from a name, a class or an instance, with its options checked.

    Parameters
    ----------
    spec : str, Solver, or subclass of Solver
        An instance has its options replaced by those given.
    options : mapping, optional

    Raises
    ------
    UnknownMethodError, UnavailableError
        As `solver_class`.
    OptionError
        If an option does not exist or has the wrong type; lists the options that exist.

    Examples
    --------
    >>> get_solver("random", {"seed": 3})
    Random(seed=3)
    >>> get_solver("random", {"seed": "three"})
    Traceback (most recent call last):
    osscar_opt.errors.OptionError: option 'seed' of method 'random' must be int, but 'three' is str.
    """
    given = dict(options or {})
    if isinstance(spec, Solver):
        _check_options(type(spec), given)
        return dataclasses.replace(spec, **given)
    if not isinstance(spec, str) and not _is_solver_class(spec):
        raise UnknownMethodError(
            f"{spec!r} is not a method: pass a name, or an instance or subclass of osscar_opt.solvers.Solver."
        )
    cls = solver_class(spec) if isinstance(spec, str) else spec
    _check_options(cls, given)
    return cls(**given)


def own_source(name: str) -> str:
    """Import string of a method of the library's own; "" for others'.

    Examples
    --------
    >>> own_source("greedy"), own_source("somebody_elses")
    ('osscar_opt.solvers.greedy:Greedy', '')
    """
    return _OWN.get(name, "")


def methods_handling(features: Iterable[str]) -> tuple[str, ...]:
    """Names of the available methods that handle all of the given features, and need nothing but the problem.

    Examples
    --------
    >>> "random" in methods_handling({"budget", "blocks"})
    True
    """
    needed = frozenset(features) - {"forced"}  # presolved away for whoever does not handle it
    fitting = (info for info in solvers() if info.available and not info.required_options)
    return tuple(info.name for info in fitting if needed <= info.handles)


def default_reductions(solver: Solver) -> tuple[str, ...]:
    """Reductions that presolve makes for a method unless told otherwise.

    Examples
    --------
    >>> "rank" in default_reductions(get_solver("exact")), "rank" in default_reductions(get_solver("greedy"))
    (True, False)
    """
    return tuple(name for name in REDUCTIONS if solver.presolve and name not in solver.unhelpful)


def _load(source: str) -> type[Solver]:
    module, _, attribute = source.partition(":")
    return _checked_class(getattr(importlib.import_module(module), attribute), source)


def _is_solver_class(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, Solver)


def _checked_class(candidate: Any, source: str) -> type[Solver]:
    if not _is_solver_class(candidate):
        raise UnavailableError(
            f"{source} is registered as a method, but is not a subclass of osscar_opt.solvers.Solver."
        )
    return candidate  # type: ignore[no-any-return]


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points of other packages; our own names cannot be taken."""
    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {
        entry.name: entry for entry in sorted(found, key=lambda entry: entry.name) if entry.name not in _OWN
    }


def _plugin_info(entry: importlib.metadata.EntryPoint) -> SolverInfo:
    try:
        return _info(entry.name, _checked_class(entry.load(), entry.value), entry.value)
    except Exception as error:  # somebody else's module: say what happened, and list the rest
        why_not = f"{type(error).__name__}: {error}"
        return SolverInfo(entry.name, "", False, frozenset(), False, why_not, entry.value, ())


def _info(name: str, cls: type[Solver], source: str) -> SolverInfo:
    missing = _missing(cls)
    return SolverInfo(
        name=name,
        summary=(inspect.getdoc(cls) or "").partition("\n")[0],
        proves=cls.proves,
        handles=cls.handles,
        available=not missing,
        why_not=f"{missing} is not installed" if missing else "",
        source=source,
        options=tuple(OptionInfo(f.name, str(f.type), _default(f)) for f in dataclasses.fields(cls)),
        required_options=cls.required_options,
    )


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else None


def _missing(cls: type[Solver]) -> str:
    return next((name for name in cls.requires if importlib.util.find_spec(name) is None), "")


def _row(info: SolverInfo) -> tuple[str, str, str, str, str]:
    summary = info.summary if info.available else f"(not available: {info.why_not})"
    options = ", ".join(f"{option.name}={option.default!r}" for option in info.options)
    return info.name, "yes" if info.proves else "no", ", ".join(sorted(info.handles)), options, summary


def _unknown_method(name: str, known: Iterable[str]) -> UnknownMethodError:
    names = sorted(known)
    return UnknownMethodError(
        f"there is no method {name!r}{_did_you_mean(name, names)} Methods: {', '.join(names)}."
    )


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _check_options(cls: type[Solver], options: Mapping[str, Any]) -> None:
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    hints = typing.get_type_hints(cls)
    for option, value in options.items():
        if option not in names:
            listed = ", ".join(names) or "none"
            raise OptionError(
                f"method {cls.name!r} has no option {option!r}{_did_you_mean(option, names)} Its options: {listed}."
            )
        if not _conforms(value, hints[option]):
            raise OptionError(
                f"option {option!r} of method {cls.name!r} must be {_spelled(hints[option])}, "
                f"but {value!r} is {type(value).__name__}."
            )


def _conforms(value: Any, hint: Any) -> bool:
    """Whether a value fits the simple types options have; hints of any other kind are left to the solver."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_conforms(value, argument) for argument in arguments)
    if hint in (int, float) and isinstance(value, bool | np.bool_):
        return False
    if hint is float:
        return isinstance(value, int | float | np.integer | np.floating)
    if hint is int:
        return isinstance(value, int | np.integer)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _spelled(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint)
