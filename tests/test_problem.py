"""Problem: values against least squares on the data itself, what is refused, what is shared."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from osscar_opt import Groups, Problem
from osscar_opt.errors import InputError, NotPositiveDefiniteError
from osscar_opt.formulations import _values
from osscar_opt.linalg.factor import factor

P, Q, SAMPLES = 12, 5, 40


def _data(seed: int = 0, p: int = P, q: int = Q) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((SAMPLES, p)) @ (np.eye(p) + 0.4 * rng.standard_normal((p, p)))
    weights = rng.standard_normal((p, q))
    return inputs, weights, inputs @ weights + rng.standard_normal((SAMPLES, q))


def _least_squares(
    inputs: np.ndarray, targets: np.ndarray, dense: np.ndarray, damping: float, rows: np.ndarray
) -> tuple[np.ndarray, float]:
    """Damped refit and its loss as one stacked least-squares problem; no Gram matrix is formed."""
    ridge = damping * float(np.mean(inputs**2)) if damping else 0.0
    left = np.vstack([inputs / np.sqrt(len(inputs)), np.sqrt(ridge) * np.eye(inputs.shape[1])])
    right = np.vstack([targets / np.sqrt(len(inputs)), np.sqrt(ridge) * dense])
    weights = np.zeros(dense.shape)
    weights[rows] = np.linalg.lstsq(left[:, rows], right, rcond=None)[0]
    return weights, 0.5 * float(np.sum((left @ weights - right) ** 2))


@pytest.mark.parametrize("damping", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("groups", [None, 3, [0, 1, 2, 0, 1, 2, 3, 3, 3, 3, 3, 4]])
@pytest.mark.parametrize("own_targets", [False, True])
def test_refit_and_value_are_those_of_least_squares_on_the_data(
    damping: float, groups: Any, own_targets: bool
) -> None:
    inputs, dense, targets = _data()
    if not own_targets:
        targets = inputs @ dense
    problem = Problem.from_data(
        inputs, dense, targets=targets if own_targets else None, damping=damping, groups=groups
    )
    rng = np.random.default_rng(1)
    for _ in range(5):
        support = rng.random(problem.n) < 0.6
        rows = support[problem.groups.group_of_row]
        weights, value = _least_squares(inputs, targets, dense, damping, rows)
        np.testing.assert_allclose(problem.refit(support), weights, rtol=1e-9, atol=1e-12)
        assert problem.value(support) == pytest.approx(value, rel=1e-10)
        assert problem.value(np.flatnonzero(support)) == problem.value(support)
        other = weights + rng.standard_normal(weights.shape)
        residual = (inputs @ other - targets) / np.sqrt(SAMPLES)
        ridge = damping * np.mean(inputs**2)
        by_hand = 0.5 * np.sum(residual**2) + 0.5 * ridge * np.sum((other - dense) ** 2)
        assert problem.objective(other) == pytest.approx(by_hand, rel=1e-11)


def test_targets_without_weights() -> None:
    inputs, _, targets = _data()
    problem = Problem.from_data(inputs, targets=targets, damping=0.1)
    weights, value = _least_squares(inputs, targets, np.zeros((P, Q)), 0.1, np.ones(P, dtype=bool))
    np.testing.assert_allclose(problem.optimum, weights, rtol=1e-9)
    assert problem.base == pytest.approx(value, rel=1e-10)
    assert problem.dense_objective == problem.base
    assert not problem.dense_is_optimal


def test_derived_targets_make_the_dense_weights_optimal_at_exactly_zero() -> None:
    inputs, dense, _ = _data()
    problem = Problem.from_data(inputs, dense, damping=1e-2)
    assert problem.dense_is_optimal
    assert problem.base == 0.0
    assert problem.dense_objective == 0.0
    np.testing.assert_array_equal(problem.optimum, dense)
    assert problem.value(np.ones(P, dtype=bool)) == 0.0
    assert problem.constant == pytest.approx(problem.objective(np.zeros((P, Q))), rel=1e-13)


def test_a_tiny_loss_beside_a_huge_constant_keeps_its_digits() -> None:
    """Drop an input of weight 1e-7: the loss is 1e-14 of the constant, and known in closed form."""
    gram = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 3.0]])
    dense = np.array([[1e3, -2e3], [2e3, 1e3], [1e-7, 3e-7]])
    problem = Problem(gram, dense_weights=dense, keep=2)
    schur = 3.0 - np.array([0.0, 0.25]) @ np.linalg.solve(gram[:2, :2], [0.0, 0.25])
    assert problem.value([0, 1]) == pytest.approx(0.5 * schur * np.sum(dense[2] ** 2), rel=1e-8)
    assert problem.value([0, 1]) < 1e-19 * problem.constant


def test_badly_scaled_inputs_are_refitted_as_well_as_well_scaled_ones() -> None:
    inputs, _, targets = _data()
    scale = np.geomspace(1e-3, 2e3, P)
    plain = Problem.from_data(inputs, targets=targets, damping=0.0)
    scaled = Problem.from_data(inputs * scale, targets=targets, damping=0.0)
    support = np.arange(P) % 3 > 0
    assert scaled.value(support) == pytest.approx(plain.value(support), rel=1e-10)
    np.testing.assert_allclose(scaled.refit(support) * scale[:, None], plain.refit(support), rtol=1e-9)


def test_ill_conditioned_refit_solves_its_normal_equations() -> None:
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((P, P)))[0]
    gram = (basis * np.geomspace(1e-10, 1.0, P)) @ basis.T
    gram = (gram + gram.T) / 2
    problem = Problem(gram, gram @ rng.standard_normal((P, Q)))
    support = np.arange(P) < 9
    weights = problem.refit(support)
    residual = gram[:9] @ weights - problem.cross[:9]
    assert np.abs(residual).max() < 1e-14 * np.abs(weights).max()


def test_constant_as_given_is_the_objective_of_nothing() -> None:
    problem = Problem(np.eye(3), np.ones((3, 2)), constant=7.5)
    assert problem.constant == 7.5
    assert problem.objective(np.zeros((3, 2))) == pytest.approx(7.5, rel=1e-14)
    assert problem.base == pytest.approx(7.5 - 3.0)
    assert problem.value(np.zeros(3, dtype=bool)) == pytest.approx(7.5)


def test_dead_inputs_are_allowed_and_get_no_weight() -> None:
    inputs, dense, _ = _data()
    inputs[:, [2, 7]] = 0.0
    problem = Problem.from_data(inputs, dense, damping=0.0)
    assert np.flatnonzero(~problem.live_rows).tolist() == [2, 7]
    support = np.arange(P) != 4
    weights = problem.refit(support)
    assert not weights[[2, 4, 7]].any()
    expected, value = _least_squares(inputs, inputs @ dense, dense, 0.0, support & problem.live_rows)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    assert problem.value(support) == pytest.approx(value, rel=1e-10)
    with pytest.raises(
        NotPositiveDefiniteError
    ):  # dead in gram, alive in cross: the objective has no minimum
        Problem(np.diag([1.0, 0.0]), [[1.0], [1.0]])


def test_objective_ignores_nothing_and_never_infers_support() -> None:
    inputs, dense, _ = _data()
    problem = Problem.from_data(inputs, dense, groups=3, keep=2)
    weights = np.zeros((P, Q))
    weights[0] = 1.0  # one row of a group of three, columns alike
    expected = 0.5 * np.sum((weights - dense) * (problem.gram @ (weights - dense)))
    assert problem.objective(weights) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_narrow_types_are_upcast(dtype: type) -> None:
    gram = (np.eye(3) * 4 + 1).astype(dtype)
    problem = Problem(gram, np.ones((3, 2), dtype=dtype), keep=1)
    assert problem.gram.dtype == problem.cross.dtype == np.float64
    np.testing.assert_array_equal(problem.gram, np.eye(3) * 4 + 1)


def test_half_precision_data_are_accumulated_in_double() -> None:
    inputs, dense, _ = _data()
    halves = (inputs * 100).astype(np.float16), dense.astype(np.float16)
    problem = Problem.from_data(*halves, damping=0.0)
    exact = halves[0].astype(float)
    np.testing.assert_allclose(problem.gram, exact.T @ exact / SAMPLES, rtol=1e-13)


def test_more_samples_than_one_block() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((20_000, 3)), rng.standard_normal((20_000, 2))
    problem = Problem.from_data(inputs, targets=targets, damping=0.0)
    np.testing.assert_allclose(problem.gram, inputs.T @ inputs / 20_000, rtol=1e-12)
    np.testing.assert_allclose(problem.cross, inputs.T @ targets / 20_000, rtol=1e-10)


def test_from_moments_is_from_data() -> None:
    inputs, dense, targets = _data()
    direct = Problem.from_data(inputs, dense, targets=targets, damping=0.03, keep=4)
    moments = Problem.from_moments(
        inputs.T @ inputs / SAMPLES,
        dense,
        cross_moment=inputs.T @ targets / SAMPLES,
        target_energy=np.sum(targets**2) / SAMPLES,
        damping=0.03,
        keep=4,
    )
    np.testing.assert_allclose(moments.gram, direct.gram, rtol=1e-12)
    np.testing.assert_allclose(moments.cross, direct.cross, rtol=1e-12)
    assert moments.constant == pytest.approx(direct.constant)
    without_energy = Problem.from_moments(direct.gram, dense, cross_moment=direct.cross, damping=0.0)
    assert without_energy.base == 0.0


@pytest.mark.parametrize(
    ("sparsity", "keep"), [(0.0, 10), (1.0, 0), (0.5, 5), (0.29, 8), (0.3, 7), (0.75, 3)]
)
def test_sparsity_is_the_fraction_removed_rounded_down(sparsity: float, keep: int) -> None:
    assert Problem.from_moments(np.eye(20), np.ones((20, 3)), sparsity=sparsity, groups=2).keep == keep


# ------------------------------------------------------------------------------------------- immutability


def test_arrays_are_copied_and_read_only() -> None:
    gram, cross = np.eye(3), np.ones((3, 2))
    problem = Problem(gram, cross, dense_weights=cross, keep=1)
    gram[0, 0] = cross[0, 0] = 99.0
    assert problem.gram[0, 0] == problem.cross[0, 0] == 1.0
    from_data = Problem.from_data(gram, cross, keep=1)
    arrays = [problem.gram, problem.cross, problem.dense_weights, problem.optimum, problem.always_keep]
    for array in (*arrays, from_data.gram, from_data.cross, from_data.dense_weights):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
    with pytest.raises(AttributeError):
        problem.keep = 2  # type: ignore[misc]


def test_copy_false_takes_the_arrays_without_changing_them() -> None:
    gram, cross = np.eye(3), np.ones((3, 2))
    problem = Problem(gram, cross, copy=False)
    assert np.shares_memory(problem.gram, gram)
    assert np.shares_memory(problem.cross, cross)
    assert gram.flags.writeable
    skewed = np.eye(3)
    skewed[0, 1] = 1e-10
    symmetric = Problem(skewed, cross, copy=False)
    assert skewed[1, 0] == 0.0
    assert symmetric.gram[0, 1] == symmetric.gram[1, 0] == 5e-11


def test_derived_problems_share_arrays() -> None:
    inputs, dense, _ = _data()
    problem = Problem.from_data(inputs, dense, groups=3, keep=2)
    other = problem.with_keep(3)
    assert (problem.keep, other.keep) == (2, 3)
    assert other.limits.cardinality == 3
    for name in ("gram", "cross", "dense_weights", "optimum"):
        assert np.shares_memory(getattr(problem, name), getattr(other, name))
    limited = problem.with_limits(keep=None, costs=[1, 2, 3, 4], budget=5, always_remove=[0])
    assert limited.keep is None
    assert limited.features == {"budget", "forced"}
    assert limited.with_limits(always_remove=None).features == {"budget"}
    with pytest.raises(InputError, match="keep = 9 is out of range"):
        problem.with_keep(9)
    with pytest.raises(InputError, match="there is no limit 'kept'"):
        problem.with_limits(kept=3)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda problem: pickle.loads(pickle.dumps(problem))]
)
def test_copies_and_pickles_hold_the_same_and_stay_read_only(clone: Any) -> None:
    inputs, dense, _ = _data()
    problem = Problem.from_data(
        inputs, dense, groups=3, keep=2, always_keep=[1], name="x", provenance={"a": [1]}
    )
    same = clone(problem)
    assert same.hash == problem.hash
    assert repr(same) == repr(problem)
    assert same.provenance == {"a": [1]}
    assert same.value([0, 1]) == problem.value([0, 1])
    assert not same.gram.flags.writeable
    assert not same.always_keep.flags.writeable


def test_provenance_cannot_be_changed_from_outside() -> None:
    given = {"model": {"name": "toy"}}
    problem = Problem(np.eye(2), np.ones((2, 1)), provenance=given)
    given["model"]["name"] = "other"
    problem.provenance["model"]["name"] = "third"
    assert problem.provenance == {"model": {"name": "toy"}}
    with pytest.raises(InputError, match="provenance must be a dict that JSON can hold"):
        Problem(np.eye(2), np.ones((2, 1)), provenance={"array": np.ones(2)})


# ----------------------------------------------------------------------------------------------- identity


def test_hash_covers_the_mathematics_and_nothing_else() -> None:
    inputs, dense, targets = _data()
    base: dict[str, Any] = {"weights": dense, "groups": 3, "keep": 2}
    problem = Problem.from_data(inputs, **base)
    for same in (
        Problem.from_data(inputs, **{**base, "keep": 3}),
        Problem.from_data(inputs, **base, name="n", provenance={"x": 1}),
        problem.with_keep(None),
        Problem.from_data(inputs, **{**base, "groups": np.repeat(np.arange(4), 3)}),
    ):
        assert same.hash == problem.hash
    different = [
        Problem.from_data(inputs * 1.001, **base),
        Problem.from_data(inputs, **{**base, "weights": dense * 1.001}),
        Problem.from_data(inputs, **{**base, "groups": 2}),
        Problem.from_data(inputs, targets=targets, **base),
        problem.with_limits(always_keep=[0]),
        problem.with_limits(always_remove=[0]),
        problem.with_limits(costs=[1, 1, 1, 1], budget=2),
        problem.with_limits(costs=[1, 1, 1, 1], budget=3),
        problem.with_limits(blocks=[0, 0, 1, 1], block_keep=[1, 1]),
        Problem(problem.gram, problem.cross, groups=3),
        Problem(problem.gram, problem.cross, groups=3, constant=3.0),
    ]
    assert len({problem.hash, *(other.hash for other in different)}) == len(different) + 1
    assert len(problem.hash) == 64


def test_hash_does_not_see_the_sign_of_zero_or_the_memory_order() -> None:
    gram = np.array([[1.0, 0.0], [0.0, 2.0]])
    negative = np.array([[1.0, -0.0], [-0.0, 2.0]])
    cross = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    assert Problem(gram, cross).hash == Problem(negative, np.asfortranarray(cross * 1.0)).hash


def test_features_and_texts() -> None:
    problem = Problem(np.eye(3), np.ones((3, 2)), groups=[0, 0, 1], keep=1, name="layer", always_keep=[1])
    assert problem.features == {"unequal_groups", "forced"}
    assert repr(problem) == "Problem('layer', p=3, q=2, groups=Groups(n=2, sizes=1..2), keep=1)"
    assert "1 groups kept, 0 removed" in problem.describe()
    many = Problem(np.eye(9), np.ones((9, 1)), blocks=range(9), block_keep=[1] * 9)
    assert len(repr(many)) < 150
    assert Problem(np.eye(4), np.ones((4, 1)), groups=Groups.coerce(2, 4)).features == frozenset()


# --------------------------------------------------------------------------------------------- bad input


def _spoiled(position: tuple[int, int], value: float) -> np.ndarray:
    array = np.eye(4)
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gram": np.ones((2, 3)), "cross": np.ones((2, 1))}, r"gram must be a square matrix, .* \(2, 3\)"),
        ({"gram": np.ones(3), "cross": np.ones((3, 1))}, r"gram must be a matrix, but its shape is \(3,\)"),
        ({"gram": _spoiled((2, 1), np.nan), "cross": np.ones((4, 1))}, r"gram\[2, 1\] is nan"),
        ({"gram": _spoiled((3, 0), -np.inf), "cross": np.ones((4, 1))}, r"gram\[3, 0\] is -inf"),
        ({"gram": np.eye(4), "cross": [[1], [1], [np.inf], [1]]}, r"cross\[2, 0\] is inf"),
        ({"gram": np.eye(4), "cross": np.ones((3, 2))}, "cross has 3 rows, but gram has 4"),
        ({"gram": np.eye(4), "cross": np.ones(4)}, r"cross must be a matrix, but its shape is \(4,\)"),
        ({"gram": np.eye(4)}, "pass cross .* or dense_weights"),
        ({"gram": np.eye(4), "dense_weights": np.ones((2, 4))}, "torch stores weights transposed"),
        (
            {"gram": np.eye(4), "cross": np.ones((4, 2)), "dense_weights": np.ones((4, 3))},
            r"dense_weights have shape \(4, 3\), but cross has \(4, 2\)",
        ),
        ({"gram": np.eye(4) * 1j, "cross": np.ones((4, 1))}, "gram must hold real numbers"),
        ({"gram": [[1.0], [1.0, 2.0]], "cross": [[1.0]]}, "gram cannot be read as an array"),
        ({"gram": np.eye(4), "cross": np.ones((4, 1)), "constant": np.nan}, "constant = nan must be finite"),
        ({"gram": np.eye(4), "cross": np.ones((4, 1)), "constant": "x"}, "constant = 'x' must be a number"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Problem(**arguments)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": np.ones((3, 2))}, "nothing to approximate"),
        ({"inputs": np.ones((0, 2)), "weights": np.ones((2, 1))}, "one row per sample"),
        ({"inputs": np.ones(4), "weights": np.ones((2, 1))}, "one row per sample"),
        ({"inputs": np.ones((3, 2)), "targets": np.ones((4, 2))}, "inputs have 3 rows and targets 4"),
        ({"inputs": [[np.nan, 1.0]], "weights": np.ones((2, 1))}, r"inputs\[0, 0\] is nan"),
        (
            {"inputs": np.eye(2), "weights": np.ones((2, 1)), "damping": -1},
            "damping = -1 must not be negative",
        ),
        (
            {"inputs": np.eye(2), "weights": np.ones((2, 1)), "sparsity": 1.5},
            "sparsity = 1.5 is out of range",
        ),
        ({"inputs": np.eye(2), "weights": np.ones((2, 1)), "sparsity": 0.5, "keep": 1}, "both given"),
        (
            {"inputs": np.eye(2), "weights": np.ones((2, 3)), "targets": np.ones((2, 2))},
            "the targets ask for",
        ),
    ],
)
def test_bad_data_are_refused_in_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Problem.from_data(**arguments)


def test_nan_is_found_beyond_the_first_block() -> None:
    gram = np.eye(1100)
    gram[1050, 3] = np.nan
    with pytest.raises(InputError, match=r"gram\[1050, 3\] is nan"):
        Problem(gram, np.ones((1100, 1)))


@pytest.mark.parametrize(
    ("dtype", "harmless", "wrong"), [(np.float64, 1e-10, 1e-6), (np.float32, 1e-5, 1e-3)]
)
def test_asymmetry_within_rounding_is_averaged_and_beyond_it_refused(
    dtype: type, harmless: float, wrong: float
) -> None:
    gram = (np.eye(600) * 100.0).astype(dtype)
    gram[590, 7] = 100.0 * harmless
    problem = Problem(gram, np.ones((600, 1)))
    np.testing.assert_array_equal(problem.gram, problem.gram.T)
    assert problem.gram[7, 590] == pytest.approx(50.0 * harmless, rel=1e-6)
    gram[590, 7] = 100.0 * wrong
    with pytest.raises(InputError, match=r"not symmetric: entries \(7, 590\) and \(590, 7\)"):
        Problem(gram, np.ones((600, 1)))


@pytest.mark.parametrize("kind", ["indefinite", "negative", "too few samples", "twins", "scaled twins"])
def test_the_damping_suggested_is_enough(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "indefinite":
        gram = np.diag([3.0, 2.0, -0.5, 1.0])
    elif kind == "negative":
        gram = np.array([[1.0, 0.999, 0, 0], [0.999, 1.0, -0.999, 0], [0, -0.999, 1.0, 0], [0, 0, 0, 5.0]])
    else:
        inputs = rng.standard_normal((3 if kind == "too few samples" else 9, 4))
        if "twins" in kind:
            inputs[:, 1] = inputs[:, 0] * (1e6 if kind == "scaled twins" else 1.0)
        gram = inputs.T @ inputs
    cross = rng.standard_normal((4, 3))
    with pytest.raises(
        NotPositiveDefiniteError, match="not positive definite: its smallest eigenvalue is"
    ) as caught:
        Problem(gram, cross)
    damping = caught.value.suggested_damping
    assert damping is not None
    assert f"{damping:.1e}" in str(caught.value)
    Problem(gram + damping * gram.diagonal().mean() * np.eye(4), cross)
    if kind == "indefinite":
        assert damping == pytest.approx(0.5 / 1.375 * 1.1, rel=0.05)


def test_no_damping_is_suggested_where_none_would_do() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="no positive mean") as caught:
        Problem(-np.eye(2), np.ones((2, 1)))
    assert caught.value.suggested_damping is None


def test_too_few_samples_say_which_damping_from_data_needs() -> None:
    inputs, dense, _ = _data(p=60)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        Problem.from_data(inputs, dense, damping=0.0)
    assert caught.value.suggested_damping is not None
    Problem.from_data(inputs, dense, damping=caught.value.suggested_damping)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda problem: problem.value([0, 9]), r"support names group 9, but groups are 0\.\.2"),
        (lambda problem: problem.refit([True]), r"support is a mask of shape \(1,\), but there are 3 groups"),
        (lambda problem: problem.objective(np.ones((3, 1))), r"weights must have shape \(3, 2\)"),
        (lambda problem: problem.objective(np.ones((2, 2))), "weights has 2 rows, but gram has 3"),
        (lambda problem: problem.objective(np.full((3, 2), np.nan)), r"weights\[0, 0\] is nan"),
    ],
)
def test_bad_questions_are_refused_in_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Problem(np.eye(3), np.ones((3, 2)), keep=1))


def test_no_rows_at_all() -> None:
    problem = Problem(np.zeros((0, 0)), np.zeros((0, 2)), keep=0)
    assert (problem.n, problem.p, problem.q) == (0, 0, 2)
    assert problem.value([]) == 0.0
    assert problem.features == frozenset()
    assert "0 rows" in problem.describe()


# ----------------------------------------------------------------------- large and badly scaled: blocks and memory


def _large(p: int = 700, q: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gram and dense weights of more rows than are taken at once."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((p + 100, p)) * np.geomspace(1.0, 30.0, p)
    return inputs.T @ inputs / len(inputs), rng.standard_normal((p, q))


@pytest.mark.parametrize("same", [slice(0, 0), slice(0, 300), slice(256, 700), slice(0, 700)])
def test_objective_of_more_rows_than_are_taken_at_once(same: slice) -> None:
    gram, dense = _large()
    weights = np.random.default_rng(1).standard_normal(dense.shape)
    weights[same] = dense[same]
    expected = 0.5 * np.sum((weights - dense) * (gram @ (weights - dense)))
    problem = Problem(gram, dense_weights=dense)
    assert problem.objective(weights) == pytest.approx(expected, rel=1e-12)
    assert problem.objective(np.asfortranarray(weights)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("columns", [1, 600])
@pytest.mark.parametrize("weakest", [0.1, 1e-9])
def test_refit_of_more_rows_and_columns_than_are_taken_at_once(columns: int, weakest: float) -> None:
    """The second gram calls for refinement, whose residual gathers the rows again."""
    rng = np.random.default_rng(0)
    p = 600
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    gram = (basis * np.geomspace(weakest, 1.0, p)) @ basis.T
    gram = (gram + gram.T) / 2
    problem = Problem(gram, gram @ rng.standard_normal((p, columns)))
    support = rng.random(p) < 0.8
    weights = problem.refit(support)
    block = gram[np.ix_(support, support)]
    refined = factor(block).reciprocal_condition < 1e-7
    assert refined == (weakest < 0.1)
    assert not weights[~support].any()
    backward = np.abs(block @ weights[support] - problem.cross[support]).max(axis=0)
    assert np.all(backward <= 1e-13 * np.abs(block).max() * np.abs(weights).sum(axis=0))
    np.testing.assert_array_equal(weights[support], _solved_by_columns(block, problem.cross[support]))


def _solved_by_columns(block: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """The same solve of a copy of the block."""
    factorisation, width = factor(block), _values._COLUMNS_AT_ONCE
    return np.hstack([factorisation.solve(cross[:, i : i + width]) for i in range(0, cross.shape[1], width)])


def test_factor_of_some_rows_is_that_of_a_copy_of_them() -> None:
    gram, dense = _large()
    rows = np.random.default_rng(2).permutation(len(gram))[:500]
    whole, gathered = factor(gram[np.ix_(rows, rows)]), factor(gram, rows)
    np.testing.assert_array_equal(np.tril(gathered.lower), np.tril(whole.lower))
    np.testing.assert_array_equal(gathered.scale, whole.scale)
    assert gathered.reciprocal_condition == whole.reciprocal_condition
    np.testing.assert_array_equal(gathered.solve(dense[rows]), whole.solve(dense[rows]))
    norm = np.abs(gram[np.ix_(rows, rows)] * whole.scale * whole.scale[:, None]).sum(axis=0).max()
    inverse = np.linalg.inv(gram[np.ix_(rows, rows)] * whole.scale * whole.scale[:, None])
    exact = 1.0 / (norm * np.abs(inverse).sum(axis=0).max())
    assert (
        exact <= gathered.reciprocal_condition * (1 + 1e-9) <= 3.0 * exact
    )  # an estimate of |inv(A)| from below


@pytest.mark.parametrize("seed", range(4))
def test_objective_has_the_digits_that_its_data_has(seed: int) -> None:
    """Against exact arithmetic, for inputs of size 2000 beside 1; the error is one of rounding the largest terms."""
    rng = np.random.default_rng(seed)
    p, q = 14, 3
    scale = np.where(rng.random(p) < 0.3, 2000.0, 1.0)
    inputs = rng.standard_normal((18, p)) * scale
    gram, dense = inputs.T @ inputs / 18, rng.standard_normal((p, q)) / scale[:, None]
    problem = Problem(gram, dense_weights=dense)
    near = problem.refit(np.arange(p) % 4 > 0)
    for weights in (near, dense + 1e-9 * rng.standard_normal((p, q)), np.zeros((p, q))):
        apart = [
            [Fraction(w) - Fraction(o) for w, o in zip(*rows, strict=True)]
            for rows in zip(weights, dense, strict=True)
        ]
        terms = [
            Fraction(problem.gram[i, j]) * sum(a * b for a, b in zip(apart[i], apart[j], strict=True))
            for i in range(p)
            for j in range(p)
        ]
        exact, size = float(sum(terms) / 2), float(sum(map(abs, terms)) / 2)
        assert abs(problem.objective(weights) - exact) <= 4 * np.finfo(float).eps * size
        by_product = 0.5 * np.vdot(weights - dense, gram @ (weights - dense))
        assert (
            abs(problem.objective(weights) - exact)
            <= abs(by_product - exact) + 2 * np.finfo(float).eps * size
        )


def test_no_weights_are_better_than_the_optimum() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    gram = (basis * np.geomspace(1e-13, 1.0, 300)) @ basis.T
    gram = (gram + gram.T) / 2
    problem = Problem(gram, gram @ rng.standard_normal((300, 2)), constant=1.0)
    for size in np.geomspace(1e-16, 1e-6, 30):  # along the flattest direction, rounding is all there is
        weights = problem.optimum * (1 + size * rng.standard_normal(2)) + size * basis[:, :1]
        assert problem.objective(weights) >= problem.base


def test_moments_are_damped_in_place_only_if_that_is_allowed() -> None:
    gram, dense = _large(20)
    second, cross = gram.copy(), gram @ dense
    copied = Problem.from_moments(second, dense, cross_moment=cross, damping=0.1)
    np.testing.assert_array_equal(second, gram)
    assert second.flags.writeable
    given = Problem.from_moments(second, dense, cross_moment=cross, damping=0.1, copy=False)
    assert np.shares_memory(given.gram, second)
    assert np.shares_memory(given.cross, cross)
    assert not second.flags.writeable
    assert given.hash == copied.hash
    again = Problem.from_moments(second, dense, damping=0.1, copy=False)  # in use already: that one is copied
    assert not np.shares_memory(again.gram, second)


def _peak(task: Callable[[], Any]) -> float:
    """Most memory that a task holds beyond what was there before, in numbers of 8 bytes."""
    task()  # what is imported and cached on the way does not count
    tracemalloc.start()
    try:
        result = task()
        peak = tracemalloc.get_traced_memory()[1] / 8
    finally:
        tracemalloc.stop()
    del result
    return peak


def test_memory_in_arrays_of_the_size_of_gram() -> None:
    p, q = 1536, 4
    rng = np.random.default_rng(0)
    factors, dense = rng.standard_normal((p, 40)), rng.standard_normal((p, q))
    gram = factors @ factors.T / 40 + np.eye(p)
    problem = Problem(gram, dense_weights=dense, keep=p * 9 // 10, copy=False)
    most = np.arange(p) % 10 > 0
    weights, block = problem.refit(most), p * p
    slack = 0.5 * block  # a few hundred rows at a time
    assert _peak(lambda: problem.objective(weights)) < slack
    assert _peak(lambda: problem.refit(most)) < 0.81 * block + slack
    assert _peak(lambda: problem.solve("magnitude_refit")) < 0.81 * block + slack
    assert _peak(lambda: Problem(gram, dense_weights=dense, copy=False)) < block + slack
    assert _peak(lambda: Problem(gram, problem.cross, copy=False)) < block + slack
    assert _peak(lambda: Problem.from_moments(gram, dense)) < 2 * block + slack
    assert _peak(lambda: Problem.from_moments(gram.copy(), dense, copy=False)) < 2 * block + slack
    assert _peak(lambda: Problem.from_data(factors.T, dense, damping=1.0)) < 2 * block + slack


# -------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("groups", [None, 3, [0, 1, 2, 0, 1, 2, 3, 3, 3, 3, 3, 4]])
def test_path_values_are_refits_of_its_supports(groups: Any) -> None:
    inputs, dense, targets = _data()
    problem = Problem.from_data(inputs, dense, targets=targets, groups=groups)
    path = problem.path("magnitude_refit")
    assert path.keeps.tolist() == list(range(problem.n, -1, -1))
    for keep in path.keeps:
        support = path.support(int(keep))
        assert support.sum() == keep
        assert path.objective(int(keep)) == pytest.approx(problem.value(support), rel=1e-10)
    np.testing.assert_array_equal(np.sort(path.order), np.arange(problem.n))
    with pytest.raises(InputError, match="out of range"):
        path.support(problem.n + 1)


def test_path_keeps_a_tiny_loss_and_forced_groups_and_dead_inputs() -> None:
    inputs, dense, _ = _data()
    inputs[:, 3] = 0.0
    dense[5] *= 1e-8
    problem = Problem.from_data(inputs, dense, damping=0.0, keep=4, always_keep=[0], always_remove=[9])
    path = problem.path("magnitude_refit")
    assert path.objectives[0] == 0.0
    assert path.order[0] == 9
    assert path.order[-1] == 0
    for keep in path.keeps:
        assert path.objective(int(keep)) == pytest.approx(problem.value(path.support(int(keep))), rel=1e-7)
