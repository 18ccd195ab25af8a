"""Merge the many small files of OUT/predictions into few large ones; `cctmn compact` calls it.

No row is lost or doubled, whenever the process dies. A merged file appears whole or not at all, and
names in its metadata the files that it replaces. These are deleted only after it is written. A
process that dies between the two leaves rows in two files: `tables.sizes` leaves out the replaced
ones, and the next run that writes deletes them (`finish_deleting`). A file is merged only if its
hash is right, so that damage does not get into a file whose own hash is right.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import folder, store, tables
from cctmn.errors import DataError, ResumeError
from cctmn.reporter import Reporter, report_progress, silent
from cctmn.score import commit

# A file of this size is left alone, and a merged one ends when it has reached it. So merged files
# have 128 to 256 MB, but for the last one of each kind.
MERGED_BYTES: Final = 128 << 20
# Rows in memory that end a row group before it has ROW_GROUP_ROWS.
ROW_GROUP_BYTES: Final = 128 << 20
# Files that are read or deleted at a time. The S3 client has 64 connections.
THREADS: Final = 32
# Content that is read ahead, so that a few large files do not fill the memory.
AHEAD_BYTES: Final = 64 << 20
# From this number of files on, `cctmn score` mentions the command.
MANY_FILES: Final = 500


@dataclass(frozen=True)
class CompactSummary:
    """What a compaction did, or would do: then the numbers of files written are estimates."""

    files_before: int
    files_after: int
    merged: int  # files that were replaced
    written: int  # files that replace them
    damaged: int  # files that were left as they are, for `cctmn score` to score their slices again

    def text(self, *, dry_run: bool = False) -> str:
        """Return the summary as one line."""
        about = "about " if dry_run else ""
        numbers = f"{self.files_before:,} files before, {about}{self.files_after:,} after"
        if not self.merged:
            return f"nothing to merge: {numbers}"
        verb = "would merge" if dry_run else "merged"
        return f"{verb} {self.merged:,} files into {about}{self.written:,}: {numbers}"


@dataclass
class _Kind:
    """The small files whose columns and metadata are the same, so that they can be merged."""

    schema: pa.Schema
    sizes: dict[str, int] = field(default_factory=dict)  # by URI, in order
    data_bytes: int = 0  # without footers


def compact(out: str, *, report: Reporter = silent) -> CompactSummary:
    """Merge the small files of OUT's predictions.

    The rows are in the order of the names of the files. Raises DataError if OUT has no
    predictions, and ResumeError if another process is writing there.
    """
    uri = store.to_uri(out)
    predictions = store.join(uri, "predictions")
    _check_present(predictions, out)
    with folder.only_writer(uri, report=report):
        commit.remove_leftovers(predictions)
        finish_deleting(predictions)
        before = tables.sizes(predictions)
        small, damaged = _plan(before)
        counter = _Counter(sum(len(kind.sizes) for kind in small), report)
        merged = written = 0
        with ThreadPoolExecutor(THREADS, thread_name_prefix="compact") as pool:
            for kind in small:
                contents = _whole(_read_ahead(kind.sizes, pool), damaged, counter)
                for sources in _merge(contents, kind.schema, predictions):
                    _delete(sources, pool)
                    merged += len(sources)
                    written += 1
    after = len(before) - merged + written
    return CompactSummary(len(before), after, merged, written, len(damaged))


def dry_run(out: str) -> CompactSummary:
    """Return what `compact` would do, and write nothing.

    The number of files written is estimated from sizes without footers. A damaged file is noticed
    only if its footer cannot be read. Raises DataError if OUT has no predictions.
    """
    predictions = store.join(store.to_uri(out), "predictions")
    _check_present(predictions, out)
    before = tables.sizes(predictions)
    kinds, damaged = _plan(before)
    several = [kind for kind in kinds if len(kind.sizes) > 1]
    merged = sum(len(kind.sizes) for kind in several)
    written = sum(max(1, -(-kind.data_bytes // MERGED_BYTES)) for kind in several)
    return CompactSummary(
        len(before), len(before) - merged + written, merged, written, len(damaged)
    )


def finish_deleting(predictions: str) -> int:
    """Delete the files that a merged one replaces, as a process that died meanwhile would have.

    Where the merged file is damaged, it is removed instead, and the files that it would replace
    stay. Returns the number of merged files removed.
    """
    replaced = tables.replacements(tables.stored_sizes(predictions))
    if not replaced:
        return 0
    # A merged file that is itself replaced goes first, while its own sources are known from it.
    hidden = {uri for uris in replaced.values() for uri in uris}
    removed = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="compact") as pool:
        for uri in sorted(replaced, key=lambda uri: uri not in hidden):
            if commit.open_whole(uri, stamp=None) is not None:
                _delete(replaced[uri], pool)
            else:
                store.delete(uri)
                removed += 1
    return removed


def many_files(out: str) -> str:
    """Return a line that names the command if OUT has many small files, else nothing."""
    sizes = tables.sizes(store.join(store.to_uri(out), "predictions"))
    if sum(size < MERGED_BYTES for size in sizes.values()) < MANY_FILES:
        return ""
    return f"{len(sizes):,} files; `cctmn compact OUT` merges them"


def _check_present(predictions: str, out: str) -> None:
    if not tables.stored_sizes(predictions):
        raise DataError("holds no predictions; score into it first", out)


def _plan(sizes: dict[str, int]) -> tuple[list[_Kind], list[str]]:
    """Group the small files by columns and metadata; return also those without a readable footer.

    Raises ResumeError for a Parquet file that cctmn has not written.
    """
    small = {uri: size for uri, size in sizes.items() if size < MERGED_BYTES}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="compact") as pool:
        read = list(pool.map(_schema_and_footer_bytes, small, small.values()))
    kinds: dict[bytes, _Kind] = {}
    unreadable: list[str] = []
    for (uri, size), (schema, footer_bytes) in zip(small.items(), read, strict=True):
        if schema is None:
            unreadable.append(uri)
            continue
        if {"slice_id", "error_code"} - set(schema.names):
            raise ResumeError(tables.OTHER_FORM, uri)
        kind = kinds.setdefault(schema.serialize().to_pybytes(), _Kind(schema))
        kind.sizes[uri] = size
        kind.data_bytes += max(0, size - footer_bytes)
    return list(kinds.values()), unreadable


def _schema_and_footer_bytes(uri: str, size: int) -> tuple[pa.Schema | None, int]:
    """Return the columns of a file with the metadata that all files of a kind share."""
    end = tables.file_end(uri, size)
    try:
        schema = pq.read_schema(io.BytesIO(end))
    except (pa.ArrowException, OSError):
        return None, 0
    shared = {k: v for k, v in sorted((schema.metadata or {}).items()) if k != commit.CODES}
    return schema.with_metadata(shared), tables.footer_bytes(end)


class _Counter:
    """Reports how many files are read."""

    def __init__(self, total: int, report: Reporter) -> None:
        self._total, self._report, self._read = total, report, 0

    def add(self) -> None:
        self._read += 1
        fraction = self._read / self._total
        line = f"{self._read:,}/{self._total:,} files  {100 * fraction:.0f} %"
        report_progress(self._report, line, fraction=fraction)


def _read_ahead(sizes: dict[str, int], pool: ThreadPoolExecutor) -> Iterator[tuple[str, bytes]]:
    """Yield each URI with its content, in order, while the next ones are being read."""
    queue: deque[tuple[str, Future[bytes]]] = deque()
    ahead_bytes = 0

    def first() -> tuple[str, bytes]:
        nonlocal ahead_bytes
        uri, content = queue.popleft()
        ahead_bytes -= sizes[uri]
        return uri, content.result()

    for uri, size in sizes.items():
        while queue and (len(queue) >= THREADS or ahead_bytes + size > AHEAD_BYTES):
            yield first()
        queue.append((uri, pool.submit(store.read_all, uri)))
        ahead_bytes += size
    while queue:
        yield first()


def _whole(
    contents: Iterable[tuple[str, bytes]], damaged: list[str], counter: _Counter
) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Yield the files whose hash is right, and add the others to `damaged`."""
    for uri, data in contents:
        counter.add()
        file = commit.opened_if_whole(uri, data)
        if file is None:
            damaged.append(uri)
        else:
            yield uri, file


def _merge(
    contents: Iterator[tuple[str, pq.ParquetFile]], schema: pa.Schema, predictions: str
) -> Iterator[list[str]]:
    """Write merged files; yield the URIs that each replaces after it is written."""
    for first in contents:
        second = next(contents, None)
        if second is None:  # a file alone stays as it is
            return
        merged = _MergedFile(schema)
        with store.new_file_named_last(predictions, merged.name) as file:
            merged.write(itertools.chain([first, second], contents), file)
        yield merged.sources


class _MergedFile:
    """One merged file while it is written."""

    def __init__(self, schema: pa.Schema) -> None:
        self.sources: list[str] = []
        self._schema = schema
        self._ids, self._bytes = hashlib.sha256(), hashlib.sha256()
        self._codes: Counter[str] = Counter()
        self._waiting: list[pa.Table] = []  # the next row group
        self._waiting_rows = self._waiting_bytes = 0

    def name(self) -> str:
        """Return the name: it ends with the hash of the bytes, as that of every commit."""
        block, digest = self._ids.hexdigest()[:16], self._bytes.hexdigest()[:16]
        return f"{tables.MERGED}{block}-{digest}.parquet"

    def write(self, contents: Iterable[tuple[str, pq.ParquetFile]], file: BinaryIO) -> None:
        """Write these files one after the other until MERGED_BYTES are reached."""
        sink = _HashingSink(file, self._bytes)
        with pq.ParquetWriter(sink, self._schema, write_page_checksum=True) as writer:
            for uri, source in contents:
                self._add(source, writer)
                self.sources.append(uri)
                if file.tell() >= MERGED_BYTES:
                    break
            self._flush(writer)
            names = [uri.rsplit("/", 1)[1].removesuffix(".parquet") for uri in self.sources]
            # At the level of the file and not of the table, so that no rewritten file inherits it.
            writer.add_key_value_metadata(
                {
                    tables.REPLACES: json.dumps(names).encode(),
                    commit.CODES: json.dumps(self._codes, sort_keys=True).encode(),
                }
            )

    def _add(self, source: pq.ParquetFile, writer: pq.ParquetWriter) -> None:
        for number in range(source.num_row_groups):
            rows = source.read_row_group(number, use_threads=False).replace_schema_metadata(
                self._schema.metadata
            )
            self._ids.update("".join(rows["slice_id"].to_pylist()).encode())
            self._codes.update(rows["error_code"].to_pylist())
            self._waiting.append(rows)
            self._waiting_rows += len(rows)
            self._waiting_bytes += rows.nbytes
            if (
                self._waiting_rows >= commit.ROW_GROUP_ROWS
                or self._waiting_bytes >= ROW_GROUP_BYTES
            ):
                self._flush(writer)

    def _flush(self, writer: pq.ParquetWriter) -> None:
        if self._waiting:
            writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


class _HashingSink:
    """A file to write for pyarrow that hashes what passes through it."""

    closed = False

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is complete."""

    def close(self) -> None:
        """Do nothing: the file is closed by its owner."""


def _delete(uris: list[str], pool: ThreadPoolExecutor) -> None:
    """Delete files, several at a time. Raises the first error."""
    for _ in pool.map(store.delete, uris):
        pass
