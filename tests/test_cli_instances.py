"""osscar-opt instances: what it lists, writes, checks and records, and the page of the documentation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import osscar_opt
from osscar_opt.cli import app
from osscar_opt.instances import best_known, catalogue, records

DOCS = Path(__file__).parents[1] / "docs"
SMALL = "minilm-heads1-first8"


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSCAR_OPT_DATA", str(tmp_path / "own"))


def _run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["instances", *arguments])
    assert done.exit_code == code, done.output
    return done


def _json(*arguments: str, code: int = 0) -> Any:
    return json.loads(_run(*arguments, "--json", code=code).stdout)


def test_list_names_all_instances_and_what_is_proved() -> None:
    documents = _json("list")
    assert [document["name"] for document in documents] == list(catalogue().names)
    known = best_known()
    for document, entry in zip(documents, catalogue(), strict=True):
        for best, keep in zip(document["best"], entry.pairs, strict=True):
            found = known.get((entry.hash, keep))  # of some large recipes nothing is known
            assert best["keep"] == keep
            assert best["value"] == (None if found is None else found.value)
            assert found is not None or not entry.shipped
    text = _run("list", "heads").stdout
    assert SMALL in text.replace("\n", "")
    assert "pairs of instance and keep" in text


def test_show_tells_the_history() -> None:
    document = _json("show", SMALL)
    assert document["features"]["n"] == 8
    assert len(document["records"]) >= 3
    assert document["records"][0]["instance"] == SMALL
    assert "effective rank" in _run("show", SMALL).stdout
    wrong = _run("show", "minilm-heads1-frist8", code=2)
    assert f"did you mean '{SMALL}'?" in wrong.stderr


def test_get_writes_files_that_load(tmp_path: Path) -> None:
    written = _json("get", SMALL, "knapsack", "--out", str(tmp_path / "files"))
    assert len(written) == 1 + len(catalogue().select(["knapsack"]))
    assert osscar_opt.load(written[0]).hash in {entry.hash for entry in catalogue()}


def test_an_instance_is_solved_by_name_and_the_solution_submitted(tmp_path: Path) -> None:
    entry = catalogue()[SMALL]
    keep = entry.keeps[0]
    path = tmp_path / "mine.safetensors"
    solved = CliRunner().invoke(
        app, ["solve", SMALL, "-m", "exact", "--keep", str(keep), "--output", str(path), "--json"]
    )
    assert solved.exit_code == 0, solved.output
    best = best_known()[entry.hash, keep]
    assert json.loads(solved.stdout)["objective"] == pytest.approx(best.value, rel=1e-7)
    verified = CliRunner().invoke(app, ["verify", SMALL, str(path)])
    assert verified.exit_code == 0, verified.output

    known = _json("submit", str(path))
    assert not known["accepted"]
    assert "no improvement" in known["sentence"]
    count = len(records())
    nobody_knows = tmp_path / "records"
    alone = importlib.import_module("osscar_opt.instances.ledger")
    assert alone.records([nobody_knows]) == ()
    assert len(records()) == count


def test_verify_checks_and_says_what_is_wrong(tmp_path: Path) -> None:
    document = _json("verify", SMALL)
    assert document["counts"] == {"proved": 3, "bounded": 0, "value": 0, "missing": 0, "wrong": 0}
    entry = catalogue()[SMALL]
    best = best_known()[entry.hash, entry.keeps[0]]
    own = tmp_path / "own"
    own.mkdir()
    forged = best.record.to_dict() | {"value": best.value / 2}
    (own / "records.jsonl").write_text(json.dumps(forged) + "\n")
    failed = _run("verify", SMALL, code=1)
    assert "is worth" in failed.stdout
    assert "1 of 3 checks failed" in failed.stderr


def test_prove_records_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "fresh"
    accepted = _json("prove", SMALL, "--again", "--records", str(target), "--time-limit", "20")
    assert [document["accepted"] for document in accepted] == [
        False
    ] * 3  # the package knows all that already


def test_build_compares_a_generated_instance_with_its_file() -> None:
    document = _json("build", "correlated-8-s0")
    assert document[0]["outcome"] in ("identical", "equal_to_rounding")


def test_the_page_of_the_documentation_is_what_the_catalogue_says() -> None:
    spec = importlib.util.spec_from_file_location("make_instances", DOCS / "make_instances.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "instances.md").read_text(encoding="utf-8") == module.page(), (
        "run python docs/make_instances.py"
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_record_holds_and_proofs_that_were_not_kept_are_found_again() -> None:
    document = _json("verify", "shipped", "--regenerate", "--time-limit", "300")
    assert document["counts"]["wrong"] == 0
    assert document["counts"]["missing"] == 0


@pytest.mark.parametrize("part", range(8))
@pytest.mark.slow
def test_every_value_and_every_kept_certificate_holds(part: int) -> None:
    document = _json("verify", *catalogue().select(["shipped"]).names[part::8])
    assert document["counts"]["wrong"] == 0
    assert document["counts"]["missing"] == 0


def test_values_and_certificates_of_some_instances_hold() -> None:
    """Every eighth of the small ones; the slow tests take all."""
    small = [entry.name for entry in catalogue().select(["shipped"]) if entry.features["p"] <= 128]
    document = _json("verify", *small[::8])
    assert document["counts"]["wrong"] == 0
    assert document["counts"]["missing"] == 0
    assert document["counts"]["proved"] >= 20


def test_three_quarters_of_the_shipped_pairs_are_proved_and_the_others_bounded() -> None:
    known = best_known()
    best = [known[entry.hash, keep] for entry in catalogue().select(["shipped"]) for keep in entry.pairs]
    assert sum(one.proved for one in best) >= 0.75 * len(best)
    assert all(one.proof is not None and one.proof.certificate is not None for one in best)
    assert max(one.gap for one in best) < 1.0
