"""Branch and bound: every bound below the enumerated optimum, every proof right, stopped searches honest."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from osscar_opt import Problem, load
from osscar_opt.formulations.presolve import presolve
from osscar_opt.formulations.solution import BoundKind, Status, Termination
from osscar_opt.linalg import directional, lifted
from osscar_opt.linalg.stacks import make_stacks
from osscar_opt.solvers import _nodes, exact
from osscar_opt.solvers._nodes import Node, OpenNodes, Packing
from osscar_opt.solvers.base import Deadline, Report

REAL = sorted((Path(__file__).parent / "data").glob("*.safetensors"))


@pytest.fixture
def branching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems of any size are branched on, not enumerated."""
    monkeypatch.setattr(exact, "_ENUMERATED", 0)


def drawn(seed: int) -> Problem:
    """A random problem: group sizes 1 to 4 or mixed, damping 1e-3 to 1e-1, q from 1 to 3n, every kind of limit."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 13))
    sizes = [np.ones(n, int), np.full(n, rng.integers(1, 5)), rng.integers(1, 5, n)][rng.integers(3)]
    p, q = int(sizes.sum()), int(rng.integers(1, 3 * n + 1))
    q += q == p
    x = rng.normal(size=(int(rng.integers(max(2, p // 2), 3 * p)), p))
    x = (x @ (np.eye(p) + rng.uniform() * rng.normal(size=(p, p)))) * 10 ** rng.uniform(-1, 1, p)
    x += rng.uniform(0, 2) * rng.normal(size=(len(x), 1))
    gram = x.T @ x / len(x)
    gram += 10 ** rng.uniform(-3, -1) * np.mean(np.diag(gram)) * np.eye(p)
    unit = 1.0 / np.sqrt(np.diag(gram))[:, None]
    weights = rng.normal(size=(p, q)) * 10 ** rng.uniform(-0.5, 0.5, (p, 1)) * unit
    limits: dict[str, object] = {"groups": np.repeat(np.arange(n), sizes)}
    kind = rng.integers(6)
    if kind == 0:
        limits["blocks"] = np.arange(n) % 2
        limits["block_keep"] = [int(rng.integers(0, n // 2 + 1)), int(rng.integers(0, n // 2 + 1))]
    elif kind == 1:
        limits["costs"] = rng.uniform(0.5, 2, n)
        limits["budget"] = float(rng.uniform(0.2, 0.9) * limits["costs"].sum())
    elif kind == 2:
        limits["costs"] = rng.integers(1, 5, n).astype(float)
        limits["budget"] = float(rng.uniform(0.2, 0.9) * limits["costs"].sum())
        limits["keep"] = int(rng.integers(1, n + 1))
    else:
        limits["keep"] = int(rng.integers(1, n))
    if kind == 3:
        limits["always_remove"] = [int(rng.integers(n))]
    if kind == 4 and limits["keep"] > 1:
        limits["always_keep"] = [int(rng.integers(n))]
    if rng.random() < 0.5:
        return Problem(gram, dense_weights=weights, **limits)
    noise = 0.1 * rng.normal(size=(p, q)) / unit
    return Problem(gram, gram @ weights + noise, **limits)


def enumerated(problem: Problem) -> float:
    """The least value of all feasible supports, by plain numpy."""
    best = np.inf
    groups = problem.groups.group_of_row
    for bits in itertools.product([False, True], repeat=problem.n):
        support = np.array(bits)
        forced = np.all(support[problem.always_keep]) and not np.any(support[problem.always_remove])
        if not forced or np.any(problem.limits.usage @ support > problem.limits.limit * (1 + 1e-9)):
            continue
        rows = support[groups]
        gram, cross = problem.gram[np.ix_(rows, rows)], problem.cross[rows]
        best = min(best, problem.constant - 0.5 * float(np.sum(cross * np.linalg.solve(gram, cross))))
    return best


def check_exact(seed: int, certificate: bool) -> None:
    problem = drawn(seed)
    optimum = enumerated(problem)
    slack = 1e-8 * abs(optimum) + 1e-10 * abs(problem.constant)
    solution = problem.solve("exact", certificate=certificate)
    assert solution.status is Status.OPTIMAL, (seed, solution.message)
    assert abs(solution.objective - optimum) <= 1e-6 * abs(optimum) + slack, seed
    assert solution.bound <= optimum + slack, seed
    if certificate:
        assert solution.bound_kind is BoundKind.CERTIFIED, (seed, solution.message)


@pytest.mark.usefixtures("branching")
class TestValidity:
    @pytest.mark.parametrize("first", range(0, 120, 20))
    def test_proves_what_enumeration_finds(self, first: int) -> None:
        for seed in range(first, first + 20):
            check_exact(seed, certificate=seed % 4 == 0)

    @pytest.mark.slow
    @pytest.mark.parametrize("first", range(1000, 3000, 100))
    def test_proves_what_enumeration_finds_often(self, first: int) -> None:
        for seed in range(first, first + 100):
            check_exact(seed, certificate=seed % 2 == 0)

    @pytest.mark.parametrize("seed", range(30))
    def test_a_stopped_search_has_a_valid_bound_and_certificate(self, seed: int) -> None:
        problem = drawn(seed)
        solution = problem.solve("exact", node_limit=1, certificate=True)
        optimum = enumerated(problem)
        slack = 1e-8 * abs(optimum) + 1e-10 * abs(problem.constant)
        assert solution.bound <= optimum + slack
        assert solution.objective >= optimum - slack
        assert solution.certificate is not None
        report = solution.certificate.check(problem)
        assert report.valid
        assert report.bound <= optimum + slack

    def test_torch_gives_the_same_answer(self) -> None:
        for seed in (3, 5, 8):
            problem = drawn(seed)
            here, there = problem.solve("exact"), problem.solve("exact", device="torch:cpu")
            assert np.array_equal(here.support, there.support)
            assert there.status is Status.OPTIMAL

    @pytest.mark.parametrize("batch", [1, 3, 64])
    def test_batches_of_any_size(self, batch: int) -> None:
        problem = drawn(11)
        assert problem.solve("exact", batch=batch).objective == pytest.approx(enumerated(problem), rel=1e-6)

    def test_depth_first_when_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_nodes, "_LEAST_OPEN", 2)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 24)) + 2.0 * rng.normal(size=(60, 1))
        problem = Problem(x.T @ x / 60 + 0.05 * np.eye(24), dense_weights=rng.normal(size=(24, 2)), keep=8)
        wide = problem.solve("exact")
        narrow = problem.solve("exact", memory=0.0)
        assert narrow.stats["depth_first"]
        assert not wide.stats["depth_first"]
        assert narrow.status is Status.OPTIMAL
        assert narrow.objective == pytest.approx(wide.objective, rel=1e-9)


class TestRelaxations:
    """Both relaxations against their formulas written out, one node at a time."""

    def node(self, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, float]:
        rng = np.random.default_rng(seed)
        p = 3 * 4 if size == 3 else 4 * size
        x = rng.normal(size=(30, p)) + rng.normal(size=(30, 1))
        gram = x.T @ x / 30 + 0.1 * np.eye(p)
        cross = gram @ rng.normal(size=(p, 13))  # no fewer outputs than rows: no target is projected
        return gram, cross, 0.5 * float(np.sum(cross * np.linalg.solve(gram, cross)))

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_directional_is_one_diagonal_for_the_targets_of_each_group(self, size: int) -> None:
        gram, cross, constant = self.node(size, size)
        stacks, p = make_stacks("cpu"), len(gram)
        n = p // size
        whole = lifted.lift(stacks, gram[None], cross[None], np.array([constant]), size)
        pairs = directional.pair(stacks, gram[None], cross[None], np.array([constant]), whole)
        assert np.allclose(pairs.targets[0] @ pairs.targets[0].T, cross @ cross.T)
        rng = np.random.default_rng(1)
        a = rng.uniform(0.2, 0.9, n) * np.linalg.eigvalsh(gram)[0]
        z = rng.uniform(0.1, 0.9, n)
        start, inverse = directional.feasible_start(stacks, gram[None], a[None])
        at = directional.Point(start, z[None], inverse)
        found = directional.evaluate(stacks, pairs, at)
        slack_inverse = np.linalg.inv(gram - np.diag(np.repeat(a, size)))
        value, score = constant, np.zeros(n)
        for g in range(n):
            rows = slice(g * size, (g + 1) * size)
            d = np.diag(np.repeat(a, size))
            d[rows, rows] += (1 - directional.SAFETY) * np.linalg.inv(slack_inverse[rows, rows])
            assert np.linalg.eigvalsh(gram - d)[0] > 0
            odds = np.repeat(1 / z - 1, size)
            target = pairs.targets[0][:, rows]
            fitted = np.linalg.solve(gram + np.sqrt(odds)[:, None] * d * np.sqrt(odds), target)
            value -= 0.5 * np.sum(target * fitted)
            for h in range(n):
                block = slice(h * size, (h + 1) * size)
                score[h] += 0.5 * np.sum(fitted[block] * (d[block, block] @ fitted[block])) / z[h] ** 2
        assert found.psi[0] == pytest.approx(value, rel=1e-10)
        assert np.allclose(found.score[0], score, rtol=1e-8)
        # The lifted relaxation says the same with these multipliers and twice the scores as its diagonal.
        q = lifted.quadratic(stacks, whole, directional.multipliers(stacks, pairs, at, found))
        delta, _ = lifted.make_definite(stacks, q, 2 * found.score, inside=False)
        assert np.allclose(delta, 2 * found.score, rtol=1e-4)
        base, linear, _ = lifted.bounds(stacks, whole, q, lifted.Point(1 - at.z, delta))
        for keep in range(n + 1):
            here = value + score @ z - np.sort(score)[n - keep :].sum()
            there = base[0] + np.sort(linear[0])[: n - keep].sum()
            assert there == pytest.approx(here, rel=1e-4, abs=1e-4 * constant)

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_lifted_bounds_every_support_for_any_multipliers(self, size: int) -> None:
        gram, cross, constant = self.node(10 + size, size)
        stacks, p = make_stacks("cpu"), len(gram)
        n = p // size
        whole = lifted.lift(stacks, gram[None], cross[None], np.array([constant]), size)
        rng = np.random.default_rng(2)
        for spread in (0.0, 0.3, 3.0):
            multipliers = whole.dense * rng.uniform(0.5, 2) + spread * rng.normal(size=whole.dense.shape)
            q = lifted.quadratic(stacks, whole, multipliers)
            delta, _ = lifted.make_definite(stacks, q, q.form.diagonal(0, -2, -1))
            base, score, _ = lifted.bounds(
                stacks, whole, q, lifted.Point(rng.uniform(0.1, 0.9, (1, n)), delta)
            )
            for bits in itertools.product([False, True], repeat=n):
                rows = np.repeat(bits, size)
                kept = gram[np.ix_(rows, rows)]
                value = constant - 0.5 * float(np.sum(cross[rows] * np.linalg.solve(kept, cross[rows])))
                assert base[0] + score[0][~np.array(bits)].sum() <= value + 1e-9 * constant

    def test_newton_steps_raise_the_bound(self) -> None:
        gram, cross, constant = self.node(5, 1)
        stacks, n, keep = make_stacks("cpu"), len(gram), 2
        whole = lifted.lift(stacks, gram[None], cross[None], np.array([constant]), 1)
        pairs = directional.pair(stacks, gram[None], cross[None], np.array([constant]), whole)
        usage, room = np.ones((1, 1, n)), np.array([[float(keep)]])
        a, inverse = directional.feasible_start(stacks, gram[None], np.full((1, n), 1e-3))
        at, barrier, values = directional.Point(a, np.full((1, n), keep / n), inverse), 0.1 * constant / n, []
        for _ in range(12):
            found = directional.evaluate(stacks, pairs, at)
            score = found.score[0]
            values.append(found.psi[0] + score @ at.z[0] - np.sort(score)[n - keep :].sum())
            slack = room - usage[:, 0] @ at.z[0]
            at, _ = directional.newton(stacks, pairs, at, found, np.array([barrier]), usage, slack, True)
            barrier *= 0.3
        optimum = min(
            Problem(gram, cross, constant=constant, keep=keep).value(np.isin(np.arange(n), kept))
            for kept in itertools.combinations(range(n), keep)
        )
        assert values[0] < values[-1] <= optimum * (1 + 1e-9)
        assert optimum - values[-1] < 0.5 * (optimum - values[0])


class TestAnytime:
    def hard(self) -> Problem:
        rng = np.random.default_rng(4)
        x = rng.normal(size=(200, 90)) @ (np.eye(90) + 0.3 * rng.normal(size=(90, 90)))
        gram = x.T @ x / 200
        gram += 1e-2 * np.mean(np.diag(gram)) * np.eye(90)
        return Problem(gram, dense_weights=rng.normal(size=(90, 12)), keep=30)

    def test_a_time_limit_leaves_incumbent_bound_and_gap(self) -> None:
        solution = self.hard().solve("exact", time_limit=0.5)
        assert solution.termination is Termination.TIME_LIMIT
        assert solution.status is Status.FEASIBLE
        assert 0 < solution.bound < solution.objective
        assert 0 < solution.gap < 1

    def test_no_time_at_all(self) -> None:
        solution = self.hard().solve("exact", time_limit=0.0)
        assert solution.support.sum() == 30

    def test_a_node_limit(self) -> None:
        solution = self.hard().solve("exact", node_limit=20)
        assert solution.termination is Termination.NODE_LIMIT
        assert solution.stats["nodes"] >= 20
        assert solution.gap < 1

    def test_the_bound_rises_and_the_incumbent_falls(self) -> None:
        trace = self.hard().solve("exact", node_limit=200).trace
        bounds = [entry.bound for entry in trace]
        values = [entry.objective for entry in trace]
        assert bounds == sorted(bounds)
        assert all(later <= value * (1 + 1e-12) for value, later in itertools.pairwise(values))

    def test_being_stopped_from_outside(self) -> None:
        problem = presolve(self.hard()).problem
        deadline, report = Deadline(), Report()
        threading.Timer(0.5, deadline.stop).start()
        began = time.monotonic()
        proposal = exact.Exact(certificate=True).propose(
            problem, start=None, deadline=deadline, report=report
        )
        assert time.monotonic() - began < 60
        assert proposal.termination is Termination.TIME_LIMIT
        assert proposal.certificate is not None
        assert proposal.lower_bound is not None
        checked = proposal.certificate.check(problem)
        assert checked.valid
        assert checked.bound >= proposal.lower_bound * (1 - 1e-6)

    def test_a_start_is_taken(self) -> None:
        problem = self.hard()
        start = problem.solve("search").support
        solution = problem.solve("exact", start=start, node_limit=1)
        assert solution.objective <= problem.value(start) * (1 + 1e-12)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_layers_are_proved(path: Path) -> None:
    problem = load(path)
    for share in (0.25, 0.5, 0.75):
        solution = problem.with_keep(round(share * problem.n)).solve("exact", certificate=True)
        assert solution.status is Status.OPTIMAL
        assert solution.bound_kind is BoundKind.CERTIFIED


def test_packing_prices_bound_every_choice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = 7
        costs, blocks = rng.uniform(0.5, 2, n), np.arange(n) % 2
        problem = Problem(
            np.eye(n), np.ones((n, 2)), keep=4, costs=costs, budget=4.0, blocks=blocks, block_keep=[2, 3]
        )
        packing, score = Packing(problem.limits), rng.uniform(0, 1, (1, n))
        usage, room = problem.limits.usage, packing.room(np.zeros(n, bool))
        most, if_removed, if_kept, _ = packing.most(score, [usage], [room])
        for bits in itertools.product([False, True], repeat=n):
            support = np.array(bits)
            if problem.limits.feasible(support):
                total = score[0][support].sum()
                assert total <= most[0] + 1e-12
                assert np.all(total <= most[0] - if_kept[0][support] + 1e-9)
                assert np.all(total <= most[0] - if_removed[0][~support] + 1e-9)


def test_open_nodes_come_least_bound_first() -> None:
    nodes, none = OpenNodes(4, 1.0), np.zeros(4, bool)
    for bound in (3.0, 1.0, 2.0):
        nodes.push(Node(none, none, None, bound))
    assert nodes.least_bound == 1.0
    assert [node.bound for node in nodes.pop(2, nodes.next_free)] == [1.0, 2.0]
    assert len(nodes) == 1
