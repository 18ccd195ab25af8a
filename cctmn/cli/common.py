"""Helpers that the commands share: messages on stderr, settings files, and a clean stop.

A command that is interrupted prints how to resume and exits with code 130.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

from cctmn.classes import JOIN_KEYS
from cctmn.errors import EXIT_STOPPED, ConfigError
from cctmn.reporter import NAMES_HIDDEN, log, logs_json, printable

# Off a terminal, transient lines cannot overwrite each other, so most of them are dropped.
LOG_PERIOD_S = 30.0
BAR_COLUMNS = 20


class NearestGroup(click.Group):
    """A click group that lists its commands as added, and names the nearest to an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order in which they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            question = f"did you mean {near[0]}? " if near else ""
            ctx.fail(f"No such command {args[0]!r}; {question}known: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def leaf_commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group with its full name, as "models show"."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaf_commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def join_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how labels are joined with predictions."""
    command = click.option(
        "--root", metavar="ROOT", help="Base folder or prefix for relative URIs in LABELS."
    )(command)
    return click.option(
        "--key",
        type=click.Choice(JOIN_KEYS),
        default="name",
        show_default=True,
        help="Column that joins labels and predictions.",
    )(command)


label_map_option = click.option(
    "--label-map",
    multiple=True,
    metavar="LABEL=CLASS[,...]",
    help="Class that a label means, as 0=control,1=covid; repeatable.",
)


def finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:  # noqa: ARG001 - click's signature
    """Return the number of an option. Raises ConfigError for nan and inf, which pass a range."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{param.opts[0]} {value:g}: not a finite number; give one")
    return value


class TerminalReporter:
    """A Reporter that prints to stderr.

    On a terminal a transient line is overwritten by the next one. Off a terminal each line is a
    JSON object without file names, and transient lines are rare; CCTMN_LOG=text prints plain text.
    Names stand in parentheses, or after a text that ends with a colon.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._open, self._last = False, 0.0

    def __call__(self, text: str, *, transient: bool = False, names: str = "") -> None:
        """Print one line. A transient line may be dropped."""
        if self._quiet:
            return
        if transient and not self._terminal:
            if time.monotonic() - self._last < LOG_PERIOD_S:
                return
            self._last = time.monotonic()
        if logs_json():
            log(text + f" {NAMES_HIDDEN}" * (bool(names) and text.endswith(":")))
            return
        after = f" {names}" if text.endswith(":") else f" ({names})"
        line = printable(text + after * bool(names))
        if transient and self._terminal:
            # A line that wraps could not be overwritten.
            line = line[: _columns()]
        self._print(line, stays=not (transient and self._terminal))

    def progress(self, text: str, *, fraction: float) -> None:
        """Print a transient line with a bar before it, if stderr is a terminal."""
        if self._quiet or not self._terminal or logs_json():
            self(text, transient=True)
            return
        done = round(BAR_COLUMNS * min(1.0, max(0.0, fraction)))
        line = printable(text)[: max(0, _columns() - BAR_COLUMNS - 1)]
        full, empty = ("█", "░") if _shows("█░") else ("#", "-")
        bar = full * done + empty * (BAR_COLUMNS - done)
        if "NO_COLOR" not in os.environ:
            bar = click.style(bar, fg="green")
        self._print(f"{bar} {line}", stays=False)

    def _print(self, line: str, *, stays: bool) -> None:
        lead = "\r\033[K" if self._open else ""
        self._open = not stays
        click.echo(lead + line, err=True, nl=stays)


def _columns() -> int:
    """Return how many characters fit in a line of the terminal; the last column may wrap."""
    return max(1, shutil.get_terminal_size().columns - 1)


def _shows(text: str) -> bool:
    """Return whether the terminal's encoding has these characters."""
    try:
        text.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def tree_text(value: dict[str, Any], indent: str = "") -> str:
    """Return nested tables as indented lines of text."""
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
def resumable() -> Iterator[None]:
    """End the block on Ctrl-C or SIGTERM with a line on how to resume, and exit code 130.

    A second SIGTERM is ignored: it must not cut short how the block ends.
    """

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        stopped = "Interrupted. Run the same command again to resume."
        if logs_json():
            log(stopped, level="warning")
        else:
            click.echo(f"\n{stopped}", err=True)
        sys.exit(EXIT_STOPPED)
    finally:
        signal.signal(signal.SIGTERM, before)
