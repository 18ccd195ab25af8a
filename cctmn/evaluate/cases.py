"""The slices worth looking at: the worst misses, the worst false alarms and the best hits.

Each list holds at most one slice per patient. Cases carry only keyed ids; `case_pictures` draws
them into private/.

Reads: joined predictions and probabilities, the files that hold the lesions.
Writes: lists of the section `cases` of metrics.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import tables
from cctmn.evaluate.join import Joined, Scored
from cctmn.metrics.intervals import ClassifiedSample

# Cases of each kind; they fill a screen.
SHOWN: Final = 8
# Columns of the predictions from which a slice is drawn. An older version wrote fewer.
_COLUMNS: Final = (
    "slice_id",
    "patient_key",
    "slice_z_mm",
    "rows",
    "cols",
    "spacing_row_mm",
    "spacing_col_mm",
    "flags",
    "lesions",
)
_DIGITS: Final = {"slice_z_mm": 2, "spacing_row_mm": 6, "spacing_col_mm": 6}
# The class without disease. If no class has this name, it is the first one.
CLEAN: Final = "control"


def choose(joined: Joined, sample: ClassifiedSample) -> dict[str, list[dict[str, Any]]]:
    """Choose `misses` (disease predicted as another class), `false_alarms` and `hits`.

    Misses and false alarms are sorted by the probability of the predicted class minus that of the
    true class, hits by the probability of the true class.
    """
    names = sample.classes
    rows = np.arange(len(sample.truth_N))
    p_true_N = sample.score_NC[rows, sample.truth_N]
    chosen = {
        kind: first_of_patients(order, sample.group_N)[:SHOWN]
        for kind, order in wrong_ones(sample).items()
    }
    right_N = (sample.truth_N != clean_class(names)) & (sample.truth_N == sample.predicted_N)
    order = np.flatnonzero(right_N)
    order = order[np.argsort(-p_true_N[order], kind="stable")]
    chosen["hits"] = first_of_patients(order, sample.group_N)[:SHOWN]
    wanted = sorted({row for best in chosen.values() for row in best})
    table_rows = joined.row_N[joined.scored_N][wanted].tolist()
    details = dict(zip(wanted, read_details(joined.scored, table_rows), strict=True))
    return {
        kind: [
            {
                "truth": names[sample.truth_N[row]],
                "predicted": names[sample.predicted_N[row]],
                "p": rounded(sample.score_NC[row], names),
            }
            | details[row]
            for row in best
        ]
        for kind, best in chosen.items()
    }


def wrong_ones(sample: ClassifiedSample) -> dict[str, NDArray[np.int64]]:
    """Return the entries that are `misses` and `false_alarms`, the worst first."""
    clean = clean_class(sample.classes)
    rows = np.arange(len(sample.truth_N))
    predicted_N, truth_N = sample.predicted_N, sample.truth_N
    excess_N = sample.score_NC[rows, predicted_N] - sample.score_NC[rows, truth_N]
    wrong_N = predicted_N != truth_N
    kinds = {"misses": wrong_N & (truth_N != clean), "false_alarms": wrong_N & (truth_N == clean)}
    found = {}
    for kind, kept_N in kinds.items():
        order = np.flatnonzero(kept_N)
        found[kind] = order[np.argsort(-excess_N[order], kind="stable")]
    return found


def clean_class(names: Sequence[str]) -> int:
    """Return the index of the class without disease."""
    return names.index(CLEAN) if CLEAN in names else 0


def first_of_patients(order: NDArray[np.int64], group_N: NDArray[np.int64]) -> list[int]:
    """Return the first entry of each patient in this order."""
    _, first = np.unique(group_N[order], return_index=True)
    return [int(entry) for entry in order[np.sort(first)]]


def rounded(p_C: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    """Return probabilities by class, as metrics.json holds them."""
    return {name: round(float(p), 4) for name, p in zip(names, p_C, strict=True)}


def read_details(scored: Scored, table_rows: Sequence[int]) -> list[dict[str, Any]]:
    """Read place, size, flags and lesions of some predictions, by their row in the table.

    Only the files that hold them are opened.
    """
    wanted = pa.array(table_rows, pa.int64())
    ids = scored.table["slice_id"].take(wanted).to_pylist()
    details: dict[str, dict[str, Any]] = {}
    for number in set(scored.table["file"].take(wanted).to_pylist()):
        part = tables.read_present(scored.files[number], _COLUMNS)
        kept = part.filter(pc.is_in(part["slice_id"], value_set=pa.array(ids, pa.string())))
        details |= {row["slice_id"]: _rounded(row) for row in kept.to_pylist()}
    return [dict(details[slice_id]) for slice_id in ids]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    lesions = [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in lesion.items() if k != "mask_px"}
        for lesion in row["lesions"] or ()
    ]
    numbers = {
        name: None if row.get(name) is None else round(row[name], digits)
        for name, digits in _DIGITS.items()
    }
    return row | numbers | {"flags": list(row.get("flags") or ()), "lesions": lesions}
