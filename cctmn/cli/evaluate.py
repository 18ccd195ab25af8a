"""Commands that evaluate: `evaluate` computes, `report` draws."""

from __future__ import annotations

import json
import webbrowser
from typing import Any

import click

from cctmn.cli.common import (
    TerminalReporter,
    join_options,
    label_map_option,
)
from cctmn.errors import ConfigError
from cctmn.numerics import described

# Metrics that the command prints, in this order, by the beginning of their ids.
HEADLINE = (
    "patient.accuracy",
    "patient.sensitivity.",
    "slice.accuracy",
    "slice.f1_weighted",
    "slice.sensitivity.",
    "detection.mask.",
    "detection.box.",
)


@click.command(
    epilog="""\b
Example:
  cctmn evaluate out --labels labels.parquet --by sex,scanner
  cctmn evaluate out --masks cncb --mask-split test.txt -o lesions
"""
)
@click.argument("scored", metavar="SCORED")
@click.option("--labels", metavar="LABELS", help=".csv, .parquet, or a split file (.txt).")
@click.option("--masks", metavar="DATA", help="Slices with lesion masks: imgs/ and masks/.")
@click.option("--mask-split", metavar="FILE", help="List of names that selects from DATA.")
@click.option(
    "-o",
    "--out",
    "--output",
    metavar="DIR",
    help="Folder for the metrics and the report [SCORED/evaluation].",
)
@click.option("--to", "older_out", metavar="DIR", hidden=True, help="Older name of --out.")
@join_options
@label_map_option
@click.option(
    "-m", "--model", metavar="MODEL", help="The model that scored SCORED; its card is used."
)
@click.option("--against", metavar="SCORED2", help="Output of another model, compared in pairs.")
@click.option(
    "--training", metavar="SET", help="Labels of the training set; reports overlap with LABELS."
)
@click.option(
    "--by", multiple=True, metavar="COL[,COL]", help="Columns that define cohorts; repeatable."
)
@click.option(
    "--resamples",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="Number of bootstrap resamples.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--overwrite", is_flag=True, help="Replace another evaluation in DIR.")
@click.option("--no-gallery", is_flag=True, help="Leave pictures of slices out of the report.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def evaluate(
    scored: str,
    *,
    labels: str | None,
    masks: str | None,
    mask_split: str | None,
    out: str | None,
    older_out: str | None,
    key: str,
    root: str | None,
    label_map: tuple[str, ...],
    model: str | None,
    against: str | None,
    training: str | None,
    by: tuple[str, ...],
    resamples: int,
    seed: int,
    overwrite: bool,
    no_gallery: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute metrics with intervals from predictions and labels.

    SCORED is the output folder of `cctmn score`. DIR gets metrics.json and report.html. LABELS
    needs a column label and one of uri (or path), name, slice_id; with a column patient the
    intervals account for several slices per patient. Labels that are numbers need --label-map.
    Joining by name or uri needs SCORED/private. --masks compares lesions too: boxes, and masks if
    they were scored with --set masks=true.
    """
    from cctmn.data.class_names import parse_label_map
    from cctmn.evaluate import run
    from cctmn.evaluate.options import EvaluationOptions
    from cctmn.metrics.intervals import Resampling
    from cctmn.report import render

    reporter = TerminalReporter(quiet=quiet)
    job = EvaluationOptions(
        out=scored,
        labels=labels,
        masks=masks,
        mask_split=mask_split,
        to=out or older_out or f"{scored.rstrip('/')}/evaluation",
        key=key,
        root=root,
        label_map=parse_label_map(label_map),
        model=model,
        against=against,
        training=training,
        by=tuple(tuple(part.strip() for part in text.split(",")) for text in by),
        resampling=Resampling(resamples, seed),
        gallery=not no_gallery,
        overwrite=overwrite,
    )
    metrics = run.evaluate(job, report=reporter)
    written = render.write(job.to)
    reporter(_headline(metrics))
    reporter("report:", names=written)
    if as_json:
        click.echo(json.dumps(metrics, indent=2))


@click.command(
    epilog="""\b
Example:
  cctmn report out --open
  cctmn report out --studies all --pictures
  cctmn report out/evaluation --open
  cctmn report s/evaluation --with s-bn/evaluation --with all/evaluation
"""
)
@click.argument("folder", metavar="DIR")
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="DIR",
    help="Another evaluation of the same labels, for a table side by side; repeatable.",
)
@click.option(
    "--studies",
    metavar="N",
    help="Number of studies with a page of their own, or all [500].",
)
@click.option(
    "--pictures",
    is_flag=True,
    help="Show the deciding slices; the report is then OUT/private/report.",
)
@click.option("--open", "show", is_flag=True, help="Open the report in the browser.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def report(
    folder: str,
    *,
    others: tuple[str, ...],
    studies: str | None,
    pictures: bool,
    show: bool,
    quiet: bool,
) -> None:
    """Draw the report of an evaluation or of scored slices.

    In a folder of `cctmn evaluate`, DIR/report.html is drawn from DIR/metrics.json. With --with,
    other evaluations of the same labels stand beside it in one table, with intervals. In an output
    folder of `cctmn score`, DIR/report gets the archive at a glance, a worklist of the studies,
    those that are likeliest sick first, and a page per study. No labels are needed.
    """
    from cctmn.report import archive_report, evaluation, render

    wanted = _studies(studies) if studies is not None else archive_report.STUDY_PAGES
    if evaluation.is_evaluation(folder):
        if studies is not None or pictures:
            raise ConfigError(
                "--studies and --pictures are for an output folder of `cctmn score`; "
                "leave them out, or give that folder",
                folder,
            )
        uri = render.write(folder, others=others)
    elif others:
        raise ConfigError(
            "--with is for a folder of `cctmn evaluate`; leave it out, or give such a folder",
            folder,
        )
    else:
        reporter = TerminalReporter(quiet=quiet)
        written = archive_report.write(folder, studies=wanted, pictures=pictures, report=reporter)
        reporter(f"studies: {len(written.rows):,}, with a page of their own: {written.num_pages:,}")
        uri = written.uri
    click.echo(uri)
    if show:
        webbrowser.open(uri)


def _studies(text: str) -> int | None:
    """Return the number of studies with a page, None for all of them."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError("not a number of studies; give a number or all", f"--studies {text}")
    return int(text)


def _headline(metrics: dict[str, Any]) -> str:
    counts = metrics["accounting"]
    steps = ("indexed", "scored", "labelled", "evaluated")
    lines = [", ".join(f"{counts[step]:,} {step}" for step in steps if step in counts)]
    lines.append(f"predictions: {described(metrics['scoring'])}")
    for prefix in HEADLINE:
        for id_, metric in metrics["metrics"].items():
            if id_.startswith(prefix) and metric["value"] is not None:
                lines.append(f"  {_percent(metric):<28}  {metric['description']}")
    return "\n".join([*lines, *(f"note: {text}" for text in metrics["warnings"])])


def _percent(metric: dict[str, Any]) -> str:
    text = f"{100 * metric['value']:6.2f} %"
    if metric["low"] is None:
        return text
    return f"{text}  ({100 * metric['low']:.2f} to {100 * metric['high']:.2f})"
