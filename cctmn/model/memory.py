"""Memory that a process keeps between slices, which are all of one size."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# Options of glibc's mallopt (malloc.h): the size from which a block is mapped by itself, and the
# free memory from which the heap shrinks.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
MOST_BYTES: Final = (1 << 31) - 1  # the largest value that mallopt takes


def keep_freed_memory(at_most_bytes: int = MOST_BYTES) -> None:
    """Let this process keep freed memory for its next allocations, where the C library is glibc.

    By default glibc gives every block of some MB back to the system, which then zeroes the pages of
    the next one: a tenth of the time of a scorer or a training step, a third of a decoder's. Of
    what is freed, the process keeps `at_most_bytes`, and no larger block than that.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # Older versions refuse more than 32 MiB; a refusal changes nothing.
        largest = min(at_most_bytes, 1 << 30)
        if libc.mallopt(_MMAP_THRESHOLD, largest) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25):
            libc.mallopt(_TRIM_THRESHOLD, at_most_bytes)
