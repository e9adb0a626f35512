"""Records: what is submitted is recomputed, only improvements enter, and nothing that entered is lost."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from osscar_opt.errors import FormatError, InputError, SolverError
from osscar_opt.formulations.solution import BoundKind
from osscar_opt.instances import random_instance, save
from osscar_opt.instances.ledger import Record, append, best_known, read_records
from osscar_opt.instances.listing import Entry, catalogue
from osscar_opt.instances.submissions import prove, submit, submit_file
from osscar_opt.instances.verification import certificate_of, verify
from osscar_opt.testing import best_value_by_enumeration

catalogue_module = importlib.import_module("osscar_opt.instances.listing")
ledger = importlib.import_module("osscar_opt.instances.ledger")


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue of one instance and no records, in place of the package's."""
    shipped = tmp_path / "shipped"
    (shipped / "files").mkdir(parents=True)
    problem = random_instance(5, "correlated", n=11, group_sizes=2, q=3, keep=4)
    save(problem, shipped / "files" / "tiny.safetensors", keeps=[4, 7])
    made = Entry("tiny", "generated", "correlated", "", {}, problem.hash, (4, 7), {"n": 11}, shipped=True)
    (shipped / "catalogue.json").write_text(json.dumps({"version": 1, "instances": [made.to_json()]}))
    monkeypatch.setattr(catalogue_module, "_SHIPPED", shipped)
    monkeypatch.setattr(ledger, "_SHIPPED", shipped)
    monkeypatch.setenv("OSSCAR_OPT_DATA", str(tmp_path / "own"))
    assert catalogue()["tiny"] == made
    return made


def _key(entry: Entry, keep: int) -> tuple[str, int]:
    return entry.hash, keep


def test_a_proof_is_recorded_with_its_certificate_and_verified(entry: Entry, tmp_path: Path) -> None:
    outcome = submit(prove(entry, 4), entry, by="somebody")
    assert outcome.accepted
    assert outcome.before is None
    best = best_known()[_key(entry, 4)]
    assert best.proved
    assert best.gap == 0.0
    assert best.value == pytest.approx(best_value_by_enumeration(entry.load().with_keep(4)), rel=1e-9)
    assert best.record.by == "somebody"
    assert best.record.method == "exact"
    assert best.proof is not None
    assert certificate_of(best.proof) is not None
    states = {check.keep: check.state for check in verify(entry)}
    assert states == {4: "proved", 7: "missing"}


def test_only_improvements_enter(entry: Entry) -> None:
    problem = entry.load()
    rough = problem.solve("magnitude_refit", keep=4)
    assert submit(rough, entry).accepted
    again = submit(rough, entry)
    assert not again.accepted
    assert "no improvement" in again.sentence
    better = submit(problem.solve("exhaustive", keep=4), entry)  # the same or better, without a certificate
    assert better.accepted
    assert "was" in better.sentence
    assert not best_known()[_key(entry, 4)].proved
    bound = submit(prove(entry, 4), entry)  # nothing but the bound is new
    assert bound.accepted
    assert "bound" in bound.sentence
    assert "value" not in bound.sentence
    assert best_known()[_key(entry, 4)].proved
    assert not submit(prove(entry, 4), entry).accepted
    assert len(ledger.records()) == 3


def test_lies_are_refused(entry: Entry) -> None:
    honest = entry.load().solve("greedy", keep=4)
    with pytest.raises(SolverError, match="is worth"):
        submit(dataclasses.replace(honest, objective=honest.objective / 2), entry)
    crowded = dataclasses.replace(honest, support=np.ones(11, dtype=bool))
    with pytest.raises(SolverError, match="not feasible"):
        submit(crowded, entry)
    claimed = dataclasses.replace(honest, bound=honest.objective, bound_kind=BoundKind.CERTIFIED)
    assert submit(claimed, entry).record.bound is None  # type: ignore[union-attr]  # no proof, no bound
    proved = prove(entry, 7)
    of_another_keep = dataclasses.replace(
        honest, certificate=proved.certificate, bound=0.0, bound_kind=BoundKind.CERTIFIED
    )
    with pytest.raises(SolverError, match="does not hold"):
        submit(of_another_keep, entry)
    other = random_instance(6, "correlated", n=11, q=3, keep=4).solve("greedy")
    with pytest.raises(FormatError, match="not of tiny"):
        submit(other, entry)
    assert len(ledger.records()) == 1


def test_a_solution_file_finds_its_instance(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    entry.load().solve("exact", keep=4, certificate=True).save(path)
    assert submit_file(path, by="me").record.proved  # type: ignore[union-attr]
    random_instance(9, "planted", n=8).solve("greedy").save(path)
    with pytest.raises(InputError, match="no instance of the catalogue"):
        submit_file(path)


def test_a_tampered_record_or_certificate_is_found(entry: Entry, tmp_path: Path) -> None:
    submit(prove(entry, 4), entry)
    path = tmp_path / "own" / ledger.FILE
    line = json.loads(path.read_text())

    path.write_text(json.dumps(line | {"value": line["value"] * 0.9}) + "\n")
    check = next(verify(entry))
    assert check.state == "wrong"
    assert "is worth" in check.sentence

    path.write_text(json.dumps(line | {"kept": [0, 1, 2, 99]}) + "\n")
    assert next(verify(entry)).state == "wrong"

    path.write_text(json.dumps(line | {"kept": list(range(11))}) + "\n")
    assert "not feasible" in next(verify(entry)).sentence

    path.write_text(json.dumps(line) + "\n")
    proof = tmp_path / "own" / line["certificate"]["file"]
    proof.write_bytes(proof.read_bytes() + b" ")
    assert "not the certificate" in next(verify(entry)).sentence

    proof.unlink()
    assert next(verify(entry)).state == "value"
    assert next(verify(entry, regenerate=True)).state == "proved"


def test_damage_is_named_by_line_and_a_torn_line_is_passed_over(entry: Entry, tmp_path: Path) -> None:
    record = Record("tiny", entry.hash, 4, value=2.0, kept=(0, 1))
    path = append(record, tmp_path)
    with path.open("a") as file:
        file.write('{"instance": "ti')  # a crash in the middle of a line
    assert read_records(path) == [record]
    append(dataclasses.replace(record, value=1.0), tmp_path)  # which does not become part of the next
    assert [found.value for found in read_records(path)] == [2.0, 1.0]
    path.write_text('{"instance": 1}\n' + path.read_text())
    with pytest.raises(FormatError, match="line 1 is not a record"):
        read_records(path)


def _append_many(folder: str, start: int) -> None:
    for value in range(start, start + 20):
        append(Record("tiny", "ab", 4, value=float(value), kept=(0,)), folder)


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(str(tmp_path), 100 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    values = {record.value for record in read_records(tmp_path / ledger.FILE)}
    assert values == {100.0 * i + j for i in range(3) for j in range(20)}


def test_a_disk_that_refuses_leaves_the_records_as_they_were(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = append(Record("tiny", entry.hash, 4, value=2.0, kept=(0, 1)), tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger, "_write_certificate", full)
    described = {"file": "certificates/x", "sha256": "", "bytes": 1, "nodes": 1}
    with pytest.raises(OSError, match="No space"):
        append(Record("tiny", entry.hash, 4, 1.0, (0,), certificate=described), tmp_path, b"x")
    assert path.read_bytes() == before


def test_best_known_takes_the_least_value_and_the_largest_bound(tmp_path: Path) -> None:
    make = lambda value, bound: Record("tiny", "ab", 4, value=value, kept=(int(value),), bound=bound)  # noqa: E731
    for record in (make(3.0, 1.0), make(2.0, None), make(4.0, 1.5)):
        append(record, tmp_path)
    best = best_known([tmp_path])["ab", 4]
    assert (best.value, best.kept, best.bound, best.proved) == (2.0, (2,), 1.5, False)
    assert best.gap == pytest.approx(0.25)
    append(make(2.0, 2.0), tmp_path)
    assert best_known([tmp_path])["ab", 4].proved
