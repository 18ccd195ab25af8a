"""One slice of a gallery as the page draws it: the turned picture, boxes, truth, marks and words.

Boxes and outlines of metrics.json are in px of the stored image. The picture is turned to the usual
display, and boxes and outlines follow it. A unit of the drawing is the width of a shown pixel; if
the distances of rows and columns are known, the drawing is square in mm.

Reads: an entry of the section `cases` of metrics.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cctmn.contract import InputContract
from cctmn.metrics.metric import DRAWN_SCORE, number, whole
from cctmn.read.geometry import Affine, Turn
from cctmn.report.numbers import decimal_text
from cctmn.view.draw import scale_bar_px
from cctmn.view.page import turn_note, window_text

# Lesions in the table below a picture, those of the highest scores. Further ones are counted.
LISTED: Final = 30
_TURN: Final = ("transpose", "flip_rows", "flip_cols")
_PATH: Final = re.compile(r"[MHV0-9 ]*")


@dataclass(frozen=True)
class Box:
    """A lesion that the model detected, in units of the drawing."""

    tag: int
    x: float
    y: float
    width: float
    height: float
    score: float | None
    label: str
    style: int  # index of its label: colour and dashes


@dataclass(frozen=True)
class ListedLesion:
    """A detected lesion that is not drawn."""

    label: str
    score: float | None
    size: str


@dataclass(frozen=True)
class TrueLesion:
    """A lesion that a person drew: its label, and its edge as SVG path data in stored px."""

    label: str
    outline: str


@dataclass(frozen=True)
class Case:
    """One slice. `picture` is a data URI; if it is "", `no_picture` gives the reason.

    `truth` is "" where it is not known, `true_lesions` None where there are no masks, and
    `scale_bar` None where the spacing is not known.
    """

    slice_id: str
    patient_key: str
    truth: str
    predicted: str
    p: tuple[tuple[str, float | None], ...]
    width: float
    height: float
    boxes: tuple[Box, ...]
    listed: tuple[ListedLesion, ...]
    more: int  # lesions that are neither drawn nor listed
    true_lesions: tuple[TrueLesion, ...] | None
    transform: str  # SVG matrix from stored px to the drawing
    is_oriented: bool
    scale_bar: float | None
    place: str
    window: str
    note: str
    flags: tuple[str, ...]
    outcome: str  # how the detected lesions compare with the true ones
    picture: str
    no_picture: str

    @property
    def true_labels(self) -> tuple[tuple[str, int], ...]:
        """The labels of the true lesions, and how many each has."""
        labels = [one.label for one in self.true_lesions or ()]
        return tuple((label, labels.count(label)) for label in sorted(set(labels)))


@dataclass(frozen=True)
class _Frame:
    """Where stored px lie in the drawing."""

    to_shown: Affine
    stretch: float  # height of a shown row in widths of a shown column
    width: float
    height: float
    mm_per_unit: float | None

    def box(self, lesion: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """Return left edge, top edge, width and height of a lesion in the drawing."""
        corners = np.array([[float(lesion[key]) for key in ("x0", "y0", "x1", "y1")]])
        x0, y0, x1, y1 = map(float, self.to_shown.boxes(corners)[0])
        return x0, y0 * self.stretch, x1 - x0, (y1 - y0) * self.stretch

    def transform(self) -> str:
        """Return the way of stored px into the drawing as an SVG matrix."""
        to = self.to_shown
        values = (
            *(to.xx, to.yx * self.stretch, to.xy),
            *(to.yy * self.stretch, to.x0, to.y0 * self.stretch),
        )
        return f"matrix({' '.join(f'{value + 0.0:.6g}' for value in values)})"


def build(
    entry: Mapping[str, Any],
    *,
    classes: Sequence[str],
    labels: Sequence[str],
    picture: tuple[str, str],
) -> Case:
    """Build a slice; `picture` is its data URI, or "" and the reason.

    Raises ValueError, TypeError or KeyError for an entry that is malformed.
    """
    display = entry.get("display") or {}
    turn = Turn(*(bool(display.get(name)) for name in _TURN))
    frame = _frame(entry, turn)
    lesions = list(entry.get("lesions") or ())
    is_drawn = [_is_drawn(lesion) for lesion in lesions]
    drawn = [lesion for lesion, is_drawn_ in zip(lesions, is_drawn, strict=True) if is_drawn_]
    others = [lesion for lesion, is_drawn_ in zip(lesions, is_drawn, strict=True) if not is_drawn_]
    true_lesions = entry.get("true_lesions")
    p = entry.get("p") or {}
    window = _window(display)
    is_oriented = bool(display.get("is_oriented"))
    z_mm = number(entry.get("slice_z_mm"))
    return Case(
        slice_id=str(entry["slice_id"]),
        patient_key=str(entry.get("patient_key") or ""),
        truth=str(entry.get("truth") or ""),
        predicted=str(entry.get("predicted") or ""),
        p=tuple((name, number(p.get(name))) for name in classes if name in p),
        width=frame.width,
        height=frame.height,
        boxes=tuple(
            _box(tag, lesion, frame=frame, labels=labels) for tag, lesion in enumerate(drawn, 1)
        ),
        listed=tuple(_listed(lesion, frame) for lesion in others[:LISTED]),
        more=max(0, len(others) - LISTED),
        true_lesions=None if true_lesions is None else tuple(map(_true_lesion, true_lesions)),
        transform=frame.transform(),
        is_oriented=is_oriented,
        scale_bar=scale_bar_px(frame.width, frame.mm_per_unit),
        place="" if z_mm is None else f"z {decimal_text(z_mm)} mm",
        window=window_text(window) if display else "",
        note=turn_note(turn, is_unknown=window is not None and not is_oriented),
        flags=tuple(map(str, entry.get("flags") or ())),
        outcome=_outcome(entry),
        picture=picture[0],
        no_picture=picture[1],
    )


def _frame(entry: Mapping[str, Any], turn: Turn) -> _Frame:
    rows, cols = int(entry["rows"]), int(entry["cols"])
    if rows < 1 or cols < 1:
        raise ValueError("rows and cols must be at least 1")
    spacing = [number(entry.get(f"spacing_{axis}_mm")) for axis in ("row", "col")]
    shown_rows, shown_cols = (cols, rows) if turn.transpose else (rows, cols)
    down_mm, across_mm = reversed(spacing) if turn.transpose else spacing
    stretch = down_mm / across_mm if down_mm and across_mm else 1.0
    to_stored = Affine.from_turn_and_scale(turn, scale_row=1, scale_col=1, rows=rows, cols=cols)
    return _Frame(
        to_stored.inverse(), stretch, float(shown_cols), shown_rows * stretch, across_mm or None
    )


def _is_drawn(lesion: Mapping[str, Any]) -> bool:
    score = number(lesion.get("score"))
    return score is None or score >= DRAWN_SCORE


def _box(tag: int, lesion: Mapping[str, Any], *, frame: _Frame, labels: Sequence[str]) -> Box:
    x, y, width, height = frame.box(lesion)
    label = str(lesion["label"])
    score = number(lesion.get("score"))
    return Box(tag, x, y, max(0.0, width), max(0.0, height), score, label, labels.index(label))


def _listed(lesion: Mapping[str, Any], frame: _Frame) -> ListedLesion:
    _, _, width, height = frame.box(lesion)
    scale, unit = (frame.mm_per_unit, "mm") if frame.mm_per_unit else (1.0, "px")
    size = f"{decimal_text(width * scale, 0)} × {decimal_text(height * scale, 0)} {unit}"
    return ListedLesion(str(lesion["label"]), number(lesion.get("score")), size)


def _true_lesion(lesion: Mapping[str, Any]) -> TrueLesion:
    outline = str(lesion["outline"])
    if not _PATH.fullmatch(outline):
        raise ValueError("an outline is not path data")
    return TrueLesion(str(lesion["label"]), outline)


def _window(display: Mapping[str, Any]) -> InputContract | None:
    """Return the window of a slice in HU; None for a picture, or where it is not known."""
    center, width = (number(display.get(f"window_{name}_hu")) for name in ("center", "width"))
    if center is None or width is None:
        return None
    return InputContract(window_center_hu=center, window_width_hu=width)


def _outcome(entry: Mapping[str, Any]) -> str:
    ap50, missed, false = (
        number(entry.get("ap50")),
        whole(entry.get("missed")),
        whole(entry.get("false_boxes")),
    )
    if ap50 is None or missed is None or false is None:
        return ""
    true_lesions = entry.get("true_lesions")
    of = "" if true_lesions is None else f" of {len(true_lesions)}"
    return f"AP {ap50:.2f}, {missed}{of} missed, {false} false"
