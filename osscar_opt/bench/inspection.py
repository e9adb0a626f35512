"""Asking about a method without loading its code here: a process of its own does, and is ended."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from osscar_opt import errors
from osscar_opt.bench import frames
from osscar_opt.bench.nursery import nursery
from osscar_opt.errors import OptionError, OsscarError

__all__ = ["has_seed"]

_PATIENCE = 120.0
_MEMORY = 4096
_FAULTS = ("UnknownMethodError", "OptionError", "UnavailableError")
"""What is wrong with the call, and not with a run."""


def has_seed(
    method: str, options: Mapping[str, Any], threads: int = 1, modules: tuple[str, ...] = ()
) -> bool:
    """Tell whether a method takes a seed, having checked that it exists and takes these options.

    False for a method whose code cannot be loaded: its runs will say why.

    Raises
    ------
    UnknownMethodError, OptionError, UnavailableError
        As `osscar_opt.solvers.get_solver`.

    Examples
    --------
    >>> has_seed("random", {}), has_seed("greedy", {})
    (True, False)
    """
    try:
        json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"options of method {method!r} must be plain numbers and texts: {error}."
        ) from error
    with tempfile.TemporaryDirectory(prefix="osscar-opt-run-") as folder:
        request = {
            "method": method,
            "options": dict(options),
            "path": [entry for entry in sys.path if entry],
            "folder": folder,
            "memory": _MEMORY,
        }
        process = nursery(threads, modules).start(request)
        try:
            process.channel.settimeout(_PATIENCE)
            kind, said = _first(process.channel)
        finally:
            process.end()
    if kind == frames.ERROR:
        _complain(said)
    return kind == frames.READY and said.get("seed") is True


def _first(channel: Any) -> tuple[int, dict[str, Any]]:
    """The first message; nothing at all from a process that ends, hangs, or says something else."""
    read = frames.Frames({frames.READY: 1 << 10, frames.ERROR: 1 << 16})
    try:
        while data := channel.recv(1 << 16):
            for kind, payload in read.feed(data):
                return kind, frames.parsed(payload)
    except (OSError, frames.NonsenseError):
        pass
    return 0, {}


def _complain(said: dict[str, Any]) -> None:
    kinds = said.get("kinds")
    for name in _FAULTS:
        if isinstance(kinds, list) and name in kinds:
            fault: type[OsscarError] = getattr(errors, name)
            raise fault(str(said.get("message", "")))
