"""The patients worth looking at: missed and falsely alarmed ones, with the slices that decided.

Reads: the patients of an evaluation and the files that hold their lesions.
Writes: the lists `missed_patients` and `false_alarm_patients` of the section `cases`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cctmn.evaluate import cases
from cctmn.evaluate.join import Scored
from cctmn.evaluate.model import EvaluatedModel
from cctmn.evaluate.patient_sample import PatientSlices
from cctmn.metrics.intervals import ClassifiedSample
from cctmn.model.probabilities import probabilities

# Patients of each kind and slices of each: as many small pictures as a mailed report can hold.
SHOWN: Final = 6
SLICES: Final = 6


def choose(
    patients: PatientSlices, sample: ClassifiedSample, *, scored: Scored, model: EvaluatedModel
) -> dict[str, list[dict[str, Any]]]:
    """Choose the patients that were missed and falsely alarmed, the worst first.

    `sample` has one entry for each patient with an answer, as `patients.sample` returns it.
    """
    names = patients.classes
    p_MC = probabilities(
        patients.logits_MC, activation=model.activation, temperature=model.temperature
    )
    _, class_G = patients.predictions(model)
    answered = np.flatnonzero(class_G >= 0)  # the patient of each entry of the sample
    deciding = patients.deciding(model)
    wrong = {kind: order[:SHOWN] for kind, order in cases.wrong_ones(sample).items()}

    entries = [int(entry) for order in wrong.values() for entry in order]
    shown = {entry: deciding[int(answered[entry])][:SLICES] for entry in entries}
    every = [m for of_patient in shown.values() for m in of_patient]
    details = dict(
        zip(every, cases.read_details(scored, patients.row_M[every].tolist()), strict=True)
    )

    def as_json(entry: int) -> dict[str, Any]:
        slices = [
            {"predicted": names[int(p_MC[m].argmax())], "p": cases.rounded(p_MC[m], names)}
            | details[m]
            for m in shown[entry]
        ]
        return {
            "patient_key": slices[0].get("patient_key"),
            "truth": names[sample.truth_N[entry]],
            "predicted": names[sample.predicted_N[entry]],
            "p": cases.rounded(sample.score_NC[entry], names),
            "deciding": len(deciding[int(answered[entry])]),
            "slices": slices,
        }

    return {
        "missed_patients": [as_json(int(entry)) for entry in wrong["misses"]],
        "false_alarm_patients": [as_json(int(entry)) for entry in wrong["false_alarms"]],
    }
