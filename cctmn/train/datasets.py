"""Labelled slices for a stage: opened, read once, with a report of all problems.

Training and measuring use the same functions, so they see the same slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cctmn.contract import InputContract
from cctmn.data import lesions, slices
from cctmn.data.issues import DatasetIssues, Sample
from cctmn.data.lesions import LesionSample
from cctmn.data.slices import SliceSample
from cctmn.errors import DataError
from cctmn.model.card import Card
from cctmn.reporter import Reporter

READ_THREADS: Final = 8


@dataclass(frozen=True)
class Data:
    """Where labelled slices are: folder or table, and the list of names that selects from it."""

    place: str
    split: str | None = None
    what: str = "slices"  # for messages
    root: str | None = None  # base folder or prefix for relative names in a table
    label_map: Mapping[str, str] = field(default_factory=dict)  # classes that labels mean


def with_lesions(data: Data, *, card: Card, report: Reporter) -> tuple[LesionSample, ...]:
    """CNCB-like slices that have a lesion of the model's classes."""
    if data.root is not None:
        raise DataError("--root is for tables of classified slices; leave it out", data.place)
    if data.label_map:
        raise DataError("--label-map is for classified slices; leave it out", data.place)
    dataset = lesions.check_lesions(
        lesions.open_lesions(data.place, names=data.split),
        lesion_classes=card.arch.lesion_classes,
        contract=InputContract.from_card(card.input),
        threads=READ_THREADS,
    )
    _report_dataset(data, dataset.samples, issues=dataset.issues, report=report)
    return tuple(dataset.samples)


def with_classes(
    data: Data, *, classes: tuple[str, ...], card: Card, report: Reporter
) -> tuple[SliceSample, ...]:
    """Slices with an image class, in any of the layouts."""
    dataset = slices.check_slices(
        slices.open_slices(
            data.place,
            split=data.split,
            root=data.root,
            classes=classes,
            label_map=data.label_map,
        ),
        contract=InputContract.from_card(card.input),
        threads=READ_THREADS,
    )
    _report_dataset(data, dataset.samples, issues=dataset.issues, report=report)
    for note in dataset.notes:
        report(f"{data.what}: {note}")
    return tuple(dataset.samples)


def _report_dataset(
    data: Data, samples: tuple[Sample, ...], *, issues: DatasetIssues, report: Reporter
) -> None:
    patients = len({sample.patient for sample in samples if sample.patient})
    report(f"{data.what}: {len(samples):,} slices of {patients:,} patients")
    for what, names in issues.kinds():
        report(f"{data.what}: {what}", names=names)
