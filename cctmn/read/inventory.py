"""The index: one row per slice of everything in the INPUTs, archive members and frames included.

Its rows have the schema `schema.INVENTORY`. A slice that cannot be scored is a row with an error
code. A slice_id is keyed, so it reveals nothing without the key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa

from cctmn import store
from cctmn.errors import CctmnError, ObjectError, SliceError, StoreError
from cctmn.parallel import map_in_order
from cctmn.pseudonym import pseudonym
from cctmn.read import other_files, probe, tar_archive, zip_archive
from cctmn.read.archive import Member
from cctmn.read.listing import THREADS, list_inputs
from cctmn.reporter import Reporter, silent
from cctmn.schema import INVENTORY, WHOLE_OBJECTS
from cctmn.store import ObjectInfo

# Members of one zip that are probed at a time. With THREADS objects these are no more than the
# connections that the store keeps.
ZIP_THREADS: Final = 4
# Rows per table and file of the inventory, which is what an index holds in memory.
TABLE_ROWS: Final = 2_000


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
    inputs: Sequence[str],
    *,
    key: bytes,
    exclude: str = "",
    root: str | None = None,
    report: Reporter = silent,
) -> Iterator[pa.Table]:
    """Yield tables of at most TABLE_ROWS rows, sorted by INPUT, URI, offset and frame.

    Parameters and errors are those of `list_objects`.
    """
    rows: list[_Row] = []
    objects = list_objects(inputs, exclude=exclude, root=root, report=report)
    for more in map_in_order(functools.partial(_rows, key=key), objects, threads=THREADS):
        rows += more
        while len(rows) >= TABLE_ROWS:
            yield _table(rows[:TABLE_ROWS])
            del rows[:TABLE_ROWS]
    if rows:
        yield _table(rows)


def list_objects(
    inputs: Sequence[str],
    *,
    exclude: str = "",
    root: str | None = None,
    report: Reporter = silent,
) -> Iterator[ObjectInfo]:
    """Yield the objects of every INPUT, without opening them.

    `exclude` is the URI of the output folder, which is left out if it is below an INPUT. Relative
    names in a table are below `root`, or below the table's own folder. Raises InputError for an
    INPUT that does not exist, StoreError if storage does not answer.
    """
    below = exclude.rstrip("/") + "/"
    for info in list_inputs(inputs, root=root, report=report):
        if not (exclude and info.uri.startswith(below)):
            yield info


def look(objects: Iterable[ObjectInfo], *, key: bytes, threads: int = THREADS) -> pa.Table:
    """Look into these objects; return all rows of each of them, in their order."""
    rows: list[_Row] = []
    for more in map_in_order(functools.partial(_rows, key=key), objects, threads=threads):
        rows += more
    return _table(rows).replace_schema_metadata({WHOLE_OBJECTS: b"1"})


def _table(rows: list[_Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(INVENTORY)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, INVENTORY, strict=True)]
    return pa.Table.from_arrays(arrays, schema=INVENTORY)


def _rows(info: ObjectInfo, *, key: bytes) -> list[_Row]:
    """Return all rows of one object; there is at least one."""
    try:
        head = probe.read_head(info)
        if container := probe.container_of(info, head):
            return _archive_rows(info, container, key=key)
        contents = probe.probe_object(info, head)
    except Exception as error:  # noqa: BLE001 - the boundary of one object
        return [_error_row(info, _code(error, info), key=key, size=info.size)]
    sizes = {"size": info.size, "packed_size": info.size}
    return _frame_rows(info, contents.frames, key=key, kind=contents.kind, **sizes)


def _archive_rows(info: ObjectInfo, container: str, *, key: bytes) -> list[_Row]:
    """Return the rows of an archive's members, and one row for damage of the archive itself."""
    rows: list[_Row] = []
    trailing = False
    try:
        if container == "zip":
            look = functools.partial(probe.probe_zip_member, info)
            work = functools.partial(_member_rows, info=info, container="zip", look=look, key=key)
            entries = zip_archive.members(probe.zip_directory(info), size=info.size)
            for more in map_in_order(work, entries, threads=ZIP_THREADS):
                rows += more
        else:
            tar = probe.open_tar(info, container)
            look = functools.partial(probe.probe_tar_member, tar)
            for member in tar_archive.members(tar, size=info.size):
                rows += _member_rows(member, info=info, container=container, look=look, key=key)
            trailing = container != "tar" and tar_archive.has_trailing_data(tar)
    except Exception as error:  # noqa: BLE001 - the boundary of one archive
        rows.append(_error_row(info, _code(error, info), key=key, container=container))
    return [row._replace(flags=("trailing_data",)) for row in rows] if trailing else rows


def _member_rows(
    member: Member,
    *,
    info: ObjectInfo,
    container: str,
    look: Callable[[Member], probe.Contents],
    key: bytes,
) -> list[_Row]:
    """Return the rows of one member, which `look` probes unless the archive refuses it."""
    columns = member._asdict() | {"container": container}
    code, columns["member"] = columns.pop("code"), columns.pop("name")
    try:
        if code := code or other_files.code_of_name(member.name):
            raise SliceError(code)
        contents = look(member)
    except Exception as error:  # noqa: BLE001 - the boundary of one member
        return [_error_row(info, _code(error, info), key=key, **columns)]
    return _frame_rows(info, contents.frames, key=key, kind=contents.kind, **columns)


def _code(error: Exception, info: ObjectInfo) -> str:
    """Return the code of a failure; storage that answers nothing at all is raised again.

    What a library raises for damaged content is not known in advance, and one object must not end
    the job for all others.
    """
    if isinstance(error, ObjectError | SliceError):
        return error.code
    if isinstance(error, StoreError) and store.is_reachable(info.uri):
        return "storage_failed"
    if isinstance(error, CctmnError):
        raise error
    return "too_large" if isinstance(error, MemoryError) else "corrupt"


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
