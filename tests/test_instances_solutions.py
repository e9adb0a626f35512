"""Solution files: they come back whole, belong to one problem, and damage is noticed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_instances_format import reseal

from osscar_opt import Problem, Solution
from osscar_opt.errors import FormatError, OsscarError, SolverError
from osscar_opt.formulations.solution import BoundKind, Status, Termination, TraceEntry
from osscar_opt.instances import file_kind, load, load_solution, random_instance, save_solution, solution_info

GOLDEN = Path(__file__).parent / "golden"


def made(**changes: Any) -> Solution:
    """A solution with something unusual in every field."""
    problem = random_instance(8, "correlated", n=4, group_sizes=[1, 3, 2, 1], q=2, keep=2)
    support = np.array([True, False, True, False])
    fields = {
        "method": "by hand",
        "support": support,
        "weights": problem.refit(support),
        "objective": problem.value(support),
        "bound": 0.1,
        "bound_kind": BoundKind.CLAIMED,
        "status": Status.FEASIBLE,
        "termination": Termination.NODE_LIMIT,
        "message": "One – sentence.",
        "trace": (TraceEntry(0.0, math.inf, -math.inf), TraceEntry(0.1 + 0.2, 2.0, math.nan)),
        "stats": {"nodes": 12, "rate": math.inf, "by_depth": [1, 2, 3], "numpy": 0.5},
        "options": {"seed": 3, "name": "x", "limit": None, "exact": True},
        "certificate": {"leaves": [[0, 1], []]},
        "setup_time": 0.25,
        "solve_time": 1.5,
        "versions": {"numpy": "2.0"},
    }
    return Solution(problem=problem, **{**fields, **changes})


def assert_same(a: Solution, b: Solution) -> None:
    for field in dataclasses.fields(Solution):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "problem":
            assert x.hash == y.hash
            assert x.keep == y.keep
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()
        else:
            assert repr(x) == repr(y), field.name  # nan == nan here
            assert type(x) is type(y)


def test_everything_comes_back(tmp_path: Path) -> None:
    solution = made()
    save_solution(solution, tmp_path / "a")
    assert_same(load_solution(tmp_path / "a", solution.problem), solution)
    assert file_kind(tmp_path / "a") == "solution"


def test_the_problem_may_be_its_file_under_another_keep(tmp_path: Path) -> None:
    solution = made()
    solution.save(tmp_path / "a")
    solution.problem.with_keep(3).save(tmp_path / "problem")
    read = load_solution(tmp_path / "a", tmp_path / "problem")
    assert_same(read, solution)
    assert read.problem.keep == 2


@pytest.mark.parametrize("method", ["greedy", "magnitude", "random", "exhaustive"])
def test_solved_saved_verified(method: str, tmp_path: Path) -> None:
    problem = random_instance(5, "drifted", n=7, group_sizes="mixed", q=3)
    solution = problem.solve(method)
    solution.save(tmp_path / "a")
    read = load_solution(tmp_path / "a", problem)
    read.verify()
    assert read.to_dict() == solution.to_dict()


def test_a_lie_is_read_and_does_not_verify(tmp_path: Path) -> None:
    solution = made(objective=0.0)
    save_solution(solution, tmp_path / "a")
    with pytest.raises(SolverError, match="objective"):
        load_solution(tmp_path / "a", solution.problem).verify()


def test_a_certificate_that_is_no_json_is_left_out(tmp_path: Path) -> None:
    solution = made(certificate=object())
    save_solution(solution, tmp_path / "a")
    assert load_solution(tmp_path / "a", solution.problem).certificate is None


def test_another_problem_is_refused(tmp_path: Path) -> None:
    save_solution(made(), tmp_path / "a")
    with pytest.raises(FormatError, match="the solution is for problem"):
        load_solution(tmp_path / "a", random_instance(9, "correlated", n=4))


def test_header_alone(tmp_path: Path) -> None:
    solution = made()
    save_solution(solution, tmp_path / "a")
    info = solution_info(tmp_path / "a")
    assert (info.p, info.q, info.n, info.keep) == (7, 2, 4, 2)
    assert info.problem_hash == solution.problem_hash
    assert info.result["status"] is Status.FEASIBLE
    assert info.result["relative"] == solution.relative


def test_an_instance_is_no_solution(tmp_path: Path) -> None:
    made().problem.save(tmp_path / "problem")
    save_solution(made(), tmp_path / "solution")
    with pytest.raises(FormatError, match="is of format 'osscar-opt/instance'"):
        solution_info(tmp_path / "problem")
    with pytest.raises(FormatError, match="is of format 'osscar-opt/solution'"):
        load(tmp_path / "solution")


def changed_result(raw: bytes, **changes: Any) -> dict[str, str]:
    length = int.from_bytes(raw[:8], "little")
    result = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["result"])
    return {"result": json.dumps({**result, **changes})}


@pytest.mark.parametrize(
    ("metadata", "arrays", "match"),
    [
        ({"version": "2.0"}, {}, "version 2.0"),
        ({"problem": "[]"}, {}, "'problem' is not a JSON object"),
        ({"problem": '{"hash": "", "name": ""}'}, {}, "sizes"),
        ({"problem": '{"sizes": {"rows": 7, "columns": 2, "groups": 4}}'}, {}, "hash and a name"),
        (
            {
                "problem": '{"sizes": {"rows": 7, "columns": 2, "groups": 4}, "hash": "", "name": "", "keep": 5}'
            },
            {},
            "keep",
        ),
        ({"result": "[]"}, {}, "'result' is not a JSON object"),
        ({"result": "{}"}, {}, "'objective' in 'result'"),
        ({}, {"support": None}, "'support' is missing"),
        ({}, {"support": np.zeros(3, dtype=bool)}, "shape"),
        ({}, {"weights": np.zeros((7, 2), dtype=np.float32)}, "F32"),
        ({}, {"weights": np.full((7, 2), np.nan)}, "NaN"),
        ({}, {"trace": np.zeros((2, 4))}, "shape"),
        ({}, {"surprise": np.zeros(2)}, "'surprise' is not part"),
    ],
)
def test_forged(metadata: dict[str, str], arrays: dict[str, Any], match: str, tmp_path: Path) -> None:
    solution = made()
    save_solution(solution, tmp_path / "a")
    (tmp_path / "b").write_bytes(reseal((tmp_path / "a").read_bytes(), metadata=metadata, arrays=arrays))
    with pytest.raises(FormatError, match=match) as caught:
        load_solution(tmp_path / "b", solution.problem)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"status": "perfect"}, "status = 'perfect' is not one of optimal"),
        ({"objective": "1.0"}, "'objective' in 'result' is not a number"),
        ({"objective": True}, "'objective' in 'result' is not a number"),
        ({"objective": 10**400}, "'objective' in 'result' is not a number"),
        ({"stats": []}, "'stats' in 'result' is not an object"),
        ({"method": 3}, "'method' in 'result' is not a text"),
    ],
)
def test_forged_results(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    solution = made()
    save_solution(solution, tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "b").write_bytes(reseal(raw, metadata=changed_result(raw, **changes)))
    with pytest.raises(FormatError, match=match):
        load_solution(tmp_path / "b", solution.problem)


def golden_problem() -> Problem:
    return load(GOLDEN / "instance-1.0-dense.safetensors")


def test_golden_solution() -> None:
    noted = json.loads((GOLDEN / "values.json").read_text(encoding="utf-8"))["solution-1.0.safetensors"]
    solution = load_solution(GOLDEN / "solution-1.0.safetensors", golden_problem())
    solution.verify()
    assert solution.kept.tolist() == noted["kept"]
    assert solution.objective == noted["objective"]
    assert solution.status == noted["status"]


def test_every_byte_changed(tmp_path: Path) -> None:
    raw = (GOLDEN / "solution-1.0.safetensors").read_bytes()
    problem = golden_problem()
    original = load_solution(GOLDEN / "solution-1.0.safetensors", problem)
    rng = np.random.default_rng(0)
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= int(rng.integers(1, 256))
        (tmp_path / "a").write_bytes(broken)
        try:
            read = load_solution(tmp_path / "a", problem)
        except FormatError:
            continue
        assert_same(read, original)


def test_damage_behind_a_valid_seal(tmp_path: Path) -> None:
    raw = (GOLDEN / "solution-1.0.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    rng = np.random.default_rng(2)
    letters = '0123456789-+.eE"[]{},:truefalsn \\u00'
    for _ in range(300):
        key = ("problem", "result")[int(rng.integers(2))]
        text = list(metadata[key])
        for _ in range(int(rng.integers(1, 3))):
            at = int(rng.integers(len(text) + 1))
            text[at : at + int(rng.integers(0, 3))] = letters[int(rng.integers(len(letters)))]
        (tmp_path / "a").write_bytes(reseal(raw, metadata={key: "".join(text)}))
        try:
            load_solution(tmp_path / "a", golden_problem())
        except OsscarError as error:
            sentence = str(error)
            assert "\n" not in sentence
