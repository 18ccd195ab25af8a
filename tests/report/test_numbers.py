"""A number on a page never claims more than was measured."""

from __future__ import annotations

import pytest

from cctmn.metrics.metric import Metric
from cctmn.report.numbers import few_text, interval_text, value_text


def metric(value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric("slice.accuracy", "accuracy", value, low=low, high=high)


def test_only_a_metric_without_an_error_reads_100() -> None:
    assert value_text(metric(1.0)) == "100.0"
    assert value_text(metric(21_190 / 21_191)) == ">99.9"
    assert value_text(metric(21_190 / 21_191), 2) == ">99.99"
    assert value_text(metric(0.9994)) == "99.9"
    assert interval_text(metric(0.9999, low=0.9, high=0.99996)) == "90.0–>99.9"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.9, 0.95, "90.0–95.0"),
        (0.90001, 0.90041, "90.00–90.04"),
        (0.5, 0.5, ""),
        (0.90000001, 0.90000002, ""),
        (None, None, ""),
    ],
)
def test_the_ends_of_an_interval_are_never_equal(
    low: float | None, high: float | None, text: str
) -> None:
    assert interval_text(metric(0.9, low=low, high=high)) == text


@pytest.mark.parametrize(
    ("patients", "text"), [(30, ""), (29, "29 patients"), (1, "1 patient"), (None, "")]
)
def test_an_interval_on_few_patients_says_of_how_many(patients: int | None, text: str) -> None:
    few = Metric("slice.auc.covid", "AUC", 0.9, patients=300, fewest_patients=patients)
    assert few_text(few) == text


def test_a_metric_without_an_interval_says_that_patients_are_too_few() -> None:
    none = Metric("slice.accuracy", "accuracy", 0.9, method="too few patients for an interval")
    assert interval_text(none) == "too few patients"


def test_coefficients_are_not_shown_in_per_cent() -> None:
    slope = Metric("calibration.intercept.covid", "intercept", -1.25, low=-1.5, high=-1.0)
    assert value_text(slope) == "−1.250"
    assert interval_text(slope) == "−1.500 to −1.000"
