"""The members of zip and tar archives, and the limits that keep a hostile archive cheap.

`zip_archive` and `tar_archive` list and read them by byte ranges; nothing is ever written to disk.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_MEMBERS: Final = 1_000_000  # a year of a large hospital in one archive; more is a bomb
MAX_OBJECT_BYTES: Final = 1 << 30  # 2,000 frames of 512 x 512 x 16 bit
MAX_RATIO: Final = 200  # CT deflates 2:1 to 10:1; only blank data goes beyond 200:1
RATIO_FREE_BYTES: Final = 16 << 20  # small blank files may have any ratio


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


def max_unpacked_bytes(packed_size: int) -> int:
    """Return the most that an archive or member of this size may unpack to."""
    return RATIO_FREE_BYTES + MAX_RATIO * packed_size
