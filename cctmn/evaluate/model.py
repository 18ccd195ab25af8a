"""The model whose predictions are evaluated, as its card or the manifest describes it.

Output folders of older versions describe less of the model, or describe it under other keys. All
such cases are handled here, so that the rest of the evaluation sees one type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cctmn import store
from cctmn.evaluate.join import Scored
from cctmn.identity import FITTED_ON, RunIdentity
from cctmn.metrics.patients import PatientRule
from cctmn.model.card import read_card

# Entries of the description that metrics.json repeats as they are.
_SHOWN: Final = (
    "trained",
    "backbone",
    "image_classes",
    "lesion_classes",
    "lesions",
    "ranked",
    "hidden",
    "mask_head",
    "training_slices",
    "training",
    "validation",
    "calibration",
    "intended_use",
    "parameters",
)
# Entries that are the section `model_size`: all parameters, those of module S and of batch norm.
MODEL_SIZE: Final = ("parameters", "module_s", "batch_norm")

_OF_RUN: Final = frozenset({"lesions"})


@dataclass(frozen=True)
class EvaluatedModel:
    """The part of a model's description that an evaluation needs."""

    model_id: str
    name: str
    activation: str  # "sigmoid" or "softmax"
    temperature: float = 1.0  # the logits are divided by it
    patient_rule: PatientRule = field(default_factory=PatientRule)
    rule_is_fitted: bool = False  # whether a calibration fitted the patient rule
    calibrated_on: str | None = None  # file name of the labels of the calibration
    calibration_sha256: str | None = None  # hash of those labels
    lesion_classes: tuple[str, ...] = ()
    fitted_on: Mapping[str, Any] = field(default_factory=dict)  # records of sets, by their name
    notes: tuple[str, ...] = ()  # cautions of the card
    trained: bool = True  # False: at least one part has random weights
    training_slices: int | None = None
    model_size: Mapping[str, int | None] = field(default_factory=dict)
    input: Mapping[str, Any] | None = None  # the input contract; None if not recorded
    shown: Mapping[str, Any] = field(default_factory=dict)  # further entries for metrics.json

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> EvaluatedModel:
        """Read a description as `Card.described` or a manifest gives it."""
        calibration = described.get("calibration") or {}
        return cls(
            model_id=described["model_id"],
            name=described.get("name") or described["model_id"],
            activation=described.get("activation") or "sigmoid",
            temperature=float(calibration.get("temperature", 1.0)),
            patient_rule=PatientRule.from_calibration(calibration),
            rule_is_fitted="top_m" in calibration,
            calibrated_on=calibration.get("labels"),
            calibration_sha256=calibration.get("labels_sha256"),
            lesion_classes=tuple(described.get("lesion_classes") or ()),
            fitted_on=described.get(FITTED_ON) or {},
            notes=tuple(described.get("notes") or ()),
            trained=described.get("trained") is not False,
            training_slices=described.get("training_slices"),
            model_size={key: described.get(key) for key in MODEL_SIZE},
            input=described.get("input"),
            shown={key: described[key] for key in _SHOWN if key in described},
        )

    @property
    def fitted_sets(self) -> tuple[str, ...]:
        """The sets that this model was fitted on, whether its card records them or not."""
        is_calibrated = self.rule_is_fitted or self.calibrated_on is not None
        return ("training", "validation", *(("calibration",) if is_calibrated else ()))

    def as_json(self) -> dict[str, Any]:
        """Return the section `model` of metrics.json."""
        return {
            "model_id": self.model_id,
            **self.shown,
            "name": self.name,
            "activation": self.activation,
            "temperature": self.temperature,
            **self.patient_rule.as_calibration(),
            "calibrated_on": self.calibrated_on,
        }


def evaluated_model(scored: Scored, *, folder: str | None) -> EvaluatedModel:
    """Describe the model that scored an output, from the manifest and the card in `folder`.

    The card takes precedence. Raises ConfigError if it is of another model.
    """
    described = _recorded(scored)
    kept = store.read_optional(store.join(scored.out, "private", f"{FITTED_ON}.json"))
    described[FITTED_ON] = json.loads(kept or b"{}")
    if folder is not None:
        card = read_card(folder)
        scored.check_model(card, where=folder)
        # The lesions were chosen by the rule of the run, which a setting of it may have changed.
        described = (
            described | card.described | {k: described[k] for k in _OF_RUN & described.keys()}
        )
    return EvaluatedModel.from_description(described)


def _recorded(scored: Scored) -> dict[str, Any]:
    """Return the manifest's description of the model, {} in folders of older versions.

    Older manifests keep the activation, the input contract and the lesion rule under `answers`
    only, newer ones under `identity` and `model`.
    """
    manifest = scored.manifest
    of_model = RunIdentity.read(manifest).values.get("model") or {}
    older = {key: of_model[key] for key in ("activation", "input", "lesions") if key in of_model}
    return older | (manifest.get("model") or {}) | {"model_id": scored.model_id}
