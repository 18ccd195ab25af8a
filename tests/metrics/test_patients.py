"""Probabilities of patients from their slices, and the choice of m."""

from __future__ import annotations

import numpy as np
import pytest

from cctmn.metrics.patients import choose_m, class_of, top_mean


def test_top_mean_by_hand():
    p_NC = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.3]])
    group_N = np.array([0, 1, 0, 0])
    assert top_mean(p_NC, group_N, groups=2, m=2).tolist() == [
        [pytest.approx(0.65), pytest.approx(0.45)],
        [pytest.approx(0.2), pytest.approx(0.8)],
    ]


def test_top_mean_equals_a_loop():
    rng = np.random.default_rng(0)
    p_NC, group_N = rng.uniform(size=(500, 3)), rng.integers(0, 40, 500)
    for m in (1, 4, 1000):
        ours = top_mean(p_NC, group_N, groups=40, m=m)
        loop = [np.sort(p_NC[group_N == g], axis=0)[::-1][:m].mean(axis=0) for g in range(40)]
        np.testing.assert_allclose(ours, loop)


def test_class_of_patients_with_one_or_several_classes():
    truth_N, group_N = np.array([1, 1, 0, 2, 2]), np.array([0, 0, 1, 1, 2])
    assert class_of(truth_N, group_N, groups=3).tolist() == [1, -1, 2]


def test_choose_m_maximises_patient_accuracy():
    """Sick patients have lesions in 3 of 20 slices, and healthy ones have one misleading slice.

    With m = 1 the misleading slice decides, and with m = 20 the lesions are averaged away.
    """
    rng = np.random.default_rng(3)
    group_N = np.repeat(np.arange(60), 20)
    truth_N = np.repeat(np.arange(60) % 2, 20)
    sick_N = rng.uniform(0, 0.3, 1200)
    for g in range(60):
        first = g * 20
        if g % 2:
            sick_N[first : first + 3] = rng.uniform(0.9, 0.95, 3)
        else:
            sick_N[first] = 1.0
    p_NC = np.stack([np.full(1200, 0.6), sick_N], axis=1)
    assert choose_m(p_NC, truth_N, group_N, groups=60) in (2, 3)
    assert choose_m(p_NC, truth_N, group_N, groups=60, candidates=(20, 1)) in (1, 20)
