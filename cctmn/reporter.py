"""Progress messages for the person who runs a job.

Library code takes a `Reporter` and calls it with lines of text. The command line passes one that
prints; tests and quiet jobs pass `silent`. File names, which may identify a patient, are passed
apart from the text, because a log is kept and is read by people other than who started the job.
"""

from __future__ import annotations

import functools
import os
import secrets
from typing import Protocol

# Set by whoever submits a job, so that its log lines and metrics can be matched to it.
RUN_ID_VARIABLE = "CCTMN_RUN_ID"


class Reporter(Protocol):
    """A callable that takes one message for a person.

    A `transient` message reports progress and may be overwritten by the next one. `names` holds
    file names and the like: a terminal shows them, a log does not.
    """

    def __call__(self, text: str, *, transient: bool = False, names: str = "") -> None: ...


def silent(text: str, *, transient: bool = False, names: str = "") -> None:
    """Discard the message."""


@functools.cache
def run_id() -> str:
    """Return the id of this run in log lines and metrics; random, so that it reveals nothing."""
    return os.environ.get(RUN_ID_VARIABLE) or secrets.token_hex(6)


def duration(seconds: float) -> str:
    """Return a duration in short form: 45s, 16m, 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m" if minutes else f"{rest}s"
