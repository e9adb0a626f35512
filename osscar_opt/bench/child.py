"""What runs in the process of a run: it loads the method, waits for the problem, solves, and says which groups to keep.

Everything here is at the mercy of the method, which may change any of it; the runner believes nothing of what is sent
but that this support was proposed.  The problem comes last, when the clock runs: nothing can be done ahead of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.bench import frames, limits
from osscar_opt.certificates.certificate import Certificate
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Solution
from osscar_opt.solvers.base import Deadline, Proposal, Report, Solver

__all__ = ["Tap", "main", "read_problem", "tapped"]

_LONGEST_GO = 1 << 16
_UNCLAIMED_EVERY = 0.02
"""Seconds between incumbents without a claimed objective: nobody knows whether they improve."""

_NO_CLAIM = -1e300
_LONGEST_STATS = 1 << 15
_LONGEST_TEXT = 2000


def main(channel: socket.socket, request: dict[str, Any]) -> None:
    """Make one run.

    Parameters
    ----------
    channel : socket
        To the runner.
    request : dict
        "method", "options", "path" (for imports), "folder" (to work in), "memory" (MiB or None).

    Examples
    --------
    >>> main(channel, request)  # doctest: +SKIP
    """
    _settle(request)
    try:
        solver = _loaded(request)
        ready = {"seed": "seed" in {f.name for f in dataclasses.fields(solver) if f.init}}
        channel.sendall(frames.frame(frames.READY, json.dumps(ready).encode()))
        payload, files = frames.receive(channel, frames.GO, _LONGEST_GO)
        go = json.loads(payload)
        problem = read_problem(files[0], go["sizes"])
        if go["keep"] is not None:
            problem = problem.with_keep(go["keep"])
        tap = Tap(lambda packed: channel.sendall(frames.frame(frames.INCUMBENT, packed)), problem)
        solution = problem.solve(tapped(solver, tap), time_limit=go["time_limit"], progress=False)
        _answer(channel, solution, tap, solver)
    except (
        BaseException
    ) as error:  # whatever it is, the runner is told; it may still be what the method made up
        with contextlib.suppress(Exception):
            channel.sendall(frames.frame(frames.ERROR, _described(error)))
    os._exit(0)  # whatever threads the method left must not keep the process


def _settle(request: dict[str, Any]) -> None:
    """Become a process of the run's own: its folder, its limits, nothing of the terminal."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ["TMPDIR"] = request["folder"]
    limits.be_first_victim()
    sys.path[:] = request["path"]
    importlib.invalidate_caches()
    if request["memory"] is not None:
        limits.limit_memory(request["memory"])


def _loaded(request: dict[str, Any]) -> Solver:
    """The method, with what it needs imported: that is not part of its time."""
    from osscar_opt.solvers.registry import get_solver, solver_class

    cls = solver_class(request["method"])
    for module in cls.requires:
        importlib.import_module(module)
    return get_solver(cls, request["options"])


def read_problem(file: int, sizes: list[int]) -> Problem:
    """Read the problem that the runner has laid out in a file; its arrays stay there, shared by all runs.

    Parameters
    ----------
    file : int
        A descriptor.
    sizes : list of int
        Of the parts: the pickle, then its buffers; each begins at a multiple of 64 bytes.

    Examples
    --------
    >>> read_problem(file, sizes)  # doctest: +SKIP
    """
    data = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += -(-size // 64) * 64
    return pickle.loads(parts[0], buffers=parts[1:])  # type: ignore[no-any-return]  # written by the runner


class Tap:
    r"""Sends the supports that a method reports, if they are claimed to be better, over the groups as posed.

    Parameters
    ----------
    send : callable
        Takes a support as packed bits.
    problem : Problem
        As posed.

    Attributes
    ----------
    certificate : Certificate or None
        What the method proposed, of the problem that it was handed.

    Examples
    --------
    >>> problem = Problem(np.eye(2), np.ones((2, 1)), keep=1)
    >>> Tap(print, problem)(problem, np.array([True, False]), 0.5)
    b'\x80'
    """

    def __init__(self, send: Callable[[bytes], object], problem: Problem) -> None:
        self._send = send
        self._problem = problem
        self._lift: Callable[[BoolArray], BoolArray] | None = None
        self._lock = threading.Lock()
        self._best = math.inf
        self._next_unclaimed = 0.0
        self.certificate: Certificate | None = None

    def __call__(self, presolved: Problem, support: BoolArray, claim: float | None) -> None:
        if claim is None:
            if time.monotonic() < self._next_unclaimed:
                return
            self._next_unclaimed = time.monotonic() + _UNCLAIMED_EVERY
        elif not claim < self._best:
            return
        else:
            self._best = claim
        mask = np.array(support, dtype=bool)
        if mask.shape != (presolved.n,):
            return
        if self._lift is None:
            self._lift = _lifting(self._problem, presolved)
        packed = np.packbits(self._lift(mask)).tobytes()
        with self._lock:
            self._send(packed)


def _lifting(posed: Problem, presolved: Problem) -> Callable[[BoolArray], BoolArray]:
    """How a support of the presolved problem becomes one of the problem as posed."""
    if presolved.n == posed.n:
        return lambda support: support
    from osscar_opt.formulations.presolve import presolve

    return presolve(posed, ("forced", "dead_inputs")).lift_support


def tapped(solver: Solver, tap: Tap) -> Solver:
    """Return the same solver, whose reports are also told to `tap`, and whose certificate is left there.

    It is the runner that checks the certificate, once; the referee here would do it on the method's time.

    Parameters
    ----------
    solver : Solver
    tap : Tap
        Called with the problem that the solver was handed, a support of it, and the objective claimed.

    Examples
    --------
    >>> from osscar_opt.solvers import get_solver
    >>> problem = Problem([[2.0, 1.0], [1.0, 2.0]], dense_weights=[[1.0], [2.0]], keep=1)
    >>> problem.solve(tapped(get_solver("greedy"), Tap(lambda packed: print(packed), problem))).kept
    b'@'
    array([1])
    """
    base = type(solver)

    def propose(
        self: Solver, problem: Problem, *, start: BoolArray | None, deadline: Deadline, report: Report
    ) -> Proposal:
        reported = report.incumbent

        def incumbent(support: BoolArray, objective: float | None = None) -> None:
            reported(support, objective)
            tap(problem, support, objective)

        report.incumbent = incumbent  # type: ignore[method-assign]  # on this report alone
        proposal = base.propose(self, problem, start=start, deadline=deadline, report=report)
        if isinstance(proposal, Proposal) and isinstance(proposal.certificate, Certificate):
            tap.certificate = proposal.certificate
            return dataclasses.replace(proposal, certificate=None)
        return proposal

    same = type(base.__name__, (base,), {"propose": propose, "__module__": base.__module__})
    copy: Solver = same(**{f.name: getattr(solver, f.name) for f in dataclasses.fields(solver) if f.init})
    return copy


def _answer(channel: socket.socket, solution: Solution, tap: Tap, solver: Solver) -> None:
    """Send the support, which stops the runner's clock, and then the certificate, if there is one."""
    proof = tap.certificate or solution.certificate
    stats = json.dumps(solution.to_dict()["stats"], allow_nan=False)
    document = {
        "support": np.packbits(solution.support).tobytes().hex(),
        "bound": solution.bound if math.isfinite(solution.bound) else None,
        "certificate": isinstance(proof, Certificate),
        "termination": str(solution.termination),
        "message": solution.message[:_LONGEST_TEXT],
        "search": solution.solve_time,
        "stats": json.loads(stats) if len(stats) <= _LONGEST_STATS else {},
    }
    channel.sendall(frames.frame(frames.ANSWER, json.dumps(document, allow_nan=False).encode()))
    if isinstance(proof, Certificate):
        packed = b""
        with contextlib.suppress(Exception):  # a method may hand over anything: then there is no proof
            packed = _posed(proof, proof is tap.certificate, solution, solver).to_bytes(embed=False)
        channel.sendall(frames.frame(frames.CERTIFICATE, packed))


def _posed(proof: Certificate, of_presolved: bool, solution: Solution, solver: Solver) -> Certificate:
    """The certificate as one of the problem as posed, which claims no more than that it proves something."""
    if of_presolved:
        from osscar_opt.formulations.presolve import presolve
        from osscar_opt.solvers.registry import default_reductions

        proof = presolve(solution.problem, default_reductions(solver)).lift_certificate(proof)
    return proof.claiming(bound=_NO_CLAIM, support=solution.support)


def _described(error: BaseException) -> bytes:
    text = str(error)[:_LONGEST_TEXT]
    names = [cls.__name__ for cls in type(error).__mro__]
    return json.dumps({"kinds": names, "message": text}).encode()
