"""From what a solver claims to what is true of it: the part of the referee that recomputes."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray, FloatArray
from osscar_opt.certificates import Certificate
from osscar_opt.errors import OsscarError, SolverError
from osscar_opt.formulations.presolve import Presolved
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.scores import diagonal_scores, ranked_support
from osscar_opt.formulations.solution import BoundKind, Status, Termination, absolute_tolerance
from osscar_opt.solvers._proof import Proof, all_kept, examined
from osscar_opt.solvers.base import Abandoned, Incumbent, Proposal, Report

__all__ = ["Evidence", "Verdict", "judge"]

_BOUND_TOLERANCE = 1e-6
"""A bound this much above the value, relatively, is rounding; more is a false claim."""

_SAME_VALUE = 1e-9


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a run left behind.

    Attributes
    ----------
    problem : Problem
        As posed.
    method : str
    presolved : Presolved or None
        None if presolve did not end in time.
    returned : object
        What `propose` returned; anything at all.
    error : BaseException or None
        What it raised.
    report : Report or None
    start : (n,) mask or None
        Of the problem as posed; feasible.
    stopped : Termination or None
        TIME_LIMIT or INTERRUPTED if the solver was told to stop.
    """

    problem: Problem
    method: str
    presolved: Presolved | None
    returned: object
    error: BaseException | None
    report: Report | None
    start: BoolArray | None
    stopped: Termination | None


@dataclass(frozen=True, eq=False)
class Verdict:
    """What holds after recomputation; the fields go into `Solution`."""

    support: BoolArray
    weights: FloatArray
    objective: float
    bound: float
    bound_kind: BoundKind
    status: Status
    termination: Termination
    message: str
    certificate: object | None
    stats: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Scored:
    support: BoolArray
    weights: FloatArray
    objective: float


def judge(evidence: Evidence, tolerance: float) -> Verdict:
    """Recompute and check everything.

    Raises
    ------
    SolverError
        If the solver failed and there is no solution at all; an OsscarError it raised comes through unchanged.
    """
    began = time.monotonic()
    findings: list[str] = []
    _release(evidence.error)
    proposal, failure = _admitted(evidence)
    best = None if proposal is None else _score_proposal(evidence, proposal, findings)
    best = _best_of(evidence.problem, best, _claims(evidence))
    if best is None:
        best = _last_resort(evidence, failure, findings)
    elif failure:
        findings.append(f"method {evidence.method!r} {failure}; the best solution known before is returned")
    bound, kind = _accepted_bound(evidence, best.objective, tolerance, findings)
    certificate = None if proposal is None or kind is not BoundKind.CLAIMED else proposal.certificate
    proof = None if proposal is None else _proof(evidence, proposal, best, kind, findings)
    if proof is not None:
        certificate = proof.certificate
        bound, kind = _proved_bound(proof, bound, kind)
    closed = best.objective - bound <= tolerance * abs(best.objective) + absolute_tolerance(evidence.problem)
    said = [proposal.message.rstrip(".")] if proposal is not None and proposal.message else []
    return Verdict(
        support=best.support,
        weights=best.weights,
        objective=best.objective,
        bound=bound,
        bound_kind=kind,
        status=Status.OPTIMAL if closed else Status.FEASIBLE,
        termination=_termination(evidence, proposal, closed),
        message="; ".join([*said, *findings]) + ("." if said or findings else ""),
        certificate=certificate,
        stats=_stats(evidence, proposal, proof, findings, time.monotonic() - began),
    )


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of a failed solver hold, tableaux foremost: a refit needs the memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _admitted(evidence: Evidence) -> tuple[Proposal | None, str]:
    """The proposal if it is sound, and otherwise what is wrong, as a clause that goes after the method's name."""
    if evidence.error is not None:
        if isinstance(evidence.error, Abandoned):
            return None, ""
        said = str(evidence.error).rstrip(".")
        if isinstance(evidence.error, OsscarError):
            return None, f"failed: {said}"
        return None, f"raised {type(evidence.error).__name__}: {said}"
    if evidence.returned is None and evidence.stopped is not None:
        return None, ""
    flaw = _flaw(evidence, evidence.returned)
    return (None, flaw) if flaw or not isinstance(evidence.returned, Proposal) else (evidence.returned, "")


def _flaw(evidence: Evidence, returned: object) -> str:
    if not isinstance(returned, Proposal) or evidence.presolved is None:
        return f"returned a {type(returned).__name__} instead of a Proposal"
    n = evidence.presolved.problem.n
    support = returned.support
    if not isinstance(support, np.ndarray) or support.dtype != bool or support.shape != (n,):
        shape, kind = np.shape(support), getattr(support, "dtype", type(support).__name__)
        return f"returned a support of shape {shape} and type {kind} where a boolean mask over {n} groups was due"
    if not isinstance(returned.message, str) or not isinstance(
        returned.lower_bound, (int, float, type(None))
    ):
        return "returned a Proposal whose message is not a str or whose lower_bound is not a number"
    if not isinstance(returned.stats, Mapping) or not isinstance(returned.termination, Termination):
        return "returned a Proposal whose stats are not a mapping or whose termination is not a Termination"
    violation = evidence.problem.violation(evidence.presolved.lift_support(support))
    return f"proposed an infeasible support, which {violation}" if violation else ""


def _score_proposal(evidence: Evidence, proposal: Proposal, findings: list[str]) -> _Scored:
    assert evidence.presolved is not None
    support = evidence.presolved.lift_support(proposal.support)
    weights = None
    if proposal.weights is not None:
        flaw = _weights_flaw(evidence, support, proposal.weights)
        if flaw:
            findings.append(
                f"method {evidence.method!r} returned weights {flaw}, so the weights were refitted"
            )
        else:
            weights = np.array(proposal.weights, dtype=np.float64)
    return _scored(evidence.problem, support, weights)


def _weights_flaw(evidence: Evidence, support: BoolArray, weights: object) -> str:
    problem = evidence.problem
    if evidence.presolved is None or evidence.presolved.steps:
        return "of the presolved problem, which only a method with presolve = False may do"
    if (
        not isinstance(weights, np.ndarray)
        or weights.dtype.kind != "f"
        or weights.shape != problem.cross.shape
    ):
        return (
            f"of shape {getattr(weights, 'shape', None)} where floats of shape {problem.cross.shape} were due"
        )
    if not np.all(np.isfinite(weights)):
        return "that are not finite"
    if np.any(weights[~problem.groups.row_mask(support)]):
        return "that are not zero outside the support"
    return ""


def _claims(evidence: Evidence) -> list[Incumbent]:
    """Every other support known, in the problem as posed; best claimed first, those without a claim last."""
    claims: list[Incumbent] = []
    if evidence.report is not None and evidence.presolved is not None:
        reported = [*evidence.report.incumbents, evidence.report.unclaimed]
        lift = evidence.presolved.lift_support
        claims = [Incumbent(lift(item.support), item.claim) for item in reported if item is not None]
    if evidence.start is not None:
        claims.append(Incumbent(evidence.start, None))
    return [claim for claim in claims if evidence.problem.feasible(claim.support)]


def _best_of(problem: Problem, best: _Scored | None, claims: Iterable[Incumbent]) -> _Scored | None:
    """The best after recomputing; a claim that would not even improve on the best so far is not recomputed."""
    for item in claims:
        if best is None:
            best = _scored(problem, item.support)
            continue
        to_beat = best.objective - _SAME_VALUE * abs(best.objective) - absolute_tolerance(problem)
        if np.array_equal(best.support, item.support) or (item.claim is not None and item.claim >= to_beat):
            continue
        candidate = _scored(problem, item.support)
        if candidate.objective < to_beat:
            best = candidate
    return best


def _last_resort(evidence: Evidence, failure: str, findings: list[str]) -> _Scored:
    """A support ranked by cheap scores if the solver was told to stop; if it was not, its failure is an error."""
    said = f"method {evidence.method!r} {failure}" if failure else "no solution was reported in time"
    if evidence.stopped is None:
        if isinstance(evidence.error, OsscarError):
            raise evidence.error
        raise SolverError(f"{said}, and no other solution is known.") from evidence.error
    findings.append(f"{said}, so groups were ranked by their diagonal terms")
    return _scored(evidence.problem, ranked_support(evidence.problem, diagonal_scores(evidence.problem)))


def _scored(problem: Problem, support: BoolArray, weights: FloatArray | None = None) -> _Scored:
    used = problem.refit(support) if weights is None else weights
    support.setflags(write=False)
    used.setflags(write=False)
    return _Scored(support, used, problem.objective(used))


def _accepted_bound(
    evidence: Evidence, value: float, tolerance: float, findings: list[str]
) -> tuple[float, BoundKind]:
    rounding = absolute_tolerance(evidence.problem)
    relaxed = (evidence.presolved.problem if evidence.presolved is not None else evidence.problem).base
    if value - relaxed <= tolerance * abs(value) + rounding:
        return min(relaxed, value), BoundKind.CERTIFIED  # as good as with all groups kept
    accepted = -math.inf
    for claim in _claimed_bounds(evidence):
        if math.isnan(claim) or claim > value + _BOUND_TOLERANCE * abs(value) + rounding:
            findings.append(
                f"method {evidence.method!r} claimed the bound {claim:.9g}, above the value {value:.9g} of its own "
                "solution, so the bound was discarded"
            )
        else:
            accepted = max(accepted, min(claim, value))
    return accepted, BoundKind.NONE if accepted == -math.inf else BoundKind.CLAIMED


def _proof(
    evidence: Evidence, proposal: Proposal, best: _Scored, kind: BoundKind, findings: list[str]
) -> Proof | None:
    """What the proposal's certificate is worth; None if it has none that the library knows how to check.

    Where the solution is as good as with all groups kept, the proof of that takes its place.
    """
    certificate, presolved = proposal.certificate, evidence.presolved
    if not isinstance(certificate, Certificate) or presolved is None:
        return None
    if kind is BoundKind.CERTIFIED:
        certificate = all_kept(presolved.problem)
    proof = examined(evidence.method, presolved, certificate, best.support)
    if proof.finding:
        findings.append(proof.finding)
    return proof


def _proved_bound(proof: Proof, bound: float, kind: BoundKind) -> tuple[float, BoundKind]:
    """The checker's bound in place of the solver's claims, which go with a certificate that does not hold."""
    if proof.bound is not None:
        return proof.bound, BoundKind.CERTIFIED
    if proof.certificate is not None or kind is BoundKind.CERTIFIED:
        return bound, kind
    return -math.inf, BoundKind.NONE


def _claimed_bounds(evidence: Evidence) -> list[float]:
    claimed = [] if evidence.report is None else [evidence.report.best_bound]
    if isinstance(evidence.returned, Proposal) and isinstance(evidence.returned.lower_bound, (int, float)):
        claimed.append(float(evidence.returned.lower_bound))
    return sorted(set(claimed) - {-math.inf})


def _termination(evidence: Evidence, proposal: Proposal | None, closed: bool) -> Termination:
    if proposal is None:
        failed = Termination.MEMORY_LIMIT if isinstance(evidence.error, MemoryError) else Termination.FAILED
        return evidence.stopped or failed
    if proposal.termination is Termination.COMPLETED and evidence.stopped is not None and not closed:
        return evidence.stopped  # it was told to stop and does not say that it did
    return proposal.termination


def _stats(
    evidence: Evidence, proposal: Proposal | None, proof: Proof | None, findings: list[str], seconds: float
) -> dict[str, Any]:
    stats: dict[str, Any] = {} if proposal is None else dict(proposal.stats)
    stats["refit_time"] = seconds if proof is None else seconds - proof.seconds
    if proof is not None:
        stats["check_time"] = proof.seconds
    if evidence.presolved is not None and evidence.presolved.steps:
        stats["presolve"] = list(evidence.presolved.log)
    if evidence.report is not None and evidence.report.rejected:
        stats["rejected_incumbents"] = evidence.report.rejected
    if findings:
        stats["findings"] = findings
    return stats
