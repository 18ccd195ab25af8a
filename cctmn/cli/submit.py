"""`cctmn submit`: a script of jobs/ on a cluster that is there.

In: SCRIPT and its arguments. Out: the log of the job as it comes, and its exit code.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from cctmn.errors import EXIT_STOPPED, ConfigError


@click.command()
@click.argument("script", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS...]")
@click.option("--address", metavar="URL", help="Dashboard; else RAY_API_SERVER_ADDRESS, 8265 here.")
@click.option("--env", "env", multiple=True, metavar="KEY=VALUE", help="For the job; repeatable.")
@click.option("--working-dir", metavar="DIR", help="What to upload [the checkout of SCRIPT].")
@click.option("--no-upload", is_flag=True, help="SCRIPT and cctmn are in the cluster's image.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and leave.")
@click.option("--follow", "follow_id", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--stop", "stop_id", metavar="ID", help="Stop a job; the next one goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON; log to stderr.")
def submit(
    script: str | None,
    args: tuple[str, ...],
    *,
    address: str | None,
    follow_id: str | None,
    stop_id: str | None,
    as_json: bool,
    **options: object,
) -> None:
    """Run SCRIPT on a Ray cluster through its Jobs API, and follow it.

    As in `cctmn submit jobs/score.py -- s3://in -o s3://out -m s3://model`. One job at a time
    writes to an OUT: while one lives a second is refused. Endpoint and region of the AWS_*
    variables go with the job, keys do not; what --env gives can be read by all users of the
    cluster. Of a cluster with tokens, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. The exit code is
    the job's.
    """
    from cctmn.submit import Jobs, Order, Outcome, address_of

    if sum(one is not None for one in (script, follow_id, stop_id)) != 1:
        raise ConfigError("submit: give a SCRIPT, or --follow ID, or --stop ID")
    order = None
    if script is not None:
        order = Order(
            script,
            args,
            env=dict(_pair(text) for text in options["env"]),  # type: ignore[attr-defined]
            working_dir=options["working_dir"],  # type: ignore[arg-type]
            upload=not options["no_upload"],
        )
    place = address_of(address)
    jobs = Jobs(place)

    def tell(outcome: Outcome) -> None:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(outcome) | {"address": place}, indent=2))

    if stop_id is not None:
        outcome = jobs.stop(stop_id)
        click.echo(f"job {stop_id}: {outcome.status}", err=True)
        tell(outcome)
        return
    submission_id = jobs.submit(order) if order is not None else str(follow_id)
    again = "" if address is None else f" --address {address}"
    if options["no_wait"]:
        click.echo(f"follow it with: cctmn submit{again} --follow {submission_id}", err=True)
        if as_json:
            tell(jobs.outcome(submission_id))
        else:
            click.echo(submission_id)
        return
    click.echo(f"job {submission_id} at {place}", err=True)
    shown = _Shown(err=as_json)
    try:
        outcome = jobs.follow(submission_id, write=shown)
        shown.close()
    except KeyboardInterrupt:
        click.echo(
            f"\nthe job runs on; come back with: cctmn submit{again} --follow {submission_id}\n"
            f"or stop it with: cctmn submit{again} --stop {submission_id}",
            err=True,
        )
        sys.exit(EXIT_STOPPED)
    said = outcome.message or f"exit code {outcome.exit_code}"
    click.echo(f"job {submission_id}: {outcome.status} ({said})", err=True)
    tell(outcome)
    sys.exit(outcome.exit_code)


class _Shown:
    """The job's log as it comes: its JSON lines as plain text where a person reads them."""

    def __init__(self, *, err: bool) -> None:
        self._err, self._rest = err, ""
        self._plain = (sys.stderr if err else sys.stdout).isatty()

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            click.echo(_text_of(line) if self._plain else line, err=self._err)

    def close(self) -> None:
        """Show a last line that has no end."""
        if self._rest:
            self("\n")


def _text_of(line: str) -> str:
    """What a log line says, without its time and run."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry["text"]) if isinstance(entry, dict) and "text" in entry else line


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--env {text}: write it as KEY=VALUE")
    return name, value
