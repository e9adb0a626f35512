"""What a run leaves behind: the row of a store, as an object and as SQLite has it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.bench.tasks import Task

__all__ = ["SCHEMA", "Run", "as_row", "of_row"]

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id INTEGER PRIMARY KEY, document TEXT NOT NULL UNIQUE);
CREATE TABLE tasks (position INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, document TEXT NOT NULL);
CREATE TABLE runs (
    key TEXT PRIMARY KEY, instance TEXT NOT NULL, hash TEXT NOT NULL, n INTEGER, p INTEGER, q INTEGER, keep INTEGER,
    label TEXT NOT NULL, method TEXT NOT NULL, options TEXT NOT NULL, seed INTEGER, time_limit REAL,
    memory_limit INTEGER, outcome TEXT NOT NULL, reason TEXT NOT NULL, support BLOB, objective REAL, relative REAL,
    bound REAL, bound_kind TEXT NOT NULL, status TEXT NOT NULL, termination TEXT NOT NULL, wall REAL NOT NULL,
    search REAL, setup REAL, cpu REAL, peak_memory INTEGER, trace TEXT NOT NULL, stats TEXT NOT NULL,
    started TEXT NOT NULL, environment INTEGER NOT NULL REFERENCES environments (id)
);
CREATE TABLE ballast (filling BLOB);
"""

_AS_JSON = ("options", "trace", "stats")


@dataclass(frozen=True, eq=False)
class Run:
    """One run: what was asked, and what came of it by the runner's own numbers.

    Attributes
    ----------
    key : str
        See `osscar_opt.bench.tasks.Task.key`.
    instance, hash : str
    n, p, q : int
        Groups, rows and columns; 0 where the instance could not be read.
    keep : int or None
        None for the limits that the instance has by itself.
    label : str
        The method as it is shown: ``search patience=3``.
    method : str
    options : dict
        As given, without the seed.
    seed : int or None
        None for a method without chance.
    time_limit : float or None
        Seconds.
    memory_limit : int or None
        MiB.
    outcome : str
        "ok", "refused" (the method does not handle this kind of problem) or "failed".
    reason : str
        One sentence for what was refused or failed, "" otherwise.
    support : (n,) mask or None
        True = kept; feasible, as the runner found for itself.
    objective, relative : float or None
        Of the support, recomputed by the runner; relative to keeping nothing.
    bound : float or None
    bound_kind : str
        "certified" if the runner itself has checked the certificate; "claimed" for a number that the method only
        states; "none".
    status : str
        "optimal" if a certified bound meets the objective, "feasible" otherwise, "none" without a support.
    termination : str
        Why the run ended; the method's word, unless the runner ended it.
    wall : float
        Seconds by the runner's clock from the moment the method was handed the problem to its answer.
    search : float or None
        Seconds of the search alone, as the method's process states it.
    setup : float or None
        Seconds by the runner's clock from the start of the process to the moment it was ready, imports included.
    cpu : float or None
        Seconds of processor time of the whole process, by the operating system.
    peak_memory : int or None
        Most MiB the process held, by the operating system; some 60 of them are the interpreter with numpy and scipy.
    trace : list of (float, float)
        Improvements: seconds by the runner's clock, objective recomputed.  At most 40; the last one is the answer.
    stats : dict
        What the method counted; its own word.
    started : str
        Date and time, UTC, ISO 8601.
    environment : dict
        Machine, versions, threads.

    Examples
    --------
    >>> Run.failed(Task("small", "a", "", 0, 0, 0, None, "greedy"), "It hung.").outcome
    'failed'
    """

    key: str
    instance: str
    hash: str
    n: int
    p: int
    q: int
    keep: int | None
    label: str
    method: str
    options: dict[str, Any]
    seed: int | None
    time_limit: float | None
    memory_limit: int | None
    outcome: str
    reason: str
    support: BoolArray | None
    objective: float | None
    relative: float | None
    bound: float | None
    bound_kind: str
    status: str
    termination: str
    wall: float
    search: float | None
    setup: float | None
    cpu: float | None
    peak_memory: int | None
    trace: list[tuple[float, float]]
    stats: dict[str, Any]
    started: str
    environment: dict[str, Any]

    @classmethod
    def blank(cls, task: Task, **known: Any) -> Run:
        """Make the row of a task, with nothing in it but what is passed.

        Examples
        --------
        >>> Run.blank(Task("small", "a", "", 4, 4, 2, 2, "greedy"), outcome="ok", wall=0.5).wall
        0.5
        """
        asked = {name: getattr(task, name) for name in _OF_TASK}
        nothing: dict[str, Any] = {
            "support": None,
            "objective": None,
            "relative": None,
            "bound": None,
            "bound_kind": "none",
            "status": "none",
            "termination": "failed",
            "reason": "",
            "wall": 0.0,
            "search": None,
            "setup": None,
            "cpu": None,
            "peak_memory": None,
            "trace": [],
            "stats": {},
            "started": "",
            "environment": {},
        }
        options = dict(task.options)
        return cls(**{**asked, "key": task.key, "label": task.label, "options": options, **nothing, **known})

    @classmethod
    def failed(cls, task: Task, reason: str, **known: Any) -> Run:
        """Make the row of a run that failed.

        Examples
        --------
        >>> Run.failed(Task("small", "a", "", 0, 0, 0, None, "greedy"), "It hung.").reason
        'It hung.'
        """
        return cls.blank(task, outcome="failed", reason=reason, **known)


_OF_TASK = ("instance", "hash", "n", "p", "q", "keep", "method", "seed", "time_limit", "memory_limit")


def as_row(run: Run) -> dict[str, Any]:
    """Columns of a row, but the environment.

    Examples
    --------
    >>> as_row(Run.failed(Task("small", "a", "", 0, 0, 0, None, "greedy"), "It hung."))["trace"]
    '[]'
    """
    row = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    del row["environment"]
    row |= {name: json.dumps(row[name], allow_nan=False) for name in _AS_JSON}
    row["support"] = None if run.support is None else np.packbits(run.support).tobytes()
    return row


def of_row(row: Mapping[str, Any], environments: Mapping[int, Any]) -> Run:
    """Make a run from its row.

    Examples
    --------
    >>> row = as_row(Run.failed(Task("small", "a", "", 0, 0, 0, None, "greedy"), "It hung."))
    >>> of_row({**row, "environment": 1}, {1: {}}).reason
    'It hung.'
    """
    row = dict(row)
    row |= {name: json.loads(row[name]) for name in _AS_JSON}
    row["trace"] = [(seconds, objective) for seconds, objective in row["trace"]]
    if row["support"] is not None:
        bits = np.frombuffer(row["support"], dtype=np.uint8)
        row["support"] = np.unpackbits(bits, count=row["n"]).astype(bool)
    return Run(**{**row, "environment": environments[row["environment"]]})
