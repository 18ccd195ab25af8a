"""Slices with their lesions: a picture as bytes, boxes drawn over it by the page.

In: cases of metrics.json and PNGs from `private/cases/<slice_id>.png`. Out: what the template needs
to draw each as one inline SVG in px of the original image, so that a picture may be smaller than
its slice. Pictures are embedded as they are: whoever writes them sees to it that they are grey,
small and carry no text of a header.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn.report.figures import number

PNG: Final = b"\x89PNG\r\n\x1a\n"
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")  # an id, never a path
BUDGET_BYTES: Final = 2_700_000  # of all pictures: 3.6 MB in base64, a page that still mails
BOXES: Final = 9  # tags of one digit; the rest is counted
DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "12 5", "4 2 1 2")  # px of the screen
KINDS: Final = (
    ("misses", "Misses", "what the slice shows was not called"),
    ("false_alarms", "False alarms", "what was called is not what the slice shows"),
    ("hits", "Best hits", "called right, with the highest scores"),
)


@dataclass(frozen=True)
class Box:
    """A lesion, px of the original image."""

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
    """One slice. `picture` is a data URI, "" where there is none, and `why` says why."""

    slice_id: str
    truth: str
    predicted: str
    p: tuple[tuple[str, float | None], ...]
    rows: int
    cols: int
    boxes: tuple[Box, ...]
    more: int
    picture: str
    why: str


@dataclass(frozen=True)
class Wall:
    """The cases of one kind."""

    title: str
    what: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Gallery:
    """All walls, and the lesion labels in the order of their dashes."""

    walls: tuple[Wall, ...]
    labels: tuple[tuple[str, str], ...]  # label, dashes
    pictures: int
    missing: int


def build(
    cases: Mapping[str, Any], *, classes: Sequence[str], read: Callable[[str], bytes | None]
) -> Gallery:
    """The gallery; `read` gives the PNG of a file name, None where there is none."""
    found = [
        lesion["label"]
        for kind, _, _ in KINDS
        for case in cases.get(kind) or ()
        for lesion in case.get("lesions") or ()
    ]
    labels = sorted({str(label) for label in found})
    pictures = _Pictures(read)
    walls = []
    for kind, title, what in KINDS:
        entries = cases.get(kind)
        if entries:
            shown = tuple(
                _case(e, classes=classes, labels=labels, pictures=pictures) for e in entries
            )
            walls.append(Wall(title, what, shown))
    all_cases = [case for wall in walls for case in wall.cases]
    with_picture = sum(bool(case.picture) for case in all_cases)
    return Gallery(
        tuple(walls),
        tuple((label, DASHES[k % len(DASHES)]) for k, label in enumerate(labels)),
        with_picture,
        len(all_cases) - with_picture,
    )


class _Pictures:
    """Data URIs by slice, until the budget is spent."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._left = BUDGET_BYTES

    def get(self, slice_id: str) -> tuple[str, str]:
        """Data URI, or "" and the reason."""
        data = self._read(f"{slice_id}.png") if NAME.fullmatch(slice_id) else None
        if data is None:
            return "", "no picture in private/cases"
        if not data.startswith(PNG):
            return "", "the file in private/cases is no PNG"
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
        raise ValueError("a picture without pixels")
    lesions = entry.get("lesions") or []
    boxes = []
    for tag, lesion in enumerate(lesions[:BOXES], 1):
        x0, y0, x1, y1 = (float(lesion[key]) for key in ("x0", "y0", "x1", "y1"))
        label = str(lesion["label"])
        score = number(lesion.get("score"))
        width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
        boxes.append(Box(tag, x0, y0, width, height, score, label, labels.index(label)))
    picture, why = pictures.get(slice_id)
    p = entry.get("p") or {}
    return Case(
        slice_id=slice_id,
        truth=str(entry["truth"]),
        predicted=str(entry["predicted"]),
        p=tuple((name, number(p.get(name))) for name in classes if name in p),
        rows=rows,
        cols=cols,
        boxes=tuple(boxes),
        more=max(0, len(lesions) - BOXES),
        picture=picture,
        why=why,
    )
