"""Curves of error, loss and use; losses interpolated along the error; budgets resolved against curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from osscar_opt import Problem
from osscar_opt.allocation import Budget, Curve, allowed_widths, interpolated, tie, with_measured
from osscar_opt.errors import InfeasibleError, InputError


def problem(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return Problem.from_data(rng.normal(size=(200, 2 * n)), rng.normal(size=(2 * n, 5)), groups=2)


# ------------------------------------------------------------------------------------------------------ curves


@given(
    n=st.integers(1, 40),
    multiple=st.integers(1, 9),
    least=st.integers(0, 40),
    most=st.none() | st.integers(0, 40),
)
def test_allowed_widths_literally(n, multiple, least, most):
    expected = [
        k
        for k in range(n + 1)
        if (k % multiple == 0 and least <= k <= (n if most is None else most)) or (k == n and most is None)
    ]
    if least > n or (most is not None and most > n) or not expected:
        with pytest.raises(InputError):
            allowed_widths(n, multiple=multiple, least=least, most=most)
    else:
        assert allowed_widths(n, multiple=multiple, least=least, most=most).tolist() == expected


def test_errors_are_those_of_the_supports_on_the_path():
    posed = problem()
    path = posed.path("greedy")
    curve = Curve.from_path(path, allowed_widths(6, multiple=2), {"parameters": 7}, name="ffn")
    assert curve.widths.tolist() == [2, 4, 6]
    for width, error in zip(curve.widths, curve.errors, strict=True):
        assert error == pytest.approx(posed.value(path.support(int(width))), rel=1e-9, abs=1e-12)
    assert curve.costs["parameters"].tolist() == [14.0, 28.0, 42.0]
    nothing = posed.value(np.zeros(6, dtype=bool))
    np.testing.assert_allclose(curve.relative().losses, curve.errors / nothing)
    np.testing.assert_array_equal(curve.relative().absolute().losses, curve.errors)
    np.testing.assert_allclose(curve.relative().weighted(3.0).losses, 3.0 * curve.errors / nothing)
    assert Curve.from_path(path).widths.tolist() == list(range(7))
    short = posed.with_keep(4).path("greedy", keep=4)
    with pytest.raises(InputError, match="below the 4 groups"):
        Curve.from_path(short, [2, 6])


def test_running_minima_start_at_the_narrowest_width():
    curve = Curve("a", 4, [1, 2, 3, 4], [5.0, 6.0, 2.0, 2.5], {}, losses=[1.0, 0.5, 0.7, 0.0]).monotone()
    assert curve.errors.tolist() == [5.0, 5.0, 2.0, 2.0]
    assert curve.losses.tolist() == [1.0, 0.5, 0.5, 0.0]


def test_tied_curves_add_up_where_all_allow_the_width():
    rng = np.random.default_rng(0)
    widths = [[1, 2, 5, 6], [2, 3, 5, 6], [0, 2, 6]]
    curves = [
        Curve(
            name,
            6,
            w,
            rng.uniform(size=len(w)),
            {"p": rng.uniform(size=len(w)), "q": 2.0},
            losses=rng.uniform(size=len(w)),
            empty_error=1.0,
        )
        for name, w in zip("abc", widths, strict=True)
    ]
    both = tie(curves, "joined")
    assert both.widths.tolist() == [2, 6]
    assert both.layers == ("a", "b", "c")
    for i, width in enumerate(both.widths):
        at = [list(w).index(width) for w in widths]
        for name in ("errors", "losses"):
            assert getattr(both, name)[i] == pytest.approx(
                sum(getattr(c, name)[k] for c, k in zip(curves, at, strict=True))
            )
        assert both.costs["p"][i] == pytest.approx(
            sum(c.costs["p"][k] for c, k in zip(curves, at, strict=True))
        )
        assert both.costs["q"][i] == 6.0 * width
    assert both.dense_costs["q"] == 36.0
    assert both.empty_error == 3.0
    with pytest.raises(InputError, match="no width in common"):
        tie([Curve("a", 3, [1], [0.0], {}), Curve("b", 3, [2], [0.0], {})])
    with pytest.raises(InputError, match="differ in their units"):
        tie([Curve("a", 3, [1], [0.0], {}), Curve("b", 4, [1], [0.0], {})])


def test_curves_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="ascend"):
        Curve("a", 3, [2, 1], [0.0, 1.0], {})
    with pytest.raises(InputError, match="ascend"):
        Curve("a", 3, [2, 4], [0.0, 1.0], {})
    with pytest.raises(InputError, match="whole numbers"):
        Curve("a", 3, [1.0], [0.0], {})
    with pytest.raises(InputError, match="errors of a"):
        Curve("a", 3, [1, 3], [0.0], {})
    with pytest.raises(InputError, match="must not be negative"):
        Curve("a", 3, [1, 3], [1.0, 0.0], {"p": [-1.0, 0.0]})
    with pytest.raises(InputError, match="nothing kept"):
        Curve("a", 3, [1, 3], [1.0, 0.0], {}).relative()
    with pytest.raises(InputError, match="none of the widths"):
        Curve("a", 3, [1, 3], [1.0, 0.0], {}).place(2)
    with pytest.raises(ValueError, match="read-only"):
        Curve("a", 3, [1, 3], [1.0, 0.0], {}).errors[0] = 2.0


# ------------------------------------------------------------------------------------------------ interpolation

positive = st.floats(1e-6, 1e6)


@given(
    points=st.lists(st.tuples(positive, st.floats(0.0, 1e6)), min_size=1, max_size=5),
    errors=st.lists(st.floats(0.0, 1e7), min_size=2, max_size=12),
)
def test_interpolation_is_monotone_not_negative_and_zero_at_zero(points, errors):
    x, y = zip(*points, strict=True)
    errors = np.sort([0.0, *errors])
    found = interpolated(errors, x, y)
    assert np.all(np.isfinite(found))
    assert np.all(np.diff(found) >= -1e-9 * found.max())
    assert found[0] == 0.0
    assert np.all(found >= 0.0)


@given(
    x=st.lists(positive, min_size=1, max_size=5, unique=True),
    rises=st.lists(st.floats(0.0, 10.0), min_size=5, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_interpolation_passes_through_measurements_that_rise(x, rises, order):
    x = sorted(x)
    y = np.cumsum(rises)[: len(x)]
    shuffled = list(range(len(x)))
    order.shuffle(shuffled)
    found = interpolated(x, np.array(x)[shuffled], y[shuffled])
    np.testing.assert_allclose(found, y, rtol=1e-9)


@pytest.mark.parametrize("power", [1.0, 1.3, 2.0])
def test_powers_are_found_again_from_two_measurements_on(power):
    errors = np.geomspace(1.0, 100.0, 9)
    found = interpolated(errors, errors[[0, 4, 6]], 3.0 * errors[[0, 4, 6]] ** power)
    np.testing.assert_allclose(found, 3.0 * errors**power)
    np.testing.assert_allclose(interpolated([0.5, 0.25], errors[:5:4], errors[:5:4] ** power), [0.5, 0.25])


def test_measurements_that_fall_are_pooled_and_steep_ones_do_not_run_away():
    np.testing.assert_allclose(interpolated([1, 2, 3, 4], [1, 2, 3, 4], [1.0, 5.0, 3.0, 9.0]), [1, 4, 4, 9])
    np.testing.assert_allclose(interpolated([1, 2], [1, 1, 2], [1.0, 3.0, 7.0]), [2.0, 7.0])
    assert interpolated([8.0], [1.0, 2.0], [1.0, 1000.0])[0] == pytest.approx(1000.0 * 4.0**2)
    assert interpolated([8.0], [1.0, 2.0], [1.0, 1.1])[0] == pytest.approx(1.1 * 4.0)
    np.testing.assert_allclose(interpolated([1.0, 1.5, 2.0], [1.0, 2.0], [0.0, 4.0]), [0.0, 2.0, 4.0])
    np.testing.assert_allclose(interpolated([1.0, 2.0], [2.0], [-0.1]), [0.0, 0.0])


def test_measured_widths_stay_and_those_between_follow_the_error():
    curve = Curve("a", 5, [1, 2, 3, 4, 5], [17.0, 9.0, 5.0, 2.0, 1.0], {"p": 1.0})
    found = with_measured(curve, {4: 0.5, 2: 4.0, 1: 16.0})
    power = np.log(8.0) / np.log(8.0)
    np.testing.assert_allclose(found.losses, [16.0, 4.0, 0.5 * 4.0**power, 0.5, 0.0])
    np.testing.assert_array_equal(found.errors, curve.errors)
    with pytest.raises(InputError, match="none of the widths"):
        with_measured(curve, {7: 1.0})
    with pytest.raises(InputError, match="loses nothing with 5"):
        with_measured(curve, {5: 1.0})
    with pytest.raises(InputError, match="monotone"):
        with_measured(Curve("a", 3, [1, 2, 3], [1.0, 2.0, 0.0], {}), {1: 1.0})
    with pytest.raises(InputError, match="at least one"):
        with_measured(curve, {})


# ----------------------------------------------------------------------------------------------------- budgets


def two():
    return [
        Curve("x.mlp", 10, np.arange(1, 11), np.zeros(10), {"p": 3, "t": 0.125}),
        Curve("x.attn", 4, np.arange(1, 5), np.zeros(4), {"p": 5, "t": 0.25}, layers=["x.q", "x.k"]),
    ]


def test_shares_and_numbers():
    budget = Budget({"p": 0.29, "t": 1.75})
    assert budget.resolve(two()).limits == {"p": 14.0, "t": 1.75}  # 0.29 of 50 is 14.5, and uses are whole
    assert Budget({"p": 20}).resolve(two()).limits == {"p": 20.0}
    assert Budget({"p": 1.0}).resolve(two()).limits == {"p": 50.0}
    assert Budget({"t": 0.5}).resolve(two()).limits == {"t": 1.125}
    assert Budget({"t": 0.5}, absolute=True).resolve(two()).limits == {"t": 0.5}
    hundred = [Curve("a", 100, np.arange(101), np.zeros(101), {"p": 1})]
    assert Budget({"p": 0.29}).resolve(hundred).limits == {"p": 29.0}  # not 28.999999999999996


def test_the_whole_model_has_a_part_that_stays():
    whole = Budget({"p": 0.8}, of="whole", fixed={"p": 50}).resolve(two())
    assert whole.limits == {"p": 80.0}
    assert whole.usage("p", [9, 3]) == 100.0
    assert Budget({"p": 0.8}, fixed={"p": 50}).resolve(two()).usage("p", [9, 3]) == 50.0
    with pytest.raises(InputError, match="pass fixed"):
        Budget({"p": 0.8}, of="whole").resolve(two())
    with pytest.raises(
        InfeasibleError, match=r"use at least 58, which is the smallest feasible budget \(0.58 of"
    ):
        Budget({"p": 57}, of="whole", fixed={"p": 50}).resolve(two())


def test_limits_on_single_layers():
    posed = Budget({}, least={"*": 2, "*.mlp": 0.35}, most={"x.q": 3}).resolve(two())
    assert posed.curves[0].widths.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert posed.curves[1].widths.tolist() == [2, 3]
    assert Budget({}, most=0.5).resolve(two()).curves[0].widths.tolist() == [1, 2, 3, 4, 5]
    assert Budget({}, least=0.3).resolve(two()).curves[0].widths[0] == 3
    with pytest.raises(InputError, match=r"least has 'y\*', which is none of the layers"):
        Budget({}, least={"y*": 2}).resolve(two())
    with pytest.raises(InfeasibleError, match="has no width between least = 5 and most = 4"):
        Budget({}, least=5).resolve(two())
    with pytest.raises(InputError, match="whole number of units"):
        Budget({}, most=1.5).resolve(two())


def test_budgets_that_cannot_be_read_are_refused():
    with pytest.raises(InputError, match="no costs in 'flops': give every curve some, or choose among p, t"):
        Budget({"flops": 0.5}).resolve(two())
    with pytest.raises(InputError, match="must not be negative"):
        Budget({"p": -1})
    with pytest.raises(InputError, match="neither"):
        Budget({"p": 1}, of="half")
    with pytest.raises(InputError, match="occurs twice"):
        Budget({}).resolve([*two(), *two()])
    with pytest.raises(InputError, match="no curves"):
        Budget({}).resolve([])
    narrow = Curve("a", 9, [2, 3], [1.0, 0.0], {"p": [4.0, 5.0]})
    with pytest.raises(InputError, match="is not known"):
        Budget({"p": 0.5}).resolve([narrow])
    assert Budget({"p": 5}).resolve([narrow]).limits == {"p": 5.0}
