"""Members of a tar, plain or compressed, by reading its headers in order.

tarfile parses the headers. What it reads is limited here, because it has no limits of its own: a
header may name a member of a gigabyte, or a compressed stream may never end.
"""

from __future__ import annotations

import bz2
import functools
import io
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, cast

from cctmn.errors import SliceError
from cctmn.read.archive import MAX_MEMBERS, MAX_OBJECT_BYTES, Member, max_unpacked_bytes
from cctmn.read.ranges import RangeFile

# A tar in a compressed stream can only be read from its beginning: its kind -> the decompressor.
SOLID: Final[dict[str, Callable[[], Any]]] = {
    "tar.gz": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "tar.bz2": bz2.BZ2Decompressor,
    "tar.xz": lambda: lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY_BYTES),
}
_MAX_XZ_MEMORY_BYTES: Final = 256 << 20  # xz -9 takes 65 MiB, the format allows 4 GiB
_WINDOW: Final = 4 << 20  # bytes per GET of a compressed stream
_CHUNK: Final = 256 << 10  # unpacked at a time
_MAX_HEADER_BYTES: Final = 1 << 20  # of one header: a long name or a pax record
_MAX_TRAILING_BYTES: Final = 64 << 20  # of zeros after the end; tar pads to 10 KiB
_FOLDERS: Final = (tarfile.DIRTYPE, b"D")  # D: GNU's folder with a list of its content
_VOLUME_LABEL, _CONTINUED = b"V", b"M"
_ERRORS: Final = (zlib.error, lzma.LZMAError, OSError, ValueError, RecursionError)


class UnpackedStream:
    """The unpacked content of a gzip, bzip2 or xz file of one or more streams.

    It reads forward only; going back starts again. Raises EOFError where a stream is cut, the
    library's error where it is damaged, and SliceError("archive_bomb") where it unpacks to more
    than the limit.
    """

    def __init__(self, packed: BinaryIO, *, container: str, max_bytes: int) -> None:
        self._packed, self._new, self._max_bytes = packed, SOLID[container], max_bytes
        self._stream: Any = None
        self._rest, self._position = b"", 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        assert whence in (os.SEEK_SET, os.SEEK_CUR)
        target = offset if whence == os.SEEK_SET else self._position + offset
        if target < self._position:
            self._restart()
        while self._position < target and self.read(min(_CHUNK, target - self._position)):
            pass
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        parts = []
        while size > 0 and (part := self._read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        while True:
            if self._stream is None or self._stream.eof:
                rest = self._rest if self._stream is None else self._stream.unused_data
                # Streams may follow one another, with zeros between them.
                rest = rest.lstrip(b"\0") or self._packed.read(_CHUNK).lstrip(b"\0")
                if not rest:
                    return b""
                self._stream, self._rest = self._new(), rest
            data: bytes = self._stream.decompress(self._rest, size)
            self._rest = getattr(self._stream, "unconsumed_tail", b"")
            if data:
                self._position += len(data)
                if self._position > self._max_bytes:
                    raise SliceError("archive_bomb")
                return data
            if not self._stream.eof and not self._rest:
                self._rest = self._packed.read(_CHUNK)
                if not self._rest:
                    raise EOFError

    def _restart(self) -> None:
        self._packed.seek(0)
        self._stream, self._rest, self._position = None, b"", 0


class _Headers:
    """The archive as tarfile sees it: every read that is longer than a header is refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise SliceError("archive_bomb")
        return self._file.read(size)


def members(file: BinaryIO, *, size: int) -> Iterator[Member]:
    """Yield the members of a tar of `size` packed bytes, without folders.

    `file` is at the member's data when the member is yielded. Raises SliceError for the archive as
    a whole, also for damage after good members, where tarfile would end silently.
    """
    seen: Counter[str] = Counter()
    try:
        file.seek(0)  # an open stream may have been read before
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as archive:
            for entry in archive:
                if entry.size < 0:
                    archive.offset = entry.offset_data  # else the same header comes again
                if entry.isdir() or entry.type in (*_FOLDERS, _VOLUME_LABEL):
                    continue
                if seen.total() >= MAX_MEMBERS:
                    raise SliceError("archive_bomb")
                if entry.offset_data > max_unpacked_bytes(size):
                    raise SliceError("archive_bomb")
                # A name that is not UTF-8 keeps its bytes as \x.. so that it can be written down.
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                code = _refusal(entry)
                if not code:
                    file.seek(entry.offset_data)
                length = 0 if code else entry.size
                yield Member(
                    name=name,
                    occurrence=seen[name],
                    offset=entry.offset_data,
                    packed_size=length,
                    size=length,
                    code=code,
                )
                seen[name] += 1
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except EOFError:
        raise SliceError("archive_truncated") from None
    except tarfile.TarError:
        raise SliceError(_damage(file, any_member=bool(seen))) from None
    except _ERRORS:
        raise SliceError("corrupt") from None
    if not seen and not any(end):
        raise SliceError("archive_empty")
    if len(end) < tarfile.BLOCKSIZE:
        raise SliceError("archive_truncated")  # every tar ends with zero blocks
    if any(end):
        raise SliceError("corrupt")  # a header that tarfile takes for the end


def _damage(file: BinaryIO, *, any_member: bool) -> str:
    """Return the code of an archive in which tarfile cannot go on."""
    if any_member:
        return "archive_truncated"
    try:
        file.seek(0)
        empty = not any(file.read(tarfile.BLOCKSIZE))
    except (EOFError, *_ERRORS):
        return "corrupt"
    return "archive_empty" if empty else "unsupported_format"


def _refusal(entry: tarfile.TarInfo) -> str:
    if entry.size < 0:
        return "corrupt"
    if entry.type == _CONTINUED:
        return "archive_split"
    if not entry.isreg() or entry.issparse():
        return "unsafe_member"
    if entry.size > MAX_OBJECT_BYTES:
        return "too_large"
    return "" if entry.size else "empty_file"


def has_trailing_data(file: BinaryIO) -> bool:
    """Return whether anything but a few zeros follows the end of the tar."""
    for _ in range(0, _MAX_TRAILING_BYTES, _CHUNK):
        try:
            chunk = file.read(_CHUNK)
        except (EOFError, SliceError, *_ERRORS):
            return True
        if not chunk:
            return False
        if any(chunk.lstrip(b"\0")):
            return True
    return True


@functools.lru_cache(maxsize=2)
def open_solid(uri: str, *, container: str, size: int, etag: str = "") -> BinaryIO:
    """Open the unpacked stream of a compressed tar of `size` bytes; the process keeps it open.

    A process whose blocks of work come in the order of their offsets reads each archive once.
    """
    packed = io.BufferedReader(RangeFile(uri, size=size, window=_WINDOW, etag=etag), _WINDOW)
    stream = UnpackedStream(
        cast(BinaryIO, packed), container=container, max_bytes=max_unpacked_bytes(size)
    )
    return cast(BinaryIO, stream)


def read_solid(
    uri: str, *, container: str, size: int, start: int, length: int, etag: str = ""
) -> bytes:
    """Return bytes [start, start + length) of the unpacked stream of an object of `size` bytes."""
    try:
        file = open_solid(uri, container=container, size=size, etag=etag)
        file.seek(start)
        return file.read(length)
    except BaseException as error:
        open_solid.cache_clear()  # its place in the stream is lost
        if isinstance(error, EOFError):
            raise SliceError("truncated") from None
        if isinstance(error, _ERRORS):
            raise SliceError("corrupt") from None
        raise
