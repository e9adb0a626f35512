"""Rows of a benchmark's store made by hand, for the tests of the report."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np

from osscar_opt.bench.store import Run
from osscar_opt.bench.tasks import Task

ENVIRONMENT = {
    "platform": "Linux",
    "cpu": "An Ordinary Processor",
    "cores": 2,
    "memory": 8192,
    "python": "3.11.7",
    "versions": {"osscar-opt": "0.1.0", "numpy": "2.4.6"},
    "threads": 1,
}


class Best(NamedTuple):
    value: float
    bound: float
    proved: bool


def run(
    label: str,
    objective: float | None,
    *,
    instance: str = "planted-8-s0",
    keep: int | None = 2,
    wall: float = 1.0,
    **known: Any,
) -> Run:
    """A run whose instance's hash is its name, and whose loss of keeping nothing is 100."""
    limit = known.pop("time_limit", 10.0)
    task = Task(
        instance,
        f"{instance}.safetensors",
        known.pop("hash", instance),
        known.pop("n", 8),
        known.pop("p", 8),
        3,
        keep,
        label.partition(" ")[0],
        {},
        known.pop("seed", None),
        limit,
        known.pop("memory_limit", 512),
    )
    common = {
        "wall": wall,
        "environment": ENVIRONMENT,
        "started": "2026-11-21T10:00:00+00:00",
        "label": label,
        **known,
    }
    if objective is None:
        return Run.blank(
            task, **{"outcome": "failed", "reason": "The process ended with signal 9.", **common}
        )
    answered = {
        "outcome": "ok",
        "objective": objective,
        "relative": objective / 100.0,
        "support": np.arange(task.n) < (keep or 3),
        "trace": [(wall, objective)],
        "status": "feasible",
        "termination": "completed",
        "peak_memory": 90,
    }
    return Run.blank(task, **{**answered, **common})


def certified(label: str, objective: float, **known: Any) -> Run:
    """A run that proved its value."""
    return run(label, objective, bound=objective, bound_kind="certified", **{"status": "optimal", **known})


def many(pairs: int, labels: tuple[str, ...] = ("greedy", "osscar", "search", "exact")) -> list[Run]:
    """A store of so many pairs times labels, drawn from a fixed seed: exact proves most, greedy misses many."""
    families = ("planted", "greedy-trap", "ffn", "heads")
    rng = np.random.default_rng(7)
    found = []
    for index in range(pairs):
        family, n = families[index % 4], 8 * 2 ** (index % 5)
        best = float(rng.uniform(1.0, 9.0))
        same: dict[str, Any] = {
            "instance": f"{family}-{n}-s{index // 3}",
            "keep": 2 + index % 3,
            "n": n,
            "p": n,
        }
        for order, label in enumerate(labels):
            miss = label != "exact" and rng.random() < (0.5, 0.3, 0.05, 0.2)[order % 4]
            value = best * (1.0 + 10.0 ** rng.uniform(-4, -0.5)) if miss else best
            wall = float(10.0 ** rng.uniform(-3, -1) * (1 + order) * n / 8)
            trace = [(wall / 4, value * 1.3), (wall / 2, value * 1.05), (wall, value)]
            if label == "exact" and index % 5:
                found.append(certified(label, best, wall=wall, trace=trace, **same))
            elif zlib.crc32(f"{index}{label}".encode()) % 97 == 0:
                found.append(run(label, None, wall=wall, **same))
            else:
                found.append(run(label, value, wall=wall, trace=trace, **same))
    return found
