"""The command ``prune``, on a tiny language model in a folder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import models_zoo
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from osscar_opt.cli import comparing, pruning
from osscar_opt.cli._console import GuardedGroup
from osscar_opt.torch.checkpoint import load_pruned

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*was calibrated on")

app = typer.Typer(cls=GuardedGroup)
app.callback()(lambda: None)
app.command()(pruning.prune)
app.command()(comparing.compare)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    built: Any = models_zoo.ZOO["llama"].build()
    built.save_pretrained(folder)
    words = {f"w{number}": number for number in range(models_zoo.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    draw = random.Random(0)
    path.write_text(" ".join(f"w{draw.randrange(models_zoo.VOCABULARY)}" for _ in range(600)))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["prune", *(str(word) for word in words)], env={"COLUMNS": "80"})


def failed(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("osscar-opt: ")
    for word in words:
        assert word in line


def test_a_model_is_pruned_and_loads_again(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run(
        model, out, "--sparsity", 0.3, "--sites", "ffn", "--multiple", 8, "--text", text, "--windows", 8,
        "--length", 32, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert [(row["n"], row["kept"]) for row in said["rows"]] == [(70, 56), (70, 56)]
    assert said["plain_checkpoint"] is True
    assert said["calibration"] == {"text": "book.txt", "windows": 8, "length": 32}
    smaller: Any = load_pruned(out)
    assert smaller.config.intermediate_size == 56
    assert models_zoo.parameter_count(smaller) == said["parameters_after"] < said["parameters_before"]
    assert (out / "tokenizer.json").is_file()
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(out)
    batch = models_zoo.tokens(5)
    torch.testing.assert_close(models_zoo.forward(again, batch), models_zoo.forward(smaller, batch))


def test_the_table_and_a_work_folder(model: Path, text: Path, tmp_path: Path) -> None:
    words = [
        model,
        tmp_path / "a",
        "--keep",
        2,
        "--sites",
        "heads",
        "--text",
        text,
        "--windows",
        4,
        "--length",
        32,
    ]
    words += ["--order", "parallel", "-m", "random", "-o", "seed=3", "--folder", tmp_path / "work"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "model.layers.0.self_attn.o_proj  heads" in result.stdout
    assert "written to:" in result.stdout
    words[1] = tmp_path / "b"
    assert "(resumed)" in run(*words).stdout
    words[words.index("seed=3")] = "seed=4"
    words[1] = tmp_path / "c"
    failed(run(*words), 2, "options")
    assert not (tmp_path / "c").exists()


def test_bad_calls(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("precious")
    out = tmp_path / "out"
    failed(run(model, out), 2, "--sparsity")
    failed(run(model, out, "--sparsity", 0.5, "--keep", 3), 2, "either")
    failed(run(model, tmp_path / "full", "--sparsity", 0.5), 2, "not an empty folder")
    failed(run(model, tmp_path / "no" / "where", "--sparsity", 0.5), 2, "no directory")
    failed(run(tmp_path, out, "--sparsity", 0.5), 2, "not a Hugging Face checkpoint folder")
    failed(run(model, out, "--sparsity", 0.5, "-o", "sede=1"), 2, "sede")
    failed(run(model, out, "--sparsity", 0.5, "--text", text, "--windows", 400), 2, "too few")
    small = ["--text", text, "--windows", 2, "--length", 16]
    failed(
        run(model, out, "--sparsity", 0.5, "--sites", "model.layers.0.mlp.downproj", *small), 2, "down_proj"
    )
    assert not out.exists()


def test_a_rule_that_needs_the_model(model: Path, text: Path, tmp_path: Path) -> None:
    words = (model, tmp_path / "out", "--sparsity", "0.5", "--sites", "ffn", "--text", text, "--windows", "4")
    small = ("--length", "64", "--batch-size", "2", "--json")
    result = run(*words, "--method", "taylor", "-o", "refit=yes", *small)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["method"] == "taylor"
    assert document["options"]["options"]["refit"] == "True"
    failed(
        run(*words[:1], tmp_path / "other", *words[2:], "-m", "taylor", "-o", "refti=yes", *small), 2, "refti"
    )


def test_all_rules_on_a_layer_of_a_checkpoint(model: Path, text: Path, tmp_path: Path) -> None:
    picture = tmp_path / "rules.svg"
    words = ["compare", model, "--layer", "model.layers.0.mlp.down_proj", "--sparsity", "0.5", "--text", text]
    words += ["--windows", "1", "--time-limit", "5", "--out", picture, "--json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    named = {row["rule"] for row in document["rows"]}
    assert named >= {
        "osscar",
        "wanda",
        "taylor",
        "nvit",
        "head_importance",
        "loraprune",
        "chip",
        "fpgm",
        "udfc",
    }
    skipped = {row["rule"]: row["why"] for row in document["skipped"]}
    assert skipped.keys() == {"flap", "lrp", "beta_rank"}
    assert "at least two samples" in skipped["beta_rank"]  # there is one window
    assert picture.stat().st_size > 5000


def test_a_layer_that_is_no_site(model: Path, text: Path) -> None:
    words = [
        "compare",
        str(model),
        "--layer",
        "nowhere",
        "--sparsity",
        "0.5",
        "--text",
        str(text),
        "--windows",
        "1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
