"""What the benchmarks share: methods written as text, timed runs, results that resume, tables."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg.lapack
from threadpoolctl import threadpool_info

import osscar_opt
from osscar_opt import Problem
from osscar_opt.bench.environment import processor
from osscar_opt.errors import OptionError, OsscarError, UnavailableError, UnknownMethodError
from osscar_opt.linalg.blas import cholesky_lower, inverse_from_cholesky_lower

Record = dict[str, Any]
SAME = 1e-6  # relative; objectives closer than this are equal


@dataclass(frozen=True)
class Method:
    """A registered method with options; `label` is how it was written."""

    label: str
    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, label: str) -> Method:
        name, _, rest = label.partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            options[key if equals else "solver"] = _value(value) if equals else key
        known = osscar_opt.solvers()
        if name in known.names and any(option.name == "threads" for option in known[name].options):
            options.setdefault("threads", 1)
        return cls(label, name, options)

    def why_not(self) -> str:
        """Why this method cannot run here, or ""; the first, slow imports happen here, before anything is timed."""
        tiny = Problem(np.diag([2.0, 1.0, 3.0]), np.ones((3, 2)), keep=2)
        try:
            tiny.solve(self.name, progress=False, time_limit=60, **self.options)
        except (UnknownMethodError, UnavailableError, OptionError) as error:
            return str(error)
        except OsscarError as error:
            return f"{type(error).__name__}: {error}"
        return ""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def solve(problem: Problem, method: Method, limit: float, *, repeat_below: float = 0.0) -> Record:
    """Solve, and say what came out. Runs that are short together are repeated, and the median time is returned."""
    seconds: list[float] = []
    while True:
        begin = time.perf_counter()
        try:
            found = problem.solve(method.name, time_limit=limit, progress=False, **method.options)
        except OsscarError as error:  # too large for a limited licence, say
            return {"status": "refused", "message": str(error)}
        seconds.append(time.perf_counter() - begin)
        if sum(seconds) >= repeat_below or len(seconds) == 5:
            break
    return {
        "status": str(found.status),
        "termination": str(found.termination),
        "proved": str(found.status) == "optimal" or _finished(found),
        "objective": found.objective,
        "relative": finite(found.relative),
        "bound": finite(found.bound),
        "bound_kind": str(found.bound_kind),
        "gap": finite(found.gap),
        "nodes": finite(found.stats.get("nodes")),
        "seconds": statistics.median(seconds),
        "search_seconds": found.solve_time,
        "message": found.message,
        "stats": {key: finite(value) for key, value in found.stats.items() if np.isscalar(value)},
    }


def _finished(found: Any) -> bool:
    """Whether a solver behind cvxpy says it is done: its bound, less its tolerances, never quite meets the value."""
    return "solver_status" in found.stats and str(found.termination) == "completed" and found.gap < 1e-3


def finite(value: Any) -> Any:
    """JSON has no infinity, no NaN and no numpy numbers."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


class Apart:
    """A child process that solves, so that a solver that crashes or passes its limit spoils no later run."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._warm: set[str] = set()

    def solve(self, problem: Problem, method: Method, limit: float) -> Record:
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
        try:
            if method.label not in self._warm:
                self._pool.apply_async(method.why_not).get(120)
                self._warm.add(method.label)
            waiting = self._pool.apply_async(solve, (problem, method, limit), {"repeat_below": 0.3})
            return waiting.get(1.1 * limit + 10)
        except multiprocessing.TimeoutError:
            self.close()
            return {"status": "none", "message": "crashed, or did not stop at the time limit"}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool, self._warm = None, set()


def inverse_seconds(gram: np.ndarray, *, patience: float = 5.0, dtype: Any = np.float64) -> float:
    """Seconds of one Cholesky inverse; of tiny matrices, many are timed together.

    One that takes longer than `patience` is timed once, others several times, and the median counts. Beside `gram`,
    one array of its size is needed at a time (and one more where `dtype` is not that of `gram`). With several threads,
    large matrices are inverted by strips: OpenBLAS's own potrf then writes beyond its buffers (osscar_opt.linalg.blas).
    """
    by_strips = len(gram) > 8192 and any(pool["num_threads"] > 1 for pool in threadpool_info())
    potrf, potri = scipy.linalg.lapack.get_lapack_funcs(("potrf", "potri"), dtype=dtype)
    columns = np.asarray(
        gram.T if gram.flags.c_contiguous else gram, dtype=dtype, order="F"
    )  # it is symmetric

    def inverses(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            if by_strips:
                factor = columns.copy(order="F")
                cholesky_lower(factor)
                inverse_from_cholesky_lower(factor)
            else:
                factor, _ = potrf(columns, lower=1, clean=0)
                potri(factor, lower=1, overwrite_c=1)
            del factor
        return (time.perf_counter() - begin) / count

    first = inverses(1)
    if first > patience:
        return first
    count = max(1, math.ceil(2e-3 / min(first, inverses(1), inverses(1))))
    repeats = max(1, min(7, int(3 * patience / (count * first))))
    return statistics.median(inverses(count) for _ in range(repeats))


def repeated(work: Callable[[], Any], times: int = 3, enough: float = 1.0) -> list[tuple[float, Any]]:
    """(seconds, result) of one run, or of up to `times` runs that take less than `enough` seconds in all."""
    done: list[tuple[float, Any]] = []
    while len(done) < times and sum(seconds for seconds, _ in done) < enough:
        begin = time.perf_counter()
        result = work()
        done.append((time.perf_counter() - begin, result))
    return done


class Results:
    """Records of earlier runs and of this one, one JSON object a line."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[tuple[Any, ...], Record] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line that an interrupted run did not finish
            self._known[self._key(record)] = record

    @staticmethod
    def _key(record: Record) -> tuple[Any, ...]:
        return tuple(record[name] for name in ("kind", "case", "method", "limit", "hash"))

    def get(self, task: Record) -> Record | None:
        return self._known.get(self._key(task))

    def add(self, record: Record) -> None:
        self._known[self._key(record)] = record
        if self._path is not None:
            whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
            with self._path.open("a") as file:
                file.write(("" if whole else "\n") + json.dumps(record, allow_nan=False) + "\n")


def run(tasks: Sequence[tuple[Record, Callable[[], Record]]], results: Results) -> list[Record]:
    """Do every task that is not in the results, with progress; all records, in the order of the tasks."""
    left = [task for task, _ in tasks if results.get(task) is None]
    say(f"{len(tasks)} runs, {len(tasks) - len(left)} of them done already")
    begin, done = time.perf_counter(), 0
    with interrupts() as seen:
        for task, work in tasks:
            if results.get(task) is not None:
                continue
            with contextlib.suppress(KeyboardInterrupt):
                found = work()
            if seen:
                say("interrupted: the tables hold what is done so far")
                break
            results.add(task | found | {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "load": os.getloadavg()[0]})
            done += 1
            spent = time.perf_counter() - begin
            rest = spent / done * (len(left) - done)
            said = _short(results.get(task) or {})
            say(f"[{done}/{len(left)}] {said} | {spent:.0f} s, about {rest:.0f} s left")
    return done_already(tasks, results)


def done_already(tasks: Sequence[tuple[Record, Callable[[], Record]]], results: Results) -> list[Record]:
    """The records that there are, in the order of the tasks."""
    return [record for task, _ in tasks if (record := results.get(task)) is not None]


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C comes: solving survives it, and returns what it has as if time were up."""
    seen: list[int] = []

    def note(signum: int, frame: object) -> None:
        seen.append(signum)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where a shell has switched it off
        signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _short(record: Record) -> str:
    said = f"{record['case']} {record['method']}: {record.get('status', '')}"
    if record.get("gap"):
        said += f", gap {100 * record['gap']:.3g} %"
    if record.get("nodes") is not None:
        said += f", {record['nodes']} nodes"
    return said + (f", {record['seconds']:.3g} s" if "seconds" in record else "")


def task_of(kind: str, case: str, problem: Problem, method: str, limit: float, **more: Any) -> Record:
    return {
        "kind": kind,
        "case": case,
        "method": method,
        "limit": limit,
        "hash": problem.hash,
        "p": problem.p,
        "q": problem.q,
        "n": problem.n,
        "keep": problem.keep,
        "version": osscar_opt.__version__,
        **more,
    }


def available(labels: Iterable[str]) -> list[Method]:
    """The methods that can run here; the others are named, and left out."""
    methods = []
    for method in map(Method.parse, labels):
        reason = method.why_not()
        if reason:
            say(f"{method.label} is left out: {reason}")
        else:
            methods.append(method)
    return methods


# -------------------------------------------------------------------------------------------------------------- tables


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]], align: str) -> str:
    """A table; columns past the letters of `align` are aligned to the right."""
    rules = [" --- " if align[i : i + 1] == "l" else " ---: " for i in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "" if value is None else "0" if value <= SAME else f"{100 * value:.3g} %"


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def geometric_mean(values: Sequence[float]) -> float | None:
    return statistics.geometric_mean(values) if values else None


def machine() -> str:
    return f"{processor()}, numpy {np.__version__}, osscar_opt {osscar_opt.__version__}"
