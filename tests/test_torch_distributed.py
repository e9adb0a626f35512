"""Two processes, each with its own batches, against one process with all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osscar_opt import load
from osscar_opt.torch import problem_from_layer

TIME_LIMIT = 120

WORKER = """
import json, sys
import torch
import torch.distributed as dist

from osscar_opt.errors import LayerError
from osscar_opt.torch import problem_from_layer

rank, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
data = torch.load(f"{folder}/data.pt", weights_only=True)
for name, case in json.loads(sys.argv[4]).items():
    kind = "conv" if case["conv"] else "line"
    layer = torch.nn.Conv2d(4, 3, 3) if case["conv"] else torch.nn.Linear(7, 3)
    layer.load_state_dict(data["layers"][kind])
    model = torch.nn.Sequential(layer.double())
    batches = [data["batches"][kind][i] for i in case["shares"][rank]]
    if case["fails"] == rank:
        batches[0] = batches[0] * torch.nan
    try:
        if case["teacher"]:
            taught = [batch.roll(1, 0) + 1.0 for batch in batches]
            problem = problem_from_layer(model[0], batches, target_inputs=taught, intercept=case["intercept"])
        else:
            problem = problem_from_layer(model, "0", iter(batches), intercept=case["intercept"])
    except LayerError as error:
        with open(f"{folder}/{name} {rank}.txt", "w") as file:
            file.write(str(error))
    else:
        problem.save(f"{folder}/{name} {rank}")
dist.destroy_process_group()
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _layer(kind: str) -> Any:
    torch.manual_seed(5)
    return torch.nn.Conv2d(4, 3, 3) if kind == "conv" else torch.nn.Linear(7, 3)


def _batches(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    shape = (4, 6, 7) if kind == "conv" else (7,)
    # the batches differ in level, so that the ranks' means do
    return [
        torch.randn(rows, *shape, generator=generator, dtype=torch.float64) + 30.0 * i
        for i, rows in enumerate([5, 9, 2, 11])
    ]


def _case(**changes: Any) -> dict[str, Any]:
    return {"conv": False, "teacher": False, "intercept": True, "fails": None} | changes


CASES = {
    "even shares": _case(shares=[[0, 1], [2, 3]]),
    "one rank has nothing": _case(shares=[[0, 1, 2, 3], []]),
    "no intercept": _case(shares=[[0], [1, 2, 3]], intercept=False),
    "teacher": _case(shares=[[3], [0, 1, 2]], teacher=True),
    "convolution": _case(shares=[[0, 2], [1, 3]], conv=True),
}
FAILING = {"one rank fails": _case(shares=[[0, 1], [2, 3]], fails=1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    kinds = ("conv", "line")
    data = {
        "layers": {kind: _layer(kind).state_dict() for kind in kinds},
        "batches": {kind: _batches(kind) for kind in kinds},
    }
    torch.save(data, folder / "data.pt")
    script = folder / "worker.py"
    script.write_text(WORKER)
    arguments = [str(_free_port()), str(folder), json.dumps(CASES | FAILING)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIME_LIMIT)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_rank_gets_the_problem_of_all_batches(name: str, folder: Path) -> None:
    case = CASES[name]
    kind = "conv" if case["conv"] else "line"
    layer, batches = _layer(kind).double(), _batches(kind)
    taught = [batch.roll(1, 0) + 1.0 for batch in batches] if case["teacher"] else None
    alone = problem_from_layer(layer, batches, target_inputs=taught, intercept=case["intercept"])
    for rank in range(2):
        problem = load(folder / f"{name} {rank}")
        scale = np.sqrt(np.outer(np.diag(alone.gram), np.diag(alone.gram)))
        assert np.max(np.abs(problem.gram - alone.gram) / scale) < 1e-10
        np.testing.assert_allclose(problem.cross, alone.cross, rtol=1e-10, atol=1e-10)
        assert problem.constant == pytest.approx(alone.constant, rel=1e-10)
        assert problem.provenance["calibration_rows"] == alone.provenance["calibration_rows"]
        if case["intercept"]:
            np.testing.assert_allclose(problem.input_mean, alone.input_mean, rtol=1e-10)
            np.testing.assert_allclose(problem.target_mean, alone.target_mean, rtol=1e-10)
        assert problem.hash == load(folder / f"{name} 0").hash


def test_an_error_on_one_rank_ends_the_others_too(folder: Path) -> None:
    name = next(iter(FAILING))
    assert "0 could not be collected on another rank" in (folder / f"{name} 0.txt").read_text()
    assert "0 got NaN or infinite inputs" in (folder / f"{name} 1.txt").read_text()
