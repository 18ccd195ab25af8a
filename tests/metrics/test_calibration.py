"""ECE, Brier score, reliability and temperature, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import brier_score_loss, log_loss

from cctmn.errors import DataError
from cctmn.metrics import calibration
from cctmn.metrics.calibration import Binned, fit_temperature, losses, recalibration
from cctmn.metrics.intervals import ClassifiedSample, Resampling, measure
from cctmn.model.probabilities import probabilities


def made(count=4000, *, sharpness=1.0, seed=0):
    """Return logits whose softmax is calibrated at sharpness 1, and classes."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(size=(count, 3)) * 2
    p_NC = special.softmax(logits_NC, axis=1)
    truth_N = np.array([rng.choice(3, p=p) for p in p_NC])
    return logits_NC * sharpness, truth_N


def whole(binned):
    """Return the metrics of the unweighted sample."""
    count = len(binned.bin_N)
    measured = binned.metrics(np.ones((1, count)), group_N=np.arange(count))
    return {name: float(values[0]) for name, values in measured.items()}


def test_metrics_equal_sklearns():
    logits_NC, truth_N = made(500)
    for activation in ("softmax", "sigmoid"):
        p_NC = probabilities(logits_NC, activation=activation)
        measured = whole(
            Binned.from_logits(logits_NC, truth_N, activation=activation, temperature=1.0)
        )
        brier = sum(brier_score_loss(truth_N == c, p_NC[:, c]) for c in range(3))
        assert measured["brier"] == pytest.approx(brier)
        each = [log_loss(truth_N == c, p_NC[:, c]) for c in range(3)]
        expected = log_loss(truth_N, p_NC) if activation == "softmax" else np.mean(each)
        assert measured["nll"] == pytest.approx(expected)


def test_ece_by_hand():
    # With 15 bins of one slice each, ECE is the mean of |right - confidence|.
    logits_NC, truth_N = made(15)
    binned = Binned.from_logits(logits_NC, truth_N, activation="softmax", temperature=1.0)
    gap = np.abs(binned.right_N - binned.confidence_N).mean()
    assert whole(binned)["ece"] == pytest.approx(gap)
    assert sorted(binned.bin_N) == list(range(15))


def test_equal_confidences_share_a_bin():
    logits = np.log(np.tile([0.6, 0.3, 0.1], (30, 1)))
    truth_N = np.repeat([0, 1], 15)
    binned = Binned.from_logits(logits, truth_N, activation="softmax", temperature=1.0)
    assert binned.reliability() == {"confidence": [0.6], "accuracy": [0.5], "n": [30]}
    # In any order of the slices: half of them are right.
    assert whole(binned)["ece"] == pytest.approx(0.1)


def test_a_weight_equals_repeated_slices():
    logits_NC, truth_N = made(40)
    group_N = np.repeat(np.arange(8), 5)
    weights = np.array([[2, 0, 1, 0, 3, 1, 0, 1]], float)
    binned = Binned.from_logits(logits_NC, truth_N, activation="sigmoid", temperature=1.0)
    ours = {k: v[0] for k, v in binned.metrics(weights, group_N=group_N).items()}
    rows = np.concatenate(
        [np.flatnonzero(group_N == g).repeat(int(w)) for g, w in enumerate(weights[0])]
    )
    assert ours["brier"] == pytest.approx(binned.brier_N[rows].mean())
    assert ours["nll"] == pytest.approx(binned.loss_N[rows].mean())
    gap = sum(
        abs((binned.right_N - binned.confidence_N)[rows[binned.bin_N[rows] == k]].sum())
        for k in range(15)
    )
    assert ours["ece"] == pytest.approx(gap / len(rows))


def test_temperature_fit_recovers_the_sharpness():
    logits_NC, truth_N = made(sharpness=2.5)
    measured = fit_temperature(logits_NC, truth_N, activation="softmax")
    assert measured == pytest.approx(2.5, rel=0.08)
    raw, fitted = (
        whole(Binned.from_logits(logits_NC, truth_N, activation="softmax", temperature=t))
        for t in (1.0, measured)
    )
    assert fitted["ece"] < raw["ece"] / 3
    assert fitted["nll"] < raw["nll"]
    sigmoid = fit_temperature(logits_NC, truth_N, activation="sigmoid")
    slightly = losses(logits_NC / (sigmoid * 1.1), truth_N, activation="sigmoid").mean()
    assert losses(logits_NC / sigmoid, truth_N, activation="sigmoid").mean() < slightly


def test_a_temperature_at_its_bound_is_refused():
    truth_N = np.repeat([0, 1, 2], 10)
    with pytest.raises(DataError, match="some of them predicted wrongly"):
        fit_temperature(np.eye(3)[truth_N] * 5, truth_N, activation="softmax")


def test_ece_uses_fifteen_bins():
    assert calibration.BINS == 15


def measured_ece(seed, *, patients, slices, sharpness=1.0):
    """Return the metrics of a sample that is calibrated at sharpness 1."""
    logits_NC, truth_N = made(patients * slices, sharpness=sharpness, seed=seed)
    binned = Binned.from_logits(logits_NC, truth_N, activation="softmax", temperature=1.0)
    sample = ClassifiedSample(
        ("a", "b", "c"),
        truth_N,
        special.softmax(logits_NC, axis=1),
        np.repeat(np.arange(patients), slices),
        patients,
        np.empty(0, np.int64),
        np.empty(0, np.int64),
    )
    return measure(sample, by=Resampling(300, seed), level="slice", binned=binned)


def test_ece_of_a_calibrated_model_is_what_chance_gives():
    held = beyond = 0
    for seed in range(40):
        metrics = measured_ece(seed, patients=30, slices=5)
        ece, chance = metrics["calibration.ece"], metrics["calibration.ece_by_chance"]
        assert ece.low <= ece.value <= ece.high
        held += ece.low == 0
        beyond += ece.value > chance.high
    assert held >= 36
    assert beyond <= 4


def test_ece_of_an_overconfident_model_is_more_than_chance_gives():
    metrics = measured_ece(1, patients=60, slices=10, sharpness=3)
    ece, chance = metrics["calibration.ece"], metrics["calibration.ece_by_chance"]
    assert ece.low > 0
    assert ece.value > chance.high
    assert metrics["calibration.slope.a"].high < 0.6
    assert metrics["calibration.slope.a"].low > 0.2


def test_the_interval_of_an_ece_covers_the_gap_of_a_model_that_is_too_sure():
    """Of the slices with a confidence of 0.75, which share a bin, 0.7 are right."""
    held, patients, slices = 0, 30, 5
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth_N = (rng.random(patients * slices) > 0.7).astype(np.int64)
        logits_NC = np.tile([np.log(3.0), 0.0], (len(truth_N), 1))
        binned = Binned.from_logits(logits_NC, truth_N, activation="softmax", temperature=1.0)
        group_N, none = np.repeat(np.arange(patients), slices), np.empty(0, np.int64)
        p_NC = special.softmax(logits_NC, axis=1)
        sample = ClassifiedSample(("a", "b"), truth_N, p_NC, group_N, patients, none, none)
        metrics = measure(sample, by=Resampling(200, seed), level="slice", binned=binned)
        ece = metrics["calibration.ece"]
        held += ece.low <= 0.05 <= ece.high
    assert held >= 92


def test_intercept_and_slope_are_recovered():
    """Of 200 patients; the truth follows 0.8 times the logit, less 0.5."""
    rng = np.random.default_rng(3)
    group_N = np.repeat(np.arange(200), 20)
    logit_N = rng.normal(size=4000) * 2
    is_class_N = rng.random(4000) < special.expit(0.8 * logit_N - 0.5)
    fits = recalibration(special.expit(logit_N), is_class_N, group_N=group_N, fewest=200)
    assert fits["slope"].value == pytest.approx(0.8, abs=0.08)
    assert fits["slope"].low < 0.8 < fits["slope"].high < 1
    assert fits["intercept"].high < 0
    none = recalibration(special.expit(logit_N), is_class_N, group_N=group_N, fewest=4)
    assert none["slope"].low is None


def test_classes_that_scores_tell_apart_have_no_slope():
    is_class_N = np.arange(40) % 2 == 0
    p_N = np.where(is_class_N, 0.9, 0.1)
    fits = recalibration(p_N, is_class_N, group_N=np.arange(40), fewest=20)
    assert np.isnan(fits["slope"].value)
    assert fits["slope"].low is None
    one = recalibration(p_N, np.ones(40, bool), group_N=np.arange(40), fewest=0)
    assert np.isnan(one["intercept"].value)


@pytest.mark.parametrize("sure", [2.0, 1e4])
def test_metrics_that_no_resample_moves_have_no_interval(sure):
    truth_N = np.arange(60) % 3
    logits_NC = sure * np.eye(3)[truth_N]
    binned = Binned.from_logits(logits_NC, truth_N, activation="softmax", temperature=1.0)
    p_NC, none = special.softmax(logits_NC, axis=1), np.empty(0, np.int64)
    sample = ClassifiedSample(("a", "b", "c"), truth_N, p_NC, np.arange(60), 60, none, none)
    metrics = measure(sample, by=Resampling(100), level="slice", binned=binned)
    for name in ("ece", "brier", "nll"):
        metric = metrics[f"calibration.{name}"]
        assert (metric.low, metric.high, metric.naive_low) == (None, None, None)
        assert metric.method.startswith("no interval")
