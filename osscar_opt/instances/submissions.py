"""Submissions: a solution becomes a record when everything it says has been recomputed, and it is an improvement."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import osscar_opt
from osscar_opt.certificates import Certificate
from osscar_opt.errors import FormatError, InputError, SolverError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import BoundKind, Solution, absolute_tolerance
from osscar_opt.instances.ledger import PROVED, Best, Record, append, best_known, records_folders
from osscar_opt.instances.listing import Entry, data_folder, find
from osscar_opt.instances.solutions import load_solution, solution_info

__all__ = ["Submission", "prove", "submit", "submit_file"]

KEPT_CERTIFICATE = 64 * 1024 * 1024
"""Bytes of a certificate that are kept at most, unless asked; of a larger one the sum is recorded."""

_NOTICED = 1e-9
"""Relative improvement that is more than rounding."""


@dataclass(frozen=True)
class Submission:
    """What became of a submission.

    Attributes
    ----------
    accepted : bool
        Whether it was an improvement, and is a record now.
    sentence : str
        What it improved, or what is known that is at least as good.
    record : Record or None
    before : Best or None
        What was known.

    Examples
    --------
    >>> Submission(False, "the value 2 is known already.", None, None).accepted
    False
    """

    accepted: bool
    sentence: str
    record: Record | None
    before: Best | None


def submit_file(
    path: str | os.PathLike[str],
    *,
    by: str = "",
    folder: str | os.PathLike[str] | None = None,
    entry: Entry | None = None,
) -> Submission:
    """Check a solution file against its instance of the catalogue, and record it if it improves on what is known.

    Parameters
    ----------
    path : path-like
        As `Solution.save` writes it, with its certificate if it has one.
    by : str, optional
        Who found it.
    folder : path-like, optional
        Of the records; the user's own by default.
    entry : Entry, optional
        The instance, if it is not to be looked up by the solution's hash.

    Raises
    ------
    InputError
        If the solution is of no instance in the catalogue.
    FormatError, SolverError
        If the file is damaged, or does not hold what it says.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from osscar_opt.instances import catalogue
    >>> entry, folder = catalogue()[0], pathlib.Path(tempfile.mkdtemp())
    >>> entry.load().solve("magnitude_refit", keep=entry.keeps[0]).save(folder / "mine.safetensors")
    >>> submit_file(folder / "mine.safetensors", folder=folder / "records").accepted
    False
    """
    info = solution_info(path)
    found = find(info.problem_hash) if entry is None else entry
    if found is None:
        raise InputError(
            f"{os.fspath(path)}: its problem {info.problem_hash[:12]} {info.name!r} is no instance of the catalogue; "
            "osscar-opt instances list shows them."
        )
    return submit(load_solution(path, found.load()), found, by=by, folder=folder)


def submit(
    solution: Solution,
    entry: Entry,
    *,
    by: str = "",
    folder: str | os.PathLike[str] | None = None,
    largest: int = KEPT_CERTIFICATE,
) -> Submission:
    """Check a solution and record it if its value or its certified bound is better than what is known.

    The support is refitted and the objective recomputed; the bound counts if the checker of certificates accepts its
    proof. Nothing else of the solution is believed.

    Parameters
    ----------
    solution : Solution
    entry : Entry
        Its instance.
    by, folder
        As `submit_file`.
    largest : int, optional
        Bytes of a certificate that is kept beside the records; of a larger one only the sum is.

    Raises
    ------
    SolverError
        If the support breaks a limit, the stated objective is not that of the support, or a certificate does not hold.

    Examples
    --------
    >>> import tempfile
    >>> from osscar_opt.instances import catalogue
    >>> entry = catalogue()[0]
    >>> found = entry.load().solve("greedy", keep=entry.keeps[0])
    >>> submit(found, entry, folder=tempfile.mkdtemp()).before.proved
    True
    """
    target = data_folder() if folder is None else Path(folder)
    problem = solution.problem
    if problem.hash != entry.hash and (entry.shipped or problem.provenance.get("recipe") != entry.recipe):
        raise FormatError(f"the solution is of problem {problem.hash[:12]}, not of {entry.name}.")
    value = _value(solution)
    proof = _Proof.of(solution, value)
    before = best_known({*records_folders(), target}).get((entry.hash, problem.keep))
    better_value = before is None or value < before.value - _slack(problem, before.value)
    better_bound = proof is not None and (
        before is None
        or (not before.proved and proof.bound > before.bound + _slack(problem, before.bound))
        or (better_value and proof.bound > before.bound)
    )
    if not (better_value or better_bound):
        return Submission(False, _known(entry, problem, value, proof, before), None, before)
    kept = tuple(int(group) for group in solution.kept)
    if before is not None and not better_value:  # a bound alone: the record states the best value with it
        value, kept = before.value, before.kept
    bound = max(-math.inf if proof is None else proof.bound, -math.inf if before is None else before.bound)
    record = Record(
        instance=entry.name,
        hash=entry.hash,  # a recipe built on another machine may differ in its last digits
        keep=problem.keep,
        value=value,
        kept=kept,
        bound=None if proof is None else proof.bound,
        proof="none" if proof is None else proof.kind,
        proved=value - bound <= PROVED * abs(value) + absolute_tolerance(problem),
        method=solution.method,
        version=osscar_opt.__version__,
        by=by,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{platform.system()} {platform.machine()}",
        seconds=round(solution.setup_time + solution.solve_time, 3),
        certificate=None if proof is None else proof.described(entry.name, problem.keep, largest),
    )
    kept_file = record.certificate is not None and record.certificate["file"] is not None
    append(record, target, proof.raw if proof is not None and kept_file else None)
    return Submission(True, _improved(record, before, better_value), record, before)


def prove(
    entry: Entry,
    keep: int | None,
    *,
    time_limit: float = 60.0,
    progress: bool | None = None,
) -> Solution:
    """Solve a pair as well as the time allows: the best value of the searches, a certified bound, a proof if it can be.

    `search` first; then `exact`, which starts from it; where that is stopped, `exhaustive` if the supports are few, or
    else the bound of `Problem.lower_bound`.

    Parameters
    ----------
    entry : Entry
    keep : int or None
    time_limit : float, optional
        Seconds for `exact`, and again for the lower bound where `exact` is stopped.
    progress : bool, optional
        As in `Problem.solve`.

    Examples
    --------
    >>> from osscar_opt.instances import catalogue
    >>> entry = catalogue().select(["heads"])[0]
    >>> prove(entry, entry.keeps[0]).status.value
    'optimal'
    """
    problem = entry.load()
    if keep is not None:
        problem = problem.with_keep(keep)
    heuristic = "search" if problem.p <= _SEARCHED else "osscar"
    limit = max(time_limit, 1.0)
    found = problem.solve(heuristic, time_limit=limit, progress=progress)
    if problem.n <= _BRANCHED:
        found = problem.solve(
            "exact", start=found.support, certificate=True, time_limit=limit, progress=progress
        )
    if (
        found.status != "optimal"
        and problem.keep is not None
        and math.comb(problem.n, problem.keep) <= _ENUMERATED
    ):
        found = problem.solve("exhaustive", certificate=True, progress=progress)
    return found if found.status == "optimal" else found.certify(limit)


_SEARCHED = 4096
"""Rows up to which `search` is run; above, `osscar`."""

_ENUMERATED = 50_000
"""Supports up to which all of them are valued where a branch and bound was stopped."""

_BRANCHED = 400
"""Groups up to which a branch and bound can be hoped to do better than its root."""


@dataclass(frozen=True)
class _Proof:
    """A certified bound, and the certificate's file without its problem."""

    bound: float
    kind: str
    raw: bytes
    nodes: int

    @classmethod
    def of(cls, solution: Solution, value: float) -> _Proof | None:
        certificate = solution.certificate
        if not isinstance(certificate, Certificate) or solution.bound_kind is not BoundKind.CERTIFIED:
            return None
        report = certificate.check(solution.problem)
        if not report.valid:
            raise SolverError(f"the certificate does not hold: {report.reasons[0]}")
        leaves = report.leaves or {}
        kind = "relaxation" if report.nodes == 1 else "tree"
        if report.nodes == 1 and leaves.get("enumerated"):
            kind = "enumeration"
        return cls(min(report.bound, value), kind, certificate.to_bytes(embed=False), report.nodes)

    def described(self, name: str, keep: int | None, largest: int) -> dict[str, Any]:
        digest = hashlib.sha256(self.raw).hexdigest()
        stem = name if keep is None else f"{name}-keep{keep}"
        named = f"certificates/{stem}-{digest[:8]}.safetensors" if len(self.raw) <= largest else None
        return {"sha256": digest, "bytes": len(self.raw), "nodes": self.nodes, "file": named}


def _value(solution: Solution) -> float:
    """Recompute the value of the support, and compare it with what is stated."""
    problem = solution.problem
    violation = problem.violation(np.asarray(solution.support))
    if violation:
        raise SolverError(f"the support is not feasible: it {violation}.")
    value = problem.value(solution.support)
    if not value <= solution.objective + 1e-9 * abs(value) + absolute_tolerance(problem):
        raise SolverError(
            f"the support is worth {value:.12g}, not {solution.objective:.12g} as the solution states."
        )
    return value


def _slack(problem: Problem, level: float) -> float:
    return (_NOTICED * abs(level) if math.isfinite(level) else 0.0) + absolute_tolerance(problem)


def _pair(entry: Entry, keep: int | None) -> str:
    return entry.name if keep is None else f"{entry.name} at keep {keep}"


def _known(entry: Entry, problem: Problem, value: float, proof: _Proof | None, before: Best | None) -> str:
    assert before is not None
    known = f"{before.value:.9g}" + (", proved optimal" if before.proved else f", bound {before.bound:.9g}")
    bound = "" if proof is None else f" with bound {proof.bound:.9g}"
    return f"{_pair(entry, problem.keep)}: no improvement, {value:.9g}{bound} where {known} is known."


def _improved(record: Record, before: Best | None, better_value: bool) -> str:
    what = []
    if better_value:
        what.append(f"value {record.value:.9g}" + ("" if before is None else f" (was {before.value:.9g})"))
    if record.bound is not None:
        was = "" if before is None or not math.isfinite(before.bound) else f" (was {before.bound:.9g})"
        what.append(f"bound {record.bound:.9g}{was}")
    where = record.instance if record.keep is None else f"{record.instance} at keep {record.keep}"
    return f"{where}: {', '.join(what)}; {'proved optimal' if record.proved else 'open'}."
