"""Two layers of the packaged language model: pruned, saved, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from osscar_opt.torch import load_pruned, perplexity, prune_model, save_pruned

pytestmark = pytest.mark.real


def test_two_layers_of_smollm2(tmp_path: Path) -> None:
    from osscar_opt.torch.extract_file import calibration_batches, load_language_model

    model, tokenizer, _ = load_language_model("smollm2")
    batches, _ = calibration_batches(tokenizer, None, windows=8, length=256, batch_size=4)
    held_out, _ = calibration_batches(tokenizer, None, windows=12, length=256, batch_size=12)
    unseen = held_out[0][8:]
    before = perplexity(model, unseen)
    report = prune_model(
        model,
        batches,
        sites=["model.layers.[34].mlp.down_proj", "model.layers.3.self_attn.o_proj"],
        sparsity={"neurons": 0.25, "heads": 1 / 3},
        multiple={"neurons": 64},
    )
    assert [(row.kind, row.kept) for row in report.rows] == [
        ("heads", 2),
        ("neurons", 1152),
        ("neurons", 1152),
    ]
    assert report.parameters_before - report.parameters_after == 2 * 384 * 3 * 576 + 64 * 576 * (
        3 + 1 + 1 + 3
    )
    after = perplexity(model, unseen)
    assert before < after < 1.5 * before
    assert not save_pruned(model, tmp_path / "smaller", report=report, tokenizer=tokenizer)
    again: Any = load_pruned(tmp_path / "smaller")
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=unseen[:1], use_cache=False).logits,
            model(input_ids=unseen[:1], use_cache=False).logits,
        )
