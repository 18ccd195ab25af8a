"""How a process that runs a network holds memory; scoring and training share it."""

from __future__ import annotations

import ctypes
import sys

# Options of glibc's mallopt (malloc.h): the size from which a block is mapped by itself, and the
# free memory from which the heap shrinks.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next allocations, where the C library is glibc.

    By default glibc gives every block of some MB back to the system, which then zeroes the pages of
    the next one: a tenth of the time of a scorer or of a training step. The process keeps what one
    slice needs at most.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        # Older versions refuse more than 32 MiB; a refusal changes nothing.
        if libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 1 << 25):
            libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
