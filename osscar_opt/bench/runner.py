"""The runner: methods x instances x keeps x seeds, each run in a process of its own, each row judged here.

What a method cannot do
-----------------------
A method says which groups to keep, and may send a certificate.  Objective, feasibility, trace, times, memory and
outcome are the runner's own numbers: it recomputes every objective from its own copy of the instance, checks every
certificate itself, and reads its own clock.  A method's code is loaded in the processes of its runs and nowhere else,
and only after it has been loaded does such a process learn which instance it is to solve.

What remains is a matter of permissions: a run has those of whoever started it, and could read and write this user's
files, the store among them.  Code that is not to be trusted so far belongs into a container.

Where runs are made
-------------------
joblib spreads them: by default over threads of this process, each of which does nothing but watch over a run.  With
``backend="dask"`` or ``"ray"`` the watching is done where the run is made, on any machine of the cluster that finds
the instances under the same path; rows come back to the one process that writes the store.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osscar_opt.bench.planning import Instance, Limits, Method, own_modules, plan, sources
from osscar_opt.bench.progress import Progress
from osscar_opt.bench.store import Run, Store, read_plan
from osscar_opt.bench.supervise import HaltedError, halted, supervise
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import InputError, UnavailableError
from osscar_opt.linalg.threads import checked_count

__all__ = ["Summary", "resume", "run"]

BACKENDS = ("threading", "loky", "dask", "ray")


@dataclass(frozen=True)
class Summary:
    """What a call of `run` or `resume` has done.

    Attributes
    ----------
    store : str
    planned : int
        Runs that were asked for.
    kept : int
        Of these, how many were there before.
    ok, refused, failed : int
        Of those made now.
    seconds : float

    Examples
    --------
    >>> Summary("runs.db", 3, 1, 2, 0, 0, 0.5).made
    2
    """

    store: str
    planned: int
    kept: int
    ok: int
    refused: int
    failed: int
    seconds: float

    @property
    def made(self) -> int:
        """Runs made now.

        Examples
        --------
        >>> Summary("runs.db", 1, 0, 0, 0, 1, 0.5).made
        1
        """
        return self.ok + self.refused + self.failed

    def __str__(self) -> str:
        parts = [f"{self.made} runs in {self.seconds:.1f} s: {self.ok} ok"]
        parts += [
            f"{count} {word}" for count, word in ((self.refused, "refused"), (self.failed, "failed")) if count
        ]
        before = f"; {self.kept} of the {self.planned} planned were there before" if self.kept else ""
        return ", ".join(parts) + before


def run(
    store: str | os.PathLike[str],
    *,
    methods: str | Iterable[Method],
    instances: Instance | Iterable[Instance],
    keeps: Sequence[int | float] | None = None,
    seeds: Sequence[int] = (0,),
    time_limit: float | None = 60.0,
    memory_limit: int | None = 2048,
    jobs: int = 1,
    backend: str = "threading",
    threads: int = 1,
    retry_failed: bool = False,
    progress: bool | None = None,
    on_run: Callable[[Run], object] | None = None,
) -> Summary:
    """Run methods on instances, and write a row for each run into a store.

    Runs that the store has already are not made again: the same call after a kill goes on where it was.

    Parameters
    ----------
    store : path-like
        Made if it does not exist.
    methods : iterable of str or (str, mapping)
        Names with options: ``"greedy"``, ``"search:patience=3"``, ``("search", {"patience": 3})``.
    instances : iterable of str, path-like or Problem
        Names or patterns of the catalogue, files, or problems.
    keeps : sequence of int or float, optional
        Numbers of groups, or shares of them between 0 and 1; each instance's own by default.  Instances that have
        other limits and no keep are run as they are.
    seeds : sequence of int, optional
        For methods that take a seed.
    time_limit : float or None, optional
        Seconds for a run.  One that goes on is ended after a grace of 10 %, but at least 2 s.
    memory_limit : int or None, optional
        MiB for a run, beyond what an idle process takes.
    jobs : int, optional
        How many runs at a time.
    backend : {"threading", "loky", "dask", "ray"}, optional
        Where they are made.
    threads : int, optional
        For the linear algebra of each run.
    retry_failed : bool, optional
        Make those again that failed.
    progress : bool, optional
        False for no report on standard error.
    on_run : callable, optional
        Called with each `Run` once it is stored.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        If an argument is out of range, or another process is writing to the store.
    UnknownMethodError, OptionError, UnavailableError
        If there is no such method or option, or a package is missing.
    StoreFullError
        If the disk is full: what was done is kept.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.instances import random_instance
    >>> path = Path(tempfile.mkdtemp()) / "runs.db"
    >>> problem = random_instance(3, "correlated", n=6, q=2)
    >>> summary = run(path, methods=["greedy", "random"], instances=[problem], keeps=[2, 0.5], progress=False)
    >>> summary.planned, summary.ok
    (4, 4)
    """
    limits = Limits(time_limit, memory_limit, threads)
    _checked_call(jobs, backend, seeds)
    tasks = plan(methods, sources(instances, Path(store)), limits, keeps=keeps, seeds=seeds)
    with Store(store) as opened:
        opened.plan(tasks)
        return _execute(opened, tasks, jobs, backend, retry_failed, progress, on_run)


def resume(
    store: str | os.PathLike[str],
    *,
    jobs: int = 1,
    backend: str = "threading",
    retry_failed: bool = False,
    progress: bool | None = None,
    on_run: Callable[[Run], object] | None = None,
) -> Summary:
    """Make the runs that were planned for a store and are not there yet.

    Parameters
    ----------
    store : path-like
    jobs, backend, retry_failed, progress, on_run
        As for `run`.

    Examples
    --------
    >>> resume("no/such/file")
    Traceback (most recent call last):
    osscar_opt.errors.InputError: there is no store no/such/file.
    """
    _checked_call(jobs, backend, ())
    read_plan(store)  # complains if there is no such store, where Store would make one
    with Store(store) as opened:
        return _execute(opened, opened.tasks(), jobs, backend, retry_failed, progress, on_run)


def _checked_call(jobs: int, backend: str, seeds: Sequence[int]) -> None:
    if importlib.util.find_spec("joblib") is None:
        raise UnavailableError(
            "benchmarks need joblib, which is not installed; run: pip install 'osscar-opt[bench]'."
        )
    checked_count(jobs, "jobs")
    if backend not in BACKENDS:
        raise InputError(f"backend = {backend!r} must be one of {', '.join(BACKENDS)}.")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed {seed!r} must be a whole number, at least 0.")


def _execute(
    store: Store,
    tasks: list[Task],
    jobs: int,
    backend: str,
    retry_failed: bool,
    progress: bool | None,
    on_run: Callable[[Run], object] | None,
) -> Summary:
    began = time.monotonic()
    done = store.done(retry_failed=retry_failed)
    left = [task for task in tasks if task.key not in done]
    counts = {"ok": 0, "refused": 0, "failed": 0}
    with contextlib.closing(_made(left, jobs, backend)) as runs, Progress(left, progress) as shown:
        for made in runs:
            store.add(made)
            counts[made.outcome] += 1
            shown.add(made)
            if on_run is not None:
                on_run(made)
    return Summary(
        str(store.path), len(tasks), len(tasks) - len(left), **counts, seconds=time.monotonic() - began
    )


def _made(tasks: list[Task], jobs: int, backend: str) -> Generator[Run, None, None]:
    """Rows in the order in which runs end; whoever stops asking ends those that still go on."""
    if not tasks:
        return
    import joblib

    _prepare(backend)
    modules = own_modules({task.method for task in tasks})
    batch = secrets.token_hex(8)
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        workers = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
        rows: Any = workers(joblib.delayed(supervise)(task, modules, batch) for task in tasks)
    try:
        for row in rows:  # noqa: UP028 - `yield from` would close them before the batch is halted
            yield row
    except HaltedError:  # of a run that was ended with the others; what ended them is on its way
        raise KeyboardInterrupt from None
    finally:
        halted.add(batch)
        with warnings.catch_warnings(action="ignore"):  # that some were cancelled
            rows.close()


def _prepare(backend: str) -> None:
    """Make a cluster's backend known to joblib."""
    if backend not in ("dask", "ray"):
        return
    package = "distributed" if backend == "dask" else "ray"
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(
            f"backend {backend!r} needs {package}, which is not installed; run: pip install {package}."
        ) from error
    if backend == "ray":
        importlib.import_module("ray.util.joblib").register_ray()
        return
    try:
        importlib.import_module("distributed").get_client()
    except ValueError:
        raise InputError(
            "backend 'dask' needs a client: make one first, dask.distributed.Client(ADDRESS), or pass --scheduler "
            "ADDRESS on the command line."
        ) from None
