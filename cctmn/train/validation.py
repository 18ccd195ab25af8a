"""The training and validation slices of a run: drawn by patient and class, and counted.

Without a validation set, some patients of each class are kept for validation. A class that would be
missing from either part is refused, because a number without it looks like one of all classes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from cctmn.data import splits
from cctmn.data.issues import first_few
from cctmn.data.lesions import LesionSample
from cctmn.data.slices import SliceSample
from cctmn.data.splits import PatientKey
from cctmn.errors import DataError
from cctmn.metrics import patients as patient_metrics
from cctmn.reporter import Reporter
from cctmn.train.stages import Samples, TrainStage

PARTS: Final = ("training", "validation")


def draw(
    samples: Samples,
    *,
    stage: TrainStage,
    classes: tuple[str, ...],
    where: str,
    begun_with: Callable[[tuple[Samples, Samples]], bool],
    report: Reporter,
) -> tuple[Samples, Samples]:
    """Return the training and validation slices: a fraction of the patients of each class.

    `where` names the labelled slices in errors. `begun_with` says whether OUT was begun with these
    two parts: earlier versions drew patients whatever their class, and such a run goes on with its
    own parts. Raises DataError if a class would be missing from either part.
    """
    fraction, seed = stage.config.valid_fraction, stage.config.optim.seed
    patients: Mapping[PatientKey, Sequence[Any]] = splits.by_patient(samples)
    if isinstance(samples[0], LesionSample):
        strata = strata_of_lesions(patients)
    else:
        strata = strata_of_classes(patients, classes=classes, where=where)
    with suppress(DataError):
        before: tuple[Any, Any] = splits.held_out(samples, fraction=fraction, seed=seed)
        if begun_with(before):
            if before != splits.held_out(samples, fraction=fraction, seed=seed, strata=strata):
                report(
                    "this run was begun with validation patients drawn whatever their class; it "
                    "goes on with them"
                )
            return before
    parts: tuple[Any, Any] = splits.held_out(samples, fraction=fraction, seed=seed, strata=strata)
    _check_classes(parts, stage=stage, classes=classes, where=where)
    return parts


def sampled(samples: Samples, *, count: int, seed: int) -> Samples:
    """Return `count` of the validation slices, in order, or all if there are not more or it is 0.

    Each class has its fraction of them, and one slice at least. Within a class the first slice of
    every patient is taken, then the second of every patient that has one, and so on. A slice with
    lesions of several classes belongs to the one that fewest slices show.
    """
    if not 0 < count < len(samples):
        return samples
    every: Sequence[Any] = samples
    shown = [_labels(sample) for sample in every]
    frequency = Counter(label for labels in shown for label in labels)
    of_class: dict[int, list[Any]] = {}
    for sample, labels in zip(every, shown, strict=True):
        rarest = min(labels, key=lambda label: (frequency[label], label), default=0)
        of_class.setdefault(rarest, []).append(sample)
    # The whole classes in one row, each in the order of its turns, evenly spread by their fraction.
    places = []
    for label, members in of_class.items():
        in_turn = _in_turn(members, seed=seed)
        places += [
            (number > 0, (number + 0.5) / len(in_turn), label, id(sample))
            for number, sample in enumerate(in_turn)
        ]
    chosen = {place[-1] for place in sorted(places)[:count]}
    drawn: Any = tuple(sample for sample in every if id(sample) in chosen)
    return drawn


def _labels(sample: SliceSample | LesionSample) -> set[int]:
    return set(sample.labels) if isinstance(sample, LesionSample) else {sample.label}


def _in_turn(samples: Sequence[Any], *, seed: int) -> list[Any]:
    """Return the first slice of every patient, then the second of every patient, and so on."""
    turns = []
    for key, own in splits.by_patient(samples).items():
        own = sorted(own, key=lambda sample: _draw(f"slice {sample.name}", seed))
        turns += [
            (turn, _draw(f"{key.kind} {key.name}", seed), sample) for turn, sample in enumerate(own)
        ]
    return [sample for _, _, sample in sorted(turns, key=lambda one: one[:2])]


def _draw(name: str, seed: int) -> str:
    """Return the place of a patient or slice in the draw: a hash, the same on any machine."""
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).hexdigest()


def strata_of_classes(
    patients: Mapping[PatientKey, Sequence[SliceSample]], *, classes: tuple[str, ...], where: str
) -> dict[PatientKey, int]:
    """Return the class of each patient: that of patient_label, else that of the sickest slice.

    Raises DataError if a patient has several values in patient_label.
    """
    given = {key: {s.patient_label for s in slices} - {-1} for key, slices in patients.items()}
    if several := sorted(key.name for key, labels in given.items() if len(labels) > 1):
        raise DataError(
            f"{len(several)} patients have several values in patient_label; give each patient one",
            where,
            names=first_few(several),
        )
    groups = [number for number, slices in enumerate(patients.values()) for _ in slices]
    truth = [sample.label for slices in patients.values() for sample in slices]
    of_slices, _ = patient_metrics.true_classes(
        np.array(truth), np.array(groups), groups=len(patients), classes=classes
    )
    return {
        key: next(iter(given[key]), int(label))
        for key, label in zip(patients, of_slices, strict=True)
    }


def strata_of_lesions(
    patients: Mapping[PatientKey, Sequence[LesionSample]],
) -> dict[PatientKey, int]:
    """Return the lesion class of each patient; of several, the one that fewest patients have.

    A class that is rare is spread over both parts in this way, also where its patients have lesions
    of another class too.
    """
    labels = {key: {one for s in slices for one in s.labels} for key, slices in patients.items()}
    count = Counter(one for of_patient in labels.values() for one in of_patient)
    return {
        key: min(of_patient, key=lambda one: (count[one], one), default=0)
        for key, of_patient in labels.items()
    }


def num_patients(samples: Samples) -> int:
    """Return the number of patients; a slice of unknown patient counts as one."""
    known: Sequence[Any] = samples
    return len(splits.by_patient(known))


def report_counts(
    parts: tuple[Samples, Samples], *, classes: tuple[str, ...], report: Reporter
) -> None:
    """Report slices and patients by class of both parts, and what makes their numbers unsure."""
    counted = [_by_class(samples, classes=classes) for samples in parts]
    for name, samples, counts in zip(PARTS, parts, counted, strict=True):
        by_class = "; ".join(
            f"{one} {_count(slices, 'slice')} of {_count(of, 'patient')}"
            for one, (slices, of) in counts.items()
        )
        total = f"{_count(len(samples), 'slice')} of {_count(num_patients(samples), 'patient')}"
        report(f"{name} part: {total} ({by_class})")
    if unknown := sum(not sample.patient for samples in parts for sample in samples):
        report(
            f"{_count(unknown, 'slice')} of unknown patient: each counts as a patient of its own, "
            "so a person may be in both parts"
        )
    if few := [name for name, (_, of) in counted[1].items() if of < 2]:
        report(
            f"caution: fewer than two validation patients of {', '.join(few)}: the validation "
            "numbers say little; raise valid_fraction, or give --valid with more patients"
        )


def _check_classes(
    parts: tuple[Samples, Samples], *, stage: TrainStage, classes: tuple[str, ...], where: str
) -> None:
    """Raise DataError if a class is missing from a part."""
    counted = [_by_class(samples, classes=classes) for samples in parts]
    for name in classes:
        of_parts = [counts[name] for counts in counted]
        if not any(slices for slices, _ in of_parts):
            raise DataError(
                f"no slice is of the class {name}; label some, set {stage.classes_setting} without "
                "it, or give a validation set with --valid",
                where,
            )
        for part, (slices, _) in zip(PARTS, of_parts, strict=True):
            if not slices:
                patients = _count(sum(of for _, of in of_parts), "patient")
                raise DataError(
                    f"the class {name} would be missing from the {part} part, because "
                    f"{patients} in all can be drawn for it; give a validation set with --valid "
                    "or --valid-split, change valid_fraction, or label more patients",
                    where,
                )


def _by_class(samples: Samples, *, classes: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return the slices that show each class, and their patients."""
    counts = {}
    for number, name in enumerate(classes):
        showing: list[Any] = [s for s in samples if _shows(s, number)]
        counts[name] = (len(showing), len(splits.by_patient(showing)))
    return counts


def _shows(sample: SliceSample | LesionSample, number: int) -> bool:
    # Lesion labels count from 1, for 0 is background.
    return (
        number + 1 in sample.labels
        if isinstance(sample, LesionSample)
        else (number == sample.label)
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
