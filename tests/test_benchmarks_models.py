"""The scripts in benchmarks/ for whole models, on tiny models of the zoo instead of the real ones."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models_zoo import ZOO

from osscar_opt.torch.packaged.networks import Network

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LENGTH = 12


class Tokenizer:
    """A token for each letter."""

    eos_token_id = 2

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 90 for letter in text]}

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def language(*_: Any) -> tuple[Any, Any, str]:
    return ZOO["llama"].build(), Tokenizer(), "tiny"


def windows(
    tokenizer: Any, count: int, length: int = LENGTH, batch_size: int = 4, *, blank_lines: bool = False
) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_ids": part}
        for part in torch.randint(3, 93, (count, LENGTH), generator=draw).split(batch_size)
    ]


def test_whole_model(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("whole_model")
    monkeypatch.setattr(module, "load_language_model", language)
    monkeypatch.setattr(module, "calibration", windows)
    texts = {text: torch.randint(3, 93, (2, LENGTH)) for text in module.TEXTS}
    monkeypatch.setattr(module, "held_out", lambda tokenizer, count: texts)
    module._material.cache_clear()
    out = tmp_path / "whole.jsonl"
    command = ["whole_model.py", "--out", str(out), "--windows", "8", "--eval-windows", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "ffn25", "--save", str(tmp_path / "models")])
    module.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["method"] for row in rows] == ["", *(way.name for way in (*module.WAYS, module.LIGHTER))]
    dense, *pruned = rows
    assert all(row["parameters"] < dense["parameters"] for row in pruned)
    by_method = {row["method"]: row for row in pruned}
    relative = {method: sum(row["relative"]) for method, row in by_method.items()}
    assert relative["osscar parallel"] <= relative["magnitude_refit"] < relative["magnitude"]
    assert len(list((tmp_path / "models").iterdir())) == len(module.WAYS) + 1
    assert "| 25 % of FFN neurons | osscar sequential, student |" in capsys.readouterr().out

    monkeypatch.setattr(module, "prune_and_measure", lambda *_: pytest.fail("what is done is not done again"))
    module.main()
    module._material.cache_clear()


def test_pipeline_time(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("pipeline_time")
    monkeypatch.setattr(module, "load_language_model", language)
    monkeypatch.setattr(module, "calibration", windows)
    monkeypatch.setattr(sys, "argv", ["pipeline_time.py", "--windows", "8"])
    module.main()
    captured = capsys.readouterr()
    assert "median ratio" in captured.out
    assert "parts, in units of two passes: collect" in captured.err


def test_generation(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("generation")
    for name, small in (("PROMPT", 20), ("SHORT_PROMPT", 5), ("NEW", 4)):
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(module, "load_language_model", language)
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, generator: torch.full(shape, 7))
    monkeypatch.setattr(sys, "argv", ["generation.py", "--neurons", "35", "--groups", "2", "--repeats", "2"])
    module.main()
    out = capsys.readouterr().out
    assert "| 35 FFN neurons | 0." in out
    assert "| 2 KV groups | 0." in out


def test_networks_of_pictures(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("cnn")
    models = script("real_models")
    inner = ("features.2.conv.2", "features.3.conv.2", "features.4.conv.2")
    network = Network("tiny", ZOO["mobilenet_v2"].build, (127.0,) * 3, (64.0,) * 3, inner)
    monkeypatch.setattr(module, "NETWORKS", {"tiny": network})
    monkeypatch.setattr(module, "sizes", lambda model: models.sizes(model, pixels=32))
    pictures = torch.randint(0, 256, (24, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    monkeypatch.setattr(module, "_pictures", lambda views: (pictures[:16], pictures[16:]))
    module._dense_logits.cache_clear()
    out = tmp_path / "cnn.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["cnn.py", "--out", str(out), "--only", "tiny/osscar par", "tiny/magnitude"]
    )
    module.main()
    rows = {row["method"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["dense"]["multiply_adds"] > rows["osscar parallel"]["multiply_adds"] > 0
    assert rows["osscar parallel"]["kl"] < rows["magnitude"]["kl"]
    assert "| tiny | osscar parallel |" in capsys.readouterr().out
    module._dense_logits.cache_clear()


def test_rules_on_whole_models(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("rules")
    built = language()[0]
    before = {name: value.clone() for name, value in built.state_dict().items()}
    inner = ("features.2.conv.2", "features.3.conv.2")
    network = Network("tiny", ZOO["mobilenet_v2"].build, (127.0,) * 3, (64.0,) * 3, inner)
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (24, 3, 32, 32), generator=draw).byte()
    monkeypatch.setattr(module, "load_language_model", lambda _: (built, Tokenizer(), "tiny"))
    monkeypatch.setattr(module, "calibration", windows)
    texts = {text: torch.randint(3, 93, (2, LENGTH), generator=draw) for text in module.TEXTS}
    monkeypatch.setattr(module, "held_out", lambda tokenizer, count: texts)
    monkeypatch.setattr(module, "NETWORKS", {module.NETWORK: network})
    monkeypatch.setattr(module, "calibration_pictures", lambda views: pictures[:16])
    monkeypatch.setattr(module, "held_out_pictures", lambda: pictures[16:])
    cases = tuple(
        module.Case(c.name, c.said, c.model, inner if c.model == module.NETWORK else c.sites, 0.5)
        for c in module.CASES
        if c.name != "ffn25"
    )
    monkeypatch.setattr(module, "CASES", cases)
    caches = (module.subject, module.problems, module.tables)
    for cache in caches:
        cache.cache_clear()
    out = tmp_path / "rules.jsonl"
    command = ["rules.py", "--out", str(out), "--windows", "8", "--score-windows", "8", "--eval-windows", "2"]
    only = [
        f"{c.name}/{rule}" for c in cases for rule in ("wanda", "flap", "ziplm", "taylor", "lrp", "osscar")
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--only", *only])
    module.main()
    rows = {(row["case"], row["method"]): row for row in map(json.loads, out.read_text().splitlines())}
    for case in cases:
        errors = {method: row.get("objective") for (name, method), row in rows.items() if name == case.name}
        for label in ("wanda", "flap", "ziplm", "taylor"):
            assert errors[f"{label}, refitted"] <= errors[f"{label}, as published"] * (1 + 1e-6), (
                case,
                label,
            )
        assert errors["osscar, refitted"] <= errors["wanda, refitted"] * (1 + 1e-9)
        assert errors["osscar, with biases, refitted"] <= errors["flap, refitted"] * (1 + 1e-9)
        assert (rows[case.name, "lrp, refitted"]["status"] == "done") == (case.model == module.NETWORK)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    said = capsys.readouterr().out
    assert "### 1 of 3 KV groups" in said
    assert "not applicable: lrp has no rule for" in said
    monkeypatch.setattr(module, "pruned", lambda *_: pytest.fail("what is done is not done again"))
    module.main()
    for cache in caches:
        cache.cache_clear()
