"""Commands that score: `score`, `doctor` before it, `demo` on made-up data.

In: INPUT, OUT, MODEL and settings. Out: rows, a plan or a report; the exit code of the run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cctmn.cli.common import TerminalReporter, files_of, resumable, tree_text
from cctmn.errors import ConfigError


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--out", required=True, metavar="OUT", help="Output folder, local or s3://.")
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option("--root", metavar="ROOT", help="Where relative uris of a manifest are below.")
@click.option("--limit", type=click.IntRange(min=1), help="Score at most N more slices.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--retry-errors", is_flag=True, help="Score again what ended as an error row.")
@click.option("--max-error-rate", type=float, help="Share of error rows for exit code 3 [0.01].")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting; repeatable.")
@click.option("--address", metavar="A", help="Ray cluster to use; without it Ray starts here.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest or plan as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def score(inputs: tuple[str, ...], out: str, model: str | None, **options: Any) -> None:
    """Score every slice below INPUT into OUT, one Parquet row each.

    INPUT is a file, folder, glob, archive, s3://bucket/prefix or manifest (.csv, .parquet with a
    column uri). The same command again goes on where it stopped.

    Settings for --set and --config (0 = chosen by cctmn): actors, batch_size, block_rows,
    fetch_threads, masks, max_error_rate, ranked_boxes.
    """
    from cctmn import config
    from cctmn.score import run

    reporter = TerminalReporter(quiet=options["quiet"])
    sets = list(options["sets"])
    if options["max_error_rate"] is not None:
        sets.append(f"max_error_rate={float(options['max_error_rate'])}")
    settings = config.load(config.ScoreConfig, files=files_of(options), sets=sets)
    if options["dry_run"]:
        plan = run.dry_run(inputs, out=out, root=options["root"], report=reporter)
        click.echo(json.dumps(plan, indent=2) if options["as_json"] else _plan_text(plan))
        return
    if model is None:
        raise ConfigError("no model: give -m MODEL (see `cctmn models import`)")
    from cctmn.score.models import open_source

    job = run.Job(
        inputs=inputs,
        out=out,
        source=open_source(model),
        settings=settings,
        limit=options["limit"],
        retry_errors=options["retry_errors"],
        root=options["root"],
    )
    with resumable(out):
        summary = run.score(job, address=options["address"], report=reporter)
    reporter(_summary_text(summary, out))
    if options["as_json"]:
        click.echo(json.dumps(run.manifest(job, summary), indent=2))
    sys.exit(summary.exit_code)


@click.command()
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(inputs: tuple[str, ...], model: str | None, *, as_json: bool) -> None:
    """Look at versions, devices, MODEL and a sample of INPUT before a job; write nothing."""
    from cctmn.score.doctor import examine

    report = examine(inputs, model=model)
    click.echo(json.dumps(report, indent=2) if as_json else tree_text(report))
    sys.exit(4 if report["problems"] else 0)


@click.command()
@click.option("-o", "--out", default="demo", show_default=True, type=click.Path(path_type=Path))
def demo(out: Path) -> None:
    """Make a synthetic DICOM archive, score it with the model that ships, evaluate and report."""
    from cctmn.demo import found, prepare, report
    from cctmn.score import run

    reporter = TerminalReporter(quiet=False)
    job = prepare(out, report=reporter)
    with resumable(str(out)):
        summary = run.score(job, report=reporter)
    reporter(_summary_text(summary, job.out))
    click.echo(found(out))
    reporter(f"report: {report(out, report=reporter)}")
    sys.exit(summary.exit_code)


def _plan_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['slices']:,} slices: {plan['done']:,} done, {plan['pending']:,} to score"]
    lines += [f"  {n:>9,}  {name}" for name, n in plan["kinds"].items()]
    lines += [f"  {n:>9,}  in {name}" for name, n in plan["containers"].items() if name != "loose"]
    lines += [f"  {n:>9,}  refused: {code}" for code, n in plan["refused"].items()]
    return "\n".join(lines)


def _summary_text(summary: Any, out: str) -> str:
    counts = summary.counts
    lines = [
        f"{counts.inventory:,} slices = {counts.ok:,} ok + {counts.error:,} error + "
        f"{counts.pending:,} pending; {summary.scored_now:,} in this run, {summary.elapsed_s:.0f} s"
    ]
    lines += [f"  {n:>9,}  {name}" for name, n in counts.classes.items()]
    lines += [f"  {n:>9,}  flag {name}" for name, n in counts.flags.items()]
    lines += [f"  {n:>9,}  error {code}" for code, n in counts.codes.items()]
    lines.append(f"predictions: {out.rstrip('/')}/predictions/*.parquet")
    return "\n".join(lines)
