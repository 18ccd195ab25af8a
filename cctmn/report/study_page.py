"""What the page of one study shows: its class, why, the slices that decide, and its series.

Reads: a line of the worklist and the rows of the study.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from cctmn import schema
from cctmn.classes import CONTROL
from cctmn.errors import SLICE_CODES, state_of
from cctmn.metrics.metric import number
from cctmn.metrics.patients import PatientRule
from cctmn.read.preview import Preview
from cctmn.report import gallery, profile
from cctmn.report.archive import SCANNER, ScoredArchive
from cctmn.report.numbers import decimal_text, percent_text
from cctmn.report.study_slices import StudyRows, StudySlice, is_slice
from cctmn.report.worklist import WorklistRow

TEMPLATE: Final = "study.html.j2"
# Deciding slices with a line or a picture; a fitted rule may ask for more.
SHOWN_SLICES: Final = 12
# Lesions described per slice, those of the highest scores.
SHOWN_LESIONS: Final = 3


@dataclass(frozen=True)
class DecidingSlice:
    """One of the slices that decide, strongest first."""

    slice_id: str
    z_mm: float | None
    p_disease: float | None
    p: tuple[float | None, ...]  # by class
    predicted: str
    num_lesions: int
    lesions: tuple[str, ...]  # the first ones in words
    flags: tuple[str, ...]


@dataclass(frozen=True)
class SeriesLine:
    """One series of a study."""

    key: str
    is_chosen: bool
    num_slices: int
    num_usable: int
    num_abstained: int
    num_errors: int
    low_mm: float | None
    high_mm: float | None
    distance_mm: float | None
    scanner: tuple[str, ...]  # the values of SCANNER that are known


def context(
    archive: ScoredArchive,
    row: WorklistRow,
    rows: StudyRows,
    *,
    rule: PatientRule,
    previews: Mapping[str, Preview] | None,
) -> dict[str, Any]:
    """Return what the template shows; with `previews`, by slice_id, the slices are drawn."""
    deciding = list(row.study.get("deciding_slices") or ())
    chosen = row.study.get("series_key") or ""
    of_series = [one for one in rows.slices if one.series == chosen]
    full = [rows.deciding[one] for one in deciding if one in rows.deciding]
    by_id = {one.slice_id: one for one in of_series}
    shown = [_deciding(one, by_id, archive.classes) for one in full[:SHOWN_SLICES]]
    return {
        "row": row,
        "study": row.study,
        "why": list(_why(archive, row, [by_id[one] for one in deciding if one in by_id], rule)),
        "deciding": shown,
        "num_deciding": len(deciding),
        "profile": profile.draw(of_series, deciding=deciding)
        if row.study.get("num_used")
        else None,
        "series": _series(rows.slices, chosen=chosen),
        "flags": [(name, n, schema.FLAGS.get(name, "")) for name, n in rows.flags.most_common()],
        "codes": [
            (code, state_of(code).replace("_", " "), n, SLICE_CODES.get(code, ""))
            for code, n in rows.codes.most_common()
        ],
        "gallery": None
        if previews is None
        else _gallery(full[:SHOWN_SLICES], archive.classes, previews),
    }


def _why(
    archive: ScoredArchive, row: WorklistRow, deciding: Sequence[StudySlice], rule: PatientRule
) -> Iterator[str]:
    """Yield the sentences that say how the answer came about."""
    if not row.study.get("num_used"):
        yield "The study has no answer, for none of its slices has scores that can be used."
        return
    if not archive.classes:
        yield "The model detects lesions and knows no classes, so there is no class of the study."
        return
    if CONTROL not in archive.classes:
        yield "The model has no class without disease; it tells diseases apart by all used slices."
        return
    known = [one.p_disease for one in deciding if math.isfinite(one.p_disease)]
    yield (
        f"The {rule.top_m:,} slices with the strongest evidence of disease decide, however many "
        "others are clean."
    )
    if known:
        mean = percent_text(sum(known) / len(known))
        yield (
            f"Here they are {len(known):,} of {int(row.study['num_used']):,} used slices, and "
            f"their mean evidence is {mean} %."
        )
    if (rule.intercept, rule.slope) != (0.0, 1.0):
        yield (
            f"The fitted rule of the model makes {percent_text(row.p_disease)} % of it, the "
            f"probability of any disease: sigmoid({decimal_text(rule.intercept, 2)} + "
            f"{decimal_text(rule.slope, 2)} × logit of the mean evidence)."
        )
    if row.p_disease is not None and row.p_disease >= 0.5:
        yield "All diseases together have at least 50 %, so the likeliest disease is the class."
    else:
        yield "All diseases together have less than 50 %, so the class is control."


def _deciding(
    row: Mapping[str, Any], by_id: Mapping[str, StudySlice], classes: Sequence[str]
) -> DecidingSlice:
    known = by_id.get(row["slice_id"])
    lesions = row.get("lesions") or []
    return DecidingSlice(
        slice_id=row["slice_id"],
        z_mm=number(row.get("slice_z_mm")),
        p_disease=number(known.p_disease) if known else None,
        p=tuple(number(row.get(f"p_{name}")) for name in classes),
        predicted=row.get("pred_class") or "",
        num_lesions=len(lesions),
        lesions=tuple(lesion_text(one, row) for one in lesions[:SHOWN_LESIONS]),
        flags=tuple(row.get("flags") or ()),
    )


def lesion_text(lesion: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return label, score and size of a lesion; in mm where the slice has a scale, else in px."""
    of_row, of_col = number(row.get("spacing_row_mm")), number(row.get("spacing_col_mm"))
    has_scale = of_row is not None and of_col is not None
    scale_x, scale_y = (of_col or 1.0, of_row or 1.0) if has_scale else (1.0, 1.0)
    unit, digits = ("mm", 0) if has_scale else ("px", 0)
    width = decimal_text((lesion["x1"] - lesion["x0"]) * scale_x, digits)
    height = decimal_text((lesion["y1"] - lesion["y0"]) * scale_y, digits)
    text = f"{lesion['label']} {lesion['score']:.2f}, {width} × {height} {unit}"
    if lesion.get("mask_px") is None:
        return text
    return f"{text}, {decimal_text(lesion['mask_px'] * scale_x * scale_y, digits)} {unit}²"


def _series(slices: Sequence[StudySlice], *, chosen: str) -> list[SeriesLine]:
    """Return the series with CT slices, the chosen one first, then those of most slices."""
    by_series: dict[str, list[StudySlice]] = {}
    for one in slices:
        if is_slice(one):
            by_series.setdefault(one.series, []).append(one)
    lines = [_series_line(key, rows, chosen=chosen) for key, rows in by_series.items()]
    return sorted(lines, key=lambda line: (not line.is_chosen, -line.num_slices, line.key))


def _series_line(key: str, rows: Sequence[StudySlice], *, chosen: str) -> SeriesLine:
    z = sorted({round(one.z_mm, 2) for one in rows if math.isfinite(one.z_mm)})
    usable = [one for one in rows if not one.code and not one.abstained]
    scanner = next((one.scanner for one in rows if any(one.scanner)), ())
    units = {"slice_thickness_mm": " mm", "tube_voltage_kv": " kV"}
    return SeriesLine(
        key=key,
        is_chosen=bool(usable) and key == chosen,
        num_slices=len(rows),
        num_usable=len(usable),
        num_abstained=sum(one.abstained and not one.code for one in rows),
        num_errors=sum(bool(one.code) for one in rows),
        low_mm=z[0] if z else None,
        high_mm=z[-1] if z else None,
        distance_mm=median([b - a for a, b in pairwise(z)]) if len(z) > 1 else None,
        scanner=tuple(
            f"{value:g}{units.get(name, '')}" if isinstance(value, float) else str(value)
            for name, value in zip(SCANNER, scanner, strict=False)
            if value not in (None, "")
        ),
    )


def _gallery(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], previews: Mapping[str, Preview]
) -> gallery.Gallery:
    shared = ("spacing_row_mm", "spacing_col_mm", "slice_z_mm", "flags", "lesions")
    entries = [
        {
            **{name: row.get(name) for name in shared},
            "slice_id": row["slice_id"],
            "rows": row["rows"],
            "cols": row["cols"],
            "predicted": row.get("pred_class") or "",
            "p": {name: number(row.get(f"p_{name}")) for name in classes},
        }
        for row in rows
    ]
    for entry in entries:
        if preview := previews.get(entry["slice_id"]):
            entry["display"] = preview.as_json()
    pngs = {f"{slice_id}.png": preview.png for slice_id, preview in previews.items()}
    return gallery.of_study(entries, classes=classes, read=pngs.get)
