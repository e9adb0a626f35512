"""The catalogue that the package ships: every file, every feature, how instances are named and chosen."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osscar_opt.errors import FormatError, InputError
from osscar_opt.instances.features import features
from osscar_opt.instances.format import instance_info, save
from osscar_opt.instances.generators import random_instance
from osscar_opt.instances.listing import (
    _SHIPPED,
    Catalogue,
    Entry,
    _read,
    catalogue,
    data_folder,
    find,
)

SHIPPED = [entry for entry in catalogue() if entry.shipped]
MEGABYTES = 15


def test_there_are_enough_and_all_kinds_of_them() -> None:
    real = [entry for entry in SHIPPED if entry.kind == "real"]
    generated = [entry for entry in SHIPPED if entry.kind == "generated"]
    assert len(real) >= 60
    assert len(generated) >= 40
    assert {entry.family for entry in real} >= {"ffn", "heads", "channels"}
    assert len({entry.family for entry in generated}) >= 14
    assert len(catalogue()) - len(SHIPPED) >= 10
    sizes = [entry.features["n"] for entry in real]
    assert min(sizes) <= 8
    assert max(sizes) >= 256
    assert {entry.features["damping"] for entry in real} >= {1e-3, 1e-2, 1e-1}
    assert max(entry.features["p"] for entry in catalogue()) == 12288


def test_names_and_hashes_are_unique_and_files_fit_the_budget() -> None:
    names = catalogue().names
    assert len(set(names)) == len(names)
    assert all(
        name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names
    )
    hashes = [entry.hash for entry in SHIPPED]
    assert all(len(text) == 64 for text in hashes)
    assert len(set(hashes)) == len(hashes)
    files = list((_SHIPPED / "files").iterdir())
    assert {path.name for path in files} == {entry.path.name for entry in SHIPPED}
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_a_shipped_file_is_what_the_catalogue_says(entry: Entry) -> None:
    problem = entry.load()  # compares the hash
    assert problem.name == entry.name
    assert problem.keep is None
    info = instance_info(entry.path)
    assert info.keeps == entry.keeps
    assert info.dtype == ("float32" if entry.kind == "real" else "float64")
    said = problem.provenance
    assert said["recipe"] == entry.recipe
    assert said["source_in_words"] == entry.source
    if entry.kind == "real":
        assert {"model", "layer", "calibration_rows", "damping", "torch"} <= set(said)
        assert said["damping"] == entry.features["damping"]
    for keep in entry.keeps:
        assert 0 < keep < problem.n
        assert problem.with_keep(keep).keep == keep  # InfeasibleError, if what always stays passed it
    assert bool(entry.keeps) != bool({"budget", "blocks"} & problem.features)
    agree(features(problem), entry.features)


def agree(found: dict[str, Any], stated: Any) -> None:
    assert set(stated) == set(found) | {"damping"}
    for name, value in found.items():
        # A condition number of 1e10 has only six digits that do not depend on the machine.
        tolerance = 1e-3 if name.startswith("condition") else 1e-6
        expected = value if isinstance(value, list) or value is None else pytest.approx(value, rel=tolerance)
        assert stated[name] == expected, name


def test_features_of_a_known_problem() -> None:
    from osscar_opt import Problem

    gram = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 4.0]])  # eigenvalues 1, 3, 4
    found = features(Problem(gram, dense_weights=np.ones((3, 2)), groups=[0, 0, 1], costs=[1, 1], budget=1))
    assert found["group_sizes"] == [1, 2]
    assert found["limits"] == ["budget"]
    assert found["condition"] == pytest.approx(4.0)
    assert found["condition_equilibrated"] == pytest.approx(3.0)  # 0.5, 1, 1.5
    shares = np.array([1.0, 3.0, 4.0]) / 8
    assert found["effective_rank"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
    assert found["loss_of_all"] == pytest.approx(10.0)
    assert found["additivity"] == pytest.approx(1.0)  # no gram between the groups


def test_additivity_says_how_much_groups_replace_each_other() -> None:
    alike = random_instance(0, "near_duplicates", n=12)
    apart = random_instance(0, "correlated", n=12, rho=0.1)
    assert features(alike)["additivity"] < 0.1 < features(apart)["additivity"] <= 1.2


def test_features_leave_spectra_of_large_ones_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("osscar_opt.instances.features"), "SPECTRAL_ROWS", 7)
    found = features(random_instance(0, "correlated", n=8))
    assert found["condition"] is None
    assert found["additivity"] is None
    assert found["loss_of_all"] > 0


def test_choosing() -> None:
    everything = catalogue()
    assert {entry.kind for entry in everything.select(["real"])} == {"real"}
    assert set(everything.select(["shipped"]).names) == {entry.name for entry in SHIPPED}
    assert not any(entry.shipped for entry in everything.select(["recipe"]))
    chosen = everything.select(["planted", "minilm-heads*"])
    assert {entry.family for entry in chosen} == {"planted", "heads"}
    assert list(chosen.names) == [name for name in everything.names if name in chosen.names]  # its order
    assert isinstance(chosen, Catalogue)
    assert isinstance(everything[:3], Catalogue)
    assert everything["minilm-heads0"].features["n"] == 12
    assert everything.select("shipped") == everything.select(["shipped"])
    assert find(SHIPPED[0].hash) == SHIPPED[0]
    assert find("") is None
    assert find("0" * 64) is None
    assert everything[0] in set(everything)  # entries can be hashed
    assert "minilm-heads0" in repr(everything)


def test_sentences() -> None:
    with pytest.raises(InputError) as caught:
        catalogue()["minilm-head0"]
    assert str(caught.value) == "there is no instance 'minilm-head0'; did you mean 'minilm-heads0'?"
    with pytest.raises(InputError) as caught:
        catalogue().select(["real", "plonted"])
    assert str(caught.value) == "no instance of the catalogue fits 'plonted'; did you mean 'planted'?"
    with pytest.raises(InputError, match="osscar-opt instances list shows them all"):
        catalogue().select(["%%%%"])


def test_a_recipe_must_be_built_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSSCAR_OPT_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    recipe = catalogue().select(["recipe"])[0]
    assert recipe.path.is_relative_to(tmp_path)
    with pytest.raises(InputError, match=f"run osscar-opt instances build {recipe.name}"):
        recipe.load()


def test_another_problem_in_a_shipped_file_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = SHIPPED[0].path.read_bytes()
    monkeypatch.setattr(importlib.import_module("osscar_opt.instances.listing"), "_SHIPPED", tmp_path)
    (tmp_path / "files").mkdir()
    entry = replace(SHIPPED[0], name="other")
    save(random_instance(0, "planted"), entry.path)
    with pytest.raises(FormatError, match=r"other\.safetensors does not hold the problem of the catalogue"):
        entry.load()
    entry.path.write_bytes(whole[:-10])
    with pytest.raises(FormatError):
        entry.load()


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    assert _read(tmp_path / "none.json") == ()
    for number, (text, said) in enumerate(
        [
            ("{", "is not a catalogue"),
            ("[]", "is not a catalogue"),
            (json.dumps({"version": 2}), "version 2"),
            (json.dumps({"version": 1, "instances": [{"name": "a"}]}), "is not a catalogue"),
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(FormatError, match=said):
            _read(path)


def test_entries_survive_json() -> None:
    for entry in catalogue():
        assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


# ------------------------------------------------------------------------------------- the script that makes it all


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # importing the script sets it: put back afterwards
    return importlib.import_module("make_catalogue")


def test_the_list_is_what_the_script_says(script: Any) -> None:
    plans = script.plans()
    assert [plan.name for plan in plans] == list(catalogue().names)
    for plan, entry in zip(plans, catalogue(), strict=True):
        assert script.as_read(plan.recipe) == entry.recipe
        assert (plan.kind, plan.family, plan.source) == (entry.kind, entry.family, entry.source)
        assert plan.shipped == entry.shipped
        assert plan.keeps(entry.features["n"]) == entry.keeps


def test_what_is_made_is_not_made_again(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("osscar_opt.instances.listing")
    monkeypatch.setattr(module, "_SHIPPED", tmp_path)
    monkeypatch.setattr(script, "DATA", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_catalogue.py", "--only", "planted-16-*", "knapsack-16-*"])
    script.main()
    assert "2 files" in capsys.readouterr().out
    made = [entry for entry in _read(tmp_path / "catalogue.json") if entry.shipped]
    assert [entry.name for entry in made] == ["planted-16-s0", "knapsack-16-s0"]
    assert all(entry.load().name == entry.name for entry in made)

    monkeypatch.setattr(script, "make", lambda plan: pytest.fail("made again"))
    script.main()
    (tmp_path / "files" / "planted-16-s0.safetensors").unlink()
    again: list[str] = []
    monkeypatch.setattr(script, "make", lambda plan: again.append(plan.name) or made[0])
    script.main()
    assert again == ["planted-16-s0"]
