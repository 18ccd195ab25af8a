"""Talk to the person who runs a job: lines of text, and times as a person says them.

In: whatever has something to say. Out: a callable that takes it; the command line prints, tests and
jobs that want quiet do not. What may name a patient is said apart, for a log is kept and read by
others than who started the job.
"""

from __future__ import annotations

import functools
import os
import secrets
from typing import Protocol

RUN_ID_VARIABLE = "CCTMN_RUN_ID"  # set by who submits a job, to find its lines and metrics again


class Say(Protocol):
    """Takes lines for a person; a passing one is soon followed by another.

    `names` are file names and the like, which a person at a terminal is told and a log is not.
    """

    def __call__(self, text: str, *, passing: bool = False, names: str = "") -> None: ...


def silent(text: str, *, passing: bool = False, names: str = "") -> None:
    """Say nothing."""


@functools.cache
def run_id() -> str:
    """What this run is called in its log lines and metrics; random, so that it says nothing."""
    return os.environ.get(RUN_ID_VARIABLE) or secrets.token_hex(6)


def duration(seconds: float) -> str:
    """A time as a person says it: 45s, 16m, 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m" if minutes else f"{rest}s"
