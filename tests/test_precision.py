"""What tests/precision.py counts as agreement."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from tests.makers import stand_in
from tests.precision import compare, matches


def prediction(*boxes: list[float], labels: list[int], logits: list[float]) -> SimpleNamespace:
    return SimpleNamespace(
        boxes_M4=np.array(boxes, np.float32).reshape(-1, 4),
        labels_M=np.array(labels),
        logits_C=np.array(logits, np.float32),
    )


def test_equal_predictions_agree_in_everything() -> None:
    one = prediction([0, 0, 9, 9], [20, 20, 30, 30], labels=[1, 2], logits=[1, 0, -1])
    found = compare([one, one], [one, one], stand_in())
    assert (found.equal_classes, found.largest_probability_difference) == (1, 0)
    assert found.matched_lesions == found.lesions == 4


def test_another_class_lowers_the_fraction() -> None:
    one = prediction(labels=[], logits=[1, 0, -1])
    two = prediction(labels=[], logits=[1, 3, -1])
    found = compare([one, one], [one, two], stand_in())
    assert (found.equal_classes, found.largest_logit_difference) == (0.5, 3)


def test_a_lesion_is_matched_once_by_class_and_overlap() -> None:
    one = prediction([0, 0, 10, 10], [20, 20, 30, 30], labels=[1, 1], logits=[0])
    two = prediction([0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], labels=[1, 1, 2], logits=[0])
    assert matches(one, two) == 1
