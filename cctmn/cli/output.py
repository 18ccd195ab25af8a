"""Commands on what a job has written: `table` for a spreadsheet, `view`, and `compact`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import click

from cctmn.cli.common import TerminalReporter, resumable


def _file_option(suffixes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of the file to write, which has one of these suffixes."""
    return click.option(
        "-o",
        "--out",
        "--output",
        "to",
        required=True,
        metavar="FILE",
        help=f"{suffixes}, local or s3://; a file of this name is replaced.",
    )


_UNITS = {"patient": "patients", "study": "studies", "slice": "slices"}


@click.command(
    epilog="""\b
Example:
  cctmn table out -o studies.xlsx
  cctmn table out --by slice --names -o slices.csv
"""
)
@click.argument("out", metavar="OUT")
@click.option(
    "--by",
    type=click.Choice(list(_UNITS)),
    default="study",
    show_default=True,
    help="What a row stands for.",
)
@_file_option(".csv, .xlsx or .parquet")
@click.option(
    "--names",
    is_flag=True,
    help="Add uri and member of the slice, or of the one that decides most. They may name the "
    "patient, so FILE is for its owner alone (mode 0600).",
)
def table(out: str, *, by: str, to: str, names: bool) -> None:
    """Write the results in OUT as one table for a spreadsheet.

    Without --names, FILE identifies nobody and may be handed on. Flags and lists of ids are joined
    by semicolons; an empty cell is a value that is not known. A patient gets the class and the
    probabilities of the study with the highest probability of any disease. A study without patient
    key is a patient of its own. Slices without a DICOM header belong to no study and no patient.
    """
    from cctmn import spreadsheet

    rows = spreadsheet.write(out, by=by, to=to, names=names)
    TerminalReporter(quiet=False)(f"{rows:,} {by if rows == 1 else _UNITS[by]}:", names=to)


@click.command(
    epilog="""\b
Example:
  cctmn view out 3f9a2c41 -o slice.png
  cctmn view out series1/0042.dcm -o slice.png
"""
)
@click.argument("out", metavar="OUT")
@click.argument("what", metavar="SLICE|STUDY")
@_file_option(".png")
@click.option("--full", is_flag=True, help="Shrink no slice: show every pixel.")
def view(out: str, what: str, *, to: str, full: bool) -> None:
    """Draw a slice with its lesions, or a study's deciding slices.

    SLICE is a slice_id or the name of a file, with ::MEMBER in an archive and #FRAME of several
    frames. STUDY is a study_key. The first 6 digits of an id, or more, are enough. The slices are
    read from their source files, so those must still be there. The picture shows a patient, and is
    for its owner alone (mode 0600).
    """
    from cctmn.view import run

    slices = run.view(out, what, to=to, full=full)
    TerminalReporter(quiet=False)(f"{slices} slice{'s' * (slices != 1)}:", names=to)


@click.command(
    epilog="""\b
Example:
  cctmn compact out
  cctmn compact s3://bucket/out --dry-run
"""
)
@click.argument("out", metavar="OUT")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of files as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def compact(out: str, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Merge the small files of OUT/predictions.

    The merged files have 128 to 256 MB, but for the last one. The rows stay the same, and OUT can
    be resumed. Files that were computed on devices of different names stay apart. No row is
    lost or doubled if the command is interrupted: run it again. OUT has one writer at a time, so
    the command is refused while a job is writing there.
    """
    from cctmn.score import compact as files

    reporter = TerminalReporter(quiet=quiet)
    if dry_run:
        summary = files.dry_run(out)
    else:
        with resumable():
            summary = files.compact(out, report=reporter)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    elif dry_run:
        click.echo(summary.text(dry_run=True))
    else:
        reporter(summary.text())
    if summary.damaged:
        reporter(
            f"{summary.damaged:,} damaged files were left as they are; run the same `cctmn score` "
            "again to score their slices anew"
        )
