"""Slices with their lesions: the pictures are embedded, and the page draws the boxes over them.

Each case is one inline SVG, see `case_card`. Pictures are embedded unchanged, those of patients
smaller: `read/preview.py`, which makes them, keeps them grey and free of text from a header.

Reads: the section `cases` of metrics.json, or the deciding slices of a study; and their PNGs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn.metrics.metric import number
from cctmn.read.preview import smaller
from cctmn.report import case_card
from cctmn.report.case_card import Case

PNG: Final = b"\x89PNG\r\n\x1a\n"
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")  # an id, never a path
# Size of all pictures together: 10 MB in base64, so that the page can still be mailed.
BUDGET_BYTES: Final = 7_500_000
# Long side of a picture in the row of a patient, of which there may be dozens.
WALL_PX: Final = 256
DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "12 5", "4 2 1 2")  # px of the screen
KINDS: Final = (
    ("misses", "Misses", "Slices with disease, predicted as another class"),
    ("false_alarms", "False alarms", "Slices without disease, predicted as a disease"),
    (
        "hits",
        "Best hits",
        "Slices with disease, predicted correctly with the highest probabilities",
    ),
    (
        "lowest_ap",
        "Worst images by their lesions",
        "Images with lesion masks of the lowest AP at an IoU of 0.5; of equal AP, those with most "
        "missed lesions first",
    ),
    (
        "false_boxes",
        "Most false boxes",
        "Images with lesion masks and most detected lesions that are no true lesion",
    ),
)
WALLS: Final = (
    (
        "missed_patients",
        "Missed patients",
        "Patients with disease, predicted as another class, with the slices that decided, "
        "strongest evidence of disease first",
    ),
    (
        "false_alarm_patients",
        "Falsely alarmed patients",
        "Patients without disease, predicted as sick, with the slices that decided, strongest "
        "evidence of disease first",
    ),
)


@dataclass(frozen=True)
class CaseGroup:
    """The cases of one kind."""

    title: str
    description: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class PatientCase:
    """A patient and the slices that decided; `deciding` counts those that are not shown too."""

    patient_key: str
    truth: str
    predicted: str
    p: tuple[tuple[str, float | None], ...]
    deciding: int
    slices: tuple[Case, ...]


@dataclass(frozen=True)
class PatientWall:
    """The patients of one kind."""

    title: str
    description: str
    patients: tuple[PatientCase, ...]


@dataclass(frozen=True)
class Gallery:
    """All groups of cases and patients, and the lesion labels in the order of their dashes."""

    groups: tuple[CaseGroup, ...]
    walls: tuple[PatientWall, ...]
    labels: tuple[tuple[str, str], ...]  # label, dashes
    pictures: int
    missing: int
    has_truth: bool  # whether some slice has true lesions


def build(
    cases: Mapping[str, Any], *, classes: Sequence[str], read: Callable[[str], bytes | None]
) -> Gallery:
    """Build the gallery; `read` returns the PNG of a file name, or None if there is none."""
    patients = [one for kind, _, _ in WALLS for one in cases.get(kind) or ()]
    slices = [one for kind, _, _ in KINDS for one in cases.get(kind) or ()]
    labels = _labels([*slices, *(one for patient in patients for one in patient["slices"])])
    pictures = _Pictures(read)

    def case(entry: Mapping[str, Any], side_px: int | None = None) -> Case:
        picture = pictures.get(str(entry["slice_id"]), side_px=side_px)
        return case_card.build(entry, classes=classes, labels=labels, picture=picture)

    groups = [
        CaseGroup(title, description, tuple(case(entry) for entry in cases[kind]))
        for kind, title, description in KINDS
        if cases.get(kind)
    ]
    walls = []
    for kind, title, description in WALLS:
        shown = tuple(
            PatientCase(
                patient_key=str(entry.get("patient_key") or ""),
                truth=str(entry["truth"]),
                predicted=str(entry["predicted"]),
                p=tuple((name, number((entry.get("p") or {}).get(name))) for name in classes),
                deciding=int(entry["deciding"]),
                slices=tuple(case(one, WALL_PX) for one in entry["slices"]),
            )
            for entry in cases.get(kind) or ()
        )
        if shown:
            walls.append(PatientWall(title, description, shown))
    return _gallery(groups, walls, labels)


def of_study(
    slices: Sequence[Mapping[str, Any]],
    *,
    classes: Sequence[str],
    read: Callable[[str], bytes | None],
) -> Gallery:
    """Build the gallery of a study's deciding slices; `read` is as for `build`."""
    labels = _labels(slices)
    pictures = _Pictures(read, reason="the image is no longer where it was scored")
    shown = tuple(
        case_card.build(
            entry, classes=classes, labels=labels, picture=pictures.get(str(entry["slice_id"]))
        )
        for entry in slices
    )
    return _gallery([CaseGroup("", "", shown)], [], labels)


def _labels(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(one["label"]) for case in cases for one in case.get("lesions") or ()})


def _gallery(
    groups: Sequence[CaseGroup], walls: Sequence[PatientWall], labels: Sequence[str]
) -> Gallery:
    all_cases = [case for group in groups for case in group.cases]
    all_cases += [one for wall in walls for patient in wall.patients for one in patient.slices]
    with_picture = sum(bool(case.picture) for case in all_cases)
    return Gallery(
        tuple(groups),
        tuple(walls),
        tuple((label, DASHES[k % len(DASHES)]) for k, label in enumerate(labels)),
        with_picture,
        len(all_cases) - with_picture,
        any(case.true_lesions for case in all_cases),
    )


class _Pictures:
    """Pictures as data URIs, until their total size reaches the budget."""

    def __init__(
        self,
        read: Callable[[str], bytes | None],
        *,
        reason: str = "no picture in private/cases",
    ) -> None:
        self._read, self._reason = read, reason
        self._left = BUDGET_BYTES

    def get(self, slice_id: str, *, side_px: int | None = None) -> tuple[str, str]:
        """Return the data URI and "", or "" and the reason why there is no picture.

        The picture is made smaller if `side_px` is given.
        """
        data = self._read(f"{slice_id}.png") if NAME.fullmatch(slice_id) else None
        if data is None:
            return "", self._reason
        is_png = data.startswith(PNG)
        if is_png and side_px is not None:
            shrunk = smaller(data, side_px=side_px)
            is_png, data = shrunk is not None, shrunk or b""
        if not is_png:
            return "", "the file in private/cases is not a PNG"
        if len(data) > self._left:
            return "", "picture left out to keep this file small; see private/cases"
        self._left -= len(data)
        return "data:image/png;base64," + base64.b64encode(data).decode("ascii"), ""
