"""The temperature and the patient rule of a model, from validation slices, into its card.

In: a model folder, its predictions of validation slices, their labels. Out: the card with both, and
how much better they make things. Test labels must have no part in it, which evaluation checks by
the hash of the labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctmn.data.labels import read_labels
from cctmn.errors import DataError
from cctmn.evaluate.join import join, read_scored
from cctmn.evaluate.options import file_name
from cctmn.metrics import bootstrap, patients
from cctmn.metrics.calibration import fit_temperature, losses
from cctmn.model.card import calibrated, read_card
from cctmn.model.probabilities import probabilities


def calibrate(
    model: str, *, out: str, labels: str, key: str = "name", root: str | None = None
) -> dict[str, Any]:
    """Fit on the scored slices of `out`, write the card of `model`, return what it now says.

    Raises ConfigError if `out` is of another model, DataError if the labels do not allow a fit.
    """
    card = read_card(model)
    scored = read_scored(out)
    scored.check_model(card, where=model)
    told = read_labels(labels, classes=scored.classes)
    joined = join(told, scored, key=key, root=root)
    logits_NC, truth_N = joined.logits(), told.truth_N[joined.scored_N]
    if not len(truth_N):
        raise DataError(f"{labels}: every labelled slice is an error row; there is nothing to fit")
    temperature = round(fit_temperature(logits_NC, truth_N, activation=card.activation), 4)
    found: dict[str, Any] = {
        "temperature": temperature,
        "labels": file_name(labels),
        "labels_sha256": told.sha256,
        "slices": len(truth_N),
        "loss_before": _loss(logits_NC, truth_N, card.activation),
        "loss_after": _loss(logits_NC / temperature, truth_N, card.activation),
    }
    names = [name for name, ok in zip(joined.patients(), joined.scored_N, strict=True) if ok]
    known_N = np.array([name != "" for name in names], np.bool_)
    if known_N.any():
        group_N, groups = bootstrap.group([name for name in names if name])
        p_NC = probabilities(
            logits_NC[known_N], activation=card.activation, temperature=temperature
        )
        m = patients.choose_m(p_NC, truth_N[known_N], group_N, groups=groups)
        found |= {"patients": groups} | ({} if m is None else {"top_m": m})
    return dict(calibrated(model, calibration=found).calibration)


def _loss(logits_NC: NDArray[np.float64], truth_N: NDArray[np.int64], activation: str) -> float:
    return round(float(losses(logits_NC, truth_N, activation=activation).mean()), 5)
