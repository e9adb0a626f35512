"""Units that several layers read: one problem, against the outputs of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt import Problem
from osscar_opt.errors import InputError, LayerError
from osscar_opt.torch.apply import write_layer
from osscar_opt.torch.moments import LayerMoments
from osscar_opt.torch.sites import SitePart, site_problem, site_solution

UNITS = 5


def _layers() -> dict[str, Any]:
    torch.manual_seed(0)
    layers = {
        "conv": torch.nn.Conv2d(UNITS, 3, (2, 1)),
        "joined": torch.nn.Conv2d(UNITS + 2, 4, 1, bias=False),  # reads two channels of others besides
        "grouped": torch.nn.Conv2d(UNITS, UNITS, 3, padding=1, groups=UNITS),
    }
    return {name: layer.double() for name, layer in layers.items()}


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(6, UNITS, 7, 6, generator=generator, dtype=torch.float64) + 1.0
    others = torch.randn(6, 2, 7, 6, generator=generator, dtype=torch.float64)
    return shared, others


def _inputs(shared: torch.Tensor, others: torch.Tensor) -> dict[str, torch.Tensor]:
    mixed = torch.cat([others[:, :1], shared, others[:, 1:]], dim=1)
    return {"conv": shared, "joined": mixed, "grouped": shared}


UNIT_OF_CHANNEL = {
    "conv": np.arange(UNITS),
    "joined": np.array([-1, *range(UNITS), -1]),
    "grouped": np.arange(UNITS),
}


def _parts(layers: dict[str, Any], teacher: bool = False) -> list[SitePart]:
    shared, others = _images()
    parts = []
    for name, x in _inputs(shared, others).items():
        moments = LayerMoments(layers[name], name, teacher=teacher)
        moments.add(x, *([x * 1.1 + 0.2] if teacher else []))
        parts.append((moments, UNIT_OF_CHANNEL[name]))
    return parts


@pytest.mark.parametrize("teacher", [False, True])
def test_the_objective_is_the_error_of_all_consumers(teacher: bool) -> None:
    layers = _layers()
    parts = _parts(layers, teacher)
    problem = site_problem(parts, keep=3, damping=1e-12)
    assert (problem.n, problem.keep, problem.features) == (UNITS + 1, 4, {"forced", "unequal_groups"})
    solution = problem.solve("greedy")
    apart = site_solution(solution, parts)
    assert apart.units.sum() == 3
    x = _inputs(*_images())
    with torch.no_grad():
        goals = {name: layer(1.1 * x[name] + 0.2 if teacher else x[name]) for name, layer in layers.items()}
    error = 0.0
    for name, layer in layers.items():
        write_layer(layer, *apart.layers[name], name)
        weight = layer.weight.detach().clone()
        if name == "joined":
            assert weight[:, [0, UNITS + 1]].any()
            weight = weight[:, 1:-1]
        gone = torch.from_numpy(~apart.units)
        assert not (weight[gone] if name == "grouped" else weight[:, gone]).any()
        with torch.no_grad():
            difference = layer(x[name]) - goals[name]
        error += float(0.5 * difference.square().sum() / difference[:, 0].numel())
    assert solution.objective == pytest.approx(error, rel=1e-6)
    assert apart.layers["joined"][1] is None
    assert apart.layers["conv"][1] is not None


def test_one_consumer_is_its_own_problem() -> None:
    parts = _parts(_layers())[:1]
    problem = site_problem(parts, keep=2)
    alone = parts[0][0].problem(keep=2)
    assert problem.hash == alone.hash
    assert problem.name == alone.name == "conv"


def test_limits_are_in_terms_of_units() -> None:
    parts = _parts(_layers())
    problem = site_problem(
        parts,
        costs=[1.0, 2.0, 3.0, 4.0, 5.0],
        budget=6.0,
        blocks=[0, 0, 1, 1, 1],
        block_keep=[1, 2],
        always_remove=[4],
    )
    apart = site_solution(problem.solve("greedy"), parts)
    assert not apart.units[4]
    assert apart.units[:2].sum() <= 1
    assert apart.units @ np.arange(1.0, 6.0) <= 6.0
    solution = site_problem(parts[:1], keep=1, always_keep=[3]).solve("greedy")
    np.testing.assert_array_equal(site_solution(solution, parts[:1]).units, np.arange(UNITS) == 3)


def test_damping_is_relative_to_each_consumer() -> None:
    layers = {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 2, bias=False)}
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 4, generator=generator)
    parts = []
    for name, scale in (("a", 1.0), ("b", 100.0)):
        moments = LayerMoments(layers[name], name)
        moments.add(scale * x)
        parts.append((moments, np.arange(4)))
    problem = site_problem(parts, keep=2, damping=0.5)
    for start, part in zip((0, 4), parts, strict=True):
        own = part[0].problem(damping=0.5)
        rows = slice(start, start + 4)
        np.testing.assert_array_equal(problem.gram[rows, rows], own.gram)
    assert not problem.gram[:4, 4:].any()


def test_sentences() -> None:
    parts = _parts(_layers())
    moments = parts[0][0]
    with pytest.raises(InputError, match="at least one consumer"):
        site_problem([])
    with pytest.raises(LayerError, match=r"two consumers have the same name \(conv, conv\)"):
        site_problem([parts[0], parts[0]])
    with pytest.raises(InputError, match="conv has 5 input channels"):
        site_problem([(moments, np.arange(4))])
    with pytest.raises(InputError, match="unit 2 is read by none of conv"):
        site_problem([(moments, np.array([0, 1, 3, 4, 5]))])
    with pytest.raises(InputError, match="all units are read by none of conv"):
        site_problem([(moments, np.full(5, -1))])
    solution = Problem(np.eye(3), np.ones((3, 2)), keep=1).solve("greedy")
    with pytest.raises(LayerError, match="pass the parts its problem was made of"):
        site_solution(solution, parts)
