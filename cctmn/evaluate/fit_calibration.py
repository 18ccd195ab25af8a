"""Fit the temperature and the patient rule of a model on validation slices.

Test labels must not be used here. The card keeps the hash of the labels, and an evaluation on the
same labels warns.

Reads: a model folder, its predictions of validation slices, and their labels.
Writes: the card, with temperature, patient rule, and the loss before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctmn.data.labels import read_labels
from cctmn.errors import DataError, ModelError
from cctmn.evaluate.join import join, read_scored
from cctmn.evaluate.options import file_name
from cctmn.evaluate.patient_sample import patient_slices
from cctmn.metrics.calibration import fit_temperature, losses
from cctmn.model.card import calibrated, read_card
from cctmn.reporter import Reporter, silent


@dataclass(frozen=True)
class Joining:
    """How labels find their predictions, and which class each means."""

    key: str = "name"  # one of classes.JOIN_KEYS
    root: str | None = None  # base folder or prefix for relative URIs
    label_map: Mapping[str, str] = field(default_factory=dict)


def calibrate(
    model: str,
    *,
    out: str,
    labels: str,
    joining: Joining = Joining(),
    overwrite: bool = False,
    report: Reporter = silent,
) -> dict[str, Any]:
    """Fit on the scored slices of `out`, write the card of `model`, and return its calibration.

    Raises ConfigError if another model scored `out`, DataError if the labels do not allow a fit,
    and ModelError if the card is calibrated on other labels and `overwrite` is not set.
    """
    card = read_card(model)
    scored = read_scored(out)
    scored.check_model(card, where=model)
    truth = read_labels(labels, classes=scored.classes, label_map=joining.label_map)
    before = card.calibration.get("labels_sha256", truth.sha256)
    if before != truth.sha256 and not overwrite:
        raise ModelError("is calibrated on other labels; copy the model, or add --overwrite", model)
    joined = join(truth, scored, key=joining.key, root=joining.root)
    for note in [*truth.notes, *joined.notes]:
        report(f"note: {note}")
    logits_NC, truth_N = joined.logits(), joined.labels.truth_N[joined.scored_N]
    if not len(truth_N):
        raise DataError("every labelled slice is an error row; give other slices to fit on", labels)
    temperature = round(fit_temperature(logits_NC, truth_N, activation=card.activation), 4)
    calibration: dict[str, Any] = {
        "temperature": temperature,
        "labels": file_name(labels),
        "labels_sha256": truth.sha256,
        "slices": len(truth_N),
        "loss_before": _loss(logits_NC, truth_N, card.activation),
        "loss_after": _loss(logits_NC / temperature, truth_N, card.activation),
    }
    patients = patient_slices(joined)
    if patients.names:
        rule = patients.fit(activation=card.activation, temperature=temperature)
        calibration |= {"patients": len(patients.names)}
        calibration |= {} if rule is None else rule.as_calibration()
    return dict(calibrated(model, calibration=calibration).calibration)


def _loss(logits_NC: NDArray[np.float64], truth_N: NDArray[np.int64], activation: str) -> float:
    return round(float(losses(logits_NC, truth_N, activation=activation).mean()), 5)
