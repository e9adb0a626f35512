"""Solvers that cheat, crash, hang or make a mess: what the tests of the runner install as somebody's package."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osscar_opt.solvers.base import Proposal, Solver


def first_groups(problem):
    """A poor but feasible support: the groups that come first."""
    return problem.limits.fill(range(problem.n), problem.always_keep)


class Plain(Solver):
    presolve: ClassVar[bool] = False

    def propose(self, problem, *, start, deadline, report):
        self.misbehave(problem, report)
        return Proposal(first_groups(problem))


@dataclass(frozen=True)
class Honest(Plain):
    """Keeps the first groups."""

    name: ClassVar[str] = "honest"

    def misbehave(self, problem, report):
        pass


@dataclass(frozen=True)
class Dice(Solver):
    """Takes a seed."""

    name: ClassVar[str] = "dice"
    seed: int = 0
    sides: int = 6

    def propose(self, problem, *, start, deadline, report):
        order = np.random.default_rng(self.seed).permutation(problem.n)
        return Proposal(problem.limits.fill(order, problem.always_keep))


@dataclass(frozen=True)
class PatchesReferee(Plain):
    """Makes every number that the library works out in this process a lie."""

    name: ClassVar[str] = "patches_referee"

    def misbehave(self, problem, report):
        import osscar_opt.bench.child
        import osscar_opt.solvers.referee as referee
        from osscar_opt.certificates import checker
        from osscar_opt.formulations.problem import Problem

        Problem.value = lambda self, support: -1.0
        Problem.objective = lambda self, weights: -1.0
        Problem.violation = lambda self, support: ""
        Problem.constant = property(lambda self: 1.0)
        checker.check = lambda *_, **__: checker.CheckReport(True, "optimal", bound=-1.0)
        judge = referee.judge

        def lying(evidence, tolerance):
            verdict = judge(evidence, tolerance)
            lies = {"objective": -1.0, "bound": -1.0, "status": "optimal", "bound_kind": "certified"}
            vars(verdict).update(lies)
            return verdict

        referee.judge = lying
        osscar_opt.bench.child.math.isfinite = lambda number: True


@dataclass(frozen=True)
class ClaimsBound(Plain):
    """Claims that what it found is optimal, with a proof that is none."""

    name: ClassVar[str] = "claims_bound"
    much: bool = False
    proof: bool = False
    garbage: bool = False

    def propose(self, problem, *, start, deadline, report):
        support = first_groups(problem)
        bound = problem.value(support) * (5.0 if self.much else 1.0)
        certificate = None
        if self.proof:
            from osscar_opt.certificates import Certificate, ProofTree

            tree = ProofTree.of(problem)
            certificate = Certificate.of(problem, tree, bound=bound, support=support, value=bound)
            if self.garbage:
                Certificate.to_bytes = lambda self, embed: b"garbage"
        return Proposal(support, lower_bound=bound, certificate=certificate)


@dataclass(frozen=True)
class Refuses(Plain):
    """Handles a plain keep alone."""

    name: ClassVar[str] = "refuses"
    handles: ClassVar[frozenset[str]] = frozenset()

    def misbehave(self, problem, report):
        pass


@dataclass(frozen=True)
class Sleeps(Plain):
    """Takes half a second, and says it took none."""

    name: ClassVar[str] = "sleeps"

    def misbehave(self, problem, report):
        time.sleep(0.5)
        time.monotonic = time.perf_counter = time.time = lambda: 0.0


@dataclass(frozen=True)
class Infeasible(Plain):
    """Keeps everything, past a referee that was told to look away."""

    name: ClassVar[str] = "infeasible"

    def propose(self, problem, *, start, deadline, report):
        from osscar_opt.formulations.problem import Problem

        Problem.violation = lambda self, support: ""
        return Proposal(np.ones(problem.n, dtype=bool))


@dataclass(frozen=True)
class Leaves(Plain):
    """Ends its process."""

    name: ClassVar[str] = "leaves"

    def misbehave(self, problem, report):
        os._exit(0)


@dataclass(frozen=True)
class Crashes(Plain):
    """Reads where nothing is."""

    name: ClassVar[str] = "crashes"

    def misbehave(self, problem, report):
        ctypes.string_at(0)


@dataclass(frozen=True)
class Raises(Plain):
    """Raises an error with a text of several lines."""

    name: ClassVar[str] = "raises"

    def misbehave(self, problem, report):
        raise ZeroDivisionError("one\ntwo \x1b[31m three")


@dataclass(frozen=True)
class HoldsGil(Plain):
    """Hangs in C code without letting go of the interpreter; says nothing before, or something."""

    name: ClassVar[str] = "holds_gil"
    speaks: bool = False

    def misbehave(self, problem, report):
        if self.speaks:
            support = first_groups(problem)
            report.incumbent(support, problem.value(support))
        ctypes.PyDLL(None).sleep(1000)


@dataclass(frozen=True)
class EatsMemory(Plain):
    """Takes all the memory there is, by itself or through children."""

    name: ClassVar[str] = "eats_memory"
    children: int = 0

    def misbehave(self, problem, report):
        if any(os.fork() == 0 for _ in range(self.children)):
            self.eat(200)
            time.sleep(1000)
        elif self.children:
            time.sleep(1000)
        self.eat(100_000)

    @staticmethod
    def eat(mebibytes):
        held = [np.ones(1 << 17) for _ in range(mebibytes)]
        del held


@dataclass(frozen=True)
class Forks(Plain):
    """Leaves processes behind: of its group, and one that has a session and a parent of its own; then hangs."""

    name: ClassVar[str] = "forks"

    def misbehave(self, problem, report):
        command = [sys.executable, "-c", "import time; time.sleep(1000)", os.environ["MARK_OF_TEST"]]
        subprocess.Popen(command)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(command[0], command)
            os._exit(0)
        time.sleep(1000)


@dataclass(frozen=True)
class FillsDisk(Plain):
    """Writes until the disk is full."""

    name: ClassVar[str] = "fills_disk"

    def misbehave(self, problem, report):
        folder = os.environ.get("SMALL_DISK")
        if not folder:
            raise OSError(28, os.strerror(28))
        with open(f"{folder}/filling", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)


@dataclass(frozen=True)
class Prints(Plain):
    """Prints garbage, on every stream it finds, the runner's channel aside."""

    name: ClassVar[str] = "prints"

    def misbehave(self, problem, report):
        for stream in (1, 2):
            for _ in range(100):
                os.write(stream, os.urandom(4096))


@dataclass(frozen=True)
class Babbles(Plain):
    """Writes garbage into every file descriptor it finds."""

    name: ClassVar[str] = "babbles"
    kind: int = 0

    def misbehave(self, problem, report):
        for file in range(3, 64):
            try:
                os.write(file, bytes([self.kind]) + b"\xff" * 200)
            except OSError:
                continue


@dataclass(frozen=True)
class HangsUp(Plain):
    """Closes every file descriptor it finds, and goes on."""

    name: ClassVar[str] = "hangs_up"

    def misbehave(self, problem, report):
        os.closerange(3, 64)
        time.sleep(1000)


@dataclass(frozen=True)
class BadStats(Plain):
    """Counts things that are not JSON, and far too many."""

    name: ClassVar[str] = "bad_stats"

    def propose(self, problem, *, start, deadline, report):
        stats = {"nan": float("nan"), "object": object(), "many": list(range(100_000))}
        return Proposal(first_groups(problem), stats=stats, message="said\n" * 1000)


@dataclass(frozen=True)
class Improves(Plain):
    """Reports ever better supports, the last of them just before it hangs."""

    name: ClassVar[str] = "improves"
    presolve: ClassVar[bool] = True

    def misbehave(self, problem, report):
        rng = np.random.default_rng(0)
        best = np.inf
        for _ in range(200):
            support = problem.limits.fill(rng.permutation(problem.n), problem.always_keep)
            value = problem.value(support)
            if value < best:
                best = value
                report.incumbent(support, value)
                time.sleep(0.01)
        ctypes.PyDLL(None).sleep(1000)


@dataclass(frozen=True)
class Starts(Plain):
    """Looks for the problem before the clock runs."""

    name: ClassVar[str] = "starts_early"

    def misbehave(self, problem, report):
        if problem.n not in here or seen:
            os._exit(3)


def _look() -> list[int]:
    """Sizes of the problems that there are in this process."""
    import gc

    from osscar_opt.formulations.problem import Problem

    gc.unfreeze()
    return [item.n for item in gc.get_objects() if isinstance(item, Problem)]


here = range(2, 1000)
seen = [n for n in _look() if n in here]
