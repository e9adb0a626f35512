"""What the tests of the runner share."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from pathlib import Path

import bench_liars

from osscar_opt.instances import random_instance
from osscar_opt.solvers.base import Solver

LIARS = [
    member
    for _, member in inspect.getmembers(bench_liars, inspect.isclass)
    if issubclass(member, Solver) and "name" in vars(member)
]


def install_liars(folder: Path) -> None:
    """Make a folder that looks like the site-packages of a package with these solvers."""
    shutil.copy(bench_liars.__file__, folder / "liars_of_test.py")
    info = folder / "liars_of_test-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liars-of-test\nVersion: 1.2.3\n")
    lines = [f"{cls.name} = liars_of_test:{cls.__name__}" for cls in LIARS]
    lines += ["cannot_be_loaded = liars_of_test_missing:Nobody"]
    (info / "entry_points.txt").write_text("\n".join(["[osscar_opt.solvers]", *lines, ""]))


def small_files(folder: Path, count: int = 1, n: int = 12) -> list[str]:
    paths = [folder / f"small{seed}.safetensors" for seed in range(count)]
    for seed, path in enumerate(paths):
        random_instance(seed, "correlated", n=n, q=3).save(path)
    return [str(path) for path in paths]


def processes_with(mark: str, *, inherited: bool = False) -> list[int]:
    """Processes that have a text on their command line, or in their environment if that counts; this one aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes() + (
                (folder / "environ").read_bytes() if inherited else b""
            )
        except OSError:
            continue
        if mark.encode() in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


on_linux = sys.platform == "linux"
