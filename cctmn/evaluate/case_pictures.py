"""The pictures of the gallery, and how each is shown.

Reads: the images of the cases, by the inventory of the output folder.
Writes: private/cases/<slice_id>.png, and the entry `display` of each case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cctmn import store, tables
from cctmn.contract import InputContract
from cctmn.evaluate.options import TrueLesions
from cctmn.read.preview import FULL_PX, previews

Cases = Mapping[str, Sequence[dict[str, Any]]]


def slices_of(cases: Cases) -> Iterator[dict[str, Any]]:
    """Yield the slices of every list, those of patients too."""
    for entries in cases.values():
        for entry in entries:
            yield from entry.get("slices", [entry])


def add_truth(cases: Cases, true_lesions: TrueLesions) -> None:
    """Add the true lesions to each slice of which they are known."""
    for case in slices_of(cases):
        lesions = true_lesions(case["slice_id"])
        if lesions is not None:
            case["true_lesions"] = lesions


def write(cases: Cases, *, out: str, contract: InputContract, folder: str) -> int:
    """Write private/cases/<slice_id>.png of each case, and return the number of pictures.

    No picture is written if the output folder has no inventory.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for case in slices_of(cases):
        by_id.setdefault(case["slice_id"], []).append(case)
    # Without the type, an empty list would become an array of nulls.
    wanted = pa.array(sorted(by_id), pa.string())
    rows: list[dict[str, Any]] = []
    for table in tables.inventory(store.join(out, "private", "inventory")):
        rows += table.filter(pc.is_in(table["slice_id"], value_set=wanted)).to_pylist()
    written = 0
    for slice_id, preview in previews(rows, contract=contract, side_px=FULL_PX):
        place = store.join(folder, "private", "cases", f"{slice_id}.png")
        store.put(place, preview.png, private=True)
        for case in by_id[slice_id]:
            case["display"] = preview.as_json()
        written += 1
    return written
