"""The slices of some studies, read again from the files in which they lie.

Studies are read in batches in the order of their files, so that a file is read once or twice
however many studies have a page, and memory does not grow with the archive.

Reads: OUT/predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cctmn import rle, tables
from cctmn.errors import state_of
from cctmn.report.archive import (
    SCANNER,
    Census,
    ScoredArchive,
    floats,
    probabilities_of,
    probability_of_disease,
    values,
)

# Slices of one batch of studies, some 50 MB.
BATCH_SLICES: Final = 100_000
_COLUMNS: Final = (
    "slice_id",
    "study_key",
    "series_key",
    "slice_z_mm",
    "rows",
    "cols",
    "spacing_row_mm",
    "spacing_col_mm",
    "pred_class",
    "num_lesions",
    "lesions",
    "lesion_masks",
    "flags",
    "abstained",
    "error_code",
    *SCANNER,
)


@dataclass(frozen=True, slots=True)
class StudySlice:
    """One row of a study."""

    slice_id: str
    series: str  # keyed pseudonym, "" for none
    z_mm: float  # NaN if unknown
    p_disease: float  # NaN without a score
    num_lesions: int
    area_mm2: float  # of all lesions together; NaN without masks or spacing
    abstained: bool
    code: str  # error code, "" for a scored slice
    scanner: tuple[Any, ...]  # values of SCANNER


@dataclass
class StudyRows:
    """The rows of one study: all its slices, and its deciding slices in full by slice_id."""

    slices: list[StudySlice] = field(default_factory=list)
    deciding: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)  # of scored slices
    codes: Counter[str] = field(default_factory=Counter)


def batches(
    archive: ScoredArchive, census: Census, studies: Sequence[Mapping[str, Any]], *, most: int
) -> Iterator[dict[str, StudyRows]]:
    """Yield the rows of the studies, at most `most` studies at a time, by study key."""
    in_order = sorted(studies, key=lambda study: census.files_of.get(study["study_key"], [0]))
    batch: list[Mapping[str, Any]] = []
    slices = 0
    for study in in_order:
        number = census.slices_of[study["study_key"]]
        if batch and (slices + number > BATCH_SLICES or len(batch) >= most):
            yield _read(archive, census, batch)
            batch, slices = [], 0
        batch.append(study)
        slices += number
    if batch:
        yield _read(archive, census, batch)


def _read(
    archive: ScoredArchive, census: Census, studies: Sequence[Mapping[str, Any]]
) -> dict[str, StudyRows]:
    keys = [study["study_key"] for study in studies]
    deciding = {one for study in studies for one in study.get("deciding_slices") or ()}
    known = {key: StudyRows() for key in keys}
    columns = [*_COLUMNS, *(f"p_{name}" for name in archive.classes)]
    for number in sorted({n for key in keys for n in census.files_of.get(key, ())}):
        table = tables.read_present(archive.files[number], columns)
        table = table.filter(pc.is_in(table["study_key"], value_set=pa.array(keys)))
        _add(known, table, classes=archive.classes, deciding=deciding)
    return known


def _add(
    known: dict[str, StudyRows], table: pa.Table, *, classes: Sequence[str], deciding: set[str]
) -> None:
    p_disease = probability_of_disease(probabilities_of(table, classes), classes)
    columns = zip(
        values(table, "study_key"),
        values(table, "slice_id"),
        values(table, "series_key"),
        floats(table, "slice_z_mm").tolist(),
        p_disease.tolist(),
        values(table, "num_lesions"),
        _areas_mm2(table),
        values(table, "abstained"),
        values(table, "error_code"),
        values(table, "flags"),
        zip(*(values(table, name) for name in SCANNER), strict=True),
        strict=True,
    )
    for study, id_, series, z, p, lesions, area, abstained, code, flags, scanner in columns:
        rows = known[study]
        rows.slices.append(
            StudySlice(
                slice_id=id_,
                series=series or "",
                z_mm=z,
                p_disease=p,
                num_lesions=lesions or 0,
                area_mm2=area,
                abstained=bool(abstained),
                code=code or "",
                scanner=scanner,
            )
        )
        if code:
            rows.codes[code] += 1
        else:
            rows.flags.update(flags or ())
    if deciding:
        chosen = table.filter(pc.is_in(table["slice_id"], value_set=pa.array(sorted(deciding))))
        for row in chosen.to_pylist():
            known[row["study_key"]].deciding[row["slice_id"]] = row


def _areas_mm2(table: pa.Table) -> list[float]:
    """Return the area of each slice's lesions, where lesions overlap counted once."""
    nan = float("nan")
    if "lesion_masks" not in table.column_names:
        return [nan] * len(table)
    pixel_mm2 = floats(table, "spacing_row_mm") * floats(table, "spacing_col_mm")
    columns = (values(table, name) for name in ("lesion_masks", "rows", "cols", "error_code"))
    return [
        nan if code else pixel * (rle.union_px(masks, size=(rows, cols)) if masks else 0)
        for masks, rows, cols, code, pixel in zip(*columns, pixel_mm2.tolist(), strict=True)
    ]


def is_slice(one: StudySlice) -> bool:
    """Return whether a row is a CT slice, scored or not, and not an object that is passed over."""
    return state_of(one.code) != "passed_over"
