"""The exact allocation against a dynamic program and plain enumeration; what is infeasible; the Pareto front."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.allocation import (
    Budget,
    Curve,
    allocate,
    allowed_widths,
    best_widths,
    dynamic_program,
    pareto_front,
    smallest_feasible,
    tie,
)
from osscar_opt.allocation.milp import exactly
from osscar_opt.allocation.program import Program
from osscar_opt.errors import (
    CapabilityError,
    InfeasibleError,
    InputError,
    OptionError,
    SolverError,
    UnknownMethodError,
)
from osscar_opt.formulations.solution import BoundKind, Status, Termination


def choices(curves, limits):
    """(loss, uses, widths) of every choice that keeps the limits, which are absolute."""
    found = []
    for picked in itertools.product(*(range(len(curve.widths)) for curve in curves)):
        pairs = list(zip(curves, picked, strict=True))
        uses = {key: math.fsum(curve.costs[key][i] for curve, i in pairs) for key in curves[0].costs}
        if all(uses[key] <= limit for key, limit in limits.items()):
            loss = math.fsum(curve.losses[i] for curve, i in pairs)
            found.append((loss, uses, {curve.name: int(curve.widths[i]) for curve, i in pairs}))
    return found


def random_curves(rng, *, resources, whole, most=4, longest=6):
    curves = []
    for j in range(int(rng.integers(1, most + 1))):
        n = int(rng.integers(2, longest + 1))
        widths = np.union1d(rng.choice(n + 1, size=rng.integers(1, n + 1), replace=False), [n])
        losses = rng.integers(0, 9, len(widths)) * 10.0 ** rng.integers(-3, 3)
        costs = {
            key: rng.integers(0, 20, len(widths)) * 10.0 ** rng.integers(0, 8)
            if whole
            else rng.random(len(widths))
            for key in resources
        }
        curves.append(Curve(f"l{j}", n, widths, losses, costs))
    return curves


# ------------------------------------------------------------------------------------------------------- exact


def test_the_program_and_the_dynamic_program_agree_on_200_cases():
    certified = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        curves = []
        for j in range(int(rng.integers(1, 12))):
            n = 64 * int(rng.integers(1, 5))
            widths = allowed_widths(n, multiple=int(rng.choice([4, 16, 32])))
            errors = 10.0 ** rng.uniform(-2, 2) * (1.0 - widths / n) ** rng.uniform(0.5, 3.0)
            errors *= 1.0 + (seed % 3 == 0) * rng.exponential(size=len(widths))  # neither convex nor monotone
            curves.append(Curve(f"l{j}", n, widths, errors, {"p": int(rng.integers(1, 100))}))
        least = sum(curve.costs["p"][0] for curve in curves) / sum(curve.dense_costs["p"] for curve in curves)
        budget = {"p": float(rng.uniform(least, 1.0))}
        program, other = best_widths(curves, budget), dynamic_program(curves, budget)
        assert program.objective == pytest.approx(other.objective, rel=1e-9, abs=1e-12)
        for found in (program, other):
            assert found.status is Status.OPTIMAL
            assert found.usage["p"] <= found.limits["p"] <= budget["p"] * found.dense["p"] + 1e-6
        certified += program.bound_kind is BoundKind.CERTIFIED
        assert program.stats["relaxation"] <= program.objective * (1 + 1e-12) + 1e-12
    assert 0 < certified < 200


@pytest.mark.parametrize("resources", [("p",), ("p", "t"), ("p", "t", "kv")])
@pytest.mark.parametrize("whole", [True, False])
def test_any_number_of_budgets_against_enumeration(resources, whole):
    infeasible = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        curves = random_curves(rng, resources=resources, whole=whole)
        every = choices(curves, {})
        # Limits that some choice uses up to the last digit, each another one
        limits = {key: every[rng.integers(len(every))][1][key] for key in resources}
        allowed = choices(curves, limits)
        budget = Budget(limits, absolute=True)
        if not allowed:
            infeasible += 1
            with pytest.raises(InfeasibleError):
                best_widths(curves, budget)
            continue
        found = best_widths(curves, budget)
        assert found.objective == pytest.approx(min(loss for loss, _, _ in allowed), rel=1e-12, abs=1e-300)
        assert found.status is Status.OPTIMAL
        assert any(
            found.widths == widths and loss == found.objective and uses == found.usage
            for loss, uses, widths in allowed
        )
    assert infeasible > 0 or len(resources) == 1


def test_small_optima_beside_large_losses_are_found():
    """HiGHS stops at an absolute gap of 1e-6: without scaling, everything below that is the same to it."""
    rng = np.random.default_rng(3)
    curves = [
        Curve(
            f"l{j}", 6, np.arange(7), np.append(1e6, 1e-8 * rng.uniform(size=6)), {"p": rng.integers(1, 9, 7)}
        )
        for j in range(4)
    ]
    limits = {"p": 14.0}
    found = best_widths(curves, limits)
    assert found.objective == pytest.approx(min(loss for loss, _, _ in choices(curves, limits)), rel=1e-9)


def test_a_choice_within_the_solvers_tolerance_but_above_the_budget_is_cut_off():
    """x = (1, 1) uses 1 + 1e-8 of 1, which HiGHS lets pass; the budget does not."""
    scale = 1.0 + 1e-14
    curves = [
        Curve("a", 2, [0, 1, 2], [3.0, 1.0, 0.0], {"t": [0.0, 0.5, 1.0]}),
        Curve("b", 2, [0, 1, 2], [3.0, 1.0, 0.0], {"t": [0.0, 0.5 * scale, 1.0]}),
    ]
    found = best_widths(curves, Budget({"t": 1.0}, absolute=True))
    limit = choices(curves, {"t": 1.0})
    assert found.stats["cuts"] >= 1
    assert found.usage["t"] <= 1.0
    assert found.objective == min(loss for loss, _, _ in limit) == 3.0


def test_tied_layers_get_one_width():
    curves = [
        Curve(name, 3, [1, 2, 3], loss, {"p": 1})
        for name, loss in [("a", [9.0, 1.0, 0.0]), ("b", [2.0, 1.9, 0.0]), ("c", [5.0, 4.0, 0.0])]
    ]
    found = best_widths([tie(curves[:2]), curves[2]], {"p": 6})
    assert found.widths["a"] == found.widths["b"]
    best = min(
        (curves[0].losses[i] + curves[1].losses[i] + curves[2].losses[k], i, k)
        for i in range(3)
        for k in range(3)
        if 2 * (i + 1) + k + 1 <= 6
    )
    assert (found.objective, found.widths["a"], found.widths["c"]) == (best[0], best[1] + 1, best[2] + 1)


def test_no_budget_at_all_takes_the_least_loss_of_each():
    curves = [Curve("a", 3, [1, 2, 3], [2.0, 0.5, 1.0], {"p": 1})]
    found = best_widths(curves, Budget({}, least=1))
    assert (found.widths, found.objective, found.gap) == ({"a": 2}, 0.5, 0.0)


# ------------------------------------------------------------------------------------------------- dynamic program


@given(data=st.data())
def test_the_dynamic_program_against_enumeration(data):
    curves = []
    for j in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(1, 4))
        size = st.integers(0, 30).map(float)
        losses, costs = (data.draw(st.lists(size, min_size=n, max_size=n)) for _ in range(2))
        curves.append(Curve(f"l{j}", n, np.arange(1, n + 1), losses, {"p": 6.0 * np.array(costs)}))
    limit = data.draw(st.integers(0, 400))
    allowed = choices(curves, {"p": limit})
    if not allowed:
        with pytest.raises(InfeasibleError):
            dynamic_program(curves, {"p": limit})
        return
    best = min(loss for loss, _, _ in allowed)
    found = dynamic_program(curves, {"p": limit})
    assert found.objective == best
    assert found.stats["step"] % 6 == 0 or found.stats["step"] == 1
    rounded = dynamic_program(curves, {"p": limit}, grid=data.draw(st.integers(1, 50)))
    assert rounded.usage["p"] <= limit
    assert rounded.objective >= best
    assert "rounded up" in rounded.message
    assert rounded.bound_kind is BoundKind.NONE


def test_a_grid_takes_costs_that_are_not_whole_and_nears_the_optimum():
    rng = np.random.default_rng(0)
    curves = [
        Curve(f"l{j}", 8, np.arange(9), rng.uniform(size=9), {"t": rng.uniform(size=9)}) for j in range(6)
    ]
    exact = best_widths(curves, {"t": 0.5}).objective
    gaps = [dynamic_program(curves, {"t": 0.5}, grid=grid).objective - exact for grid in (10, 100, 100_000)]
    assert gaps[0] > gaps[1] >= gaps[2] >= -1e-12
    assert gaps[2] == pytest.approx(0.0, abs=1e-9)


def test_what_the_dynamic_program_cannot_do_it_says():
    curve = Curve("a", 3, [1, 2, 3], [2.0, 1.0, 0.0], {"p": 1, "t": 0.25, "q": [1.0, 2.0, 10_000_001.0]})
    with pytest.raises(CapabilityError, match="one budget, not 2"):
        dynamic_program([curve], {"p": 2, "t": 0.9})
    with pytest.raises(CapabilityError, match="whole numbers"):
        dynamic_program([curve], {"t": 0.9})
    with pytest.raises(CapabilityError, match="19 MiB"):
        dynamic_program([curve], {"q": 10_000_001}, memory=2**20)
    assert dynamic_program([curve], {"q": 10_000_001}, memory=2**20, grid=100).widths == {"a": 3}
    with pytest.raises(InputError, match="grid = 0"):
        dynamic_program([curve], {"p": 2}, grid=0)


# ------------------------------------------------------------------------------------------------------ infeasible


@pytest.mark.parametrize("seed", range(8))
def test_one_budget_names_itself_and_the_smallest_feasible_value(seed):
    rng = np.random.default_rng(seed)
    curves = random_curves(rng, resources=("p", "t"), whole=True)
    least = min(uses["p"] for _, uses, _ in choices(curves, {}))
    if least == 0.0:
        curves.append(Curve("more", 1, [1], [0.0], {"p": 3.0, "t": 0.0}))
        least = 3.0
    with pytest.raises(InfeasibleError) as refused:
        allocate(curves, {"p": int(least) - 1, "t": 10**12})
    smallest = int(re.search(r"^the budget p = .* use at least (\d+),", str(refused.value)).group(1))
    assert smallest == least
    assert allocate(curves, {"p": smallest, "t": 10**12}).usage["p"] == smallest
    assert smallest_feasible(curves, "p") == least


def test_budgets_that_hold_singly_but_not_together_say_what_would_do():
    seen = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        resources = ("p", "t") if seed % 2 else ("p", "t", "kv")
        curves = random_curves(rng, resources=resources, whole=True)
        every = choices(curves, {})
        limits = {key: int(every[rng.integers(len(every))][1][key]) for key in resources}
        if choices(curves, limits):
            continue
        seen += 1
        with pytest.raises(InfeasibleError, match="can each be met, but not together") as refused:
            best_widths(curves, limits)
        words = re.search(r"with (.*), the smallest feasible budget of (\w+) is (\d+)", str(refused.value))
        resource, smallest = words.group(2), int(words.group(3))
        others = dict(part.split(" = ") for part in words.group(1).split(", "))
        given = {key: int(value) for key, value in others.items()}
        assert given == {key: limits[key] for key in given}
        assert min(uses[resource] for _, uses, _ in choices(curves, given)) == smallest
        best_widths(curves, given | {resource: smallest})
        with pytest.raises(InfeasibleError):
            best_widths(curves, given | {resource: smallest - 1})
        assert smallest_feasible(curves, resource, given) == smallest
    assert seen >= 8


def test_three_budgets_of_which_each_pair_contradicts_itself():
    """Every width meets one of the three: no value of one resource helps, given both others."""
    curve = Curve("a", 3, [1, 2, 3], [0.0, 0.0, 0.0], {"p": [1, 5, 9], "q": [9, 1, 5], "r": [5, 9, 1]})
    with pytest.raises(InfeasibleError) as refused:
        best_widths([curve], {"p": 1, "q": 1, "r": 1})
    assert (
        "budgets of q and r can each be met, but not together: with r = 1, the smallest feasible budget of q is 5"
        in (str(refused.value))
    )


def test_shares_in_messages_are_feasible():
    curves = [Curve(name, 7, [3, 7], [1.0, 0.0], {"p": 11}) for name in "abc"]
    with pytest.raises(InfeasibleError) as refused:
        best_widths(curves, {"p": 0.2})
    share = float(re.search(r"\(([\d.]+) of the dense 231\)", str(refused.value)).group(1))
    assert best_widths(curves, {"p": share}).usage["p"] == 99.0


# --------------------------------------------------------------------------------------------------- the front


def test_the_front_is_that_of_enumeration():
    longest = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        curves = [
            Curve(f"l{j}", 5, np.arange(6), rng.integers(0, 9, 6), {k: rng.integers(0, 9, 6) for k in "pt"})
            for j in range(3)
        ]
        limits = {"t": 9}
        every = choices(curves, limits)
        levels = range(int(min(uses["p"] for _, uses, _ in every)), 25)
        front = pareto_front(curves, "p", limits, at=list(levels))
        expected, best = [], np.inf
        for loss, used in sorted((loss, uses["p"]) for loss, uses, _ in every):
            if used < best:
                expected.append((used, loss))
                best = used
        found = [(a.usage["p"], a.objective) for a in front.allocations]
        np.testing.assert_allclose(found, sorted(expected))
        assert all(a.usage["t"] <= 9 for a in front.allocations)
        longest = max(longest, len(found))
    assert longest > 4


def test_the_front_goes_from_the_least_use_to_the_least_loss():
    curves = [
        Curve(f"l{j}", 16, np.arange(1, 17), 2.0**j * (1 - np.arange(1, 17) / 16) ** 2, {"p": 10, "t": 0.1})
        for j in range(3)
    ]
    front = pareto_front(curves, "p", {"t": 0.9}, points=7)
    used = [a.usage["p"] for a in front.allocations]
    assert used[0] == 30.0
    assert used == sorted(used)
    assert front.allocations[-1].objective == pytest.approx(best_widths(curves, {"t": 0.9}).objective)
    assert len(front.table().splitlines()) == len(front.allocations) + 1
    axis = front.plot()
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), used)
    with pytest.raises(InputError, match="no budget of p is feasible below 30"):
        pareto_front(curves, "p", at=[1, 2])
    with pytest.raises(InputError, match="points = 1"):
        pareto_front(curves, "p", points=1)


# ------------------------------------------------------------------------------------------------------ results


def test_results_are_recomputed_and_become_json():
    curves = [Curve(name, 4, [1, 2, 4], [3.0, 1.0, 0.0], {"p": 2, "t": 0.5}) for name in "ab"]
    found = allocate(curves, {"p": 0.75})
    told = json.loads(json.dumps(found.to_dict()))
    assert told["widths"] == {"a": 4, "b": 2} or told["widths"] == {"a": 2, "b": 4}
    assert told["usage"] == {"p": 12.0, "t": 3.0}
    assert told["limits"] == {"p": 12.0}
    assert told["dense"] == {"p": 16.0, "t": 4.0}
    assert (told["objective"], told["bound"], told["status"]) == (1.0, 1.0, "optimal")
    assert "p 12 of 12" in repr(found)
    assert [line.split()[0] for line in found.table().splitlines() if line] == [
        "layer",
        "a",
        "b",
        "resource",
        "p",
        "t",
    ]
    posed = Budget({"p": 0.75}).resolve(curves)
    assert found.problem_hash == posed.hash
    with pytest.raises(SolverError, match="uses 16 of p = 12"):
        posed.allocation([2, 2], "by hand", 0.0)


def test_a_time_limit_keeps_what_was_found():
    rng = np.random.default_rng(0)
    curves = [
        Curve(f"l{j}", 40, np.arange(1, 41), rng.uniform(size=40), {k: rng.uniform(size=40) for k in "pqr"})
        for j in range(30)
    ]
    budget = Budget(dict.fromkeys("pqr", 12.0))
    found = best_widths(curves, budget, time_limit=1e-6)
    assert found.termination is Termination.TIME_LIMIT
    assert 1e-6 < found.gap < 1.0
    assert found.status is Status.FEASIBLE
    assert found.bound <= best_widths(curves, budget, time_limit=2.0).objective <= found.objective
    assert all(found.usage[key] <= 12.0 for key in "pqr")


def test_a_solver_that_finds_nothing_is_no_infeasible_budget(monkeypatch):
    from scipy.optimize import OptimizeResult

    ended = OptimizeResult(status=1, x=None, message="time")
    monkeypatch.setattr("scipy.optimize.milp", lambda *_, **__: ended)
    curves = [Curve(name, 3, [1, 2, 3], [5.0, 3.0, 0.0], {"p": 1}) for name in "ab"]
    found = best_widths(curves, {"p": 5}, time_limit=1.0)  # what was near the linear program
    assert (found.objective, found.termination) == (3.0, Termination.TIME_LIMIT)
    assert found.status is Status.FEASIBLE
    monkeypatch.setattr(Program, "_near", lambda *_: iter(()))
    with pytest.raises(SolverError, match="within the time limit"):
        best_widths(curves, {"p": 5}, time_limit=1.0)


def test_rules_and_options_that_do_not_exist_are_refused():
    curves = [Curve("a", 2, [1, 2], [1.0, 0.0], {"p": 1})]
    with pytest.raises(UnknownMethodError, match="did you mean 'flap'"):
        allocate(curves, {"p": 1}, rule="flop")
    with pytest.raises(UnknownMethodError, match="rules: milp, dynamic"):
        allocate(curves, {"p": 1}, rule="?")
    with pytest.raises(OptionError, match="has no option 'sed'; its options: time_limit"):
        allocate(curves, {"p": 1}, sed=1)
    with pytest.raises(OptionError, match="needs the option 'scores'"):
        allocate(curves, {"p": 1}, rule="flap")
    assert allocate(curves, {"p": 1}, rule="dynamic", grid=4).widths == {"a": 1}
    assert exactly(Budget({"p": 1}).resolve(curves)).widths == {"a": 1}
