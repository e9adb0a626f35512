"""Certificates: proofs of lower bounds that a stranger can check with numpy alone.

`ProofTree` is what a search writes while it runs, `Certificate` the proof with its problem and its claims, `check` the
judge.  ``docs/certificates.md`` says what is proved and how, and defines the file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osscar_opt.certificates.certificate import Certificate
    from osscar_opt.certificates.checker import CheckReport, check
    from osscar_opt.certificates.tree import ProofTree

__all__ = ["Certificate", "CheckReport", "ProofTree", "check"]

_HOME_OF = {"Certificate": "certificate", "CheckReport": "checker", "ProofTree": "tree", "check": "checker"}


def __getattr__(
    name: str,
) -> Any:  # on demand, so that `python -m osscar_opt.certificates.checker` loads it once
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
