"""Members of zip and tar archives by byte range; nothing is ever written to disk.

Each entry of an archive becomes a `Member` with the offsets that are needed to read it alone, or
with the code of why it cannot be read. The standard library reads the directories. The limits
against bombs, overlaps and silent ends are implemented here, because the library has none.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import itertools
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple, cast

from cctmn.errors import SliceError
from cctmn.read.ranges import RangeFile

MAX_MEMBERS = 1_000_000  # a year of a large hospital in one archive; more is a bomb
MAX_OBJECT_BYTES = 1 << 30  # 2,000 frames of 512 x 512 x 16 bit
MAX_RATIO = 200  # CT deflates 2:1 to 10:1; only blank data goes beyond 200:1
RATIO_FREE_BYTES = 16 << 20  # small blank files may have any ratio
SOLID_WINDOW = 4 << 20  # bytes per GET of an archive that can only be streamed
SOLID: Final[dict[str, Callable[[BinaryIO], BinaryIO]]] = {
    "tar.gz": lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file)),
    "tar.bz2": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    "tar.xz": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115
}
ZIP_LOCAL = struct.Struct("<4s5H3L2H")  # APPNOTE 4.3.7


class Member(NamedTuple):
    """One entry. Offsets and sizes are in bytes; `code` is "", or why it cannot be read."""

    name: str
    occurrence: int = 0
    offset: int = 0
    packed_size: int = 0
    size: int = 0
    method: int = 0
    crc32: int = 0
    code: str = ""


def zip_members(file: RangeFile) -> Iterator[Member]:
    """Return the entries of a zip's central directory, in the order of their offsets.

    Raises SliceError for the archive as a whole: archive_truncated, archive_empty, archive_bomb.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError):
        # without its end a zip has no directory: that is what a cut download looks like
        raise SliceError("archive_truncated") from None
    except (struct.error, UnicodeDecodeError, NotImplementedError, OverflowError):
        raise SliceError("corrupt") from None
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if all(entry.is_dir() for entry in entries):
        raise SliceError("archive_empty")
    if len(entries) > MAX_MEMBERS:
        raise SliceError("archive_bomb")
    ends = [entry.header_offset for entry in entries[1:]] + [archive.start_dir]
    for entry, end in zip(entries, ends, strict=True):
        if entry.header_offset + ZIP_LOCAL.size + entry.compress_size > end:
            raise SliceError("archive_bomb")  # entries share bytes
    seen: Counter[str] = Counter()
    for entry, end in zip(entries, ends, strict=True):
        if entry.is_dir():
            continue
        name = entry.filename
        yield Member(
            name=name,
            occurrence=seen[name],
            offset=entry.header_offset,
            packed_size=end - entry.header_offset,
            size=entry.file_size,
            method=entry.compress_type,
            crc32=entry.CRC,
            code=_zip_refusal(entry),
        )
        seen[name] += 1


def _zip_refusal(entry: zipfile.ZipInfo) -> str:
    if entry.flag_bits & 0x1:
        return "archive_encrypted"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "unsafe_member"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        return "unsupported_compression"
    if entry.file_size > RATIO_FREE_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
        return "archive_bomb"
    if entry.file_size > MAX_OBJECT_BYTES or entry.compress_size > MAX_OBJECT_BYTES:
        return "too_large"
    return "" if entry.file_size else "empty_file"


def zip_data(raw: bytes, *, size: int, method: int, crc32: int) -> bytes:
    """Unpack a member from the bytes at its local header, and check its size and CRC."""
    data = zip_head(raw, method=method, size=size + 1)
    if len(data) > size:
        raise SliceError("archive_bomb")  # it inflates to more than it says
    if len(data) < size:
        raise SliceError("truncated")
    if zlib.crc32(data) != crc32:
        raise SliceError("crc_error")
    return data


def zip_head(raw: bytes, *, method: int, size: int) -> bytes:
    """Unpack at most `size` bytes of a member; `raw` begins at its local header."""
    if len(raw) < ZIP_LOCAL.size:
        raise SliceError("truncated")
    signature, *_, name_length, extra_length = ZIP_LOCAL.unpack_from(raw)
    if signature != b"PK\x03\x04":
        raise SliceError("corrupt")
    packed = memoryview(raw)[ZIP_LOCAL.size + name_length + extra_length :]
    try:
        if method == zipfile.ZIP_STORED:
            return bytes(packed[:size])
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
        assert method == zipfile.ZIP_BZIP2, method
        return bz2.BZ2Decompressor().decompress(packed, size)
    except (zlib.error, OSError):
        raise SliceError("crc_error") from None


def tar_members(file: BinaryIO, *, packed_size: int) -> Iterator[Member]:
    """Yield the entries of a tar; `file` is at an entry's data when the entry is yielded.

    Raises SliceError for damage after good entries, where tarfile would end silently.
    """
    seen: Counter[str] = Counter()
    try:
        file.seek(0)  # an open stream may have been read before
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                if entry.isdir():
                    continue
                if seen.total() >= MAX_MEMBERS:
                    raise SliceError("archive_bomb")
                if entry.offset_data > RATIO_FREE_BYTES + MAX_RATIO * packed_size:
                    raise SliceError("archive_bomb")
                # a name that is not UTF-8 keeps its bytes as \x.. so that it can be written down
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                code = _tar_refusal(entry)
                if not code:
                    file.seek(entry.offset_data)
                yield Member(
                    name=name,
                    occurrence=seen[name],
                    offset=entry.offset_data,
                    packed_size=entry.size,
                    size=entry.size,
                    code=code,
                )
                seen[name] += 1
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except EOFError:
        raise SliceError("archive_truncated") from None
    except (zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError):
        raise SliceError("corrupt") from None
    except tarfile.TarError:
        if seen:
            raise SliceError("archive_truncated") from None
        file.seek(0)
        empty = not any(file.read(tarfile.BLOCKSIZE))
        raise SliceError("archive_empty" if empty else "unsupported_format") from None
    if not seen and not any(end):
        raise SliceError("archive_empty")
    if len(end) < tarfile.BLOCKSIZE:
        raise SliceError("archive_truncated")  # every tar ends with zero blocks
    if any(end):
        raise SliceError("corrupt")  # a header that tarfile takes for the end


def _tar_refusal(entry: tarfile.TarInfo) -> str:
    if not entry.isreg() or entry.issparse():
        return "unsafe_member"
    if entry.size > MAX_OBJECT_BYTES:
        return "too_large"
    return "" if entry.size else "empty_file"


def has_trailing_data(file: BinaryIO) -> bool:
    """Read to the end of the archive; return whether anything but zeros follows the tar."""
    try:
        for chunk in itertools.takewhile(len, iter(functools.partial(file.read, 1 << 20), b"")):
            if any(chunk.lstrip(b"\0")):
                return True
    except (EOFError, OSError, zlib.error, lzma.LZMAError):
        return True
    return False


@functools.lru_cache(maxsize=2)
def open_solid(uri: str, *, container: str, size: int) -> BinaryIO:
    """Open the unpacked stream of a compressed tar; the process keeps it open.

    The stream can only be read forward, and going back starts it again. A process whose blocks of
    work come in the order of their offsets therefore reads each archive once.
    """
    packed = io.BufferedReader(RangeFile(uri, size=size, window=SOLID_WINDOW), SOLID_WINDOW)
    return SOLID[container](cast(BinaryIO, packed))


def read_solid(uri: str, *, container: str, size: int, start: int, length: int) -> bytes:
    """Return bytes [start, start + length) of the unpacked stream of an object of `size` bytes."""
    try:
        file = open_solid(uri, container=container, size=size)
        file.seek(start)
        return file.read(length)
    except BaseException as error:
        open_solid.cache_clear()  # its place in the stream is lost
        if isinstance(error, EOFError):
            raise SliceError("truncated") from None
        if isinstance(error, OSError | zlib.error | lzma.LZMAError):
            raise SliceError("corrupt") from None
        raise
