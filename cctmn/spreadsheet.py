"""One table of an output folder for a spreadsheet: a row per slice, study or patient.

A spreadsheet has no lists, so flags and ids are joined by semicolons, and lists of boxes and masks
are left out. The rows are written file by file, so that millions of slices fit.

Reads: OUT/predictions or OUT/studies, and OUT/private/inventory if names are asked for.
Writes: one .csv, .xlsx or .parquet file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cctmn import folder, schema, store, tables
from cctmn.classes import CONTROL
from cctmn.errors import ConfigError, DataError
from cctmn.reporter import printable
from cctmn.user_table import without_formulas

# What a sheet holds, the line of the names included (ECMA-376; Excel's own limit).
XLSX_LINES: Final = 1_048_576
SEPARATOR: Final = ";"
NAMES: Final = ("uri", "member")
_BY: Final = {"slice": "slices", "study": "studies", "patient": "patients"}


def write(out: str, *, by: str, to: str, names: bool = False) -> int:
    """Write the table to the file `to` and return its number of rows.

    `by` is "slice", "study" or "patient". With `names` the table has the path and the member of
    the slice, or of the slice that decides most; the file is then for its owner alone. Raises
    DataError if OUT has nothing to show or a sheet cannot hold it, ConfigError for another suffix.
    """
    suffix = next((known for known in _WRITERS if to.lower().endswith(known)), None)
    if suffix is None:
        raise ConfigError(f"not a table; give a file ending in {', '.join(_WRITERS)}", f"-o {to}")
    folder.check_target(out, to, private=names)
    if suffix == ".xlsx" and by == "slice":
        _check_lines(_stored_rows(out), to=to)
    rows = _slices(out, names=names) if by == "slice" else _patients_or_studies(out, by, names)
    with store.new_file(store.to_uri(to), private=names) as file:
        return _WRITERS[suffix](rows, file, to)


def _slices(out: str, *, names: bool) -> Iterator[pa.Table]:
    """Yield the predictions, one table per file."""
    files = _predictions(out)
    classes = schema.classes_of(tables.schema(files[0]))
    columns = pa.schema([field for field in schema.predictions(classes) if _fits(field.type)])
    known = _Names.read(out) if names else None
    for uri in files:
        table = _joined(tables.read_filled(uri, columns))
        yield table if known is None else known.add(table, ids=table["slice_id"])


def _predictions(out: str) -> list[str]:
    files = tables.parquet_files(store.join(store.to_uri(out), "predictions"))
    if not files:
        raise DataError("holds no predictions; score into it first", out)
    return files


def _stored_rows(out: str) -> Iterator[int]:
    for uri in _predictions(out):
        filesystem, path = store.arrow_filesystem(uri)
        yield pq.read_metadata(path, filesystem=filesystem).num_rows


def _patients_or_studies(out: str, by: str, names: bool) -> Iterator[pa.Table]:
    """Yield one table with a row per study, or per patient."""
    files = tables.parquet_files(store.join(store.to_uri(out), "studies"))
    if not files:
        _predictions(out)
        raise DataError("holds no studies; run the same `cctmn score` again to write them", out)
    studies = pa.concat_tables([tables.read(uri, None) for uri in files])
    if not len(studies):
        raise DataError(
            f"no slice belongs to a {by}, as none has a DICOM header; use --by slice", out
        )
    table = _one_per_patient(studies) if by == "patient" else studies
    deciding = table["deciding_slices"].to_pylist()
    first = pa.array([ids[0] if ids else None for ids in deciding], pa.string())
    table = _joined(table)
    if names:
        yield _Names.read(out, wanted=first).add(table, ids=first)
    else:
        yield table


def _one_per_patient(studies: pa.Table) -> pa.Table:
    """Return one row per patient, sorted by key: that of the study with most evidence of disease.

    A study without patient key is a patient of its own and comes last.
    """
    classes = schema.classes_of(studies.schema)
    of_patient: dict[str, list[dict[str, Any]]] = {}
    for study in studies.to_pylist():
        # No key begins with a tilde, and none comes after one.
        patient = study["patient_key"] or f"~{study['study_key']}"
        of_patient.setdefault(patient, []).append(study)
    rows = []
    for _, group in sorted(of_patient.items()):
        decides = max(group, key=lambda study: (_sick(study, classes), study["study_key"]))
        row = {f"num_{n}": sum(one[f"num_{n}"] for one in group) for n in _SUMMED}
        row |= {"num_studies": len(group), "study_keys": [one["study_key"] for one in group]}
        rows.append(decides | row)
    # The class first: who opens this table asks for it.
    answer = [studies.schema.field(name) for name in ("patient_key", "pred_class")]
    answer += [studies.schema.field(f"p_{name}") for name in classes]
    answer.append(pa.field("num_studies", pa.int32()))
    answer.append(pa.field("study_keys", pa.list_(pa.string())))
    left_out = {"patient_studies", *(field.name for field in answer)}
    kept = [field for field in studies.schema if field.name not in left_out]
    return pa.Table.from_pylist(rows, schema=pa.schema([*answer, *kept]))


# What is counted over all studies of a patient; the other columns are of the study that decides.
_SUMMED: Final = ("slices", "errors", "passed_over", "abstained")


def _sick(study: Mapping[str, Any], classes: Sequence[str]) -> float:
    """Return the probability of any disease, -1 without an answer."""
    p = {name: study[f"p_{name}"] for name in classes if study[f"p_{name}"] is not None}
    if not p:
        return -1.0
    return float(1 - p[CONTROL] if CONTROL in p else max(p.values()))


@dataclass(frozen=True, eq=False)
class _Names:
    """The path and the member of each slice of an inventory, sorted by id."""

    ids_N: NDArray[np.bytes_]
    columns: tuple[pa.Array, ...]  # of NAMES

    @classmethod
    def read(cls, out: str, *, wanted: pa.Array | None = None) -> _Names:
        """Read the inventory of OUT, or of the `wanted` ids alone. Raises ResumeError."""
        parts = [
            (table if wanted is None else table.filter(pc.is_in(table["slice_id"], wanted))).select(
                ["slice_id", *NAMES]
            )
            for table in tables.named_inventory(out)
        ]
        table = pa.concat_tables(parts)
        ids_N = np.concatenate([part["slice_id"].to_numpy().astype("S") for part in parts])
        order_N = np.argsort(ids_N)
        # One piece each, as taking rows from many pieces copies all of them every time.
        columns = (table[name].cast(pa.large_string()).combine_chunks() for name in NAMES)
        return cls(ids_N[order_N], tuple(c.take(pa.array(order_N)) for c in columns))

    def add(self, table: pa.Table, *, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Return the table with the names of these slices, a null id being nameless, in front."""
        wanted_N = ids.fill_null("").to_numpy(zero_copy_only=False).astype("S")
        at_N = np.searchsorted(self.ids_N, wanted_N)
        at_N = np.minimum(at_N, max(len(self.ids_N) - 1, 0))
        known_N = self.ids_N[at_N] == wanted_N if len(self.ids_N) else np.zeros(len(ids), bool)
        uris, members = (c.take(pa.array(at_N, mask=~known_N)).to_pylist() for c in self.columns)
        table = table.add_column(1, "uri", pa.array(map(_readable, uris), pa.string()))
        return table.add_column(2, "member", pa.array(members, pa.string()))


def _readable(uri: str | None) -> str | None:
    """Return the path of a local file if it is text, else the URI."""
    if uri is None:
        return None
    shown = store.display(uri)
    return uri if any("\ud800" <= c <= "\udfff" for c in shown) else shown


def _fits(kind: pa.DataType) -> bool:
    """Return whether a spreadsheet can show a column of this type."""
    return not pa.types.is_nested(kind) or _is_texts(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_string(kind.value_type)


def _joined(table: pa.Table) -> pa.Table:
    """Return the table with each list of texts as one text."""
    for i, field in enumerate(table.schema):
        if _is_texts(field.type):
            table = table.set_column(i, field.name, pc.binary_join(table[field.name], SEPARATOR))
    return table.replace_schema_metadata(None)


def _in_cells(table: pa.Table) -> pa.Table:
    """Return the table as cells can hold it: NaN and infinity are empty cells."""
    for i, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table[field.name]
            finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, field.type))
            table = table.set_column(i, field.name, finite)
    return table


def _write_csv(rows: Iterator[pa.Table], file: BinaryIO, to: str) -> int:  # noqa: ARG001
    first = next(rows)
    options = pacsv.WriteOptions(quoting_style="needed")
    written = 0
    with pacsv.CSVWriter(file, first.schema, write_options=options) as writer:
        for table in itertools.chain([first], rows):
            writer.write_table(without_formulas(_in_cells(table)))
            written += len(table)
    return written


def _write_parquet(rows: Iterator[pa.Table], file: BinaryIO, to: str) -> int:  # noqa: ARG001
    first = next(rows)
    written = 0
    with pq.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], rows):
            writer.write_table(table)
            written += len(table)
    return written


def _write_xlsx(rows: Iterator[pa.Table], file: BinaryIO, to: str) -> int:
    """Write a workbook of one sheet, row by row, so that only one file of rows is in memory."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    book = Workbook(write_only=True)
    sheet = book.create_sheet("cctmn")
    sheet.freeze_panes = "A2"

    def text(value: str | None) -> Any:
        """Return what is a text whatever it looks like: no formula, and no name of an error."""
        if value is None or (value.isprintable() and not value.startswith(("=", "#"))):
            return value
        # A cell of its own takes ten times as long as a plain text, so only these have one.
        cell = WriteOnlyCell(sheet, printable(value))
        cell.data_type = "s"
        return cell

    def lengths() -> Iterator[int]:
        for i, table in enumerate(rows):
            yield len(table)
            if i == 0:
                sheet.append(table.column_names)
            columns = [_values(column) for column in _in_cells(table).columns]
            texts = [pa.types.is_string(column.type) for column in table.columns]
            for row in zip(*columns, strict=True):
                sheet.append([text(v) if t else v for v, t in zip(row, texts, strict=True)])

    written = _check_lines(lengths(), to=to)
    book.save(file)
    return written


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; a float of 32 bits as the shortest number that means it."""
    if pa.types.is_float32(column.type):
        column = column.cast(pa.string()).cast(pa.float64())
    values: list[Any] = column.to_pylist()
    return values


def _check_lines(lengths: Iterator[int], *, to: str) -> int:
    """Return the sum of the lengths. Raises DataError as soon as they exceed a sheet."""
    total = 0
    for length in lengths:
        total += length
        if total >= XLSX_LINES:
            raise DataError(
                f"more rows than the {XLSX_LINES - 1:,} of an xlsx file; write .csv or .parquet", to
            )
    return total


_WRITERS: Final[Mapping[str, Callable[[Iterator[pa.Table], BinaryIO, str], int]]] = {
    ".csv": _write_csv,
    ".xlsx": _write_xlsx,
    ".parquet": _write_parquet,
}
