"""From logits to probabilities, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cctmn.model.probabilities import probabilities


def test_logits_are_divided_by_the_temperature_and_activated():
    logits_NC = np.array([[0.0, 2.0, -2.0]])
    assert probabilities(logits_NC, activation="sigmoid", temperature=2.0)[0].tolist() == (
        pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])
    )
    assert probabilities(logits_NC, activation="softmax").sum() == pytest.approx(1)
