"""A seekable file over ranged reads, so that an archive on S3 opens like one on disk.

zipfile and tarfile take it for a file. A read that its buffer cannot serve costs one request.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from cctmn import store


class RangeFile(io.RawIOBase):
    """Seekable file over ranged reads: the last window is kept, so that small reads cost one GET.

    `window` is the least that a GET fetches, in bytes; 0 fetches exactly what is asked for.
    With `etag`, a read raises ObjectError if the object has another one by now.
    `read` may be given where the bytes come from somewhere else than `uri`, `head` where the first
    bytes are already known.
    """

    def __init__(
        self,
        uri: str,
        *,
        size: int,
        window: int,
        etag: str = "",
        head: bytes = b"",
        read: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self._read = read or (
            lambda start, length: store.read_range(uri, start=start, length=length, etag=etag)
        )
        self._size = size
        self._window = window
        self._start, self._buffer = 0, head
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")  # as a plain file does; zipfile relies on it
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        begin = self._position - self._start
        if begin < 0 or begin + wanted > len(self._buffer):
            length = min(max(wanted, self._window), left)
            self._start, self._buffer = self._position, self._read(self._position, length)
            begin = 0
        data = self._buffer[begin : begin + wanted]
        self._position += len(data)
        return data

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
