"""Commands that score: `doctor` checks first, `score` runs the job, `demo` uses phantoms."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cctmn import config
from cctmn.cli.common import TerminalReporter, resumable, tree_text
from cctmn.cli.settings import settings_epilog
from cctmn.errors import EXIT_ERROR_RATE, EXIT_OK, EXIT_REFUSED, ConfigError, state_of
from cctmn.numerics import DEVICE_NOUNS
from cctmn.reporter import printable

ANONYMOUS_HELP = "Read the buckets of INPUT without a key: public ones."
PAYS_HELP = "Pay for what is read from the buckets of INPUT, where their owner asks for it."


@click.command(
    epilog=settings_epilog(
        "score",
        "cctmn score /data/ct -o out -m model\n"
        "cctmn score s3://bucket/archive -o s3://bucket/out -m cctmn:demo --limit 100",
    )
)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-i", "--input", "more_inputs", multiple=True, metavar="INPUT", help="Same as INPUT.")
@click.option(
    "-o",
    "--out",
    "--output",
    required=True,
    metavar="OUT",
    help="Output folder, local or s3://.",
)
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option(
    "--root", metavar="ROOT", help="Base folder or prefix for relative URIs in a manifest."
)
@click.option("--anonymous", is_flag=True, help=ANONYMOUS_HELP)
@click.option("--requester-pays", is_flag=True, help=PAYS_HELP)
@click.option("--limit", type=click.IntRange(min=1), help="Score at most N more slices.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--retry-errors", is_flag=True, help="Score the slices of error rows again.")
@click.option(
    "--max-error-rate",
    type=float,
    help="Exit with code 3 if the proportion of errors is higher [0.01].",
)
@click.option(
    "--device",
    type=click.Choice(config.DEVICES),
    default="auto",
    show_default=True,
    help="cpu: same as --set gpus=0; gpu: same as --set gpus=1.",
)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="TOML file with settings."
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; repeatable.")
@click.option("--address", metavar="A", help="Ray cluster to use; without it, Ray starts here.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest or plan as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages.")
def score(
    inputs: tuple[str, ...],
    *,
    more_inputs: tuple[str, ...],
    out: str,
    model: str | None,
    root: str | None,
    anonymous: bool,
    requester_pays: bool,
    limit: int | None,
    dry_run: bool,
    retry_errors: bool,
    max_error_rate: float | None,
    device: str,
    config_file: Path | None,
    sets: tuple[str, ...],
    address: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score every slice of INPUT into OUT, one Parquet row each.

    INPUT is a file, folder, glob, archive, s3://bucket/prefix, or a manifest: a .csv or .parquet
    file with a column uri. Run the same command again to resume.
    """
    # Settings first: a mistake in them must not cost the import of Ray.
    settings = score_settings(
        device=device, sets=sets, max_error_rate=max_error_rate, config_file=config_file
    )
    inputs = (*inputs, *more_inputs)
    if not inputs:
        raise ConfigError("no INPUT; give a file, folder, archive, s3:// prefix or manifest")
    if model is None and not dry_run:
        raise ConfigError("no model; give -m MODEL (see `cctmn models import`)")

    from cctmn import store
    from cctmn.score import run
    from cctmn.score.job import MANIFEST, ScoreJob

    access = store.S3Access(anonymous=anonymous, requester_pays=requester_pays)
    reporter = TerminalReporter(quiet=quiet)
    if dry_run:
        store.set_s3_access(replace(access, own=(store.to_uri(out),)))
        plan = run.dry_run(inputs, out=out, root=root, settings=settings, report=reporter)
        click.echo(json.dumps(plan, indent=2) if as_json else _plan_text(plan))
        return
    from cctmn.score.models import open_source

    assert model is not None
    job = ScoreJob(
        inputs=inputs,
        out=out,
        source=open_source(
            model, lesion_nms_iou=settings.lesion_nms_iou, precision=settings.precision
        ),
        settings=settings,
        limit=limit,
        retry_errors=retry_errors,
        root=root,
        access=access,
    )
    with resumable():
        summary = run.score(job, address=address, report=reporter)
    _report(summary, out, reporter=reporter)
    if as_json:
        written = store.read_all(store.join(store.to_uri(out), MANIFEST))
        click.echo(json.dumps(json.loads(written), indent=2))
    sys.exit(summary.exit_code)


def score_settings(
    *,
    device: str,
    sets: tuple[str, ...],
    max_error_rate: float | None,
    config_file: Path | None,
) -> config.ScoreConfig:
    """Return the settings that the options give. Raises ConfigError."""
    changed = [] if device == "auto" else [f"gpus={float(device == 'gpu')}"]
    changed += sets
    if max_error_rate is not None:
        changed.append(f"max_error_rate={float(max_error_rate)}")
    files = [] if config_file is None else [config_file]
    return config.load(config.ScoreConfig, files=files, sets=changed)


@click.command(
    epilog="""\b
Example:
  cctmn doctor /data/ct -m model -o out
"""
)
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@click.option("-i", "--input", "more_inputs", multiple=True, metavar="INPUT", help="Same as INPUT.")
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option(
    "-o",
    "--out",
    "--output",
    metavar="OUT",
    help="Output folder of the job: what is written there to try it is removed again.",
)
@click.option("--anonymous", is_flag=True, help=ANONYMOUS_HELP)
@click.option("--requester-pays", is_flag=True, help=PAYS_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(
    inputs: tuple[str, ...],
    *,
    more_inputs: tuple[str, ...],
    model: str | None,
    out: str | None,
    anonymous: bool,
    requester_pays: bool,
    as_json: bool,
) -> None:
    """Check the machine, MODEL, INPUT and OUT before a job.

    The first line is the verdict. A sample, spread evenly over the slices, is decoded and, with
    MODEL, scored; time and disk of the whole job are estimated from it. The exit code is 4 if a job
    could not start.
    """
    from cctmn import store
    from cctmn.score.doctor import examine

    access = store.S3Access(anonymous=anonymous, requester_pays=requester_pays)
    report = examine((*inputs, *more_inputs), model=model, out=out, access=access)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(report.pop("verdict"))
        click.echo(tree_text(report))
    sys.exit(EXIT_REFUSED if report["problems"] else EXIT_OK)


@click.command(
    epilog="""\b
Example:
  cctmn errors out
  cctmn errors out --passed-over
"""
)
@click.argument("out", metavar="OUT")
@click.option("--passed-over", is_flag=True, help="List what is rightly no slice to score.")
def errors(out: str, *, passed_over: bool) -> None:
    """List the slices of OUT without a score: code and name.

    The names come from OUT/private. They may identify patients.
    """
    from cctmn.score.refused import refused

    for row in refused(out, state="passed_over" if passed_over else "error"):
        click.echo(f"{row.code}\t{printable(row.place)}")


@click.command(
    epilog="""\b
Example:
  cctmn demo -o demo
"""
)
@click.option(
    "-o",
    "--out",
    "--output",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to write.",
)
def demo(out: Path) -> None:
    """Score and report a synthetic archive with the demo model."""
    from cctmn.demo import comparison, first_of_worklist, prepare, report
    from cctmn.score import run

    reporter = TerminalReporter(quiet=False)
    job = prepare(out, report=reporter)
    with resumable():
        summary = run.score(job, report=reporter)
    _report(summary, job.out, reporter=reporter)
    click.echo(comparison(out))
    reporter("evaluation by the truth:", names=report(out, report=reporter))
    lines, page = first_of_worklist(out)
    click.echo(f"\nThe worklist, the likeliest sick first:\n{lines}")
    reporter("open the worklist in a browser:", names=page)
    sys.exit(summary.exit_code)


def _plan_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['slices']:,} slices: {plan['done']:,} done, {plan['pending']:,} to score"]
    devices = DEVICE_NOUNS.get(plan["device"], "GPUs if the cluster has any, else on CPUs")
    lines.append(f"  {plan['precision']} on {devices}")
    lines += [f"  {n:>9,}  {name}" for name, n in plan["kinds"].items()]
    lines += [f"  {n:>9,}  in {name}" for name, n in plan["containers"].items() if name != "loose"]
    lines += [f"  {n:>9,}  passed over: {code}" for code, n in plan["passed_over"].items()]
    lines += [f"  {n:>9,}  refused: {code}" for code, n in plan["refused"].items()]
    return "\n".join(lines)


def _report(summary: Any, out: str, *, reporter: TerminalReporter) -> None:
    from cctmn.score.compact import many_files

    reporter(_summary_text(summary))
    if summary.studies:
        reporter("studies:", names=f"{out.rstrip('/')}/studies/studies.parquet")
    reporter("predictions:", names=f"{out.rstrip('/')}/predictions/*.parquet")
    if line := many_files(out):
        reporter(line)
    if reason := _exit_reason(summary):
        reporter(reason)


def _summary_text(summary: Any) -> str:
    counts = summary.counts
    lines = [
        f"{counts.inventory:,} slices = {counts.ok:,} ok + {counts.passed_over:,} passed over + "
        f"{counts.error:,} error + {counts.pending:,} pending; {summary.scored_now:,} in this run, "
        f"{summary.elapsed_s:.0f} s"
    ]
    lines += [f"  {n:>9,}  {name}" for name, n in counts.classes.items()]
    if counts.abstained:
        lines.append(f"  {counts.abstained:>9,}  abstained: outside what the model is made for")
    lines += [f"  {n:>9,}  flag {name}" for name, n in counts.flags.items()]
    for state in ("passed_over", "error"):
        named = state.replace("_", " ")
        lines += [
            f"  {n:>9,}  {named} {code}"
            for code, n in counts.codes.items()
            if state_of(code) == state
        ]
    if summary.studies:
        lines.append(f"{sum(summary.studies.values()):,} studies")
        lines += [
            f"  {n:>9,}  {name or 'without a usable slice'}" for name, n in summary.studies.items()
        ]
    return "\n".join(lines)


def _exit_reason(summary: Any) -> str:
    """Return a line that says why the exit code is not 0, or nothing."""
    if summary.exit_code == EXIT_ERROR_RATE:
        return (
            f"exit code 3: {100 * summary.error_rate:.3g} % of the slices are errors, more than "
            f"{100 * summary.max_error_rate:.3g} % (--max-error-rate); "
            "`cctmn errors OUT` lists them"
        )
    if summary.exit_code == EXIT_REFUSED:
        return (
            f"exit code 4: {summary.counts.pending:,} slices have no row; "
            "run the same command again, and report it if they stay"
        )
    return ""
