"""Splits by patient: check that no patient is on both sides, and draw a held-out part.

Slices of one patient resemble each other, so a result on a patient seen in training means nothing.
An unknown patient ("") cannot be checked; the number of such samples is returned to the caller.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cctmn.data.issues import S, Sample, first_few
from cctmn.data.patients import folded
from cctmn.errors import DataError


class PatientKey(NamedTuple):
    """A patient, or a slice of unknown patient, which counts as a patient of its own."""

    kind: str  # "patient" or "slice"
    name: str


def check_disjoint(parts: Mapping[str, Sequence[Sample]]) -> int:
    """Return how many samples have no known patient. Raises DataError if parts share a patient.

    Patients whose ids differ in case alone are taken for one.
    """
    patients = {
        part: {folded(patient): patient for patient in {s.patient for s in samples} - {""}}
        for part, samples in parts.items()
    }
    for (one, ones), (other, others) in itertools.combinations(patients.items(), 2):
        if shared := sorted(ones[patient] for patient in ones.keys() & others.keys()):
            raise DataError(
                f"{one} and {other} share {len(shared)} patients; give splits that no patient "
                "crosses",
                names=first_few(shared),
            )
    return sum(not sample.patient for samples in parts.values() for sample in samples)


def by_patient(samples: Sequence[S]) -> dict[PatientKey, list[S]]:
    """Return the samples of each patient, both in the order of `samples`.

    A sample of unknown patient is a patient of its own, and ids that differ in case alone are one
    patient.
    """
    # The first spelling of each patient: it decides the draw, as it did before case was ignored.
    written: dict[str, str] = {}
    for patient in sorted({s.patient for s in samples}):
        written.setdefault(folded(patient), patient)
    patients: dict[PatientKey, list[S]] = {}
    for sample in samples:
        patient = written[folded(sample.patient)]
        key = PatientKey("patient", patient) if patient else PatientKey("slice", sample.name)
        patients.setdefault(key, []).append(sample)
    return patients


def held_out(
    samples: Sequence[S],
    *,
    fraction: float,
    seed: int,
    strata: Mapping[PatientKey, int] | None = None,
) -> tuple[tuple[S, ...], tuple[S, ...]]:
    """Draw a fraction of the patients: (train, held), each in the order of `samples`.

    With `strata`, the stratum of each patient of `by_patient`, the fraction of each stratum is
    drawn: at least one patient, and never all of them. The only patient of a stratum stays in the
    training part. Raises DataError if a side would be empty.
    """
    patients = by_patient(samples)
    groups: dict[int, list[PatientKey]] = {}
    for key in patients:
        groups.setdefault(strata[key] if strata is not None else 0, []).append(key)
    drawn: set[PatientKey] = set()
    for keys in groups.values():
        # By a hash and not by a generator, whose stream may change with numpy: the same patients
        # are drawn on any machine, and a patient added moves at most one other.
        keys.sort(key=lambda one: (_draw(one, seed), one))
        count = round(fraction * len(keys))
        if strata is not None:
            count = min(max(count, 1), len(keys) - 1)
        drawn.update(keys[: max(count, 0)])
    if not 0 < len(drawn) < len(patients) or not 0 < fraction < 1:
        raise DataError(
            f"held-out fraction {fraction:g} of {len(patients)} patients leaves a side empty; "
            "choose another between 0 and 1, or more patients"
        )
    held = {id(sample) for key in drawn for sample in patients[key]}
    train = tuple(s for s in samples if id(s) not in held)
    return train, tuple(s for s in samples if id(s) in held)


def _draw(key: PatientKey, seed: int) -> str:
    text = f"{seed}|{key.kind}|{key.name}"
    # A file name on disk need not be UTF-8.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
