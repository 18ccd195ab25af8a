"""Names, classes and split files of the COVIDx-CT data set.

The same slice has two names: COVIDx-CT calls it Normal_1728_1013_0023.png and the author's lists
call it 0_1728_1013_0023.png. Both have one key here.

Reads: split files, one `NAME CLASS [box]` or `NAME` per line, local or on S3.
Returns: slices with class, patient, scan and the box of the body.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.files import read_text, stem
from cctmn.errors import DataError

# Synonyms of each class: cctmn's name, the prefix in COVIDx-CT, the folder in iCTCF.
_SYNONYMS: Final = (("control", "normal", "nct"), ("pneumonia", "cp"), ("covid", "ncp", "pct"))
BOX_COLUMNS: Final = 4
_NAME: Final = re.compile(r"(\d|normal|cp|ncp)_([^_]+)_([^_]+)_([^_]+)", re.IGNORECASE)


class SplitLine(NamedTuple):
    """A line of a split file: a slice, wherever its image is."""

    name: str
    # the same for Normal_1728_1013_0023.png and 0_1728_1013_0023.png
    key: str
    label: int
    patient: str
    scan: str
    # box x0 y0 x1 y1 of the body, px; empty if not given
    body: tuple[int, ...]


class SliceName(NamedTuple):
    """The parts of a name CLASS_PATIENT_SCAN_SLICE."""

    label: str
    patient: str
    scan: str
    key: str


def read_split(split: str, *, classes: tuple[str, ...]) -> tuple[SplitLine, ...]:
    """Read a split file whose lines are `NAME CLASS [box]`, or names that contain the class.

    CLASS and digits are those of COVIDx-CT, whatever the order of `classes`. Raises DataError for a
    line without a class, with another class than its name, or with a slice that is listed before.
    """
    lines: dict[str, SplitLine] = {}
    for number, text in enumerate(read_text(split).splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{split} line {number}"
        name, *columns = text.split()
        named = parse_name(name)
        label = _covidx_class(columns[0]) if columns else named.label if named else ""
        if not label:
            raise DataError("a slice has no class; write NAME CLASS", where, name)
        if named and named.label != label:
            raise DataError(f"a slice is listed as {label}; correct the line", where, name)
        key = named.key if named else stem(name)
        if key in lines:
            raise DataError("a slice is listed before; keep one line per slice", where, name)
        index = class_index(label, where=f"{where}, {name}", classes=classes)
        patient, scan = (named.patient, named.scan) if named else ("", "")
        body = _body(columns[1:], where=f"{where}, {name}")
        lines[key] = SplitLine(name, key, index, patient, scan, body)
    if not lines:
        raise DataError("holds no name; write one name per line", split)
    return tuple(lines.values())


def parse_name(name: str) -> SliceName | None:
    """Return the parts of a name of COVIDx-CT or of the author's lists; None for any other name."""
    match = _NAME.fullmatch(stem(name))
    if match is None:
        return None
    label, patient, scan, number = match.groups()
    label = _covidx_class(label)
    # Patient numbers of COVIDx-CT v1 are unique over its classes, so the number alone identifies
    # the patient. Should another set use a number twice, its splits are refused and not mixed.
    return SliceName(label, patient, scan, f"{label}_{patient}_{scan}_{number}")


def find_class(label: str, classes: tuple[str, ...]) -> int | None:
    """Return the index of the class with this name or synonym, or None."""
    label = label.lower()
    same = next((names for names in _SYNONYMS if label in names), (label,))
    return next((i for i, name in enumerate(classes) if name.lower() in same), None)


def class_index(label: str, *, where: str, classes: tuple[str, ...], numbers: bool = False) -> int:
    """Return the index of the class with this name or synonym; with `numbers`, of this index too.

    Raises DataError, which begins with `where`, if the label is not one of the classes.
    """
    if numbers and label.isascii() and label.isdigit() and int(label) < len(classes):
        return int(label)
    index = find_class(label, classes)
    if index is None:
        raise DataError(
            f"label {label!r} is none of the classes {', '.join(classes)}; set the classes "
            "or leave the slice out",
            where,
        )
    return index


def _covidx_class(label: str) -> str:
    """Return cctmn's name of a class of COVIDx-CT given by digit or prefix; others unchanged."""
    if label in ("0", "1", "2"):
        return COVIDX_CLASSES[int(label)]
    label = label.lower()
    return next((names[0] for names in _SYNONYMS if label in names), label)


def _body(columns: list[str], *, where: str) -> tuple[int, ...]:
    """Return the box of the body, or an empty tuple if the line does not have four columns."""
    if len(columns) != BOX_COLUMNS:
        return ()
    if not all(column.isascii() and column.isdigit() for column in columns):
        raise DataError("a box is four whole numbers, x0 y0 x1 y1; correct the line", where)
    return tuple(map(int, columns))
