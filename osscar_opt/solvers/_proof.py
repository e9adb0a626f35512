"""What the referee does with a certificate: it is lifted to the problem as posed, and checked before it is believed."""

from __future__ import annotations

import math
from typing import NamedTuple

from osscar_opt._typing import BoolArray
from osscar_opt.certificates import Certificate, ProofTree, check
from osscar_opt.formulations.presolve import Presolved
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import absolute_tolerance

__all__ = ["Proof", "all_kept", "examined"]

_NO_CLAIM = -1e300
_BOUND_TOLERANCE = 1e-6
"""A claim this much above what is proved, relatively, is rounding; more is a false claim."""


class Proof(NamedTuple):
    """What is left of a certificate.

    Attributes
    ----------
    certificate : Certificate or None
        Of the problem as posed, and claiming what it was found to prove; None if it does not hold.
    bound : float or None
        By the checker's own numbers; None if nothing was proved.
    finding : str
        What is to be said about it, or "".
    seconds : float
        Time of the check.
    """

    certificate: Certificate | None
    bound: float | None
    finding: str
    seconds: float


def examined(method: str, presolved: Presolved, certificate: Certificate, support: BoolArray) -> Proof:
    """Check a solver's certificate of the presolved problem against the problem as posed.

    Parameters
    ----------
    method : str
        Name of the solver, for the finding.
    presolved : Presolved
    certificate : Certificate
        Not to be trusted.
    support : (n,) mask
        The support that is going to be returned; of the problem as posed.
    """
    try:
        lifted = presolved.lift_certificate(certificate).claiming(bound=_NO_CLAIM, support=support)
    except Exception as error:  # a solver may hand over anything
        said = str(error).rstrip(".")
        return Proof(None, None, f"the certificate of method {method!r} cannot be read ({said})", 0.0)
    report = check(lifted)
    problem = presolved.original
    if report.given_up:
        claimed = lifted.claiming(bound=certificate.bound, support=support)
        why = f"the certificate of method {method!r} could not be checked: {report.reasons[0].rstrip('.')}"
        return Proof(claimed, None, why, report.seconds)
    if not report.valid or report.value is None:
        said = report.reasons[0].rstrip(".")
        return Proof(
            None,
            None,
            f"the certificate of method {method!r} does not hold, so its bound was discarded: {said}",
            report.seconds,
        )
    bound = min(report.bound, report.value)
    finding = ""
    if not certificate.bound <= bound + _BOUND_TOLERANCE * abs(report.value) + absolute_tolerance(problem):
        finding = f"method {method!r} claimed the bound {certificate.bound:.9g}, but its certificate proves {bound:.9g}"
    proved = lifted.claiming(bound=bound, support=support, value=report.value)
    return Proof(proved, bound, finding, report.seconds)


def all_kept(problem: Problem) -> Certificate:
    """Certificate that no support is better than all groups together; all there is where presolve decided them all.

    Examples
    --------
    >>> import numpy as np
    >>> from osscar_opt.formulations.presolve import presolve
    >>> problem = Problem([[2.0]], [[2.0]], keep=1, always_keep=[0])
    >>> presolved = presolve(problem)
    >>> presolved.lift_certificate(all_kept(presolved.problem)).check().bound
    0.0
    """
    tree = ProofTree.of(problem)
    tree.close_superset(0)
    bound = problem.base if math.isfinite(problem.base) else _NO_CLAIM
    return Certificate.of(problem, tree, bound=bound)
