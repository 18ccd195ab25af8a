"""The command line: parse, call one function, exit with its code.

stdout is data, stderr is talk. Exit codes: 0 all scored, 1 a bug, 2 usage or configuration,
3 finished with error rows above --max-error-rate, 4 model or storage refused, 130 stopped.
Heavy packages are imported by the commands that need them, so that --help is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from cctmn import __version__
from cctmn.errors import CctmnError, ConfigError, SliceError

EXIT_STOPPED = 130
LOG_PERIOD_S = 30.0  # between passing lines where they cannot overwrite each other


class Talk:
    """Talk on stderr: passing lines overwrite each other on a terminal, and are rare off it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._open, self._last = False, 0.0

    def __call__(self, text: str, *, passing: bool = False) -> None:
        """Say a line; a passing one may be dropped."""
        if self._quiet:
            return
        if passing and not self._terminal:
            if time.monotonic() - self._last < LOG_PERIOD_S:
                return
            self._last = time.monotonic()
        lead = "\r\033[K" if self._open else ""
        self._open = passing and self._terminal
        click.echo(lead + text, err=True, nl=not self._open)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Score chest-CT archives with a lesion detector and a classifier on its ranked boxes."""


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--out", required=True, metavar="OUT", help="Output folder, local or s3://.")
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option("--limit", type=click.IntRange(min=1), help="Score at most N more slices.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--retry-errors", is_flag=True, help="Score again what ended as an error row.")
@click.option("--max-error-rate", type=float, help="Share of error rows for exit code 3 [0.01].")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting; repeatable.")
@click.option("--address", metavar="A", help="Ray cluster to use; without it Ray starts here.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest or plan as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No talk.")
def score(inputs: tuple[str, ...], out: str, model: str | None, **options: Any) -> None:
    """Score every slice below INPUT into OUT, one Parquet row each.

    INPUT is a file, folder, glob, archive, s3://bucket/prefix or manifest (.csv, .parquet with a
    column uri). The same command again goes on where it stopped.

    Settings for --set and --config (0 = chosen by cctmn): actors, batch_size, block_rows,
    fetch_threads, max_error_rate, ranked_boxes.
    """
    from cctmn import config
    from cctmn.score import run

    talk = Talk(quiet=options["quiet"])
    sets = list(options["sets"])
    if options["max_error_rate"] is not None:
        sets.append(f"max_error_rate={float(options['max_error_rate'])}")
    settings = config.load(config.ScoreConfig, files=_files(options), sets=sets)
    if options["dry_run"]:
        plan = run.dry_run(inputs, out=out, say=talk)
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
    )
    with _resumable(out):
        summary = run.score(job, address=options["address"], say=talk)
    talk(_summary_text(summary, out))
    if options["as_json"]:
        click.echo(json.dumps(run.manifest(job, summary), indent=2))
    sys.exit(summary.exit_code)


@cli.command()
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@click.option("-m", "--model", metavar="MODEL", help="Model folder, local or s3://.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(inputs: tuple[str, ...], model: str | None, *, as_json: bool) -> None:
    """Look at versions, devices, MODEL and a sample of INPUT before a job; write nothing."""
    from cctmn.score.doctor import examine

    report = examine(inputs, model=model)
    click.echo(json.dumps(report, indent=2) if as_json else _tree_text(report))
    sys.exit(4 if report["problems"] else 0)


@cli.command()
@click.option("-o", "--out", default="demo", show_default=True, type=click.Path(path_type=Path))
def demo(out: Path) -> None:
    """Make a synthetic DICOM archive, score it with the model that ships, and compare."""
    from cctmn.demo import found, prepare
    from cctmn.score import run

    talk = Talk(quiet=False)
    job = prepare(out, say=talk)
    with _resumable(str(out)):
        summary = run.score(job, say=talk)
    talk(_summary_text(summary, job.out))
    click.echo(found(out))
    sys.exit(summary.exit_code)


def _files(options: dict[str, Any]) -> list[Path]:
    return [] if options["config"] is None else [options["config"]]


@cli.group()
def train() -> None:
    """Train a lesion detector, then a classifier on its ranked boxes."""


def _train_options(command: Callable[..., None]) -> Callable[..., None]:
    """What both stages take."""
    for option in reversed(
        (
            click.option("--data", required=True, metavar="DATA", help="Labelled slices."),
            click.option("--split", metavar="FILE", help="List of names that selects from DATA."),
            click.option("--valid", metavar="DATA", help="Validation slices, laid out alike."),
            click.option("--valid-split", metavar="FILE", help="List that selects from those."),
            click.option("-o", "--out", required=True, metavar="OUT", help="Local or s3://."),
            click.option("-m", "--model", metavar="MODEL", help="Model to start from."),
            click.option("--preset", metavar="NAME", help="Settings that come with cctmn."),
            click.option("--config", type=click.Path(path_type=Path), help="TOML file."),
            click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Repeatable."),
            click.option("--address", metavar="A", help="Ray cluster; else Ray starts here."),
            click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
            click.option("-q", "--quiet", is_flag=True, help="No talk."),
        )
    ):
        command = option(command)
    return command


@train.command("detector")
@_train_options
def train_detector(**options: Any) -> None:
    """Stage 1: Mask R-CNN on CNCB-like DATA (a folder with imgs/ and masks/).

    --split and --valid-split are lists of image names; without --valid and --valid-split some
    patients are kept aside. The same command again goes on from the last checkpoint.
    """
    from cctmn.config import DetectorConfig

    _train(DetectorConfig, "detector", options)


@train.command("classifier")
@_train_options
def train_classifier(**options: Any) -> None:
    """Stage 2: the image's class from the ranked boxes of MODEL, a detector, or tune a classifier.

    DATA is a folder of CLASS_PATIENT_SCAN_SLICE.png, with --split a COVIDx-CT split file beside it;
    a folder with one folder per class; or a .csv with path, label and patient.
    """
    from cctmn.config import ClassifierConfig

    _train(ClassifierConfig, "classifier", options)


def _train(cls: type[Any], stage: str, options: dict[str, Any]) -> None:
    from cctmn import config
    from cctmn.train import run
    from cctmn.train.datasets import Data

    talk = Talk(quiet=options["quiet"])
    files = _files(options)
    if (preset := options["preset"]) is not None:
        known = config.presets(stage)
        if preset not in known:
            raise ConfigError(f"--preset {preset}: there are {', '.join(known)}")
        files = [known[preset], *files]
    valid = None
    if options["valid"] or options["valid_split"]:
        place = options["valid"] or options["data"]
        valid = Data(place, options["valid_split"], what="validation")
    job = run.Job(
        config=config.load(cls, files=files, sets=options["sets"]),
        data=Data(options["data"], options["split"], what="training"),
        out=options["out"],
        valid=valid,
        model=options["model"],
    )
    with _resumable(options["out"]):
        outcome = run.train(job, address=options["address"], say=talk)
    talk(_outcome_text(outcome))
    if options["as_json"]:
        click.echo(json.dumps(dataclasses.asdict(outcome), indent=2))


def _outcome_text(outcome: Any) -> str:
    figures = "  ".join(
        f"{name} {value:.3f}" for name, value in outcome.metrics.items() if value is not None
    )
    return (
        f"best epoch {outcome.best_epoch} of {outcome.epochs}: {figures}\n"
        f"model: {outcome.model} ({outcome.elapsed_s:.0f} s)"
    )


@cli.command()
@click.argument("kind", type=click.Choice(["lesions", "slices", "study"]))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="OUT")
@click.option("--count", default=40, show_default=True, help="Slices; of a study per patient.")
@click.option("--patients", default=3, show_default=True, help="Of a study.")
@click.option("--seed", default=1, show_default=True, help="Other seeds give other patients.")
@click.option("--recipe", default="standard", show_default=True, help="standard or other.")
def phantom(kind: str, out: Path, *, count: int, **options: Any) -> None:
    """Make synthetic slices with known lesions: no data needed.

    lesions: OUT/imgs and OUT/masks as CNCB has them. slices: pictures and split.txt as COVIDx-CT
    has them. study: OUT is a zip of DICOM files, with the truth in a table beside it.
    """
    from cctmn.data import phantom_files

    seed = options["seed"]
    if kind == "study":
        patients = options["patients"]
        made = len(phantom_files.write_archive(out, patients=patients, slices=count, seed=seed))
    else:
        write = {"lesions": phantom_files.write_lesions, "slices": phantom_files.write_slices}[kind]
        made = write(out, count=count, seed=seed, recipe=options["recipe"])
    click.echo(f"{out}: {made} slices", err=True)


@cli.group()
def models() -> None:
    """Import, show and verify model folders (weights.safetensors and card.json)."""


@models.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@click.option("--lesions", type=click.Choice(["merge", "ggo"]), help="Meaning of one lesion class.")
@click.option("--as-classifier", is_flag=True, help="Add an untrained module S to a detector.")
@click.option("--seed", default=0, show_default=True, help="Of the untrained module S.")
def models_import(file: Path, out: Path, *, lesions: str | None, **options: Any) -> None:
    """Read a published checkpoint FILE (.pth), running no code from it, and write DIR."""
    from cctmn.model import checkpoint, legacy

    net, card = legacy.import_checkpoint(file, lesions=lesions)
    model = checkpoint.LoadedModel(net, card)
    if options["as_classifier"]:
        model = checkpoint.classifier_from_detector(model, seed=options["seed"])
    card = checkpoint.save(model.net, out, card=model.card)
    click.echo(f"{out}: {card.kind} {card.name}, model id {card.model_id}", err=True)
    for note in card.notes:
        click.echo(f"note: {note}", err=True)


@models.command("show")
@click.argument("folder", metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def models_show(folder: str, *, as_json: bool) -> None:
    """Print the card of MODEL."""
    from dataclasses import asdict

    from cctmn.model.card import read_card

    card = asdict(read_card(folder))
    click.echo(json.dumps(card, indent=2) if as_json else _tree_text(card))


@models.command("verify")
@click.argument("folder", metavar="MODEL")
def models_verify(folder: str) -> None:
    """Check MODEL against its hashes and load it; exit code 4 if it is not sound."""
    from cctmn.model import checkpoint

    card = checkpoint.load(folder).card
    click.echo(f"{folder}: sound, sha256 {card.weights_sha256}")


@models.command("evaluate")
@click.argument("folder", metavar="MODEL")
@click.option("--lesions", metavar="DATA", help="Slices with masks, as for `train detector`.")
@click.option("--slices", metavar="DATA", help="Slices with classes, as for `train classifier`.")
@click.option("--split", metavar="FILE", help="List of names that selects from DATA.")
@click.option("--record", metavar="NAME", help="Write the figures into MODEL's card, so named.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def models_evaluate(folder: str, lesions: str | None, slices: str | None, **options: Any) -> None:
    """Measure MODEL on labelled slices: AP of its lesions, accuracy of its classes."""
    from cctmn.train import measure
    from cctmn.train.datasets import Data

    if (lesions is None) == (slices is None):
        raise ConfigError("nothing to measure on: give --lesions DATA or --slices DATA")
    talk = Talk(quiet=False)
    of_kind = measure.classes if lesions is None else measure.detections
    figures = of_kind(folder, data=Data(lesions or slices or "", options["split"]), say=talk)
    # JSON has no nan
    safe = {k: None if math.isnan(v) else round(v, 4) for k, v in figures.items()}
    if options["record"]:
        from cctmn.model import checkpoint

        checkpoint.record(folder, name=options["record"], figures=safe)
    click.echo(json.dumps(safe, indent=2) if options["as_json"] else _tree_text(safe))


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


def _tree_text(value: dict[str, Any], indent: str = "") -> str:
    """Nested tables as indented lines."""
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines += [f"{indent}{name}:", _tree_text(inner, indent + "  ")]
        elif isinstance(inner, dict | list | tuple):
            lines.append(f"{indent}{name}: {', '.join(map(str, inner)) or 'none'}")
        else:
            lines.append(f"{indent}{name}: {inner}")
    return "\n".join(lines)


@contextlib.contextmanager
def _resumable(out: str) -> Iterator[None]:
    """Stop on Ctrl-C or SIGTERM with a folder that can be resumed, and say so."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\nstopped; the same command goes on from what is in {out}", err=True)
        sys.exit(EXIT_STOPPED)
    finally:
        signal.signal(signal.SIGTERM, before)


def main(run: Callable[[], object] = cli) -> None:
    """Entry point: what a user can mend is one line and its exit code, a bug a traceback."""
    try:
        run()
    except CctmnError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SliceError as error:
        click.echo(f"error: {error.sentence}", err=True)
        sys.exit(ConfigError.exit_code)


if __name__ == "__main__":
    main()
