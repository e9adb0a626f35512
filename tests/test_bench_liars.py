"""A method's process may do whatever it likes: the row holds the runner's numbers, and the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench_fixtures import install_liars, on_linux, processes_with, small_files
from bench_liars import first_groups

from osscar_opt import load
from osscar_opt.bench.nursery import close_all
from osscar_opt.bench.runner import run
from osscar_opt.bench.store import Run, read_runs
from osscar_opt.bench.supervise import supervise
from osscar_opt.bench.tasks import Task
from osscar_opt.errors import OptionError, UnknownMethodError
from osscar_opt.instances import random_instance

pytestmark = pytest.mark.skipif(not on_linux, reason="limits of processes are those of Linux")

KEEP = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("liars")
    install_liars(made)
    small_files(made)
    sys.path.insert(0, str(made))
    yield made
    sys.path.remove(str(made))
    close_all()


@pytest.fixture
def go(folder: Path):
    path = folder / "small0.safetensors"
    problem = load(path)

    def supervised(
        method: str, time_limit: float | None = 5.0, memory: int | None = 512, **options: object
    ) -> Run:
        sizes = (problem.hash, problem.n, problem.p, problem.q)
        return supervise(Task("small0", str(path), *sizes, KEEP, method, options, None, time_limit, memory))

    return supervised


@pytest.fixture
def problem(folder: Path):
    return load(folder / "small0.safetensors").with_keep(KEEP)


def says_the_truth(run: Run, problem) -> None:
    """The row is that of a method that kept the first groups."""
    support = first_groups(problem)
    assert run.outcome == "ok", run.reason
    assert np.array_equal(run.support, support)
    assert run.objective == problem.value(support)
    assert run.relative == run.objective / problem.constant
    assert run.trace[-1] == (run.wall, run.objective)


def test_an_honest_plugin(go, problem):
    row = go("honest")
    says_the_truth(row, problem)
    assert (row.status, row.bound, row.bound_kind, row.termination) == ("feasible", None, "none", "completed")
    assert row.hash == problem.hash
    assert (row.n, row.p, row.q, row.keep) == (problem.n, problem.p, problem.q, KEEP)
    assert row.environment["versions"]["liars-of-test"] == "1.2.3"
    assert 0.0 <= row.search <= row.wall < 60.0
    assert row.setup > 0.0
    assert row.cpu > 0.0
    assert 20 < row.peak_memory < 512


def test_patching_the_referee_changes_nothing(go, problem):
    row = go("patches_referee")
    says_the_truth(row, problem)
    assert (row.status, row.bound, row.bound_kind) == ("feasible", -1.0, "claimed")


def test_a_claimed_bound_is_called_claimed(go, problem):
    row = go("claims_bound")
    says_the_truth(row, problem)
    assert row.bound == pytest.approx(row.objective)
    assert (row.bound_kind, row.status) == ("claimed", "feasible")


def test_a_bound_above_the_objective_is_none(go, problem):
    row = go("claims_bound", much=True)
    says_the_truth(row, problem)
    assert (row.bound, row.bound_kind) == (None, "none")


def test_a_certificate_counts_for_what_it_proves(go, problem):
    """Its tree is open at the root: no more than the bound that needs no proof follows, whatever it claims."""
    row = go("claims_bound", proof=True)
    says_the_truth(row, problem)
    assert (row.bound_kind, row.status) == ("certified", "feasible")
    assert row.bound == pytest.approx(problem.base, abs=1e-9)


def test_a_certificate_that_is_none(go, problem):
    row = go("claims_bound", proof=True, garbage=True)
    says_the_truth(row, problem)
    assert (row.bound_kind, row.status) == ("claimed", "feasible")
    assert row.stats["certificate"]


def test_a_certificate_that_holds(go, problem):
    row = go("exact", certificate=True)
    assert (row.bound_kind, row.status) == ("certified", "optimal")
    assert row.bound == pytest.approx(row.objective)
    best = problem.solve("exhaustive")
    assert row.objective == pytest.approx(best.objective)
    assert np.array_equal(row.support, best.support)


def test_as_good_as_with_all_groups(go, problem, folder):
    """The runner knows this bound by itself."""
    path = folder / "small0.safetensors"
    row = supervise(
        Task("small0", str(path), problem.hash, problem.n, problem.p, problem.q, problem.n, "honest")
    )
    assert (row.bound_kind, row.status) == ("certified", "optimal")


def test_time_is_the_runners(go, problem):
    row = go("sleeps")
    says_the_truth(row, problem)
    assert 0.5 < row.wall < 60.0


def test_nothing_can_be_solved_before_the_clock_runs(go, problem):
    says_the_truth(go("starts_early"), problem)


def test_an_infeasible_support(go):
    row = go("infeasible")
    assert (row.outcome, row.support, row.objective) == ("failed", None, None)
    assert row.reason == "The method proposed a support that uses 12 of keep = 4."


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("leaves", "The method's process left with exit status 0, without an answer."),
        ("crashes", "The method's process crashed (SIGSEGV)."),
        (
            "raises",
            "method 'raises' raised ZeroDivisionError: one two [31m three, and no other solution is known.",
        ),
        (
            "fills_disk",
            "method 'fills_disk' raised OSError: [Errno 28] No space left on device, and no other solution is known.",
        ),
    ],
)
def test_what_ends_a_run(go, method, reason):
    row = go(method)
    assert (row.outcome, row.reason) == ("failed", reason)
    assert row.support is None
    assert row.wall < 60.0


def test_hanging_in_c(go):
    row = go("holds_gil", time_limit=0.5)
    assert row.outcome == "failed"
    assert row.reason.startswith("The method did not end at its time limit of 0.5 s, was ended after ")
    assert 2.4 < row.wall < 60.0


def test_hanging_in_c_after_a_solution_was_reported(go, problem):
    row = go("holds_gil", time_limit=0.5, speaks=True)
    says_the_truth(row, problem)
    assert row.termination == "time_limit"
    assert row.stats["message"].startswith("ended by the runner after")


def test_the_last_improvement_before_a_hang_counts(go, problem):
    row = go("improves", time_limit=1.0)
    assert row.outcome == "ok", row.reason
    assert len(row.trace) > 3
    seconds, objectives = zip(*row.trace, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(objectives[:-1]) == sorted(set(objectives[:-1]), reverse=True)
    assert row.objective == objectives[-1] == objectives[-2] == problem.value(row.support)


def test_eating_memory(go):
    row = go("eats_memory", memory=300)
    assert row.outcome == "failed"
    assert "MemoryError" in row.reason
    assert row.peak_memory < 600


def test_eating_memory_in_children(go):
    row = go("eats_memory", memory=300, time_limit=20.0, children=6)
    assert (row.outcome, row.reason) == (
        "failed",
        "The method took more than 300 MiB of memory, and was ended.",
    )


def test_children_go_with_their_parent(go, monkeypatch):
    close_all()  # the next zygote inherits the mark
    mark = f"mark-of-test-{os.getpid()}"
    monkeypatch.setenv("MARK_OF_TEST", mark)
    assert go("forks", time_limit=0.5).termination == "time_limit"
    ends = time.monotonic() + 60.0
    while processes_with(mark) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not processes_with(mark)


def test_a_full_disk(go, tmp_path, monkeypatch):
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        close_all()
        monkeypatch.setenv("SMALL_DISK", str(tmp_path))
        row = go("fills_disk")
        assert (row.outcome, row.reason) == (
            "failed",
            "method 'fills_disk' raised OSError: [Errno 28] No space left on device, and no other solution is known.",
        )
    finally:
        close_all()
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_garbage_on_the_streams(go, problem, capfd):
    says_the_truth(go("prints"), problem)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", range(8))
def test_garbage_on_the_channel(go, kind):
    row = go("babbles", kind=kind)
    assert (row.outcome, row.reason) == (
        "failed",
        "The method's process sent something that is not an answer.",
    )


def test_hanging_up(go):
    row = go("hangs_up", time_limit=None)
    assert (row.outcome, row.reason) == (
        "failed",
        "The method's process closed its connection, and gave no answer.",
    )


def test_stats_that_are_too_many(go, problem):
    row = go("bad_stats")
    says_the_truth(row, problem)
    assert set(row.stats) == {"message"}
    assert len(row.stats["message"]) <= 500


def test_a_plugin_that_cannot_be_loaded(go):
    row = go("cannot_be_loaded")
    assert row.outcome == "failed"
    assert "ModuleNotFoundError" in row.reason


def test_what_a_method_does_not_handle_is_refused(folder, tmp_path):
    knapsack = random_instance(1, "knapsack", n=8, q=2)
    summary = run(tmp_path / "runs.db", methods=["refuses", "greedy"], instances=knapsack, progress=False)
    assert (summary.ok, summary.refused, summary.failed) == (1, 1, 0)
    row = next(row for row in read_runs(tmp_path / "runs.db") if row.outcome == "refused")
    assert row.reason.startswith("method 'refuses' does not handle costs with a budget; methods that do: ")


def test_a_benchmark_with_all_of_them(folder, tmp_path):
    """Nothing of theirs is loaded here, and nobody keeps the others from their rows."""
    methods = [
        "leaves",
        "crashes",
        "raises",
        "cannot_be_loaded",
        "patches_referee",
        "dice",
        "dice:seed=7",
        "greedy",
    ]
    summary = run(
        tmp_path / "runs.db",
        methods=methods,
        instances=[str(folder / "small0.safetensors"), str(folder / "missing.safetensors")],
        keeps=[3, 0.5],
        seeds=[1, 2],
        time_limit=5.0,
        jobs=2,
        progress=False,
    )
    rows = read_runs(tmp_path / "runs.db")
    assert summary.planned == len(rows) == 4 * 9
    assert not [name for name in sys.modules if "liars_of_test" in name]
    there = [row for row in rows if row.instance == "small0"]
    assert {row.label for row in there if row.outcome == "ok"} == {"patches_referee", "dice", "greedy"}
    assert sorted({row.seed for row in there if row.label == "dice"}) == [1, 2, 7]
    missing = {row.reason for row in rows if row.instance == "missing"}
    assert missing == {next(iter(missing))}
    assert "is missing" in next(iter(missing))


def test_methods_and_options_that_do_not_exist(folder, tmp_path):
    files = [str(folder / "small0.safetensors")]
    with pytest.raises(UnknownMethodError, match="did you mean 'dice'"):
        run(tmp_path / "runs.db", methods=["dise"], instances=files)
    with pytest.raises(OptionError, match="has no option 'side'; did you mean 'sides'"):
        run(tmp_path / "runs.db", methods=["dice:side=3"], instances=files)
    assert not (tmp_path / "runs.db").exists()
