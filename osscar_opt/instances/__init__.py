"""Instances: files of problems and solutions, seeded families, and the catalogue with its records."""

from __future__ import annotations

from osscar_opt.instances.format import InstanceInfo, instance_info, load, save
from osscar_opt.instances.generators import FAMILIES, random_instance
from osscar_opt.instances.ledger import Best, Record, best_known, records
from osscar_opt.instances.listing import Catalogue, Entry, catalogue
from osscar_opt.instances.sealed import file_kind
from osscar_opt.instances.solutions import SolutionInfo, load_solution, save_solution, solution_info

__all__ = [
    "FAMILIES",
    "Best",
    "Catalogue",
    "Entry",
    "InstanceInfo",
    "Record",
    "SolutionInfo",
    "best_known",
    "catalogue",
    "file_kind",
    "instance_info",
    "load",
    "load_solution",
    "random_instance",
    "records",
    "save",
    "save_solution",
    "solution_info",
]
