"""From logits to probabilities.

Scoring writes these probabilities and evaluation measures them, so both take them from here.
No torch is imported.

Shape suffixes: N slices, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special


def probabilities(
    logits_NC: NDArray[np.floating[Any]], *, activation: str, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Divide logits by the temperature and apply the activation of the model's card.

    `activation` is "softmax" or "sigmoid". Sigmoid probabilities of a slice do not sum to 1, for
    such models are trained with one binary loss per class. The classes are the last axis.
    """
    assert activation in ("sigmoid", "softmax"), activation
    scaled_NC = np.asarray(logits_NC, np.float64) / temperature
    if activation == "softmax":
        return np.asarray(special.softmax(scaled_NC, axis=-1))
    return np.asarray(special.expit(scaled_NC))
