"""ECE, Brier score, reliability and temperature, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import brier_score_loss, log_loss

from cctmn.errors import DataError
from cctmn.metrics import calibration
from cctmn.metrics.calibration import Binned, fit_temperature, losses
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
    # Bins of 30 slices with equal confidence still have equal mass.
    logits = np.log(np.tile([0.6, 0.3, 0.1], (30, 1)))
    truth_N = np.repeat([0, 1], 15)
    binned = Binned.from_logits(logits, truth_N, activation="softmax", temperature=1.0)
    assert binned.reliability()["n"] == [2] * 15
    # Seven bins of right predictions, one mixed bin, seven bins of wrong predictions.
    expected = (7 * 0.4 + 0.1 + 7 * 0.6) / 15
    assert whole(binned)["ece"] == pytest.approx(expected)


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
