"""Commands that show what a job has written: `table` for a spreadsheet, `view` as a picture."""

from __future__ import annotations

from collections.abc import Callable

import click

from cctmn.cli.common import TerminalReporter


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
