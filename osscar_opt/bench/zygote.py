"""The process that starts the runs: it has loaded the library once, and forks a process for every run.

    python -P -m osscar_opt.bench.zygote SOCKET THREADS MODULE,MODULE,...

So a run begins within milliseconds, and no run sees what another left behind.  Nobody's code but the library's is ever
loaded here.  Whoever asks for a run hands over two sockets: a channel, which goes to the run, and a lease.  When the
other end of the lease is closed, because the run has answered, has taken too long, or because the runner is gone, the
process of the run is killed, and what it forked with it; then its exit status is sent over the lease.

This process is the head of a session of its own: a signal to the runner's group, SIGKILL even, leaves it the moment it
needs to clear away.  It is told by the end of its socket that the runner is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

from osscar_opt.bench import child, frames, limits

__all__ = ["MODULES", "REQUEST", "STARTED", "main"]

REQUEST = 1
STARTED = b"+"

MODULES = (
    "numpy.random",
    "scipy.linalg",
    "scipy.linalg.lapack",
    "threadpoolctl",
    "osscar_opt.certificates.certificate",
    "osscar_opt.solvers.registry",
    "osscar_opt.solvers.referee",
)
"""What every run needs; the methods' own modules come on top."""

_LONGEST_REQUEST = 1 << 22


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._leases: dict[int, socket.socket] = {}
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)

    def serve(self) -> None:
        """Start what is asked for, until the other side of the control socket is gone; then kill what still runs."""
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is self._control:
                        self._begin()
                    elif key.fileobj == self._woken:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._woken, 4096)
                        self._reap()
                    else:
                        self._end(key.data)
        except EOFError:
            pass
        finally:
            self._clear_away()

    def _begin(self) -> None:
        payload, files = frames.receive(self._control, REQUEST, _LONGEST_REQUEST)
        request = json.loads(payload)
        channel, lease = (socket.socket(fileno=file) for file in files)
        here = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            _tell(lease, {"error": f"no process could be started ({error.strerror})"})
            channel.close()
            lease.close()
            return
        if process == 0:
            self._become_child(channel, lease, request, here)
        channel.close()
        _tell(lease, {"process": process})
        self._leases[process] = lease
        self._selector.register(lease, selectors.EVENT_READ, data=process)

    def _become_child(
        self, channel: socket.socket, lease: socket.socket, request: dict[str, Any], parent: int
    ) -> None:
        """Never returns; nothing of the zygote's stays open."""
        try:
            os.setsid()
            limits.die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for ours in (self._control, lease, *self._leases.values()):
                ours.close()
            os.close(self._woken)
            os.close(self._waker)
            child.main(channel, request)
        finally:
            os._exit(1)

    def _end(self, process: int) -> None:
        """The lease says something, which can only be its end: kill.  The rest follows when the process has ended."""
        lease = self._leases.get(process)
        if lease is None:  # it has just ended by itself
            return
        with contextlib.suppress(KeyError):
            self._selector.unregister(lease)
        _kill(process)

    def _reap(self) -> None:
        """Collect what has ended; kill what it left behind, in its group or adopted from it."""
        while True:
            try:
                process, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                break
            lease = self._leases.pop(process, None)
            if lease is None:  # an orphan of a run
                continue
            _kill_group(process)
            with contextlib.suppress(KeyError):
                self._selector.unregister(lease)
            per_mib = 1 << (20 if sys.platform == "darwin" else 10)  # in bytes there, in KiB elsewhere
            used = {"cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss // per_mib}
            _tell(lease, {"exit": os.waitstatus_to_exitcode(status), **used})
            lease.close()
        for orphan in limits.children_of(os.getpid()):
            if orphan not in self._leases:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)

    def _clear_away(self) -> None:
        signal.set_wakeup_fd(-1)
        for process in self._leases:
            _kill(process)
        while left := limits.children_of(os.getpid()) or list(self._leases):
            for process in left:
                _kill(process)
            try:
                self._leases.pop(os.wait()[0], None)
            except ChildProcessError:
                return


def _nothing(*_: object) -> None:
    """Handle SIGCHLD, for without a handler nothing is written to the wake-up pipe."""


def _kill(process: int) -> None:
    """A child that was not collected yet, so that its number is still its own; it may not head its group yet."""
    _kill_group(process)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _tell(lease: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        lease.sendall(json.dumps(message).encode() + b"\n")


def _preload(modules: list[str]) -> None:
    for module in (*MODULES, *modules):
        importlib.import_module(module)
    problem = importlib.import_module("osscar_opt.formulations.problem").Problem([[1.0]], [[1.0]], keep=1)
    problem.solve("greedy", time_limit=1.0, progress=False)  # what is made on first use is made here, once
    gc.collect()
    gc.freeze()  # the collector of a run leaves the pages of these objects alone, and they stay shared


def main(arguments: list[str]) -> None:
    """Serve; the arguments are those in the description above.

    Examples
    --------
    >>> main(["3", "1", ""])  # doctest: +SKIP
    """
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits.adopt_orphans()
    ctypes.CDLL(None)
    _preload([module for module in arguments[2].split(",") if module])
    from osscar_opt.linalg.threads import threads

    threads(int(arguments[1]))
    control.sendall(STARTED)
    _Zygote(control).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
