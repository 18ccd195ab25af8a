"""Read the Parquet tables of an output folder, predictions and inventory, as Arrow tables.

Scoring resumes from them and evaluation joins them with labels, so both read them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cctmn import store
from cctmn.errors import DataError, ResumeError


def parquet_files(folder: str) -> list[str]:
    """Return the URIs of the Parquet files of a folder, sorted; none if it does not exist."""
    return list(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the Parquet files of a folder by URI, sorted, from one listing."""
    filesystem, path = store.arrow_filesystem(folder)
    selector = pafs.FileSelector(path, allow_not_found=True)
    found = {info.base_name: info.size or 0 for info in filesystem.get_file_info(selector)}
    return {store.join(folder, n): found[n] for n in sorted(found) if n.endswith(".parquet")}


def read(uri: str, columns: list[str] | None) -> pa.Table:
    """Return these columns of one file (None: all). Raises ResumeError if it has another form."""
    filesystem, path = store.arrow_filesystem(uri)
    try:
        return pq.read_table(path, filesystem=filesystem, columns=columns)
    except (KeyError, pa.ArrowInvalid):
        raise ResumeError("not a file written by cctmn; remove it from OUT", uri) from None


def schema(uri: str) -> pa.Schema:
    """Return the columns of one file. Raises DataError if it has another form."""
    filesystem, path = store.arrow_filesystem(uri)
    try:
        return pq.read_schema(path, filesystem=filesystem)
    except pa.ArrowInvalid:
        raise DataError("not a file written by cctmn; remove it from OUT", uri) from None


def read_present(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return those of the columns that the file has. Raises DataError if it has another form.

    Files of one folder can differ: an older version of cctmn wrote fewer columns.
    """
    filesystem, path = store.arrow_filesystem(uri)
    try:
        with filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            present = set(parquet.schema_arrow.names)
            return parquet.read(columns=[name for name in columns if name in present])
    except pa.ArrowInvalid:
        raise DataError("not a file written by cctmn; remove it from OUT", uri) from None


def read_filled(uri: str, columns: pa.Schema) -> pa.Table:
    """Return these columns of one file, in this order; one that the file lacks is null."""
    present = read_present(uri, columns.names)
    return pa.table(
        [
            present[field.name].cast(field.type)
            if field.name in present.column_names
            else pa.nulls(len(present), field.type)
            for field in columns
        ],
        schema=columns,
    )


def rows(folder: str) -> list[dict[str, Any]]:
    """Return every row of a folder as a dictionary; the folder must fit in memory."""
    return [row for uri in parquet_files(folder) for row in read(uri, None).to_pylist()]


def inventory(folder: str) -> Iterator[pa.Table]:
    """Yield the tables of the inventory; of a row that was written twice, only the newer one."""
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
        # An index that was interrupted has left the files of the one before.
        if len(generations) > 1:
            seen = pa.concat_arrays([seen, *(chunk for c in ids for chunk in c.chunks)])


def named_inventory(out: str) -> Iterator[pa.Table]:
    """Yield the inventory of an output folder, which names the slices.

    Raises ResumeError if OUT, a path or URI, has no inventory.
    """
    folder = store.join(store.to_uri(out), "private", "inventory")
    if not parquet_files(folder):
        raise ResumeError("no private/inventory, which has the names; restore private/", out)
    yield from inventory(folder)


def place(uri: str, *, member: str, frame: int) -> str:
    """Return a slice's name for a person: path or URI, ::member in an archive, #frame above 0."""
    inside = f"::{member}" if member else ""
    return f"{store.display(uri)}{inside}" + (f"#{frame}" if frame else "")


def without(table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the rows whose slice_id is not among the ids."""
    if not len(ids):
        return table
    return table.filter(pc.invert(pc.is_in(table["slice_id"], value_set=ids)))


def generation(uri: str) -> int:
    """Return the number, from 0, of the run that wrote a file of the inventory."""
    try:
        return int(uri.rsplit("/", 1)[1][1:7])
    except ValueError:
        raise ResumeError("not a file of the inventory; remove it from OUT", uri) from None
