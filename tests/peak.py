"""Run a command and tell the most memory it ever held.

    python -m tests.peak MODULE ARG...

The peak is that of the process's own memory map. What getrusage gives is handed down from the
parent, through fork and exec, and a large pytest would hide every child behind itself.
"""

from __future__ import annotations

import atexit
import runpy
import sys
from pathlib import Path


def peak_kib() -> int:
    """High-water mark of this process's resident memory, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    atexit.register(lambda: print(f"peak_kib {peak_kib()}", file=sys.stderr))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
