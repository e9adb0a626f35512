"""The runner: what is asked for is run, each once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bench_fixtures import install_liars, on_linux, processes_with, small_files

from osscar_opt import Problem
from osscar_opt.bench.nursery import close_all, nursery
from osscar_opt.bench.planning import Limits, Source, parse_method, plan
from osscar_opt.bench.progress import Progress
from osscar_opt.bench.runner import resume, run
from osscar_opt.bench.store import Run, Store, StoreFullError, read_plan, read_runs
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import InputError, OptionError
from osscar_opt.instances import load, random_instance

METHODS = ["greedy", "random", "swap", "magnitude"]


def content(path: Path) -> list[tuple[object, ...]]:
    """Rows without times and machines."""
    return [
        (
            *(row.key, row.instance, row.hash, row.keep, row.label, row.seed, row.outcome, row.reason),
            *(None if row.support is None else row.support.tobytes(), row.objective, row.relative),
            *(row.bound, row.bound_kind, row.status, row.termination, [value for _, value in row.trace]),
        )
        for row in read_runs(path)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_files(tmp_path_factory.mktemp("instances"), count=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def test_rows_are_what_the_library_finds(files, path):
    summary = run(
        path, methods=METHODS, instances=files, keeps=[3, 0.5], seeds=[0, 4], jobs=2, progress=False
    )
    rows = read_runs(path)
    assert (summary.planned, summary.ok, summary.failed) == (30, 30, 0)
    assert str(summary).startswith("30 runs in ")
    for row in rows:
        problem = load(next(file for file in files if row.instance in file)).with_keep(row.keep)
        options = {} if row.seed is None else {"seed": row.seed}
        expected = problem.solve(row.method, **options)
        assert np.array_equal(row.support, expected.support)
        assert row.objective == pytest.approx(
            problem.value(expected.support), rel=1e-12
        )  # with refitted weights, always
        assert row.termination == expected.termination
    assert {(row.method, row.seed) for row in rows} == {
        *((name, None) for name in METHODS if name != "random"),
        ("random", 0),
        ("random", 4),
    }
    assert {row.keep for row in rows} == {3, 6}


def test_the_same_again_makes_nothing(files, path):
    call = {"methods": ["greedy"], "instances": files, "keeps": [3], "progress": False}
    assert run(path, **call).made == 3
    before = content(path)
    assert run(path, **call).made == 0
    assert resume(path, progress=False).made == 0
    assert run(path, **{**call, "methods": ["greedy", "swap"]}).made == 3
    assert content(path)[:3] == before
    assert len(read_plan(path)) == 6


def test_failed_runs_are_made_again_if_asked(files, path, tmp_path):
    gone = tmp_path / "gone.safetensors"
    call = {"methods": ["greedy"], "instances": [files[0], gone], "keeps": [3], "progress": False}
    assert (run(path, **call).ok, run(path, **call).made) == (1, 0)
    assert [row.outcome for row in read_runs(path)] == ["ok", "failed"]
    Path(files[1]).read_bytes()
    gone.write_bytes(Path(files[1]).read_bytes())
    assert resume(path, progress=False).made == 0
    assert resume(path, retry_failed=True, progress=False).ok == 1
    rows = read_runs(path)
    assert [row.outcome for row in rows] == ["ok", "ok"]
    assert rows[1].hash == load(files[1]).hash


def test_a_damaged_instance_costs_its_rows(files, path, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(Path(files[0]).read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    summary = run(path, methods=["greedy"], instances=[damaged, files[0]], keeps=[3], progress=False)
    assert (summary.ok, summary.failed) == (1, 1)
    assert "sha256" in read_runs(path)[0].reason


def test_an_instance_that_changes_while_the_benchmark_runs(files, path, tmp_path):
    changing = tmp_path / "changing.safetensors"
    changing.write_bytes(Path(files[0]).read_bytes())
    run(path, methods=["greedy"], instances=[changing], keeps=[3], progress=False)
    changing.write_bytes(Path(files[1]).read_bytes())
    with pytest.raises(InputError, match="another instance that is called 'changing'"):
        run(path, methods=["greedy", "swap"], instances=[changing], keeps=[3], progress=False)


def test_problems_in_memory_and_limits_of_their_own(path):
    knapsack = random_instance(1, "knapsack", n=8, q=2)
    plain = random_instance(2, "correlated", n=8, q=2, keep=5)
    run(path, methods=["greedy", "osscar"], instances=[knapsack, plain], keeps=[0.25], progress=False)
    rows = read_runs(path)
    assert [(row.keep, row.outcome) for row in rows] == [(None, "ok"), (None, "ok"), (2, "ok"), (2, "ok")]
    assert knapsack.feasible(rows[0].support)
    run(path, methods=["greedy"], instances=plain, progress=False)
    assert read_runs(path)[-1].keep == 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"jobs": 0}, "jobs = 0 must be a whole number"),
        ({"backend": "cluster"}, "backend = 'cluster' must be one of threading"),
        ({"seeds": [-1]}, "seed -1 must be a whole number"),
        ({"time_limit": 0}, "time_limit = 0 must be a positive number"),
        ({"memory_limit": 1.5}, "memory_limit = 1.5 must be a whole number"),
        ({"threads": 0}, "threads = 0 must be a whole number"),
        ({"keeps": [13]}, "keep = 13 is more than the 12 groups of 'small0'"),
        ({"keeps": [1.5]}, "keep = 1.5 must be a number of groups"),
        ({"methods": []}, "there is nothing to run"),
        ({"instances": ["no_such_instance"]}, "no instance of the catalogue fits 'no_such_instance'"),
    ],
)
def test_wrong_calls(files, path, changes, sentence):
    call = {"methods": ["greedy"], "instances": files[:1], "keeps": [3], **changes}
    with pytest.raises(InputError, match=sentence):
        run(path, **call)
    assert not path.exists()


def test_two_instances_of_one_name(files, path, tmp_path):
    other = tmp_path / Path(files[0]).name
    other.write_bytes(Path(files[1]).read_bytes())
    with pytest.raises(InputError, match="two instances are called 'small0'"):
        run(path, methods=["greedy"], instances=[files[0], other], keeps=[3])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("greedy", ("greedy", {})),
        ("search:patience=3, device=cpu", ("search", {"patience": 3, "device": "cpu"})),
        ("m:a=yes,b=No,c=none", ("m", {"a": True, "b": False, "c": None})),
        ("m:d=1e-3,e='3',f=(1, 2),g=", ("m", {"d": 1e-3, "e": "3", "f": (1, 2), "g": ""})),
    ],
)
def test_methods_as_text(text, parsed):
    assert parse_method(text) == parsed


@pytest.mark.parametrize("text", ["search:patience", "search:=3", "search:a=1,a=2"])
def test_methods_that_are_not_written_so(text):
    with pytest.raises(OptionError):
        parse_method(text)


def test_a_plan_is_the_same_every_time(files):
    small = Source("small", files[0], "ab", 12, 12, 3, (3, 6), False)
    made = [plan(["greedy", "random"], [small], Limits(10.0, 512, 1), seeds=[0, 1]) for _ in range(2)]
    assert made[0] == made[1]
    assert len({task.key for task in made[0]}) == 6


def test_a_store_that_fills_up(files, path, monkeypatch):
    """The run is failed, with its reason; the rest waits for space."""

    def full(self: Store, run: Run) -> None:
        raise sqlite_full

    import sqlite3

    sqlite_full = sqlite3.OperationalError("database or disk is full")
    sqlite_full.sqlite_errorcode = sqlite3.SQLITE_FULL
    original, calls = Store._insert, []

    def insert(self: Store, run: Run) -> None:
        calls.append(run)
        if len(calls) == 3:
            full(self, run)
        original(self, run)

    monkeypatch.setattr(Store, "_insert", insert)
    call = {"methods": METHODS, "instances": files, "keeps": [3], "progress": False}
    with pytest.raises(StoreFullError, match="free some space"):
        run(path, **call, jobs=2)
    rows = read_runs(path)
    assert sorted(row.outcome for row in rows) == ["failed", "ok", "ok"]
    monkeypatch.undo()
    assert run(path, **call).made == 9
    assert run(path, **call, retry_failed=True).made == 1
    assert {row.outcome for row in read_runs(path)} == {"ok"}


def test_progress_in_words():
    tasks = [Task("a", "a", "", 4, 4, 2, keep, "greedy") for keep in range(4)]
    progress = Progress(tasks, show=False)
    assert progress.sentence() == "0 of 4 runs"
    progress.add(Run.blank(tasks[0], outcome="ok", wall=1.0))
    progress.add(Run.failed(tasks[1], "It hung."))
    assert progress.sentence().startswith("2 of 4 runs, 1 failed, about ")
    assert progress.time_left() < 10.0


def test_progress_in_lines(files, path, monkeypatch, capsys):
    monkeypatch.setattr("osscar_opt.bench.progress._LINE_EVERY", 0.02)
    run(path, methods=["greedy"], instances=files, keeps=[3])
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(" of 3 runs" in line for line in lines)


def test_the_zygote_comes_back(files, path):
    """One that was killed costs the runs that it had started, not the benchmark."""
    call = {"methods": ["greedy"], "keeps": [3], "progress": False}
    run(path, instances=files[:1], **call)
    found = nursery(1, ("osscar_opt.solvers.greedy",))._zygote
    found.kill()
    found.wait()
    assert run(path, instances=files, **call).ok == 2


@pytest.mark.slow
def test_loky(files, path):
    assert (
        run(path, methods=METHODS, instances=files, keeps=[3], jobs=2, backend="loky", progress=False).ok
        == 12
    )


def test_dask_without_a_client(files, path):
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="backend 'dask' needs a client"):
        run(path, methods=["greedy"], instances=files, keeps=[3], backend="dask", progress=False)


def test_ray_that_is_not_installed(files, path):
    try:
        import ray  # noqa: F401
    except ImportError:
        from osscar_opt.errors import UnavailableError

        with pytest.raises(UnavailableError, match="pip install ray"):
            run(path, methods=["greedy"], instances=files, keeps=[3], backend="ray", progress=False)


_DASK = """
import sys
from distributed import Client, LocalCluster
from osscar_opt.bench.runner import run

def hatched():
    from osscar_opt.bench import nursery

    return len(nursery._nurseries)


if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    with cluster, Client(cluster) as client:
        print(cluster.scheduler_address, len(client.scheduler_info()["workers"]))
        methods = ["greedy", "random", "swap"]
        run(sys.argv[1], methods=methods, instances=sys.argv[2:], keeps=[3], backend="dask", jobs=2, progress=False)
        print(*client.run(hatched).values(), hatched())
"""


def test_dask_with_two_workers(files, path, tmp_path):
    """A cluster of two processes over loopback gives the rows that one process gives."""
    pytest.importorskip("distributed")
    script = tmp_path / "cluster.py"
    script.write_text(_DASK)
    said = subprocess.run(
        [sys.executable, str(script), str(path), *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("tcp://127.0.0.1:")
    assert said.stdout.split()[1:] == [
        "2",
        "1",
        "1",
        "1",
    ]  # workers; zygotes of each; and one here, to ask about methods
    alone = tmp_path / "alone.db"
    run(alone, methods=["greedy", "random", "swap"], instances=files, keeps=[3], progress=False)
    assert content(path) == content(alone)
    assert {row.outcome for row in read_runs(path)} == {"ok"}


# ------------------------------------------------------------------------------------------- kills and Ctrl-C

_RUN = """
import json, sys
from osscar_opt.bench.runner import run

run(**json.loads(sys.argv[1]), progress=False)
"""


def start(call: dict[str, object], mark: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RUN, json.dumps(call)]
    environment = {**os.environ, "MARK_OF_TEST": mark}
    return subprocess.Popen(
        command, start_new_session=True, env=environment, stderr=subprocess.PIPE, text=True
    )


def leftovers(mark: str) -> list[int]:
    """Processes of the runs that are still there after a moment: all inherit an environment, marked."""
    ends = time.monotonic() + 60.0
    while (found := processes_with(mark, inherited=True)) and time.monotonic() < ends:
        time.sleep(0.01)
    return found


def killed_and_resumed(tmp_path: Path, files: list[str], kills: int, **call: object) -> int:
    """Kill the runner's group at random points until so many kills have hit; then the rows of an uninterrupted run."""
    call = {"methods": METHODS, "instances": files, "keeps": [2, 3, 0.5], "seeds": [0, 1], **call}
    whole, path = tmp_path / "whole.db", tmp_path / "killed.db"
    run(whole, **call, progress=False)
    rng = random.Random(kills)
    hits, seen, mark = 0, 0, f"mark-of-test-{tmp_path}"
    while hits < kills:
        before = len(read_runs(path)) if path.exists() else 0
        process = start({**call, "store": str(path)}, mark)
        # Half of the kills come at any time, the others when rows are being written.
        if hits % 2:
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            while process.poll() is None and not grown(path, before):
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.1))
        alive = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
        hits += alive
        assert not leftovers(mark), "a process outlived its runner"
        rows = content(path) if path.exists() and path.stat().st_size else []
        assert len({row[0] for row in rows}) == len(rows) >= seen
        seen = len(rows)
        if seen == len(read_runs(whole)):  # all done: the kills that are left start over
            for file in path.parent.glob("killed.db*"):
                file.unlink()
            seen = 0
    resumed = start({**call, "store": str(path)})
    _, said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert content(path) == content(whole)
    return hits


def grown(path: Path, before: int) -> bool:
    try:
        return len(read_runs(path)) > before
    except (InputError, ValueError):
        return False


@pytest.mark.skipif(not on_linux, reason="looks into /proc")
def test_five_kills(tmp_path, files):
    assert killed_and_resumed(tmp_path, files, kills=5, jobs=2) == 5


@pytest.mark.slow
@pytest.mark.skipif(not on_linux, reason="looks into /proc")
def test_fifty_kills(tmp_path):
    files = small_files(tmp_path, count=8)
    assert killed_and_resumed(tmp_path, files, kills=50, jobs=2) == 50


@pytest.mark.skipif(not on_linux, reason="looks into /proc")
@pytest.mark.parametrize(
    ("ending", "jobs"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2), (signal.SIGTERM, 1)]
)
def test_the_processes_of_the_runs_go_with_the_runner(tmp_path, files, ending, jobs):
    install_liars(tmp_path)
    mark, path = f"mark-of-test-{os.getpid()}", tmp_path / "runs.db"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MARK_OF_TEST": mark}
    call = {"store": str(path), "methods": ["greedy", "forks"], "instances": files[:1], "keeps": [3]}
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, json.dumps({**call, "time_limit": 1000, "jobs": jobs})],
        start_new_session=True,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ends = time.monotonic() + 60.0
        while (len(processes_with(mark)) < 2 or not grown(path, 0)) and time.monotonic() < ends:
            time.sleep(0.02)
        os.killpg(process.pid, ending)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in said) == (ending == signal.SIGINT)
    assert not leftovers(mark)
    assert [row.method for row in read_runs(path)] == ["greedy"]


def test_two_runners_on_one_store(tmp_path, files):
    path = tmp_path / "runs.db"
    with Store(path), pytest.raises(InputError, match="is being written by another run"):
        run(path, methods=["greedy"], instances=files, keeps=[3], progress=False)
    assert read_runs(path) == []


def test_nothing_is_left_in_memory_files(files, path):
    """Descriptors of instances and processes are given back."""
    if not on_linux:
        pytest.skip("looks into /proc")
    call = {"methods": METHODS, "keeps": [3], "progress": False}
    run(path, instances=files, **call)
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(path.with_name("again.db"), instances=files, **call)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def teardown_module() -> None:
    close_all()


def test_importing_the_package_does_not_load_the_runner():
    code = "import osscar_opt, sys; assert not {'joblib', 'sqlite3', 'filelock', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_problem_without_limits(path):
    with pytest.raises(InputError, match="has no limit on what may stay: pass keeps"):
        run(path, methods=["greedy"], instances=[Problem(np.eye(3), np.ones((3, 1)))], progress=False)
