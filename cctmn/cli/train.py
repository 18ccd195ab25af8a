"""Commands that train both stages, and `phantom`, which makes synthetic slices to train on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import click

from cctmn import config
from cctmn.cli.common import NearestGroup, TerminalReporter, finite, label_map_option, resumable
from cctmn.cli.settings import settings_epilog
from cctmn.errors import ConfigError


class TrainOptions(TypedDict):
    """The options of both stages, as click passes them; `label_map` is of the classifier alone."""

    data: str
    split: str | None
    root: str | None
    label_map: NotRequired[tuple[str, ...]]
    valid: str | None
    valid_split: str | None
    out: str
    model: str | None
    name: str | None
    preset: str | None
    device: str
    config_file: Path | None
    sets: tuple[str, ...]
    address: str | None
    as_json: bool
    quiet: bool


@click.group(cls=NearestGroup)
def train() -> None:
    """Train a lesion detector, then a classifier on its boxes."""


def _train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that both stages take."""
    for option in reversed(
        (
            click.option("--data", required=True, metavar="DATA", help="Labelled slices."),
            click.option("--split", metavar="FILE", help="List of names that selects from DATA."),
            click.option(
                "--root",
                metavar="ROOT",
                help="Base folder or prefix for relative names in a table.",
            ),
            click.option("--valid", metavar="DATA", help="Validation slices, in the same layout."),
            click.option(
                "--valid-split", metavar="FILE", help="List that selects from the validation DATA."
            ),
            click.option(
                "-o", "--out", "--output", required=True, metavar="OUT", help="Local or s3://."
            ),
            click.option("-m", "--model", metavar="MODEL", help="Model to start from."),
            click.option(
                "--name", metavar="NAME", help="Name of the trained model [the folder's name]."
            ),
            click.option("--preset", metavar="NAME", help="A preset of settings; see below."),
            click.option(
                "--device",
                type=click.Choice(config.DEVICES),
                default="auto",
                show_default=True,
                help="Same as --set hardware.device=DEVICE.",
            ),
            click.option(
                "--config",
                "config_file",
                type=click.Path(path_type=Path),
                help="TOML file with settings.",
            ),
            click.option(
                "--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; repeatable."
            ),
            click.option(
                "--address", metavar="A", help="Ray cluster to use; without it, Ray starts here."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
            click.option("-q", "--quiet", is_flag=True, help="Suppress progress messages."),
        )
    ):
        command = option(command)
    return command


@train.command(
    "detector",
    epilog=settings_epilog(
        "detector",
        "cctmn train detector --preset paper-resnet50 --data cncb --split train.txt -o det",
    ),
)
@_train_options
def train_detector(**options: Unpack[TrainOptions]) -> None:
    """Train stage 1: a Mask R-CNN on slices with lesion masks.

    DATA is a folder with imgs/ and masks/, as CNCB has them. --split and --valid-split are lists of
    image names. Without --valid and --valid-split, some patients of each class are kept for
    validation. Run the same command again to resume from the last checkpoint.
    """
    from cctmn.config import DetectorConfig

    _train(DetectorConfig, options)


@train.command(
    "classifier",
    epilog=settings_epilog(
        "classifier",
        "cctmn train classifier --preset paper --data covidx --split train_COVIDx_CT-1.txt \\\n"
        "      -m det/model -o cls",
    ),
)
@_train_options
@label_map_option
def train_classifier(**options: Unpack[TrainOptions]) -> None:
    """Train stage 2: a classifier on the ranked boxes.

    MODEL is a detector, or a classifier to tune. DATA is a folder of CLASS_PATIENT_SCAN_SLICE.png,
    with --split a COVIDx-CT split file beside it; a folder with one folder per class; or a table
    (.csv, .parquet) with label, patient, and one of uri, path, name. Without --valid and
    --valid-split, some patients of each class are kept for validation. Run the same command again
    to resume.
    """
    from cctmn.config import ClassifierConfig

    _train(ClassifierConfig, options)


def train_settings(
    cls: type[Any],
    *,
    device: str,
    sets: tuple[str, ...],
    preset: str | None,
    config_file: Path | None,
) -> Any:
    """Return the settings that the options give. Raises ConfigError."""
    files = [] if config_file is None else [config_file]
    changed = [] if device == "auto" else [f"hardware.device={device}"]
    changed += sets
    return config.load(cls, preset=preset, files=files, sets=changed)


def _train(cls: type[Any], options: TrainOptions) -> None:
    # Settings first: a mistake in them must not cost the import of torch.
    settings = train_settings(
        cls,
        device=options["device"],
        sets=options["sets"],
        preset=options["preset"],
        config_file=options["config_file"],
    )

    from cctmn.data.class_names import parse_label_map
    from cctmn.train import run
    from cctmn.train.datasets import Data

    label_map = parse_label_map(options.get("label_map", ()))

    def slices(place: str, split: str | None, what: str) -> Data:
        return Data(place, split, what=what, root=options["root"], label_map=label_map)

    reporter = TerminalReporter(quiet=options["quiet"])
    valid = None
    if options["valid"] or options["valid_split"]:
        place = options["valid"] or options["data"]
        valid = slices(place, options["valid_split"], "validation")
    job = run.TrainJob(
        config=settings,
        data=slices(options["data"], options["split"], "training"),
        out=options["out"],
        valid=valid,
        model=options["model"],
        name=options["name"],
    )
    with resumable():
        outcome = run.train(job, address=options["address"], report=reporter)
    reporter(_outcome_text(outcome))
    reporter("model:", names=outcome.model)
    if options["as_json"]:
        click.echo(json.dumps(dataclasses.asdict(outcome), indent=2))


def _outcome_text(outcome: Any) -> str:
    part = outcome.validation
    name = part["chosen_by"]
    counts = " of ".join(
        f"{part[noun]:,} {noun}" for noun in ("slices", "patients") if part.get(noun)
    )
    if part.get("sample_of_slices"):
        counts += f" (a sample of {part['sample_of_slices']:,} slices)"
    value = "undefined" if part["value"] is None else f"{part['value']:.3f}"
    others = "  ".join(
        f"{other} {value:.3f}"
        for other, value in part["metrics"].items()
        if value is not None and other != name
    )
    return (
        f"{outcome.elapsed_s:.0f} s, best epoch {outcome.best_epoch} of {outcome.epochs}, chosen "
        f"by validation {name} {value} on {counts}; other validation metrics: {others}"
    )


@click.command(
    epilog="""\b
Example:
  cctmn phantom lesions -o lesions --count 40 --seed 6
"""
)
@click.argument("kind", type=click.Choice(["lesions", "slices", "study"]))
@click.option(
    "-o",
    "--out",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Folder to write; for a study, the zip file.",
)
@click.option(
    "--count", default=40, show_default=True, help="Number of slices; for a study, per patient."
)
@click.option("--patients", default=3, show_default=True, help="Number of patients in a study.")
@click.option(
    "--extent",
    type=click.FloatRange(0.05, 0.8),
    callback=finite,
    default=0.25,
    show_default=True,
    help="Fraction of the lungs' height that the lesions of a study's patient take.",
)
@click.option("--seed", default=1, show_default=True, help="Other seeds give other patients.")
@click.option(
    "--recipe",
    default="standard",
    show_default=True,
    help="Look of the slices: standard or other.",
)
@click.option("--overwrite", is_flag=True, help="Write into a folder that holds files.")
def phantom(
    kind: str,
    *,
    out: Path,
    count: int,
    patients: int,
    extent: float,
    seed: int,
    recipe: str,
    overwrite: bool,
) -> None:
    """Make synthetic slices with known lesions.

    lesions: OUT/imgs and OUT/masks as CNCB has them. slices: pictures and split.txt as COVIDx-CT
    has them. study: OUT is a zip of whole scans as DICOM files, with the truth in a table beside
    it; most slices of a patient with a disease are clean.
    """
    from cctmn.phantom import layouts

    if not overwrite and out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError("is there and not empty; give another OUT, or --overwrite", out)
    if kind == "study":
        made = len(
            layouts.write_archive(out, patients=patients, slices=count, seed=seed, extent=extent)
        )
    else:
        write = {"lesions": layouts.write_lesions, "slices": layouts.write_slices}[kind]
        made = write(out, count=count, seed=seed, recipe=recipe)
    click.echo(f"{out}: {made} slices", err=True)
