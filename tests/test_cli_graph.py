"""`osscar-opt graph`: text, JSON and picture of a checkpoint's coupling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models_zoo import ZOO
from typer.testing import CliRunner

from osscar_opt.cli import app

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    made = tmp_path_factory.mktemp("checkpoints") / "llama"
    ZOO["llama"].build().save_pretrained(made)  # type: ignore[operator]
    return made


def test_text(folder: Path) -> None:
    done = runner.invoke(app, ["graph", str(folder)])
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()[:2]
    assert first == "LlamaForCausalLM: 4 sites to prune, 2 sets of channels left alone"
    names = ", ".join(f"model.layers.*.self_attn.{part}_proj" for part in "qkv")
    assert second.split(maxsplit=5)[1:4] == ["3", "heads", "×"]
    assert second.endswith(f"{names} -> model.layers.*.self_attn.o_proj")


def test_json_and_picture(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "coupling.png"
    done = runner.invoke(app, ["graph", str(folder), "--json", "--query-heads", "--out", str(picture)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    heads = document["sites"][0]
    assert (heads["kind"], heads["n"], heads["blocks"]) == ("heads", 6, [0, 0, 1, 1, 2, 2])
    assert ["model.layers.0.self_attn.q_proj.weight", 0] in heads["parameters"]
    assert any("keys stay" in refusal["why"] for refusal in document["left_alone"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_pictures_too() -> None:
    """A model that takes pictures gets one."""
    pytest.importorskip("transformers")
    from osscar_opt.torch import example_batch, trace_coupling

    for name in ("vit", "resnet_basic"):
        model = ZOO[name].build()
        assert trace_coupling(model, example_batch(model)).default_sites() == tuple(ZOO[name].sites)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "is not a folder with a pruned model: it has no config.json"),
        (["{folder}", "--out", "{empty}"], "it is a directory"),
        (["{folder}", "--out", "{empty}/no/picture.png"], "there is no directory"),
        (["{folder}", "--out", "{empty}/picture.xyz"], "end the name in one of .png, .svg, .pdf"),
    ],
)
def test_bad_input_gets_a_sentence(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    words = [word.format(folder=folder, empty=tmp_path) for word in arguments]
    done = runner.invoke(app, ["graph", *words])
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
