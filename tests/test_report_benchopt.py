"""The exported benchopt folder: its files follow benchopt's interface, and give the numbers this library gives."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import types

import pytest

from osscar_opt.bench.report.benchopt import export
from osscar_opt.errors import InputError, OptionError, UnknownMethodError
from osscar_opt.instances import random_instance

METHODS = ["greedy", "search:patience=1", "random:seed=3"]


@pytest.fixture(scope="module")
def problems():
    return [random_instance(0, "planted", n=6), random_instance(1, "knapsack", n=6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, problems):
    target = tmp_path_factory.mktemp("export") / "benchmark"
    export(target, methods=METHODS, instances=problems, time_limit=5.0)
    return target


@pytest.fixture
def benchopt(monkeypatch):
    """What of benchopt the files import: base classes that set parameters, as its own do."""

    class Base:
        def __init__(self, **parameters):
            vars(self).update(parameters)

    stand_in = types.ModuleType("benchopt")
    stand_in.BaseObjective = stand_in.BaseDataset = stand_in.BaseSolver = Base
    monkeypatch.setitem(sys.modules, "benchopt", stand_in)


def loaded(path):
    spec = importlib.util.spec_from_file_location(f"exported_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instances_of(cls):
    """One object for each combination of the first parameters, as benchopt makes them."""
    (names, values), *rest = cls.parameters.items()
    for value in values:
        chosen = dict(zip(names.split(", "), value if isinstance(value, tuple) else (value,), strict=True))
        yield cls(**chosen, **{name: options[0] for name, options in rest})


def test_the_folder_is_what_benchopt_looks_for(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"objective.py", "datasets/catalogue.py", "README.rst", "test_config.py"} <= names
    assert {name for name in names if name.startswith("solvers/")} == {
        "solvers/greedy.py",
        "solvers/random.py",
        "solvers/search_patience_1.py",
    }
    assert len([name for name in names if name.endswith(".safetensors")]) == 2


def test_what_benchopt_reads_without_importing_is_literal(folder):
    for path in (*folder.glob("solvers/*.py"), folder / "datasets" / "catalogue.py", folder / "objective.py"):
        body = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)).body
        values = {
            node.targets[0].id: ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)
        }
        assert isinstance(values["name"], str)
        assert "/" not in values["name"]
        assert values["requirements"] == ["pip::osscar-opt"]


@pytest.mark.usefixtures("benchopt")
def test_a_run_through_the_files_gives_the_librarys_numbers(folder, problems):
    objective = loaded(folder / "objective.py").Objective()
    posed = {problem.hash: problem for problem in problems}
    for data in instances_of(loaded(folder / "datasets" / "catalogue.py").Dataset):
        problem = data.get_data()["problem"]
        objective.set_data(**data.get_data())
        assert objective.evaluate_result(**objective.get_one_result())["value"] > 0
        for path in folder.glob("solvers/*.py"):
            for solver in instances_of(loaded(path).Solver):
                assert solver.skip(**objective.get_objective()) == (False, None)
                solver.set_objective(**objective.get_objective())
                solver.run(None)
                measured = objective.evaluate_result(**solver.get_result())
                assert measured["value"] == pytest.approx(solver.solution.objective)
                assert posed[problem.hash].violation(solver.get_result()["support"]) == ""


@pytest.mark.usefixtures("benchopt")
def test_an_unfeasible_support_has_no_value(folder, problems):
    objective = loaded(folder / "objective.py").Objective()
    objective.set_data(problem=problems[0])
    with pytest.raises(ValueError, match="is not feasible: it uses 6 of keep"):
        objective.evaluate_result([True] * 6)


@pytest.mark.usefixtures("benchopt")
def test_a_problem_a_method_does_not_handle_is_skipped(folder, problems, monkeypatch):
    from osscar_opt.solvers.greedy import Greedy

    monkeypatch.setattr(Greedy, "handles", frozenset())
    solver = loaded(folder / "solvers" / "greedy.py").Solver(time_limit=5.0)
    assert solver.skip(problems[1]) == (True, "it does not handle budget")


@pytest.mark.usefixtures("benchopt")
def test_an_instance_that_was_exchanged_is_refused(folder, tmp_path, problems):
    copy = tmp_path / "benchmark"
    shutil.copytree(folder, copy)
    for path in (copy / "datasets" / "files").iterdir():
        random_instance(9, "planted", n=6).save(path)
    data = next(instances_of(loaded(copy / "datasets" / "catalogue.py").Dataset))
    with pytest.raises(ValueError, match="is not the instance that was exported"):
        data.get_data()


@pytest.mark.usefixtures("benchopt")
def test_instances_of_the_catalogue_are_named_not_copied(tmp_path):
    from osscar_opt.instances.listing import catalogue

    entry = min((entry for entry in catalogue() if entry.shipped), key=lambda entry: entry.features["p"])
    export(tmp_path / "out", methods="greedy", instances=entry.name)
    assert not (tmp_path / "out" / "datasets" / "files").exists()
    found = list(instances_of(loaded(tmp_path / "out" / "datasets" / "catalogue.py").Dataset))
    assert [data.keep for data in found] == list(entry.pairs)
    assert found[0].get_data()["problem"].hash == entry.hash


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, problems):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="is not empty"):
        export(tmp_path / "full", methods="greedy", instances=problems)
    target = tmp_path / "new"
    with pytest.raises(UnknownMethodError):
        export(target, methods="gready", instances=problems)
    with pytest.raises(OptionError):
        export(target, methods="search:patiance=3", instances=problems)
    with pytest.raises(InputError, match="two methods would be written to solvers/greedy"):
        export(target, methods=["greedy", "greedy"], instances=problems)
    with pytest.raises(InputError, match="nothing to export"):
        export(target, methods=[], instances=problems)
    assert not target.exists()


@pytest.mark.skipif(importlib.util.find_spec("benchopt") is None, reason="needs benchopt")
def test_benchopt_runs_it(folder):
    command = [sys.executable, "-m", "benchopt", "run", str(folder), "--no-plot", "-n", "1", "-r", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list((folder / "outputs").glob("*.parquet"))
