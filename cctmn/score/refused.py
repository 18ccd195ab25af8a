"""The slices of an output folder without a score, by name: errors, or what was passed over.

Names may identify patients, so they are read from OUT/private, and only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cctmn import store, tables
from cctmn.errors import state_of


class Refused(NamedTuple):
    """A row without a score."""

    code: str
    place: str  # path or URI, with ::member in an archive and #frame above 0


def refused(out: str, *, state: str) -> Iterator[Refused]:
    """Yield the rows of this state, "error" or "passed_over", in the order of the inventory.

    Raises ResumeError if OUT has no inventory.
    """
    codes: dict[str, str] = {}
    for uri in tables.parquet_files(store.join(store.to_uri(out), "predictions")):
        table = tables.read(uri, ["slice_id", "error_code"])
        pairs = zip(table["slice_id"].to_pylist(), table["error_code"].to_pylist(), strict=True)
        codes |= {slice_id: code for slice_id, code in pairs if state_of(code) == state}
    for table in tables.named_inventory(out):
        columns = (table[name].to_pylist() for name in ("slice_id", "uri", "member", "frame"))
        for slice_id, uri, member, frame in zip(*columns, strict=True):
            if slice_id in codes:
                place = tables.place(uri, member=member, frame=frame)
                yield Refused(codes[slice_id], place)
