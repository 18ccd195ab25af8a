"""Read the bytes of many slices with few requests: neighbours in one request, several in flight.

`fetch` yields, for the rows of each object or archive member, its bytes or a SliceError that says
why they cannot be read: also where the storage fails for this object alone, or where the object is
another one than was listed. Storage that answers nothing at all raises StoreError instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cctmn import store
from cctmn.errors import ObjectError, SliceError, StoreError
from cctmn.read import tar_archive, zip_archive

GAP_BYTES = 4096  # a hole this small costs less than another request
GET_BYTES = 16 << 20  # one GET of neighbours; a single object may be larger
IN_FLIGHT_BYTES = 128 << 20  # held at a time, at least one GET

Row = dict[str, Any]  # a row of schema.INVENTORY


@dataclass(frozen=True)
class _Get:
    """One ranged read and the members in it, each with its rows (the frames)."""

    start: int
    length: int
    members: list[list[Row]]

    @property
    def first(self) -> Row:
        return self.members[0][0]

    @property
    def is_solid(self) -> bool:
        return self.first["container"] in tar_archive.SOLID


def fetch(rows: Sequence[Row], *, threads: int) -> Iterator[tuple[list[Row], bytes | SliceError]]:
    """Yield the rows of each object or member together, with its bytes or the error."""
    gets = _plan(rows)
    with ThreadPoolExecutor(threads, thread_name_prefix="fetch") as pool:
        for window in _windows([get for get in gets if not get.is_solid]):
            for results in pool.map(_run, window):
                yield from results
    for get in gets:
        if get.is_solid:  # one stream a process, read forward only: no threads
            yield from _run(get)


def _plan(rows: Sequence[Row]) -> list[_Get]:
    members: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        members.setdefault((row["uri"], row["member"], row["occurrence"]), []).append(row)
    gets: list[_Get] = []
    for group in sorted(members.values(), key=lambda group: (group[0]["uri"], group[0]["offset"])):
        row = group[0]
        start, end = row["offset"], row["offset"] + row["packed_size"]
        last = gets[-1] if gets else None
        if (
            last is not None
            and last.first["uri"] == row["uri"]
            and start - (last.start + last.length) <= GAP_BYTES
            and end - last.start <= GET_BYTES
        ):
            gets[-1] = _Get(last.start, end - last.start, [*last.members, group])
        else:
            gets.append(_Get(start, end - start, [group]))
    return gets


def _windows(gets: Sequence[_Get]) -> Iterator[list[_Get]]:
    window: list[_Get] = []
    for get in gets:
        if window and sum(g.length for g in window) + get.length > IN_FLIGHT_BYTES:
            yield window
            window = []
        window.append(get)
    if window:
        yield window


def _run(get: _Get) -> Iterable[tuple[list[Row], bytes | SliceError]]:
    """Read now, and unpack each member when it is asked for: so the first need not wait for all."""
    try:
        raw = _read(get)
    except StoreError:
        if not store.is_reachable(get.first["uri"]):
            raise
        return [(group, SliceError("storage_failed")) for group in get.members]
    except (ObjectError, SliceError) as error:
        if len(get.members) == 1:
            return [(get.members[0], SliceError(error.code))]
        # read each alone, so that one bad neighbour does not fail the others
        alone = [_Get(m[0]["offset"], m[0]["packed_size"], [m]) for m in get.members]
        return [result for single in alone for result in _run(single)]
    return ((group, _unpack(raw, group[0], get.start)) for group in get.members)


def _read(get: _Get) -> bytes:
    row = get.first
    if not get.is_solid:
        raw = store.read_range(row["uri"], start=get.start, length=get.length, etag=row["etag"])
        # An inventory that another program wrote may not know the size of the object.
        size = row["object_size"]
        if len(raw) < (get.length if size is None else min(get.length, size - get.start)):
            raise StoreError("the storage gave fewer bytes than it listed; try again", row["uri"])
        return raw
    return tar_archive.read_solid(
        row["uri"],
        container=row["container"],
        size=row["object_size"],
        start=get.start,
        length=get.length,
        etag=row["etag"],
    )


def _unpack(raw: bytes, row: Row, base: int) -> bytes | SliceError:
    begin = row["offset"] - base
    data = raw[begin : begin + row["packed_size"]]
    try:
        if row["container"] == "zip":
            return zip_archive.unpack(
                data, size=row["size"], method=row["method"], crc32=row["crc32"]
            )
        if len(data) < row["size"]:
            raise SliceError("truncated")
    except SliceError as error:
        return error
    return data
