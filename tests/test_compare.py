"""All rules side by side: their table against the registry, rows against solves, the page, the command."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from osscar_opt import Problem, solvers
from osscar_opt.bench.compare import compare, compare_layer
from osscar_opt.bench.comparison import Comparison
from osscar_opt.bench.rules import OUT_OF_SCOPE, RULES, rule, why_not
from osscar_opt.cli import app
from osscar_opt.errors import InputError, LayerError, OptionError, UnknownMethodError
from osscar_opt.instances import random_instance
from osscar_opt.torch.scores import MODEL_RULES

DOCS = Path(__file__).parents[1] / "docs"
PROVING = {"auto", "exact", "highs", "cvxpy", "exhaustive"}
QUICK = ["magnitude", "wanda", "sparsegpt", "ziplm", "greedy", "osscar"]


def problem_of(seed: int = 0, n: int = 9, q: int = 4, keep: int = 4, **more: Any) -> Problem:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(80, n)) @ rng.normal(size=(n, n)) + 2.0 * rng.normal(size=n)
    return Problem.from_data(inputs, rng.normal(size=(n, q)), keep=keep, name="made", **more)


def value_from_scratch(problem: Problem, support: np.ndarray) -> float:
    """Objective of the best weights on a support, by a plain solve."""
    rows = support[problem.groups.group_of_row]
    cross = problem.cross[rows]
    return problem.constant - 0.5 * float(
        np.trace(cross.T @ np.linalg.solve(problem.gram[np.ix_(rows, rows)], cross))
    )


# ------------------------------------------------------------------------------------------------ the table of rules


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    names = [found.name for found in RULES]
    assert len(set(names)) == len(names)
    own = {info.name for info in solvers() if info.source.startswith("osscar_opt.")}
    assert {found.method for found in RULES} == own
    assert own <= set(names)
    assert set(names) - own == set(MODEL_RULES) - {"udfc"}


def test_rows_say_where_methods_live_and_what_takes_their_arrays() -> None:
    for found in RULES:
        assert importlib.util.find_spec(found.where) is not None, found.name
        info = solvers()[found.method]
        assert info.required_options == ((found.option,) if found.option else ()), found.name
        if found.name in MODEL_RULES:
            taken = MODEL_RULES[found.name]
            assert (taken.method, taken.option) == (found.method, found.option)
            assert taken.make.__module__.startswith("osscar_opt.torch.scores.")
        elif found.name != "scores":
            assert info.source.startswith(found.where + ":"), found.name


def test_only_rules_without_a_refit_of_their_own_have_the_option() -> None:
    for found in RULES:
        options = {option.name for option in solvers()[found.method].options}
        if not found.refits and found.name != "magnitude":
            assert "refit" in options, found.name


def test_what_is_left_out_has_one_sentence_each() -> None:
    assert all(name and why.endswith(".") and why.count(". ") == 0 for name, why in OUT_OF_SCOPE)


def test_why_not_names_what_is_missing() -> None:
    plain, centred = problem_of(), problem_of(intercept=True)
    assert "means" in why_not(rule("flap"), plain)
    assert why_not(rule("flap"), centred) == ""
    assert "gradients" in why_not(rule("taylor"), plain)
    assert why_not(rule("taylor"), plain, frozenset({"taylor"})) == ""
    unequal = Problem(np.eye(3), np.ones((3, 2)), groups=[0, 0, 1], keep=1)
    assert "unequal_groups" in why_not(rule("udfc"), unequal, frozenset({"udfc"}))


def _page_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_methods", DOCS / "make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_table_says() -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert text == _page_maker().page(text), "run: python docs/make_methods.py"
    for found in RULES:
        assert f"`{'.'.join(found.where.split('.')[-2:])}`" in text


# ------------------------------------------------------------------------------------------------ comparisons


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_what_the_methods_give(seed: int) -> None:
    problem = problem_of(seed, intercept=True)
    found = compare(problem)
    names = [row.rule.name for row in found.rows]
    assert sorted(names) == sorted(
        other.name
        for other in RULES
        if other.name not in PROVING | {"scores", "magnitude_refit"} | set(MODEL_RULES)
    )
    for row in found.rows:
        solution = problem.solve(row.rule.method, progress=False)
        np.testing.assert_array_equal(row.support, solution.support)
        assert row.refitted == pytest.approx(value_from_scratch(problem, row.support), rel=1e-9)
        if row.rule.refits:
            assert row.published is None
        else:
            assert row.published == pytest.approx(solution.objective, rel=1e-12)
            assert row.refitted <= row.published * (1 + 1e-9)
    refitted = [row.refitted for row in found.rows if row.refitted is not None]
    assert all(a <= b * (1 + 1e-8) for a, b in itertools.pairwise(refitted))
    assert {name for name, _ in found.skipped} == set(MODEL_RULES)


def test_exact_gives_a_bound_and_comes_first() -> None:
    problem = problem_of(5)
    found = compare(problem, rules=QUICK, exact=True)
    assert found.rows[0].rule.name == "exact"
    assert found.bound == pytest.approx(found.rows[0].refitted, rel=1e-6)
    assert found.best == pytest.approx(problem.solve("exhaustive").objective, rel=1e-9)
    assert found.excess(found.rows[0].refitted) == 0.0
    assert "no choice of groups has less than" in found.table()


def test_arrays_from_elsewhere_join_in() -> None:
    problem = problem_of(2)
    found = compare(problem, rules=["taylor", "udfc"], arrays={"taylor": np.arange(9.0)})
    assert [row.rule.name for row in found.rows] == ["taylor"]
    assert np.flatnonzero(found.rows[0].support).tolist() == [5, 6, 7, 8]
    assert found.skipped == (("udfc", "needs producers' weights: give the model and the layer"),)


def test_limits_other_than_a_keep() -> None:
    for family in ("knapsack", "blocks"):
        problem = random_instance(1, family, n=8, q=3)
        found = compare(problem)
        assert len(found.rows) > 10
        for row in found.rows:
            assert problem.feasible(row.support), (family, row.rule.name)
            assert row.refitted == pytest.approx(problem.value(row.support), rel=1e-9)


def test_bad_calls_say_what_to_do() -> None:
    with pytest.raises(UnknownMethodError, match="no rule 'wandering'"):
        compare(problem_of(), rules=["wandering"])
    with pytest.raises(InputError, match="no limit"):
        compare(Problem(np.eye(3), np.ones((3, 2))), rules=["greedy"])


def test_a_rule_that_fails_costs_its_row_alone() -> None:
    def broken(problem: Problem) -> Any:
        raise ValueError("no scores today")

    found = compare(problem_of(), rules=["taylor", "greedy"], arrays={"taylor": broken})
    assert [row.rule.name for row in found.rows] == ["greedy"]
    assert found.skipped[0][0] == "taylor"
    assert "no scores today" in found.skipped[0][1]


def test_arrays_that_nobody_takes_or_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(UnknownMethodError, match="no rule 'tailor'"):
        compare(problem_of(), arrays={"tailor": np.ones(9)})
    with pytest.raises(InputError, match="needs none"):
        compare(problem_of(), arrays={"wanda": np.ones(9)})
    with pytest.raises(OptionError, match="one number for each of the 9 groups"):
        compare(problem_of(), rules=["taylor"], arrays={"taylor": np.ones(8)})
    assert "arrays={'scores'" in compare(problem_of(), rules=["scores", "greedy"]).skipped[0][1]


def test_table_json_and_picture(tmp_path: Path) -> None:
    found = compare(problem_of(3), rules=[*QUICK, "flap"], exact=True)
    text = found.table()
    assert str(found) == text
    assert all(row.rule.name in text for row in found.rows)
    assert "flap: needs the means" in text
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["rule"] for row in document["rows"]] == [row.rule.name for row in found.rows]
    assert document["rows"][0]["kept"] == np.flatnonzero(found.rows[0].support).tolist()
    axis = found.plot()
    assert [label.get_text() for label in axis.get_yticklabels()] == [row.rule.name for row in found.rows]
    axis.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_a_problem_without_error_has_a_table_and_a_picture() -> None:
    found = compare(Problem(np.eye(2), np.zeros((2, 1)), keep=1), rules=["greedy", "wanda"])
    assert found.best == 0.0
    assert "greedy" in found.table()
    json.dumps(found.to_dict(), allow_nan=False)


def test_overlap_and_excess() -> None:
    problem = Problem(np.eye(3), dense_weights=[[1.0], [3.0], [2.0]], keep=2)
    found = compare(problem, rules=["greedy", "taylor"], arrays={"taylor": [3.0, 2.0, 1.0]})
    assert [found.overlap(row) for row in found.rows] == [1.0, 0.5]
    assert found.excess(found.rows[1].refitted) == pytest.approx(3.0)
    assert found.relative(found.rows[1].refitted) == pytest.approx(2.0 / 7.0)
    assert isinstance(found, Comparison)


# ------------------------------------------------------------------------------------------------ a model and a layer


def _model() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))
    return model, [torch.randn(30, 6) for _ in range(3)]


def test_a_layer_of_a_model_takes_all_rules() -> None:
    model, batches = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = compare_layer(model, "2", batches, sparsity=0.5, time_limit=5)
    assert {row.rule.name for row in found.rows} >= set(MODEL_RULES) | {"flap", "osscar"}
    assert found.skipped == ()
    assert found.problem.keep == 5
    for name, made in MODEL_RULES.items():
        row = next(row for row in found.rows if row.rule.name == name)
        alone = found.problem.solve(made.method, **{made.option: made.make(model, batches)["2"]})
        np.testing.assert_array_equal(row.support, alone.support)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_is_not_there() -> None:
    model, batches = _model()
    with pytest.raises(LayerError, match="no site"):
        compare_layer(model, "3", batches, sparsity=0.5)
    two = torch.nn.Sequential(*model, torch.nn.ReLU(), torch.nn.Linear(3, 4))
    with pytest.raises(LayerError, match="stands for 2 sites"):
        compare_layer(two, "neurons", batches, sparsity=0.5)
    with pytest.raises(UnknownMethodError, match="no rule 'wandering'"):
        compare_layer(model, "2", batches, sparsity=0.5, rules=["wandering"])
    with pytest.raises(InputError, match="give either sparsity"):
        compare_layer(model, "2", batches)
    with pytest.raises(LayerError, match="no batches"):
        compare_layer(model, "2", [], sparsity=0.5)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(tmp_path: Path) -> None:
    file, picture = tmp_path / "layer.safetensors", tmp_path / "picture.png"
    problem_of(4).save(file)
    words = [
        "compare",
        str(file),
        "--keep",
        "3",
        "-r",
        "wanda",
        "-r",
        "osscar",
        "--exact",
        "--out",
        str(picture),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {row["rule"] for row in document["rows"]} == {"exact", "wanda", "osscar"}
    assert document["keep"] == 3
    assert math.isfinite(document["bound"])
    assert picture.stat().st_size > 5000
    plain = CliRunner().invoke(app, ["compare", str(file), "-r", "osscar"])
    assert "4 of 9 groups stay" in plain.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "picture.txt"], "cannot draw"),
        (["-r", "wandering"], "no rule 'wandering'"),
        (["--keep", "3", "--sparsity", "0.5"], "say the same thing"),
        (["--layer", "fc"], "give either --sparsity"),
        (["--windows", "4"], "--windows goes with --layer"),
        (["--damping", "0.1"], "--damping goes with --layer"),
    ],
)
def test_the_command_refuses(tmp_path: Path, words: list[str], said: str) -> None:
    file = tmp_path / "layer.safetensors"
    problem_of(4).save(file)
    result = CliRunner().invoke(app, ["compare", str(file), *words])
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_command_asks_for_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "layer.safetensors"
    Problem(np.eye(3), np.ones((3, 2))).save(file)
    result = CliRunner().invoke(app, ["compare", str(file)])
    assert result.exit_code == 2
    assert "give --keep or --sparsity" in result.stderr


def test_the_command_asks_which_layer_of_a_model(tmp_path: Path) -> None:
    for model in (str(tmp_path), "smollm2"):
        result = CliRunner().invoke(app, ["compare", model, "--sparsity", "0.5"])
        assert result.exit_code == 2
        assert "say which layer" in result.stderr
