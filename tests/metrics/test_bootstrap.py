"""The bootstrap over patients: known special cases, coverage, and metrics without interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cctmn.metrics import bootstrap as bootstrap_module
from cctmn.metrics.bootstrap import (
    bootstrap,
    group_patients,
    interval,
    make_metric,
)
from cctmn.metrics.metric import Size


def accuracy(right_N, group_N, groups):
    """A statistic of weights over patients."""
    right_G = np.bincount(group_N, right_N, minlength=groups)
    count_G = np.bincount(group_N, minlength=groups)
    return lambda weights_BG: {"accuracy": weights_BG @ right_G / (weights_BG @ count_G)}


def test_one_slice_per_patient_equals_the_ordinary_bootstrap():
    rng = np.random.default_rng(1)
    right_N = (rng.uniform(size=50) < 0.8).astype(float)
    group_N, groups = group_patients([f"p{i}" for i in range(50)])
    ours = bootstrap(groups, accuracy(right_N, group_N, groups), resamples=300, seed=7)
    again = np.random.default_rng(7)
    plain = [right_N[again.integers(0, 50, 50)].mean() for _ in range(300)]
    np.testing.assert_allclose(ours["accuracy"], plain, rtol=0, atol=1e-12)


def test_patients_of_identical_slices_equal_a_bootstrap_of_patients():
    rng = np.random.default_rng(2)
    right_G = (rng.uniform(size=40) < 0.7).astype(float)
    group_N, groups = group_patients(np.repeat([f"p{i}" for i in range(40)], 25).tolist())
    slices = bootstrap(groups, accuracy(np.repeat(right_G, 25), group_N, groups), seed=3)
    patients = bootstrap(40, accuracy(right_G, np.arange(40), 40), seed=3)
    np.testing.assert_allclose(slices["accuracy"], patients["accuracy"], rtol=0, atol=1e-12)
    alone = bootstrap(1000, accuracy(np.repeat(right_G, 25), np.arange(1000), 1000), seed=3)
    width, naive = (np.diff(interval(b["accuracy"]))[0] for b in (slices, alone))
    assert 4 < width / naive < 6  # sqrt(25) = 5


def test_draws_do_not_depend_on_the_chunk():
    def mean(weights_BG):
        return {"mean": weights_BG @ np.arange(30.0) / 30}

    one = bootstrap(30, mean, resamples=100, seed=5)["mean"]
    other = bootstrap(30, mean, resamples=100, seed=5, width=bootstrap_module.CHUNK_VALUES // 3)[
        "mean"
    ]
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, bootstrap(30, mean, resamples=100, seed=6)["mean"])


def test_nominal_95_covers_93_to_97():
    """1000 studies of patients with an accuracy of their own and 1 to 60 slices each."""
    rng = np.random.default_rng(11)
    patients, studies, covered, naive_covered = 150, 1000, 0, 0
    slices_G = 1 + rng.integers(0, 60, patients)
    for study in range(studies):
        chance_G = rng.beta(4, 1, patients)
        size_G = rng.permutation(slices_G)
        right_G = rng.binomial(size_G, chance_G).astype(float)
        ours = bootstrap(
            patients,
            lambda w_BG, right_G=right_G, size_G=size_G: {"a": w_BG @ right_G / (w_BG @ size_G)},
            resamples=500,
            seed=study,
        )
        low, high = interval(ours["a"])
        covered += low <= 0.8 <= high
        p, n = right_G.sum() / size_G.sum(), size_G.sum()
        naive_covered += abs(p - 0.8) <= 1.96 * np.sqrt(p * (1 - p) / n)
    assert 0.93 <= covered / studies <= 0.97, covered / studies
    assert naive_covered / studies < 0.75


def test_unknown_patients_count_as_one_each():
    group_N, groups = group_patients(["a", "", "b", "a", ""])
    assert group_N.tolist() == [0, 1, 2, 0, 3]
    assert groups == 4


def test_a_sample_without_errors_gets_an_exact_interval():
    right = make_metric(
        1.0,
        name=("slice.f1_macro", "F1"),
        over_patients=np.ones(100),
        size=Size(500, 90, 30),
    )
    low = stats.binomtest(30, 30).proportion_ci(0.95, method="exact").low
    assert (right.low, right.high) == (pytest.approx(low), 1.0)
    assert "no error" in right.method


def test_metrics_without_interval_name_the_reason():
    undefined = make_metric(
        float("nan"),
        name=("slice.ppv.covid", "ppv"),
        over_patients=np.full(10, np.nan),
        size=Size(5, 3, 3),
    )
    assert (undefined.value, undefined.method) == (None, "not defined")
    alone = make_metric(
        0.5, name=("slice.accuracy", "accuracy"), over_patients=np.full(10, 0.5), size=Size(5, 1, 1)
    )
    assert (alone.low, alone.method) == (None, "too few patients for an interval")
    rare = np.concatenate([np.linspace(0.4, 0.6, 80), np.full(20, np.nan)])
    assert interval(rare) is None
    assert interval(rare[:85]) == pytest.approx((0.405, 0.595))
    assert interval(np.full(80, 0.5)) is None
    assert alone.as_json()["low"] is None
