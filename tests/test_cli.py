"""The command line: what it prints where, what it exits with, and that it never shows a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import osscar_opt
from osscar_opt import Problem
from osscar_opt.cli import app
from osscar_opt.cli._options import parse_options
from osscar_opt.errors import OptionError
from osscar_opt.instances import load_solution, random_instance
from osscar_opt.solvers import registry
from osscar_opt.solvers.random import Random


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80"})


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "osscar_opt", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    random_instance(3, "correlated", n=9, group_sizes=2, q=4).save(path)
    return path


def failed(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("osscar-opt: ")
    for word in words:
        assert word in line


# ---------------------------------------------------------------------------------------------------------- solve


def test_solve_prints_a_summary(instance: Path) -> None:
    result = run("solve", instance, "--method", "greedy", "--keep", 4)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "4 of 9 groups" in result.stdout
    assert "feasible" in result.stdout


def test_solve_json_is_one_document(instance: Path, tmp_path: Path) -> None:
    out = tmp_path / "solution.safetensors"
    result = run("solve", instance, "-m", "exhaustive", "--keep", 3, "--json", "--output", out)
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["status"] == "optimal"
    assert document["keep"] == len(document["kept"]) == 3
    assert document["output"] == str(out)
    problem = osscar_opt.load(instance)
    assert document["objective"] == pytest.approx(problem.value(document["kept"]), rel=1e-12)
    solution = load_solution(out, problem)
    solution.verify()
    assert solution.kept.tolist() == document["kept"]


def test_sparsity_is_the_share_that_goes(instance: Path) -> None:
    document = json.loads(run("solve", instance, "-m", "magnitude", "--sparsity", "0.4", "--json").stdout)
    assert len(document["kept"]) == 9 - 3


def test_seed_and_options(instance: Path) -> None:
    kept = [
        json.loads(run("solve", instance, "-m", "random", *words, "--json").stdout)["kept"]
        for words in (["--seed", 5], ["--option", "seed=5"], ["-o", "seed=6"])
    ]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--keep", "10"], 2, "keep = 10"),
        (["--keep", "-1"], 2, "keep = -1"),
        (["--sparsity", "1.5"], 2, "sparsity"),
        (["--keep", "3", "--sparsity", "0.5"], 2, "give one of them"),
        (["--method", "greedyy"], 2, "did you mean 'greedy'"),
        (["--method", "random", "--option", "sede=3"], 2, "did you mean 'seed'"),
        (["--method", "random", "--option", "seed=x"], 2, "must be int"),
        (["--method", "random", "--option", "seed"], 2, "name=value"),
        (["--method", "random", "--option", "seed=1", "--option", "seed=2"], 2, "twice"),
        (["--method", "greedy", "--seed", "1"], 2, "no option 'seed'"),
        (["--time-limit", "-1"], 2, "time_limit"),
        (["--output", "no/such/folder/s"], 2, "there is no directory"),
        (["--output", "."], 2, "it is a directory"),
    ],
)
def test_wrong_calls_are_one_line(words: list[str], code: int, says: str, instance: Path) -> None:
    failed(run("solve", instance, *words), code, says)


def test_bad_files_are_one_line(instance: Path, tmp_path: Path) -> None:
    failed(run("solve", tmp_path / "missing"), 2, "No such file")
    cut = tmp_path / "cut"
    cut.write_bytes(instance.read_bytes()[:-5])
    failed(run("solve", cut), 2, "cut short")
    failed(run("info", cut), 2, "cut short")
    failed(run("path", tmp_path), 2, "not a regular file")
    (tmp_path / "text").write_text("just some text in a file")
    failed(run("info", tmp_path / "text"), 2, "not a safetensors file")


def test_a_problem_without_limits(tmp_path: Path) -> None:
    Problem(np.eye(3), np.ones((3, 2))).save(tmp_path / "a")
    failed(run("solve", tmp_path / "a"), 2, "pass keep=")


def test_debug_shows_the_traceback(instance: Path) -> None:
    result = command("--debug", "solve", instance, "--keep", 99)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "InputError: keep = 99" in result.stderr


def test_a_bug_is_one_line_too(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Problem, "solve", broken)
    failed(run("solve", instance), 1, "internal error, ZeroDivisionError: oops", "--debug")


def test_a_full_disk(instance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    failed(run("solve", instance, "-m", "random", "--output", tmp_path / "s"), 1, "No space left")


def test_usage_errors_are_the_parsers(instance: Path) -> None:
    assert run("solve").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("solve", instance, "--keep", "x").exit_code == 2


# ------------------------------------------------------------------------------------------------ interrupt, pipes

SLOW = """
import time
import numpy as np
from dataclasses import dataclass
from typing import ClassVar
from osscar_opt.solvers.base import Proposal, Solver

@dataclass(frozen=True)
class Slow(Solver):
    "Takes its time."
    name: ClassVar[str] = "slow"
    fail: bool = False

    def propose(self, problem, *, start, deadline, report):
        support = problem.limits.fill(range(problem.n), np.zeros(problem.n, dtype=bool))
        report.incumbent(support, problem.value(support))
        if self.fail:
            raise RuntimeError("no luck")
        time.sleep(0.5)  # until the calling thread waits for us
        print("READY", file=__import__("sys").stderr, flush=True)
        while not deadline.expired():
            time.sleep(0.01)
        return Proposal(support)
"""


def start_slow(tmp_path: Path, *words: object) -> subprocess.Popen[str]:
    (tmp_path / "slow_solver.py").write_text(SLOW)
    code = (
        "from osscar_opt.solvers import registry; registry._OWN['slow'] = 'slow_solver:Slow'; "
        "from osscar_opt.cli import main; main()"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(osscar_opt.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_ctrl_c_prints_and_writes_the_best(instance: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.safetensors"
    process = start_slow(tmp_path, "solve", instance, "-m", "slow", "--output", out, "--json")
    assert process.stderr is not None
    while process.stderr.readline().strip() != "READY":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    document = json.loads(stdout)
    assert document["termination"] == "interrupted"
    assert load_solution(out, instance).kept.tolist() == document["kept"] == [0, 1, 2, 3]


def test_a_solver_that_fails_exits_with_1(instance: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.safetensors"
    process = start_slow(
        tmp_path, "solve", instance, "-m", "slow", "-o", "fail=yes", "--output", out, "--json"
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no luck" in stderr
    assert json.loads(stdout)["termination"] == "failed"
    assert out.exists()  # what it had reported before is not lost


def test_interrupted_while_reading(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("osscar_opt.instances.load", interrupt)
    failed(run("solve", instance), 130, "interrupted")


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """More output than a pipe holds, and nobody to read it."""
    Problem(np.eye(2), np.ones((2, 3)), keep=1, provenance={"note": "x" * 500_000}).save(tmp_path / "a")
    script = f"{sys.executable} -m osscar_opt info {tmp_path / 'a'} --json | head -c 10"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == '{\n  "file"'
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------- other commands


def test_solvers() -> None:
    result = run("solvers")
    document = json.loads(run("solvers", "--json").stdout)
    names = [item["name"] for item in document]
    assert {"greedy", "osscar", "search", "exhaustive", "magnitude"} <= set(names)
    for name in names:
        assert name in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert {option["name"] for option in document[names.index("random")]["options"]} == {"seed"}
    one = run("solvers", "random")
    assert "seed" in one.stdout
    failed(run("solvers", "randomm"), 2, "did you mean 'random'")


def test_info(instance: Path, tmp_path: Path) -> None:
    result = run("info", instance)
    assert "18 rows by 4 columns, 9 groups" in result.stdout
    document = json.loads(run("info", instance, "--json").stdout)
    assert (document["p"], document["q"], document["n"], document["keep"]) == (18, 4, 9, 4)
    assert document["arrays"]["gram"] == [171]
    assert document["hash"] == osscar_opt.load(instance).hash
    assert "diagonal of gram" in run("info", instance, "--check").stdout
    assert json.loads(run("info", instance, "--check", "--json").stdout)["checked"]
    damaged = bytearray(instance.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    assert run("info", tmp_path / "damaged").exit_code == 0  # the header is sound
    failed(run("info", tmp_path / "damaged", "--check"), 2, "sha256")


def test_info_and_verify_of_a_solution(instance: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    run("solve", instance, "-m", "greedy", "--keep", 5, "--output", out)
    assert "greedy" in run("info", out).stdout
    document = json.loads(run("info", out, "--json").stdout)
    assert document["kind"] == "solution"
    assert document["result"]["bound"] is None
    assert run("verify", instance, out).exit_code == 0
    assert json.loads(run("verify", instance, out, "--json").stdout)["holds"] is True
    other = tmp_path / "other"
    random_instance(4, "correlated", n=9, group_sizes=2, q=4).save(other)
    failed(run("verify", other, out), 2, "not for")
    lie = load_solution(out, instance)
    lie.__dict__["objective"] = 0.0
    lie.save(out)
    failed(run("verify", instance, out), 1, "objective")


@pytest.mark.parametrize("width", [80, 120])
def test_path(instance: Path, width: int) -> None:
    document = json.loads(run("path", instance, "--json").stdout)
    assert document["keeps"] == list(range(9, -1, -1))
    assert document["objectives"][0] == 0
    assert np.all(np.diff(document["objectives"]) >= 0)
    assert sorted(document["order"]) == list(range(9))
    result = CliRunner().invoke(app, ["path", str(instance)], env={"COLUMNS": str(width)})
    assert len([line for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]) == 10
    assert max(map(len, result.stdout.splitlines())) <= width
    few = run("path", instance, "--rows", "3")
    assert len([line for line in few.stdout.splitlines() if line.strip()[:1].isdigit()]) == 3
    assert document["objectives"][-1] == pytest.approx(document["constant"], rel=1e-12)


def test_path_of_a_method_without_an_order(instance: Path) -> None:
    failed(run("path", instance, "-m", "exhaustive"), 2, "path")


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("osscar_opt.bench.demo.run_demo", lambda **options: seen.update(options))
    result = run("demo", "--keep-fraction", "0.25", "--windows", "3", "--json")
    assert result.exit_code == 0, result.output
    assert (seen["keep_fraction"], seen["windows"], seen["json"]) == (0.25, 3, True)
    assert seen["layer"] == "model.layers.0.mlp.down_proj"


def test_extract_passes_its_options_on(
    instance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def extract(*words: Any, progress: Any, **options: Any) -> Problem:
        seen.extend([words, options])
        progress(1, 2)
        warnings.warn("few rows", UserWarning, stacklevel=2)
        return osscar_opt.load(instance)

    monkeypatch.setattr("osscar_opt.torch.extract_file.extract_to_file", extract)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("extract", "smollm2", "a.b", tmp_path / "out", "--sparsity", "0.5", "--groups", "64")
    assert result.exit_code == 0, result.output
    assert result.stderr == "osscar-opt: warning: few rows\n"
    assert seen[0] == ("smollm2", "a.b", tmp_path / "out")
    assert (seen[1]["sparsity"], seen[1]["groups"], seen[1]["text"]) == (0.5, 64, None)
    assert "18 rows by 4 columns" in result.stdout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = json.loads(run("extract", "smollm2", "a.b", tmp_path / "out", "--json").stdout)
    assert document["p"] == 18
    failed(run("extract", "smollm2", "a.b", tmp_path / "no" / "out"), 2, "there is no directory")


def test_version_and_help() -> None:
    assert run("--version").stdout == f"osscar-opt {osscar_opt.__version__}\n"
    assert run("--help").exit_code == 0
    result = command("--version")
    assert (result.returncode, result.stdout) == (0, f"osscar-opt {osscar_opt.__version__}\n")
    for name in ("solve", "path", "verify", "solvers", "info", "extract", "demo"):
        assert name in run("--help").stdout
        assert run(name, "--help").exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from osscar_opt.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'cvxpy', 'highspy', 'networkx', 'transformers'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_solve_loads_no_torch(instance: Path) -> None:
    code = (
        "import sys; from osscar_opt.cli import app\n"
        f"try: app(['solve', {str(instance)!r}, '-m', 'greedy', '--json'])\nexcept SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'cvxpy', 'highspy', 'networkx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


def test_a_terminal_in_ascii(tmp_path: Path) -> None:
    Problem(np.eye(2), np.ones((2, 3)), keep=1, name="层").save(tmp_path / "a")
    for words in (["info"], ["path"], ["solve"]):
        result = command(*words, tmp_path / "a", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert result.returncode == 0, result.stderr
        assert "?" in result.stdout
        assert result.stdout.isascii()


# --------------------------------------------------------------------------------------------------- typed options


@dataclass(frozen=True)
class Many(Random):
    """A method with options of all kinds."""

    name: ClassVar[str] = "many"
    count: int = 1
    share: float = 0.5
    exact: bool = False
    limit: int | None = None
    rule: Literal["best", "first"] = "best"
    word: str = ""
    either: int | str = 0
    steps: tuple[int, ...] = ()


def test_options_are_typed_by_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_load", lambda _: Many)
    monkeypatch.setitem(registry._OWN, "many", "anything")

    def parsed(pair: str) -> Any:
        return next(iter(parse_options("many", [pair]).values()))

    assert parsed("count=-3") == -3
    assert parsed("share=1e-3") == 1e-3
    assert isinstance(parsed("share=2"), float)
    assert parsed("exact=Yes") is True
    assert parsed("exact=0") is False
    assert parsed("limit=none") is None
    assert parsed("limit=4") == 4
    assert parsed("rule=first") == "first"
    assert parsed("word=a=b") == "a=b"
    assert parsed("either=3") == 3
    assert parsed("either=x") == "x"
    assert parsed("steps=8, 4,2") == (8, 4, 2)
    for wrong in ("count=1.5", "share=x", "exact=maybe", "limit=x", "rule=worst", "steps=1,x"):
        with pytest.raises(OptionError, match="must be"):
            parsed(wrong)
