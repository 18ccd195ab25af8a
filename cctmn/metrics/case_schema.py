"""The section `cases` of metrics.json: slices and patients to look at, and how each is drawn.

It names nobody: ids are keyed, and a position is a height in the scanner. Everything that older
versions did not write is optional.
"""

from __future__ import annotations

from typing import Final

from cctmn.metrics.json_schema import (
    COUNT,
    NUMBER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    object_of,
)

# Lists of the section `cases`.
CASE_LISTS: Final = ("misses", "false_alarms", "hits", "lowest_ap", "false_boxes")
PATIENT_LISTS: Final = ("missed_patients", "false_alarm_patients")

_LESION: Final = object_of(
    "A detected lesion: box in px of the original image, score 0..1, class.",
    {name: {"type": "number"} for name in ("x0", "y0", "x1", "y1", "score")} | {"label": TEXT},
)
_TRUE_LESION: Final = object_of(
    "A true lesion: box in px of the original image, class, and the edge of its mask as SVG path "
    "data in px.",
    {name: {"type": "number"} for name in ("x0", "y0", "x1", "y1")}
    | {"label": TEXT, "outline": {"type": "string", "pattern": r"^[MHV0-9 ]*$"}},
)
_DISPLAY: Final = object_of(
    "How the picture shows the stored image: transposed first, then flipped; whether the sides of "
    "the patient are known; the window in HU, null for a picture without HU.",
    {name: {"type": "boolean"} for name in ("transpose", "flip_rows", "flip_cols", "is_oriented")}
    | {"window_center_hu": NUMBER_OR_NULL, "window_width_hu": NUMBER_OR_NULL},
)
_P: Final = {"type": "object", "additionalProperties": {"type": "number"}}
_OF_CASE: Final = {
    "slice_id": TEXT,
    "patient_key": TEXT_OR_NULL,
    "slice_z_mm": NUMBER_OR_NULL,
    "truth": TEXT,
    "predicted": TEXT,
    "p": _P,
    "rows": COUNT,
    "cols": COUNT,
    "spacing_row_mm": NUMBER_OR_NULL,
    "spacing_col_mm": NUMBER_OR_NULL,
    "flags": TEXTS,
    "lesions": {"type": "array", "items": _LESION},
    "true_lesions": {"type": "array", "items": _TRUE_LESION},
    "ap50": {"description": "Published AP of the image at an IoU of 0.5.", "type": "number"},
    "missed": {"description": "True lesions that were not detected.", **COUNT},
    "false_boxes": {"description": "Detections that are no true lesion.", **COUNT},
    "display": _DISPLAY,
}
_CASE: Final = object_of(
    "A slice of the gallery.",
    _OF_CASE,
    optional=tuple(n for n in _OF_CASE if n not in ("slice_id", "rows", "cols", "lesions")),
)
_CASES: Final = {"type": "array", "items": _CASE}
_PATIENT_CASES: Final = {
    "type": "array",
    "items": object_of(
        "A patient, the number of slices that decided, and the first of them.",
        {
            "patient_key": TEXT_OR_NULL,
            "truth": TEXT,
            "predicted": TEXT,
            "p": _P,
            "deciding": COUNT,
            "slices": _CASES,
        },
    ),
}
CASES: Final = object_of(
    "Slices of the gallery, at most one per patient in each list: by class, by lesion masks, "
    "and the slices that decided about patients.",
    dict.fromkeys(CASE_LISTS, _CASES) | dict.fromkeys(PATIENT_LISTS, _PATIENT_CASES),
    optional=CASE_LISTS + PATIENT_LISTS,
)
