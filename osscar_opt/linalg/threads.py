"""How many threads the linear algebra uses: one switch, for the whole process.

A process holds several pools of threads: numpy's BLAS, scipy's BLAS, torch's and others' OpenMP.  `threads` sets them
all, through threadpoolctl, and is the only place in the library that does.

What is in force
----------------
Limits stand in a list: the process's own at the bottom, one more for every ``with`` block, and the last one counts.
A block that ends takes away its own limit and no other, so that blocks of several threads may end in any order, and
when the last is gone every pool has what it had before.  Beside these stand caps (`at_most`), which only ever lower.

Most pools belong to the process.  An OpenMP pool counts for each thread apart: it is set in the thread that calls
`threads`, and in every thread that the library starts (`limit_this_thread`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import math
import numbers
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osscar_opt.errors import InputError

if TYPE_CHECKING:
    import types
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

__all__ = [
    "VARIABLE",
    "ThreadLimit",
    "at_most",
    "available_cores",
    "checked_count",
    "in_force",
    "limit_this_thread",
    "read_environment",
    "threads",
]

VARIABLE = "OSSCAR_OPT_THREADS"
"""Environment variable that is the process's own limit from the start."""


def threads(n: int | None) -> ThreadLimit:
    """Set how many threads BLAS, OpenMP and torch use, from here on or for the length of a ``with`` block.

    The limit is that of the whole process: BLAS has one pool of threads, whichever thread calls it.  Without one,
    every pool keeps its own default, which is all cores, or what ``OPENBLAS_NUM_THREADS`` and its like say.  The
    environment variable ``OSSCAR_OPT_THREADS`` is a limit from the start.

    Parameters
    ----------
    n : int or None
        At least 1; None lifts the limit.

    Returns
    -------
    ThreadLimit
        To be used with ``with``: at the end of the block, the limit is again what it was before it.

    Raises
    ------
    InputError
        If n is neither a whole number, at least 1, nor None; or if ``OSSCAR_OPT_THREADS`` is not.

    Examples
    --------
    >>> import osscar_opt
    >>> from threadpoolctl import threadpool_info
    >>> with osscar_opt.threads(1):
    ...     print({pool["num_threads"] for pool in threadpool_info()})
    {1}

    As a setting, from here on, and back to the default:

    >>> limit = osscar_opt.threads(1)
    >>> limit = osscar_opt.threads(None)
    """
    wanted = None if n is None else checked_count(n, "threads")
    read_environment()
    return ThreadLimit(wanted)


class ThreadLimit:
    """A limit that is in force already; with ``with``, it ends with the block.

    Parameters
    ----------
    n : int or None

    Examples
    --------
    >>> with ThreadLimit(2):
    ...     in_force()
    2
    """

    def __init__(self, n: int | None) -> None:
        self._n = n
        self._entered: list[_Block] = []
        _switch.set(n, self)

    def __enter__(self) -> None:
        self._entered.append(_switch.enter(_Block.of(self._n), withdraw=self))

    def __exit__(self, *_: object) -> None:
        _switch.leave(self._entered.pop())

    def __repr__(self) -> str:
        return f"ThreadLimit({self._n})"


@contextlib.contextmanager
def at_most(n: int) -> Iterator[None]:
    """Keep every pool to n threads at most while a block runs, whatever limits come and go in the meantime.

    Examples
    --------
    >>> with at_most(1), threads(2):
    ...     in_force()
    1
    """
    block = _switch.enter(_Block(cap=n))
    try:
        yield
    finally:
        _switch.leave(block)


def in_force() -> int | None:
    """The limit as it stands, None if there is none.

    Examples
    --------
    >>> with threads(3):
    ...     in_force()
    3
    """
    return _switch.limit


def read_environment() -> None:
    """Make ``OSSCAR_OPT_THREADS`` the process's own limit, if it is set and nobody has read it yet.

    Raises
    ------
    InputError
        If its value is not a whole number, at least 1.

    Examples
    --------
    >>> read_environment()
    """
    _switch.read_environment()


def limit_this_thread() -> None:
    """Bring the pools that count for each thread apart to the limit in force, in a thread that has just begun.

    Examples
    --------
    >>> limit_this_thread()
    """
    _switch.begin_thread()


def checked_count(n: Any, name: str) -> int:
    """Return n as an int if it is a whole number, at least 1.

    Raises
    ------
    InputError
        If it is not.

    Examples
    --------
    >>> checked_count(0, "threads")
    Traceback (most recent call last):
    osscar_opt.errors.InputError: threads = 0 must be a whole number, at least 1.
    """
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
        raise InputError(f"{name} = {n!r} must be a whole number, at least 1.")
    return int(n)


def available_cores() -> int:
    """How many cores this process may use: those it is bound to, or what its container grants if that is less.

    Examples
    --------
    >>> available_cores() >= 1
    True
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return bound


@dataclass(frozen=True)
class _Setting:
    n: int | None
    handle: weakref.ref[ThreadLimit] | None  # of the call that may still turn into a block

    @property
    def final(self) -> bool:
        """Whether it can no longer be withdrawn: nobody holds what `threads` returned."""
        return self.handle is None or self.handle() is None


@dataclass(eq=False)
class _Block:
    """A level of the list: a limit with what was set on top of it while it was the last, or a cap."""

    settings: list[_Setting] = field(default_factory=list)
    cap: int | None = None
    owner: int | None = None

    @classmethod
    def of(cls, n: int | None) -> _Block:
        return cls([_Setting(n, None)])

    def set(self, setting: _Setting) -> None:
        final = [i for i, earlier in enumerate(self.settings) if earlier.final]
        self.settings = [*self.settings[final[-1] if final else 0 :], setting]  # what lies below can go

    def withdraw(self, handle: ThreadLimit) -> None:
        self.settings = [s for s in self.settings if s.handle is None or s.handle() is not handle]


class _Switch:
    """All limits, and what the pools had before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process = _Block()
        self._blocks = [self._process]
        self._environment_read = False
        self._own: dict[str, int] = {}
        self._of_thread = threading.local()
        self._pools: list[Any] = []
        self._modules_seen = -1
        self._after_torch = _AfterTorch(self.torch_came)

    @property
    def limit(self) -> int | None:
        with self._lock:
            return _limit_of(self._blocks)

    def set(self, n: int | None, handle: ThreadLimit) -> None:
        with self._lock:
            last = next(block for block in reversed(self._blocks) if block.cap is None)
            last.set(_Setting(n, weakref.ref(handle)))
            self._apply()

    def enter(self, block: _Block, withdraw: ThreadLimit | None = None) -> _Block:
        block.owner = threading.get_ident()
        try:
            with self._lock:
                if withdraw is not None:  # the call before `with` had set it already
                    for other in self._blocks:
                        other.withdraw(withdraw)
                self._blocks.append(block)
                self._apply()
        except BaseException:  # Ctrl-C: the block is not begun, and nobody will leave it
            self.leave(block)
            raise
        return block

    def leave(self, block: _Block) -> None:
        with self._lock:
            self._blocks = [other for other in self._blocks if other is not block]
            self._apply()

    def read_environment(self) -> None:
        with self._lock:
            text = "" if self._environment_read else os.environ.get(VARIABLE, "").strip()
            if text:
                n = int(text) if text.isdecimal() else text
                self._process.settings.insert(0, _Setting(checked_count(n, VARIABLE), None))
                self._apply()
            self._environment_read = True

    def begin_thread(self) -> None:
        with self._lock:
            if self._own:
                self._apply(thread_is_new=True)
                self._of_thread.__dict__.clear()  # to a block begun in this thread, this is what it had before

    def torch_came(self) -> None:
        with self._lock:
            self._apply()

    def _apply(self, thread_is_new: bool = False) -> None:
        """Give every pool what is in force, and what it had before where nothing is."""
        limited = _limited(self._blocks)
        if not limited and not self._own:
            return
        pools = self._loaded_pools()
        # A block of another thread is none of this thread's business once this thread has left its own, or its
        # OpenMP pools would stay limited for ever: nobody but this thread can set them back.
        me = threading.get_ident()
        mine = [block for block in self._blocks if thread_is_new or block.owner in (None, me)]
        own_here: dict[str, int] = self._of_thread.__dict__.setdefault("own", {})
        torch = _torch()
        if torch is not None:
            self._own.setdefault("torch", torch.get_num_threads())
        for pool in pools:
            (own_here if _counts_for_each_thread(pool) else self._own).setdefault(
                pool.filepath, pool.num_threads
            )
        if torch is not None:
            torch.set_num_threads(_share(self._own["torch"], self._blocks))
        for pool in pools:
            apart = _counts_for_each_thread(pool)
            own = (own_here if apart else self._own)[pool.filepath]
            _set_pool(pool, _share(own, mine if apart else self._blocks))
        if not _limited(mine):
            own_here.clear()
        self._after_torch.wait(limited and torch is None)
        if not limited:
            self._own.clear()

    def _loaded_pools(self) -> list[Any]:
        """The pools of this process, looked for anew when modules have come, which may have brought one."""
        import scipy.linalg  # noqa: F401 - a BLAS that is loaded later would not be limited
        from threadpoolctl import ThreadpoolController

        if len(sys.modules) != self._modules_seen:
            found = ThreadpoolController().lib_controllers
            self._pools = [pool for pool in found if pool.num_threads is not None]
            self._modules_seen = len(sys.modules)
        return self._pools


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Has a function called as soon as torch has been imported, since its pool does not exist before."""

    def __init__(self, then: Any) -> None:
        self._then = then

    def wait(self, wanted: bool) -> None:
        """Be there for the import, or no longer."""
        if wanted and self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        elif not wanted and self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load, then = spec.loader.exec_module, self._then

            def load_and_tell(module: types.ModuleType) -> None:
                load(module)
                then()

            spec.loader.exec_module = load_and_tell  # type: ignore[method-assign]
        return spec


def _limited(blocks: list[_Block]) -> bool:
    return _limit_of(blocks) is not None


def _limit_of(blocks: list[_Block]) -> int | None:
    """The last limit that was set, or the lowest cap if that is less."""
    last = next((block.settings[-1].n for block in reversed(blocks) if block.settings), None)
    counts = [n for n in (last, *(block.cap for block in blocks)) if n is not None]
    return min(counts, default=None)


def _share(own: int, blocks: list[_Block]) -> int:
    """What a pool gets that has `own` threads by itself: what was set, if anything was, and no more than any cap."""
    last = next((block.settings[-1].n for block in reversed(blocks) if block.settings), None)
    return min([own if last is None else last, *(block.cap for block in blocks if block.cap is not None)])


def _counts_for_each_thread(pool: Any) -> bool:
    return pool.user_api == "openmp" or getattr(pool, "threading_layer", "") == "openmp"


def _set_pool(pool: Any, n: int) -> None:
    if pool.num_threads == n:
        return
    # From version 3.8 on, threadpoolctl lets only one thread of Python set OpenBLAS, until that thread is done, and
    # ignores all others without a word. Here, the switch keeps order.
    release = getattr(pool, "clear_controlling_thread", lambda force: None)
    release(force=True)
    pool.set_num_threads(n)
    release(force=True)


def _torch() -> Any:
    """The module torch if it is loaded, far enough to be set."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_num_threads") and hasattr(torch, "get_num_threads") else None


_switch = _Switch()
