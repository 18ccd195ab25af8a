"""The type of a measured value, and the ids that metrics.json may use.

Evaluation makes `Metric` objects, `document.py` says where they stand in metrics.json, and the
report shows them. An id such as `slice.sensitivity.covid` is declared here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

FROC_RATES: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per image, as usual
# Detections of this score or more are drawn firmly, and in a gallery they are hits or false. The
# model itself hardly believes in others.
DRAWN_SCORE: Final = 0.5

# Names of the metrics of a classifier; {} stands for the class.
OVERALL: Final[Mapping[str, str]] = {
    "accuracy": "accuracy",
    "f1_weighted": "F1, mean of the classes weighted by their number of true cases",
    "f1_macro": "F1, unweighted mean of the classes",
}
PER_CLASS: Final[Mapping[str, str]] = {
    "sensitivity": "sensitivity to {}",
    "ppv": "positive predictive value of {}",
    "specificity": "specificity to {}",
    "auc": "area under the ROC curve, {} against the rest",
    "ap": "average precision, {} against the rest",
}
CALIBRATION: Final[Mapping[str, str]] = {
    "ece": "expected calibration error",
    "ece_by_chance": "expected calibration error of a calibrated model, by chance alone",
    "brier": "Brier score",
    "nll": "negative log-likelihood (the loss that the network was trained with)",
}
# Metrics that may exceed 1, or that chance alone keeps away from 0.
UNBOUNDED: Final = tuple(CALIBRATION)
# Of each class, slices and patients.
RECALIBRATION: Final[Mapping[str, str]] = {
    "intercept": "calibration intercept of {} (0 if calibrated)",
    "slope": "calibration slope of {} (1 if calibrated)",
}
DETECTION: Final[Mapping[str, str]] = {
    "image_ap50": "mean per-image AP at IoU 0.50 (as published)",
    "image_ap75": "mean per-image AP at IoU 0.75 (as published)",
    "image_map": "mean per-image AP at IoU 0.50:0.95 (as published)",
    "coco_ap50": "AP pooled over images at IoU 0.50 (COCO)",
    "coco_ap75": "AP pooled over images at IoU 0.75 (COCO)",
    "coco_map": "AP pooled over images at IoU 0.50:0.95 (COCO)",
}
FROC: Final[Mapping[str, str]] = {
    **{
        f"at_{rate:g}": f"detected lesions at {rate:g} false positives per image with lesions"
        for rate in FROC_RATES
    },
    "mean": "detected lesions, mean over the FROC points",
}
KINDS: Final[Mapping[str, str]] = {"box": "boxes", "mask": "masks"}

# Metrics that are computed again with every labelled slice without scores counted as wrong.
WORST_CASE: Final = ("accuracy", "f1_weighted", "sensitivity")
# Metrics of which two models are compared.
COMPARED: Final = ("accuracy", "f1_weighted", "f1_macro", "sensitivity")
# Metrics of each cohort.
OF_COHORTS: Final = ("accuracy", "sensitivity")


class Size(NamedTuple):
    """The number of observations that a metric is computed from."""

    n: int  # slices, or patients for a metric of patients
    patients: int
    # Patients of the class, or of the rest, whichever are fewer; the interval rests on them.
    fewest_patients: int


@dataclass(frozen=True)
class Metric:
    """A value, its interval over patients, its interval over slices, and its sample size."""

    id: str
    description: str
    value: float | None  # None: not defined, such as the PPV of a class that is never predicted
    low: float | None = None
    high: float | None = None
    naive_low: float | None = None  # as if slices were independent
    naive_high: float | None = None
    n: int | None = None  # slices or patients that the metric is computed from
    patients: int | None = None
    # Of the patients with and without the class, the fewer: what the interval rests on.
    fewest_patients: int | None = None
    method: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry of metrics.json, rounded to more digits than 2000 resamples support."""
        fields = asdict(self)
        del fields["id"]
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, name: str, *, entry: Mapping[str, Any]) -> Metric:
        """Read the entry of metrics.json with this id; a number that is not finite is None."""
        numbers = ("value", "low", "high", "naive_low", "naive_high")
        return cls(
            id=name,
            description=str(entry.get("description") or name),
            n=whole(entry.get("n")),
            patients=whole(entry.get("patients")),
            fewest_patients=whole(entry.get("fewest_patients", entry.get("patients"))),
            method=str(entry.get("method") or ""),
            **{key: number(entry.get(key)) for key in numbers},
        )


def number(value: Any) -> float | None:
    """Return a finite number, else None. Raises TypeError or ValueError for anything else."""
    if value is None:
        return None
    converted = float(value)
    return converted if math.isfinite(converted) else None


def whole(value: Any) -> int | None:
    """Return a count, or None for None. Raises TypeError or ValueError for anything else."""
    return None if value is None else int(value)


def kind_of(name: str) -> str:
    """Return the metric without its class: `sensitivity` for `sensitivity.covid`."""
    return name.partition(".")[0]


def describe(name: str) -> str:
    """Return the description of a classifier's metric, given its id without the level."""
    kind, _, of_class = name.partition(".")
    return {**OVERALL, **PER_CLASS, **CALIBRATION}[kind].format(of_class)


def catalogue(classes: Sequence[str]) -> dict[str, str]:
    """Return every id that metrics.json may hold for these classes, with its description."""
    return dict(_catalogue(classes))


def _catalogue(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    for level, noun in (("slice", "slices"), ("patient", "patients")):
        for name in _names((*OVERALL, *PER_CLASS), classes):
            yield f"{level}.{name}", f"{describe(name)}, {noun}"
    for name in _names((*OVERALL, *PER_CLASS), classes):
        yield f"without_abstained.{name}", f"{describe(name)}, abstained slices left out, slices"
    for name in CALIBRATION:
        yield f"calibration.{name}", f"{describe(name)}, slices"
    for level, noun in (("calibration", "slices"), ("patient_calibration", "patients")):
        for kind, words in RECALIBRATION.items():
            for name in classes:
                yield f"{level}.{kind}.{name}", f"{words.format(name)}, {noun}"
    for name in _names(WORST_CASE, classes):
        worst = f"{describe(name)}, slices without scores counted as wrong, slices"
        yield f"worst_case.{name}", worst
    for name in _names(COMPARED, classes):
        yield f"difference.slice.{name}", f"difference in {describe(name)}, slices"
    for kind, noun in KINDS.items():
        for name, words in DETECTION.items():
            yield f"detection.{kind}.{name}", f"{words}, {noun}"
            worst = f"{words}, {noun}, images without scores counted as empty"
            yield f"worst_case.detection.{kind}.{name}", worst
    for name, words in FROC.items():
        yield f"detection.froc.{name}", words


def cohort_catalogue(classes: Sequence[str]) -> dict[str, str]:
    """Return every id that a cohort of metrics.json may hold, with its description."""
    return {name: f"{describe(name)}, slices" for name in _names(OF_COHORTS, classes)}


def _names(kinds: Iterable[str], classes: Sequence[str]) -> Iterator[str]:
    for kind in kinds:
        if kind in PER_CLASS:
            yield from (f"{kind}.{name}" for name in classes)
        else:
            yield kind
