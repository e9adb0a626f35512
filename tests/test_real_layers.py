"""The scripts in benchmarks/ that pose small problems from real layers, run methods on them and print tables."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from osscar_opt import Problem
from osscar_opt.solvers.base import Proposal, Solver

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # importing the scripts sets them: put back afterwards
    return importlib.import_module("real_layers"), importlib.import_module("exactness")


def layer(n: int, q: int, *, size: int = 1, seed: int = 0, name: str = "layer") -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(4 * n * size, n * size)) * rng.lognormal(size=n * size)
    weights = rng.normal(size=(n * size, q))
    return Problem.from_data(inputs, weights, groups=size, name=name, provenance={"model": "random"})


def write_layers(folder: Path) -> None:
    layer(20, 7, name="minilm_ffn0").save(folder / "minilm_ffn0.safetensors")
    layer(18, 5, seed=1, name="smollm2_ffn28").save(folder / "smollm2_ffn28.safetensors")
    layer(6, 4, size=2, seed=2, name="minilm_heads0").save(folder / "minilm_heads0.safetensors")
    layer(4, 9, size=3, seed=3, name="cnn_conv_a").save(folder / "cnn_conv_a.safetensors")


def test_subproblem_reconstructs_what_its_groups_alone_produce(scripts: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([2, 0, 1, 3, 1, 0, 3, 3])  # unequal groups, rows interleaved
    inputs, weights = rng.normal(size=(50, 8)), rng.normal(size=(8, 3))
    problem = Problem.from_data(inputs, weights, groups=labels, damping=1e-9)
    small = scripts[0].subproblem(problem, [3, 0], keep=1)
    rows = np.flatnonzero(np.isin(labels, [0, 3]))
    targets = inputs[:, rows] @ weights[rows]
    assert small.p == len(rows)
    assert small.keep == 1
    assert small.provenance["groups_of_layer"] == [0, 3]
    for kept, group in ((0, 0), (1, 3)):  # groups are renumbered in their order
        x = inputs[:, labels == group]
        residual = targets - x @ np.linalg.lstsq(x, targets, rcond=None)[0]
        assert small.value([kept]) == pytest.approx(0.5 * np.sum(residual**2) / len(inputs), rel=1e-6)
    assert small.value([0, 1]) == 0.0


def test_leading_outputs_hold_as_much_energy_as_any_directions_can(scripts: tuple[Any, Any]) -> None:
    problem = layer(9, 6)
    outputs = np.linalg.eigvalsh(problem.optimum.T @ problem.gram @ problem.optimum)
    reduced = scripts[1].leading_outputs(problem, 2)
    assert reduced.q == 2
    assert reduced.constant == pytest.approx(0.5 * outputs[-2:].sum())


def test_a_convolution_is_the_linear_layer_of_its_patches(
    scripts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(1, 5, 3, padding=1), torch.nn.Conv2d(5, 4, 3, padding=1)
    model, images = torch.nn.Sequential(first, torch.nn.ReLU(), second), torch.rand(60, 1, 6, 6)
    monkeypatch.setattr(scripts[0], "small_cnn", lambda progress: (model, 1.0))
    monkeypatch.setattr(scripts[0], "fashion_mnist", lambda part: (images, torch.zeros(60)))
    problem = scripts[0].conv_layer(2, "conv")
    assert (problem.n, problem.groups.uniform_size, problem.q) == (5, 9, 4)
    pruned = problem.dense_weights.copy()
    pruned[problem.groups.rows(3)] = 0.0
    with torch.no_grad():
        inputs = model[:2](images)
        without = inputs.clone()
        without[:, 3] = 0.0
        change = (second(inputs) - second(without)).double()
        patches = torch.nn.functional.unfold(inputs, 3, padding=1).double()
    damping = 1e-2 * float((patches**2).sum(dim=1).mean()) / problem.p
    places = len(images) * 36
    expected = 0.5 * float((change**2).sum()) / places
    expected += 0.5 * damping * float((second.weight.detach().double()[:, 3] ** 2).sum())
    assert problem.objective(pruned) == pytest.approx(expected, rel=1e-5)


def test_list_of_small_problems(scripts: tuple[Any, Any], tmp_path: Path) -> None:
    write_layers(tmp_path)
    cases = list(scripts[0].reach_instances(tmp_path, sizes=[8, 12]))
    assert len({case.name for case in cases}) == len(cases) == 2 * 2 * 2 * 3 + 2 * 3
    assert {case.family for case in cases} == set(scripts[0].FAMILIES) - {"llm-heads"}
    assert all(case.problem.keep == round(case.ratio * case.n) and case.n == case.problem.n for case in cases)
    drawn = next(case for case in cases if case.name == "minilm_ffn0/random8/keep2").problem
    again = next(scripts[0].reach_instances(tmp_path, families=["encoder-random"], sizes=[8])).problem
    assert drawn.hash == again.hash  # whatever else is asked for
    assert drawn.provenance["groups_of_layer"] != list(range(8))


def run(exactness: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["exactness.py", *map(str, arguments)])
    exactness.main()


def test_reach_resumes_and_sums_up(
    scripts: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_layers(tmp_path)
    results = tmp_path / "reach.jsonl"
    options = ("reach", "--data", tmp_path, "--json", results, "--sizes", 8, "--ratios", 0.5)
    methods = ("--methods", "exhaustive", "greedy", "nonesuch")
    run(scripts[1], monkeypatch, *options, "--families", "encoder-first", "conv", *methods)
    shown = capsys.readouterr()
    assert "nonesuch is left out" in shown.err
    assert "| encoder-first | 8 | 0.50 | 1 of 1 | 0 |" in shown.out  # exhaustive
    assert "| encoder-first | 8 | 0.50 | 0 of 1 |  |" in shown.out  # greedy: no bound
    assert "| 32 channels of 9, in 60 s | 1 of 1 |" in shown.out
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["proved"] for record in records] == [True, True, False, False]
    assert all(record["inverses"] > 0 for record in records)
    results.write_text(results.read_text()[:-40])  # as if it had been interrupted while writing
    run(scripts[1], monkeypatch, *options, "--families", "encoder-first", "conv", *methods)
    assert "4 runs, 3 of them done already" in capsys.readouterr().err
    assert len(results.read_text().splitlines()) == 5


@dataclass(frozen=True)
class Odd(Solver):
    """Counts in numpy's numbers, and knows no bound."""

    name: ClassVar[str] = "odd"

    def propose(self, problem: Problem, **_: object) -> Proposal:
        stats = {"nodes": np.int64(3), "root": -np.inf, "sizes": [1, 2], "seconds": np.float32(0.5)}
        return Proposal(np.arange(problem.n) < 2, stats=stats)


def test_whatever_a_solver_counts_fits_into_the_results(scripts: tuple[Any, Any], tmp_path: Path) -> None:
    exactness, problem = scripts[1], layer(5, 3).with_limits(keep=2)
    task = exactness.task_of("reach", "a", problem, "odd", 1.0)
    found = exactness.solve(problem, exactness.Method("odd", Odd(), {}), 1.0)
    exactness.Results(tmp_path / "results").add(task | found)
    record = exactness.Results(tmp_path / "results").get(task)
    assert (record["nodes"], record["bound"], record["gap"], record["proved"]) == (3, None, None, False)
    assert {key: record["stats"][key] for key in ("root", "seconds")} == {"root": None, "seconds": 0.5}
    assert record["objective"] == problem.value([0, 1])


def test_contradictions_are_named(scripts: tuple[Any, Any]) -> None:
    def record(method: str, objective: float, bound: float | None, proved: bool) -> dict[str, Any]:
        return {"case": "a", "method": method, "objective": objective, "bound": bound, "proved": proved}

    right = [record("one", 2.0, 2.0, True), record("two", 2.0, 2.0, True), record("three", 2.5, 1.0, False)]
    said = "Problems proved by more than one method: 1; contradictions: 0."
    assert scripts[1].contradictions(right) == said
    wrong = scripts[1].contradictions(
        [*right, record("four", 2.1, 2.1, True), record("five", 3.0, 2.2, False)]
    )
    assert [line.split()[2] for line in wrong.splitlines()[1:]] == ["four", "five"]


def test_peers_are_compared_on_what_both_solved(scripts: tuple[Any, Any]) -> None:
    def record(case: str, method: str, proved: bool, objective: float, seconds: float) -> dict[str, Any]:
        found = {"status": "optimal" if proved else "feasible", "proved": proved, "objective": objective}
        return found | {"case": case, "method": method, "seconds": seconds, "stats": {}, "n": 8, "q": 2}

    records = [
        record("a", "ours", True, 1.0, 0.1),
        record("a", "theirs", True, 1.0, 1.0),
        record("b", "ours", True, 1.0, 0.1),
        record("b", "theirs", True, 1.01, 40.0),  # wrong
        record("c", "ours", False, 1.0, 60.0),
        record("c", "theirs", True, 1.0, 5.0),
        {"case": "d", "method": "theirs", "status": "refused", "n": 8, "q": 2},
    ]
    rows = scripts[1].peer_table(records, ["ours", "theirs"]).splitlines()[2:]
    cells = [cell.strip() for cell in rows[1].strip("|").split("|")]
    assert cells == ["theirs", "3 of 4", "1", "1", "5.85", "2", "63.2", "10", "400"]  # sqrt(10 * 400) = 63.2
    assert scripts[1].size_table(records, ["ours", "theirs"]).splitlines()[2] == (
        "| 8 | 2 | 2 of 3, 0.1 s | 3 of 4, 5.85 s |"
    )


def test_ctrl_c_ends_the_runs_and_records_none_that_it_cut_short(
    scripts: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exactness, problem = scripts[1], layer(5, 3).with_limits(keep=2)

    def interrupted() -> dict[str, Any]:
        with contextlib.suppress(KeyboardInterrupt):  # as solving does
            signal.raise_signal(signal.SIGINT)
        return {"status": "feasible"}

    def whole() -> dict[str, Any]:
        return {"status": "optimal"}

    works = {"a": whole, "b": interrupted, "c": whole}
    tasks = [(exactness.task_of("reach", case, problem, "m", 1.0), work) for case, work in works.items()]
    before = signal.getsignal(signal.SIGINT)
    records = exactness.run(tasks, exactness.Results(tmp_path / "results"))
    assert [record["case"] for record in records] == ["a"]
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
