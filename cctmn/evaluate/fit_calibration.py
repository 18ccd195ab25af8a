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

from cctmn.data import set_record
from cctmn.data.labels import read_labels
from cctmn.errors import DataError, ModelError
from cctmn.evaluate import independence
from cctmn.evaluate.join import Joined, join, read_scored
from cctmn.evaluate.options import file_name
from cctmn.evaluate.patient_sample import patient_slices
from cctmn.metrics.calibration import fit_temperature, losses
from cctmn.model.card import Card, calibrated, read_card
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
    prevalence: float | None = None,
    overwrite: bool = False,
    report: Reporter = silent,
) -> dict[str, Any]:
    """Fit on the scored slices of `out`, write the card of `model`, and return its calibration.

    `prevalence` is the fraction of sick patients where the model will be used, 0..1; None stands
    for that of the validation patients.

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
    calibration: dict[str, Any] = {
        "temperature": card.temperature,
        "labels": file_name(labels),
        "labels_sha256": truth.sha256,
        "slices": len(truth_N),
        "set": set_record.record(independence.members_of(joined.labels)),
        **{k: v for k, v in scored.computed.as_json().items() if k != "devices"},
    }
    if truth.of_patients:
        report("the labels are of patients, so only the rule for patients is fitted")
    else:
        temperature = round(fit_temperature(logits_NC, truth_N, activation=card.activation), 4)
        calibration |= {
            "temperature": temperature,
            "loss_before": _loss(logits_NC, truth_N, card.activation),
            "loss_after": _loss(logits_NC / temperature, truth_N, card.activation),
        }
    calibration |= _rule(joined, card, calibration["temperature"], prevalence=prevalence)
    fitted = calibrated(model, calibration=calibration).calibration
    return {key: value for key, value in fitted.items() if key != "set"}


def _rule(
    joined: Joined, card: Card, temperature: float, *, prevalence: float | None
) -> dict[str, Any]:
    """Return the rule for patients, at the prevalence of validation or a stated one."""
    patients = patient_slices(joined)
    rule = patients.fit(activation=card.activation, temperature=temperature)
    if rule is None:
        if prevalence is not None:
            raise DataError(
                "a prevalence needs a rule for patients; give validation patients with and without "
                "disease",
                joined.labels.place,
            )
        return {"patients": len(patients.names)} if patients.names else {}
    seen = patients.prevalence()
    counted = {"patients": len(patients.names), "validation_prevalence": round(seen, 4)}
    if prevalence is None:
        return counted | rule.as_calibration()
    moved = rule.at_prevalence(prevalence, fitted_at=seen)
    return counted | {"prevalence": prevalence} | moved.as_calibration()


def _loss(logits_NC: NDArray[np.float64], truth_N: NDArray[np.int64], activation: str) -> float:
    return round(float(losses(logits_NC, truth_N, activation=activation).mean()), 5)
