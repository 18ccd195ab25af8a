"""What the commands share: talk on stderr, settings, a stop that can be resumed.

In: options as click gives them. Out: lines for a person, lists of files, exit code 130.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from cctmn.talk import run_id

EXIT_STOPPED = 130
LOG_PERIOD_S = 30.0  # between passing lines where they cannot overwrite each other


class Talk:
    """Talk on stderr: passing lines overwrite each other on a terminal, and are rare off it.

    Off a terminal each line is a JSON object, without names; CCTMN_LOG=text keeps it plain.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._open, self._last = False, 0.0

    def __call__(self, text: str, *, passing: bool = False, names: str = "") -> None:
        """Say a line; a passing one may be dropped."""
        if self._quiet:
            return
        if passing and not self._terminal:
            if time.monotonic() - self._last < LOG_PERIOD_S:
                return
            self._last = time.monotonic()
        if logs_json():
            log(text)
            return
        lead = "\r\033[K" if self._open else ""
        self._open = passing and self._terminal
        click.echo(lead + text + (f" ({names})" if names else ""), err=True, nl=not self._open)


def logs_json() -> bool:
    """Whether stderr is read by a program: it is no terminal, and nobody asked for plain text."""
    return not sys.stderr.isatty() and os.environ.get("CCTMN_LOG", "json") != "text"


def log(text: str, *, level: str = "info") -> None:
    """Print each line of the text as a JSON object with time and run id."""
    for line in text.splitlines():
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": at, "level": level, "run": run_id(), "text": line}
        click.echo(json.dumps(entry, ensure_ascii=False), err=True)


def files_of(options: dict[str, Any]) -> list[Path]:
    """The settings file of --config, if one is given."""
    return [] if options["config"] is None else [options["config"]]


def tree_text(value: dict[str, Any], indent: str = "") -> str:
    """Nested tables as indented lines."""
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines += [f"{indent}{name}:", tree_text(inner, indent + "  ")]
        elif isinstance(inner, dict | list | tuple):
            lines.append(f"{indent}{name}: {', '.join(map(str, inner)) or 'none'}")
        else:
            lines.append(f"{indent}{name}: {inner}")
    return "\n".join(lines)


@contextlib.contextmanager
def resumable(out: str) -> Iterator[None]:
    """Stop on Ctrl-C or SIGTERM with a folder that can be resumed, and say so."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        stopped = f"stopped; the same command goes on from what is in {out}"
        if logs_json():
            log(stopped, level="warning")
        else:
            click.echo(f"\n{stopped}", err=True)
        sys.exit(EXIT_STOPPED)
    finally:
        signal.signal(signal.SIGTERM, before)
