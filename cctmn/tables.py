"""Read the Parquet tables of an output folder, predictions and inventory, as Arrow tables.

Scoring resumes from them and evaluation joins them with labels, so both read them here.

A file that `cctmn compact` has merged from others names them in its metadata, and they are deleted
after it is written. Until then every row is in two files, so the listing of this module leaves out
a file that a merged one replaces.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cctmn import id_set, store
from cctmn.errors import DataError, ObjectError, ResumeError
from cctmn.id_set import IdSet
from cctmn.parallel import map_in_order

# Files that are read at a time: from storage that answers late, from a disk, and above this size.
THREADS: Final = 64
DISK_THREADS: Final = 4
LARGE_BYTES: Final = 16 << 20
LARGE_THREADS: Final = 2

# The name of a merged file begins with this, so that a folder without one costs no more to list.
MERGED: Final = "merged-"
# In the metadata of a merged file: the names of the files that it replaces.
REPLACES: Final = b"cctmn.replaces"

R = TypeVar("R")

OTHER_FORM: Final = "not a file written by cctmn; remove it from OUT"
_GONE: Final = "was merged with others while this command read it; run the command again"
# The end of a file that holds its footer: some 15 KB with all columns. A longer one is read again.
_FOOTER_BYTES: Final = 64 << 10


def parquet_files(folder: str) -> list[str]:
    """Return the URIs of the Parquet files of a folder, sorted; none if it does not exist."""
    return list(sizes(folder))


def sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the Parquet files of a folder by URI, sorted, from one listing.

    A file that a merged one replaces is left out: its rows are those of the merged file.
    """
    present = stored_sizes(folder)
    replaced = {uri for uris in replacements(present).values() for uri in uris}
    return {uri: size for uri, size in present.items() if uri not in replaced}


def stored_sizes(folder: str) -> dict[str, int]:
    """Return the same as `sizes`, with the files that a merged one replaces."""
    filesystem, path = store.arrow_filesystem(folder)
    selector = pafs.FileSelector(path, allow_not_found=True)
    found = {info.base_name: info.size or 0 for info in filesystem.get_file_info(selector)}
    return {store.join(folder, n): found[n] for n in sorted(found) if n.endswith(".parquet")}


def replacements(present: Mapping[str, int]) -> dict[str, list[str]]:
    """Return, by merged file, those of the present files that it replaces, if there are any.

    `present` has sizes by URI. A merged file whose footer cannot be read replaces nothing.
    """
    merged = [uri for uri in present if uri.rsplit("/", 1)[1].startswith(MERGED)]
    if not merged or len(present) == 1:
        return {}
    named = map_in_order(lambda uri: _replaced(uri, present[uri]), merged, threads=THREADS)
    result = {}
    for uri, names in zip(merged, named, strict=True):
        replaced = [store.join(store.parent(uri), f"{name}.parquet") for name in names]
        if held := [other for other in replaced if other in present and other != uri]:
            result[uri] = held
    return result


def _replaced(uri: str, size: int) -> tuple[str, ...]:
    try:
        return _replaced_names(uri, size)
    except ObjectError as error:
        if error.code != "not_found":
            raise
    except (pa.ArrowException, OSError, ValueError):
        pass
    return ()


@functools.lru_cache(maxsize=4096)
def _replaced_names(uri: str, size: int) -> tuple[str, ...]:
    metadata = pq.read_metadata(io.BytesIO(file_end(uri, size))).metadata or {}
    return tuple(json.loads(metadata.get(REPLACES, b"[]")))


def file_end(uri: str, size: int) -> bytes:
    """Return the end of a Parquet file with its whole footer, by one or two small reads.

    Where the footer is all that is asked for, its place in the file does not matter.
    """
    length = min(size, _FOOTER_BYTES)
    end = store.read_range(uri, start=size - length, length=length)
    needed = footer_bytes(end)
    if length < needed <= size:
        return store.read_range(uri, start=size - needed, length=needed)
    return end


def footer_bytes(end: bytes) -> int:
    """Return the length of the footer of a Parquet file from its last bytes."""
    return int.from_bytes(end[-8:-4], "little") + 8


def read(uri: str, columns: list[str] | None) -> pa.Table:
    """Return these columns of one file (None: all). Raises ResumeError if it has another form."""
    filesystem, path = store.arrow_filesystem(uri)
    try:
        return pq.read_table(path, filesystem=filesystem, columns=columns)
    except FileNotFoundError:
        raise ResumeError(_GONE, uri) from None
    except (KeyError, pa.ArrowInvalid):
        raise ResumeError(OTHER_FORM, uri) from None


def read_opened(file: pq.ParquetFile, columns: Sequence[str], *, uri: str) -> pa.Table:
    """Return these columns of a file that is in memory. Raises ResumeError if it lacks one.

    It costs a third of `read`, which matters for many small files.
    """
    if not set(columns) <= set(file.schema_arrow.names):
        raise ResumeError(OTHER_FORM, uri)
    return file.read(columns=list(columns), use_threads=False)


def schema(uri: str) -> pa.Schema:
    """Return the columns of one file. Raises DataError if it has another form."""
    filesystem, path = store.arrow_filesystem(uri)
    try:
        return pq.read_schema(path, filesystem=filesystem)
    except pa.ArrowInvalid:
        raise DataError(OTHER_FORM, uri) from None


def open_whole(uri: str) -> pq.ParquetFile:
    """Read a file by one request. Raises DataError if it has another form."""
    try:
        return pq.ParquetFile(pa.BufferReader(store.read_all(uri)))
    except ObjectError as error:
        if error.code != "not_found":
            raise
        raise DataError(_GONE, uri) from None
    except pa.ArrowInvalid:
        raise DataError(OTHER_FORM, uri) from None


def read_present(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return those of the columns that the file has. Raises DataError if it has another form.

    Files of one folder can differ: an older version of cctmn wrote fewer columns.
    """
    file = open_whole(uri)
    present = set(file.schema_arrow.names)
    return file.read(columns=[name for name in columns if name in present])


def filled(file: pq.ParquetFile, columns: pa.Schema) -> pa.Table:
    """Return these columns of an opened file, in this order; one that it lacks is null."""
    names = set(file.schema_arrow.names)
    wanted = [name for name in columns.names if name in names]
    # Without threads: their start costs more than a small file, of which there are many.
    present = file.read(columns=wanted, use_threads=False)
    return pa.table(
        [
            present[field.name].cast(field.type)
            if field.name in names
            else pa.nulls(len(present), field.type)
            for field in columns
        ],
        schema=columns,
    )


def read_filled(uri: str, columns: pa.Schema) -> pa.Table:
    """Return these columns of one file, in this order; one that the file lacks is null."""
    return filled(open_whole(uri), columns)


def map_files(work: Callable[[str], R], files: Mapping[str, int]) -> Iterator[tuple[str, R]]:
    """Yield each file, given with its size, and the result of `work`, which reads it as a whole.

    Many small files are read at a time; after them the large ones, of which only a few at a time
    fit in memory.
    """
    small = [uri for uri, size in files.items() if size <= LARGE_BYTES]
    large = [uri for uri, size in files.items() if size > LARGE_BYTES]
    for uris, threads in ((small, _threads(small)), (large, LARGE_THREADS)):
        yield from zip(uris, map_in_order(work, uris, threads=threads), strict=True)


def rows(folder: str) -> list[dict[str, Any]]:
    """Return every row of a folder as a dictionary; the folder must fit in memory."""
    return [row for uri in parquet_files(folder) for row in read(uri, None).to_pylist()]


def read_each(
    uris: Sequence[str], columns: Sequence[str] | None = None, *, threads: int = THREADS
) -> Iterator[pa.Table]:
    """Yield these columns (None: all) of each file in order, read by at most so many threads.

    The files are of cctmn's own form and small: each is read as a whole, by one request.
    """

    def read_one(uri: str) -> pa.Table:
        try:
            file = pq.ParquetFile(pa.BufferReader(store.read_all(uri)))
        except pa.ArrowInvalid:
            raise ResumeError(OTHER_FORM, uri) from None
        return read_opened(file, columns or file.schema_arrow.names, uri=uri)

    return map_in_order(read_one, uris, threads=min(threads, _threads(uris)))


def _threads(uris: Sequence[str]) -> int:
    """Return how many of these files to read at a time. Threads that do not wait only compete."""
    return DISK_THREADS if uris and store.traits(uris[0]).file_locks else THREADS


def put_private(table: pa.Table, folder: str, *, name: str) -> str:
    """Write a table as one file for its owner alone; return its URI."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    uri = store.join(folder, f"{name}.parquet")
    store.put(uri, buffer.getvalue(), private=True)
    return uri


def inventory(folder: str) -> Iterator[pa.Table]:
    """Yield the tables of the inventory; of a row that was written twice, only the newer one."""
    files = parquet_files(folder)
    if len({generation(uri) for uri in files}) <= 1:
        yield from read_each(files)
        return
    # Rows that a run has replaced are in the older files until it ends.
    newest_first = sorted(files, key=lambda uri: (-generation(uri), uri))
    ids = [id_set.of_hex(part["slice_id"]) for part in read_each(newest_first, ["slice_id"])]
    keep = np.ones(sum(map(len, ids)), np.bool_)
    keep[IdSet(id_set.concatenated(ids)).repetitions()] = False
    ends = np.cumsum([len(part) for part in ids])
    kept = dict(zip(newest_first, np.split(keep, ends[:-1]), strict=True))
    for uri, table in zip(files, read_each(files), strict=True):
        yield table if kept[uri].all() else table.filter(pa.array(kept[uri]))


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


def generation(uri: str) -> int:
    """Return the number, from 0, of the run that wrote a file of the inventory."""
    try:
        return int(uri.rsplit("/", 1)[1][1:7])
    except ValueError:
        raise ResumeError("not a file of the inventory; remove it from OUT", uri) from None
