"""Slices with their lesions: the picture is embedded, and the page draws the boxes over it.

Each case is one inline SVG in px of the original image, so that the picture may be smaller than
its slice. If the distances of rows and columns are known, rows are stretched so that the picture is
square in mm. Pictures are embedded unchanged: `read/preview.py`, which makes them, keeps them grey,
small and free of text from a header.

Reads: the section `cases` of metrics.json, or the deciding slices of a study; and their PNGs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn.metrics.metric import number

PNG: Final = b"\x89PNG\r\n\x1a\n"
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")  # an id, never a path
# Size of all pictures together: 3.6 MB in base64, so that the page can still be mailed.
BUDGET_BYTES: Final = 2_700_000
# Boxes drawn per slice, so that their numbers have one digit. Further ones are counted.
BOXES: Final = 9
DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "12 5", "4 2 1 2")  # px of the screen
KINDS: Final = (
    ("misses", "Misses", "slices with disease, predicted as another class"),
    ("false_alarms", "False alarms", "slices without disease, predicted as a disease"),
    (
        "hits",
        "Best hits",
        "slices with disease, predicted correctly with the highest probabilities",
    ),
)


@dataclass(frozen=True)
class Box:
    """A lesion, px of the original image; y and height in the unit of `Case.height`."""

    tag: int
    x: float
    y: float
    width: float
    height: float
    score: float | None
    label: str
    style: int  # index of its label: colour and dashes


@dataclass(frozen=True)
class Case:
    """One slice. `picture` is a data URI; if it is "", `no_picture` gives the reason.

    `height` is the height of the picture in widths of a pixel: the rows, if pixels are square.
    `truth` is "" where it is not known, and `place` says where in the body the slice lies.
    """

    slice_id: str
    truth: str
    predicted: str
    p: tuple[tuple[str, float | None], ...]
    height: float
    cols: int
    boxes: tuple[Box, ...]
    more: int
    picture: str
    no_picture: str
    place: str = ""


@dataclass(frozen=True)
class CaseGroup:
    """The cases of one kind."""

    title: str
    description: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Gallery:
    """All groups of cases, and the lesion labels in the order of their dashes."""

    groups: tuple[CaseGroup, ...]
    labels: tuple[tuple[str, str], ...]  # label, dashes
    pictures: int
    missing: int


def build(
    cases: Mapping[str, Any], *, classes: Sequence[str], read: Callable[[str], bytes | None]
) -> Gallery:
    """Build the gallery; `read` returns the PNG of a file name, or None if there is none."""
    labels = _labels(case for kind, _, _ in KINDS for case in cases.get(kind) or ())
    pictures = _Pictures(read)
    groups = []
    for kind, title, description in KINDS:
        entries = cases.get(kind)
        if entries:
            shown = tuple(
                _case(e, classes=classes, labels=labels, pictures=pictures) for e in entries
            )
            groups.append(CaseGroup(title, description, shown))
    return _gallery(groups, labels)


def of_study(
    slices: Sequence[Mapping[str, Any]],
    *,
    classes: Sequence[str],
    read: Callable[[str], bytes | None],
) -> Gallery:
    """Build the gallery of a study's deciding slices; `read` is as for `build`.

    A slice has the entries of a case but `truth`, and may have `place` and the distances of rows
    and columns in mm.
    """
    labels = _labels(slices)
    pictures = _Pictures(read, reason="the image is no longer where it was scored")
    shown = tuple(_case(e, classes=classes, labels=labels, pictures=pictures) for e in slices)
    return _gallery([CaseGroup("", "", shown)], labels)


def _labels(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(one["label"]) for case in cases for one in case.get("lesions") or ()})


def _gallery(groups: Sequence[CaseGroup], labels: Sequence[str]) -> Gallery:
    all_cases = [case for group in groups for case in group.cases]
    with_picture = sum(bool(case.picture) for case in all_cases)
    return Gallery(
        tuple(groups),
        tuple((label, DASHES[k % len(DASHES)]) for k, label in enumerate(labels)),
        with_picture,
        len(all_cases) - with_picture,
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

    def get(self, slice_id: str) -> tuple[str, str]:
        """Return the data URI and "", or "" and the reason why there is no picture."""
        data = self._read(f"{slice_id}.png") if NAME.fullmatch(slice_id) else None
        if data is None:
            return "", self._reason
        if not data.startswith(PNG):
            return "", "the file in private/cases is not a PNG"
        if len(data) > self._left:
            return "", "picture left out to keep this file small; see private/cases"
        self._left -= len(data)
        return "data:image/png;base64," + base64.b64encode(data).decode("ascii"), ""


def _case(
    entry: Mapping[str, Any],
    *,
    classes: Sequence[str],
    labels: Sequence[str],
    pictures: _Pictures,
) -> Case:
    slice_id = str(entry["slice_id"])
    rows, cols = int(entry["rows"]), int(entry["cols"])
    if rows < 1 or cols < 1:
        raise ValueError("rows and cols must be at least 1")
    spacing = [number(entry.get(f"spacing_{axis}_mm")) for axis in ("row", "col")]
    stretch = spacing[0] / spacing[1] if spacing[0] and spacing[1] else 1.0
    lesions = entry.get("lesions") or []
    boxes = []
    for tag, lesion in enumerate(lesions[:BOXES], 1):
        x0, y0, x1, y1 = (float(lesion[key]) for key in ("x0", "y0", "x1", "y1"))
        label = str(lesion["label"])
        score = number(lesion.get("score"))
        width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
        y, height = y0 * stretch, height * stretch
        boxes.append(Box(tag, x0, y, width, height, score, label, labels.index(label)))
    picture, no_picture = pictures.get(slice_id)
    p = entry.get("p") or {}
    return Case(
        slice_id=slice_id,
        truth=str(entry.get("truth") or ""),
        predicted=str(entry["predicted"]),
        p=tuple((name, number(p.get(name))) for name in classes if name in p),
        height=rows * stretch,
        cols=cols,
        boxes=tuple(boxes),
        more=max(0, len(lesions) - BOXES),
        picture=picture,
        no_picture=no_picture,
        place=str(entry.get("place") or ""),
    )
