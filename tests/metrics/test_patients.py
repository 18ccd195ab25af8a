"""Patients from their slices: the rule, the classes by the labels, and the fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from cctmn.classes import COVIDX_CLASSES
from cctmn.metrics.patients import (
    CANDIDATES,
    PatientRule,
    classes_of,
    fit_rule,
    of_sickest,
    true_classes,
)

TWO = ("control", "covid")


def scans(
    *, patients: int, slices: int, sick_slices: int, seed: int, classes: tuple[str, ...] = TWO
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole scans: of every sick patient a few slices show it; a classifier that errs on 1 %."""
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(patients), slices)
    truth_N = np.zeros(patients * slices, np.int64)
    for g in range(patients):
        first = g * slices + int(rng.integers(0, slices - sick_slices + 1))
        truth_N[first : first + sick_slices] = g % len(classes)
    seen_N = np.where(rng.random(len(truth_N)) < 0.01, (truth_N + 1) % len(classes), truth_N)
    logits_NC = 5.0 * np.eye(len(classes))[seen_N] + rng.normal(0, 1, (len(seen_N), len(classes)))
    return special.softmax(logits_NC, axis=1), truth_N, group_N


def test_the_rule_by_hand() -> None:
    p_NC = np.array([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.9, 0.1, 0.0], [0.8, 0.1, 0.1]])
    group_N = np.array([0, 0, 0, 1])
    p_GC = PatientRule(top_m=2).probabilities(p_NC, group_N, groups=3, classes=COVIDX_CLASSES)
    # Of patient 0 the two slices of most evidence, 0.9 and 0.5, are both in equal parts of each.
    assert p_GC[0] == pytest.approx([0.3, 0.35, 0.35])
    assert p_GC[1] == pytest.approx([0.8, 0.1, 0.1])
    assert np.isnan(p_GC[2]).all()
    half = PatientRule(top_m=2, intercept=special.logit(0.7), slope=0.0)
    p_GC = half.probabilities(p_NC, group_N, groups=2, classes=COVIDX_CLASSES)
    assert 1 - p_GC[:, 0] == pytest.approx([0.7, 0.7])


def test_sigmoid_probabilities_are_taken_relative_to_each_other() -> None:
    p_NC = np.array([[0.05, 0.02, 0.03]])
    p_GC = PatientRule().probabilities(p_NC, np.array([0]), groups=1, classes=COVIDX_CLASSES)
    assert p_GC[0] == pytest.approx([0.5, 0.2, 0.3])


def test_diseases_win_together_over_control() -> None:
    p_GC = np.array([[0.45, 0.25, 0.3], [0.55, 0.45, 0.0], [0.5, 0.5, 0.0]])
    assert classes_of(p_GC, classes=COVIDX_CLASSES).tolist() == [2, 0, 1]


def test_clean_slices_never_make_a_patient_less_sick() -> None:
    p_NC, _, group_N = scans(patients=30, slices=40, sick_slices=10, seed=1)
    few = PatientRule().probabilities(p_NC, group_N, groups=30, classes=TWO)
    clean_NC = np.tile([0.999, 0.001], (30 * 200, 1))
    p_NC = np.concatenate([p_NC, clean_NC])
    group_N = np.concatenate([group_N, np.repeat(np.arange(30), 200)])
    many = PatientRule().probabilities(p_NC, group_N, groups=30, classes=TWO)
    np.testing.assert_allclose(few, many)


def test_without_a_control_the_diseases_are_told_apart() -> None:
    classes = ("pneumonia", "covid")
    p_NC, group_N = np.array([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]]), np.array([0, 0, 1])
    p_GC = PatientRule().probabilities(p_NC, group_N, groups=2, classes=classes)
    np.testing.assert_allclose(p_GC, [[0.3, 0.7], [0.9, 0.1]])
    assert classes_of(p_GC, classes=classes).tolist() == [1, 0]
    assert fit_rule(p_NC, group_N, truth_G=np.array([1, 0]), classes=classes) is None


def test_a_patient_is_as_sick_as_the_sickest_study() -> None:
    p_SC = np.array([[0.1, 0.9], [0.8, 0.2], [np.nan, np.nan], [0.7, 0.3]])
    p_GC = of_sickest(p_SC, np.array([0, 0, 0, 1]), groups=3, classes=TWO)
    np.testing.assert_array_equal(p_GC, [[0.1, 0.9], [0.7, 0.3], [np.nan, np.nan]])


def test_a_patient_with_one_sick_slice_is_sick() -> None:
    truth_N, group_N = np.array([0, 2, 0, 0, 1, 1, 2, 1, 2]), np.array([0, 0, 1, 1, 2, 2, 2, 3, 3])
    truth_G, several = true_classes(truth_N, group_N, groups=4, classes=COVIDX_CLASSES)
    assert truth_G.tolist() == [2, 0, 1, 2]
    assert several == 2


@pytest.mark.parametrize("sick_slices", [6, 15])
@pytest.mark.parametrize("rule", ["default", "fitted"])
def test_whole_scans_of_sick_patients_are_called_sick(sick_slices: int, rule: str) -> None:
    """Most of their slices are clean, and a few clean ones of healthy patients look sick."""
    of = {"patients": 120, "slices": 60, "sick_slices": sick_slices, "classes": COVIDX_CLASSES}
    used = PatientRule()
    if rule == "fitted":
        p_NC, truth_N, group_N = scans(**of, seed=2)
        truth_G, _ = true_classes(truth_N, group_N, groups=120, classes=COVIDX_CLASSES)
        found = fit_rule(p_NC, group_N, truth_G=truth_G, classes=COVIDX_CLASSES)
        assert found is not None
        used = found
    p_NC, truth_N, group_N = scans(**of, seed=3)
    p_GC = used.probabilities(p_NC, group_N, groups=120, classes=COVIDX_CLASSES)
    truth_G, _ = true_classes(truth_N, group_N, groups=120, classes=COVIDX_CLASSES)
    called_G = classes_of(p_GC, classes=COVIDX_CLASSES)
    least = 0.95 if rule == "fitted" else 0.9
    assert (called_G[truth_G > 0] > 0).mean() >= least
    assert (called_G[truth_G == 0] == 0).mean() >= least
    assert (called_G[truth_G > 0] == truth_G[truth_G > 0]).mean() >= least


def test_the_fit_is_monotone_and_close_to_calibrated() -> None:
    rng = np.random.default_rng(5)
    sick_G = rng.random(400) < 0.5
    # The evidence is a noisy logit, twice too sure of itself.
    x_G = rng.normal(np.where(sick_G, 1.0, -1.0), 1.4)
    p_NC = special.expit(2 * np.stack([-x_G, x_G], axis=1))
    p_NC /= p_NC.sum(axis=1, keepdims=True)
    group_N = np.arange(400)
    rule = fit_rule(p_NC, group_N, truth_G=sick_G.astype(np.int64), classes=TWO)
    assert rule is not None
    assert rule.top_m == min(CANDIDATES)  # a tie
    p_G = rule.probabilities(p_NC, group_N, groups=400, classes=TWO)[:, 1]
    assert (np.diff(p_G[np.argsort(x_G)]) >= 0).all()
    assert p_G.mean() == pytest.approx(sick_G.mean(), abs=0.02)
    surest_G = p_G > 0.8
    assert sick_G[surest_G].mean() == pytest.approx(p_G[surest_G].mean(), abs=0.05)


def test_a_fit_tells_the_diseases_apart_too() -> None:
    """The slice of most evidence shows the other disease, and the four after it the true one."""
    p_NC, truth_G = [], np.arange(30) % 3
    for truth in truth_G:
        seen = [0] * 10 if truth == 0 else [3 - truth, *[truth] * 4, *[0] * 5]
        p_NC += [0.04 + (0.88 if n else 0.8) * np.eye(3)[c] for n, c in enumerate(seen)]
    p_NC = np.array(p_NC)
    p_NC[[10 * g for g, truth in enumerate(truth_G) if truth]] += 0.1 * np.array([-0.4, 1, 1])
    group_N = np.repeat(np.arange(30), 10)
    rule = fit_rule(p_NC, group_N, truth_G=truth_G, classes=COVIDX_CLASSES)
    assert rule is not None
    assert rule.top_m in (5, 7)
    p_GC = rule.probabilities(p_NC, group_N, groups=30, classes=COVIDX_CLASSES)
    assert (classes_of(p_GC, classes=COVIDX_CLASSES) == truth_G).all()


def test_a_rule_that_would_fall_with_the_evidence_is_flat() -> None:
    p_NC = np.array([[0.9, 0.1], [0.1, 0.9]] * 20)
    rule = fit_rule(p_NC, np.arange(40), truth_G=np.array([1, 0] * 20), classes=TWO)
    assert rule is not None
    assert rule.slope == 0


def test_patients_of_one_class_fit_no_rule() -> None:
    p_NC = np.array([[0.9, 0.1], [0.2, 0.8]])
    for truth in (0, 1):
        assert fit_rule(p_NC, np.arange(2), truth_G=np.full(2, truth), classes=TWO) is None


def test_a_card_of_an_older_version_gives_the_rule_its_m() -> None:
    assert PatientRule.from_calibration({}) == PatientRule()
    assert PatientRule.from_calibration({"top_m": 10, "temperature": 2.0}) == PatientRule(10)
    rule = PatientRule(3, -0.5, 1.25)
    assert PatientRule.from_calibration(rule.as_calibration()) == rule
