"""The commands: osscar-opt bench run | resume | status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_fixtures import small_files
from typer.testing import CliRunner

from osscar_opt.bench.nursery import close_all
from osscar_opt.bench.store import Store, read_runs
from osscar_opt.cli.bench import bench


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory):
    yield small_files(tmp_path_factory.mktemp("instances"), count=2)
    close_all()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


def call(*words: str):
    return CliRunner().invoke(bench, list(words))


def run(path: str, files: list[str], *words: str):
    named = [word for file in files for word in ("-i", file)]
    return call(
        "run", path, *named, "-m", "greedy", "-m", "random:seed=3", "--keep", "0.5", "-k", "3", *words
    )


def test_run_and_status(path, files):
    said = run(path, files, "--jobs", "2", "--time-limit", "5", "--memory", "512")
    assert said.exit_code == 0, said.stderr
    assert said.stdout.startswith("8 runs in ")
    assert said.stdout.rstrip().endswith("8 ok.")
    assert {run.time_limit for run in read_runs(path)} == {5.0}
    assert {run.memory_limit for run in read_runs(path)} == {512}
    assert {run.seed for run in read_runs(path)} == {None, 3}
    assert {run.keep for run in read_runs(path)} == {3, 6}
    shown = call("status", path)
    assert shown.exit_code == 0
    assert "8 runs planned, 8 made." in shown.stdout
    assert "greedy" in shown.stdout


def test_json(path, files):
    document = json.loads(run(path, files, "--json").stdout)
    assert (document["planned"], document["ok"], document["kept"]) == (8, 8, 0)
    document = json.loads(call("resume", path, "--json").stdout)
    assert (document["planned"], document["ok"], document["kept"]) == (8, 0, 8)
    document = json.loads(call("status", path, "--json").stdout)
    assert (document["made"], document["left"], document["failures"]) == (8, 0, [])
    assert document["methods"] == {"greedy": {"ok": 4}, "random": {"ok": 4}}


def test_failures_are_listed(path, files, tmp_path):
    said = run(path, [*files, str(tmp_path / "[red]gone.safetensors")])
    assert said.exit_code == 0
    assert "failed" in said.stdout
    assert "lists them with their reasons" in said.stderr
    shown = call("status", path)
    assert "[red]gone" in shown.stdout
    assert "is missing" in " ".join(shown.stdout.split())
    failures = json.loads(call("status", path, "--json").stdout)["failures"]
    assert {failure["instance"] for failure in failures} == {"[red]gone"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seeds", "one"], "--seeds 'one' must be whole numbers"),
        (["--jobs", "0"], "jobs = 0 must be a whole number"),
        (["--backend", "cloud"], "backend = 'cloud' must be one of"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler belongs to --backend dask"),
        (["-m", "gredy"], "did you mean 'greedy'?"),
        (["-m", "search:patiense=3"], "did you mean 'patience'?"),
        (["-i", "no_such_instance"], "no instance of the catalogue fits 'no_such_instance'"),
        (["-k", "99"], "keep = 99 is more than the 12 groups"),
    ],
)
def test_wrong_calls(path, files, words, sentence):
    said = run(path, files, *words)
    assert said.exit_code == 2
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1
    assert not Path(path).exists()


def test_a_store_that_is_not_there(path):
    for command in ("resume", "status"):
        said = call(command, path)
        assert said.exit_code == 2
        assert "there is no store" in said.stderr


def test_a_second_runner_is_refused(path, files):
    with Store(path):
        said = run(path, files)
    assert said.exit_code == 2
    assert "is being written by another run (process" in said.stderr
