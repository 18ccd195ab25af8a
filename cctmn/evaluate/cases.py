"""The slices worth looking at: the worst misses, the worst false alarms and the best hits.

Each list holds at most one slice per patient. Cases carry only keyed ids; the pictures stay in
private/.

Reads: joined predictions and probabilities, the files that hold the lesions, the images.
Writes: the section `cases` of metrics.json, and private/cases/<slice_id>.png.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.contract import InputContract
from cctmn.evaluate.join import Joined
from cctmn.metrics.intervals import ClassifiedSample
from cctmn.read.preview import previews

# Cases of each kind; they fill a screen.
SHOWN: Final = 8
# Columns of the predictions from which a slice is drawn.
_SHAPE: Final = ("slice_id", "rows", "cols", "spacing_row_mm", "spacing_col_mm", "lesions")
# The class without disease. If no class has this name, it is the first one.
CLEAN: Final = "control"


def choose(joined: Joined, sample: ClassifiedSample) -> dict[str, list[dict[str, Any]]]:
    """Choose `misses` (disease predicted as another class), `false_alarms` and `hits`.

    Misses and false alarms are sorted by the probability of the predicted class minus that of the
    true class, hits by the probability of the true class.
    """
    names = sample.classes
    clean = names.index(CLEAN) if CLEAN in names else 0
    rows = np.arange(len(sample.truth_N))
    predicted_N, truth_N = sample.predicted_N, sample.truth_N
    p_true_N, p_predicted_N = sample.score_NC[rows, truth_N], sample.score_NC[rows, predicted_N]
    sick_N, wrong_N = truth_N != clean, predicted_N != truth_N
    kinds = {
        "misses": (sick_N & wrong_N, p_predicted_N - p_true_N),
        "false_alarms": (~sick_N & wrong_N, p_predicted_N - p_true_N),
        "hits": (sick_N & ~wrong_N, p_true_N),
    }
    chosen = {
        kind: _best(kept_N, rank_by_N, sample.group_N)
        for kind, (kept_N, rank_by_N) in kinds.items()
    }
    wanted = {row for best in chosen.values() for row in best}
    details = _details(joined, sorted(wanted))
    return {
        kind: [
            {
                "truth": names[truth_N[row]],
                "predicted": names[predicted_N[row]],
                "p": {n: round(float(sample.score_NC[row, c]), 4) for c, n in enumerate(names)},
            }
            | details[row]
            for row in best
        ]
        for kind, best in chosen.items()
    }


def write_pictures(
    joined: Joined, cases: dict[str, list[dict[str, Any]]], *, contract: InputContract, folder: str
) -> int:
    """Write private/cases/<slice_id>.png of each case, and return the number of pictures.

    No picture is written if the output folder has no inventory.
    """
    ids = sorted({case["slice_id"] for of_kind in cases.values() for case in of_kind})
    # Without the type, an empty list would become an array of nulls.
    wanted = pa.array(ids, pa.string())
    rows: list[dict[str, Any]] = []
    for table in tables.inventory(store.join(joined.scored.out, "private", "inventory")):
        rows += table.filter(pc.is_in(table["slice_id"], value_set=wanted)).to_pylist()
    written = 0
    for slice_id, png in previews(rows, contract=contract):
        store.put(store.join(folder, "private", "cases", f"{slice_id}.png"), png, private=True)
        written += 1
    return written


def _best(
    kept_N: NDArray[np.bool_], rank_by_N: NDArray[np.float64], group_N: NDArray[np.int64]
) -> list[int]:
    """Return the best row of each patient, best first, at most SHOWN."""
    order = np.flatnonzero(kept_N)
    order = order[np.argsort(-rank_by_N[order], kind="stable")]
    _, first = np.unique(group_N[order], return_index=True)
    return [int(row) for row in order[np.sort(first)][:SHOWN]]


def _details(joined: Joined, rows: list[int]) -> dict[int, dict[str, Any]]:
    """Read size and lesions of some scored slices; only the files that hold them are opened."""
    scored_rows = joined.row_N[joined.scored_N]
    table = joined.scored.table
    ids = table["slice_id"].take(pa.array(scored_rows[rows], pa.int64())).to_pylist()
    files = table["file"].take(pa.array(scored_rows[rows], pa.int64())).to_pylist()
    details: dict[str, dict[str, Any]] = {}
    for number in set(files):
        part = tables.read(joined.scored.files[number], list(_SHAPE))
        kept = part.filter(pc.is_in(part["slice_id"], value_set=pa.array(ids, pa.string())))
        details |= {row["slice_id"]: row for row in kept.to_pylist()}
    return {row: _rounded(details[slice_id]) for row, slice_id in zip(rows, ids, strict=True)}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    lesions = [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in lesion.items() if k != "mask_px"}
        for lesion in row["lesions"]
    ]
    spacing = {
        name: None if row[name] is None else round(row[name], 6)
        for name in ("spacing_row_mm", "spacing_col_mm")
    }
    return row | spacing | {"lesions": lesions}
