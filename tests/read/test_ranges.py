"""A file over ranged reads."""

from __future__ import annotations

import os

import pytest

from cctmn.read.ranges import RangeFile


def test_a_range_file_reads_like_a_file_with_few_gets() -> None:
    data = bytes(range(256)) * 40
    reads: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        reads.append((start, length))
        return data[start : start + length]

    file = RangeFile("", size=len(data), window=1000, head=data[:100], read=read)
    assert file.read(100) == data[:100]
    assert reads == []
    assert file.read(10) + file.read(900) == data[100:1010]
    assert reads == [(100, 1000)]
    assert file.seek(-5, os.SEEK_END) == len(data) - 5
    assert file.read() == data[-5:]
    assert file.read(5) == b""
    with pytest.raises(OSError, match="before the start"):
        file.seek(-1)
