"""Tables that a user hands in: lists of slices to score, labels, and training lists.

This is the only parser of such tables. It reads CSV and Parquet, local or on S3. One of the columns
`uri`, `path` and `name` names the slices. Columns with known names are text, whatever type the file
gives them, because patient 0012 is not patient 12.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cctmn import store
from cctmn.errors import DataError

SUFFIXES: Final = (".csv", ".parquet")
# The columns that can name a slice; the first one present is used.
SLICE_COLUMNS: Final = ("uri", "path", "name")
TEXT_COLUMNS: Final = (*SLICE_COLUMNS, "slice_id", "label", "patient", "patient_label", "scan")
_KNOWN: Final = (*TEXT_COLUMNS, "frame")
# Spreadsheets write semicolons where the comma is the decimal sign.
_SEPARATORS: Final = (",", ";", "\t")
# A text that begins like this is a formula to a spreadsheet.
_FORMULA: Final = r"^('*[=+\-@\t\r])"
# A gap in the column of patients, as pandas, R and databases write it.
_NO_PATIENT: Final = ("nan", "none", "null", "na", "n/a", "<na>", "nat", "unknown")
_WHOLE_OR_EMPTY: Final = r"^(\d+(\.0+)?)?$"
_GUARDED: Final = r"^'('*[=+\-@\t\r])"


@dataclass(frozen=True, eq=False)
class UserTable:
    """A table as it was handed in; columns of TEXT_COLUMNS are text without outer blanks."""

    place: str  # path or URI, as the user wrote it
    sha256: str  # of the file
    table: pa.Table

    def column(self, name: str) -> list[str]:
        """Return a text column. Raises DataError if it is missing."""
        if name not in self.table.column_names:
            raise DataError(f"no column {name}; add it", self.place, present(self.table))
        values: list[str] = self.table[name].to_pylist()
        return values

    def slices(self, columns: Sequence[str] = SLICE_COLUMNS) -> list[str]:
        """Return the slice of every row as the table names it, by the first of `columns` present.

        Raises DataError if no column names slices, if there is no row, or if a row is empty.
        """
        column = next((c for c in columns if c in self.table.column_names), None)
        if column is None:
            raise DataError(
                "no column uri, path or name; add one of them", self.place, present(self.table)
            )
        values = self.column(column)
        if not values:
            raise DataError("no row; write one row per slice", self.place)
        if "" in values:
            line = line_of(values.index(""))
            raise DataError(f"no {column}; fill it in", f"{self.place} line {line}")
        return values


def present(table: pa.Table) -> str:
    """Return the columns of a table as names for an error.

    They are not for its text: without a header they are a row, which may name a patient.
    """
    return f"present: {', '.join(table.column_names) or 'none'}"


def is_table(place: str) -> bool:
    """Return whether the name is that of a table."""
    return place.lower().endswith(SUFFIXES)


def line_of(row: int) -> int:
    """Return the line of a CSV file for a row, counted from 0, if no cell holds a line break."""
    return row + 2


def read_user_table(place: str, *, hint: str = "give a .csv or .parquet table") -> UserTable:
    """Read a table by its suffix.

    Raises ObjectError if it cannot be read, with `hint` as the advice, and DataError if it is not a
    table or two columns have the same name.
    """
    data = store.read_all(store.to_uri(place), hint=hint)
    table = _parquet(data, place) if place.lower().endswith(".parquet") else _csv(data, place)
    table = table.rename_columns(_known_names(table.column_names))
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError("two columns have the same name; rename one", place)
    for i, name in enumerate(table.column_names):
        if name in TEXT_COLUMNS:
            column = _as_text(table[name], name=name, place=place)
            table = table.set_column(i, name, _ids(column) if name == "patient" else column)
    return UserTable(place, hashlib.sha256(data).hexdigest(), table)


def without_formulas(table: pa.Table) -> pa.Table:
    """Return the table with an apostrophe before texts that a spreadsheet would run.

    `read_user_table` takes it away again. See OWASP, CSV injection.
    """
    for i, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type):
            guarded = pc.replace_substring_regex(table[name], _FORMULA, r"'\1")
            table = table.set_column(i, name, guarded)
    return table


def _as_text(column: pa.ChunkedArray, *, name: str, place: str) -> pa.ChunkedArray:
    """Return the column as text without outer blanks; a null is an empty text."""
    try:
        return pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"column {name} holds {column.type}, not text; write it as text", place
        ) from None


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids of patients, with an empty text where a program wrote that there is none.

    If all are whole numbers, 1013.0 is 1013: pandas writes numbers so beside a gap.
    """
    none = pc.is_in(pc.utf8_lower(column), value_set=pa.array(_NO_PATIENT))
    column = pc.if_else(none, "", column)
    if pc.all(pc.match_substring_regex(column, _WHOLE_OR_EMPTY)).as_py():
        return pc.replace_substring_regex(column, r"\.0+$", "")
    return column


def _parquet(data: bytes, place: str) -> pa.Table:
    try:
        return pq.ParquetFile(io.BytesIO(data)).read()
    except pa.ArrowInvalid:
        raise DataError("not a Parquet file; write it again", place) from None


def _known_names(names: Sequence[str]) -> list[str]:
    """Return the names of columns, with known ones in lower case and without outer blanks.

    Of the columns that can name a slice only one is changed so, and none if there is one already:
    beside `uri`, a column `Name` may hold names of people.
    """
    plain = [name.strip().casefold().replace(" ", "_") for name in names]
    has_slices = any(name in names for name in SLICE_COLUMNS)
    of_slices = () if has_slices else [name for name in SLICE_COLUMNS if name in plain][:1]
    wanted = {*of_slices, *(name for name in _KNOWN if name not in SLICE_COLUMNS)}
    return [
        new if new in wanted and plain.count(new) == 1 else old
        for old, new in zip(names, plain, strict=True)
    ]


def _header(text: str) -> tuple[str, list[str]]:
    """Return the separator of a CSV file and the names in its header.

    The separator is the one that finds most known columns, then the one that finds most columns.
    """
    read = {}
    for separator in _SEPARATORS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        read[separator] = [name.strip() for name in next(rows, [])]
    found = {
        separator: (len(set(_known_names(names)) & set(_KNOWN)), len(names))
        for separator, names in read.items()
    }
    separator = max(_SEPARATORS, key=lambda one: found[one])
    return separator, read[separator]


def _csv(data: bytes, place: str) -> pa.Table:
    """Read every column as text. Errors never hold the text of a row, which may name a patient."""
    uneven: list[str] = []

    def note_row(row: pacsv.InvalidRow) -> str:
        uneven.append(f"a row has {row.actual_columns} cells, the header {row.expected_columns}")
        return "error"

    try:
        # Excel writes a byte order mark.
        text = data.decode("utf-8-sig")
        separator, names = _header(text)
        if not names:
            return pa.table({})
        table = pacsv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pacsv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=note_row
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
        for i, name in enumerate(table.column_names):
            plain = pc.replace_substring_regex(table.column(i), _GUARDED, r"\1")
            table = table.set_column(i, name, plain)
        return table
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text; save it as UTF-8", place) from None
    except (csv.Error, pa.ArrowInvalid):
        reason = f" ({uneven[0]})" if uneven else ""
        raise DataError(f"not a CSV table{reason}; save it again", place) from None
