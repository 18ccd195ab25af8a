"""`cctmn submit`: run a job on a Ray cluster and follow its log; list, follow and stop jobs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cctmn.errors import EXIT_STOPPED, ConfigError
from cctmn.reporter import printable

if TYPE_CHECKING:
    from cctmn.submit import ListedJob


@click.command(
    epilog="""\b
Example:
  cctmn submit --address http://HEAD:8265 score -- s3://in -o s3://out -m s3://model
  cctmn submit --address http://HEAD:8265 --list
"""
)
@click.argument("job", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option(
    "--address",
    metavar="URL",
    help="Dashboard of the cluster [RAY_API_SERVER_ADDRESS, else port 8265 here].",
)
@click.option(
    "--env", multiple=True, metavar="KEY=VALUE", help="Environment of the job; repeatable."
)
@click.option(
    "--working-dir",
    metavar="DIR",
    help="Folder to upload [the package cctmn; for a script, what git tracks of its checkout].",
)
@click.option(
    "--no-upload",
    is_flag=True,
    help="Upload nothing: the cluster's image has cctmn, and the script.",
)
@click.option("--no-wait", is_flag=True, help="Print the job's id and return at once.")
@click.option("--follow", "follow_id", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--stop", "stop_id", metavar="ID", help="Stop a job; submitting it again resumes it.")
@click.option("--list", "as_list", is_flag=True, help="List the jobs of the cluster, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; log to stderr.")
def submit(
    job: str | None,
    args: tuple[str, ...],
    *,
    address: str | None,
    env: tuple[str, ...],
    working_dir: str | None,
    no_upload: bool,
    no_wait: bool,
    follow_id: str | None,
    stop_id: str | None,
    as_list: bool,
    as_json: bool,
) -> None:
    """Run JOB on a Ray cluster and follow its log.

    JOB is score, train-detector, train-classifier or evaluate, with the arguments of that command
    after `--`; or the path of a script. One job at a time can write to an OUT; a second one is
    refused. INPUT, MODEL and OUT are checked before, as far as this machine reaches them.

    The job gets the endpoint and region of the AWS_* variables, but no keys. All users of the
    cluster can read what --env gives. The token of a cluster is taken from RAY_AUTH_TOKEN, from the
    file that RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token. Ctrl-C leaves the job running.
    The exit code is the job's.
    """
    from cctmn.cli import submission
    from cctmn.dashboard import address_of
    from cctmn.submit import Jobs, JobStatus, Order

    asked = (job is not None, follow_id is not None, stop_id is not None, as_list)
    if sum(asked) != 1:
        raise ConfigError(
            f"submit: nothing to run; give a JOB ({', '.join(submission.JOBS)}, or a script), or "
            "--follow ID, --stop ID or --list"
        )
    group = click.get_current_context().find_root().command
    asked_for = None if job is None else submission.read(job, args, group=group)
    variables = dict(_pair(text) for text in env)
    url = address_of(address)
    jobs = Jobs(url)

    if as_list:
        _print_list(jobs.listed(), group=group, as_json=as_json)
        return

    def print_json(status: JobStatus) -> None:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(status) | {"address": url}, indent=2))

    if stop_id is not None:
        status = jobs.stop(stop_id)
        click.echo(f"job {stop_id}: {status.status}", err=True)
        print_json(status)
        return
    submission_id = str(follow_id)
    if asked_for is not None:
        order = Order(
            asked_for.script,
            asked_for.words,
            out=asked_for.out,
            env=variables,
            working_dir=working_dir,
            upload=not no_upload,
        )

        def write(line: str) -> None:
            click.echo(line, err=True)

        def check(folder: Path | None) -> None:
            submission.check(asked_for, env=variables, folder=folder, write=write)

        submission_id = jobs.submit(order, write=write, check=check)
    again = "" if address is None else f" --address {address}"
    if no_wait:
        click.echo(f"follow it with: cctmn submit{again} --follow {submission_id}", err=True)
        if as_json:
            print_json(jobs.status(submission_id))
        else:
            click.echo(submission_id)
        return
    click.echo(f"job {submission_id} at {url}", err=True)
    printer = _LogPrinter(err=as_json)
    try:
        status = jobs.follow(submission_id, write=printer)
        printer.close()
    except KeyboardInterrupt:
        click.echo(
            f"\nthe job is still running; follow it again with: cctmn submit{again} --follow "
            f"{submission_id}\nor stop it with: cctmn submit{again} --stop {submission_id}",
            err=True,
        )
        sys.exit(EXIT_STOPPED)
    reason = status.message or f"exit code {status.exit_code}"
    click.echo(f"job {submission_id}: {status.status} ({reason})", err=True)
    print_json(status)
    sys.exit(status.exit_code)


def _print_list(listed: Sequence[ListedJob], *, group: click.Command, as_json: bool) -> None:
    """Print the jobs of a cluster with their OUT, as a table or as JSON."""
    from cctmn.cli import submission

    rows = [
        {
            "id": one.id,
            "status": one.status,
            "out": submission.out_of(one.entrypoint, group=group),
            "started": _time(one.started_s),
            "ended": _time(one.ended_s),
        }
        for one in listed
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    names = ("id", "status", "started", "ended", "out")
    lines = [[*names[:-1], "OUT"], *([str(row[name] or "-") for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(printable("  ".join(cells).rstrip()))


def _time(seconds: float | None) -> str | None:
    """Return a time in UTC as ISO 8601 has it, None for one that has not come."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _LogPrinter:
    """Prints the job's log as it comes; on a terminal, JSON lines become plain text."""

    def __init__(self, *, err: bool) -> None:
        self._err, self._rest = err, ""
        self._plain = (sys.stderr if err else sys.stdout).isatty()

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            click.echo(_text_of(line) if self._plain else line, err=self._err)

    def close(self) -> None:
        """Print a last line that does not end with a newline."""
        if self._rest:
            self("\n")


def _text_of(line: str) -> str:
    """Return the text of a log line, without its time and run."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry["text"]) if isinstance(entry, dict) and "text" in entry else line


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError("no value; write it as KEY=VALUE", f"--env {text}")
    return name, value
