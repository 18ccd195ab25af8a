"""Commands that train: both stages, and `phantom`, which makes slices to train on.

In: labelled slices and settings. Out: a model folder and the record of its training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cctmn.cli.common import TerminalReporter, files_of, resumable
from cctmn.errors import ConfigError


@click.group()
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
            click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages."),
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

    reporter = TerminalReporter(quiet=options["quiet"])
    files = files_of(options)
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
    with resumable(options["out"]):
        outcome = run.train(job, address=options["address"], report=reporter)
    reporter(_outcome_text(outcome))
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


@click.command()
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
    from cctmn.phantom import layouts

    seed = options["seed"]
    if kind == "study":
        patients = options["patients"]
        made = len(layouts.write_archive(out, patients=patients, slices=count, seed=seed))
    else:
        write = {"lesions": layouts.write_lesions, "slices": layouts.write_slices}[kind]
        made = write(out, count=count, seed=seed, recipe=options["recipe"])
    click.echo(f"{out}: {made} slices", err=True)
