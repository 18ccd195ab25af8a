"""The command line: each command parses its options, calls one function and exits with its code.

stdout carries data and stderr carries messages. The exit codes are listed in `cctmn.errors`. Heavy
packages are imported inside the commands that need them, so that `--help` and a mistyped setting
end at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import click

from cctmn import __version__
from cctmn.cli.accept import accept, samplesize
from cctmn.cli.common import NearestGroup
from cctmn.cli.evaluate import evaluate, report
from cctmn.cli.labels import labels
from cctmn.cli.models import models
from cctmn.cli.output import compact, table, view
from cctmn.cli.plan import plan
from cctmn.cli.score import demo, doctor, errors, score
from cctmn.cli.settings import settings
from cctmn.cli.submit import submit
from cctmn.cli.train import phantom, train
from cctmn.errors import CctmnError, DataError, SliceError
from cctmn.reporter import print_error

EPILOG = """\b
Example:
  cctmn doctor /data/ct -m model
  cctmn score /data/ct -o out -m model
  cctmn evaluate out --labels labels.csv

\b
Completion of commands and options, for bash (also zsh_source, fish_source):
  eval "$(_CCTMN_COMPLETE=bash_source cctmn)"
"""


@click.group(
    cls=NearestGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """Score chest-CT archives with a lesion detector and a classifier on its ranked boxes."""


# In the order of the work.
for command in (
    doctor,
    plan,
    score,
    errors,
    table,
    view,
    evaluate,
    report,
    samplesize,
    accept,
    labels,
    train,
    models,
    settings,
    compact,
    submit,
    demo,
    phantom,
):
    cli.add_command(command)


def main(run: Callable[[], object] = cli) -> None:
    """Run the command line: a user's mistake is one line and an exit code, a bug a traceback."""
    try:
        run()
    except CctmnError as error:
        _refuse(error)
    except SliceError as error:  # a slice of a labelled set that broke after it was checked
        _refuse(DataError(f"a slice: {error.sentence[:-1].lower()}; check the data set"))


def _refuse(error: CctmnError) -> NoReturn:
    print_error(error.text, named=str(error))
    sys.exit(error.exit_code)
