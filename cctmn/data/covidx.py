"""Split files of COVIDx-CT (v1, v2 and v3), and the author's lists of COVIDx-CT and iCTCF.

Reads: split files, one `NAME CLASS [box]` or `NAME` per line, local or on S3.
Returns: slices with class, patient, scan and the box of the body.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cctmn.data.class_names import (
    NO_MAP,
    LabelMap,
    check_label_map,
    check_no_numbers,
    class_index,
)
from cctmn.data.files import read_text, stem
from cctmn.data.slice_names import of_split, parse_name
from cctmn.errors import DataError

BOX_COLUMNS: Final = 4


class SplitLine(NamedTuple):
    """A line of a split file: a slice, wherever its image is."""

    name: str
    # the same for Normal_1728_1013_0023.png and 0_1728_1013_0023.png
    key: str
    label: int
    # "" where the name contains none
    patient: str
    scan: str
    # box x0 y0 x1 y1 of the body, px; empty if not given
    body: tuple[int, ...]


def read_split(
    split: str, *, classes: tuple[str, ...], label_map: LabelMap = NO_MAP
) -> tuple[SplitLine, ...]:
    """Read a split file whose lines are `NAME CLASS [box]`, or names that contain the class.

    CLASS and digits are those of COVIDx-CT, whatever the order of `classes`; `label_map` may map
    the names of its classes. Raises DataError for a line without a class, with another class than
    its name, or with a slice that is listed before.
    """
    check_no_numbers(label_map, split=split)
    check_label_map(label_map, classes=classes)
    lines: dict[str, SplitLine] = {}
    for number, text in enumerate(read_text(split).splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{split} line {number}"
        name, *columns = text.split()
        named = parse_name(name)
        label = of_split(columns[0]) if columns else named.label if named else ""
        if not label:
            raise DataError("a slice has no class; write NAME CLASS", where, name)
        if label.isdigit():
            raise DataError("a class is neither 0, 1, 2 nor a name; correct the line", where, name)
        if named and named.other_label:
            raise DataError("a name contains two classes; correct the line", where, name)
        if named and named.label not in ("", label):
            raise DataError(f"a slice is listed as {label}; correct the line", where, name)
        key = named.key if named else stem(name)
        if key in lines:
            raise DataError("a slice is listed before; keep one line per slice", where, name)
        index = class_index(label, where=f"{where}, {name}", classes=classes, label_map=label_map)
        patient, scan = (named.patient, named.scan) if named else ("", "")
        body = _body(columns[1:], where=f"{where}, {name}")
        lines[key] = SplitLine(name, key, index, patient, scan, body)
    if not lines:
        raise DataError("holds no name; write one name per line", split)
    return tuple(lines.values())


def _body(columns: list[str], *, where: str) -> tuple[int, ...]:
    """Return the box of the body, or an empty tuple if the line does not have four columns."""
    if len(columns) != BOX_COLUMNS:
        return ()
    if not all(column.isascii() and column.isdigit() for column in columns):
        raise DataError("a box is four whole numbers, x0 y0 x1 y1; correct the line", where)
    return tuple(map(int, columns))
