"""Metrics of a yes-or-no decision with their bounds, the threshold, and the decision curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cctmn.metrics.binary import (
    FALSE_ALARM,
    MISSED,
    NAMES,
    BinarySample,
    Conditions,
    decision_curve,
    estimate,
    threshold_for,
)

AT = Conditions(threshold=0.5, prevalence=0.1)


def counted(true_positive: int, sick: int, true_negative: int, healthy: int) -> BinarySample:
    """One patient per observation, with scores of 0.9 and 0.1."""
    score = [0.9] * true_positive + [0.1] * (sick - true_positive)
    score += [0.1] * true_negative + [0.9] * (healthy - true_negative)
    positive_N = np.arange(sick + healthy) < sick
    patients = np.arange(sick + healthy)
    return BinarySample(np.array(score), positive_N, patients, np.ones(len(score), np.int64))


def scored(score: list[float], positive: list[bool], group: list[int]) -> BinarySample:
    ones = np.ones(len(score), np.int64)
    return BinarySample(np.array(score), np.array(positive), np.array(group), ones)


@pytest.mark.parametrize(
    ("metric", "hits", "n"), [("sensitivity", 90, 100), ("specificity", 160, 200)]
)
def test_proportions_of_patients_have_clopper_pearson_intervals(
    metric: str, hits: int, n: int
) -> None:
    found = estimate(counted(90, 100, 160, 200), metric, at=AT)
    exact = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert (found.value, found.patients, found.fewest) == (hits / n, n, n)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        # Of 1000 patients 100 are sick: 90 are found, beside 180 false alarms of 900.
        ("ppv", 90 / 270),
        ("npv", 720 / 730),
        ("lr_positive", 4.5),
        ("lr_negative", 0.125),
        ("accuracy", 250 / 300),
    ],
)
def test_values_are_those_computed_by_hand(metric: str, value: float) -> None:
    assert estimate(counted(90, 100, 160, 200), metric, at=AT).value == pytest.approx(value)


def test_bounds_of_likelihood_ratios_are_near_the_log_method() -> None:
    """Simel et al. 1991; the exact bounds are a little wider."""
    sample = counted(90, 100, 160, 200)
    for metric, value, variance in (
        ("lr_positive", 4.5, 0.1 / 90 + 0.8 / (0.2 * 200)),
        ("lr_negative", 0.125, 0.9 / (0.1 * 100) + 0.2 / (0.8 * 200)),
    ):
        spread = math.exp(stats.norm.ppf(0.975) * math.sqrt(variance))
        found = estimate(sample, metric, at=AT)
        assert found.low == pytest.approx(value / spread, rel=0.15)
        assert found.high == pytest.approx(value * spread, rel=0.05)


def test_bounds_of_predictive_values_are_near_the_logit_method() -> None:
    """Mercaldo et al. 2007: 27.3 to 39.9 %."""
    found = estimate(counted(90, 100, 160, 200), "ppv", at=AT)
    assert (found.low, found.high) == pytest.approx((0.273, 0.399), abs=0.01)


def test_bounds_by_hand_from_those_of_sensitivity_and_specificity() -> None:
    sample = counted(45, 50, 80, 100)
    sensitivity = stats.binomtest(45, 50).proportion_ci(0.95, "exact")
    specificity = stats.binomtest(80, 100).proportion_ci(0.95, "exact")
    below = math.hypot(math.log(0.9 / sensitivity.low), math.log((1 - specificity.low) / 0.2))
    low = 4.5 * math.exp(-below)
    assert estimate(sample, "lr_positive", at=AT).low == pytest.approx(low)
    assert estimate(sample, "ppv", at=AT).low == pytest.approx((low / 9) / (1 + low / 9))


def test_without_a_false_alarm_the_positive_likelihood_ratio_has_a_lower_bound_only() -> None:
    found = estimate(counted(30, 30, 60, 60), "lr_positive", at=AT)
    sick, healthy = 0.025 ** (1 / 30), 0.025 ** (1 / 60)
    assert (found.value, found.high) == (math.inf, math.inf)
    assert found.low == pytest.approx(sick / (1 - healthy))


def test_lower_bounds_hold_in_simulated_tests() -> None:
    """A 95 % interval may exclude the truth by its lower end in 2.5 % of the tests."""
    rng = np.random.default_rng(0)
    truth = {"ppv": 0.09 / (0.09 + 0.18), "npv": 0.72 / 0.73}
    too_high = dict.fromkeys(truth, 0)
    for _ in range(400):
        sample = counted(rng.binomial(60, 0.9), 60, rng.binomial(100, 0.8), 100)
        for metric, value in truth.items():
            low = estimate(sample, metric, at=AT).low
            assert low is not None
            too_high[metric] += low > value
    assert max(too_high.values()) <= 0.04 * 400


def test_slices_of_one_patient_widen_the_interval() -> None:
    group = [patient for patient in range(20) for _ in range(10)]
    right = [0.9 if patient < 17 else 0.1 for patient in group]
    alone = scored(right, [True] * 200, list(range(200)))
    together = scored(right, [True] * 200, group)
    one, other = (estimate(sample, "sensitivity", at=AT) for sample in (alone, together))
    assert one.value == other.value
    assert one.low is not None
    assert other.low is not None
    assert other.low < one.low - 0.1
    assert (other.patients, other.slices) == (20, 200)


def test_dependent_slices_get_the_wider_bounds_of_a_likelihood_ratio() -> None:
    sample = counted(45, 50, 80, 100)
    # Each healthy slice now belongs to a patient with a sick slice.
    shared = BinarySample(
        sample.score_N, sample.positive_N, sample.group_N % 50, np.ones(150, np.int64)
    )
    apart, mixed = (estimate(one, "lr_positive", at=AT) for one in (sample, shared))
    assert apart.low is not None
    assert mixed.low is not None
    assert mixed.low < apart.low


def test_area_under_the_curve_counts_pairs() -> None:
    sample = scored([0.9, 0.4, 0.6, 0.1], [True, True, False, False], [0, 1, 2, 3])
    found = estimate(sample, "auc", at=AT)
    assert (found.value, found.patients, found.fewest) == (0.75, 4, 2)


def test_a_perfect_ranking_has_an_exact_bound() -> None:
    found = estimate(counted(20, 20, 30, 30), "auc", at=AT)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 20))


@pytest.mark.parametrize("metric", NAMES)
def test_a_sample_of_one_class_has_no_false_bound(metric: str) -> None:
    found = estimate(counted(18, 20, 0, 0), metric, at=AT)
    if metric in ("sensitivity", "accuracy"):
        assert found.low is not None
    else:
        assert found.low is None
        assert found.fewest == 0


def test_an_observation_without_a_score_is_wrong_at_every_threshold() -> None:
    sample = scored([MISSED, FALSE_ALARM], [True, False], [0, 1])
    for threshold in (0.0, 0.5, 1.0):
        at = Conditions(threshold, 0.1)
        assert estimate(sample, "accuracy", at=at).value == 0


def test_the_threshold_is_the_highest_that_reaches_the_sensitivity() -> None:
    score = [round(0.05 * k, 2) for k in range(1, 21)]
    sample = scored([*score, 0.99], [True] * 20 + [False], list(range(21)))
    assert threshold_for(sample, sensitivity=0.95) == 0.1
    assert threshold_for(sample, sensitivity=1.0) == 0.05
    assert threshold_for(sample, sensitivity=0.9) == 0.15


def test_no_threshold_reaches_what_missing_scores_prevent() -> None:
    sample = scored([0.9, MISSED], [True, True], [0, 1])
    assert threshold_for(sample, sensitivity=0.5) == 0.9
    assert threshold_for(sample, sensitivity=0.95) is None
    assert threshold_for(counted(0, 0, 5, 5), sensitivity=0.5) is None


def test_the_decision_curve_is_the_net_benefit_of_its_formula() -> None:
    curve = decision_curve(counted(90, 100, 160, 200), prevalence=0.3)
    row = curve["threshold"].index(0.2)
    # Of 100 patients 30 are sick: 27 are found, and 14 of 70 are false alarms, at odds of 1 to 4.
    assert curve["model"][row] == pytest.approx(0.27 - 0.14 * 0.25)
    assert curve["treat_all"][row] == pytest.approx(0.3 - 0.7 * 0.25)
    assert len(curve["model"]) == 99


def test_there_is_no_decision_curve_of_one_class() -> None:
    assert decision_curve(counted(9, 10, 0, 0), prevalence=0.3) == {}
