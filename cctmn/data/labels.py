"""Tables of labels: the class, patient and scan of each slice.

A label that fits no class, or a slice that is listed twice, stops the job.

Reads: a .csv or .parquet of any data set, or a split file of COVIDx-CT, local or on S3.
Writes: the table of `cctmn labels`, which `score`, `train` and `evaluate` read.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cctmn import store
from cctmn.classes import COVIDX_CLASSES, JOIN_KEYS
from cctmn.data.class_names import NO_MAP, LabelMap, check_no_numbers, class_indices
from cctmn.data.covidx import read_split
from cctmn.data.issues import first_few
from cctmn.data.patients import nfc, spelling_notes
from cctmn.data.slice_names import parse_name
from cctmn.errors import DataError
from cctmn.schema import LABELS
from cctmn.user_table import is_table, line_of, present, read_user_table, without_formulas

# The class of the patient of a slice, which may differ from the class of the slice.
PATIENT_LABEL = "patient_label"


@dataclass(frozen=True, eq=False)
class Labels:
    """Labelled slices in the order of their table."""

    place: str
    sha256: str  # of the file
    table: pa.Table  # every column; `label patient scan uri name slice_id` are text where present
    truth_N: npt.NDArray[np.int64]  # index into the classes
    patient: list[str]  # "" if unknown; in Unicode's composed form
    notes: list[str] = field(default_factory=list)  # what was read otherwise than it is written
    patient_truth_N: npt.NDArray[np.int64] | None = None  # of patient_label; -1 where it is empty
    of_patients: bool = False  # there is no label of slices; each has its patient's


def covidx_ct(split: str, *, exclude: str | None = None) -> tuple[pa.Table, list[str]]:
    """Return a split file of COVIDx-CT as a table without the slices of the list `exclude`.

    The second value holds the names in `exclude` that are not in the split file.

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
            raise DataError(
                "excludes every slice of the split; check the two lists", exclude, split
            )
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
    """Encode the table as Parquet or CSV."""
    buffer = io.BytesIO()
    if parquet:
        pq.write_table(table, buffer)
    else:
        table = without_formulas(table)
        pacsv.write_csv(table, buffer, pacsv.WriteOptions(quoting_style="needed"))
    return buffer.getvalue()


def read_table(place: str) -> tuple[pa.Table, str]:
    """Read every column of a labels table or split file, and the SHA-256 of the file.

    A column `path` is renamed to `uri` if there is no `uri`. Raises ObjectError or DataError.
    """
    if _is_split(place):
        data = store.read_all(store.to_uri(place), hint="give a labels table")
        return covidx_ct(place)[0], hashlib.sha256(data).hexdigest()
    if not is_table(place):
        raise DataError(
            "not a labels table; give a .csv or .parquet, or a .txt split of COVIDx-CT", place
        )
    given = read_user_table(place, hint="give a labels table")
    table = given.table
    if "path" in table.column_names and "uri" not in table.column_names:
        table = table.rename_columns({"path": "uri"})
    return table, given.sha256


def read_labels(place: str, *, classes: tuple[str, ...], label_map: LabelMap = NO_MAP) -> Labels:
    """Read labels of these classes; `label_map` says which class a label means.

    Without a column label, each slice gets the patient_label of its patient.

    Raises ObjectError if the file cannot be read, ConfigError if the map names an unknown class,
    and DataError if a column is missing, a label is not one of the classes, or there is no row.
    """
    if _is_split(place):
        check_no_numbers(label_map, split=place)
    table, sha256 = read_table(place)
    of_patients = "label" not in table.column_names and PATIENT_LABEL in table.column_names
    if of_patients:
        table = table.append_column("label", table[PATIENT_LABEL])
    if "label" not in table.column_names:
        raise DataError("no column label; add it", place, present(table))
    if not set(JOIN_KEYS) & set(table.column_names):
        raise DataError(
            "no column to find the slices by; add uri, name, slice_id or patient", place
        )
    if not len(table):
        raise DataError("holds no row; write one per labelled slice", place)

    def where(row: int) -> str:
        return place if _is_split(place) else f"{place} line {line_of(row)}"

    def indices_of(column: list[str]) -> npt.NDArray[np.int64]:
        indices, of_column = class_indices(
            column, classes=classes, label_map=label_map, where=where
        )
        notes.extend(note for note in of_column if note not in notes)
        return np.array(indices, np.int64)

    notes: list[str] = []
    truth_N = indices_of(table["label"].to_pylist())
    patient_truth_N = None
    if PATIENT_LABEL in table.column_names:
        # An empty cell reads as the first label, and is -1 in the end.
        of_patient = table[PATIENT_LABEL].to_pylist()
        first = table["label"][0].as_py()
        patient_truth_N = indices_of([text or first for text in of_patient])
        patient_truth_N[[not text for text in of_patient]] = -1
    has_patient = "patient" in table.column_names
    written = table["patient"].to_pylist() if has_patient else [""] * len(table)
    patient = [nfc(text) for text in written]
    notes += spelling_notes(written)
    return Labels(place, sha256, table, truth_N, patient, notes, patient_truth_N, of_patients)


def keys_of(table: pa.Table, *, key: str, place: str) -> list[str]:
    """Return the key of each row: its file name, URI or slice_id.

    Raises DataError if the column is missing, a key is empty, or a slice is listed twice.
    """
    column = "uri" if key == "name" and "name" not in table.column_names else key
    if column not in table.column_names:
        there = ", ".join(k for k in JOIN_KEYS if k in table.column_names)
        raise DataError(f"no column {column} to join by; use --key with one of: {there}", place)
    keys: list[str] = table[column].to_pylist()
    if key == "name":
        keys = [base_name(text) for text in keys]
    doubled = keys
    if "frame" in table.column_names and key != "slice_id":
        doubled = [f"{k} frame {f}" for k, f in zip(keys, table["frame"].to_pylist(), strict=True)]
    if len(set(doubled)) < len(doubled):
        twice = [name for name, n in Counter(doubled).items() if n > 1]
        raise DataError(
            f"{len(twice)} slices are listed more than once; keep one line per slice"
            + (", or join by --key uri" if key == "name" else ""),
            place,
            first_few(twice),
        )
    if "" in keys:
        raise DataError(f"line {keys.index('') + 2} has no {column}; fill it in", place)
    return keys


def _is_split(place: str) -> bool:
    return place.lower().endswith(".txt")


def base_name(uri: str) -> str:
    """Return the file name at the end of a path, URI or URI::member."""
    return uri.rpartition("::")[2].rpartition("/")[2]


def identities(table: pa.Table) -> list[str]:
    """Return one text per slice that is the same for all its names in public data sets.

    For other names it is the file name; for a table with slice_ids alone, the slice_id.
    """
    column = next(c for c in ("uri", "name", "slice_id") if c in table.column_names)
    names = [base_name(text) for text in table[column].to_pylist()]
    return [named.key if (named := parse_name(name)) else name for name in names]
