"""Rules that need a model as methods of `prune_model` and of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt.errors import LayerError, OptionError
from osscar_opt.torch import prune_model
from osscar_opt.torch.scores import MODEL_RULES

RULES = list(MODEL_RULES)


def model_of(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = (
        torch.nn.Linear(6, 10),
        torch.nn.ReLU(),
        torch.nn.Linear(10, 7),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 4),
    )
    return torch.nn.Sequential(*layers)


def batches_of() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(20, 6, generator=generator) for _ in range(3)]


def weights_of(model: torch.nn.Module) -> list[np.ndarray[Any, Any]]:
    return [value.detach().numpy() for value in model.parameters()]


@pytest.mark.parametrize("order", ["parallel", "sequential"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_s_name_is_its_scores_handed_over(rule: str, order: Any) -> None:
    by_name, by_hand = model_of(), model_of()
    made = MODEL_RULES[rule]
    table = made.make(by_hand, batches_of())
    report = prune_model(by_name, batches_of(), sparsity=0.5, method=rule, order=order)
    prune_model(
        by_hand, batches_of(), sparsity=0.5, method=made.method, options={made.option: table}, order=order
    )
    assert report.method == rule
    for a, b in zip(weights_of(by_name), weights_of(by_hand), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_refit_is_an_option_of_every_rule() -> None:
    for rule in RULES:
        plain, refitted = model_of(), model_of()
        kept = prune_model(plain, batches_of(), sparsity=0.5, method=rule, order="parallel")
        better = prune_model(
            refitted, batches_of(), sparsity=0.5, method=rule, order="parallel", options={"refit": True}
        )
        assert plain[2].weight.shape == refitted[2].weight.shape
        for a, b in zip(kept.rows, better.rows, strict=True):
            assert b.objective <= a.objective * (1 + 1e-9)


def test_scores_that_are_handed_over_are_taken() -> None:
    model = model_of()
    own = {"2": np.arange(10.0), "4": np.arange(7.0)}
    dense = model[0].weight.detach().clone()
    prune_model(model, batches_of(), keep=4, method="taylor", options={"scores": own}, order="parallel")
    torch.testing.assert_close(model[0].weight.detach(), dense[6:])


def test_only_the_sites_that_are_pruned_are_scored() -> None:
    model = model_of()
    report = prune_model(model, batches_of(), sparsity={"4": 0.5}, method="fpgm")
    assert [row.site for row in report.rows] == ["4"]
    assert model[2].in_features == 10


def test_mistakes_are_found_before_anything_runs() -> None:
    model = model_of()

    class Unread:
        def __iter__(self) -> Any:
            raise AssertionError("the batches were read")

    with pytest.raises(OptionError, match="no option 'refti'"):
        prune_model(model, Unread(), sparsity=0.5, method="taylor", options={"refti": True})
    with pytest.raises(OptionError, match="needs scores="):
        prune_model(model, Unread(), sparsity=0.5, method="scores")


def test_a_rule_that_does_not_apply_leaves_the_model_alone() -> None:
    model = torch.nn.Sequential(*model_of(), torch.nn.Softmax(-1))
    before = weights_of(model)
    with pytest.raises(LayerError, match="lrp has no rule for softmax"):
        prune_model(model, batches_of(), sparsity=0.5, method="lrp")
    for a, b in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_killed_run_goes_on_with_the_same_scores(tmp_path: Path) -> None:
    whole, resumed = model_of(), model_of()
    prune_model(whole, batches_of(), sparsity=0.5, method="taylor", folder=tmp_path / "whole")
    prune_model(resumed, batches_of(), sparsity=0.5, method="taylor", folder=tmp_path / "part")
    again = model_of()
    report = prune_model(again, batches_of(), sparsity=0.5, method="taylor", folder=tmp_path / "part")
    assert all(row.resumed for row in report.rows)
    for a, b in zip(weights_of(whole), weights_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
