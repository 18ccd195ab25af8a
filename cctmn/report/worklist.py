"""The worklist: one line per study, those that are likeliest sick first.

A study without an answer comes last, and a note says why it has none.

Reads: rows of OUT/studies.
Writes: the worklist as values for pages, as CSV for a spreadsheet, and as text for a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from cctmn.classes import CONTROL
from cctmn.data.labels import to_bytes
from cctmn.report.gallery import NAME
from cctmn.report.numbers import DASH, percent_text, short_key

# Lines of the worklist on one page: a browser shows them at once, also on a phone.
PAGE_ROWS: Final = 500
FIRST_PAGE: Final = "worklist.html"
# Columns of the CSV that are copied from the studies table.
_COPIED: Final = (
    ("num_lesions", pa.int64()),
    ("lesion_area_mm2", pa.float64()),
    ("lesion_volume_ml", pa.float64()),
    ("num_used", pa.int64()),
    ("num_slices", pa.int64()),
    ("num_abstained", pa.int64()),
    ("num_errors", pa.int64()),
    ("num_series", pa.int64()),
    ("series_key", pa.string()),
    ("series_reason", pa.string()),
)


@dataclass(frozen=True)
class WorklistRow:
    """One study of the worklist."""

    rank: int  # from 1
    study: Mapping[str, Any]  # its row of OUT/studies
    p_disease: float | None  # of any disease; None without an answer
    p: tuple[tuple[str, float | None], ...]  # class and probability
    notes: tuple[str, ...]
    has_page: bool

    @property
    def key(self) -> str:
        """The keyed pseudonym of the study."""
        return str(self.study["study_key"])

    @property
    def predicted(self) -> str | None:
        """The class of the study, None without an answer."""
        name: str | None = self.study.get("pred_class")
        return name

    @property
    def flags(self) -> list[str]:
        """The flags of the scored slices of the study."""
        return list(self.study.get("flags") or ())


def build(
    studies: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    *,
    top_m: int,
    pages: int | None,
) -> list[WorklistRow]:
    """Return the worklist; the first `pages` studies have a page of their own (None: all).

    Without a class "control" the probability of the study's class ranks it, and for a detector
    the number of lesions.
    """

    def order(study: Mapping[str, Any]) -> tuple[bool, float, str]:
        value = _disease(study, classes) if classes else float(study.get("num_lesions") or 0)
        return value is None, -(value or 0.0), str(study["study_key"])

    ranked = sorted(studies, key=order)
    return [
        WorklistRow(
            rank=rank,
            study=study,
            p_disease=_disease(study, classes),
            p=tuple((name, study.get(f"p_{name}")) for name in classes),
            notes=tuple(notes(study, classes, top_m=top_m)),
            has_page=(pages is None or rank <= pages) and bool(NAME.fullmatch(study["study_key"])),
        )
        for rank, study in enumerate(ranked, 1)
    ]


def notes(study: Mapping[str, Any], classes: Sequence[str], *, top_m: int) -> Iterator[str]:
    """Yield what a reader of the study's line must know, one phrase each."""
    slices, used = _whole(study, "num_slices"), _whole(study, "num_used")
    abstained, errors = _whole(study, "num_abstained"), _whole(study, "num_errors")
    if used == 0:
        if slices == 0:
            yield "no answer: the study holds no CT slice to score"
        elif errors == slices:
            yield "no answer: no slice could be scored"
        elif abstained == slices:
            yield "no answer: all slices abstained"
        else:
            yield f"no answer: {_of_slices(errors, 'not scored')}, {abstained:,} abstained"
        return
    if classes and used < top_m:
        yield f"decided by {used:,} {'slice' if used == 1 else 'slices'} where {top_m:,} should"
    if errors:
        yield _of_slices(errors, "not scored")
    if abstained:
        yield _of_slices(abstained, "abstained")
    if (number := _whole(study, "patient_studies")) > 1:
        yield f"the patient has {number:,} studies"


def page_name(number: int) -> str:
    """Return the file name of a page of the worklist, counted from 1."""
    return FIRST_PAGE if number == 1 else f"worklist-{number}.html"


def page_of(rank: int) -> int:
    """Return the page, counted from 1, that shows the study of a rank."""
    return (rank - 1) // PAGE_ROWS + 1


def to_csv(rows: Sequence[WorklistRow], classes: Sequence[str]) -> bytes:
    """Return the whole worklist as CSV, with full keys; no text in it is a formula."""
    columns: dict[str, pa.Array] = {
        "rank": pa.array([row.rank for row in rows], pa.int64()),
        "study_key": pa.array([row.key for row in rows], pa.string()),
        "patient_key": pa.array([row.study.get("patient_key") for row in rows], pa.string()),
        "pred_class": pa.array([row.predicted for row in rows], pa.string()),
        "p_disease": pa.array([row.p_disease for row in rows], pa.float64()),
    }
    for index, name in enumerate(classes):
        columns[f"p_{name}"] = pa.array([row.p[index][1] for row in rows], pa.float64())
    for name, kind in _COPIED:
        columns[name] = pa.array([row.study.get(name) for row in rows], kind)
    columns["flags"] = pa.array([" ".join(row.flags) for row in rows], pa.string())
    columns["notes"] = pa.array(["; ".join(row.notes) for row in rows], pa.string())
    return to_bytes(pa.table(columns), parquet=False)


def to_text(rows: Sequence[WorklistRow], *, limit: int) -> str:
    """Return the first lines of the worklist for a terminal."""
    lines = ["rank  study      class      disease, %  lesions  slices used  notes"]
    lines += [
        f"{row.rank:>4}  {short_key(row.key):<9}  {row.predicted or DASH:<9}  "
        f"{percent_text(row.p_disease):>10}  {_whole(row.study, 'num_lesions'):>7,}  "
        f"{_whole(row.study, 'num_used'):>11,}  {'; '.join(row.notes)}".rstrip()
        for row in rows[:limit]
    ]
    return "\n".join(lines)


def _disease(study: Mapping[str, Any], classes: Sequence[str]) -> float | None:
    p = [study.get(f"p_{name}") for name in classes]
    known = [value for value in p if value is not None]
    if len(known) < len(classes) or not known:
        return None
    return 1 - known[classes.index(CONTROL)] if CONTROL in classes else max(known)


def _whole(study: Mapping[str, Any], name: str) -> int:
    return int(study.get(name) or 0)


def _of_slices(number: int, verb: str) -> str:
    return f"{number:,} {'slice' if number == 1 else 'slices'} {verb}"
