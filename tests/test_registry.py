"""Registry: names, options, plugins, and what importing costs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

import osscar_opt
from osscar_opt import Problem
from osscar_opt.errors import CapabilityError, OptionError, UnavailableError, UnknownMethodError
from osscar_opt.solvers import Proposal, Solver, get_solver, registry, solvers
from osscar_opt.solvers.magnitude import Magnitude


@dataclass(frozen=True)
class Plugin(Solver):
    """Keeps the last groups.

    More than one line.
    """

    name: ClassVar[str] = "plugin"
    handles: ClassVar[frozenset[str]] = frozenset()

    count: int = 3
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    fast: bool = False

    def propose(self, problem: Problem, **_: Any) -> Proposal:
        return Proposal(problem.limits.fill(range(problem.n)[::-1], np.zeros(problem.n, dtype=bool)))


@dataclass(frozen=True)
class NeedsMore(Plugin):
    """Needs a package nobody has."""

    name: ClassVar[str] = "needs_more"
    requires: ClassVar[tuple[str, ...]] = ("json", "no_such_package_anywhere")


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three plugins, one of them broken, and one that tries to take a name of ours."""
    group = registry.ENTRY_POINT_GROUP
    found = [
        importlib.metadata.EntryPoint("plugin", f"{__name__}:Plugin", group),
        importlib.metadata.EntryPoint("needs_more", f"{__name__}:NeedsMore", group),
        importlib.metadata.EntryPoint("broken", "no_such_module_anywhere:Solver", group),
        importlib.metadata.EntryPoint("not_a_solver", f"{__name__}:Any", group),
        importlib.metadata.EntryPoint("random", f"{__name__}:Plugin", group),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: found)


def test_every_name_of_ours_is_a_solver_of_that_name() -> None:
    for info in solvers():
        cls = registry.solver_class(info.name)
        assert cls.name == info.name
        assert dataclasses.is_dataclass(cls)
        assert info.summary.endswith(".")
        given = {option: [1.0, 2.0] for option in info.required_options}
        assert get_solver(info.name, given) == cls(**given)
        assert hash(get_solver(info.name, given)) == hash(cls(**given))
        if given:
            with pytest.raises(OptionError, match=f"needs {info.required_options[0]}="):
                get_solver(info.name)
    assert {"auto", "exhaustive", "greedy", "forward", "osscar", "swap", "search"} <= set(solvers().names)


def test_table_reads_like_a_table() -> None:
    table = solvers()
    lines = repr(table).splitlines()
    assert lines[0].split() == ["method", "proves", "handles", "options", "summary"]
    assert len(lines) == len(table) + 1
    assert table[0].name == "auto"
    assert table["magnitude"].options == (registry.OptionInfo("norm", "Literal['l1', 'l2']", "l1"),)
    with pytest.raises(UnknownMethodError, match="did you mean 'random'"):
        table["rando"]


def test_the_subpackage_can_be_called() -> None:
    assert osscar_opt.solvers() == solvers()
    assert osscar_opt.solvers.Solver is Solver


@pytest.mark.usefixtures("entry_points")
def test_plugins_enter_through_the_same_door() -> None:
    table = solvers()
    assert table["plugin"].summary == "Keeps the last groups."
    assert table["plugin"].available
    problem = Problem(np.eye(4), np.ones((4, 2)), keep=2)
    solution = problem.solve("plugin", count=5)
    assert solution.kept.tolist() == [2, 3]
    assert solution.options["count"] == 5
    assert "Plugin" not in table["random"].source, "our own names cannot be taken"


@pytest.mark.usefixtures("entry_points")
def test_a_broken_plugin_is_listed_with_the_true_reason() -> None:
    table = solvers()
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in table["broken"].why_not
    assert "is not a subclass" in table["not_a_solver"].why_not
    assert not table["broken"].available
    assert "(not available: ModuleNotFoundError" in repr(table)
    with pytest.raises(ModuleNotFoundError):
        get_solver("broken")


@pytest.mark.usefixtures("entry_points")
def test_a_missing_package_is_named() -> None:
    assert solvers()["needs_more"].why_not == "no_such_package_anywhere is not installed"
    with pytest.raises(UnavailableError, match="run: pip install no_such_package_anywhere"):
        get_solver("needs_more")
    assert "needs_more" not in registry.methods_handling(())


def test_unknown_methods_list_what_there_is() -> None:
    problem = Problem(np.eye(3), np.ones((3, 2)), keep=1)
    with pytest.raises(
        UnknownMethodError, match=r"no method 'gredy'; did you mean 'greedy'.*Methods: abess, .*exhaustive"
    ):
        problem.solve("gredy")
    with pytest.raises(UnknownMethodError, match=r"no method 'zzz'\. Methods: abess"):
        problem.solve("zzz")
    for wrong in (3, None, int, Problem):
        with pytest.raises(UnknownMethodError, match="is not a method: pass a name"):
            get_solver(wrong)  # type: ignore[arg-type]


def test_unknown_options_list_what_there_is() -> None:
    with pytest.raises(
        OptionError, match=r"no option 'cont'; did you mean 'count'.*options: count, rate, kind"
    ):
        get_solver(Plugin, {"cont": 3})
    with pytest.raises(OptionError, match=r"'auto' has no option 'seed'\. Its options: certificate"):
        get_solver("auto", {"seed": 3})
    with pytest.raises(OptionError, match="has no option 'name'"):
        get_solver(Plugin, {"name": "other"})


@pytest.mark.parametrize(
    ("option", "good", "bad", "message"),
    [
        ("count", [4, np.int32(4)], [4.0, True, "4", None], "must be int"),
        ("rate", [1, 0.25, np.float32(0.5)], [True, "x", None], "must be float"),
        ("kind", ["b"], ["c", 1], "must be one of 'a', 'b'"),
        ("limit", [None, 3], [1.5, "x"], r"must be int \| None"),
        ("fast", [True], [1, "yes"], "must be bool"),
    ],
)
def test_options_are_typed(option: str, good: list[object], bad: list[object], message: str) -> None:
    for value in good:
        assert getattr(get_solver(Plugin, {option: value}), option) == value
    for value in bad:
        with pytest.raises(OptionError, match=message):
            get_solver(Plugin, {option: value})


def test_instances_and_classes_are_solvers_too() -> None:
    assert get_solver(Magnitude) == Magnitude()
    assert get_solver(Magnitude("l2")).norm == "l2"  # type: ignore[attr-defined]
    changed = get_solver(Plugin(count=7, fast=True), {"fast": False})
    assert changed == Plugin(count=7)


def test_what_a_solver_does_not_handle_is_refused_with_alternatives() -> None:
    problem = Problem(np.eye(3), np.ones((3, 2)), costs=[1, 2, 3], budget=4)
    with pytest.raises(
        CapabilityError, match=r"does not handle costs with a budget; methods that do: .*random"
    ):
        problem.solve(Plugin())
    unequal = Problem(np.eye(3), np.ones((3, 2)), groups=[0, 0, 1], keep=1)
    with pytest.raises(CapabilityError, match="groups of unequal size"):
        unequal.solve(Plugin())
    forced = Problem(np.eye(3), np.ones((3, 2)), keep=2, always_keep=[0])
    assert forced.solve(Plugin()).kept.tolist() == [0, 2]
    with pytest.raises(CapabilityError, match="always_keep and always_remove without presolve"):
        forced.solve(Plugin(), presolve=False)
    with pytest.raises(CapabilityError, match="gives no path over all keep"):
        problem.path(Plugin())
