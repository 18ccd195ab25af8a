"""Members of a zip by its central directory, which is read from the end of the file.

The directory is parsed here and not by zipfile. That module reads a directory of any size into
memory, raises IndexError for an empty name, and refuses the whole archive for one extra field that
is damaged. Unpacking is left to libdeflate, zlib and bz2.
"""

from __future__ import annotations

import bz2
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import imagecodecs

from cctmn.errors import SliceError
from cctmn.read.archive import (
    MAX_MEMBERS,
    MAX_OBJECT_BYTES,
    MAX_RATIO,
    RATIO_FREE_BYTES,
    Member,
    max_unpacked_bytes,
)
from cctmn.read.ranges import RangeFile

# Records of the format, by their section of APPNOTE.TXT 6.3.10.
LOCAL: Final = struct.Struct("<4s5H3L2H")  # 4.3.7
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_END64: Final = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_LOCATOR64: Final = struct.Struct("<4sLQL")  # 4.3.15
_END: Final = struct.Struct("<4s4H2LH")  # 4.3.16
_MAX_COMMENT: Final = 0xFFFF
_MAX_EXTRA: Final = 0xFFFF  # a local header may have another extra field than the directory
_MAX_DIRECTORY_BYTES: Final = 256 << 20  # a million entries with names of 200 bytes
_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1
_EXTRA_ZIP64: Final = 1


class _Directory(NamedTuple):
    """Where the central directory lies, and by how much its offsets are shifted."""

    start: int
    size: int
    shift: int


class _Entry(NamedTuple):
    """An entry of the central directory; `offset` is where its local header really begins."""

    offset: int
    name: str
    name_bytes: int
    flags: int
    method: int
    crc32: int
    packed: int
    size: int
    mode: int  # of Unix; 0 if unknown
    damaged: bool

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def has_end(file: RangeFile, *, size: int) -> bool:
    """Return whether the file ends as a zip does, whatever it begins with."""
    return _find_end(file, size=size) is not None


def members(file: RangeFile, *, size: int) -> Iterator[Member]:
    """Yield the members of a zip of `size` bytes, in the order of their offsets, without folders.

    Raises SliceError for the archive as a whole: archive_truncated, archive_empty, archive_split,
    archive_bomb, corrupt.
    """
    directory = _locate(file, size=size)
    file.seek(directory.start)
    raw = file.read(directory.size)
    entries = sorted(_entries(raw, shift=directory.shift), key=lambda entry: entry.offset)
    if all(entry.is_folder for entry in entries):
        raise SliceError("archive_empty")
    if entries[0].offset < 0:
        raise SliceError("archive_truncated")  # its beginning is missing
    ends = [entry.offset for entry in entries[1:]] + [directory.start]
    for entry, end in zip(entries, ends, strict=True):
        if entry.offset + LOCAL.size + entry.packed > end and not entry.damaged:
            raise SliceError("archive_bomb")  # entries share bytes
    seen: Counter[str] = Counter()
    for entry, end in zip(entries, ends, strict=True):
        if entry.is_folder:
            continue
        # What lies between a member and the next header is not read: it may be gigabytes.
        headers = LOCAL.size + entry.name_bytes + _MAX_EXTRA
        yield Member(
            name=entry.name,
            occurrence=seen[entry.name],
            offset=entry.offset,
            packed_size=min(end - entry.offset, headers + entry.packed),
            size=entry.size,
            method=entry.method,
            crc32=entry.crc32,
            code=_refusal(entry),
        )
        seen[entry.name] += 1


def _locate(file: RangeFile, *, size: int) -> _Directory:
    found = _find_end(file, size=size)
    if found is None:
        # Without its end a zip has no directory: that is what a cut download looks like.
        raise SliceError("archive_truncated")
    end_at, end = found
    _, disk, first_disk, _, count, directory_size, offset, _ = _END.unpack(end)
    record_at = end_at
    if end64 := _find_end64(file, end_at=end_at):
        record_at, disk, first_disk, count, directory_size, offset = end64
    if disk or first_disk:
        raise SliceError("archive_split")
    if count > MAX_MEMBERS or directory_size > _MAX_DIRECTORY_BYTES:
        raise SliceError("archive_bomb")
    start = record_at - directory_size
    if start < 0:
        raise SliceError("archive_truncated")
    return _Directory(start, directory_size, shift=start - offset)


def _find_end(file: RangeFile, *, size: int) -> tuple[int, bytes] | None:
    """Return the position and bytes of the end record, None if there is none."""
    for length in (_END.size, _END.size + _MAX_COMMENT):
        file.seek(max(0, size - length))
        tail = file.read(length)
        at = tail.rfind(b"PK\x05\x06")
        while at >= 0:
            record = tail[at : at + _END.size]
            if len(record) == _END.size:
                return size - len(tail) + at, record
            at = tail.rfind(b"PK\x05\x06", 0, at)
    return None


def _find_end64(file: RangeFile, *, end_at: int) -> tuple[int, int, int, int, int, int] | None:
    """Return the position of the zip64 end record and its disks, count, size and offset."""
    if end_at < _LOCATOR64.size:
        return None
    file.seek(end_at - _LOCATOR64.size)
    signature, _, stated_at, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if signature != b"PK\x06\x07":
        return None
    # In front of the locator, wherever the file now begins; else where the locator says.
    for at in (end_at - _LOCATOR64.size - _END64.size, stated_at):
        if not 0 <= at <= end_at - _LOCATOR64.size - _END64.size:
            continue
        file.seek(at)
        record = _END64.unpack(file.read(_END64.size))
        if record[0] == b"PK\x06\x06":
            _, _, _, _, disk, first_disk, _, count, size, offset = record
            return at, disk, first_disk, count, size, offset
    raise SliceError("corrupt")


def _entries(raw: bytes, *, shift: int) -> Iterator[_Entry]:
    at = 0
    while at + _ENTRY.size <= len(raw):
        (
            signature, _, _, flags, method, _, _, crc32, packed, size,
            name_length, extra_length, comment_length, _, _, attributes, offset,
        ) = _ENTRY.unpack_from(raw, at)  # fmt: skip
        if signature != b"PK\x01\x02":
            raise SliceError("corrupt")
        name_at = at + _ENTRY.size
        extra_at = name_at + name_length
        name = raw[name_at:extra_at].split(b"\0")[0]
        size, packed, offset, damaged = _with_zip64(
            raw[extra_at : extra_at + extra_length], size=size, packed=packed, offset=offset
        )
        yield _Entry(
            offset=offset + shift,
            name=name.decode("utf-8" if flags & _UTF8_FLAG else "cp437", "backslashreplace"),
            name_bytes=name_length,
            flags=flags,
            method=method,
            crc32=crc32,
            packed=packed,
            size=size,
            mode=attributes >> 16,
            damaged=damaged,
        )
        at = extra_at + extra_length + comment_length


def _with_zip64(extra: bytes, *, size: int, packed: int, offset: int) -> tuple[int, int, int, bool]:
    """Return size, packed size and offset with the values of the zip64 field, where they are there.

    The last value tells whether one of them is missing.
    """
    values = [size, packed, offset]
    missing = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    at = 0
    while missing and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _EXTRA_ZIP64:
            field = extra[at + 4 : at + 4 + length]
            present = min(len(missing), len(field) // 8)
            for i, value in zip(missing, struct.unpack_from(f"<{present}Q", field), strict=False):
                values[i] = value
            missing = missing[present:]
            break
        at += 4 + length
    if missing or max(values) >= 1 << 62:
        return 0, 0, min(values[2], 1 << 62), True
    return values[0], values[1], values[2], False


def _refusal(entry: _Entry) -> str:
    if entry.damaged:
        return "corrupt"
    if entry.flags & _ENCRYPTED_FLAG:
        return "archive_encrypted"
    if stat.S_ISLNK(entry.mode):
        return "unsafe_member"
    if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        return "unsupported_compression"
    if entry.method == zipfile.ZIP_STORED and entry.packed != entry.size:
        return "corrupt"
    if entry.size > RATIO_FREE_BYTES and entry.size > MAX_RATIO * entry.packed:
        return "archive_bomb"
    if entry.size > MAX_OBJECT_BYTES or entry.packed > MAX_OBJECT_BYTES:
        return "too_large"
    return "" if entry.size else "empty_file"


def unpack(raw: bytes, *, size: int, method: int, crc32: int) -> bytes:
    """Unpack a member from the bytes at its local header, and check its size and CRC."""
    data = _inflate(raw, size=size) if method == zipfile.ZIP_DEFLATED else None
    if data is None:
        stored = method == zipfile.ZIP_STORED
        # More than a stored member's size is what follows it: a data descriptor, or a gap.
        data = unpack_head(raw, method=method, size=size if stored else size + 1)
    if len(data) > size:
        raise SliceError("archive_bomb")  # it inflates to more than it says
    if len(data) < size:
        raise SliceError("truncated")
    if imagecodecs.deflate_crc32(data) != crc32:
        raise SliceError("crc_error")
    return data


def _inflate(raw: bytes, *, size: int) -> bytes | None:
    """Inflate a member with libdeflate, which is faster than zlib but needs a true size.

    Returns None if it fails: zlib then tells what is wrong.
    """
    if not 0 < size <= max_unpacked_bytes(len(raw)):
        return None
    try:
        return bytes(imagecodecs.deflate_decode(bytes(_packed(raw)), raw=True, out=size))
    except imagecodecs.DeflateError:
        return None


def unpack_head(raw: bytes, *, method: int, size: int) -> bytes:
    """Unpack at most `size` bytes of a member; `raw` begins at its local header."""
    packed = _packed(raw)
    try:
        if method == zipfile.ZIP_STORED:
            return bytes(packed[:size])
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
        assert method == zipfile.ZIP_BZIP2, method
        return bz2.BZ2Decompressor().decompress(packed, size)
    except (zlib.error, OSError):
        raise SliceError("crc_error") from None


def _packed(raw: bytes) -> memoryview:
    """Return what follows a member's local header."""
    if len(raw) < LOCAL.size:
        raise SliceError("truncated")
    signature, *_, name_length, extra_length = LOCAL.unpack_from(raw)
    if signature != b"PK\x03\x04":
        raise SliceError("corrupt")
    return memoryview(raw)[LOCAL.size + name_length + extra_length :]
