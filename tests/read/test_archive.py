"""Members of zip and tar: found, refused and read, whatever is wrong with the archive."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from cctmn.errors import SliceError
from cctmn.read import archive, tar_archive, zip_archive
from cctmn.read.ranges import RangeFile
from tests.makers import tarred, zipped

MEMBERS = {"a": b"A" * 3000, "dir/b": b"B" * 10, "c": b"C"}


def range_file(data: bytes) -> RangeFile:
    return RangeFile("", size=len(data), window=0, read=lambda start, n: data[start : start + n])


def zip_walk(data: bytes) -> list[archive.Member]:
    return list(zip_archive.members(range_file(data), size=len(data)))


def tar_walk(data: bytes) -> list[archive.Member]:
    return list(tar_archive.members(io.BytesIO(data), size=len(data)))


def unzip(data: bytes, member: archive.Member) -> bytes:
    raw = data[member.offset : member.offset + member.packed_size]
    return zip_archive.unpack(raw, size=member.size, method=member.method, crc32=member.crc32)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_members_are_read_by_their_range(method: int) -> None:
    data = zipped(MEMBERS, method=method)
    assert {m.name: unzip(data, m) for m in zip_walk(data)} == MEMBERS


def test_a_zip_behind_another_file_is_read(tmp_path: object) -> None:
    data = b"#!/bin/sh\n" + zipped(MEMBERS)
    assert {m.name: unzip(data, m) for m in zip_walk(data)} == MEMBERS


def test_repeated_names_are_counted() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", b"two")
    data = buffer.getvalue()
    assert [(m.name, m.occurrence, unzip(data, m)) for m in zip_walk(data)] == [
        ("a", 0, b"one"),
        ("a", 1, b"two"),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (zipped({}), "archive_empty"),
        (zipped({"dir/": b""}), "archive_empty"),
        (zipped(MEMBERS)[:-30], "archive_truncated"),
    ],
)
def test_zips_that_fail_as_a_whole(data: bytes, code: str) -> None:
    with pytest.raises(SliceError, match=code):
        zip_walk(data)


def test_overlapping_zip_members_are_a_bomb() -> None:
    data = bytearray(zipped({"a": b"x" * 500, "b": b"x" * 500}, method=zipfile.ZIP_STORED))
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = (0).to_bytes(4, "little")  # its offset: that of the first
    with pytest.raises(SliceError, match="archive_bomb"):
        zip_walk(bytes(data))


def test_zip_members_with_a_code_of_their_own() -> None:
    bomb = {"bomb": bytes(archive.RATIO_FREE_BYTES + 1), "empty": b"", "a": b"A"}
    data = bytearray(zipped(bomb))
    encrypted = data.rfind(b"PK\x01\x02")
    data[encrypted + 8] |= 1
    codes = {m.name: m.code for m in zip_walk(bytes(data))}
    assert codes == {"bomb": "archive_bomb", "empty": "empty_file", "a": "archive_encrypted"}


def test_zip_members_that_lie_or_are_damaged() -> None:
    data = zipped({"a": b"A" * 3000})
    [member] = zip_walk(data)
    with pytest.raises(SliceError, match="archive_bomb"):
        unzip(data, member._replace(size=100))
    with pytest.raises(SliceError, match="truncated"):
        unzip(data, member._replace(size=4000))
    with pytest.raises(SliceError, match="crc_error"):
        unzip(data, member._replace(crc32=1))
    with pytest.raises(SliceError, match="truncated"):
        unzip(data, member._replace(packed_size=20))
    with pytest.raises(SliceError, match="corrupt"):
        unzip(b"?" + data, member)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_members_are_read_by_their_range(format_: int) -> None:
    members = MEMBERS | {"long/" * 18 + "name": b"L"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    assert {m.name: data[m.offset : m.offset + m.size] for m in tar_walk(data)} == members


def test_links_and_devices_are_members_with_a_code() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"x{kind!r}")
            entry.type, entry.linkname = kind, "/etc/passwd"
            file.addfile(entry)
        file.addfile(tarfile.TarInfo("empty"))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    codes = [m.code for m in tar_walk(buffer.getvalue())]
    assert codes == ["unsafe_member"] * 4 + ["empty_file"]


def test_no_tar_ends_silently() -> None:
    data = tarred(MEMBERS)
    seen: list[str] = []

    def codes(data: bytes) -> str:
        seen.clear()
        walk = tar_archive.members(io.BytesIO(data), size=len(data))
        with pytest.raises(SliceError) as caught:
            seen.extend(member.name for member in walk)
        return caught.value.code

    third = data.index(b"C" + bytes(511)) - tarfile.BLOCKSIZE  # header of the last member
    assert codes(data[: third + 100]) == "archive_truncated"
    assert seen == ["a", "dir/b"]
    assert codes(data[:third]) == "archive_truncated"  # cut exactly between two members
    assert codes(data[:third] + b"garbage!" * 64 + data[third:]) == "corrupt"
    assert seen == ["a", "dir/b"]
    assert codes(tarred({})) == "archive_empty"
    assert codes(b"\1" * 2048) == "unsupported_format"
    assert codes(data[:2000]) == "archive_truncated"


@pytest.mark.parametrize("container", sorted(tar_archive.SOLID))
def test_compressed_tars_are_read_forward_and_again(
    container: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("solid") / "x"
    data = tarred(MEMBERS, mode="w:" + container.removeprefix("tar."))
    path.write_bytes(data)
    uri, size = path.as_uri(), len(data)
    stream = tar_archive.open_solid(uri, container=container, size=size)
    members = list(tar_archive.members(stream, size=size))
    assert not tar_archive.has_trailing_data(stream)
    for member in [*members, members[0]]:
        got = tar_archive.read_solid(
            uri, container=container, size=size, start=member.offset, length=member.size
        )
        assert got == MEMBERS[member.name]


def test_a_gzip_of_many_members_is_one_stream(tmp_path_factory: pytest.TempPathFactory) -> None:
    import gzip

    path = tmp_path_factory.mktemp("solid") / "x.tgz"
    plain = tarred(MEMBERS)
    path.write_bytes(gzip.compress(plain[:1500]) + gzip.compress(plain[1500:]))
    stream = tar_archive.open_solid(path.as_uri(), container="tar.gz", size=path.stat().st_size)
    names = [m.name for m in tar_archive.members(stream, size=1000)]
    assert names == list(MEMBERS)


def test_a_gzip_bomb_stops(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bomb") / "x.tgz"
    data = tarred({"zeros": bytes(64 << 20), "a": b"A"}, mode="w:gz")
    path.write_bytes(data)
    stream = tar_archive.open_solid(path.as_uri(), container="tar.gz", size=len(data))
    with pytest.raises(SliceError, match="archive_bomb"):
        list(tar_archive.members(stream, size=len(data)))
