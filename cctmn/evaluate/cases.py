"""The slices worth looking at: worst misses, worst false alarms, best hits.

In: joined predictions and probabilities. Out: some of each, one a patient at most, with their
lesions, and pictures of them. Cases carry keyed ids alone; the pictures stay in private/.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.evaluate.join import Joined
from cctmn.metrics.intervals import Sample
from cctmn.read.intensity import InputContract
from cctmn.read.preview import previews

SHOWN: Final = 8  # of each kind: a page on a screen
CLEAN: Final = "control"  # the class without disease; the first one where none has this name


def choose(joined: Joined, sample: Sample) -> dict[str, list[dict[str, Any]]]:
    """`misses` (disease called another class), `false_alarms`, `hits` (disease called rightly).

    Misses and false alarms by how much more probable the wrong class was said to be than the true
    one, hits by the probability of the true one.
    """
    names = sample.classes
    clean = names.index(CLEAN) if CLEAN in names else 0
    rows = np.arange(len(sample.truth_N))
    called_N, truth_N = sample.called_N, sample.truth_N
    p_true_N, p_called_N = sample.score_NC[rows, truth_N], sample.score_NC[rows, called_N]
    sick_N, wrong_N = truth_N != clean, called_N != truth_N
    kinds = {
        "misses": (sick_N & wrong_N, p_called_N - p_true_N),
        "false_alarms": (~sick_N & wrong_N, p_called_N - p_true_N),
        "hits": (sick_N & ~wrong_N, p_true_N),
    }
    chosen = {
        kind: _best(kept_N, merit_N, sample.group_N) for kind, (kept_N, merit_N) in kinds.items()
    }
    wanted = {row for found in chosen.values() for row in found}
    details = _details(joined, sorted(wanted))
    return {
        kind: [
            {
                "truth": names[truth_N[row]],
                "predicted": names[called_N[row]],
                "p": {n: round(float(sample.score_NC[row, c]), 4) for c, n in enumerate(names)},
            }
            | details[row]
            for row in found
        ]
        for kind, found in chosen.items()
    }


def pictures(
    joined: Joined, cases: dict[str, list[dict[str, Any]]], *, contract: InputContract, folder: str
) -> int:
    """Write private/cases/<slice_id>.png of each case into the folder; the number written.

    A folder whose inventory is elsewhere has no pictures.
    """
    wanted = pa.array(sorted({case["slice_id"] for found in cases.values() for case in found}))
    rows: list[dict[str, Any]] = []
    for table in tables.inventory(store.join(joined.scored.out, "private", "inventory")):
        rows += table.filter(pc.is_in(table["slice_id"], value_set=wanted)).to_pylist()
    written = 0
    for slice_id, png in previews(rows, contract=contract):
        store.put(store.join(folder, "private", "cases", f"{slice_id}.png"), png, private=True)
        written += 1
    return written


def _best(
    kept_N: NDArray[np.bool_], merit_N: NDArray[np.float64], group_N: NDArray[np.int64]
) -> list[int]:
    """The best row of each patient, then the best of those."""
    order = np.flatnonzero(kept_N)
    order = order[np.argsort(-merit_N[order], kind="stable")]
    _, first = np.unique(group_N[order], return_index=True)
    return [int(row) for row in order[np.sort(first)][:SHOWN]]


def _details(joined: Joined, rows: list[int]) -> dict[int, dict[str, Any]]:
    """Size and lesions of some scored slices, from the files that hold them alone."""
    scored_rows = joined.row_N[joined.scored_N]
    table = joined.scored.table
    ids = table["slice_id"].take(pa.array(scored_rows[rows], pa.int64())).to_pylist()
    files = table["file"].take(pa.array(scored_rows[rows], pa.int64())).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    for number in set(files):
        part = tables.read(joined.scored.files[number], ["slice_id", "rows", "cols", "lesions"])
        kept = part.filter(pc.is_in(part["slice_id"], value_set=pa.array(ids)))
        found |= {row["slice_id"]: row for row in kept.to_pylist()}
    return {row: _rounded(found[slice_id]) for row, slice_id in zip(rows, ids, strict=True)}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    lesions = [
        {k: round(v, 3) if isinstance(v, float) else v for k, v in lesion.items() if k != "mask_px"}
        for lesion in row["lesions"]
    ]
    return row | {"lesions": lesions}
