"""What importing does: which modules it loads, and which object a name stands for afterwards."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import osscar_opt


def test_importing_the_package_loads_nothing_heavy() -> None:
    """In a fresh interpreter, since this one has loaded them; the time it takes follows from what is loaded."""
    code = (
        "import sys; before = set(sys.modules); import osscar_opt\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['osscar_opt']"


def test_solving_loads_what_it_needs() -> None:
    code = """
import sys
import osscar_opt
osscar_opt.solvers()
osscar_opt.Problem([[1.0]], [[1.0]], keep=1).solve("magnitude")
heavy = {"torch", "cvxpy", "highspy", "networkx", "rich", "typer", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_the_package() -> None:
    assert {"Problem", "solvers", "load"} <= set(dir(osscar_opt))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = osscar_opt.nothing


@pytest.mark.parametrize(
    "package",
    [
        "osscar_opt.allocation",
        "osscar_opt.certificates",
        "osscar_opt.instances",
        "osscar_opt.solvers",
        "osscar_opt.torch",
        "osscar_opt.torch.scores",
    ],
)
def test_no_module_hides_a_name(package: str) -> None:
    """`package.name` must not turn from an object into a module when somebody imports a module of that name."""
    parent = importlib.import_module(package)
    modules = {info.name for info in pkgutil.iter_modules(parent.__path__)}
    assert not modules & set(parent.__all__)
    assert not any(isinstance(getattr(parent, name), types.ModuleType) for name in parent.__all__)


def test_solvers_is_a_package_that_can_be_called() -> None:
    assert isinstance(osscar_opt.solvers, types.ModuleType)
    assert osscar_opt.solvers().names == osscar_opt.solvers.solvers().names
