"""Reading the bytes of many slices: which are read together, and how a failure stays alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cctmn.errors import SliceError
from cctmn.read import fetch as module
from cctmn.read.fetch import fetch


def row(uri: str, *, offset: int, size: int, member: str = "", **other: Any) -> dict[str, Any]:
    return {
        "uri": uri,
        "member": member,
        "occurrence": 0,
        "frame": 0,
        "container": "tar" if member else "",
        "offset": offset,
        "packed_size": size,
        "size": size,
        "object_size": size,
        "etag": "",
        "method": 0,
        "crc32": 0,
    } | other


def spans(rows: list[dict[str, Any]]) -> list[tuple[str, int, int, int]]:
    """URI, start, length and number of members of each planned read."""
    return [
        (get.first["uri"], get.start, get.length, len(get.members)) for get in module._plan(rows)
    ]


def test_neighbours_are_read_together_and_distant_members_are_not() -> None:
    far = 200 + module.GAP_BYTES + 1
    rows = [
        row("a", offset=far, size=10, member="3"),
        row("a", offset=100, size=100, member="2"),
        row("a", offset=0, size=50, member="1"),
        row("b", offset=210, size=10, member="4"),
    ]
    assert spans(rows) == [("a", 0, 200, 2), ("a", far, 10, 1), ("b", 210, 10, 1)]


def test_a_read_of_neighbours_has_a_largest_size() -> None:
    half = module.GET_BYTES // 2
    rows = [row("a", offset=i * half, size=half, member=str(i)) for i in range(3)]
    assert [length for _, _, length, _ in spans(rows)] == [2 * half, half]


def test_frames_of_one_object_are_read_once() -> None:
    frames = [row("a", offset=0, size=10, frame=frame) for frame in range(3)]
    [get] = module._plan(frames)
    assert get.members == [frames]


def test_windows_bound_the_bytes_in_flight_and_keep_the_order() -> None:
    sizes = [module.IN_FLIGHT_BYTES, 1, module.IN_FLIGHT_BYTES - 1, 2, 2 * module.IN_FLIGHT_BYTES]
    gets = module._plan([row(str(i), offset=0, size=size) for i, size in enumerate(sizes)])
    windows = list(module._windows(gets))
    assert [[get.length for get in window] for window in windows] == [
        sizes[:1], sizes[1:3], sizes[3:4], sizes[4:],
    ]  # fmt: skip
    assert list(module._windows([])) == []


def test_the_first_member_does_not_wait_until_all_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    rows = [row(path.as_uri(), offset=n, size=1, member=str(n)) for n in range(10)]
    unpacked = []
    unpack = module._unpack

    def counted(raw: bytes, one: module.Row, base: int) -> bytes | SliceError:
        unpacked.append(one["member"])
        return unpack(raw, one, base)

    monkeypatch.setattr(module, "_unpack", counted)
    results = fetch(rows, threads=2)
    next(results)
    assert unpacked == ["0"]
    assert [data for _, data in results] == [b"%d" % n for n in range(1, 10)]


def test_a_cut_member_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    rows = [
        row(path.as_uri(), offset=0, size=4, member="first"),
        row(path.as_uri(), offset=4, size=3, member="second"),
        row(path.as_uri(), offset=7, size=9, member="cut"),
    ]
    results = {group[0]["member"]: data for group, data in fetch(rows, threads=2)}
    assert results["first"] == b"0123"
    assert results["second"] == b"456"
    assert isinstance(results["cut"], SliceError)
    assert results["cut"].code == "truncated"


def test_a_missing_object_is_an_error_of_its_own_rows_only(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"abc")
    rows = [
        row((tmp_path / "here").as_uri(), offset=0, size=3),
        row((tmp_path / "gone").as_uri(), offset=0, size=3),
    ]
    results = {Path(group[0]["uri"]).name: data for group, data in fetch(rows, threads=2)}
    assert results["here"] == b"abc"
    assert isinstance(results["gone"], SliceError)
    assert results["gone"].code == "not_found"
