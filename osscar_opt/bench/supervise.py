"""One run from beginning to end, on the side of the runner: its clock, its limits, its judgement."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osscar_opt.bench import frames
from osscar_opt.bench.environment import environment
from osscar_opt.bench.judging import Answer, Judgement, judge
from osscar_opt.bench.limits import tree_memory
from osscar_opt.bench.nursery import Process, nursery
from osscar_opt.bench.posting import Posting, posting
from osscar_opt.bench.store import Run
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import OsscarError
from osscar_opt.formulations.problem import Problem

__all__ = ["HaltedError", "halted", "hard_limit", "supervise"]

halted: set[str] = set()
"""Batches whose runs are to end at once; they leave no row."""

_SETUP_LIMIT = 120.0
"""Seconds a process may take to import its method."""

_TRANSFER = 60.0
_POLL = 0.2
_MOST_INCUMBENTS = 4096
_FAREWELL = 2.0
_CHUNK = 1 << 18
_MOST_CHUNKS = 4096
_IDLE_MEMORY = 160
"""MiB that a tree of processes may hold beyond its limit: what an idle one has, and what is counted twice."""

_LONGEST_ANSWER = 1 << 22
_LONGEST_CERTIFICATE = 1 << 29
_LONGEST_REASON = 500


class HaltedError(Exception):
    """A run was ended because all are.

    Examples
    --------
    >>> issubclass(HaltedError, Exception)
    True
    """


def hard_limit(time_limit: float | None) -> float:
    """Seconds after which a run is ended that does not end by itself.

    Examples
    --------
    >>> hard_limit(10.0), hard_limit(100.0), hard_limit(None)
    (12.0, 110.0, inf)
    """
    return math.inf if time_limit is None else time_limit + max(2.0, 0.1 * time_limit)


def supervise(task: Task, modules: tuple[str, ...] = (), batch: str = "") -> Run:
    """Make a run in a process of its own and judge it; whatever happens there, a row comes back.

    Parameters
    ----------
    task : Task
    modules : tuple of str, optional
        Modules of the library, and of packages it depends on, that the zygote loads beforehand.
    batch : str, optional
        Name of the batch it belongs to.

    Raises
    ------
    HaltedError
        If the batch is among those halted.

    Examples
    --------
    >>> supervise(Task("none", "no/such/file", "", 0, 0, 0, None, "greedy")).outcome
    'failed'
    """
    if batch in halted:
        raise HaltedError
    known: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(task.method, task.threads),
    }
    try:
        posted = posting(task.path, task.hash)
        problem = posted.problem if task.keep is None else posted.problem.with_keep(task.keep)
    except (OsscarError, OSError, MemoryError) as error:
        return Run.failed(task, _sentence(_unreadable(task, error)), **known)
    task = dataclasses.replace(task, hash=problem.hash, n=problem.n, p=problem.p, q=problem.q)
    supervision = _Supervision(task, problem, posted, batch)
    try:
        with _folder() as folder:
            supervision.run(folder, modules)
    except (OsscarError, OSError) as error:
        return Run.failed(task, _sentence(f"The run could not be started: {error}"), **known)
    with _limited(task.threads):
        return supervision.row(known)


class _Supervision:
    """What is known of a run while it goes on."""

    def __init__(self, task: Task, problem: Problem, posted: Posting, batch: str) -> None:
        self._task = task
        self._batch = batch
        self._problem = problem
        self._posted = posted
        longest = {
            frames.READY: 1 << 10,
            frames.INCUMBENT: -(-problem.n // 8),
            frames.ANSWER: _LONGEST_ANSWER,
            frames.CERTIFICATE: _LONGEST_CERTIFICATE,
            frames.ERROR: 1 << 16,
        }
        self._frames = frames.Frames(longest)
        self._process: Process | None = None
        self._began = 0.0
        self._setup: float | None = None
        self._gone = math.inf  # when the problem was handed over
        self._wall = 0.0
        self._deadline = math.inf
        self._incumbents: list[tuple[float, bytes]] = []
        self._document: dict[str, Any] | None = None
        self._certificate = b""
        self._error: dict[str, Any] | None = None
        self._trouble = ""
        self._complete = False
        self._closed = False
        self._late = False

    def run(self, folder: str, modules: tuple[str, ...]) -> None:
        """Start the process and follow it until it has answered or there is nothing more to wait for."""
        starter = nursery(self._task.threads, modules)
        starter.prepare()
        self._began = time.perf_counter()
        self._deadline = self._began + _SETUP_LIMIT
        request = {
            "method": self._task.method,
            "options": self._options(),
            "path": [entry for entry in sys.path if entry],
            "folder": folder,
            "memory": self._task.memory_limit,
        }
        process = self._process = starter.start(request)
        try:
            self._follow(process)
        finally:
            process.end()
        if math.isfinite(self._gone) and not self._wall:
            self._wall = time.perf_counter() - self._gone

    def _options(self) -> dict[str, Any]:
        seed = self._task.seed
        return {**self._task.options, **({} if seed is None else {"seed": seed})}

    def _follow(self, process: Process) -> None:
        poller = select.poll()
        poller.register(process.channel, select.POLLIN)
        poller.register(process.lease, select.POLLIN)
        next_look = self._began
        while not self._complete:
            now = time.perf_counter()
            if self._batch in halted:
                raise HaltedError
            if now >= self._deadline:
                self._drain(process)
                self._late = not self._complete
                return
            if now >= next_look and process.number:
                next_look = now + _POLL
                if self._too_large(process):
                    return
            for file, _ in poller.poll(1e3 * min(_POLL, self._deadline - now)):
                if file == process.channel.fileno() and not self._receive(process):
                    poller.unregister(process.channel)  # its exit status should follow
                    self._closed, self._deadline = True, min(self._deadline, now + _FAREWELL)
                elif file == process.lease.fileno():
                    process.listen()
            if process.over:
                self._drain(process)
                return

    def _drain(self, process: Process) -> None:
        """Take in what was sent and not read yet."""
        for _ in range(_MOST_CHUNKS):
            if self._complete or not self._receive(process, wait=False):
                return

    def _too_large(self, process: Process) -> bool:
        """The system limits each process; here it is the sum over those that were forked."""
        limit = self._task.memory_limit
        if limit is None or tree_memory(process.number) <= limit + _IDLE_MEMORY:
            return False
        self._trouble = f"The method took more than {limit} MiB of memory, and was ended"
        return True

    def _receive(self, process: Process, *, wait: bool = True) -> bool:
        """Take in what there is; False if nothing more will come, or nothing is there now."""
        try:
            data = process.channel.recv(_CHUNK, 0 if wait else socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        now = time.perf_counter()
        try:
            for kind, payload in self._frames.feed(data):
                self._take(process, kind, payload, now)
                if self._complete:
                    break
        except (frames.NonsenseError, ValueError, OSError):
            self._trouble = "The method's process sent something that is not an answer"
            self._complete = True
        return bool(data)

    def _take(self, process: Process, kind: int, payload: bytes, now: float) -> None:
        running = math.isfinite(self._gone)
        if kind == frames.READY and not running:
            self._go(process)
        elif kind == frames.INCUMBENT and running and self._document is None:
            self._incumbents.append((now - self._gone, payload))
            if len(self._incumbents) > _MOST_INCUMBENTS:
                self._incumbents = self._incumbents[::2]
        elif kind == frames.ANSWER and running and self._document is None:
            self._wall = now - self._gone
            self._document = frames.parsed(payload)
            self._deadline = now + _TRANSFER
            self._complete = self._document.get("certificate") is not True
        elif kind == frames.CERTIFICATE and self._document is not None:
            self._certificate = payload
            self._complete = True
        elif kind == frames.ERROR:
            self._wall = now - self._gone if running else 0.0
            self._error = frames.parsed(payload)
            self._complete = True
        else:
            raise frames.NonsenseError(f"a message of kind {kind} out of turn")

    def _go(self, process: Process) -> None:
        """Hand over the problem; the clock starts."""
        document = {"keep": self._task.keep, "time_limit": self._task.time_limit, "sizes": self._posted.sizes}
        message = frames.frame(frames.GO, json.dumps(document, allow_nan=False).encode())
        self._gone = time.perf_counter()
        self._setup = self._gone - self._began
        self._deadline = self._gone + hard_limit(self._task.time_limit)
        sent = socket.send_fds(process.channel, [message], [self._posted.file])
        process.channel.sendall(message[sent:])

    def row(self, known: dict[str, Any]) -> Run:
        """Judge what has come, and make the row."""
        process = self._process
        assert process is not None
        known |= {"wall": self._wall, "setup": self._setup, "cpu": process.cpu, "peak_memory": process.memory}
        if self._document is not None and not self._trouble:
            try:
                answer = Answer.of(self._document, self._certificate)
            except ValueError:
                self._trouble = "The method's process sent something that is not an answer"
            else:
                return self._answered(answer, known)
        if self._late and math.isfinite(self._gone) and not self._trouble and not self._closed:
            found = judge(self._problem, None, self._incumbents, self._wall)
            if found.support is not None:
                note = {"message": f"ended by the runner after {self._wall:.1f} s"}
                return self._made(found, "time_limit", {**known, "stats": note})
        refused = self._error is not None and "CapabilityError" in self._kinds()
        reason = _sentence(self._trouble or self._reason(process))
        return Run.blank(self._task, outcome="refused" if refused else "failed", reason=reason, **known)

    def _answered(self, answer: Answer, known: dict[str, Any]) -> Run:
        if answer.termination == "failed":
            said = answer.message or "The method failed without a word"
            return Run.failed(self._task, _sentence(said), **known)
        found = judge(self._problem, answer, self._incumbents, self._wall)
        if found.support is None:
            flaw = found.flaw or "has no finite objective"
            return Run.failed(self._task, _sentence(f"The method proposed a support that {flaw}"), **known)
        message = {"message": _sentence(answer.message)} if answer.message else {}
        known |= {
            "stats": {**(answer.stats or {}), **message, **found.notes},
            "search": None if answer.search is None else min(max(answer.search, 0.0), self._wall),
        }
        return self._made(found, answer.termination, known)

    def _made(self, found: Judgement, termination: str, known: dict[str, Any]) -> Run:
        judged = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        del judged["flaw"], judged["notes"]
        return Run.blank(self._task, outcome="ok", termination=termination, **judged, **known)

    def _reason(self, process: Process) -> str:
        """Why there is no answer."""
        if self._error is not None:
            kind, said = next(iter(self._kinds()), "an error"), str(self._error.get("message", ""))
            if "OsscarError" in self._kinds():
                return said
            memory = f" (its limit is {self._task.memory_limit} MiB)" if kind == "MemoryError" else ""
            return (
                f"The method raised {kind}{memory}: {said}" if said else f"The method raised {kind}{memory}"
            )
        if self._late and self._closed:
            return "The method's process closed its connection, and gave no answer"
        if self._late and self._setup is None:
            return f"The method was not imported within {_SETUP_LIMIT:g} s"
        if self._late:
            limit = self._task.time_limit
            return (
                f"The method did not end at its time limit of {limit:g} s, was ended after {self._wall:.1f} s, and had "
                "reported no solution"
            )
        if process.trouble:
            return f"The run broke off: {process.trouble}"
        return _ended(process.exit or 0)

    def _kinds(self) -> list[str]:
        kinds = (self._error or {}).get("kinds")
        return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []


def _unreadable(task: Task, error: Exception) -> str:
    if not Path(task.path).exists():
        return (
            f"The file of instance {task.instance!r} is missing, {task.path}: put it there, or, if it is one of the "
            "catalogue, run osscar-opt instances build"
        )
    return str(error) or "There is no memory to read the instance"


def _ended(exit_status: int) -> str:
    if exit_status >= 0:
        return f"The method's process left with exit status {exit_status}, without an answer"
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    if name == "SIGKILL":
        return "The method's process was killed (SIGKILL), by itself or by a system short of memory"
    return f"The method's process crashed ({name})"


def _sentence(text: str) -> str:
    """One line for people, of moderate length, whatever a method wrote."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    cut = line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."
    return cut if cut.endswith((".", "!", "?")) else cut + "."


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="osscar-opt-run-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _limited(threads: int) -> Any:
    from osscar_opt.linalg.threads import at_most

    return at_most(threads)
