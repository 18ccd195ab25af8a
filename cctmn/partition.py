"""Split more rows than fit in memory into parts that do, by the value of a key."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

# Rows that are held in memory: some hundred MB of the columns that describe a slice.
ROWS_IN_MEMORY: Final = 500_000
# The first digits of a key choose its part: 256 parts.
PREFIX: Final = 2


def parts_by_key(tables: Iterable[pa.Table], key: str) -> Iterator[pa.Table]:
    """Yield the rows of all tables again, in parts that have all rows of each key.

    `key` is a column of keyed pseudonyms, hex digits that are evenly distributed. The parts are in
    the order of the keys. If there are more than ROWS_IN_MEMORY rows, they wait in files in the
    folder for temporary files.
    """
    held: list[pa.Table] = []
    rows = 0
    with ExitStack() as opened:
        folder: Path | None = None
        writers: dict[str, pa.RecordBatchFileWriter] = {}
        for table in tables:
            held.append(table)
            rows += len(table)
            if rows < ROWS_IN_MEMORY:
                continue
            if folder is None:
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="cctmn-")))
            _spill(pa.concat_tables(held), key, folder=folder, writers=writers)
            held, rows = [], 0
        if folder is None:
            yield pa.concat_tables(held)
            return
        if held:
            _spill(pa.concat_tables(held), key, folder=folder, writers=writers)
        for name in sorted(writers):
            writers[name].close()
            with pa.memory_map(str(folder / name)) as file:
                yield pa.ipc.open_file(file).read_all()


def _spill(
    table: pa.Table, key: str, *, folder: Path, writers: dict[str, pa.RecordBatchFileWriter]
) -> None:
    prefixes = pc.utf8_slice_codeunits(table[key], 0, PREFIX)
    order = pc.sort_indices(prefixes)
    table, prefixes = table.take(order), prefixes.take(order)
    at = 0
    for prefix in pc.value_counts(prefixes).to_pylist():
        name, count = prefix["values"], prefix["counts"]
        if name not in writers:
            writers[name] = pa.ipc.new_file(str(folder / name), table.schema)
        writers[name].write_table(table.slice(at, count))
        at += count
