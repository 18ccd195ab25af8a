"""Tables of labels: which slice is of which class, patient and scan.

In: a .csv or .parquet of any data set, or a split file of COVIDx-CT, local or on S3. Out: one Arrow
table with known columns first; or the table that `cctmn labels` writes, which `cctmn score` takes
as a manifest. A label that fits no class, or a slice that is listed twice, stops the job.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cctmn import store
from cctmn.classes import COVIDX_CLASSES, JOIN_KEYS
from cctmn.data.issues import few
from cctmn.data.slices import class_index, parse_name, read_split
from cctmn.errors import DataError
from cctmn.schema import LABELS

FORMS: Final = "a labels table is .csv or .parquet; a split file of COVIDx-CT is .txt"
# Columns that are text, whatever type the file gives them.
_NAMED: Final = (*JOIN_KEYS, "label", "patient", "scan")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labelled slices in the order of their table."""

    place: str
    sha256: str  # of the file
    table: pa.Table  # every column; `label patient scan uri name slice_id` are text where present
    truth_N: npt.NDArray[np.int64]  # index into the classes
    patient: list[str]  # "" if unknown


def covidx_ct(split: str, *, exclude: str | None = None) -> tuple[pa.Table, list[str]]:
    """A split file of COVIDx-CT, less the slices of a list, and names of the list not in it.

    The list may carry the author's class digits: 0_1728_1013_0023 is Normal_1728_1013_0023.
    """
    lines = read_split(split, classes=COVIDX_CLASSES)
    strange: list[str] = []
    if exclude is not None:
        left_out = {line.key: line.name for line in read_split(exclude, classes=COVIDX_CLASSES)}
        known = {line.key for line in lines}
        strange = [name for key, name in left_out.items() if key not in known]
        lines = tuple(line for line in lines if line.key not in left_out)
        if not lines:
            raise DataError(f"{exclude}: excludes every slice of {split}; check the two lists")
    columns = [
        [line.name for line in lines],
        [COVIDX_CLASSES[line.label] for line in lines],
        [line.patient for line in lines],
        [line.scan for line in lines],
        *([line.body[i] if line.body else None for line in lines] for i in range(4)),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, LABELS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LABELS), strange


def to_bytes(table: pa.Table, *, parquet: bool) -> bytes:
    """The table as Parquet or CSV."""
    buffer = io.BytesIO()
    if parquet:
        pq.write_table(table, buffer)
    else:
        pacsv.write_csv(table, buffer, pacsv.WriteOptions(quoting_style="needed"))
    return buffer.getvalue()


def read_table(place: str) -> tuple[pa.Table, str]:
    """Every column of a labels table or split file, and the sha256 of the file."""
    data = store.read_all(store.to_uri(place), hint="give a labels table")
    suffix = place.lower().rpartition(".")[2]
    if suffix == "txt":
        table, _ = covidx_ct(place)
    elif suffix == "csv":
        table = _from_csv(data, place)
    elif suffix == "parquet":
        try:
            table = pq.read_table(io.BytesIO(data))
        except pa.ArrowInvalid:
            raise DataError(f"{place}: not a Parquet file; write it again") from None
    else:
        raise DataError(f"{place}: {FORMS}")
    if "path" in table.column_names and "uri" not in table.column_names:
        table = table.rename_columns({"path": "uri"})
    for i, name in enumerate(table.column_names):
        if name in _NAMED:
            text = pc.utf8_trim_whitespace(pc.fill_null(table[name].cast(pa.string()), ""))
            table = table.set_column(i, name, text)
    return table, hashlib.sha256(data).hexdigest()


def read_labels(place: str, *, classes: tuple[str, ...]) -> Labels:
    """Labels with these classes. Raises DataError: no such file, column or class, or no line."""
    table, sha256 = read_table(place)
    if "label" not in table.column_names:
        raise DataError(f"{place}: no column label; there are {', '.join(table.column_names)}")
    if not set(JOIN_KEYS) & set(table.column_names):
        raise DataError(f"{place}: no column to find the slices by; add uri, name or slice_id")
    if not len(table):
        raise DataError(f"{place}: holds no line; write one for each labelled slice")
    told = table["label"].combine_chunks().dictionary_encode()
    index = np.array(
        [
            class_index(label, where=place, classes=classes, numbers=True)
            for label in told.dictionary.to_pylist()
        ],
        np.int64,
    )
    has_patient = "patient" in table.column_names
    patient = table["patient"].to_pylist() if has_patient else [""] * len(table)
    return Labels(place, sha256, table, index[told.indices.to_numpy()], patient)


def keys_of(table: pa.Table, *, key: str, place: str) -> list[str]:
    """What each line is found by: its file name, URI or slice_id. Raises DataError for doubles."""
    column = "uri" if key == "name" and "name" not in table.column_names else key
    if column not in table.column_names:
        there = ", ".join(k for k in JOIN_KEYS if k in table.column_names)
        raise DataError(f"{place}: no column {column} to join by; use --key with one of: {there}")
    keys: list[str] = table[column].to_pylist()
    if key == "name":
        keys = [base_name(text) for text in keys]
    doubled = keys
    if "frame" in table.column_names and key != "slice_id":
        doubled = [f"{k} frame {f}" for k, f in zip(keys, table["frame"].to_pylist(), strict=True)]
    if len(set(doubled)) < len(doubled):
        twice = [name for name, n in Counter(doubled).items() if n > 1]
        raise DataError(
            f"{place}: {len(twice)} slices are listed more than once ({few(twice)}); keep one line "
            "of each" + (", or join by --key uri" if key == "name" else "")
        )
    if "" in keys:
        raise DataError(f"{place}: line {keys.index('') + 2} has no {column}; fill it in")
    return keys


def base_name(uri: str) -> str:
    """The file name at the end of a path, URI or URI::member."""
    return uri.rpartition("::")[2].rpartition("/")[2]


def identities(table: pa.Table) -> list[str]:
    """One text for a slice under all its names: COVIDx-CT's and the author's, else the file name.

    A table of slice_ids alone gives those.
    """
    column = next(c for c in ("uri", "name", "slice_id") if c in table.column_names)
    names = [base_name(text) for text in table[column].to_pylist()]
    return [named.key if (named := parse_name(name)) else name for name in names]


def _from_csv(data: bytes, place: str) -> pa.Table:
    """Every column as text: patient 0012 is not patient 12."""
    try:
        text = data.decode("utf-8-sig")
        header = next(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True), [])
        if len(set(header)) < len(header):
            raise DataError(f"{place}: two columns have the same name; rename one")
        names = [name.strip() for name in header]
        return pacsv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except UnicodeDecodeError:
        raise DataError(f"{place}: not UTF-8 text; save it as UTF-8") from None
    except (csv.Error, pa.ArrowInvalid) as error:
        raise DataError(f"{place}: not a CSV table ({str(error).splitlines()[0]})") from None
