"""The store: one SQLite file that holds the plan and a row for every run, and survives whatever happens to the writer.

One process writes, under a lock beside the file; others may read at any time (write-ahead log).  A row is written in a
transaction of its own and flushed to the disk before the next one: after a kill, or a power cut, the store holds every
run that was reported as done, each once.

Against a full disk the writer keeps a reserve: a file beside the store, and an empty table inside it for the case that
it is the file's size that is limited.  When a row does not fit, both are given up, and the run is written as failed,
with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import types
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from osscar_opt.bench.rows import SCHEMA, Run, as_row, of_row
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import FormatError, InputError, SolverError

__all__ = ["Run", "Store", "StoreFullError", "read_plan", "read_runs"]

_APPLICATION = 0x6F73_6272  # "osbr", in the file's header
_VERSION = 1
_RESERVE = 1 << 18
_BALLAST = 1 << 16
_PATIENCE = 10.0
"""Seconds to wait for a reader that holds the file."""


class StoreFullError(SolverError):
    """The disk under a store is full.

    Examples
    --------
    >>> issubclass(StoreFullError, SolverError)
    True
    """


class Store:
    """A store that is open for writing; one process at a time, readers aside.

    Parameters
    ----------
    path : path-like
        Made if it does not exist.

    Raises
    ------
    InputError
        If another process is writing to it.
    FormatError
        If the file is something else, or of a version that is not known here.
    StoreFullError
        If there is no room for the reserve.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "runs.db"
    >>> task = Task("small", "small.safetensors", "", 4, 4, 2, 2, "greedy")
    >>> with Store(path) as store:
    ...     store.plan([task])
    ...     store.add(Run.failed(task, "It hung."))
    ...     len(store.done()), len(store.done(retry_failed=True))
    (1, 0)
    >>> [run.reason for run in read_runs(path)]
    ['It hung.']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        if not self.path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no directory {self.path.parent}.")
        self._reserve = self.path.with_name(self.path.name + ".reserve")
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self._lock(undo)
            self._connection = _connect(self.path, "rwc")
            undo.callback(self._connection.close)
            with _explained(self.path):
                self._open()
            self._undo = undo.pop_all()

    def _lock(self, undo: contextlib.ExitStack) -> None:
        import filelock

        beside = self.path.with_name(self.path.name + ".lock")
        lock = filelock.FileLock(beside, timeout=0)
        try:
            undo.enter_context(lock)
        except filelock.Timeout:
            raise InputError(
                f"{self.path} is being written by another run{_writer(self.path)}: wait until it is over, or name "
                "another store."
            ) from None
        except OSError as error:
            raise InputError(f"cannot write {beside}: {error.strerror or error}.") from error

    def _open(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if _is_new(self._connection):
            with self._transaction():
                for statement in SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        _require_store(self._connection, self.path)
        self._keep_reserve()
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('writer', ?)", [str(os.getpid())])

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store; a second call does nothing.

        Examples
        --------
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()) / "runs.db")
        >>> store.close()
        """
        with self._undo:
            with contextlib.suppress(sqlite3.Error):  # closed already, or somebody reads: then the log stays
                self._connection.execute(
                    "PRAGMA journal_mode = DELETE"
                )  # one plain file, for read-only folders too
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def plan(self, tasks: Iterable[Task]) -> None:
        """Remember what is to be run; tasks that the plan has already keep their place, and take the new document.

        Raises
        ------
        InputError
            If an instance of the store goes by the name of another one.

        Examples
        --------
        >>> import tempfile
        >>> with Store(Path(tempfile.mkdtemp()) / "runs.db") as store:
        ...     store.plan([Task("small", "small.safetensors", "", 4, 4, 2, 2, "greedy")])
        ...     [task.method for task in store.tasks()]
        ['greedy']
        """
        listed = list(tasks)
        self._require_same_instances(listed)
        statement = (
            "INSERT INTO tasks (key, document) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET document = excluded.document"
        )
        with _explained(self.path), self._transaction():
            self._connection.executemany(
                statement, [(task.key, json.dumps(task.to_dict(), allow_nan=False)) for task in listed]
            )

    def tasks(self) -> list[Task]:
        """List what was planned, in order.

        Examples
        --------
        >>> import tempfile
        >>> with Store(Path(tempfile.mkdtemp()) / "runs.db") as store:
        ...     store.tasks()
        []
        """
        return _tasks(self._connection)

    def done(self, *, retry_failed: bool = False) -> set[str]:
        """Keys of the runs that need not be made again.

        Examples
        --------
        >>> import tempfile
        >>> with Store(Path(tempfile.mkdtemp()) / "runs.db") as store:
        ...     store.done()
        set()
        """
        where = " WHERE outcome != 'failed'" if retry_failed else ""
        return {key for (key,) in self._connection.execute(f"SELECT key FROM runs{where}")}

    def add(self, run: Run) -> None:
        """Write a row; one that failed before is replaced.

        Raises
        ------
        StoreFullError
            If it does not fit on the disk.  The run is then written as failed, in the room of the reserve.

        Examples
        --------
        >>> import tempfile
        >>> with Store(Path(tempfile.mkdtemp()) / "runs.db") as store:
        ...     store.add(Run.failed(Task("small", "a", "", 0, 0, 0, None, "greedy"), "It hung."))
        """
        try:
            self._insert(run)
        except sqlite3.Error as error:
            if not _is_full(error):
                raise SolverError(f"{self.path} cannot be written: {error}.") from error
            self._make_room()
            reason = "The result could not be stored, because the disk under the store was full."
            nothing: dict[str, Any] = {
                "support": None,
                "objective": None,
                "relative": None,
                "bound": None,
                "bound_kind": "none",
            }
            nothing |= {"outcome": "failed", "reason": reason, "status": "none", "trace": [], "stats": {}}
            with _explained(self.path):
                self._insert(dataclasses.replace(run, **nothing))
            raise _full(self.path) from error

    def _insert(self, run: Run) -> None:
        row = as_row(run)
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        environment = json.dumps(run.environment, sort_keys=True, allow_nan=False)
        with self._transaction():
            self._connection.execute(
                "INSERT OR IGNORE INTO environments (document) VALUES (?)", [environment]
            )
            found = self._connection.execute("SELECT id FROM environments WHERE document = ?", [environment])
            self._connection.execute("DELETE FROM runs WHERE key = ? AND outcome = 'failed'", [run.key])
            self._connection.execute(
                f"INSERT INTO runs ({names}, environment) VALUES ({marks}, ?)",
                [*row.values(), *found.fetchone()],
            )

    def _require_same_instances(self, tasks: list[Task]) -> None:
        known = {task.instance: task.hash for task in self.tasks() if task.hash}
        for task in tasks:
            if task.hash and known.setdefault(task.instance, task.hash) != task.hash:
                raise InputError(
                    f"this store has runs of another instance that is called {task.instance!r}: rename one of the "
                    "two, or name another store."
                )

    def _keep_reserve(self) -> None:
        try:
            if not self._reserve.exists() or self._reserve.stat().st_size < _RESERVE:
                with self._reserve.open("wb") as file:
                    file.write(b"\0" * _RESERVE)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise _full(self.path) from error
        with self._transaction():
            if self._connection.execute("SELECT count(*) FROM ballast").fetchone() == (0,):
                self._connection.execute("INSERT INTO ballast VALUES (zeroblob(?))", [_BALLAST])

    def _make_room(self) -> None:
        self._reserve.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._connection.execute("DELETE FROM ballast")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def read_runs(path: str | os.PathLike[str]) -> list[Run]:
    """Read all rows of a store, in the order of its plan; also while it is being written.

    Raises
    ------
    InputError
        If there is no such file.
    FormatError
        If it is not a store, or of a version that is not known here.

    Examples
    --------
    >>> read_runs("no/such/file")
    Traceback (most recent call last):
    osscar_opt.errors.InputError: there is no store no/such/file.
    """
    with contextlib.closing(_open_to_read(path)) as connection:
        connection.row_factory = sqlite3.Row
        environments = {
            number: json.loads(text)
            for number, text in connection.execute("SELECT id, document FROM environments")
        }
        order = "SELECT runs.* FROM runs LEFT JOIN tasks USING (key) ORDER BY position IS NULL, position, runs.rowid"
        return [of_row(dict(row), environments) for row in connection.execute(order)]


def read_plan(path: str | os.PathLike[str]) -> list[Task]:
    """Read what a store's runs were to be, in order.

    Raises
    ------
    InputError, FormatError
        As `read_runs`.

    Examples
    --------
    >>> read_plan("no/such/file")
    Traceback (most recent call last):
    osscar_opt.errors.InputError: there is no store no/such/file.
    """
    with contextlib.closing(_open_to_read(path)) as connection:
        return _tasks(connection)


def _tasks(connection: sqlite3.Connection) -> list[Task]:
    rows = connection.execute("SELECT document FROM tasks ORDER BY position")
    return [Task.of(json.loads(document)) for (document,) in rows]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(str(path))}?mode={mode}"
    try:
        return sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be opened: {error}.") from error


def _open_to_read(path: str | os.PathLike[str]) -> sqlite3.Connection:
    found = Path(path)
    if not found.is_file():
        raise InputError(f"there is no store {os.fspath(path)}.")
    for mode in ("ro", "ro&immutable=1"):  # the second one for a folder in which nothing can be written
        connection = _connect(found.resolve(), mode)
        try:
            _require_store(connection, found)
        except sqlite3.OperationalError:
            connection.close()
            continue
        except BaseException:
            connection.close()
            raise
        return connection
    raise InputError(f"{found} cannot be read: it is locked, or its folder is not accessible.")


def _is_new(connection: sqlite3.Connection) -> bool:
    tables: tuple[int] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return tables == (0,) and connection.execute("PRAGMA application_id").fetchone() == (0,)


def _require_store(connection: sqlite3.Connection, path: Path) -> None:
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{path}: not a store of runs ({error}).") from error
    if application != _APPLICATION:
        raise FormatError(f"{path}: not a store of runs.")
    if version != _VERSION:
        raise FormatError(
            f"{path}: a store of version {version}, and this library reads version {_VERSION}: update osscar_opt."
        )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_full(error):
            raise _full(path) from error
        if isinstance(error, sqlite3.OperationalError):
            raise InputError(f"{path} cannot be written: {error}.") from error
        raise FormatError(f"{path}: not a store of runs ({error}).") from error


def _is_full(error: sqlite3.Error) -> bool:
    """Whether there is no room; some file systems call that an I/O error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _full(path: Path) -> StoreFullError:
    return StoreFullError(
        f"the disk under {path} is full: free some space, then run `osscar-opt bench resume {path} --retry-failed`."
    )


def _writer(path: Path) -> str:
    """Who writes, as far as the file tells."""
    with contextlib.suppress(Exception), contextlib.closing(_connect(path, "ro")) as connection:
        found = connection.execute("SELECT value FROM meta WHERE name = 'writer'").fetchone()
        return f" (process {found[0]})" if found else ""
    return ""
