"""Messages for the person who runs a job: progress, errors, and the lines of a log.

Library code takes a `Reporter` and calls it with lines of text. The command line passes one that
prints; tests and quiet jobs pass `silent`. File names, which may identify a patient, are passed
apart from the text, because a log is kept and is read by people other than who started the job.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import secrets
import sys
import unicodedata
from typing import Protocol

# Set by whoever submits a job, so that its log lines and metrics can be matched to it.
RUN_ID_VARIABLE = "CCTMN_RUN_ID"
# Stands in a log in place of names.
NAMES_HIDDEN = "(CCTMN_LOG=text shows the names)"
# Unicode categories that change the terminal or the order of the text; Cs cannot be printed.
_CONTROL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Reporter(Protocol):
    """A callable that takes one message for a person.

    A `transient` message reports progress and may be overwritten by the next one. `names` holds
    file names and the like: a terminal shows them, a log does not.
    """

    def __call__(self, text: str, *, transient: bool = False, names: str = "") -> None: ...


def silent(text: str, *, transient: bool = False, names: str = "") -> None:
    """Discard the message."""


def report_progress(report: Reporter, text: str, *, fraction: float) -> None:
    """Report a transient line on a job of which this fraction, 0 to 1, is done.

    A reporter with a method `progress`, as the terminal's, may draw the fraction; any other one
    gets the line alone.
    """
    draw = getattr(report, "progress", None)
    if draw is None:
        report(text, transient=True)
    else:
        draw(text, fraction=fraction)


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


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes such as \x1b, but for line breaks.

    File names and member names of an archive reach the terminal, and a name may hold the codes that
    clear a screen or write into the clipboard.
    """
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in _CONTROL else ascii(c)[1:-1] for c in text
    )


def logs_json() -> bool:
    """Return whether stderr gets JSON lines: it is not a terminal, and CCTMN_LOG is not `text`."""
    return not sys.stderr.isatty() and os.environ.get("CCTMN_LOG", "json") != "text"


def log(text: str, *, level: str = "info") -> None:
    """Print each line of the text as a JSON object with time and run id."""
    for line in text.splitlines():
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": at, "level": level, "run": run_id(), "text": line}
        _write(json.dumps(entry, ensure_ascii=False))


def print_error(text: str, *, named: str) -> None:
    """Print an error to stderr: `text` to a log, to a terminal `named`, which holds names too."""
    if logs_json():
        log(text + (f" {NAMES_HIDDEN}" if named != text else ""), level="error")
    else:
        _write(f"error: {printable(named)}")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
