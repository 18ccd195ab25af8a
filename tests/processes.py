"""Processes that tests start end with the test process, however it ends.

Reads: nothing. Writes: nothing. A finaliser does not run when pytest is killed, so the kernel is
asked to send each child a signal when its parent dies (Linux only).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1 and os.environ.get("PYTEST_XDIST_WORKER"):
            os._exit(1)  # the parent died before the call above


def end_with_the_test_run() -> None:
    """Prepare a child, between fork and exec: it dies with the test process and obeys Ctrl-C.

    pytest in the background of a script ignores SIGINT, and its children would inherit that.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
