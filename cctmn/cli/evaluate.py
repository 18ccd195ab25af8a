"""Commands that evaluate: `labels` before it, `evaluate`, and `report`, which draws again.

In: predictions, labels, a folder for the figures. Out: tables of labels, metrics.json, report.html.
"""

from __future__ import annotations

import csv
import io
import json
import webbrowser
from typing import Any

import click

from cctmn.cli.common import TerminalReporter, tree_text
from cctmn.errors import ConfigError

KEYS = ("name", "uri", "slice_id")
HEADLINE = (
    "slice.accuracy",
    "slice.f1_weighted",
    "slice.sensitivity.",
    "patient.accuracy",
    "detection.mask.",
    "detection.box.",
)


@click.group()
def labels() -> None:
    """Make tables of labels, and find what two of them share."""


@labels.command("covidx-ct")
@click.argument("split", metavar="SPLIT")
@click.option("--exclude", metavar="LIST", help="Names to leave out, one a line.")
@click.option("-o", "--out", metavar="FILE", help=".csv or .parquet, local or s3://; else stdout.")
def labels_covidx_ct(split: str, *, exclude: str | None, out: str | None) -> None:
    """COVIDx-CT's SPLIT file as a table of labels, which `score` takes as a manifest.

    Columns: uri (the file's name), label, patient, scan, box of the body. LIST may carry the class
    digits of the author's lists: 0_1_2_3.png is Normal_1_2_3.png.
    """
    from cctmn import store
    from cctmn.data import labels as tables
    from cctmn.data.issues import few

    table, strange = tables.covidx_ct(split, exclude=exclude)
    if out is not None and not out.lower().endswith((".csv", ".parquet")):
        raise ConfigError(f"-o {out}: write a .csv or .parquet file")
    parquet = out is not None and out.lower().endswith(".parquet")
    data = tables.to_bytes(table, parquet=parquet)
    if out is None:
        click.echo(data.decode(), nl=False)
    else:
        store.put(store.to_uri(out), data)
    counts = table["label"].value_counts().to_pylist()
    by_class = ", ".join(f"{count['counts']:,} {count['values']}" for count in counts)
    patients = len(set(table["patient"].to_pylist()))
    click.echo(f"{len(table):,} slices of {patients:,} patients: {by_class}", err=True)
    if strange:
        click.echo(
            f"{exclude}: {len(strange):,} names are not in {split} ({few(strange)})", err=True
        )


@labels.command("audit")
@click.argument("sets", nargs=-1, required=True, metavar="SET SET...")
@click.option("--hash", "hashes", is_flag=True, help="Compare files and decoded pixels too.")
@click.option("--root", default="", metavar="ROOT", help="What relative uris are below, to hash.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.option("--names", is_flag=True, help="Print what is shared, a line each, as CSV.")
def labels_audit(sets: tuple[str, ...], *, hashes: bool, root: str, **options: Any) -> None:
    """The same patient, scan, slice, file or picture in two SETs.

    SET is a table of labels (.csv, .parquet) or a split file of COVIDx-CT (.txt).
    """
    from cctmn.data.labels import read_table
    from cctmn.evaluate import audit

    if len(sets) < 2:
        raise ConfigError("one SET has nothing to be compared with; give two or more")
    read = [
        audit.read_set(read_table(place)[0], name=place, root=root, hashes=hashes) for place in sets
    ]
    overlaps = audit.compare(read)
    found = audit.summary(read, overlaps)
    if options["names"]:
        columns = audit.named(overlaps)
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows(zip(*columns.values(), strict=True))
        click.echo(text.getvalue(), nl=False)
    elif options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    else:
        for one in found["sets"]:
            click.echo(tree_text(one).replace("\n", "  "))
        for pair in found["pairs"]:
            shared = ", ".join(f"{pair[k]:,} {k}" for k in audit.KINDS if pair[k] is not None)
            click.echo(f"{pair['a']} and {pair['b']} share {shared}")


@click.command()
@click.argument("out", metavar="OUT")
@click.option("--labels", metavar="LABELS", help=".csv, .parquet, or a split .txt.")
@click.option("--masks", metavar="DATA", help="Slices with lesion masks: imgs/ and masks/.")
@click.option("--mask-split", metavar="FILE", help="List of names that selects from those.")
@click.option("-o", "--to", metavar="DIR", help="Where figures go [OUT/evaluation].")
@click.option("--key", type=click.Choice(KEYS), default="name", show_default=True)
@click.option("--root", metavar="ROOT", help="What relative uris of LABELS are below.")
@click.option("-m", "--model", metavar="MODEL", help="The model that scored OUT; its card counts.")
@click.option("--against", metavar="OUT2", help="Another model's output, compared in pairs.")
@click.option("--training", metavar="SET", help="What was trained on: is it in LABELS too?")
@click.option("--by", multiple=True, metavar="COL[,COL]", help="Cohorts by columns; repeatable.")
@click.option("--resamples", type=click.IntRange(min=100), default=2000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--no-gallery", is_flag=True, help="No pictures of slices in the report.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def evaluate(out: str, *, labels: str | None, to: str | None, **options: Any) -> None:
    """Figures with intervals of the predictions in OUT: DIR/metrics.json and DIR/report.html.

    LABELS needs a column label and one of uri (or path), name, slice_id; patient makes the
    intervals honest. Names are found through OUT/private, a slice_id without it. With --masks
    lesions are compared too: boxes, and masks if they were scored with --set masks=true.
    """
    from cctmn.evaluate import run
    from cctmn.evaluate.options import EvaluationJob
    from cctmn.metrics.intervals import Resampling
    from cctmn.report import render

    reporter = TerminalReporter(quiet=options["quiet"])
    job = EvaluationJob(
        out=out,
        labels=labels,
        masks=options["masks"],
        mask_split=options["mask_split"],
        to=to or f"{out.rstrip('/')}/evaluation",
        key=options["key"],
        root=options["root"],
        model=options["model"],
        against=options["against"],
        training=options["training"],
        by=tuple(tuple(part.strip() for part in text.split(",")) for text in options["by"]),
        resampling=Resampling(options["resamples"], options["seed"]),
        gallery=not options["no_gallery"],
    )
    metrics = run.evaluate(job, report=reporter)
    written = render.write(job.to)
    reporter(_headline(metrics))
    reporter(f"report: {written}")
    if options["as_json"]:
        click.echo(json.dumps(metrics, indent=2))


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
def report(folder: str, *, show: bool) -> None:
    """Draw DIR/report.html again from DIR/metrics.json."""
    from cctmn.report import render

    written = render.write(folder)
    click.echo(written)
    if show:
        webbrowser.open(written)


def _headline(metrics: dict[str, Any]) -> str:
    counts = metrics["accounting"]
    steps = ("indexed", "scored", "labelled", "evaluated")
    lines = [", ".join(f"{counts[step]:,} {step}" for step in steps if step in counts)]
    for name, figure in metrics["figures"].items():
        if name.startswith(HEADLINE) and figure["value"] is not None:
            lines.append(f"  {_percent(figure):<28}  {figure['what']}")
    return "\n".join([*lines, *(f"note: {text}" for text in metrics["warnings"])])


def _percent(figure: dict[str, Any]) -> str:
    said = f"{100 * figure['value']:6.2f} %"
    if figure["low"] is None:
        return said
    return f"{said}  ({100 * figure['low']:.2f} to {100 * figure['high']:.2f})"
