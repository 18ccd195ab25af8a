"""Every metric of a sample says truly how many slices and patients it is computed from."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from cctmn.metrics.intervals import ClassifiedSample, Level, Resampling, measure

CLASSES = ("control", "pneumonia", "covid")


def made() -> ClassifiedSample:
    """90 patients with 1 to 9 slices each, some of two classes, and some slices without scores."""
    rng = np.random.default_rng(4)
    group_N = np.repeat(np.arange(90), rng.integers(1, 10, 90))
    truth_N = np.where(rng.random(len(group_N)) < 0.8, group_N % 3, 0)
    score_NC = rng.dirichlet([1, 1, 1], len(group_N)) + 0.7 * np.eye(3)[truth_N]
    unscored = np.array([0, 2, 2, 1, 0]), np.array([3, 3, 88, 89, 0])
    return ClassifiedSample(CLASSES, truth_N, score_NC, group_N, 90, *unscored)


def of_patients() -> ClassifiedSample:
    """90 patients, one entry each."""
    rng = np.random.default_rng(8)
    truth_N, none = rng.integers(0, 3, 90), np.empty(0, np.int64)
    score_NC = rng.dirichlet([1, 1, 1], 90) + 0.7 * np.eye(3)[truth_N]
    return ClassifiedSample(CLASSES, truth_N, score_NC, np.arange(90), 90, none, none)


def masks(sample: ClassifiedSample, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The slices that a proportion is over, and which of them are right, told by its definition."""
    kind, _, name = metric.partition(".")
    k = CLASSES.index(name) if name else -1
    truth, predicted = sample.truth_N, sample.score_NC.argmax(axis=1)
    return {
        "accuracy": (truth >= 0, truth == predicted),
        "sensitivity": (truth == k, predicted == k),
        "ppv": (predicted == k, truth == k),
        "specificity": (truth != k, predicted != k),
    }[kind]


def recomputed(sample: ClassifiedSample, metric: str) -> tuple[float, np.ndarray]:
    """The value of a metric from its own slices alone, and the patient of each of these."""
    kind, _, name = metric.partition(".")
    truth, predicted = sample.truth_N, sample.score_NC.argmax(axis=1)
    if kind.startswith("f1"):
        return sk.f1_score(truth, predicted, average=kind[3:]), sample.group_N
    if kind in ("auc", "ap"):
        k = CLASSES.index(name)
        area = {"auc": sk.roc_auc_score, "ap": sk.average_precision_score}[kind]
        return area(truth == k, sample.score_NC[:, k]), sample.group_N
    of_N, right_N = masks(sample, metric)
    return float(right_N[of_N].mean()), sample.group_N[of_N]


@pytest.mark.parametrize("level", ["slice", "patient"])
def test_size_of_every_metric_reproduces_its_value(level: Level) -> None:
    sample = made() if level == "slice" else of_patients()
    measured = measure(sample, by=Resampling(resamples=100), level=level)
    checked = {id_: m for id_, m in measured.items() if id_.startswith(f"{level}.")}
    assert len(checked) == 3 + 5 * 3
    for id_, metric in checked.items():
        _, _, name = id_.partition(".")
        value, groups = recomputed(sample, name)
        assert metric.value == pytest.approx(value, abs=1e-12), id_
        assert (metric.n, metric.patients) == (len(groups), len(np.unique(groups))), id_
        assert metric.low is not None, id_
        assert metric.low < metric.value < metric.high, id_


def test_the_worst_case_counts_slices_without_scores() -> None:
    sample = made()
    measured = measure(sample, by=Resampling(resamples=100), level="slice")
    worst = measured["worst_case.sensitivity.covid"]
    is_covid = sample.truth_N == 2
    groups = np.concatenate([sample.group_N[is_covid], [3, 88]])
    assert (worst.n, worst.patients) == (len(groups), len(np.unique(groups)))
    right = (sample.score_NC.argmax(axis=1) == 2)[is_covid].sum()
    assert worst.value == pytest.approx(right / len(groups))
    assert measured["worst_case.accuracy"].n == len(sample.truth_N) + 5


def test_an_area_rests_on_the_class_with_fewer_patients() -> None:
    sample = made()
    measured = measure(sample, by=Resampling(resamples=100), level="slice")
    of_covid = len(np.unique(sample.group_N[sample.truth_N == 2]))
    assert measured["slice.auc.covid"].fewest_patients == of_covid < 90
    assert measured["slice.f1_macro"].fewest_patients <= of_covid
    assert measured["slice.f1_weighted"].fewest_patients == 90
