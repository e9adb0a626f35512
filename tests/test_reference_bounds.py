"""The reference formulas of the perspective and the lifted bound: valid, and the second never below the first."""

from __future__ import annotations

import numpy as np
import pytest
from test_exact import drawn, enumerated

from osscar_opt.formulations.lifted import lifted_bound, quadratic
from osscar_opt.formulations.perspective import perspective_bound, tangent
from osscar_opt.formulations.presolve import presolve


@pytest.mark.parametrize("seed", range(40))
def test_both_bounds_are_below_the_optimum_and_the_lifted_one_dominates(seed: int) -> None:
    problem = presolve(drawn(seed)).problem
    if problem.limits.cardinality is None or problem.n < 2:
        pytest.skip("the comparison is for a plain keep")
    optimum, rng = enumerated(problem), np.random.default_rng(seed)
    least = np.linalg.eigvalsh(problem.gram)[0]
    blocks = [np.eye(int(size)) * least * rng.uniform(0.3, 0.95) for size in problem.groups.sizes]
    z = rng.uniform(0.2, 0.9, problem.n)
    at = tangent(problem, z, blocks)
    scores = -at.gradient
    keep = problem.limits.cardinality
    first_order = at.value + scores @ z - np.sort(scores)[problem.n - keep :].sum()
    bound = perspective_bound(problem, blocks, at.weights)
    slack = 1e-8 * abs(problem.constant)
    assert bound == pytest.approx(first_order, abs=slack)
    assert bound <= optimum + slack
    owner = problem.groups.group_of_row
    multipliers = np.empty_like(at.weights)
    for group, block in enumerate(blocks):
        rows = owner == group
        multipliers[rows] = block @ at.weights[rows] / z[group]
    same = lifted_bound(problem, multipliers, 2.0 * scores * (1 + 1e-9), 1.0 - z)
    assert same.value == pytest.approx(bound, abs=10 * slack)
    _, form = quadratic(problem, multipliers)
    root = np.sqrt(np.diag(form))
    largest = np.linalg.eigvalsh(form / root / root[:, None])[-1]
    better = lifted_bound(problem, multipliers, np.diag(form) * largest * (1 + 1e-9), 1.0 - z)
    assert better.value <= optimum + slack


def test_the_gradient_is_that_of_the_value() -> None:
    problem = presolve(drawn(4)).problem
    least, step = np.linalg.eigvalsh(problem.gram)[0], 1e-6
    blocks = [np.eye(int(size)) * 0.5 * least for size in problem.groups.sizes]
    z = np.linspace(0.3, 0.8, problem.n)
    at = tangent(problem, z, blocks)
    for group in range(problem.n):
        ahead, behind = z.copy(), z.copy()
        ahead[group] += step
        behind[group] -= step
        slope = (tangent(problem, ahead, blocks).value - tangent(problem, behind, blocks).value) / (2 * step)
        assert slope == pytest.approx(at.gradient[group], rel=1e-4, abs=1e-8 * problem.constant)
