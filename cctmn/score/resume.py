"""Which slices are done, which are left, and whether the counts balance.

A whole Parquet file is the record of a commit. The ids are in the same file as their results, so
there is no second record that could disagree. Every file is read once when a run begins, and one
that is cut or changed counts as not written.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cctmn import store, tables
from cctmn.errors import ResumeError, state_of
from cctmn.numerics import device_name_of_file
from cctmn.score import commit


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


def remove_damaged(folder: str, *, stamp: commit.Stamp) -> int:
    """Read every file once and remove those that are cut or changed; return their number.

    Their slices are pending again. Raises ResumeError for a file of another run, and for one on S3
    that this job cannot have written.
    """
    removed = 0
    if not store.traits(folder).whole_writes:
        for leftover in store.to_path(folder).glob(".*.tmp"):
            leftover.unlink()
            removed += 1
    for uri in tables.parquet_files(folder):
        if commit.is_whole(uri, stamp=stamp):
            continue
        if store.traits(uri).whole_writes and not commit.is_named_by_hash(uri):
            raise ResumeError("not a Parquet file, and not of this job; remove it", uri)
        store.delete(uri)
        removed += 1
    return removed


def done(folder: str) -> pa.ChunkedArray:
    """Return the slice_id of every row."""
    ids = [tables.read(uri, ["slice_id"])["slice_id"] for uri in tables.parquet_files(folder)]
    return pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())


def withdraw(folder: str, codes: Collection[str] | None) -> int:
    """Remove the rows with these codes (None: all), so that their slices are pending again.

    Returns their number.
    """
    withdrawn = 0
    for uri in tables.parquet_files(folder):
        found = tables.read(uri, ["error_code"])["error_code"]
        keep = (
            pc.equal(found, "")
            if codes is None
            else pc.invert(pc.is_in(found, value_set=pa.array(sorted(codes), pa.string())))
        )
        if not pc.all(keep).as_py():
            withdrawn += _rewrite(uri, tables.read(uri, None), keep=keep)
    return withdrawn


def remove_doubles(folder: str) -> int:
    """Keep the first row of each slice_id; return the number of rows removed.

    Only two writers at once can double a row. Rows are deterministic, so either is right.
    """
    finished = done(folder)
    if pc.count_distinct(finished).as_py() == len(finished):
        return 0
    seen: set[str] = set()
    removed = 0
    for uri in tables.parquet_files(folder):
        table = tables.read(uri, None)
        keep = []
        for slice_id in table["slice_id"].to_pylist():
            keep.append(slice_id not in seen)
            seen.add(slice_id)
        removed += _rewrite(uri, table, keep=pa.array(keep, pa.bool_()))
    return removed


def _rewrite(uri: str, table: pa.Table, *, keep: pa.Array | pa.ChunkedArray) -> int:
    kept = table.filter(keep)
    removed = len(table) - len(kept)
    if removed:
        commit.rewrite(kept, uri)
    return removed


def write_inventory(folder: str, indexed: Iterator[pa.Table], *, finished: pa.ChunkedArray) -> int:
    """Write the tables as a new generation, carry over rows that they lack, drop the old files.

    A slice without a row is not carried over if its object was indexed anew and no longer holds
    it. Returns the number of finished slices whose object was replaced.
    """
    old = tables.parquet_files(folder)
    generation = 1 + max((tables.generation(uri) for uri in old), default=-1)
    seen: list[pa.Table] = []
    written: list[str] = []

    def write(table: pa.Table) -> None:
        written.append(_put_part(folder, generation, len(written), table))

    for table in indexed:
        write(table)
        seen.append(table.select(["slice_id", "etag"]))
    new = pa.concat_tables(seen) if seen else pa.table({"slice_id": [], "etag": []})
    new_uris = functools.cache(functools.partial(_uris, list(written)))
    changed = 0
    for uri in old:
        table = tables.read(uri, None)
        is_finished = pc.is_in(table["slice_id"], value_set=finished)
        is_new = pc.is_in(table["slice_id"], value_set=new["slice_id"])
        keep = pc.invert(is_new)
        if pc.any(pc.and_not(keep, is_finished)).as_py():
            is_gone = pc.and_not(pc.is_in(table["uri"], value_set=new_uris()), is_finished)
            keep = pc.and_not(keep, is_gone)
        if len(carried := table.filter(keep)):
            write(carried)
        if len(both := table.filter(pc.and_(is_finished, is_new))):
            place = pc.index_in(both["slice_id"], value_set=new["slice_id"].combine_chunks())
            etags = new["etag"].combine_chunks().take(place.combine_chunks())
            changed += pc.sum(pc.not_equal(etags, both["etag"])).as_py() or 0
    for uri in old:
        store.delete(uri)
    return changed


def _uris(files: list[str]) -> pa.Array:
    chunks = [tables.read(uri, ["uri"])["uri"].unique() for uri in files]
    return pa.concat_arrays(chunks).unique() if chunks else pa.array([], pa.string())


def _put_part(folder: str, generation: int, number: int, table: pa.Table) -> str:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    uri = store.join(folder, f"g{generation:06d}-{number:06d}.parquet")
    store.put(uri, buffer.getvalue(), private=True)
    return uri


def write_todo(
    folder: str, *, indexed: Iterator[pa.Table], finished: pa.ChunkedArray, limit: int | None
) -> int:
    """Write the first `limit` rows that are not finished; return their number."""
    clear(folder)
    written = 0
    for number, table in enumerate(indexed):
        left = tables.without(table, finished)
        left = left if limit is None else left.slice(0, limit - written)
        if len(left):
            _put_part(folder, 0, number, left)
            written += len(left)
    return written


def clear(folder: str) -> None:
    """Remove the Parquet files of a folder."""
    for uri in tables.parquet_files(folder):
        store.delete(uri)


def count(folder: str, *, indexed: Iterator[pa.Table]) -> Counts:
    """Count the rows. Raises ResumeError if a prediction is of a slice that the inventory lacks."""
    codes: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    ids: list[pa.Array] = []
    abstained = 0
    for uri in tables.parquet_files(folder):
        table = tables.read(uri, ["slice_id", "error_code", "flags", "abstained", "pred_class"])
        ids += table["slice_id"].chunks
        codes.update(table["error_code"].to_pylist())
        scored = table.filter(pc.equal(table["error_code"], ""))
        flags.update(pc.list_flatten(scored["flags"]).to_pylist())
        if len(scored):
            devices[device_name_of_file(table.schema.metadata)] += len(scored)
        counted = scored.filter(pc.invert(scored["abstained"].fill_null(False)))
        abstained += len(scored) - len(counted)
        classes.update(name for name in counted["pred_class"].to_pylist() if name is not None)
    states: Counter[str] = Counter()
    for code, rows in codes.items():
        states[state_of(code)] += rows
    del codes[""]
    finished = pa.chunked_array(ids, pa.string())
    total = pending = 0
    for table in indexed:
        total += len(table)
        pending += len(tables.without(table, finished))
    if total - pending != len(finished):
        raise ResumeError(
            f"{len(finished) - (total - pending)} rows are of slices that the inventory "
            "does not know; OUT/private/inventory was changed: use a new OUT",
            folder,
        )
    return Counts(
        inventory=total,
        ok=states["ok"],
        passed_over=states["passed_over"],
        error=states["error"],
        pending=pending,
        codes=dict(sorted(codes.items())),
        flags=dict(sorted(flags.items())),
        abstained=abstained,
        classes=dict(sorted(classes.items())),
        devices=dict(sorted(devices.items())),
    )
