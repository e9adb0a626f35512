"""A third party's solver: a package of its own that is installed, listed, checked and benchmarked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from osscar_opt.instances import random_instance

EXAMPLE = Path(__file__).parents[1] / "examples" / "oscillation"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example into."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")
    target = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    command += ["--disable-pip-version-check", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def _run(arguments: list[str], site: Path | None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_it_is_listed_where_it_is_installed_and_nowhere_else(installed: Path) -> None:
    for site, there in ((installed, True), (None, False)):
        done = _run(["-m", "osscar_opt", "solvers", "--json"], site)
        assert done.returncode == 0, done.stderr
        found = {info["name"]: info for info in json.loads(done.stdout)}
        assert ("oscillation" in found) is there
    one = json.loads(_run(["-m", "osscar_opt", "solvers", "oscillation", "--json"], installed).stdout)[0]
    assert one["available"]
    assert one["source"] == "osscar_oscillation:Oscillation"
    assert [option["name"] for option in one["options"]] == ["depth"]


def test_it_passes_the_conformance_kit_by_name(installed: Path) -> None:
    done = _run(["-c", "from osscar_opt.testing import check_solver; check_solver('oscillation')"], installed)
    assert done.returncode == 0, done.stderr


def test_it_solves_from_the_command_line(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "trap.safetensors"
    problem = random_instance(3, "greedy_trap", n=24, q=5)
    problem.save(file)
    done = _run(
        ["-m", "osscar_opt", "solve", str(file), "-m", "oscillation", "-o", "depth=5", "--json"], installed
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["options"] == {"depth": 5}
    assert found["objective"] < problem.solve("greedy").objective * 0.9


def test_it_joins_a_benchmark_and_its_report(installed: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "runs.db")
    arguments = ["-m", "oscillation", "-m", "greedy", "-i", "greedy-trap-*", "-i", "knapsack-16-s0"]
    ran = _run(["-m", "osscar_opt", "bench", "run", store, *arguments, "--json"], installed)
    assert ran.returncode == 0, ran.stderr
    counts = json.loads(ran.stdout)
    assert (counts["failed"], counts["refused"]) == (0, 1)  # costs and a budget are not for it

    reported = _run(["-m", "osscar_opt", "bench", "report", store, "--json"], None)  # without the package
    assert reported.returncode == 0, reported.stderr
    rows = {row["label"]: row for row in json.loads(reported.stdout)["methods"]}
    assert rows["oscillation"]["answered"] == rows["greedy"]["answered"] - 1
    assert rows["oscillation"]["geometric_gap"] < rows["greedy"]["geometric_gap"]
    assert "oscillation" in (tmp_path / "runs.html").read_text(encoding="utf-8")

    alone = _run(["-m", "osscar_opt", "bench", "run", store, *arguments], None)
    assert alone.returncode == 2
    assert "there is no method 'oscillation'" in alone.stderr
