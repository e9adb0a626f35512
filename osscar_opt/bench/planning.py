"""From what a user asks for to a list of tasks."""

from __future__ import annotations

import ast
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osscar_opt.bench.inspection import has_seed
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import FormatError, InputError, OptionError
from osscar_opt.formulations.problem import Problem

__all__ = ["Limits", "Source", "parse_method", "plan", "sources"]

Method = str | tuple[str, Mapping[str, Any]]
Instance = str | os.PathLike[str] | Problem

_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}


@dataclass(frozen=True)
class Limits:
    """What every run is held to.

    Attributes
    ----------
    time : float or None
        Seconds.
    memory : int or None
        MiB.
    threads : int

    Examples
    --------
    >>> Limits(0.0, None, 1)
    Traceback (most recent call last):
    osscar_opt.errors.InputError: time_limit = 0.0 must be a positive number of seconds, or None.
    """

    time: float | None
    memory: int | None
    threads: int

    def __post_init__(self) -> None:
        from osscar_opt.linalg.threads import checked_count

        if self.time is not None and not (_is_number(self.time) and 0.0 < self.time < math.inf):
            raise InputError(f"time_limit = {self.time!r} must be a positive number of seconds, or None.")
        if self.memory is not None:
            checked_count(self.memory, "memory_limit")
        checked_count(self.threads, "threads")


@dataclass(frozen=True)
class Source:
    """An instance that is to be run on: its file, and what its header says.

    Attributes
    ----------
    name, path, hash : str
    n, p, q : int
        0 if the file cannot be read.
    keeps : tuple of int
        Of interest; empty for an instance that has its limits by itself.
    limited : bool
        Whether it has limits beside a keep.

    Examples
    --------
    >>> Source("small", "small.safetensors", "", 4, 4, 2, (1, 2), False).keeps_for([0.5, 3])
    [2, 3]
    """

    name: str
    path: str
    hash: str
    n: int
    p: int
    q: int
    keeps: tuple[int, ...]
    limited: bool

    def keeps_for(self, wanted: Sequence[int | float] | None) -> list[int | None]:
        """Keeps to run with: those of interest by default, shares of the groups if numbers below 1 are given.

        Raises
        ------
        InputError
            If a number is out of range, or the instance has neither a keep nor limits.

        Examples
        --------
        >>> Source("tight", "tight.safetensors", "", 4, 4, 2, (), True).keeps_for([0.5])
        [None]
        """
        if self.limited and not self.keeps:
            return [None]
        if wanted is None:
            if not self.keeps and self.n:
                raise InputError(f"instance {self.name!r} has no limit on what may stay: pass keeps.")
            return list(self.keeps) or [None]
        return list(dict.fromkeys(self._keep(keep) for keep in wanted))

    def _keep(self, keep: int | float) -> int | None:
        if _is_number(keep) and 0.0 < keep < 1.0:
            return max(1, round(keep * self.n)) if self.n else None
        if not _is_number(keep) or keep != int(keep) or keep < 0:
            raise InputError(
                f"keep = {keep!r} must be a number of groups, or a share of them between 0 and 1."
            )
        if self.n and keep > self.n:
            raise InputError(
                f"keep = {keep} is more than the {self.n} groups of {self.name!r}: give shares between 0 and 1, or "
                "choose instances."
            )
        return int(keep)


def parse_method(spec: Method) -> tuple[str, dict[str, Any]]:
    """Read a method with its options: ``"search:patience=3,device=cpu"``, or a pair.

    Numbers, yes and no, none, quoted texts and tuples in parentheses are read as such; anything else is a text.

    Raises
    ------
    OptionError
        If it is not written like that.

    Examples
    --------
    >>> parse_method("search:patience=3,precision=float32")
    ('search', {'patience': 3, 'precision': 'float32'})
    """
    if not isinstance(spec, str):
        name, options = spec
        return name, dict(options)
    name, _, text = spec.partition(":")
    parsed: dict[str, Any] = {}
    for pair in re.split(r",(?![^(]*\))", text) if text else []:
        option, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not option:
            raise OptionError(f"options are written METHOD:name=value,name=value, and {pair!r} is not.")
        if option in parsed:
            raise OptionError(f"option {option!r} of method {name!r} is given twice.")
        parsed[option] = _value(value)
    return name.strip(), parsed


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def sources(instances: Instance | Iterable[Instance], beside: Path) -> list[Source]:
    """Find the instances: files, problems, and names or patterns of the catalogue.

    Parameters
    ----------
    instances : str, path-like or Problem, or an iterable of these
    beside : Path
        The store; problems that are in no file are written into a folder beside it.

    Raises
    ------
    InputError
        If a pattern names nothing, or two instances have one name.

    Examples
    --------
    >>> sources(["no/such/file.safetensors"], Path("runs.db"))[0].name
    'file'
    """
    if isinstance(instances, str | os.PathLike | Problem):
        instances = [instances]
    found: list[Source] = []
    patterns: list[str] = []
    for item in instances:
        if isinstance(item, Problem):
            found.append(_of_problem(item, beside))
        elif _is_file(item):
            found.append(_of_file(Path(item)))
        else:
            patterns.append(os.fspath(item))
    if patterns:
        from osscar_opt.instances.listing import catalogue

        found += [_of_entry(entry) for entry in catalogue().select(patterns)]
    return _distinct(found)


def _is_file(item: str | os.PathLike[str]) -> bool:
    text = os.fspath(item)
    return (
        not isinstance(item, str) or os.sep in text or text.endswith(".safetensors") or Path(text).is_file()
    )


def _of_file(path: Path) -> Source:
    """What the header says; a file that cannot be read is an instance all the same, whose runs will fail."""
    from osscar_opt.instances import instance_info

    try:
        info = instance_info(path)
    except FormatError:
        return Source(path.stem, str(path.resolve()), "", 0, 0, 0, (), False)
    keeps = tuple(dict.fromkeys([*info.keeps, *([] if info.keep is None else [info.keep])]))
    limited = info.budget is not None or "block_keep" in info.arrays
    return Source(path.stem, str(path.resolve()), info.hash, info.n, info.p, info.q, keeps, limited)


def _of_problem(problem: Problem, beside: Path) -> Source:
    """Write it beside the store; its name gets a part of its hash, for generated ones of a family are called alike."""
    name = re.sub(r"[^\w.-]+", "-", problem.name) or "problem"
    folder = beside.with_name(beside.name + ".instances")
    path = folder / f"{name}-{problem.hash[:8]}.safetensors"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        problem.save(path)
    keeps = () if problem.keep is None else (problem.keep,)
    limited = bool(set(problem.limits.names) - {"keep"})
    sizes = problem.n, problem.p, problem.q
    return Source(path.stem, str(path.resolve()), problem.hash, *sizes, keeps, limited)


def _of_entry(entry: Any) -> Source:
    n, p, q = (int(entry.features.get(size) or 0) for size in ("n", "p", "q"))
    return Source(entry.name, str(entry.path), entry.hash, n, p, q, tuple(entry.keeps), not entry.keeps)


def _distinct(found: list[Source]) -> list[Source]:
    """Each once; a name stands for one instance."""
    by_name: dict[str, Source] = {}
    for source in found:
        known = by_name.setdefault(source.name, source)
        if known.path != source.path and known.hash != source.hash:
            raise InputError(
                f"two instances are called {source.name!r} ({known.path} and {source.path}): rename one of them."
            )
        keeps = tuple(dict.fromkeys([*known.keeps, *source.keeps]))
        by_name[source.name] = Source(**{**vars(known), "keeps": keeps})
    return list(by_name.values())


def plan(
    methods: str | Iterable[Method],
    instances: Sequence[Source],
    limits: Limits,
    *,
    keeps: Sequence[int | float] | None = None,
    seeds: Sequence[int] = (0,),
) -> list[Task]:
    """List the runs: methods x instances x keeps x seeds, instance by instance.

    A method without a seed is run once, and so is one whose options name a seed.

    Raises
    ------
    UnknownMethodError, OptionError, UnavailableError
        If there is no such method or option, or a package is missing.
    InputError
        If a keep is out of range, or there is nothing to run.

    Examples
    --------
    >>> small = Source("small", "small.safetensors", "", 4, 4, 2, (1, 2), False)
    >>> [(task.label, task.keep, task.seed) for task in plan(["greedy", "random"], [small], Limits(9.0, 512, 1))]
    [('greedy', 1, None), ('random', 1, 0), ('greedy', 2, None), ('random', 2, 0)]
    """
    parsed = [parse_method(method) for method in ([methods] if isinstance(methods, str) else methods)]
    modules = own_modules(name for name, _ in parsed)
    chosen = [(*method, _seeds(*method, seeds, limits.threads, modules)) for method in parsed]
    tasks = [
        Task(
            instance=source.name,
            path=source.path,
            hash=source.hash,
            n=source.n,
            p=source.p,
            q=source.q,
            keep=keep,
            method=method,
            options={name: value for name, value in options.items() if seed is None or name != "seed"},
            seed=seed,
            time_limit=limits.time,
            memory_limit=limits.memory,
            threads=limits.threads,
        )
        for source in instances
        for keep in source.keeps_for(keeps)
        for method, options, own_seeds in chosen
        for seed in own_seeds
    ]
    if not tasks:
        raise InputError("there is nothing to run: name at least one method and one instance.")
    return list({task.key: task for task in tasks}.values())


def _seeds(
    method: str, options: Mapping[str, Any], seeds: Sequence[int], threads: int, modules: tuple[str, ...]
) -> Sequence[int | None]:
    seeded = has_seed(method, options, threads, modules)
    if not seeded:
        return [None]
    return [options["seed"]] if "seed" in options else list(seeds)


def own_modules(methods: Iterable[str]) -> tuple[str, ...]:
    """Modules of the library's own methods among these, and of the packages they need.

    Others' modules are not for the zygote, nor for the runner: their code runs in the processes of the runs alone.

    Examples
    --------
    >>> own_modules(["greedy", "somebody_elses"])
    ('osscar_opt.solvers.greedy',)
    """
    import importlib
    import importlib.util

    from osscar_opt.solvers.registry import own_source

    found: set[str] = set()
    sources_of = filter(None, map(own_source, methods))
    for module, _, name in (source.partition(":") for source in sources_of):
        found.add(module)
        requires = getattr(importlib.import_module(module), name).requires
        found |= {package for package in requires if importlib.util.find_spec(package) is not None}
    return tuple(sorted(found))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
