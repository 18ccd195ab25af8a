"""The Parquet tables of an output folder: predictions and inventory, as Arrow tables.

In: the URI of OUT/predictions or OUT/private/inventory. Out: their files and rows. Scoring resumes
from them and evaluation joins them with labels, so both read them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cctmn import store
from cctmn.errors import ResumeError


def parquet_files(folder: str) -> list[str]:
    """URIs of the Parquet files of a folder, sorted; none where there is no folder."""
    filesystem, path = store.arrow_filesystem(folder)
    selector = pafs.FileSelector(path, allow_not_found=True)
    names = [info.base_name for info in filesystem.get_file_info(selector)]
    return [store.join(folder, n) for n in sorted(names) if n.endswith(".parquet")]


def read(uri: str, columns: list[str] | None) -> pa.Table:
    """The columns (None: all) of one file. Raises ResumeError if it is none of ours."""
    filesystem, path = store.arrow_filesystem(uri)
    try:
        return pq.read_table(path, filesystem=filesystem, columns=columns)
    except (KeyError, pa.ArrowInvalid):
        raise ResumeError(f"{uri}: not a file of predictions; remove it from OUT") from None


def rows(folder: str) -> list[dict[str, Any]]:
    """Every prediction as a dictionary; for folders that fit in memory."""
    return [row for uri in parquet_files(folder) for row in read(uri, None).to_pylist()]


def inventory(folder: str) -> Iterator[pa.Table]:
    """Tables of the inventory; of a row written twice the younger one."""
    seen: pa.Array = pa.array([], pa.string())
    files = parquet_files(folder)
    generations = {generation(uri) for uri in files}
    for number in sorted(generations, reverse=True):
        ids = []
        for uri in files:
            if generation(uri) != number:
                continue
            table = without(read(uri, None), seen)
            ids.append(table["slice_id"])
            yield table
        if len(generations) > 1:  # an index that was cut short left its predecessor
            seen = pa.concat_arrays([seen, *(chunk for c in ids for chunk in c.chunks)])


def without(table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows whose slice_id is not among the ids."""
    if not len(ids):
        return table
    return table.filter(pc.invert(pc.is_in(table["slice_id"], value_set=ids)))


def generation(uri: str) -> int:
    """The run that wrote a file of the inventory, from 0; a younger one knows better."""
    try:
        return int(uri.rsplit("/", 1)[1][1:7])
    except ValueError:
        raise ResumeError(f"{uri}: not a file of the inventory; remove it from OUT") from None
