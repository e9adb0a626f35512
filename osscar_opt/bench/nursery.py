"""The runner's end of the zygote: asks for processes, and hears what became of them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from osscar_opt.bench import frames, zygote
from osscar_opt.errors import SolverError, UnavailableError

__all__ = ["Nursery", "Process", "close_all", "nursery"]

_PATIENCE = 120.0
"""Seconds the zygote may take to load the library, and a process to die."""

_FAREWELL = 10.0

_POOLS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OSSCAR_OPT_THREADS",
)

_nurseries: dict[tuple[int, int, frozenset[str]], Nursery] = {}
_lock = threading.Lock()


@dataclass(eq=False)
class Process:
    """A process that was asked for, until it is over.

    Attributes
    ----------
    channel : socket
        To what runs there, which is not to be trusted.
    lease : socket
        To the zygote: `ended` reads it, `kill` gives it back.
    number : int
        0 until the zygote has told.
    exit : int or None
        Exit status, negative for a signal; None while it runs, or if the zygote is gone.
    cpu : float or None
        Seconds.
    memory : int or None
        Most MiB it held.
    trouble : str
        Why there is no such process, or "".

    Examples
    --------
    >>> process = Process(*socket.socketpair())
    >>> process.over
    False
    >>> process.channel.close(), process.lease.close()
    (None, None)
    """

    channel: socket.socket
    lease: socket.socket
    number: int = 0
    exit: int | None = None
    cpu: float | None = None
    memory: int | None = None
    trouble: str = ""
    over: bool = False
    _heard: bytearray = field(default_factory=bytearray)

    def listen(self) -> None:
        """Take in what the zygote has said; to be called when the lease can be read.

        Examples
        --------
        >>> ours, theirs = socket.socketpair()
        >>> process = Process(socket.socket(), ours)
        >>> theirs.close()
        >>> process.listen()
        >>> process.over, process.trouble
        (True, 'the process that starts the runs is gone')
        >>> process.channel.close(), process.lease.close()
        (None, None)
        """
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self.lease.recv(1 << 12)
        self._heard += data
        *lines, rest = bytes(self._heard).split(b"\n")
        self._heard = bytearray(rest)
        for line in lines:
            said = json.loads(line)
            self.number = said.get("process", self.number)
            self.trouble = said.get("error", self.trouble)
            if "exit" in said:
                self.exit, self.cpu, self.memory = said["exit"], said["cpu"], said["memory"]
        self.over = self.over or self.exit is not None or bool(self.trouble) or not data
        if not data and self.exit is None and not self.trouble:
            self.trouble = "the process that starts the runs is gone"

    def end(self) -> None:
        """Have the process killed, and what it forked; returns when it is over.

        Examples
        --------
        >>> ours, theirs = socket.socketpair()
        >>> theirs.close()
        >>> process = Process(socket.socket(), ours)
        >>> process.end()
        >>> process.over
        True
        """
        with contextlib.suppress(OSError):
            self.lease.shutdown(socket.SHUT_WR)
        self.lease.settimeout(_PATIENCE)
        while not self.over:
            try:
                self.listen()
            except TimeoutError:
                self.over, self.trouble = True, "the process could not be killed"
        self.channel.close()
        self.lease.close()


class Nursery:
    """Starts processes through a zygote of its own, which is started with the first, and again if it has died.

    Parameters
    ----------
    threads : int
        For the linear algebra of every process.
    modules : tuple of str
        To load beforehand; the library's own and its dependencies only.

    Examples
    --------
    >>> nursery = Nursery(1, ())
    >>> request = {"method": "greedy", "options": {}, "path": sys.path, "folder": "/", "memory": None}
    >>> process = nursery.start(request)
    >>> frames.receive(process.channel, frames.READY, 100)
    (b'{"seed": false}', [])
    >>> process.end()
    >>> process.exit
    -9
    >>> nursery.close()
    """

    def __init__(self, threads: int, modules: tuple[str, ...]) -> None:
        self._threads = threads
        self._modules = modules
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._zygote: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Have the zygote up, so that the next `start` does not wait for it.

        Raises
        ------
        SolverError
            If it does not come up.

        Examples
        --------
        >>> Nursery(1, ()).prepare()  # doctest: +SKIP
        """
        with self._lock:
            if self._control is None:
                self._control = self._hatch()

    def start(self, request: dict[str, Any]) -> Process:
        """Ask for a process; its `READY` comes over the channel.

        Raises
        ------
        SolverError
            If no process can be started.

        Examples
        --------
        >>> Nursery(1, ()).start({})  # doctest: +SKIP
        """
        channel, theirs = socket.socketpair()
        lease, held = socket.socketpair()
        try:
            self._ask(request, theirs, held)
        except BaseException:
            channel.close()
            lease.close()
            raise
        finally:
            theirs.close()
            held.close()
        return Process(channel, lease)

    def _ask(self, request: dict[str, Any], theirs: socket.socket, held: socket.socket) -> None:
        message = frames.frame(zygote.REQUEST, json.dumps(request).encode())
        for attempt in (1, 2):
            self.prepare()
            with self._lock:
                control = self._control
                try:
                    if control is None:
                        raise ConnectionError("it was closed")
                    sent = socket.send_fds(control, [message], [theirs.fileno(), held.fileno()])
                    control.sendall(message[sent:])
                except OSError as error:
                    self._bury()
                    if attempt == 2:
                        raise SolverError(f"no process for a run can be started: {error}.") from error
                else:
                    return

    def _hatch(self) -> socket.socket:
        if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
            raise UnavailableError("benchmarks need processes that fork: run them on Linux or macOS.")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._zygote = self._begun(theirs)
            ours.settimeout(_PATIENCE)
            if ours.recv(1) != zygote.STARTED:
                raise ConnectionError("it has ended")
            ours.settimeout(None)
        except BaseException as error:  # Ctrl-C too: an open socket would keep the zygote
            ours.close()
            self._bury()
            if isinstance(error, OSError):
                raise SolverError(
                    f"the process that starts the runs did not come up ({error}): see what it has written above, and "
                    "whether memory is short."
                ) from error
            raise
        return ours

    def _begun(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        limits = dict.fromkeys(_POOLS, str(self._threads))
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-P", "-m", zygote.__name__, str(theirs.fileno()), str(self._threads)]
        return subprocess.Popen(
            [*command, ",".join(self._modules)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **limits, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    def _bury(self) -> None:
        """Forget a zygote, having told it to end."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._zygote is not None:
            try:
                self._zygote.wait(_FAREWELL)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
            self._zygote = None

    def close(self) -> None:
        """End the zygote, and with it every process that still runs.

        Examples
        --------
        >>> Nursery(1, ()).close()
        """
        with self._lock:
            self._bury()


def nursery(threads: int, modules: Iterable[str]) -> Nursery:
    """A nursery of this process for so many threads that loads these modules; it closes when the process ends.

    Examples
    --------
    >>> nursery(1, ()) is nursery(1, ())
    True
    """
    wanted = frozenset(modules)
    with _lock:
        for (process, count, loaded), found in _nurseries.items():
            if process == os.getpid() and count == threads and wanted <= loaded:
                return found
        made = _nurseries[os.getpid(), threads, wanted] = Nursery(threads, tuple(sorted(wanted)))
        return made


@atexit.register
def close_all() -> None:
    """Close every nursery of this process.

    Examples
    --------
    >>> close_all()
    """
    with _lock:
        mine = [key for key in _nurseries if key[0] == os.getpid()]
        for key in mine:
            _nurseries.pop(key).close()
