"""The slice or study that a person means: by id, by the beginning of one, or by the name of a file.

Reads: OUT/predictions, OUT/studies, and OUT/private/inventory, which says where the slices are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from cctmn import store, tables
from cctmn.errors import SLICE_CODES, DataError

# Of 32; fewer would mean several slices of a large archive.
MIN_DIGITS: Final = 6
DIGITS: Final = 32
_ID: Final = re.compile(f"[0-9a-f]{{{MIN_DIGITS},{DIGITS}}}")

Row = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """The slices to show, with their rows of the predictions, and where their objects are."""

    rows: Sequence[Row]  # of a study: by falling evidence of disease
    inventory: Mapping[str, Row]  # by slice_id; the inventory may lack a slice
    study: Row | None = None  # its row of OUT/studies; None if one slice was asked for


def select(out: str, text: str, *, limit: int) -> Selection:
    """Find the slice, or the first `limit` deciding slices of the study, that `text` means.

    Raises DataError if it means none or several, or what has no score, and ResumeError if OUT has
    no inventory.
    """
    files = tables.parquet_files(store.join(store.to_uri(out), "predictions"))
    if not files:
        raise DataError("holds no predictions; score into it first", out)
    slices: list[Row] = []
    studies: list[Row] = []
    if _ID.fullmatch(text.lower()):
        digits = text.lower()
        known = tables.rows(store.join(store.to_uri(out), "studies"))
        studies = [row for row in known if row["study_key"].startswith(digits)]
        slices = _rows(files, digits)
    if not slices and not studies:
        named = _named(out, text)
        if len(named) > 1:
            raise DataError(
                f"means {len(named)} slices; add folder, ::MEMBER or #FRAME, or give a slice_id",
                text,
            )
        if not named:
            raise DataError(
                "no such slice or study; give a slice_id or study_key, the first "
                f"{MIN_DIGITS} digits of it or more, or the name of a file",
                text,
            )
        slices = _rows_of_ids(files, [named[0]["slice_id"]])
        if not slices:
            raise DataError("not scored yet; run the job again to resume", text)
    if len(slices) + len(studies) > 1:
        counts = ((len(slices), "slice"), (len(studies), "study"))
        found = " and ".join(f"{n} x {what}" for n, what in counts if n)
        raise DataError(f"means {found}; give more of its digits", text)
    if studies:
        return _of_study(out, text, studies[0], files=files, limit=limit)
    if code := slices[0]["error_code"]:
        raise DataError(
            f"has no score, code {code}: {SLICE_CODES[code][:-1].lower()}; choose a scored slice",
            text,
        )
    return Selection(slices, _located(out, slices))


def _of_study(out: str, text: str, study: Row, *, files: Sequence[str], limit: int) -> Selection:
    wanted = (study["deciding_slices"] or [])[:limit]
    if not wanted:
        raise DataError(
            "a study without a usable slice, so nothing decides; choose one of its slices", text
        )
    by_id = {row["slice_id"]: row for row in _rows_of_ids(files, wanted)}
    rows = [by_id[slice_id] for slice_id in wanted if slice_id in by_id]
    if len(rows) < len(wanted):
        raise DataError("its slices are no longer in OUT; run the job again to update it", text)
    return Selection(rows, _located(out, rows), study)


def _rows(files: Sequence[str], digits: str) -> list[Row]:
    """Return the predictions whose slice_id begins with these digits."""
    found: list[Row] = []
    for uri in files:
        ids = tables.read(uri, ["slice_id"])["slice_id"]
        begins = pc.starts_with(ids, digits)
        if pc.any(begins).as_py():
            found += tables.read(uri, None).filter(begins).to_pylist()
            if len(digits) == DIGITS:
                break
    return found


def _rows_of_ids(files: Sequence[str], wanted: Sequence[str]) -> list[Row]:
    """Return the predictions of these slices."""
    found: list[Row] = []
    values = pa.array(wanted, pa.string())
    for uri in files:
        is_wanted = pc.is_in(tables.read(uri, ["slice_id"])["slice_id"], value_set=values)
        if pc.any(is_wanted).as_py():
            found += tables.read(uri, None).filter(is_wanted).to_pylist()
            if len(found) == len(wanted):
                break
    return found


def _located(out: str, rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows of the inventory of these slices, by slice_id."""
    wanted = pa.array([row["slice_id"] for row in rows], pa.string())
    found: dict[str, Row] = {}
    for table in tables.named_inventory(out):
        part = table.filter(pc.is_in(table["slice_id"], value_set=wanted)).to_pylist()
        found |= {row["slice_id"]: row for row in part}
        if len(found) == len(rows):
            break
    return found


def _named(out: str, text: str) -> list[Row]:
    """Return the slices of this name: whole, or the name of a file or member without folders.

    A whole name takes precedence.
    """
    named, _, number = text.rpartition("#")
    options: list[tuple[str, int | None]] = [(text, None)]
    if named and number.isdigit():
        options.append((named, int(number)))
    whole: list[Row] = []
    short: list[Row] = []
    for name, frame in options:
        for row in _candidates(out, name):
            if frame is not None and row["frame"] != frame:
                continue
            place = tables.place(row["uri"], member=row["member"], frame=0)
            container, _, member = name.partition("::")
            typed = f"{store.display(store.to_uri(container))}{'::' * bool(member)}{member}"
            if place in (name, typed):
                whole.append(row)
            elif place.endswith((f"/{name}", f"::{name}")):
                short.append(row)
    return whole or short


def _candidates(out: str, name: str) -> Iterator[Row]:
    """Yield the rows of the inventory whose URI or member holds the last part of the name."""
    last = name.replace("::", "/").rpartition("/")[2]
    in_uri = pa.array([last, quote(os.fsencode(last))])
    for table in tables.named_inventory(out):
        hits = [pc.match_substring(table["member"], last)]
        hits += [pc.match_substring(table["uri"], part.as_py()) for part in in_uri]
        yield from table.filter(pc.or_(pc.or_(hits[0], hits[1]), hits[2])).to_pylist()
