"""Splits by patient: check that no patient is on both sides, and draw a held-out part.

Slices of one patient resemble each other, so a result on a patient seen in training means nothing.
An unknown patient ("") cannot be checked; the number of such samples is returned to the caller.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

from cctmn.data.issues import S, Sample, first_few
from cctmn.data.patients import folded
from cctmn.errors import DataError


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


def held_out(
    samples: Sequence[S], *, fraction: float, seed: int
) -> tuple[tuple[S, ...], tuple[S, ...]]:
    """Draw a fraction of the patients: (train, held), each in the order of `samples`.

    A sample of unknown patient counts as one, and ids that differ in case alone are one patient.
    Raises DataError if a side would be empty.
    """
    # The first spelling of each patient: it decides the draw, as it did before case was ignored.
    written: dict[str, str] = {}
    for patient in sorted({s.patient for s in samples}):
        written.setdefault(folded(patient), patient)

    def key(sample: Sample) -> tuple[str, str]:
        patient = written[folded(sample.patient)]
        return ("patient", patient) if patient else ("slice", sample.name)

    # By a hash and not by a generator, whose stream may change with numpy: the same patients are
    # drawn on any machine, and a patient added moves at most one other.
    patients = sorted({key(s) for s in samples}, key=lambda one: (_draw(one, seed), one))
    count = round(fraction * len(patients))
    if not 0 < count < len(patients):
        raise DataError(
            f"held-out fraction {fraction:g} of {len(patients)} patients leaves a side empty; "
            "choose another between 0 and 1, or more patients"
        )
    drawn = set(patients[:count])
    train = tuple(s for s in samples if key(s) not in drawn)
    return train, tuple(s for s in samples if key(s) in drawn)


def _draw(key: tuple[str, str], seed: int) -> str:
    text = f"{seed}|{key[0]}|{key[1]}"
    # A file name on disk need not be UTF-8.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
