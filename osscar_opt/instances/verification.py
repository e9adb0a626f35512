"""Verification: what the catalogue and its records say, recomputed from the instances' own arrays."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osscar_opt.certificates import Certificate
from osscar_opt.errors import FormatError, OsscarError
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import absolute_tolerance
from osscar_opt.instances.ledger import PROVED, Best, Record, best_known, records_folders
from osscar_opt.instances.listing import Entry
from osscar_opt.instances.submissions import prove

__all__ = ["Check", "certificate_of", "verify"]


@dataclass(frozen=True)
class Check:
    """What was found of one pair of an instance and a keep, or of an instance itself.

    Attributes
    ----------
    instance : str
    keep : int or None
    state : str
        "proved" (the record's bound meets its value, and its proof was checked now), "bounded" (open; the proof of
        its bound was checked now), "value" (the value holds; no proof is at hand to be checked), "missing" (no record,
        or a recipe that is not built here), or "wrong".
    sentence : str

    Examples
    --------
    >>> Check("tiny", 2, "wrong", "the support is not feasible").holds
    False
    """

    instance: str
    keep: int | None
    state: str
    sentence: str

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong.

        Examples
        --------
        >>> Check("tiny", 2, "missing", "no record").holds
        True
        """
        return self.state != "wrong"


def verify(
    entry: Entry,
    *,
    regenerate: bool = False,
    time_limit: float = 600.0,
    folders: Iterable[str | os.PathLike[str]] | None = None,
) -> Iterator[Check]:
    """Check an instance's file, the values of its records, and their proofs; yields a `Check` for each pair.

    The value of every recorded support is recomputed. A certificate that is kept beside the records is compared with
    its sum and run through the checker.

    Parameters
    ----------
    entry : Entry
    regenerate : bool, optional
        Where a record's certificate was not kept, prove the bound again and check that.
    time_limit : float, optional
        Seconds for each such proof.
    folders : iterable of path-like, optional
        Of records, in place of `records_folders`.

    Examples
    --------
    >>> from osscar_opt.instances import catalogue
    >>> [check.state for check in verify(catalogue().select(["heads"])[0])]
    ['proved', 'proved', 'proved']
    """
    try:
        problem = entry.load()
    except OsscarError as error:
        built = entry.shipped or entry.path.exists()
        yield Check(entry.name, None, "wrong" if built else "missing", str(error))
        return
    known = best_known(folders)
    chosen = records_folders() if folders is None else tuple(Path(folder) for folder in folders)
    for keep in entry.pairs:
        best = known.get((entry.hash, keep))
        if best is None:
            yield Check(entry.name, keep, "missing", "there is no record.")
            continue
        posed = problem if keep is None else problem.with_keep(keep)
        try:
            yield _check(entry, posed, best, chosen, time_limit if regenerate else None)
        except OsscarError as error:
            yield Check(entry.name, keep, "wrong", str(error))


def certificate_of(record: Record, folders: Iterable[Path] | None = None) -> bytes | None:
    """Return the certificate's file of a record, compared with its sum; None if it was not kept.

    Raises
    ------
    FormatError
        If there is a file of that name with another content.

    Examples
    --------
    >>> certificate_of(Record("tiny", "ab12", 2, value=2.0, kept=(0,))) is None
    True
    """
    described = record.certificate
    if described is None or described["file"] is None:
        return None
    for folder in records_folders() if folders is None else folders:
        path = folder / described["file"]
        if path.exists():
            raw: bytes = path.read_bytes()
            if hashlib.sha256(raw).hexdigest() != described["sha256"]:
                raise FormatError(f"{path}: this is not the certificate that the record speaks of.")
            return raw
    return None


def _check(
    entry: Entry, problem: Problem, best: Best, folders: tuple[Path, ...], again: float | None
) -> Check:
    keep = problem.keep
    wrong = _wrong_value(problem, best)
    if wrong:
        return Check(entry.name, keep, "wrong", wrong)
    if best.proof is None:
        return Check(entry.name, keep, "value", f"{best.value:.9g} holds; no bound is known.")
    raw = certificate_of(best.proof, folders)
    if raw is not None:
        report = Certificate.load(raw, problem).check()
        if not report.valid:
            return Check(entry.name, keep, "wrong", f"the certificate does not hold: {report.reasons[0]}")
        bound, how = report.bound, f"certificate of {report.nodes} nodes checked in {report.seconds:.2f} s"
    elif again is not None:
        solution = prove(entry, keep, time_limit=again)  # the referee lets no bound pass that was not checked
        bound, how = solution.bound, f"proved again in {solution.solve_time:.1f} s and checked"
    else:
        return Check(
            entry.name, keep, "value", f"{best.value:.9g} holds; its certificate was not kept, only its sum."
        )
    slack = PROVED * abs(best.value) + absolute_tolerance(problem)
    if bound > best.value + slack:
        return Check(entry.name, keep, "wrong", f"{how}: it proves {bound:.9g}, above {best.value:.9g}.")
    if bound < best.bound - slack:
        state = "value" if again is not None and raw is None else "wrong"
        return Check(entry.name, keep, state, f"{how}: it proves {bound:.9g}, not {best.bound:.9g}.")
    proved = best.value - bound <= slack
    return Check(
        entry.name,
        keep,
        "proved" if proved else "bounded",
        f"{best.value:.9g}, {'optimal' if proved else f'bound {bound:.9g}'}: {how}.",
    )


def _wrong_value(problem: Problem, best: Best) -> str:
    """What is wrong with the support of a record, or ""."""
    if best.kept and not 0 <= min(best.kept) <= max(best.kept) < problem.n:
        return f"the recorded support names groups that are not among the {problem.n}."
    support = np.zeros(problem.n, dtype=bool)
    support[list(best.kept)] = True
    violation = problem.violation(support)
    if violation:
        return f"the recorded support is not feasible: it {violation}."
    value = problem.value(support)
    if not math.isclose(value, best.value, rel_tol=1e-9, abs_tol=absolute_tolerance(problem)):
        return f"the recorded support is worth {value:.12g}, not {best.value:.12g}."
    return ""
