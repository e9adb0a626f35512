"""Where a run was made: machine, system, versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["environment", "processor"]

_PACKAGES = ("osscar-opt", "numpy", "scipy", "torch", "highspy", "cvxpy", "joblib")


def environment(method: str, threads: int) -> dict[str, Any]:
    """Describe this machine, and the versions of what a method runs on.

    Parameters
    ----------
    method : str
        If a package of its own provides it, its version is listed.
    threads : int

    Examples
    --------
    >>> sorted(environment("greedy", 1))
    ['cores', 'cpu', 'memory', 'platform', 'python', 'threads', 'versions']
    """
    return {**_machine(), "versions": {**_versions(), **_provider(method)}, "threads": threads}


@functools.cache
def _machine() -> dict[str, Any]:
    from osscar_opt.linalg.threads import available_cores

    memory = None
    with contextlib.suppress(ValueError, OSError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return {
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": available_cores(),
        "memory": memory,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Name of the processor, as the system tells it.

    Examples
    --------
    >>> processor() == environment("greedy", 1)["cpu"]
    True
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@functools.cache
def _versions() -> dict[str, str]:
    import osscar_opt

    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, "osscar-opt": osscar_opt.__version__}


@functools.cache
def _provider(method: str) -> dict[str, str]:
    """The package that registers a method, by its metadata: none of its code is loaded."""
    from osscar_opt.solvers.registry import ENTRY_POINT_GROUP

    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == method and entry.dist is not None:
            return {entry.dist.name: entry.dist.version}
    return {}
