"""References, gaps, integrals, profiles and summaries, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_runs import Best, certified, run

from osscar_opt.bench.report.evaluation import evaluate, family_in_name
from osscar_opt.bench.report.findings import findings
from osscar_opt.bench.report.measures import (
    gap,
    horizon,
    primal_gap,
    primal_gaps_at,
    primal_integral,
    shifted_geometric_mean,
    time_charged,
    time_to_target,
)
from osscar_opt.bench.report.profiles import performance_profile, quality_profile
from osscar_opt.bench.report.reference import Reference, references
from osscar_opt.errors import InputError

PAIR = ("planted-8-s0", 2)


# ------------------------------------------------------------------------------------------------------ references


def test_the_best_run_is_the_reference_where_there_is_no_record():
    found = references([run("greedy", 5.0), run("search", 4.0)])[PAIR]
    assert (found.value, found.bound, found.proved, found.source) == (
        4.0,
        -math.inf,
        False,
        "best of the runs",
    )
    assert found.gap == math.inf


def test_the_record_is_the_reference_where_no_run_is_better():
    found = references([run("greedy", 5.0)], {PAIR: Best(4.0, 4.0, True)})[PAIR]
    assert (found.value, found.proved, found.source, found.gap) == (4.0, True, "record", 0.0)


def test_a_run_that_beats_an_open_record_takes_its_place_and_keeps_its_bound():
    found = references([run("search", 3.8)], {PAIR: Best(4.0, 3.0, False)})[PAIR]
    assert (found.value, found.bound, found.proved, found.source) == (3.8, 3.0, False, "best of the runs")
    assert found.gap == pytest.approx(0.8 / 3.8)


def test_a_certified_run_proves_the_record_and_a_claim_does_not():
    record = {PAIR: Best(4.0, 3.0, False)}
    assert references([certified("exact", 4.0)], record)[PAIR].proved
    claim = run("cvxpy", 4.0, bound=4.0, bound_kind="claimed")
    assert not references([claim], record)[PAIR].proved


def test_a_value_below_a_proved_optimum_is_told_and_is_not_proved():
    found = references([run("search", 3.9)], {PAIR: Best(4.0, 4.0, True)})[PAIR]
    assert not found.proved
    assert found.conflict.startswith(
        "planted-8-s0 at keep 2: a value of 3.9 lies below the certified bound 4"
    )


def test_rounding_below_a_proved_optimum_is_no_conflict():
    found = references([run("search", 4.0 * (1 - 1e-9))], {PAIR: Best(4.0, 4.0, True)})[PAIR]
    assert found.proved
    assert found.conflict == ""


def test_pairs_without_a_value_have_no_reference_and_lost_instances_are_told_apart():
    lost = [run("greedy", None, instance=name, hash="", n=0, p=0, keep=None) for name in ("one", "two")]
    assert references(lost) == {}
    assert set(evaluate(lost).pairs) == {("one", None), ("two", None)}


# -------------------------------------------------------------------------------------------------------- measures


def test_gap_is_relative_to_the_reference_and_never_negative():
    reference = Reference(4.0, 4.0, True, "record")
    assert gap(4.2, reference) == pytest.approx(0.05)
    assert gap(3.9, reference) == 0.0
    assert gap(None, reference) == math.inf
    assert math.isnan(gap(4.0, None))


def test_gap_to_a_reference_of_zero_is_relative_to_the_floor():
    assert gap(1e-13, Reference(0.0, 0.0, True, "record", floor=1e-6)) == pytest.approx(1e-7)
    assert gap(1.0, Reference(0.0, 0.0, True, "record")) == math.inf
    assert references([run("greedy", 4.0)])[PAIR].floor == pytest.approx(1e-8 * 100.0)


def test_primal_gap_has_bertholds_special_cases():
    assert primal_gap(0.0, 0.0) == 0.0
    assert primal_gap(-1.0, 1.0) == 1.0
    assert primal_gap(5.0, 4.0) == pytest.approx(0.2)
    assert primal_gap(0.5, 0.0) == 1.0
    assert primal_gap(None, 1.0) == 1.0


def test_primal_integral_of_a_trace_by_hand():
    trace = [(2.0, 8.0), (4.0, 5.0), (7.0, 4.0)]  # gaps 1, then 1/2, then 1/5, then 0
    assert primal_integral(trace, 4.0, 10.0) == pytest.approx(2 * 1 + 2 * 0.5 + 3 * 0.2)
    assert primal_integral(trace, 4.0, 5.0) == pytest.approx(2 * 1 + 2 * 0.5 + 1 * 0.2)
    assert primal_integral(trace, 4.0, 1.0) == pytest.approx(1.0)
    assert primal_integral([], 4.0, 3.0) == pytest.approx(3.0)


def test_gaps_at_moments_agree_with_the_integral():
    trace = [(2.0, 8.0), (4.0, 5.0), (7.0, 4.0)]
    moments = np.linspace(0, 10, 100_001)[:-1]
    assert primal_gaps_at(moments, trace, 4.0).mean() * 10.0 == pytest.approx(
        primal_integral(trace, 4.0, 10.0), abs=1e-3
    )


def test_shifted_geometric_mean_by_hand():
    assert shifted_geometric_mean([0.0, 30.0], 10.0) == pytest.approx(10.0)
    assert shifted_geometric_mean([3.0], 10.0) == pytest.approx(3.0)
    assert shifted_geometric_mean([1.0, math.inf], 10.0) == math.inf
    assert math.isnan(shifted_geometric_mean([], 10.0))


def test_times_of_failed_runs_and_ends_of_integrals():
    assert time_charged(run("greedy", None, wall=0.5)) == 10.0
    assert time_charged(run("greedy", None, wall=11.0)) == 11.0
    assert time_charged(run("greedy", 4.0, wall=0.5)) == 0.5
    assert time_charged(run("greedy", None, wall=0.5, time_limit=None)) == 0.5
    assert horizon([run("greedy", 4.0, wall=11.0), run("osscar", 4.0)]) == 10.0
    assert horizon([run("greedy", 4.0, wall=3.0, time_limit=None)]) == 3.0


def test_time_to_a_target_is_that_of_the_first_improvement_within_it():
    found = run("search", 4.0, wall=9.0, trace=[(1.0, 8.0), (2.0, 4.03), (3.0, 4.0)])
    reference = Reference(4.0, 4.0, True, "record")
    assert time_to_target(found, reference) == 3.0
    assert time_to_target(found, reference, 0.01) == 2.0
    assert time_to_target(run("greedy", 5.0), reference) == math.inf
    assert time_to_target(run("greedy", 4.0, wall=2.5, trace=[]), reference) == 2.5
    assert time_to_target(run("greedy", None), reference) == math.inf


# -------------------------------------------------------------------------------------------------------- profiles


def test_performance_profile_by_hand():
    inf = math.inf
    found = performance_profile({"a": [1.0, 2.0, inf, inf], "b": [2.0, 1.0, 5.0, inf]}, clock=0.0)
    assert [found["a"].at(tau) for tau in (1, 1.9, 2, 100)] == [0.25, 0.25, 0.5, 0.5]
    assert [found["b"].at(tau) for tau in (1, 1.9, 2, 100)] == [0.5, 0.5, 0.75, 0.75]
    assert found["a"].at(0.5) == 0.0


def test_times_below_the_clock_are_equal():
    found = performance_profile({"a": [1e-6], "b": [9e-4]})
    assert (found["a"].at(1), found["b"].at(1)) == (1.0, 1.0)


def test_a_profile_needs_every_method_on_every_pair():
    with pytest.raises(InputError, match="needs the time of every method on every pair"):
        performance_profile({"a": [1.0], "b": [1.0, 2.0]})


def test_quality_profile_by_hand():
    found = quality_profile({"a": [0.0, 0.01, 0.01, math.inf]})["a"]
    assert [found.at(value) for value in (0, 0.005, 0.01, 1e9)] == [0.25, 0.25, 0.75, 0.75]
    assert found.pairs == 4


# ------------------------------------------------------------------------------------------------------ evaluation


@pytest.fixture
def evaluated():
    """Three pairs, two of them proved; greedy finds one, misses one by 5 %, and fails on one of two open runs."""
    return evaluate(
        [
            certified("exact", 4.0, wall=3.0),
            run("greedy", 4.0, wall=0.1),
            certified("exact", 2.0, keep=3, wall=5.0),
            run("greedy", 2.1, keep=3, wall=0.3),
            run("exact", None, instance="heads-9-s1", outcome="refused", reason="It does not handle blocks."),
            run("greedy", 8.0, instance="heads-9-s1", seed=0, wall=0.2),
            run("greedy", None, instance="heads-9-s1", seed=1, wall=0.2),
        ]
    )


def test_summary_by_hand(evaluated):
    exact, greedy = evaluated.summaries
    assert evaluated.labels == ("exact", "greedy")
    assert (exact.found, exact.proved_pairs, exact.certified, exact.refused, exact.answered) == (
        2,
        2,
        2,
        1,
        2,
    )
    assert (greedy.found, greedy.proved_pairs, greedy.share) == (1, 2, 0.5)
    assert (greedy.pairs, greedy.answered, greedy.runs, greedy.failed, greedy.refused) == (3, 2, 4, 1, 0)
    assert greedy.mean_gap == pytest.approx(0.025)
    assert greedy.worst_gap == pytest.approx(0.05)
    assert greedy.worst_pair == ("planted-8-s0", 3)
    assert greedy.geometric_gap == pytest.approx(math.sqrt(1e-4 * 0.0501) - 1e-4)
    # times: 0.1, 0.3, and the median of 0.2 and the failed run's limit of 10
    assert greedy.median_time == pytest.approx(0.3)
    assert greedy.geometric_time == pytest.approx((10.1 * 10.3 * 15.1) ** (1 / 3) - 10)
    assert exact.geometric_time == pytest.approx(math.sqrt(13 * 15) - 10)
    assert exact.integral == pytest.approx((3 + 5) / 2)


def test_refused_and_failed_runs_count_as_not_found(evaluated):
    cell = evaluated.cells["exact", ("heads-9-s1", 2)]
    assert (cell.refused, cell.reached, cell.answered, math.isnan(cell.integral)) == (
        True,
        False,
        False,
        True,
    )
    half = evaluated.cells["greedy", ("heads-9-s1", 2)]
    assert (half.failed, half.runs, half.gap, half.answered) == (1, 2, math.inf, False)
    assert evaluated.common() == [("planted-8-s0", 2), ("planted-8-s0", 3), ("heads-9-s1", 2)]


def test_medians_over_seeds():
    found = evaluate(
        [
            certified("exact", 4.0),
            *(run("random", value, seed=seed) for seed, value in enumerate((4.0, 4.4, 8.0))),
        ]
    )
    assert found.cells["random", PAIR].gap == pytest.approx(0.1)
    assert not found.cells["random", PAIR].reached


def test_runs_with_several_limits_are_methods_of_their_own():
    found = evaluate([run("search", 4.0), run("search", 4.0, time_limit=60.0), run("greedy", 5.0)])
    assert set(found.labels) == {"search (10 s, 512 MiB)", "search (60 s, 512 MiB)", "greedy"}


def test_nothing_is_proved_and_nothing_is_known():
    found = evaluate([run("greedy", None), run("osscar", None)])
    assert [(row.found, row.proved_pairs, math.isnan(row.share)) for row in found.summaries] == [
        (0, 0, True)
    ] * 2
    assert math.isnan(found.scored[0].gap)


def test_families_are_read_from_names_or_told():
    assert family_in_name(run("greedy", 1.0, instance="minilm-ffn0-first64")) == "minilm"
    assert family_in_name(run("greedy", 1.0, instance="own")) == "own"
    assert evaluate([run("greedy", 1.0)], family=lambda one: "ffn").families == ("ffn",)


# -------------------------------------------------------------------------------------------------------- findings


def test_findings_say_what_the_numbers_say(evaluated):
    said = [finding.sentence for finding in findings(evaluated)]
    assert said[0] == (
        "3 pairs of an instance and a keep, from 2 instances: the optimum is proved for 2, 1 is open."
    )
    assert said[1] == "exact found every one of the 2 certified optima; 1 pair it does not handle."
    assert said[2] == (
        "greedy found 1 of 2 certified optima (50 %); its mean gap is 2.5 % (shifted geometric mean 0.214 %), the "
        "worst 5 % on planted-8-s0 at keep 3; 1 run failed."
    )
    assert said[-1] == "Of 7 runs, 1 run failed and 1 run was refused; each counts as not solved."


def test_findings_name_families_and_what_nobody_found():
    rows = []
    for name, value in (("ffn-8-s0", 4.0), ("ffn-8-s1", 4.0), ("trap-8-s0", 5.0)):
        rows += [run("greedy", value, instance=name), run("swap", value, instance=name)]
    best = {(name, 2): Best(4.0, 4.0, True) for name in ("ffn-8-s0", "ffn-8-s1", "trap-8-s0")}
    said = " ".join(finding.sentence for finding in findings(evaluate(rows, best)))
    assert "Optimal throughout in ffn; weakest in trap, 0 of 1." in said
    assert "The proved optimum of 1 pair was found by none of these methods: trap-8-s0 at keep 2." in said


def test_conflicts_are_findings():
    found = evaluate([run("search", 3.9)], {PAIR: Best(4.0, 4.0, True)})
    assert any(finding.text.startswith("Conflict: planted-8-s0 at keep 2") for finding in findings(found))
