"""Whole models: orders and targets against plain numpy, all families, resumed and interrupted runs, bad input."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import models_zoo
import numpy as np
import pytest
import torch

from osscar_opt import Problem
from osscar_opt.errors import (
    FormatError,
    InputError,
    LayerError,
    OptionError,
    UnknownMethodError,
)
from osscar_opt.solvers import Proposal, Solver
from osscar_opt.torch import calibration as calibration_module
from osscar_opt.torch import prune as prune_module
from osscar_opt.torch import trace_coupling
from osscar_opt.torch.batches import Batches
from osscar_opt.torch.prune import collect_problems, prune_model
from osscar_opt.torch.pruning import Pruning
from osscar_opt.torch.stream import HiddenStates

FAMILIES = [name for name in models_zoo.names() if models_zoo.ZOO[name].sites]


class Block(torch.nn.Module):
    """Two residual branches of different widths; `a2` and `b2` read their neurons."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a1, self.a2 = torch.nn.Linear(width, 9), torch.nn.Linear(9, width)
        self.b1, self.b2 = torch.nn.Linear(width, 11), torch.nn.Linear(11, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.a2(self.a1(x).relu())
        return x + self.b2(self.b1(x).relu())


class Toy(torch.nn.Module):
    """A layer, blocks one after another, and a head whose neurons are outside of them."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(5, 6)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(blocks))
        self.c1, self.c2 = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.c2(self.c1(x).relu())


SITES = [f"blocks.{block}.{layer}" for block in range(3) for layer in ("a2", "b2")] + ["c2"]


def toy(blocks: int = 3) -> Toy:
    torch.manual_seed(0)
    model = Toy(blocks)
    for block in model.blocks:  # strong enough for the pruning of one block to be felt in the next
        for layer in block.children():
            layer.weight.data.mul_(2.0)
    return model.train()  # the mode in which it is found


def batches(count: int = 3, rows: int = 40) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(rows + i, 5, generator=draw) for i in range(count)]


def inputs_of(model: torch.nn.Module, name: str, data: list[torch.Tensor]) -> np.ndarray[Any, Any]:
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda layer, args: rows.append(args[0]))
    with torch.no_grad():
        for batch in data:
            model(batch)
    handle.remove()
    return torch.cat(rows).double().numpy()


def refitted(
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    layer: Any,
    support: np.ndarray[Any, Any],
    damping: float,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Ridge regression of y on the columns in the support, towards the layer's weights; in plain numpy."""
    w0 = layer.weight.detach().double().numpy().T
    mx = x.mean(axis=0) if layer.bias is not None else np.zeros(x.shape[1])
    my = y.mean(axis=0) if layer.bias is not None else np.zeros(y.shape[1])
    xc, yc = x - mx, y - my
    h = xc.T @ xc / len(x)
    rho = damping * np.diag(h).mean()
    w = np.zeros_like(w0)
    g = xc[:, support].T @ yc / len(x) + rho * w0[support]
    w[support] = np.linalg.solve(h[np.ix_(support, support)] + rho * np.eye(support.sum()), g)
    return w, None if layer.bias is None else my - mx @ w


def check_against_numpy(pruned: Toy, order: str, targets: str, damping: float = 1e-2) -> None:
    """Replay a run with the supports that it chose: every layer must hold the refit on the inputs it then had."""
    dense, now = toy().eval(), toy().eval()
    data = batches()
    for name in SITES:
        after, layer = pruned.get_submodule(name), dense.get_submodule(name)
        support = (after.weight != 0).any(dim=0).numpy()
        assert 0 < support.sum() < len(support)
        dense_inputs = inputs_of(dense, name, data)
        x = inputs_of(now, name, data) if order == "sequential" else dense_inputs
        seen = dense_inputs if targets == "teacher" else x
        y = seen @ layer.weight.detach().double().numpy().T
        y += 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
        weights, bias = refitted(x, y, layer, support, damping)
        np.testing.assert_allclose(after.weight.detach().numpy().T, weights, rtol=1e-4, atol=1e-5)
        if bias is not None:
            np.testing.assert_allclose(after.bias.detach().numpy(), bias, rtol=1e-4, atol=1e-5)
        # the support itself is what the method chooses on these very numbers
        own = Problem.from_data(
            x,
            layer.weight.detach().double().numpy().T,
            targets=y - (0.0 if bias is None else layer.bias.detach().double().numpy()),
            damping=damping,
            keep=int(support.sum()),
            intercept=bias is not None,
        )
        np.testing.assert_array_equal(own.solve("greedy").support, support)
        now.get_submodule(name).load_state_dict(after.state_dict())


@pytest.mark.parametrize(
    ("order", "targets"), [("parallel", "student"), ("sequential", "student"), ("sequential", "teacher")]
)
def test_orders_and_targets_against_numpy(order: Any, targets: Any) -> None:
    model = toy()
    report = prune_model(
        model, batches(), sparsity=0.4, method="greedy", order=order, targets=targets, apply="mask"
    )
    assert [row.site for row in report.rows] == SITES
    check_against_numpy(model, order, targets)


def test_orders_and_targets_differ() -> None:
    weights = []
    for order, targets in (("parallel", "student"), ("sequential", "student"), ("sequential", "teacher")):
        model = toy()
        prune_model(model, batches(), sparsity=0.4, order=order, targets=targets, apply="mask")  # type: ignore[arg-type]
        weights.append(model.blocks[2].b2.weight.detach())
    assert not torch.allclose(weights[0], weights[1])
    assert not torch.allclose(weights[1], weights[2])


def test_teacher_targets_equal_student_targets_where_nothing_was_pruned_before() -> None:
    first = {}
    for targets in ("student", "teacher"):
        model = toy()
        prune_model(model, batches(), sparsity=0.4, targets=targets, sites="blocks.0.a2", apply="mask")  # type: ignore[arg-type]
        first[targets] = model.blocks[0].a2.weight.detach()
    torch.testing.assert_close(first["student"], first["teacher"], rtol=1e-5, atol=1e-6)


def test_sites_outside_of_the_blocks_see_what_the_model_has_become() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e1, self.e2 = torch.nn.Linear(5, 7), torch.nn.Linear(7, 5)
            self.toy = toy()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.toy(x + self.e2(self.e1(x).relu()))

    torch.manual_seed(3)
    model, data = Wrapped().eval(), batches()
    dense = copy.deepcopy(model)
    names = ["e2", *(f"toy.{name}" for name in SITES)]
    for targets in ("student", "teacher"):
        pruned = copy.deepcopy(dense)
        report = prune_model(pruned, data, sparsity=0.4, method="greedy", targets=targets, apply="mask")  # type: ignore[arg-type]
        assert [row.site for row in report.rows] == names
        now = copy.deepcopy(dense)
        for name in names:
            layer, after = dense.get_submodule(name), pruned.get_submodule(name)
            x = inputs_of(now, name, data)
            seen = inputs_of(dense, name, data) if targets == "teacher" else x
            y = seen @ layer.weight.detach().double().numpy().T
            y += 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
            support = (after.weight != 0).any(dim=0).numpy()
            weights, _ = refitted(x, y, layer, support, 1e-2)
            np.testing.assert_allclose(after.weight.detach().numpy().T, weights, rtol=1e-4, atol=1e-5)
            now.get_submodule(name).load_state_dict(after.state_dict())


# ------------------------------------------------------------------------------------------------------ families


def as_found(model: torch.nn.Module) -> tuple[Any, ...]:
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules()
    )
    return hooks, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*was calibrated on")
@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_pruned_and_shrunk(name: str, order: Any) -> None:
    entry = models_zoo.ZOO[name]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build().eval()
    data = [entry.batch(seed) for seed in range(4)]
    masked = copy.deepcopy(model)
    prune_model(masked, data, sparsity=0.34, method="magnitude_refit", order=order, apply="mask")
    before = as_found(model)
    report = prune_model(model, data, sparsity=0.34, method="magnitude_refit", order=order)
    assert as_found(model) == before
    assert {row.site: (row.kind, row.n) for row in report.rows} == entry.sites
    assert report.parameters_after == models_zoo.parameter_count(model) < report.parameters_before
    assert report.check["difference"] <= report.check["allowed"]
    for batch in data:
        torch.testing.assert_close(
            models_zoo.forward(model, batch), models_zoo.forward(masked, batch), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = toy().to(dtype)
    report = prune_model(model, [batch.to(dtype) for batch in batches()], sparsity=0.4)
    assert model.blocks[1].b2.weight.dtype == dtype
    assert model.blocks[1].b2.in_features == 11 - 4
    assert report.check["dtype"] == str(dtype).removeprefix("torch.")


def test_query_heads_keep_the_same_number_on_every_key_head() -> None:
    entry = models_zoo.ZOO["llama"]
    if not entry.available:
        pytest.skip("transformers is not installed")
    model = entry.build().eval()
    data = [entry.batch(seed) for seed in range(4)]
    coupling = trace_coupling(model, data[0], query_heads=True)
    report = prune_model(model, data, sparsity=0.3, sites="heads", coupling=coupling)
    assert {(row.n, row.kept) for row in report.rows} <= {
        (6, 3)
    }  # 5 of 6 would not be the same on 3 key heads
    assert report.left_alone == () or report.rows == ()


def test_channels_that_several_layers_read_are_pruned_when_named() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.left, self.right = (
                torch.nn.Linear(5, 12),
                torch.nn.Linear(12, 3),
                torch.nn.Linear(12, 4),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x).relu()
            return torch.cat([self.left(x), self.right(x).tanh()], dim=1)

    torch.manual_seed(0)
    model = Two()
    name = next(
        site.name for site in trace_coupling(model, batches()[0]).sites.values() if len(site.consumers) == 2
    )
    prune_model(model, batches(), keep={name: 7})
    assert (model.up.out_features, model.left.in_features, model.right.in_features) == (7, 7, 7)


# -------------------------------------------------------------------------------------------------------- widths


def test_widths() -> None:
    asked: dict[str, dict[str, Any]] = {
        "sparsity": {"sparsity": 0.4, "sites": "*.a2"},
        "multiple": {"sparsity": 0.4, "sites": "*.a2", "multiple": 4},
        "kinds": {"sparsity": 0.4, "sites": "*.a2", "multiple": {"neurons": 4, "heads": 100}},
        "keep": {"keep": 7, "sites": ["blocks.0.a2", "c2"]},
        "mapping": {"keep": {"*.a2": 5, "blocks.1.a2": 3}},
    }
    kept = {key: [row.kept for row in prune_model(toy(), batches(), **kw).rows] for key, kw in asked.items()}
    assert kept == {
        "sparsity": [6, 6, 6],
        "multiple": [8, 8, 8],
        "kinds": [8, 8, 8],
        "keep": [7, 7],
        "mapping": [5, 3, 5],
    }


def test_sites_of_which_all_units_stay_are_left_alone() -> None:
    model, dense = toy(), toy()
    report = prune_model(model, batches(), sparsity={"*.a2": 0.1, "*.b2": 0.2}, multiple=5)
    assert report.left_alone == tuple(name for name in SITES if name.endswith("a2"))  # 9 - 0, and 10 of 11
    assert [row.kept for row in report.rows] == [10, 10, 10]
    torch.testing.assert_close(model.blocks[0].a2.weight, dense.blocks[0].a2.weight, rtol=0, atol=0)


def test_nothing_to_do() -> None:
    report = prune_model(toy(), batches(), sparsity=0.0)
    assert report.rows == ()
    assert report.left_alone == tuple(SITES)
    assert report.parameters_after == report.parameters_before


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, InputError, "either sparsity"),
        ({"sparsity": 0.5, "keep": 3}, InputError, "either sparsity"),
        ({"sparsity": 1.5}, InputError, "1.5"),
        ({"keep": 0}, InputError, "keep = 0"),
        ({"keep": 2.5}, InputError, "keep = 2.5"),
        ({"keep": {"blocks.0.a3": 2}}, LayerError, "blocks.0.a2"),
        ({"sparsity": 0.5, "sites": "blocks.0.a3"}, LayerError, "blocks.0.a2"),
        ({"sparsity": {"c2": 0.5}, "sites": "*.a2"}, LayerError, "none of the sites"),
        ({"sparsity": {3: 0.5}}, InputError, "named by text"),
        ({"sparsity": 0.5, "multiple": 0}, InputError, "multiple = 0"),
        ({"sparsity": 0.5, "multiple": {"layers": 8}}, InputError, "layers"),
        ({"sparsity": 0.5, "order": "random"}, InputError, "order"),
        ({"sparsity": 0.5, "targets": "labels"}, InputError, "targets"),
        ({"sparsity": 0.5, "apply": "zero"}, InputError, "apply"),
        ({"sparsity": 0.5, "damping": -1.0}, InputError, "damping"),
        ({"sparsity": 0.5, "damping": float("nan")}, InputError, "damping"),
        ({"sparsity": 0.5, "time_limit": -3}, InputError, "time_limit"),
        ({"sparsity": 0.5, "intercept": True}, LayerError, "no bias"),
        ({"sparsity": 0.5, "method": "osscr"}, UnknownMethodError, "osscar"),
        ({"sparsity": 0.5, "method": "random", "options": {"sede": 1}}, OptionError, "seed"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_run(arguments: Any, error: Any, said: str) -> None:
    model = toy()
    dense = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as raised:
        prune_model(model, batches(), **arguments)
    assert said in str(raised.value)
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())


def test_other_bad_input() -> None:
    with pytest.raises(LayerError, match="no batches"):
        prune_model(toy(), [], sparsity=0.5)
    with pytest.raises(LayerError, match="torch module"):
        prune_model("model", batches(), sparsity=0.5)  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="no site"):
        prune_model(torch.nn.Linear(5, 3), batches(), sparsity=0.5)


def test_a_shared_weight_is_refused() -> None:
    model = toy()
    model.blocks[1].a2.weight = model.blocks[0].a2.weight
    with pytest.raises(LayerError):
        prune_model(model, batches(), sparsity=0.5, sites="blocks.0.a2")


# ------------------------------------------------------------------------------------------------- how it is run


def test_passes_of_the_sequential_order() -> None:
    report = prune_model(toy(), batches(), sparsity=0.4, sites="*.b2")
    # three batches: every block up to its site, and to its end once, but for the last
    assert report.passes == {"full": 2 * 3, "short": 3 * 3, "model": 0, "records": 3}


def test_passes_of_the_parallel_order() -> None:
    report = prune_model(toy(), batches(), sparsity=0.4, sites="blocks.*", order="parallel")
    assert report.passes == {"full": 2 * 3, "short": 3, "model": 0, "records": 3}


def test_passes_with_a_teacher() -> None:
    report = prune_model(toy(), batches(), sparsity=0.4, sites="*.b2", targets="teacher")
    # the dense stream is collected and advanced in one; of the last block nothing is run to its end
    assert report.passes == {"full": 2 * 2 * 3, "short": (3 + 1) * 3, "model": 0, "records": 2 * 3}


def test_hidden_states_in_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory, in_files = toy(), toy()
    prune_model(in_memory, batches(), sparsity=0.4, targets="teacher")
    used: list[str] = []

    class Small(HiddenStates):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, in_memory=0)
            used.extend(path.name for path in tmp_path.glob("hidden-*.bin"))

    monkeypatch.setattr(calibration_module, "HiddenStates", Small)
    prune_model(in_files, batches(), sparsity=0.4, targets="teacher", folder=tmp_path)
    assert len(set(used)) == 2 * 3
    assert not list(tmp_path.glob("hidden-*"))
    for name, value in in_memory.state_dict().items():
        torch.testing.assert_close(in_files.state_dict()[name], value, rtol=0, atol=0)


def test_hidden_states_that_change_their_shape(tmp_path: Path) -> None:
    states = HiddenStates([torch.zeros(2, 3), torch.ones(1, 3)], tmp_path, in_memory=0)
    states.put(0, torch.full((2, 5), 7.0))
    states.put(1, torch.full((1, 3), 2.0, dtype=torch.bfloat16))
    assert states.get(0).tolist() == [[7.0] * 5] * 2
    assert states.get(1).dtype == torch.bfloat16
    states.close()
    assert not list(tmp_path.iterdir())


def test_batches_of_all_kinds() -> None:
    data = batches()
    kinds: dict[str, Any] = {
        "list": data,
        "generator": (batch for batch in data),
        "tuples": [(batch, torch.zeros(len(batch))) for batch in data],  # what follows are labels
        "dicts": [{"x": batch} for batch in data],
        "loader": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat(data)), batch_size=41, shuffle=False
        ),
    }
    weights = {}
    for kind, given in kinds.items():
        model = toy()
        prune_model(model, given, sparsity=0.4)
        weights[kind] = model.c2.weight.detach()
    for kind in kinds:
        torch.testing.assert_close(weights[kind], weights["list"], rtol=1e-4, atol=1e-5)


def test_methods_do_what_they_do_elsewhere() -> None:
    model, dense = toy(), toy()
    prune_model(model, batches(), sparsity=0.4, method="magnitude", apply="mask", intercept=False)
    kept = (model.blocks[1].a2.weight != 0).any(dim=0)
    torch.testing.assert_close(
        model.blocks[1].a2.weight[:, kept], dense.blocks[1].a2.weight[:, kept]
    )  # no refit


def test_a_solver_of_ones_own_and_options() -> None:
    @dataclass(frozen=True)
    class LastOnes(Solver):
        """Keep the last groups."""

        name: ClassVar[str] = "last"

        def propose(self, problem: Problem, **_: Any) -> Proposal:
            support = np.zeros(problem.n, dtype=bool)
            support[problem.n - (problem.keep or 0) :] = True
            return Proposal(support)

    model = toy()
    report = prune_model(model, batches(), keep=3, sites="c2", method=LastOnes(), apply="mask")
    assert (model.c2.weight != 0).any(dim=0).tolist() == [False] * 5 + [True] * 3
    assert report.rows[0].method == report.method
    seeds = [
        prune_model(toy(), batches(), sparsity=0.4, method="random", options={"seed": seed}).rows
        for seed in (1, 1, 2)
    ]
    objectives = [[row.objective for row in rows] for rows in seeds]
    assert objectives[0] == objectives[1] != objectives[2]


def test_gaps() -> None:
    report = prune_model(toy(), batches(), sparsity=0.4, sites="*.a2", gap=True)
    for row in report.rows:
        assert row.bound is not None
        assert row.gap is not None
        assert 0.0 < row.bound <= row.objective
        assert row.gap == pytest.approx((row.objective - row.bound) / row.objective)


def test_collected_problems_are_those_of_the_dense_model() -> None:
    model = toy()
    mode = as_found(model)
    found = dict(collect_problems(model, batches(), sparsity=0.4))
    assert list(found) == SITES
    assert as_found(model) == mode
    for name, problem in found.items():
        layer = model.get_submodule(name)
        own = Problem.from_torch_layer(model.eval(), name, batches(), sparsity=0.4)
        np.testing.assert_allclose(problem.gram, own.gram, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(problem.cross, own.cross, rtol=1e-9, atol=1e-12)
        assert (problem.keep, problem.q) == (own.keep, layer.out_features)
        model.train()
    name, problem = next(iter(collect_problems(model, batches(), sites="*.b2")))
    assert (name, problem.keep) == ("blocks.0.b2", None)
    assert as_found(model) == mode  # also when the rest is not asked for


# -------------------------------------------------------------------------------------------------------- failing


def assert_consistent(model: Toy, finished: list[str]) -> None:
    dense = toy()
    for name in SITES:
        layer, before = model.get_submodule(name), dense.get_submodule(name)
        if name in finished:
            assert bool((layer.weight == 0).all(dim=0).any())
        else:
            torch.testing.assert_close(layer.weight, before.weight, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("targets", ["student", "teacher"])
def test_interrupted(order: Any, targets: Any) -> None:
    begun: list[Any] = []

    def stop(self: Pruning, *args: Any) -> Any:
        begun.append(args)
        if len(begun) > 3:
            raise KeyboardInterrupt
        return solve(self, *args)

    solve = Pruning._solve
    model = toy()
    found = as_found(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruning, "_solve", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_model(model, batches(), sparsity=0.4, order=order, targets=targets)
    assert as_found(model) == found
    assert_consistent(model, SITES[:3])


def test_ctrl_c_while_a_site_is_being_solved_leaves_it_dense() -> None:
    script = f"""
import sys, signal, os, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_torch_prune import *
calls = []
@dataclass(frozen=True)
class Slow(Solver):
    name: ClassVar[str] = "slow"
    def propose(self, problem, *, deadline, report, **_):
        calls.append(problem)
        support = problem.solve("greedy").support
        report.incumbent(support, problem.value(support))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            while not deadline.expired():
                time.sleep(0.01)
        return Proposal(support)
model = toy()
try:
    prune_model(model, batches(), sparsity=0.4, method=Slow())
except KeyboardInterrupt:
    assert_consistent(model, SITES[:2])
    print("consistent")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "consistent", done.stderr


def test_activations_that_are_not_finite_name_the_layer() -> None:
    data = batches()
    data[1][3, 2] = float("nan")
    model = toy()
    found = as_found(model)
    with pytest.raises(LayerError, match=r"blocks\.0\.a2"):
        prune_model(model, data, sparsity=0.4)
    assert as_found(model) == found
    assert_consistent(model, [])


def test_weights_of_several_layers_are_written_together_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from osscar_opt.torch import pruning

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.left, self.right = (
                torch.nn.Linear(5, 12),
                torch.nn.Linear(12, 3),
                torch.nn.Linear(12, 4),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x).relu()
            return torch.cat([self.left(x), self.right(x).tanh()], dim=1)

    model = Two()
    before = copy.deepcopy(model.state_dict())
    name = next(
        site.name for site in trace_coupling(model, batches()[0]).sites.values() if len(site.consumers) == 2
    )
    write = pruning.write_layer

    def failing(layer: Any, weights: Any, bias: Any = None, label: str = "") -> None:
        if label == "right":
            raise LayerError("it does not fit")
        write(layer, weights, bias, label)

    monkeypatch.setattr(pruning, "write_layer", failing)
    with pytest.raises(LayerError, match="does not fit"):
        prune_model(model, batches(), keep={name: 7})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_shrinking_that_changes_the_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = prune_module.shrink

    def shrinks_more(model: Toy, coupling: Any, supports: Any) -> Any:
        done = wrong(model, coupling, supports)
        model.c2.weight.data[0] += 3e-2  # of the new, smaller parameter
        return done

    model = toy()
    with monkeypatch.context() as patch:
        patch.setattr(prune_module, "shrink", shrinks_more)
        with pytest.raises(LayerError, match=r"outputs differ .* left masked"):
            prune_model(model, batches(), sparsity=0.4)
    assert model.c2.in_features == 8
    assert_consistent(model, SITES)
    assert model.c2.weight.dtype == torch.float32


class Halves(torch.nn.Module):
    """Its forward has the dense width written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Linear(*sizes) for sizes in ((5, 8), (4, 6), (6, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(self.second(hidden[:, :4] * hidden[:, 4:8].sigmoid()).relu())


@pytest.mark.parametrize("keep", [1, 2])
def test_a_width_written_into_the_forward_is_noticed_and_the_model_left_masked(keep: int) -> None:
    torch.manual_seed(0)
    model = Halves().eval()
    inputs = torch.randn(40, 5)
    with pytest.raises(LayerError, match="model was left masked"):
        prune_model(model, inputs, keep={"second": keep, "last": 4})
    assert (model.first.out_features, model.second.in_features, model.last.in_features) == (8, 4, 6)
    assert int((model.second.weight != 0).any(dim=0).sum()) == keep
    assert model(inputs).shape == (40, 3)


def test_outputs_that_differ_by_rounding_alone_are_compared_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Batches.first_output
    calls: list[bool] = []

    def noisy(self: Batches, *, double: bool = False) -> torch.Tensor:
        calls.append(double)
        return first(self, double=double) + (0.0 if double else 1.0 * len(calls))

    monkeypatch.setattr(Batches, "first_output", noisy)
    model = toy()
    report = prune_model(model, batches(), sparsity=0.4)
    assert calls == [False, False, True, True]
    assert report.check["dtype"] == "float64"
    assert report.check["difference"] < 1e-12
    assert model.c2.in_features == 5
    assert model.c2.weight.dtype == torch.float32


def test_without_the_check_no_outputs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Batches, "first_output")
    model = toy()
    assert prune_model(model, batches(), sparsity=0.4, check=False).check == {}
    assert model.c2.in_features == 5


def test_one_warning_for_too_few_rows() -> None:
    with pytest.warns(UserWarning, match="was calibrated on 8 rows for a width of 9") as caught:
        prune_model(toy(), batches(1, rows=8), sparsity=0.4)
    assert len([one for one in caught if "calibrated" in str(one.message)]) == 1


# ------------------------------------------------------------------------------------------------------- resuming


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_torch_prune import *
from osscar_opt.torch.workfolder import Results
put = Results.put
def stop(self, result):
    put(self, result)
    if len(list(Path({folder!r}).glob("site-*.safetensors"))) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
Results.put = stop
prune_model(toy(), batches(), sparsity=0.4, order={order!r}, targets={targets!r}, folder={folder!r})
"""


@pytest.mark.parametrize(
    ("order", "targets", "after"),
    [
        ("sequential", "student", 3),
        ("sequential", "teacher", 3),
        ("sequential", "teacher", 6),
        ("parallel", "student", 4),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, order: Any, targets: Any, after: int
) -> None:
    folder = tmp_path / "work"
    script = KILLED.format(
        tests=str(Path(__file__).parent), folder=str(folder), order=order, targets=targets, after=after
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(folder.glob("site-*.safetensors"))) == after
    (folder / "site-0099.part").write_bytes(b"half a file")
    resumed, whole = toy(), toy()
    report = prune_model(resumed, batches(), sparsity=0.4, order=order, targets=targets, folder=folder)
    expected = prune_model(whole, batches(), sparsity=0.4, order=order, targets=targets)
    assert [row.resumed for row in report.rows] == [True] * after + [False] * (len(SITES) - after)
    assert [row.objective for row in report.rows] == [row.objective for row in expected.rows]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    again = toy()
    report = prune_model(again, batches(), sparsity=0.4, order=order, targets=targets, folder=folder)
    assert all(row.resumed for row in report.rows)
    assert report.passes["full"] == report.passes["short"] == 0
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sparsity": 0.5}, "blocks.0.a2 = 6 of 9 neurons, not 5 of 9 neurons"),
        ({"method": "greedy"}, "method = 'osscar', not 'greedy'"),
        ({"damping": 0.1}, "damping = 0.01, not 0.1"),
        ({"order": "parallel"}, "order = 'sequential', not 'parallel'"),
        ({"options": {"local_search": False}}, "options"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"sparsity": 0.4, "folder": tmp_path}
    prune_model(toy(), batches(), **settings)
    if "options" in changed:
        changed = {"options": {"seed": 3}, "method": "random"}
        said = "method"
    with pytest.raises(InputError) as raised:
        prune_model(toy(), batches(), **settings | changed)
    assert said in str(raised.value)


def test_a_folder_of_another_model_or_other_batches_is_refused(tmp_path: Path) -> None:
    prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path)
    model = toy()
    model.enter.weight.data[0, 0] += 1.0
    with pytest.raises(InputError, match="another model"):
        prune_model(model, batches(), sparsity=0.4, folder=tmp_path)
    with pytest.raises(InputError, match="another batches"):
        prune_model(toy(), batches()[:2], sparsity=0.4, folder=tmp_path)


def test_folders_that_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("do not touch")
    with pytest.raises(InputError, match="something else"):
        prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path / "a")
    (tmp_path / "b").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="not that of a pruning run"):
        prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path / "c")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path)
    path = tmp_path / "site-0002.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"site-0002.*delete it"):
        prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path)
    path.unlink()
    report = prune_model(toy(), batches(), sparsity=0.4, folder=tmp_path)
    assert [row.resumed for row in report.rows] == [True, True] + [False] * 5


# --------------------------------------------------------------------------------------------------------- report


def test_the_report(tmp_path: Path) -> None:
    began = time.monotonic()
    model = toy()
    before = models_zoo.parameter_count(model)
    report = prune_model(model, batches(), sparsity=0.4)
    took = time.monotonic() - began
    parts = sum(value for name, value in report.seconds.items() if name != "total")
    assert 0.0 < parts <= report.seconds["total"] <= took
    assert (report.parameters_before, report.parameters_after) == (before, models_zoo.parameter_count(model))
    assert report.peak_memory > 2**20
    assert {row.rows for row in report.rows} == {40 + 41 + 42}
    assert all(row.relative is not None and 0.0 < row.relative < 1.0 for row in report.rows)
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert [row["site"] for row in saved["rows"]] == SITES
    table = report.table()
    assert all(name in table for name in SITES)
    assert f"{before:,}" in table
    assert "7 sites" in repr(report)


def test_the_plot() -> None:
    pytest.importorskip("matplotlib")
    axis = prune_model(toy(), batches(), sparsity=0.4).plot()
    assert sum(len(line.get_xdata()) for line in axis.get_lines()) == len(SITES)


def test_progress_is_shown_only_when_asked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osscar_opt.solvers.progress._SHOW_AFTER", 0.0)
    prune_model(toy(), batches(), sparsity=0.4)
    assert capfd.readouterr().err == ""
    prune_model(toy(), batches(), sparsity=0.4, progress=True)
    assert "/7" in capfd.readouterr().err


@pytest.mark.gpu
def test_blocks_run_on_the_device_and_come_back() -> None:
    on_cpu, on_device = toy(), toy()
    prune_model(on_cpu, batches(), sparsity=0.4, targets="teacher", sites="blocks.*")
    report = prune_model(
        on_device, batches(), sparsity=0.4, targets="teacher", sites="blocks.*", device="cuda"
    )
    assert all(parameter.device.type == "cpu" for parameter in on_device.parameters())
    assert len(report.rows) == 6
    for name, value in on_cpu.state_dict().items():
        torch.testing.assert_close(on_device.state_dict()[name], value, rtol=1e-3, atol=1e-4)
