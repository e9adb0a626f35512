"""Instances: files of problems and solutions, and problems drawn from seeded families."""

from __future__ import annotations

from osscar_opt.instances.format import InstanceInfo, instance_info, load, save
from osscar_opt.instances.generators import FAMILIES, random_instance
from osscar_opt.instances.sealed import file_kind
from osscar_opt.instances.solutions import SolutionInfo, load_solution, save_solution, solution_info

__all__ = [
    "FAMILIES",
    "InstanceInfo",
    "SolutionInfo",
    "file_kind",
    "instance_info",
    "load",
    "load_solution",
    "random_instance",
    "save",
    "save_solution",
    "solution_info",
]
