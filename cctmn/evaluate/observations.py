"""The observations of an acceptance test: patients or slices, with one probability each.

A labelled patient or slice without a score counts as wrong, so that a model does not pass by
failing on the difficult ones.

Reads: labels joined with predictions.
Writes: a binary sample, and the subgroup of each observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cctmn.classes import CONTROL
from cctmn.data.issues import first_few
from cctmn.errors import ConfigError
from cctmn.evaluate import cohorts
from cctmn.evaluate.criteria import ANY_DISEASE, OperatingPoint
from cctmn.evaluate.join import Joined
from cctmn.evaluate.model import EvaluatedModel
from cctmn.evaluate.patient_sample import patient_slices
from cctmn.metrics import bootstrap
from cctmn.metrics.binary import FALSE_ALARM, MISSED, BinarySample
from cctmn.metrics.patients import PatientRule
from cctmn.model.probabilities import probabilities

Floats = NDArray[np.float64]

UNKNOWN = "unknown"
SEVERAL = "several values"


@dataclass(frozen=True, eq=False)
class Observations:
    """The binary sample of labels that are joined with predictions."""

    sample: BinarySample
    joined: Joined
    names: list[str] | None  # the patient of each observation; None for slices
    unscored: int  # observations without a score
    known_N: NDArray[np.bool_]  # whether the patient of each observation is known
    unknown: int  # labelled slices whose patient is not known

    def subgroups(self, columns: Sequence[str], *, where: str, place: str) -> list[tuple[str, ...]]:
        """Return the values of the columns for each observation.

        A patient whose slices have several values is in a subgroup of its own kind. Raises
        ConfigError, with the key `where` of the criteria file, for a column that is not suitable.
        """
        try:
            values = [cohorts.values_of(self.joined.column(c), name=c) for c in columns]
        except ConfigError as error:
            message = f"{where}: " + error.text.removeprefix("--by ")
            raise ConfigError(message, place) from None
        if self.names is not None:
            values = [self._of_patients(of_slices) for of_slices in values]
        return list(zip(*values, strict=True))

    def _of_patients(self, of_slices: list[str]) -> list[str]:
        assert self.names is not None
        found: dict[str, set[str]] = {}
        for name, value in zip(self.joined.patient_ids, of_slices, strict=True):
            found.setdefault(name, set()).add(value)
        values = []
        for name in self.names:
            known = found[name] - {UNKNOWN}
            values.append(SEVERAL if len(known) > 1 else next(iter(known), UNKNOWN))
        return values


def observe(joined: Joined, model: EvaluatedModel, *, point: OperatingPoint) -> Observations:
    """Return the patients or slices of the labels, with the probability of the positive class."""
    unknown = joined.patient_ids.count("")
    classes = joined.scored.classes
    if point.unit == "patient":
        patients = patient_slices(joined)
        p_GC, _ = patients.predictions(model)
        score_N = _score(p_GC, classes, positive=point.positive)
        truth_N = patients.truth_G
        names, group_N = patients.names, np.arange(len(patients.names))
        slices_N = patients.used_slices()
        known_N = np.ones(len(names), np.bool_)
    else:
        score_N = np.full(len(joined.scored_N), np.nan)
        p_MC = probabilities(
            joined.logits(), activation=model.activation, temperature=model.temperature
        )
        if point.positive == ANY_DISEASE:
            # The evidence of a slice, as the rule for patients defines it.
            each = np.arange(len(p_MC))
            p_MC = PatientRule(top_m=1).probabilities(p_MC, each, groups=len(each), classes=classes)
        score_N[joined.scored_N] = _score(p_MC, classes, positive=point.positive)
        truth_N, names = joined.labels.truth_N, None
        group_N, _ = bootstrap.group_patients(joined.patient_ids)
        slices_N = np.ones(len(truth_N), np.int64)
        known_N = np.array([name != "" for name in joined.patient_ids], np.bool_)
    positive_N = (
        truth_N != classes.index(CONTROL)
        if point.positive == ANY_DISEASE
        else truth_N == classes.index(point.positive)
    )
    without_N = np.isnan(score_N)
    score_N = np.where(without_N, np.where(positive_N, MISSED, FALSE_ALARM), score_N)
    sample = BinarySample(score_N, positive_N, group_N, slices_N)
    return Observations(sample, joined, names, int(without_N.sum()), known_N, unknown)


def check_positive(classes: Sequence[str], *, positive: str, place: str) -> None:
    """Raise ConfigError if the model does not have the class to detect."""
    if positive == ANY_DISEASE and CONTROL not in classes:
        raise ConfigError(
            f"operating_point.positive: the model has no class {CONTROL}; name one of its classes, "
            f"{first_few(classes)}",
            place,
        )
    if positive != ANY_DISEASE and positive not in classes:
        raise ConfigError(
            f"operating_point.positive: {positive!r} is not a class of the model; write any, or "
            f"one of {first_few(classes)}",
            place,
        )


def _score(p_NC: Floats, classes: Sequence[str], *, positive: str) -> Floats:
    if positive == ANY_DISEASE:
        return 1 - p_NC[:, classes.index(CONTROL)]
    return p_NC[:, classes.index(positive)]
