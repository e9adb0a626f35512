"""The store: what was written is there, once, whatever happened to the writer."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_fixtures import on_linux

from osscar_opt.bench.store import Run, Store, StoreFullError, read_plan, read_runs
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import FormatError, InputError, SolverError


def task(number: int = 0, **changes: object) -> Task:
    fields = {
        "instance": "small",
        "path": "small.safetensors",
        "hash": "ab",
        "n": 10,
        "p": 10,
        "q": 3,
        "keep": 4,
    }
    return Task(**{**fields, "method": "search", "options": {"patience": number}, "seed": 3, **changes})


def made(of: Task, **known: object) -> Run:
    support = np.array([True, False] * 5)
    numbers = {
        "objective": 0.1 + 0.2,
        "relative": 1e-17,
        "bound": None,
        "wall": 0.25,
        "search": 0.2,
        "setup": 0.01,
    }
    rest = {"cpu": 0.3, "peak_memory": 77, "trace": [(0.1, 2.0), (0.25, 0.1 + 0.2)], "stats": {"kicks": 3}}
    words = {"status": "feasible", "termination": "local_optimum", "started": "2026-01-01T00:00:00+00:00"}
    fields = {
        "outcome": "ok",
        "support": support,
        "environment": {"python": "3.11"},
        **numbers,
        **rest,
        **words,
    }
    return Run.blank(of, **{**fields, **known})


def as_dict(run: Run) -> dict[str, object]:
    fields = dict(vars(run))
    if run.support is not None:
        fields["support"] = run.support.tolist()
    return fields


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def test_what_is_written_is_read(path):
    rows = [
        made(task(1)),
        made(task(2), support=None, objective=None, trace=[], keep=None, time_limit=None),
        Run.failed(task(3, keep=None, seed=None, time_limit=None, memory_limit=None), "It hung."),
        made(task(4), environment={"python": "3.12"}, bound=0.25, bound_kind="certified"),
    ]
    with Store(path) as store:
        for row in rows:
            store.add(row)
    assert [as_dict(row) for row in read_runs(path)] == [as_dict(row) for row in rows]
    assert rows[0].label == "search patience=1"
    assert read_runs(path)[0].support.dtype == bool


def test_rows_come_in_the_order_of_the_plan(path):
    with Store(path) as store:
        store.plan([task(2), task(1)])
        store.plan([task(1), task(3)])
        for number in (3, 1, 9, 2):
            store.add(made(task(number)))
    assert [run.options["patience"] for run in read_runs(path)] == [2, 1, 3, 9]
    assert read_plan(path) == [task(2), task(1), task(3)]


def test_a_row_is_there_once(path):
    with Store(path) as store:
        store.add(made(task(1)))
        with pytest.raises(SolverError, match="cannot be written"):
            store.add(made(task(1)))
        store.add(Run.failed(task(2), "It hung."))
        assert store.done() == {task(1).key, task(2).key}
        assert store.done(retry_failed=True) == {task(1).key}
        store.add(made(task(2)))
        assert store.done(retry_failed=True) == {task(1).key, task(2).key}
    assert [run.outcome for run in read_runs(path)] == ["ok", "ok"]


def test_the_key_is_what_a_run_depends_on():
    assert task(1).key == task(1).key
    assert task(1, path="elsewhere", hash="", n=0).key == task(1).key
    assert task(1, time_limit=10).key == task(1, time_limit=10.0).key
    changes = [
        {"instance": "other"},
        {"keep": 5},
        {"keep": None},
        {"method": "greedy"},
        {"options": {}},
        {"seed": None},
        {"time_limit": None},
        {"memory_limit": 1},
        {"threads": 2},
    ]
    assert len({task(1).key, *(task(1, **change).key for change in changes)}) == 1 + len(changes)


def test_a_name_stands_for_one_instance(path):
    with Store(path) as store:
        store.plan([task(1), task(2, hash="")])
        with pytest.raises(InputError, match="another instance that is called 'small'"):
            store.plan([task(3, hash="cd")])


def test_one_writer(path):
    with Store(path):
        with pytest.raises(
            InputError, match=rf"is being written by another run \(process {os.getpid()}\): wait"
        ):
            Store(path)
        assert read_runs(path) == []
    Store(path).close()


def test_a_second_process_is_refused(path):
    code = f"from osscar_opt.bench.store import Store; Store({str(path)!r})"
    with Store(path):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"is being written by another run (process {os.getpid()})" in said.stderr


def test_a_closed_store_is_one_plain_file(path):
    with Store(path) as store:
        store.add(made(task(1)))
    assert {file.name for file in path.parent.iterdir()} <= {"runs.db", "runs.db.lock"}
    mode = path.parent.stat().st_mode
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert len(read_runs(path)) == 1
    finally:
        path.parent.chmod(mode)


def test_reading_while_another_writes(path):
    with Store(path) as store:
        for number in range(5):
            store.add(made(task(number)))
            assert len(read_runs(path)) == number + 1


def test_files_that_are_no_stores(path):
    with pytest.raises(InputError, match="there is no store"):
        read_runs(path)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(FormatError, match="not a store of runs"):
        read_runs(path)
    with pytest.raises(FormatError, match="not a store of runs"):
        Store(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    for opening in (read_runs, read_plan, Store):
        with pytest.raises(FormatError, match="not a store of runs"):
            opening(path)
    with pytest.raises(InputError, match="there is no directory"):
        Store(path / "in" / "nowhere.db")


def test_a_store_of_a_later_version(path):
    Store(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(FormatError, match="a store of version 2, and this library reads version 1"):
        read_runs(path)
    with pytest.raises(FormatError, match="update osscar_opt"):
        Store(path)


def test_a_file_that_may_not_grow(path):
    """The row that does not fit is written as failed, in the room kept for it."""
    with Store(path) as store:
        store.add(made(task(1)))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(
            StoreFullError, match="is full: free some space, then run `osscar-opt bench resume"
        ):
            add_many(store, 2, stats={"many": list(range(1000))})
    *fine, last = read_runs(path)
    assert {run.outcome for run in fine} == {"ok"}
    assert (last.outcome, last.support, last.stats) == ("failed", None, {})
    assert last.reason == "The result could not be stored, because the disk under the store was full."
    with Store(path) as store:
        store.add(made(Task.of({**task(1).to_dict(), "options": last.options})))
        assert store.done(retry_failed=True) == {run.key for run in [*fine, last]}


def add_many(store: Store, first: int, **known: object) -> None:
    for number in range(first, 1000):
        store.add(made(task(number), **known))


def fill(path: Path) -> None:
    """Take all the space there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@pytest.mark.skipif(not on_linux, reason="mounts a tmpfs")
def test_a_disk_that_is_full(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    path, filling = tmp_path / "runs.db", tmp_path / "filling"
    try:
        with Store(path) as store:
            store.add(made(task(0)))
            fill(filling)
            with pytest.raises(StoreFullError, match="is full"):
                add_many(store, 1)
        runs = read_runs(path)
        assert [run.outcome for run in runs] == ["ok"] * (len(runs) - 1) + ["failed"]
        with pytest.raises(StoreFullError, match="is full"):
            Store(path)
        filling.unlink()
        with Store(path) as store:
            assert len(store.done()) == len(runs)
            store.add(made(task(len(runs) - 1)))
        assert {run.outcome for run in read_runs(path)} == {"ok"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
