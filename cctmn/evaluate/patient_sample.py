"""Patients of an evaluation: which slices speak for each, what is true, and what is predicted.

Slices with a study are those that OUT/studies rests on: of the chosen series, neither errors nor
abstained, labelled or not. So both give the same numbers. Pictures have no study; there the
labelled slices of a patient stand for one. Of several studies of a patient the sickest one decides.

Reads: labels joined with predictions, and OUT/predictions for the choice of series.
Writes: a sample with one entry per patient, and the same as a table for DIR/private.

Shape suffixes: N labelled slices, R rows of predictions, M used slices, S studies, G patients,
C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cctmn import store, studies
from cctmn.classes import CONTROL
from cctmn.data.issues import first_few
from cctmn.errors import DataError
from cctmn.evaluate.join import Joined, check_finite
from cctmn.evaluate.model import EvaluatedModel
from cctmn.metrics import bootstrap, patients
from cctmn.metrics.intervals import ClassifiedSample
from cctmn.model.probabilities import probabilities

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PatientSlices:
    """The known patients of an evaluation and the slices that speak for them."""

    classes: tuple[str, ...]
    names: list[str]  # of the labels, or keyed ids of the headers
    truth_G: Indices
    several: int  # patients whose labelled slices show several diseases
    logits_MC: Floats
    study_M: Indices
    row_M: Indices  # row of the predictions
    patient_S: Indices  # the patient of each study
    study_keys: list[str]  # keyed id of each study; "" where a patient's pictures stand for one

    def sample(self, model: EvaluatedModel) -> ClassifiedSample | None:
        """Return one entry per patient, or None if no patient has a usable slice."""
        p_GC, class_G = self.predictions(model)
        scored_G = class_G >= 0
        if not scored_G.any():
            return None
        num_scored, num_unscored = int(scored_G.sum()), int((~scored_G).sum())
        return ClassifiedSample(
            classes=self.classes,
            truth_N=self.truth_G[scored_G],
            score_NC=p_GC[scored_G],
            group_N=np.arange(num_scored),
            groups=num_scored + num_unscored,
            unscored_truth=self.truth_G[~scored_G],
            unscored_group=np.arange(num_scored, num_scored + num_unscored),
            decided_N=class_G[scored_G],
        )

    def table(self, model: EvaluatedModel) -> dict[str, list[Any]]:
        """Return the columns of private/patients.csv, by patient: truth, prediction, studies."""
        p_GC, class_G = self.predictions(model)
        used_G = self.used_slices()
        keys: list[list[str]] = [[] for _ in self.names]
        for patient, study in zip(self.patient_S, self.study_keys, strict=True):
            keys[patient] += [study] * (study != "")
        return {
            "patient": self.names,
            "label": [self.classes[i] for i in self.truth_G],
            "pred_class": ["" if i < 0 else self.classes[i] for i in class_G],
            **{
                f"p_{name}": ["" if np.isnan(p) else f"{p:.6f}" for p in p_GC[:, i]]
                for i, name in enumerate(self.classes)
            },
            "num_used": [str(n) for n in used_G],
            "study_keys": [" ".join(sorted(of_patient)) for of_patient in keys],
        }

    def prevalence(self) -> float:
        """Return the fraction of the patients that are sick, 0..1; 1 without a class "control"."""
        if CONTROL not in self.classes:
            return 1.0
        return float((self.truth_G != self.classes.index(CONTROL)).mean())

    def used_slices(self) -> Indices:
        """Return the number of slices that speak for each patient."""
        used_S = np.bincount(self.study_M, minlength=len(self.patient_S))
        return np.bincount(self.patient_S, used_S, minlength=len(self.names)).astype(np.int64)

    def fit(self, *, activation: str, temperature: float) -> patients.PatientRule | None:
        """Return the rule that suits these patients best; each of their studies counts."""
        p_MC = probabilities(self.logits_MC, activation=activation, temperature=temperature)
        truth_S = self.truth_G[self.patient_S]
        return patients.fit_rule(p_MC, self.study_M, truth_G=truth_S, classes=self.classes)

    def deciding(self, model: EvaluatedModel) -> dict[int, list[int]]:
        """Return the entries of M that decide about each patient, by falling evidence.

        They are those of the sickest study; a patient without a usable slice has none.
        """
        p_MC, p_SC = self._of_slices_and_studies(model)
        study_G = patients.sickest(
            p_SC, self.patient_S, groups=len(self.names), classes=self.classes
        )
        patient_of = {int(study): g for g, study in enumerate(study_G) if study >= 0}
        entries: dict[int, list[int]] = {}
        for entry in model.patient_rule.deciding(
            p_MC, self.study_M, groups=len(self.patient_S), classes=self.classes
        ):
            patient = patient_of.get(int(self.study_M[entry]))
            if patient is not None:
                entries.setdefault(patient, []).append(int(entry))
        return entries

    def _of_slices_and_studies(self, model: EvaluatedModel) -> tuple[Floats, Floats]:
        p_MC = probabilities(
            self.logits_MC, activation=model.activation, temperature=model.temperature
        )
        p_SC = model.patient_rule.probabilities(
            p_MC, self.study_M, groups=len(self.patient_S), classes=self.classes
        )
        return p_MC, p_SC

    def predictions(self, model: EvaluatedModel) -> tuple[Floats, Indices]:
        """Return probabilities and class of each patient; NaN and -1 without a usable slice."""
        _, p_SC = self._of_slices_and_studies(model)
        groups = len(self.names)
        p_GC = patients.of_sickest(p_SC, self.patient_S, groups=groups, classes=self.classes)
        scored_G = np.isfinite(p_GC).all(axis=1)
        class_G = np.full(groups, -1)
        class_G[scored_G] = patients.classes_of(p_GC[scored_G], classes=self.classes)
        return p_GC, class_G


def patient_slices(joined: Joined) -> PatientSlices:
    """Return the patients of the labels.

    Raises DataError if a patient has two labels, or a slice with a score that is not finite.
    """
    ids = joined.patient_ids
    known_N = np.array([name != "" for name in ids], np.bool_)
    named = [name for name in ids if name]
    group_of_known, groups = bootstrap.group_patients(named)
    names = [""] * groups
    for group, name in zip(group_of_known, named, strict=True):
        names[group] = name
    group_N = np.full(len(ids), -1)
    group_N[known_N] = group_of_known
    classes = joined.scored.classes
    truth_G, several = patients.true_classes(
        joined.labels.truth_N[known_N], group_of_known, groups=groups, classes=classes
    )
    truth_G = _patient_labels(joined, group_N, names=names, otherwise_G=truth_G)
    study_R, patient_S, study_keys = _studies(joined, group_N)
    used_R = (study_R >= 0) & _usable(joined)
    row_M = np.flatnonzero(used_R)
    logits = [joined.scored.table[f"logit_{name}"].to_numpy() for name in classes]
    logits_MC = np.stack(logits, axis=1).astype(np.float64)[used_R]
    # Slices without a label speak for their patient too.
    check_finite(joined.scored, row_M, logits_MC)
    return PatientSlices(
        classes=classes,
        names=names,
        truth_G=truth_G,
        several=several,
        logits_MC=logits_MC,
        study_M=study_R[used_R],
        row_M=row_M,
        patient_S=patient_S,
        study_keys=study_keys,
    )


def _patient_labels(
    joined: Joined, group_N: Indices, *, names: list[str], otherwise_G: Indices
) -> Indices:
    """Return the class of each patient by the column patient_label, else as given."""
    labels = joined.labels
    if labels.patient_truth_N is None:
        return otherwise_G
    truth_G = np.full(len(names), -1)
    has_label_N = (group_N >= 0) & (labels.patient_truth_N >= 0)
    # Of several labels of a patient the assignment keeps one, and the comparison finds the others.
    truth_G[group_N[has_label_N]] = labels.patient_truth_N[has_label_N]
    differs_N = truth_G[group_N[has_label_N]] != labels.patient_truth_N[has_label_N]
    if differs_N.any():
        wrong = sorted({names[g] for g in group_N[has_label_N][differs_N]})
        raise DataError(
            f"{len(wrong)} patients have several values in patient_label; give each patient one",
            labels.place,
            names=first_few(wrong),
        )
    return np.where(truth_G >= 0, truth_G, otherwise_G)


def _studies(joined: Joined, group_N: Indices) -> tuple[Indices, Indices, list[str]]:
    """Return the study of each row (-1: none), and the patient and the keyed id of each study.

    A study's unlabelled rows belong to it too, unless its labels name several patients.
    """
    key_R = joined.scored.table["study_key"].to_pylist()
    number: dict[tuple[str, int], int] = {}
    study_R = np.full(len(key_R), -1)
    of_key: dict[str, set[int]] = {}
    for row, group in zip(joined.row_N, group_N, strict=True):
        if group < 0:
            continue
        key = (key_R[row] or "") if row >= 0 else ""
        study = number.setdefault((key, int(group)), len(number))
        if row >= 0:
            study_R[row] = study
            if key:
                of_key.setdefault(key, set()).add(study)
    for row, key in enumerate(key_R):
        if study_R[row] < 0 and key and len(of_key.get(key, ())) == 1:
            (study_R[row],) = of_key[key]
    patient_S = np.array([group for _, group in number], np.int64)
    return study_R, patient_S, [key for key, _ in number]


def _usable(joined: Joined) -> NDArray[np.bool_]:
    """Return which rows of the predictions may decide: scored, not abstained, chosen series."""
    table = joined.scored.table
    chosen = studies.chosen_series(store.join(joined.scored.out, "predictions"))
    columns = ("study_key", "series_key", "error_code", "abstained")
    return np.array(
        [
            not code and not abstained and (study is None or chosen[study] == (series or ""))
            for study, series, code, abstained in zip(
                *(table[name].to_pylist() for name in columns), strict=True
            )
        ],
        np.bool_,
    )
