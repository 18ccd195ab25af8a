"""The command line: parse, call one function, exit with its code.

stdout is data, stderr is talk. Exit codes: 0 all scored, 1 a bug, 2 usage or configuration,
3 finished with error rows above --max-error-rate, 4 model, storage or cluster refused, 130 stopped.
Heavy packages are imported by the commands that need them, so that --help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import click

from cctmn import __version__
from cctmn.cli.common import log, logs_json
from cctmn.cli.evaluate import evaluate, labels, report
from cctmn.cli.models import models
from cctmn.cli.score import demo, doctor, score
from cctmn.cli.submit import submit
from cctmn.cli.train import phantom, train
from cctmn.errors import EXIT_USAGE, CctmnError, SliceError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Score chest-CT archives with a lesion detector and a classifier on its ranked boxes."""


for command in (score, doctor, demo, labels, evaluate, report, train, phantom, models, submit):
    cli.add_command(command)


def main(run: Callable[[], object] = cli) -> None:
    """Entry point: what a user can mend is one line and its exit code, a bug a traceback."""
    try:
        run()
    except CctmnError as error:
        _refuse(str(error), code=error.exit_code)
    except SliceError as error:  # a slice of a labelled set that broke after it was checked
        _refuse(f"slice: {error.sentence} Check the data set.", code=EXIT_USAGE)


def _refuse(text: str, *, code: int) -> NoReturn:
    if logs_json():
        log(text, level="error")
    else:
        click.echo(f"error: {text}", err=True)
    sys.exit(code)
