"""From slices to patients: a patient is sick if some slices are, however many others are clean.

Most slices of a sick patient's whole scan show no lesion. So the rule is asymmetric: the slices
with the strongest evidence of disease decide whether the patient is sick, and clean slices never
outvote them. Among the diseases, the same slices decide.

Reads: probabilities of slices, and the patient of each.
Writes: probabilities and classes of patients, and the rule that suits validation patients best.

Shape suffixes: N slices, G patients, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from cctmn.classes import CONTROL

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Used where no validation has chosen others: five sure slices make a patient sick, of any number.
TOP_M: Final = 5
CANDIDATES: Final = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
# The evidence is kept off 0 and 1, where its logit has no end.
_LEAST: Final = 1e-6
# Draws a fit of few patients towards the default; worth about one patient.
_PRIOR: Final = 0.5


@dataclass(frozen=True)
class PatientRule:
    """How the slices of a patient give the patient's probabilities.

    The evidence of a slice is the probability that it is not clean. A patient's evidence is the
    mean of the `top_m` slices of most evidence, and P(sick) = sigmoid(intercept + slope *
    logit(evidence)). The slope is at least 0, so more evidence never makes a patient less sick.
    """

    top_m: int = TOP_M
    intercept: float = 0.0
    slope: float = 1.0

    @classmethod
    def from_calibration(cls, calibration: Mapping[str, Any]) -> PatientRule:
        """Read the rule from the calibration of a model's card; the default without one."""
        return cls(
            int(calibration.get("top_m", TOP_M)),
            float(calibration.get("patient_intercept", 0.0)),
            float(calibration.get("patient_slope", 1.0)),
        )

    def as_calibration(self) -> dict[str, Any]:
        """Return the rule as a card keeps it."""
        return {
            "top_m": self.top_m,
            "patient_intercept": self.intercept,
            "patient_slope": self.slope,
        }

    def at_prevalence(self, prevalence: float, *, fitted_at: float) -> PatientRule:
        """Return the rule for patients of whom another fraction is sick (0..1, by Bayes).

        The evidence that sick and healthy patients show is taken to be the same there.
        """
        shift = special.logit(prevalence) - special.logit(fitted_at)
        return replace(self, intercept=round(self.intercept + float(shift), 4))

    def probabilities(
        self, p_NC: Floats, group_N: Indices, *, groups: int, classes: Sequence[str]
    ) -> Floats:
        """Return the probabilities of each patient, G x C; a row sums to 1.

        The row of a patient without a slice is NaN. Without a class "control" every patient is
        sick, and only the diseases are told apart.
        """
        sick_G, share_GC = _evidence(p_NC, group_N, groups=groups, classes=classes, m=self.top_m)
        if CONTROL not in classes:
            return share_GC
        p_sick_G = special.expit(self.intercept + self.slope * special.logit(sick_G))
        p_GC = share_GC * p_sick_G[:, None]
        p_GC[:, classes.index(CONTROL)] = 1 - p_sick_G
        return p_GC

    def deciding(
        self, p_NC: Floats, group_N: Indices, *, groups: int, classes: Sequence[str]
    ) -> Indices:
        """Return the rows that decide about their patients, by patient and falling evidence."""
        sick_N, _ = _of_slices(p_NC, classes=classes)
        return _strongest(sick_N, group_N, groups=groups, m=self.top_m)


def classes_of(p_GC: Floats, *, classes: Sequence[str]) -> Indices:
    """Return the class of each patient: the likeliest disease if P(sick) is at least 0.5.

    So the diseases win together over "control", although none of them may be likelier alone.
    """
    if CONTROL not in classes:
        return p_GC.argmax(axis=1)
    healthy = classes.index(CONTROL)
    diseases_GC = p_GC.copy()
    diseases_GC[:, healthy] = -1
    return np.where(p_GC[:, healthy] > 0.5, healthy, diseases_GC.argmax(axis=1))


def of_sickest(p_SC: Floats, patient_S: Indices, *, groups: int, classes: Sequence[str]) -> Floats:
    """Return the probabilities of each patient's sickest study, G x C.

    Without a class "control" it is the study with the highest probability of any class. Rows of NaN
    are passed over; a patient without another row has NaN.
    """
    study_G = sickest(p_SC, patient_S, groups=groups, classes=classes)
    p_GC = np.full((groups, p_SC.shape[1]), np.nan)
    p_GC[study_G >= 0] = p_SC[study_G[study_G >= 0]]
    return p_GC


def sickest(p_SC: Floats, patient_S: Indices, *, groups: int, classes: Sequence[str]) -> Indices:
    """Return the study of each patient that decides, as in `of_sickest`; -1 without one."""
    healthy = classes.index(CONTROL) if CONTROL in classes else None
    evidence_S = p_SC.max(axis=1) if healthy is None else 1 - p_SC[:, healthy]
    study_G = np.full(groups, -1)
    known = np.flatnonzero(np.isfinite(evidence_S))
    # The last assignment of a patient counts, so the sickest study comes last.
    order = known[np.argsort(evidence_S[known], kind="stable")]
    study_G[patient_S[order]] = order
    return study_G


def true_classes(
    truth_N: Indices, group_N: Indices, *, groups: int, classes: Sequence[str]
) -> tuple[Indices, int]:
    """Return the class of each patient by the labels of slices, and how many have two diseases.

    A patient with one sick slice is sick. Of several diseases the one with more slices counts, of
    equally many the later one in `classes`.
    """
    counts_GC = np.zeros((groups, len(classes)), np.int64)
    np.add.at(counts_GC, (group_N, truth_N), 1)
    sick_GC = counts_GC.copy()
    if CONTROL in classes:
        sick_GC[:, classes.index(CONTROL)] = 0
    last = len(classes) - 1
    disease_G = last - sick_GC[:, ::-1].argmax(axis=1)
    healthy = classes.index(CONTROL) if CONTROL in classes else -1
    truth_G = np.where(sick_GC.any(axis=1), disease_G, healthy)
    return truth_G, int(((sick_GC > 0).sum(axis=1) > 1).sum())


def fit_rule(
    p_NC: Floats,
    group_N: Indices,
    *,
    truth_G: Indices,
    classes: Sequence[str],
    candidates: Sequence[int] = CANDIDATES,
) -> PatientRule | None:
    """Return the rule under which validation patients are likeliest; ties go to the smaller m.

    `truth_G` has the class of each patient. The result is None unless some patients with slices are
    sick and some are not.
    """
    groups = len(truth_G)
    has_slices_G = np.bincount(group_N, minlength=groups) > 0
    if CONTROL not in classes:
        return None
    truth_G = truth_G[has_slices_G]
    sick_G = truth_G != classes.index(CONTROL)
    if sick_G.all() or not sick_G.any():
        return None

    def fitted(m: int) -> tuple[float, PatientRule]:
        evidence_G, share_GC = _evidence(p_NC, group_N, groups=groups, classes=classes, m=m)
        x_G = special.logit(evidence_G[has_slices_G])
        # What the slices say about the disease depends on m alone.
        share_of_true_G = share_GC[has_slices_G, :][np.arange(len(truth_G)), truth_G]
        of_disease = -np.log(np.maximum(share_of_true_G[sick_G], _LEAST)).sum()

        def loss(ab: Floats) -> float:
            z_G = np.where(sick_G, 1, -1) * (ab[0] + ab[1] * x_G)
            return float(np.logaddexp(0, -z_G).sum() + _PRIOR * (ab[0] ** 2 + (ab[1] - 1) ** 2))

        best = optimize.minimize(loss, [0.0, 1.0], bounds=[(None, None), (0, None)])
        intercept, slope = (round(float(value), 4) for value in best.x)
        return round(float(best.fun + of_disease), 6), PatientRule(m, intercept, slope)

    return min((fitted(m) for m in candidates), key=lambda pair: (pair[0], pair[1].top_m))[1]


def _evidence(
    p_NC: Floats, group_N: Indices, *, groups: int, classes: Sequence[str], m: int
) -> tuple[Floats, Floats]:
    """Return the evidence of each patient, G, and how the diseases share it, G x C.

    A patient with fewer than m slices has the mean of all; one without a slice has NaN.
    """
    sick_N, share_NC = _of_slices(p_NC, classes=classes)
    kept_N = _strongest(sick_N, group_N, groups=groups, m=m)
    # Without a control all slices of a patient are equally sick, so the mean of all is as good.
    kept_N = kept_N if CONTROL in classes else np.arange(len(p_NC))
    kept_G = np.bincount(group_N[kept_N], minlength=groups)
    total_GC = np.stack(
        [np.bincount(group_N[kept_N], column[kept_N], minlength=groups) for column in share_NC.T],
        axis=1,
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 of a patient without a slice
        sick_G = np.bincount(group_N[kept_N], sick_N[kept_N], minlength=groups) / kept_G
        share_GC = total_GC / np.maximum(total_GC.sum(axis=1, keepdims=True), _LEAST)
    share_GC[kept_G == 0] = np.nan
    return np.clip(sick_G, _LEAST, 1 - _LEAST), share_GC


def _of_slices(p_NC: Floats, *, classes: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the evidence of each slice, N, and what each disease has of it, N x C."""
    # The sigmoid probabilities of a slice need not sum to 1.
    share_NC = p_NC / np.maximum(p_NC.sum(axis=1, keepdims=True), _LEAST)
    if CONTROL not in classes:
        return np.ones(len(p_NC)), share_NC
    healthy = classes.index(CONTROL)
    sick_N = 1 - share_NC[:, healthy]
    share_NC[:, healthy] = 0
    return sick_N, share_NC


def _strongest(sick_N: Floats, group_N: Indices, *, groups: int, m: int) -> Indices:
    """Return the m rows of most evidence of each patient, by patient and falling evidence."""
    count_G = np.bincount(group_N, minlength=groups)
    first_G = np.concatenate([[0], np.cumsum(count_G)[:-1]])
    order_N = np.lexsort((-sick_N, group_N))
    rank_N = np.arange(len(order_N)) - first_G[group_N[order_N]]
    return order_N[rank_N < m]
