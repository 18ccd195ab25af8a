"""Commands for a test at a hospital: `samplesize` plans it, `accept` judges its result."""

from __future__ import annotations

import json
import sys

import click

from cctmn.cli.common import TerminalReporter, finite, join_options, label_map_option
from cctmn.errors import ConfigError


@click.command(
    epilog="""\b
Example:
  cctmn accept criteria.toml out --labels labels.csv -o acceptance
"""
)
@click.argument("criteria", metavar="CRITERIA")
@click.argument("scored", metavar="OUT")
@click.option(
    "--labels", required=True, metavar="LABELS", help=".csv, .parquet, or a split file (.txt)."
)
@join_options
@label_map_option
@click.option("-m", "--model", metavar="MODEL", help="The model that scored OUT; its card is used.")
@click.option(
    "-o",
    "--out",
    "--output",
    "to",
    required=True,
    metavar="DIR",
    help="Folder for acceptance.json and acceptance.html.",
)
@click.option("--overwrite", is_flag=True, help="Replace the result of another test in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print acceptance.json.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def accept(
    criteria: str,
    scored: str,
    *,
    labels: str,
    key: str,
    root: str | None,
    label_map: tuple[str, ...],
    model: str | None,
    to: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge predictions by criteria that were fixed before.

    CRITERIA is a TOML file with bounds that metrics must reach at a stated threshold and
    prevalence, for all patients or in each subgroup. OUT is the output folder of `cctmn score`. DIR
    gets the result, and a page to print and sign. The exit code is 0 for pass, 5 for fail, and 6
    for too few patients.
    """
    from cctmn.data.class_names import parse_label_map
    from cctmn.evaluate import accept as acceptance
    from cctmn.evaluate.fit_calibration import Joining
    from cctmn.report import acceptance_page

    reporter = TerminalReporter(quiet=quiet)
    options = acceptance.AcceptanceOptions(
        criteria=criteria,
        out=scored,
        labels=labels,
        to=to,
        joining=Joining(key, root, parse_label_map(label_map)),
        model=model,
        overwrite=overwrite,
    )
    content = acceptance.accept(options, report=reporter)
    written = acceptance_page.write(to, content=content)
    for line in acceptance_page.lines(content):
        reporter(line)
    reporter(f"result: {content['verdict']}")
    reporter("page:", names=written)
    if as_json:
        click.echo(json.dumps(content, indent=2))
    sys.exit(content["exit_code"])


_FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(
    epilog="""\b
Example:
  cctmn samplesize --expected 0.9 --width 0.1 --prevalence 0.2
  cctmn samplesize --expected 0.95 --lower-bound 0.9 --power 0.9
"""
)
@click.option(
    "--expected",
    type=_FRACTION,
    callback=finite,
    required=True,
    help="Expected value, such as a sensitivity.",
)
@click.option(
    "--width", type=_FRACTION, callback=finite, help="Wanted full width of the two-sided interval."
)
@click.option(
    "--lower-bound", type=_FRACTION, callback=finite, help="Value that the lower bound is to reach."
)
@click.option(
    "--power",
    type=_FRACTION,
    callback=finite,
    default=0.8,
    show_default=True,
    help="Probability to reach --lower-bound.",
)
@click.option(
    "--level",
    type=_FRACTION,
    callback=finite,
    default=0.95,
    show_default=True,
    help="Confidence level.",
)
@click.option(
    "--sided",
    type=click.Choice(["two", "one"]),
    default="two",
    show_default=True,
    help="Whether --lower-bound is an end of the two-sided interval or a one-sided bound.",
)
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True),
    callback=finite,
    help="Fraction of all patients who are of the class: for a sensitivity the sick, for a "
    "specificity the others.",
)
@click.option(
    "--slices-per-patient",
    type=click.FloatRange(min=1),
    callback=finite,
    help="For a metric of slices: slices of the class per patient.",
)
@click.option(
    "--icc",
    type=click.FloatRange(0, 1),
    callback=finite,
    help="With --slices-per-patient: intraclass correlation of the slices of a patient.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def samplesize(
    *,
    expected: float,
    width: float | None,
    lower_bound: float | None,
    power: float,
    level: float,
    sided: str,
    prevalence: float | None,
    slices_per_patient: float | None,
    icc: float | None,
    as_json: bool,
) -> None:
    """Compute how many patients a test needs.

    Give --width or --lower-bound. With --width it is the number for which the expected width of the
    Clopper-Pearson interval is at most the wanted one. With --lower-bound it is the number from
    which on the bound is reached with the stated power. With --slices-per-patient and --icc the
    metric is one of slices, and the design effect 1 + (slices per patient - 1) * ICC says how many
    slices are worth one independent observation.
    """
    from cctmn.metrics import sample_size

    stated = level
    if (width is None) == (lower_bound is None):
        raise ConfigError("either --width or --lower-bound is needed; give one of them")
    if (slices_per_patient is None) != (icc is None):
        raise ConfigError("--slices-per-patient and --icc belong together; give both or neither")
    if sided == "one":
        if width is not None:
            raise ConfigError("--sided one: an interval has two sides; leave it out with --width")
        if level <= 0.5:
            raise ConfigError(f"--level {level:g}: a one-sided bound needs more than 0.5; raise it")
        level = 2 * level - 1
    if lower_bound is not None and lower_bound >= expected:
        raise ConfigError(
            f"--lower-bound {lower_bound:g}: not below the expected value; give a smaller one"
        )
    observations = (
        sample_size.for_width(expected, width=width, level=level)
        if width is not None
        else sample_size.for_bound(expected, bound=lower_bound or 0, level=level, power=power)
    )
    numbers: dict[str, float] = {"patients_of_class": observations}
    if slices_per_patient is not None and icc is not None:
        clusters = sample_size.Clusters(slices_per_patient, icc)
        of_class = sample_size.patients_with(observations, clusters=clusters, level=level)
        numbers = {
            "design_effect": round(clusters.design_effect, 4),
            "independent_observations": observations,
            "patients_of_class": of_class,
        }
    if prevalence is not None:
        of_class = int(numbers["patients_of_class"])
        numbers["patients"] = sample_size.in_all(of_class, prevalence=prevalence)
    if as_json:
        click.echo(json.dumps(numbers, indent=2))
        return
    click.echo(f"{numbers['patients_of_class']:,} patients of the class")
    if "design_effect" in numbers:
        click.echo(
            f"  (design effect {numbers['design_effect']:g}: their slices are worth "
            f"{observations:,} independent ones)"
        )
    if "patients" in numbers:
        click.echo(
            f"{numbers['patients']:,} patients in all, of whom so many are expected to be of the "
            "class"
        )
    bound = f"{stated:g}, {sided}-sided"
    click.echo(
        f"The expected width of the interval (level {bound}) is at most {width:g}."
        if width is not None
        else f"The lower bound (level {bound}) reaches {lower_bound:g} with a power of {power:g}."
    )
