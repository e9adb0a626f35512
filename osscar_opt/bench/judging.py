"""What is true of what a run proposed: the runner's own numbers, from its own copy of the problem.

Of a method's process only supports and certificates are taken.  Everything else that it says is either left out, or
goes into a row under a name that says whose word it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osscar_opt._typing import BoolArray
from osscar_opt.certificates import CheckReport
from osscar_opt.formulations.problem import Problem
from osscar_opt.formulations.solution import Termination, absolute_tolerance

__all__ = ["Answer", "Judgement", "judge"]

_MOST_STEPS = 40
_FEWEST_STEPS = 4
_SECONDS_FOR_TRACE = 1.0
_SPEED = 5e9
"""Floating-point operations a second that a refit is sure to reach."""

_CHECK_SPEED = 2e10
_LEAST_CHECK = 300.0
"""Seconds of work that a certificate may ask for at least; otherwise four times the time of the run."""

_OPTIMAL = 1e-6
_TERMINATIONS = frozenset(str(member) for member in Termination)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the process of a run sent in the end; claims throughout.

    Attributes
    ----------
    support : bytes
        Packed bits.
    bound : float or None
    certificate : bytes
    termination, message : str
    search : float or None
    stats : dict

    Examples
    --------
    >>> Answer.of({"support": "a0", "bound": "high", "stats": 3}, b"").bound is None
    True
    """

    support: bytes
    bound: float | None = None
    certificate: bytes = b""
    termination: str = "completed"
    message: str = ""
    search: float | None = None
    stats: dict[str, Any] | None = None

    @classmethod
    def of(cls, document: dict[str, Any], certificate: bytes) -> Answer:
        r"""Take from a document what has the right type.

        Raises
        ------
        ValueError
            If there is no support in it.

        Examples
        --------
        >>> Answer.of({"support": "a0"}, b"").support
        b'\xa0'
        """
        support, stats, said = (document.get(name) for name in ("support", "stats", "message"))
        if not isinstance(support, str):
            raise ValueError("no support")
        termination = document.get("termination")
        return cls(
            support=bytes.fromhex(support),
            bound=_number(document.get("bound")),
            certificate=certificate,
            termination=termination if termination in _TERMINATIONS else "completed",
            message=said if isinstance(said, str) else "",
            search=_number(document.get("search")),
            stats=stats if isinstance(stats, dict) else {},
        )


@dataclass(frozen=True, eq=False)
class Judgement:
    """The part of a row that is about the support.

    Attributes
    ----------
    support : (n,) mask or None
        The best that was proposed and is feasible.
    objective, relative : float or None
    bound : float or None
    bound_kind, status : str
    trace : list of (float, float)
    flaw : str
        What is wrong with the support that was proposed last, as a clause, or "".
    notes : dict
        What became of claims that did not hold.

    Examples
    --------
    >>> Judgement(None, None, None, None, "none", "none", [], "is too large", {}).flaw
    'is too large'
    """

    support: BoolArray | None
    objective: float | None
    relative: float | None
    bound: float | None
    bound_kind: str
    status: str
    trace: list[tuple[float, float]]
    flaw: str
    notes: dict[str, str]


class _Scorer:
    """Values of packed supports; None for what is not a feasible support."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[bytes, float | None] = {}

    def __call__(self, packed: bytes) -> float | None:
        if packed not in self._known:
            mask = unpacked(packed, self._problem.n)
            fine = mask is not None and self._problem.feasible(mask)
            self._known[packed] = self._problem.value(mask) if fine else None
        return self._known[packed]


def unpacked(packed: bytes, n: int) -> BoolArray | None:
    """Mask over n groups from packed bits; None if their number is another one.

    Examples
    --------
    >>> unpacked(bytes([0b10100000]), 3)
    array([ True, False,  True])
    >>> unpacked(b"", 3) is None
    True
    """
    if len(packed) != -(-n // 8):
        return None
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n).astype(bool)


def judge(
    problem: Problem,
    answer: Answer | None,
    incumbents: Sequence[tuple[float, bytes]],
    wall: float,
) -> Judgement:
    """Recompute the objective, draw the trace, and check what is said of a bound.

    Parameters
    ----------
    problem : Problem
        The runner's own, with the keep of the run.
    answer : Answer or None
        None if the run was ended without one: the best incumbent then counts.
    incumbents : sequence of (float, bytes)
        Seconds, and packed supports as they came.
    wall : float
        Seconds of the whole run.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [[1.0], [3.0], [2.0]], keep=1)
    >>> first, last = (np.packbits(mask).tobytes() for mask in ([True, False, False], [False, True, False]))
    >>> found = judge(problem, Answer(last, bound=9.0), [(0.1, first)], wall=0.5)
    >>> found.objective, found.trace, found.bound_kind
    (2.5, [(0.1, 6.5), (0.5, 2.5)], 'none')
    """
    score = _Scorer(problem)
    flaw = "" if answer is None else _flaw(problem, answer.support)
    picked = _picked(incumbents, _affordable(problem))
    trace, best = _trace(score, picked)
    if answer is not None and not flaw:
        _, best = _trace(score, [*picked, (wall, answer.support)])
    objective = None if best is None else score(best)
    if best is None or objective is None or flaw:
        return Judgement(None, None, None, None, "none", "none", [], flaw, {})
    trace.append((wall, objective))
    bound, kind, notes = (None, "none", {}) if answer is None else _bound(problem, answer, objective, wall)
    closed = kind == "certified" and bound is not None and objective - bound <= _rounding(problem, objective)
    constant = problem.constant
    return Judgement(
        support=unpacked(best, problem.n),
        objective=objective,
        relative=objective / constant if constant > 0.0 else None,
        bound=bound,
        bound_kind=kind,
        status="optimal" if closed else "feasible",
        trace=trace,
        flaw="",
        notes=notes,
    )


def _flaw(problem: Problem, packed: bytes) -> str:
    mask = unpacked(packed, problem.n)
    return f"is not a mask over {problem.n} groups" if mask is None else problem.violation(mask)


def _trace(
    score: _Scorer, proposed: Iterable[tuple[float, bytes]]
) -> tuple[list[tuple[float, float]], bytes | None]:
    """Steps that improve, and the best support."""
    trace: list[tuple[float, float]] = []
    best: bytes | None = None
    for seconds, packed in proposed:
        value = score(packed)
        if value is not None and math.isfinite(value) and (not trace or value < trace[-1][1]):
            trace.append((seconds, value))
            best = packed
    return trace, best


def _picked(incumbents: Sequence[tuple[float, bytes]], count: int) -> list[tuple[float, bytes]]:
    """So many of them, spread evenly, first and last included."""
    if len(incumbents) <= count:
        return list(incumbents)
    return [incumbents[round(i * (len(incumbents) - 1) / (count - 1))] for i in range(count)]


def _affordable(problem: Problem) -> int:
    """How many refits a trace may cost."""
    rows = problem.p * (1.0 if problem.keep is None else problem.keep / max(problem.n, 1))
    operations = rows**3 / 3.0 + 6.0 * rows**2 * problem.q + problem.p**2 * problem.q
    affordable = int(_SECONDS_FOR_TRACE * _SPEED / max(operations, 1.0))
    return min(_MOST_STEPS - 1, max(_FEWEST_STEPS, affordable))


def _bound(
    problem: Problem, answer: Answer, objective: float, wall: float
) -> tuple[float | None, str, dict[str, str]]:
    """The bound that a certificate proves; failing that, the claim, unless the objective refutes it.

    That no support is better than all groups together needs no certificate.
    """
    notes: dict[str, str] = {}
    if objective - problem.base <= _rounding(problem, objective):
        return min(problem.base, objective), "certified", notes
    if answer.certificate:
        report = _checked(problem, answer.certificate, wall)
        if report.valid and math.isfinite(report.bound):
            return min(report.bound, objective), "certified", notes
        notes["certificate"] = next(iter(report.reasons), "It proves no bound.")[:500]
    if answer.bound is None:
        return None, "none", notes
    if answer.bound - objective > _rounding(problem, objective):
        notes["bound"] = f"The bound {answer.bound:.9g} was claimed, which is above the objective."
        return None, "none", notes
    return min(answer.bound, objective), "claimed", notes


def _checked(problem: Problem, certificate: bytes, wall: float) -> CheckReport:
    from osscar_opt.certificates import check

    return check(certificate, problem, max_operations=_CHECK_SPEED * max(_LEAST_CHECK, 4.0 * wall))


def _rounding(problem: Problem, objective: float) -> float:
    return _OPTIMAL * abs(objective) + absolute_tolerance(problem)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
