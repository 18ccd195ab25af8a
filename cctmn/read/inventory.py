"""One row per slice of everything below the INPUTs, archive members and frames included.

In: paths, S3 prefixes, globs, archives or manifests. Out: Arrow tables of schema.INVENTORY. Each
object is looked at by content (a small ranged read), never by its name; what cannot be scored is a
row with its code. A slice_id is keyed, so it says nothing to who has not the key.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import pyarrow as pa

from cctmn import store
from cctmn.errors import ObjectError, SliceError
from cctmn.pseudonym import pseudonym
from cctmn.read import archive, decode
from cctmn.read.archive import Member
from cctmn.read.ranges import RangeFile
from cctmn.schema import INVENTORY
from cctmn.store import ObjectInfo
from cctmn.user_table import is_table, read_user_table

INDEX_THREADS = 16  # objects looked at in parallel: latency, not bandwidth, bounds it
ZIP_THREADS = 4  # members of each; together no more than the connections that store keeps
TABLE_ROWS = 2_000  # rows per table and file of the inventory: what an index holds at a time
HEAD_BYTES = 1024  # a DICOM preamble, file meta group and the magic of everything else
MEMBER_HEAD_BYTES = 256  # least look into a member; larger ones get 1/16 up to HEAD_BYTES
CONTAINERS = {"zip": "zip", "tar": "tar", "gzip": "tar.gz", "bzip2": "tar.bz2", "xz": "tar.xz"}

T = TypeVar("T")
R = TypeVar("R")
Look = tuple[bytes, RangeFile]  # the first bytes of a member, and a file over all of it


class _Row(NamedTuple):
    """A row of schema.INVENTORY, in its order."""

    slice_id: str
    uri: str
    member: str = ""
    occurrence: int = 0
    frame: int = 0
    frames: int = 1
    container: str = ""
    kind: str = ""
    offset: int = 0
    packed_size: int = 0
    size: int = 0
    object_size: int = 0
    method: int = 0
    crc32: int = 0
    etag: str = ""
    flags: tuple[str, ...] = ()
    error_code: str = ""


def index(
    inputs: Sequence[str], *, key: bytes, exclude: str = "", root: str | None = None
) -> Iterator[pa.Table]:
    """Tables of at most TABLE_ROWS rows, sorted by INPUT, URI, offset and frame.

    `exclude` is the URI of the output folder, which is passed over if it lies below an INPUT.
    `root` is what relative URIs of a manifest are below; without it the manifest's own folder.
    Raises InputError for an INPUT that is not there, StoreError if storage does not answer.
    """
    below = exclude.rstrip("/") + "/"
    objects = (
        info for info in _objects(inputs, root) if not (exclude and info.uri.startswith(below))
    )
    rows: list[_Row] = []
    for more in _in_order(lambda info: _rows(info, key=key), objects, threads=INDEX_THREADS):
        rows += more
        while len(rows) >= TABLE_ROWS:
            yield _table(rows[:TABLE_ROWS])
            del rows[:TABLE_ROWS]
    if rows:
        yield _table(rows)


def _table(rows: list[_Row]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, INVENTORY, strict=True)]
    return pa.Table.from_arrays(arrays, schema=INVENTORY)


def _in_order(
    work: Callable[[T], list[R]], items: Iterable[T], *, threads: int
) -> Iterator[list[R]]:
    """Results in the order of the items, a bounded number of them ahead."""
    pending: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _objects(inputs: Sequence[str], root: str | None) -> Iterator[ObjectInfo]:
    seen: set[str] = set()
    for text in inputs:
        for info in _listed(text, root):
            if len(inputs) > 1 and info.uri in seen:
                continue  # two INPUTs may overlap
            if len(inputs) > 1:
                seen.add(info.uri)
            yield info


def _listed(text: str, root: str | None) -> Iterator[ObjectInfo]:
    if not is_table(text):
        yield from store.list_objects(text)
        return

    def look(name: str) -> list[ObjectInfo]:
        uri = store.below(root or store.parent(text), name)
        return list(store.find_objects(uri)) or [ObjectInfo(uri, 0, "", "not_found")]

    # a request for each line, so several at a time
    for found in _in_order(look, read_user_table(text).slices(), threads=INDEX_THREADS):
        yield from found


def _rows(info: ObjectInfo, *, key: bytes) -> list[_Row]:
    """All rows of one object; at least one."""
    try:
        if info.error_code:
            raise SliceError(info.error_code)
        if not info.size:
            raise SliceError("empty_file")
        head = store.read_range(info.uri, start=0, length=min(HEAD_BYTES, info.size))
        container = CONTAINERS.get(decode.sniff(head))
        if container:
            return _archive_rows(info, container, key=key)
        kind = _kind(head)
        if info.size > archive.MAX_OBJECT_BYTES:
            raise SliceError("too_large")
        file = RangeFile(info.uri, size=info.size, window=HEAD_BYTES, head=head)
        frames = decode.frame_count(cast(BinaryIO, file), kind=kind, head=head)
    except (ObjectError, SliceError) as error:
        return [_error_row(info, error.code, key=key, size=info.size)]
    return _frame_rows(info, frames, key=key, kind=kind, size=info.size, packed_size=info.size)


def _kind(head: bytes) -> str:
    kind = decode.sniff(head)
    if kind in CONTAINERS:
        raise SliceError("archive_depth")
    if not kind:
        raise SliceError("unsupported_format")
    return kind


def _frame_rows(info: ObjectInfo, frames: int, *, key: bytes, **columns: Any) -> list[_Row]:
    member, occurrence = columns.get("member", ""), columns.get("occurrence", 0)
    return [
        _Row(
            slice_id=_slice_id(key, info.uri, member, occurrence, frame),
            uri=info.uri,
            object_size=info.size,
            etag=info.etag,
            frame=frame,
            frames=frames,
            **columns,
        )
        for frame in range(frames)
    ]


def _slice_id(key: bytes, uri: str, member: str, occurrence: int, frame: int) -> str:
    return pseudonym(key, "slice", uri, member, str(occurrence), str(frame))


def _error_row(info: ObjectInfo, code: str, *, key: bytes, **columns: Any) -> _Row:
    [row] = _frame_rows(info, 1, key=key, **columns)
    return row._replace(error_code=code)


def _archive_rows(info: ObjectInfo, container: str, *, key: bytes) -> list[_Row]:
    """Rows of an archive's members, and one for what is wrong with the archive as a whole."""
    rows: list[_Row] = []
    trailing = False

    def add(member: Member, look: Callable[[], Look]) -> list[_Row]:
        return _member_rows(info, container, member=member, look=look, key=key)

    try:
        if container == "zip":
            directory = RangeFile(info.uri, size=info.size, window=0)
            for more in _in_order(
                lambda member: add(member, lambda: _zip_look(info.uri, member)),
                archive.zip_members(directory),
                threads=ZIP_THREADS,
            ):
                rows += more
        else:
            file = _open_tar(info, container)
            for member in archive.tar_members(file, packed_size=info.size):
                rows += add(member, lambda member=member: _tar_look(file, member))  # type: ignore[misc]
            trailing = container != "tar" and archive.has_trailing_data(file)
    except (ObjectError, SliceError) as error:
        rows.append(_error_row(info, error.code, key=key, container=container))
    return [row._replace(flags=("trailing_data",)) for row in rows] if trailing else rows


def _open_tar(info: ObjectInfo, container: str) -> BinaryIO:
    if container != "tar":
        return archive.open_solid(info.uri, container=container, size=info.size)
    # one GET takes the next header and the head of its member
    window = 1 + tarfile.BLOCKSIZE + HEAD_BYTES
    return cast(BinaryIO, RangeFile(info.uri, size=info.size, window=window))


def _member_rows(
    info: ObjectInfo,
    container: str,
    *,
    member: Member,
    look: Callable[[], Look],
    key: bytes,
) -> list[_Row]:
    columns = member._asdict() | {"container": container}
    code, columns["member"] = columns.pop("code"), columns.pop("name")
    frames = 1
    try:
        if code:
            raise SliceError(code)
        head, file = look()
        kind = columns["kind"] = _kind(head)
        frames = decode.frame_count(cast(BinaryIO, file), kind=kind, head=head)
    except (ObjectError, SliceError) as error:
        return [_error_row(info, error.code, key=key, **columns)]
    return _frame_rows(info, frames, key=key, **columns)


def _zip_look(uri: str, member: Member) -> Look:
    """The head of the member by one small read, and a file over it that reads the whole member."""

    def whole() -> bytes:
        raw = store.read_range(uri, start=member.offset, length=member.packed_size)
        return archive.zip_data(raw, size=member.size, method=member.method, crc32=member.crc32)

    name_bytes = len(member.name.encode("utf-8", "surrogateescape"))
    length = archive.ZIP_LOCAL.size + name_bytes + _head_bytes(member.packed_size)
    raw = store.read_range(uri, start=member.offset, length=min(length, member.packed_size))
    head = archive.zip_head(raw, method=member.method, size=HEAD_BYTES)
    return head, RangeFile(
        uri,
        size=member.size,
        window=member.size,
        head=head,
        read=lambda start, length: whole()[start : start + length],
    )


def _tar_look(file: BinaryIO, member: Member) -> Look:
    """The head of the member and a file over the member whose data `file` stands at."""

    def read(start: int, length: int) -> bytes:
        file.seek(member.offset + start)
        return file.read(length)

    head = file.read(min(_head_bytes(member.size), member.size))
    return head, RangeFile("", size=member.size, window=HEAD_BYTES, head=head, read=read)


def _head_bytes(size: int) -> int:
    """How much of a member to look at: little enough that looking costs a small share of it."""
    return max(MEMBER_HEAD_BYTES, min(HEAD_BYTES, size // 16))
