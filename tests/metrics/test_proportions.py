"""Intervals of proportions over patients: special cases, and coverage by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from cctmn.metrics.proportions import (
    clopper_pearson,
    cluster_interval,
    difference_interval,
    effective_interval,
)

STUDIES = 800


def ones(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 7), (5, 9), (30, 30), (171, 180)])
def test_one_observation_per_patient_gives_the_exact_binomial_interval(right: int, n: int) -> None:
    low, high = cluster_interval(np.repeat([1.0, 0.0], [right, n - right]), np.ones(n)) or (0, 0)
    exact = stats.binomtest(right, n).proportion_ci(0.95, method="exact")
    assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    assert clopper_pearson(right, n) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_patients_of_identical_slices_count_once() -> None:
    right_G = np.repeat([1.0, 0.0], [32, 8])
    one = cluster_interval(right_G, np.ones(40))
    assert cluster_interval(25 * right_G, np.full(40, 25.0)) == pytest.approx(one, abs=2e-2)


@pytest.mark.parametrize(("patients", "slices"), [(5, 20), (5, 200), (12, 9), (60, 20), (300, 40)])
def test_an_error_more_never_makes_the_interval_narrower(patients: int, slices: int) -> None:
    def width(errors: int) -> float:
        right_G = np.full(patients, float(slices))
        for i in range(errors):
            right_G[i % patients] -= 1
        low, high = cluster_interval(right_G, np.full(patients, float(slices))) or (0, 0)
        return high - low

    widths = [width(errors) for errors in range(8)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(widths)), widths


def test_both_ends_are_treated_alike() -> None:
    right_G, n_G = ones(20, 19, 20, 17, 20, 20), np.full(6, 20.0)
    low, high = cluster_interval(right_G, n_G) or (0, 0)
    assert cluster_interval(n_G - right_G, n_G) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_under_five_patients_only_a_set_without_an_error_has_an_interval() -> None:
    assert cluster_interval(ones(9, 10, 10, 10), np.full(4, 10.0)) is None
    assert cluster_interval(ones(3, 3, 3), np.full(3, 3.0)) == (pytest.approx(0.025 ** (1 / 3)), 1)
    assert cluster_interval(ones(3), ones(3)) is None
    assert cluster_interval(ones(), ones()) is None


def test_patients_without_observations_are_left_out() -> None:
    with_none = cluster_interval(ones(3, 0, 2, 3, 3, 3, 0), ones(3, 0, 3, 3, 3, 3, 0))
    assert with_none == cluster_interval(ones(3, 2, 3, 3, 3), np.full(5, 3.0))


def test_a_value_that_misses_one_by_rounding_holds_no_error() -> None:
    rounded = effective_interval(1 - 1e-12, variance=1e-30, n=900, patients=20)
    assert rounded == clopper_pearson(20, 20)


def coverage(patients: int, icc: float, true: float, *, uneven: bool) -> tuple[float, float]:
    """Return the fraction of simulated studies whose interval holds the truth, and its width."""
    rng = np.random.default_rng([patients, round(100 * icc), round(100 * true), uneven])
    held, widths = 0, []
    for _ in range(STUDIES):
        n_G = np.full(patients, 20)
        if uneven:
            n_G = np.minimum(1 + rng.geometric(1 / 20, patients), 150)
        spread = 1 / icc - 1
        accuracy_G = rng.beta(true * spread, (1 - true) * spread, patients)
        right_G = rng.binomial(n_G, accuracy_G)
        low, high = cluster_interval(right_G.astype(float), n_G.astype(float)) or (0.0, 1.0)
        held += low <= true <= high
        widths.append(high - low)
    return held / STUDIES, float(np.mean(widths))


@pytest.mark.slow
def test_nominal_95_covers_at_least_93_on_average_and_90_in_each_cell() -> None:
    cells = {
        (patients, icc, true, uneven): coverage(patients, icc, true, uneven=uneven)
        for patients in (5, 10, 20, 30, 60)
        for icc in (0.1, 0.3)
        for true in (0.9, 0.95)
        for uneven in (False, True)
    }
    covered = {cell: held for cell, (held, _) in cells.items()}
    assert np.mean(list(covered.values())) >= 0.93
    assert min(covered.values()) >= 0.90, covered
    # Wide enough, but not without limit: 60 patients tell 0.9 from 0.8.
    assert all(width < 0.13 for (patients, *_), (_, width) in cells.items() if patients == 60)


def test_nominal_95_covers_in_a_hard_cell() -> None:
    held, width = coverage(20, 0.3, 0.9, uneven=True)
    assert held >= 0.90
    assert width < 0.3


def test_two_models_without_a_difference_still_have_an_interval() -> None:
    low, high = difference_interval(0.0, variance=0.0, patients=20, differing=0) or (0, 0)
    assert (low, high) == (pytest.approx(-(1 - 0.025 ** (1 / 20))), -low)
    assert difference_interval(0.0, variance=0.0, patients=4, differing=0) is None


@pytest.mark.parametrize("value", [1.0, 0.5, -0.25, -1.0])
def test_the_same_difference_in_every_patient_is_no_point(value: float) -> None:
    low, high = difference_interval(value, variance=0.0, patients=20, differing=20) or (0, 0)
    assert -1 <= low <= value <= high <= 1
    assert high - low >= 1 - 0.025 ** (1 / 20) - 1e-9


def test_differences_cover() -> None:
    """Two models, right on 0.9 and 0.85 of the slices; some patients are harder than others."""
    rng = np.random.default_rng(5)
    held, patients, slices = 0, 15, 20
    for _ in range(STUDIES):
        hard_G = rng.beta(0.875 * 4, 0.125 * 4, patients)
        first_G = rng.binomial(slices, np.clip(hard_G + 0.025, 0, 1))
        second_G = rng.binomial(slices, np.clip(hard_G - 0.025, 0, 1))
        gap_G = (first_G - second_G) / slices
        true_gap = float(np.mean(np.clip(hard_G + 0.025, 0, 1) - np.clip(hard_G - 0.025, 0, 1)))
        differing = int((gap_G != 0).sum())
        variance = float(gap_G.var(ddof=1)) / patients
        ends = difference_interval(
            float(gap_G.mean()), variance=variance, patients=patients, differing=differing
        )
        assert ends is not None
        held += ends[0] <= true_gap <= ends[1]
    assert held / STUDIES >= 0.93
