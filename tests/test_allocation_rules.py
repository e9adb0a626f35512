"""The published allocation rules: each against a literal computation, and all within budget and allowed widths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt.allocation import RULES, Budget, Curve, allocate, allowed_widths
from osscar_opt.allocation.rules import pq_index
from osscar_opt.errors import InfeasibleError, InputError, OptionError
from osscar_opt.formulations.solution import Status, Termination


def layers(seed, *, count=5, multiple=1, resources=("p",)):
    """Curves of different sizes, and the number of units of each."""
    rng = np.random.default_rng(seed)
    curves = []
    for j in range(count):
        n = int(rng.integers(8, 25))
        widths = allowed_widths(n, multiple=multiple)
        errors = np.sort(rng.exponential(size=len(widths)))[::-1] * (widths < n)
        costs = {key: int(rng.integers(1, 10)) for key in resources}
        curves.append(Curve(f"l{j}", n, widths, errors, costs, empty_error=10.0))
    return curves, [curve.n for curve in curves]


def down(curve, target):
    """The widest allowed width that is no wider, or the narrowest."""
    narrower = [int(width) for width in curve.widths if width <= target + 1e-9]
    return max(narrower, default=int(curve.widths[0]))


def last_that_fits(curves, levels, targets, limit, key="p"):
    """Widths at the last of ascending levels that keeps the budget."""
    for level in reversed(levels):
        widths = [down(curve, target) for curve, target in zip(curves, targets(level), strict=True)]
        used = sum(
            curve.costs[key][list(curve.widths).index(w)] for curve, w in zip(curves, widths, strict=True)
        )
        if used <= limit:
            return widths
    raise AssertionError("no level fits")


def limit_of(curves, share, key="p"):
    return int(share * sum(curve.dense_costs[key] for curve in curves))


def kept(allocation):
    return list(allocation.widths.values())


cases = pytest.mark.parametrize(
    ("seed", "share", "multiple"), [(0, 0.5, 1), (1, 0.75, 1), (2, 0.4, 4), (3, 0.9, 2), (4, 0.65, 3)]
)

# ------------------------------------------------------------------------------------------------------ literal


@cases
def test_uniform_is_one_share_for_all(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    shares = sorted({w / c.n for c in curves for w in c.widths})  # where some width changes
    expected = last_that_fits(curves, shares, lambda s: [s * k for k in n], limit)
    assert kept(allocate(curves, {"p": limit}, rule="uniform")) == expected


@cases
def test_global_threshold_keeps_the_best_units_wherever_they_are(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 30, size=k) * 10.0 ** rng.integers(0, 2) for k in n]  # with ties

    def targets(threshold, floor):
        return [max(math.ceil(floor * len(s) - 1e-9), sum(1 for v in s if v >= threshold)) for s in scores]

    thresholds = [math.inf, *sorted({v for s in scores for v in s}, reverse=True)]
    for floor in (0.0, 0.25):
        expected = last_that_fits(curves, thresholds, lambda t, f=floor: targets(t, f), limit)
        named = {curve.name: s for curve, s in zip(curves, scores, strict=True)}
        assert (
            kept(allocate(curves, {"p": limit}, rule="global_threshold", scores=named, floor=floor))
            == expected
        )


@cases
def test_flap_ranks_standardised_scores(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    rng = np.random.default_rng(seed)
    scores = [10.0 ** rng.integers(-3, 3) * rng.exponential(size=k) for k in n]
    scores[0][:] = 7.0  # nothing to tell apart
    standard = []
    for s in scores:
        mean = sum(s) / len(s)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in s) / (len(s) - 1))
        standard.append([(v - mean) / deviation if deviation else 0.0 for v in s])
    thresholds = [math.inf, *sorted({v for s in standard for v in s}, reverse=True)]
    expected = last_that_fits(
        curves, thresholds, lambda t: [sum(v >= t - 1e-12 for v in s) for s in standard], limit
    )
    found = allocate(curves, {"p": limit}, rule="flap", scores=scores)
    assert kept(found) == expected
    scaled = [s * 10.0**j for j, s in enumerate(scores)]
    assert kept(allocate(curves, {"p": limit}, rule="flap", scores=scaled)) == expected


def test_flap_standardises_by_the_unbiased_deviation():
    """The larger of two scores has z = 0.71, not 1: the sixth of 20 even ones, 0.76, goes before it."""
    two = Curve("two", 2, np.arange(3), np.zeros(3), {"units": 1})
    many = Curve("many", 20, np.arange(21), np.zeros(21), {"units": 1})
    found = allocate([two, many], {"units": 6}, rule="flap", scores=[[0, 1], np.arange(20)])
    assert found.widths == {"two": 0, "many": 6}


@cases
@pytest.mark.parametrize("first", [0.0, 0.5, 1.0])
def test_slimgpt_removes_more_with_the_logarithm_of_depth(seed, share, multiple, first):
    curves, n = layers(seed, multiple=multiple)
    share = max(share, 0.6)
    limit = limit_of(curves, share)
    depths = [0, 0, 1, 3, 4]

    def targets(last):
        r0 = first * last
        ratios = [r0 + (last - r0) * math.log(i + 1) / math.log(5) for i in depths]
        return [k * (1 - min(1.0, r)) for k, r in zip(n, ratios, strict=True)]

    levels = np.linspace(2.0, 0.0, 4001)
    expected = last_that_fits(curves, levels, targets, limit)
    found = allocate(curves, {"p": limit}, rule="slimgpt", first=first, depths=depths)
    assert kept(found) == expected
    if first == 1.0:
        assert kept(found) == kept(allocate(curves, {"p": limit}, rule="uniform"))


@cases
def test_cfsp_follows_the_sigmoid_of_angular_distances(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    distances = np.random.default_rng(seed).uniform(0.02, 0.3, size=5)
    middle = sum(distances) / 5
    sigmoid = [1.0 / (1.0 + math.exp(-9.0 * (d - middle))) for d in distances]
    mean, most = sum(sigmoid) / 5, max(sigmoid)

    def targets(s):
        scores = list(sigmoid)
        if most / mean * s >= 1:  # drawn to the mean, in the steps of the authors' code
            factor = (mean * (1 / s - 1)) / (most - mean) / 1.05
            scores = [mean + (v - mean) * factor for v in scores]
        return [k * v / mean * s for k, v in zip(n, scores, strict=True)]

    expected = last_that_fits(curves, np.linspace(1e-6, 1.0, 4001), targets, limit)
    assert kept(allocate(curves, {"p": limit}, rule="cfsp", distances=distances, intensity=9.0)) == expected
    flat = allocate(curves, {"p": limit}, rule="cfsp", distances=distances, intensity=0)
    assert kept(flat) == kept(allocate(curves, {"p": limit}, rule="uniform"))


@cases
def test_erk_keeps_layers_that_pass_one_whole_and_spreads_the_rest(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    shapes = [(8, 8), (64, 16), (16, 16, 3, 3), (128, 64), (4, 400)]
    raw = [sum(s) / math.prod(s) for s in shapes]

    def targets(level):
        """Epsilon that spends `level` of the sum of shares, layers above 1 taken out one round after another."""
        dense = set()
        while True:
            rest = [j for j in range(5) if j not in dense]
            if not rest:
                return list(n)
            epsilon = (level * 5 - len(dense)) / sum(raw[j] for j in rest)
            over = {j for j in rest if epsilon * raw[j] > 1.0}
            if not over:
                return [k * (1.0 if j in dense else epsilon * raw[j]) for j, k in enumerate(n)]
            dense |= over

    expected = last_that_fits(curves, np.linspace(0.0, 1.0, 4001), targets, limit)
    assert kept(allocate(curves, {"p": limit}, rule="erk", shapes=shapes)) == expected


def test_the_pq_index_literally():
    rng = np.random.default_rng(0)
    for p, q in [(0.5, 1.0), (1.0, 2.0), (0.3, 1.7)]:
        w = rng.normal(size=(4, 5))
        values = [abs(v) for v in w.ravel()]
        norms = [sum(v**r for v in values) ** (1 / r) for r in (p, q)]
        assert pq_index(w, p=p, q=q) == pytest.approx(1 - 20 ** (1 / q - 1 / p) * norms[0] / norms[1])
        assert pq_index(1e-200 * w, p=p, q=q) == pytest.approx(pq_index(w, p=p, q=q))
    with pytest.raises(InputError, match="0 < p < q"):
        pq_index([1.0], p=2.0)
    with pytest.raises(InputError, match="not all of them zero"):
        pq_index([0.0, 0.0])


@cases
def test_sap_removes_what_the_pq_index_spares(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, max(share, 0.5))
    rng = np.random.default_rng(seed)
    weights = [rng.exponential(size=k) ** rng.uniform(0.5, 3.0) for k in n]
    spare = []
    for w in weights:
        d = len(w)
        index = 1 - d ** (1 / 1 - 1 / 0.5) * sum(math.sqrt(v) for v in w) ** 2 / sum(w)
        spare.append(1 - (1 - index) ** (0.5 * 1 / (1 - 0.5)))

    def targets(gamma):
        return [k - math.floor(k * min(gamma * s, 0.8) + 1e-9) for k, s in zip(n, spare, strict=True)]

    levels = np.linspace(0.8 / min(spare), 0.0, 4001)
    expected = last_that_fits(curves, levels, targets, limit)
    assert kept(allocate(curves, {"p": limit}, rule="sap", weights=weights, most=0.8)) == expected


@cases
def test_als_solves_its_linear_program(seed, share, multiple):
    from scipy.optimize import linprog

    curves, n = layers(seed, multiple=multiple)
    limit = limit_of(curves, share)
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(size=(5, 5))
    matrix = (matrix + matrix.T) / 2
    alike = [sum(matrix[i][j] for i in range(5) if i != j) / 4 for j in range(5)]
    size = np.array([curve.dense_costs["p"] for curve in curves])

    def targets(s):
        bounds = [(max(0.0, s - 0.2), min(1.0, s + 0.2))] * 5
        gains = [-(1 - a) * u for a, u in zip(alike, size, strict=True)]
        return linprog(gains, A_ub=[size], b_ub=[s * size.sum()], bounds=bounds).x * np.array(n)

    expected = last_that_fits(curves, np.arange(share - 0.01, min(share + 0.3, 1.0), 0.001), targets, limit)
    assert kept(allocate(curves, {"p": limit}, rule="als", correlations=matrix, spread=0.2)) == expected


@cases
def test_nvit_removes_one_unit_after_another(seed, share, multiple):
    curves, n = layers(seed, multiple=multiple)
    rng = np.random.default_rng(seed)
    # latencies with steps, as hardware has them
    curves = [
        Curve(c.name, c.n, c.widths, c.errors, {"ms": np.ceil(c.widths / 4) * rng.integers(1, 9)})
        for c in curves
    ]
    scores = [rng.exponential(size=k) for k in n]
    limit = limit_of(curves, share, "ms")
    for eta in (0.0, 0.05, 0.5):
        left = [sorted(s) for s in scores]
        at = [len(c.widths) - 1 for c in curves]
        while sum(c.costs["ms"][i] for c, i in zip(curves, at, strict=True)) > limit:
            worths = []
            for j, c in enumerate(curves):
                if at[j] > 0:
                    several = int(c.widths[at[j]] - c.widths[at[j] - 1])
                    saving = c.costs["ms"][at[j]] - c.costs["ms"][at[j] - 1]
                    worths.append((sum(left[j][:several]) / several - eta * saving / several, j, several))
            _, j, several = min(worths)
            left[j] = left[j][several:]
            at[j] -= 1
        expected = [int(c.widths[i]) for c, i in zip(curves, at, strict=True)]
        assert kept(allocate(curves, {"ms": limit}, rule="nvit", scores=scores, eta=eta)) == expected


# --------------------------------------------------------------------------------------------------------- spdy


def test_spdy_allocates_exactly_for_the_coefficients_it_ends_with():
    curves, _ = layers(3, count=3, multiple=2)
    limit = limit_of(curves, 0.6)
    asked = []

    def loss(widths):
        asked.append(tuple(widths.values()))
        return abs(widths["l0"] - 4) + 0.1 * abs(widths["l2"] - 6)

    for prior in ("errors", "levels"):
        asked.clear()
        found = allocate(
            curves, {"p": limit}, rule="spdy", evaluate=loss, prior=prior, starts=10, patience=20, seed=4
        )
        assert len(asked) == len(set(asked)) == found.stats["evaluations"] > 3
        assert found.stats["value"] == loss(found.widths)
        assert found.stats["value"] == min(
            loss(dict(zip(["l0", "l1", "l2"], w, strict=True))) for w in asked[:]
        )
        assert found.termination is Termination.LOCAL_OPTIMUM
        every = []
        for picked in itertools.product(*(range(len(c.widths)) for c in curves)):
            pairs = list(zip(curves, picked, strict=True))
            if sum(c.costs["p"][i] for c, i in pairs) <= limit:
                total = 0.0
                for coefficient, (c, i) in zip(found.stats["coefficients"], pairs, strict=True):
                    level = (math.log(c.widths[i] / c.n) / math.log(c.widths[0] / c.n)) ** 2
                    total += coefficient * (c.errors[i] / 10.0 if prior == "errors" else level)
                every.append((total, [int(c.widths[i]) for c, i in pairs]))
        assert kept(found) == min(every)[1]


def test_spdy_finds_what_the_model_wants_where_errors_mislead():
    widths = np.arange(1, 9)
    curves = [
        Curve(name, 8, widths, weight * (1 - widths / 8.0) ** 2, {"p": 1.0}, empty_error=weight)
        for name, weight in [("a", 9.0), ("b", 1.0), ("c", 1.0)]
    ]

    def loss(kept):
        return sum(w * (8 - kept[name]) ** 2 for name, w in [("a", 0.1), ("b", 1.0), ("c", 3.0)])

    found = allocate(curves, {"p": 15}, rule="spdy", evaluate=loss, part=0.7)
    best = min(
        loss({"a": a, "b": b, "c": c}) for a in widths for b in widths for c in widths if a + b + c <= 15
    )
    assert loss(allocate(curves, {"p": 15}).widths) > loss(found.widths)
    assert loss(found.widths) <= 1.1 * best
    again = allocate(curves, {"p": 15}, rule="spdy", evaluate=loss, part=0.7)
    assert again.widths == found.widths


def test_spdy_takes_several_budgets_fractions_and_whole_layers():
    widths = np.arange(0, 5)
    curves = [Curve(name, 4, widths, 4.0 - widths, {"p": 3, "ms": 0.1 + 0.2 * widths}) for name in ("a", "b")]
    for budget in ({"p": 0.6, "ms": 1.5}, {"ms": 1.1}):
        for prior in ("errors", "levels"):
            found = allocate(
                curves,
                budget,
                rule="spdy",
                evaluate=lambda w: w["a"] - w["b"],
                prior=prior,
                starts=5,
                patience=5,
            )
            assert all(found.usage[key] <= limit for key, limit in found.limits.items())
            assert found.widths["b"] >= found.widths["a"]
    with pytest.raises(OptionError, match="prior = 'none'"):
        allocate(curves, {"p": 9}, rule="spdy", evaluate=lambda _: 0.0, prior="none")
    with pytest.raises(InputError, match="returned NaN"):
        allocate(curves, {"p": 9}, rule="spdy", evaluate=lambda _: math.nan)
    with pytest.raises(InputError, match="starts = 0"):
        allocate(curves, {"p": 9}, rule="spdy", evaluate=lambda _: 0.0, starts=0)
    fixed = [Curve("a", 4, [4], [1.0], {"p": 1}), curves[1]]
    found = allocate(
        fixed, {"p": 10}, rule="spdy", evaluate=lambda _: 0.0, prior="levels", starts=1, patience=1
    )
    assert found.widths == {"a": 4, "b": 2}


# ------------------------------------------------------------------------------------------------ what all keep to


def options(rule, curves, rng):
    n = [curve.n for curve in curves]
    count = len(curves)
    matrix = rng.uniform(size=(count, count))
    return {
        "uniform": {},
        "global_threshold": {"scores": [rng.normal(size=k) for k in n], "floor": 0.0},
        "flap": {"scores": [rng.exponential(size=k) for k in n]},
        "slimgpt": {"first": float(rng.uniform(0.2, 1.0))},
        "cfsp": {"distances": rng.uniform(size=count), "intensity": float(rng.uniform(0.0, 40.0))},
        "erk": {"shapes": rng.integers(1, 200, size=(count, 2)).tolist()},
        "sap": {"weights": [rng.exponential(size=max(k, 2)) for k in n], "most": 1.0},
        "als": {"correlations": (matrix + matrix.T) / 2, "spread": float(rng.uniform()), "resource": "p"},
        "nvit": {"scores": [rng.normal(size=k) for k in n], "eta": float(rng.uniform()), "resource": "p"},
        "spdy": {"evaluate": lambda widths: -min(widths.values()), "starts": 3, "patience": 3},
        "milp": {},
        "dynamic": {},
    }[rule]


@pytest.mark.parametrize("rule", sorted(RULES))
@given(data=st.data())
def test_widths_are_allowed_and_no_budget_is_passed(rule, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    curves = []
    for j in range(data.draw(st.integers(1, 5))):
        n = data.draw(st.integers(1, 12))
        widths = np.union1d(np.flatnonzero(rng.uniform(size=n) < 0.6) + 1, [n])
        costs = {"p": rng.integers(1, 9) * widths, "t": np.cumsum(rng.uniform(size=len(widths)))}
        losses = np.sort(rng.exponential(size=len(widths)))[::-1]
        curves.append(Curve(f"l{j}", n, widths, losses, costs, empty_error=9.0))
    budgets = {"p": data.draw(st.floats(0.05, 1.0))}
    if rule != "dynamic" and data.draw(st.booleans()):
        budgets["t"] = data.draw(st.floats(0.05, 1.0))
    dense = {key: math.fsum(curve.costs[key][-1] for curve in curves) for key in budgets}
    least = {key: math.fsum(curve.costs[key][0] for curve in curves) for key in budgets}
    given_options = options(rule, curves, rng)
    if any(least[key] > share * dense[key] * (1 + 1e-14) for key, share in budgets.items()):
        with pytest.raises(InfeasibleError, match="smallest feasible"):
            allocate(curves, budgets, rule=rule, **given_options)
        return
    try:
        found = allocate(curves, budgets, rule=rule, **given_options)
    except InfeasibleError as refused:
        # Layers that share an index of 0, and the one at depth 0, may have nothing to give.
        if rule not in ("sap", "slimgpt") or "keeps no budget" not in str(refused):
            raise
        return
    for key, share in budgets.items():
        used = math.fsum(c.costs[key][list(c.widths).index(found.widths[c.name])] for c in curves)
        assert used == found.usage[key] <= share * dense[key] * (1 + 1e-14)
    assert found.objective == pytest.approx(
        sum(c.losses[list(c.widths).index(found.widths[c.name])] for c in curves)
    )
    exact = allocate(curves, budgets)
    assert exact.objective <= found.objective + 1e-9
    if rule not in ("milp", "dynamic"):
        assert found.status is Status.FEASIBLE or found.objective == 0.0
        assert found.method == rule


def test_a_whole_budget_keeps_everything():
    curves, n = layers(0)
    rng = np.random.default_rng(0)
    for rule in RULES:
        found = allocate(curves, {"p": 1.0}, rule=rule, **({"resource": None} if rule in ("als", "nvit") else {}) | {
            key: value for key, value in options(rule, curves, rng).items() if key != "resource"
        })  # fmt: skip
        assert kept(found) == n, rule


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"spdy", "dynamic"}))
def test_limits_on_layers_and_fixed_parts_hold_for_every_rule(rule):
    curves, _ = layers(5, resources=("p", "t"))
    given_options = options(rule, curves, np.random.default_rng(1))
    budget = Budget(
        {"p": 0.8, "t": 0.8}, of="whole", fixed={"p": 100, "t": 50}, least={"l1": 6}, most={"l2": 5}
    )
    found = allocate(curves, budget, rule=rule, **given_options)
    assert found.widths["l1"] >= 6
    assert found.widths["l2"] <= 5
    for key, fixed in [("p", 100), ("t", 50)]:
        used = sum(c.costs[key][found.widths[c.name] - 1] for c in curves) + fixed
        assert used == found.usage[key] <= 0.8 * (sum(c.dense_costs[key] for c in curves) + fixed)


def test_data_that_does_not_fit_the_curves_is_refused():
    curves, n = layers(0, count=2, resources=("p", "t"))
    both = {"p": 0.5, "t": 0.9}
    with pytest.raises(InputError, match=r"has 1 entries, but there are 2 curves"):
        allocate(curves, both, rule="cfsp", distances=[1.0])
    with pytest.raises(InputError, match="disagree about 'l1'"):
        allocate(curves, both, rule="cfsp", distances={"l0": 1.0})
    with pytest.raises(InputError, match=rf"l0 must be {n[0]} finite numbers"):
        allocate(curves, both, rule="flap", scores=[[1.0], [1.0]])
    with pytest.raises(InputError, match="floor = 2"):
        allocate(curves, both, rule="flap", scores=[np.ones(k) for k in n], floor=2.0)
    with pytest.raises(InputError, match="must be finite"):
        allocate(curves, both, rule="cfsp", distances=[1.0, math.nan])
    with pytest.raises(InputError, match="intensity"):
        allocate(curves, both, rule="cfsp", distances=[1.0, 1.0], intensity=-1)
    with pytest.raises(InputError, match="first = 2"):
        allocate(curves, both, rule="slimgpt", first=2)
    with pytest.raises(InputError, match="depths must not be negative"):
        allocate(curves, both, rule="slimgpt", depths=[-1, 0])
    with pytest.raises(InputError, match="positive numbers"):
        allocate(curves, both, rule="erk", shapes=[(0, 1), (1, 1)])
    with pytest.raises(InputError, match="most = 0"):
        allocate(curves, both, rule="sap", weights=[[1, 2], [1, 2]], most=0)
    with pytest.raises(InputError, match="one of the resources with a budget: p, t"):
        allocate(curves, both, rule="nvit", scores=[np.ones(k) for k in n], eta=0)
    with pytest.raises(InputError, match="eta = -1"):
        allocate(curves, {"p": 0.5}, rule="nvit", scores=[np.ones(k) for k in n], eta=-1)
    with pytest.raises(InputError, match="symmetric"):
        allocate(curves, {"p": 0.5}, rule="als", correlations=[[1, 0.5], [0.4, 1]])
    with pytest.raises(InputError, match="between 0 and 1"):
        allocate(curves, {"p": 0.5}, rule="als", correlations=[[1, -0.5], [-0.5, 1]])
    with pytest.raises(InputError, match="spread = 3"):
        allocate(curves, {"p": 0.5}, rule="als", correlations=np.eye(2), spread=3)


def test_a_rule_that_cannot_keep_the_budget_says_so():
    curves, _ = layers(0, count=2)
    equal = [np.ones(5), np.ones(5)]
    with pytest.raises(InfeasibleError, match="rule 'sap' keeps no budget"):
        allocate(curves, {"p": 0.5}, rule="sap", weights=equal)
    backward = Curve("a", 2, [1, 2], [1.0, 0.0], {"p": [1.0, 2.0], "t": [2.0, 1.0]})
    for rule in ("uniform", "nvit"):
        extra = {"scores": [[1.0, 2.0]], "eta": 0, "resource": "p"} if rule == "nvit" else {}
        with pytest.raises(InfeasibleError, match=f"rule '{rule}' keeps no budget"):
            allocate([backward], {"p": 1, "t": 1}, rule=rule, **extra)
