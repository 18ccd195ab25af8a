"""Whether every slice of the inventory has its row: the counts that balance at the end of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from cctmn import id_set, tables
from cctmn.errors import ResumeError, state_of
from cctmn.id_set import IdSet
from cctmn.score.prediction_files import PredictionFiles


@dataclass(frozen=True)
class Counts:
    """Slices of the whole folder: inventory = ok + passed_over + error + pending, checked."""

    inventory: int
    ok: int
    passed_over: int
    error: int
    pending: int
    codes: dict[str, int]  # rows with a code, passed over or errors
    flags: dict[str, int]  # scored rows by flag
    abstained: int  # scored rows outside what the model is made for
    classes: dict[str, int]  # scored rows by predicted class, without the abstained ones
    devices: dict[str, int] = field(default_factory=dict)  # scored rows by name of the device


def without(table: pa.Table, finished: IdSet) -> pa.Table:
    """Return the rows of an inventory table whose slices have no prediction."""
    if not len(finished):
        return table
    return table.filter(pa.array(~finished.contains(id_set.of_hex(table["slice_id"]))))


def count(done: PredictionFiles, *, inventory: str) -> Counts:
    """Count the rows against the inventory in this folder, given by URI.

    Raises ResumeError if a prediction is of a slice that the inventory lacks.
    """
    finished, tally = done.finished, done.tally()
    total = pending = 0
    for table in tables.read_each(tables.parquet_files(inventory), ["slice_id"]):
        total += len(table)
        pending += len(without(table, finished))
    if total - pending != len(finished):
        raise ResumeError(
            f"{len(finished) - (total - pending)} rows are of slices that the inventory "
            "does not know; OUT/private/inventory was changed: use a new OUT",
            done.folder,
        )
    states: Counter[str] = Counter()
    for code, rows in tally.codes.items():
        states[state_of(code)] += rows
    codes = {code: rows for code, rows in tally.codes.items() if code}
    return Counts(
        inventory=total,
        ok=states["ok"],
        passed_over=states["passed_over"],
        error=states["error"],
        pending=pending,
        codes=dict(sorted(codes.items())),
        flags=dict(sorted(tally.flags.items())),
        abstained=tally.abstained,
        classes=dict(sorted(tally.classes.items())),
        devices=dict(sorted(tally.devices.items())),
    )
