"""`cctmn submit`: run a script of jobs/ on a Ray cluster and follow its log."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cctmn.errors import EXIT_STOPPED, ConfigError


@click.command(
    epilog="""\b
Example:
  cctmn submit --address http://HEAD:8265 jobs/score.py -- s3://in -o s3://out -m s3://model
"""
)
@click.argument("script", required=False)
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
    help="Folder to upload [what git tracks of the checkout that holds SCRIPT].",
)
@click.option(
    "--no-upload", is_flag=True, help="Upload nothing: the cluster's image has SCRIPT and cctmn."
)
@click.option("--no-wait", is_flag=True, help="Print the job's id and return at once.")
@click.option("--follow", "follow_id", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--stop", "stop_id", metavar="ID", help="Stop a job; submitting it again resumes it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; log to stderr.")
def submit(
    script: str | None,
    args: tuple[str, ...],
    *,
    address: str | None,
    env: tuple[str, ...],
    working_dir: str | None,
    no_upload: bool,
    no_wait: bool,
    follow_id: str | None,
    stop_id: str | None,
    as_json: bool,
) -> None:
    """Run SCRIPT on a Ray cluster and follow its log.

    One job at a time can write to an OUT; a second one is refused. The job gets the endpoint and
    region of the AWS_* variables, but no keys. All users of the cluster can read what --env gives.
    For a cluster with tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. Ctrl-C leaves the job
    running. The exit code is the job's.
    """
    from cctmn.submit import Jobs, JobStatus, Order, address_of

    if sum(one is not None for one in (script, follow_id, stop_id)) != 1:
        raise ConfigError("submit: nothing to run; give a SCRIPT, or --follow ID, or --stop ID")
    order = None
    if script is not None:
        order = Order(
            script,
            args,
            out=out_of(script, args, group=click.get_current_context().find_root().command),
            env=dict(_pair(text) for text in env),
            working_dir=working_dir,
            upload=not no_upload,
        )
    url = address_of(address)
    jobs = Jobs(url)

    def print_json(status: JobStatus) -> None:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(status) | {"address": url}, indent=2))

    if stop_id is not None:
        status = jobs.stop(stop_id)
        click.echo(f"job {stop_id}: {status.status}", err=True)
        print_json(status)
        return
    submission_id = str(follow_id)
    if order is not None:
        submission_id = jobs.submit(order, write=lambda line: click.echo(line, err=True))
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


def out_of(script: str, args: Sequence[str], *, group: click.Command) -> str | None:
    """Return the OUT among the arguments of a script, or None if it has none.

    A script of jobs/ is named after its command in `group` (train_detector.py: `train detector`),
    and that command parses its arguments. Of another script, only -o/--out is known.
    """
    command: click.Command = group
    for name in Path(script).stem.split("_"):
        inner = command.commands.get(name) if isinstance(command, click.Group) else None
        if inner is None:
            command = _OUT_ONLY
            break
        command = inner
    with command.make_context(command.name, list(args), resilient_parsing=True) as context:
        out = context.params.get("out")
    return None if out is None else str(out)


_OUT_ONLY = click.Command(
    "script",
    params=[
        click.Option(["-o", "--out"]),
        click.Option(["-q", "--quiet"], is_flag=True),
        click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED),
    ],
    context_settings={"ignore_unknown_options": True},
)


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
