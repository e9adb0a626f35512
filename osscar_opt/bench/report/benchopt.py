"""Export of a benchmark as a folder that benchopt runs (https://benchopt.github.io, written for its version 1.10).

The folder holds Python files that import `osscar_opt`: an objective, one data set whose parameters are the pairs of
instance and keep, and a solver for each method.  Instances of the catalogue are named; other files are copied into it.
"""

from __future__ import annotations

import os
import pprint
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from osscar_opt.errors import InputError

if TYPE_CHECKING:
    from osscar_opt.bench.planning import Instance, Method, Source

__all__ = ["export"]

_OBJECTIVE = '''"""Choose which groups of a layer's inputs stay; the objective is the error of the refitted layer."""

from benchopt import BaseObjective
from osscar_opt.instances.ledger import best_known


class Objective(BaseObjective):
    name = "structured pruning with refit"
    min_benchopt_version = "1.8"
    requirements = ["pip::osscar-opt"]
    sampling_strategy = "run_once"

    def set_data(self, problem):
        self.problem = problem
        self.best = best_known().get((problem.hash, problem.keep))

    def get_objective(self):
        return {"problem": self.problem}

    def get_one_result(self):
        return {"support": self.problem.solve("greedy", progress=False).support}

    def evaluate_result(self, support):
        """Recompute everything from the support: what a solver says of itself does not count."""
        broken = self.problem.violation(support)
        if broken:
            raise ValueError(f"the support is not feasible: it {broken}")
        value = self.problem.value(support)
        measured = {"value": value, "kept": int(support.sum())}
        if self.problem.constant > 0:
            measured["relative"] = value / self.problem.constant
        if self.best is not None and self.best.value > 0:
            measured["gap"] = max(value - self.best.value, 0.0) / self.best.value
            measured["best_known_is_proved"] = float(self.best.proved)
        return measured
'''

_DATASET = Template('''"""Instances, and how many groups may stay: None where an instance has limits of its own."""

from pathlib import Path

from benchopt import BaseDataset
from osscar_opt import load
from osscar_opt.instances.listing import catalogue

FILES = Path(__file__).resolve().parent / "files"
HASHES = $hashes


class Dataset(BaseDataset):
    name = "catalogue"
    requirements = ["pip::osscar-opt"]
    parameters = {
        "instance, keep": $pairs
    }
    test_parameters = {"instance, keep": [$smallest]}

    def get_data(self):
        copied = FILES / f"{self.instance}.safetensors"
        problem = load(copied) if copied.exists() else catalogue()[self.instance].load()
        if HASHES[self.instance] not in ("", problem.hash):
            raise ValueError(f"{self.instance} is not the instance that was exported: its hash is {problem.hash}")
        return {"problem": problem if self.keep is None else problem.with_keep(self.keep)}
''')

_SOLVER = Template('''"""$summary"""

from benchopt import BaseSolver
from osscar_opt.solvers.registry import solver_class


class Solver(BaseSolver):
    name = $label
    requirements = $requirements
    parameters = $parameters
    test_config = {"time_limit": 5.0}
    sampling_strategy = "run_once"

    def skip(self, problem):
        missing = problem.features - {"forced"} - solver_class($method).handles
        return bool(missing), f"it does not handle {', '.join(sorted(missing))}" if missing else None

    def set_objective(self, problem):
        self.problem = problem

    def run(self, _):
        options = $options
        self.solution = self.problem.solve(
            $method, time_limit=self.time_limit, progress=False, **options
        )

    def get_result(self):
        return {"support": self.solution.support}
''')

_README = Template("""Structured pruning of neural network layers
===========================================

A layer has inputs in groups (neurons, channels, attention heads). At most ``keep`` groups may stay; the weights on
them are refitted by least squares. Which groups lose least? Solvers return a mask of the groups; the objective
recomputes the error of the refitted layer from that mask alone, and its gap to the best value known.

This folder was written by ``osscar-opt bench export-benchopt`` (osscar_opt $version): $pairs pairs of an instance and
a keep, $methods methods.

.. code-block:: bash

    pip install benchopt osscar-opt
    benchopt run .

Results: ``objective_value`` (error of the refitted layer), ``objective_relative`` (1 is the error of keeping nothing),
``objective_gap`` (to the best value known, where the catalogue has one), ``objective_best_known_is_proved``.

A method of your own: a file in ``solvers/`` whose ``run`` sets a support, or a plugin of osscar_opt by entry point.
""")

_TEST_CONFIG = '''"""Checks that benchopt's own tests are to leave out, if any; it asks for this file."""

import pytest


def check_test_solver(benchmark, solver_class):
    if not solver_class.is_installed():
        pytest.skip(f"{solver_class.name} needs a package that is not installed")
'''


def export(
    folder: str | os.PathLike[str],
    *,
    methods: str | Iterable[Method],
    instances: Instance | Iterable[Instance],
    keeps: Iterable[int | float] | None = None,
    time_limit: float = 60.0,
) -> list[Path]:
    """Write a benchopt benchmark.

    Parameters
    ----------
    folder : path
        Must be empty or not exist.
    methods, instances, keeps
        As for `osscar_opt.bench.runner.run`.
    time_limit : float
        Seconds for each run; benchopt can set another, ``-s 'greedy[time_limit=5]'``.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    InputError
        If the folder has something in it, two methods would share a file, or there is nothing to export.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.instances import random_instance
    >>> folder = Path(tempfile.mkdtemp()) / "benchmark"
    >>> files = export(folder, methods=["greedy", "search:patience=3"], instances=random_instance(0, "planted", n=6))
    >>> [path.relative_to(folder).as_posix() for path in files if path.suffix == ".py"]
    ['objective.py', 'datasets/catalogue.py', 'test_config.py', 'solvers/greedy.py', 'solvers/search_patience_3.py']
    """
    import tempfile

    from osscar_opt import __version__
    from osscar_opt.bench.planning import parse_method, sources

    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is not empty: name a folder that does not exist yet.")
    chosen = [parse_method(method) for method in ([methods] if isinstance(methods, str) else methods)]
    wanted = None if keeps is None else list(keeps)
    with tempfile.TemporaryDirectory() as beside:  # for problems that are in no file
        found = sources(instances, Path(beside) / "store")
        pairs = [(source.name, keep) for source in found for keep in source.keeps_for(wanted)]
        if not pairs or not chosen:
            raise InputError("there is nothing to export: name at least one method and one instance.")
        smallest = min(pairs, key=lambda pair: next(source.p for source in found if source.name == pair[0]))
        files = {
            "objective.py": _OBJECTIVE,
            "datasets/catalogue.py": _DATASET.substitute(
                hashes=_literal({source.name: source.hash for source in found}),
                pairs=_literal(pairs, indent=8),
                smallest=repr(smallest),
            ),
            "README.rst": _README.substitute(version=__version__, pairs=len(pairs), methods=len(chosen)),
            "test_config.py": _TEST_CONFIG,
            **_solvers(chosen, time_limit),
        }
        return [*_write(target, files), *_copy(target, found)]


def _solvers(methods: list[tuple[str, dict[str, Any]]], time_limit: float) -> dict[str, str]:
    from osscar_opt.bench.tasks import label
    from osscar_opt.solvers.registry import get_solver, solvers

    files: dict[str, str] = {}
    for method, options in methods:
        get_solver(method, options)  # complains of what there is not
        info = solvers()[method]
        seeded = any(option.name == "seed" for option in info.options)
        fixed = {name: value for name, value in options.items() if name != "seed"}
        parameters = {"time_limit": [time_limit]} | ({"seed": [options.get("seed", 0)]} if seeded else {})
        shown = label(method, fixed)
        name = f"solvers/{re.sub(r'[^A-Za-z0-9]+', '_', shown).strip('_')}.py"
        if name in files:
            raise InputError(f"two methods would be written to {name}: export them to two folders.")
        files[name] = _SOLVER.substitute(
            summary=_in_docstring(info.summary),
            label=repr(shown.replace("/", " ")),
            method=repr(method),
            requirements=repr(
                ["pip::osscar-opt", *(f"pip::{package}" for package in _packages(info.source))]
            ),
            parameters=repr(parameters),
            options=_with_seed(fixed) if seeded else repr(fixed),
        )
    return files


def _with_seed(options: Mapping[str, Any]) -> str:
    fixed = "".join(f"{name!r}: {value!r}, " for name, value in options.items())
    return f"{{{fixed}'seed': self.seed}}"


def _packages(source: str) -> list[str]:
    """The package of a plugin, from its import string."""
    top = source.partition(":")[0].partition(".")[0]
    return [] if top == "osscar_opt" else [top.replace("_", "-")]


def _in_docstring(text: str) -> str:
    return text.replace("\\", " ").replace('"""', "'''").rstrip('"') or "A method of osscar_opt."


def _literal(value: Any, indent: int = 0) -> str:
    """A literal as Python code, one entry a line: benchopt reads parameters without importing."""
    text = pprint.pformat(value, width=100, sort_dicts=False)
    return text.replace("\n", "\n" + " " * indent)


def _write(target: Path, files: Mapping[str, str]) -> list[Path]:
    from osscar_opt.instances.container import replacing

    written = []
    for name, text in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            aside.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _copy(target: Path, found: Iterable[Source]) -> list[Path]:
    """Copy the instances that are not in the catalogue."""
    from osscar_opt.instances.listing import catalogue

    known = {entry.name: entry.hash for entry in catalogue()}
    copied = []
    for source in found:
        if known.get(source.name) != source.hash:
            path = target / "datasets" / "files" / f"{source.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path, path)
            copied.append(path)
    return copied
