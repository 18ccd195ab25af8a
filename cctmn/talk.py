"""Talk to the person who runs a job: lines of text, and times as a person says them.

In: whatever has something to say. Out: a callable that takes it; the command line prints, tests and
jobs that want quiet do not.
"""

from __future__ import annotations

from typing import Protocol


class Say(Protocol):
    """Takes lines for a person; a passing one is soon followed by another."""

    def __call__(self, text: str, *, passing: bool = False) -> None: ...


def silent(text: str, *, passing: bool = False) -> None:
    """Say nothing."""


def duration(seconds: float) -> str:
    """A time as a person says it: 45s, 16m, 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m" if minutes else f"{rest}s"
