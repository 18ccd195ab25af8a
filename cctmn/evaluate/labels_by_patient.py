"""A table with one row per patient, turned into labels of that patient's slices.

The table has the Patient ID of the DICOM header in its column `patient`. OUT holds a keyed
pseudonym of it only, and OUT/private has the key, so this runs where OUT/private is.

Reads: labels of patients, OUT/private/key and the keyed patients of the predictions.
Writes: labels with one row per slice, and one row without a slice for a patient that is not in OUT.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa

from cctmn import store
from cctmn.data.issues import first_few
from cctmn.data.labels import PATIENT_LABEL, Labels
from cctmn.errors import DataError
from cctmn.pseudonym import pseudonym


def of_slices(labels: Labels, *, out: str, slice_ids: pa.Array, patient_keys: pa.Array) -> Labels:
    """Return the labels with one row per slice and a column slice_id.

    `slice_ids` and `patient_keys` are those of the predictions, in one order. A patient without a
    slice keeps one row with the slice_id "". Raises DataError without OUT/private/key, if a row has
    no patient, or if a patient has several rows.
    """
    key = store.read_optional(store.join(out, "private", "key"))
    if key is None:
        raise DataError(
            "OUT/private/key, which links patients, is missing; run where it is, or give labels "
            "with a column uri, name or slice_id",
            out,
        )
    if "" in labels.patient or not labels.patient:
        raise DataError("a row has no patient; fill the column patient in", labels.place)
    twice = sorted(name for name, count in Counter(labels.patient).items() if count > 1)
    if twice:
        raise DataError(
            f"{len(twice)} patients have several rows; keep one row per patient",
            labels.place,
            first_few(twice),
        )
    row_of = {pseudonym(key, "patient", name): row for row, name in enumerate(labels.patient)}
    rows: list[int] = []
    ids: list[str] = []
    for slice_id, patient in zip(slice_ids.to_pylist(), patient_keys.to_pylist(), strict=True):
        if patient in row_of:
            rows.append(row_of[patient])
            ids.append(slice_id)
    absent = sorted(set(range(len(labels.patient))) - set(rows))
    rows += absent
    ids += [""] * len(absent)
    table = labels.table.take(pa.array(rows, pa.int64()))
    if "slice_id" in table.column_names:
        table = table.drop_columns("slice_id")
    truth_N = labels.truth_N if labels.patient_truth_N is None else labels.patient_truth_N
    if PATIENT_LABEL in table.column_names and (truth_N < 0).any():
        raise DataError(f"a row has no {PATIENT_LABEL}; fill it in", labels.place)
    truth_N = truth_N[np.array(rows, np.int64)]
    return replace(
        labels,
        table=table.append_column("slice_id", pa.array(ids, pa.string())),
        truth_N=truth_N,
        patient=[labels.patient[row] for row in rows],
        patient_truth_N=truth_N,
        of_patients=True,
    )
