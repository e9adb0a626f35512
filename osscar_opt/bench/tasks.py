"""What is to be run: methods x instances x keeps x seeds, as a list of tasks.

A task holds all that its run depends on, and its key is made of nothing else: who plans the same again gets the same
keys, and a store knows what it has.  Classes of methods are not looked at here, for that would run a plugin's code in
the process that judges it; `osscar_opt.bench.inspection` asks a child process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """One run that is to be made: a method on a pair of instance and keep, with a seed and limits.

    Attributes
    ----------
    instance : str
        Name, unique in a store.
    path : str
        Where the instance's file is.
    hash : str
        Of the problem; "" if the file could not be read when the task was planned.
    n, p, q : int
        Groups, rows and columns; 0 if the file could not be read.
    keep : int or None
        None for the limits that the instance has by itself.
    method : str
    options : mapping
        As given, without the seed.
    seed : int or None
        None for a method without chance.
    time_limit : float or None
        Seconds.
    memory_limit : int or None
        MiB, beyond what an idle process takes.
    threads : int
        Threads for the linear algebra of this run.

    Examples
    --------
    >>> task = Task("small", "small.safetensors", "", 4, 4, 2, 2, "search", {"patience": 3}, 0, 10.0, 2048)
    >>> task.label
    'search patience=3'
    >>> task.key == Task.of(task.to_dict()).key
    True
    """

    instance: str
    path: str
    hash: str
    n: int
    p: int
    q: int
    keep: int | None
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    time_limit: float | None = 60.0
    memory_limit: int | None = 2048
    threads: int = 1

    @property
    def key(self) -> str:
        """What identifies the run: a digest of everything but the place of the file and what is in it.

        Examples
        --------
        >>> len(Task("small", "a", "", 4, 4, 2, 2, "greedy").key)
        32
        """
        parts = [self.instance, self.keep, self.method, sorted(self.options.items()), self.seed]
        limits = [_number(self.time_limit), self.memory_limit, self.threads]
        text = json.dumps([*parts, *limits], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def label(self) -> str:
        """The method as it is shown.

        Examples
        --------
        >>> Task("small", "a", "", 4, 4, 2, 2, "greedy").label
        'greedy'
        """
        return label(self.method, self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them.

        Examples
        --------
        >>> Task("small", "a", "", 4, 4, 2, None, "greedy").to_dict()["keep"] is None
        True
        """
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Task:
        """Make a task from what `to_dict` returned.

        Examples
        --------
        >>> task = Task("small", "a", "", 4, 4, 2, 2, "greedy")
        >>> Task.of(task.to_dict()) == task
        True
        """
        return cls(**document)


def label(method: str, options: Mapping[str, Any]) -> str:
    """Name of a method with its options, as it is shown.

    Examples
    --------
    >>> label("search", {"patience": 3})
    'search patience=3'
    """
    return " ".join([method, *(f"{name}={value}" for name, value in options.items())])


def _number(value: float | None) -> float | None:
    """One spelling of a number: 10 and 10.0 are the same limit."""
    return None if value is None else float(value)
