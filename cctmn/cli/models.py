"""Commands on model folders: import, show, verify, evaluate.

In: a checkpoint or a model folder. Out: a model folder, its card, its figures.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from cctmn.cli.common import TerminalReporter, tree_text
from cctmn.errors import ConfigError


@click.group()
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
    click.echo(json.dumps(card, indent=2) if as_json else tree_text(card))


@models.command("verify")
@click.argument("folder", metavar="MODEL")
def models_verify(folder: str) -> None:
    """Check MODEL against its hashes and load it; exit code 4 if it is not sound."""
    from cctmn.model import checkpoint

    card = checkpoint.load(folder).card
    click.echo(f"{folder}: sound, sha256 {card.weights_sha256}")


@models.command("calibrate")
@click.argument("folder", metavar="MODEL")
@click.argument("out", metavar="OUT")
@click.option("--labels", required=True, metavar="LABELS", help="Of validation slices.")
@click.option("--key", type=click.Choice(("name", "uri", "slice_id")), default="name")
@click.option("--root", metavar="ROOT", help="What relative uris of LABELS are below.")
def models_calibrate(folder: str, out: str, *, labels: str, **options: Any) -> None:
    """Fit MODEL's temperature and patient rule on validation slices, and write its card.

    OUT holds MODEL's predictions of them. Later runs of `score` divide the logits by the
    temperature; a patient's answer in `evaluate` is the mean of the top_m slices.
    """
    from cctmn.evaluate.fit_calibration import calibrate

    found = calibrate(folder, out=out, labels=labels, **options)
    click.echo(tree_text(found))


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
    reporter = TerminalReporter(quiet=False)
    of_kind = measure.classes if lesions is None else measure.detections
    figures = of_kind(folder, data=Data(lesions or slices or "", options["split"]), report=reporter)
    # JSON has no nan
    safe = {k: None if math.isnan(v) else round(v, 4) for k, v in figures.items()}
    if options["record"]:
        from cctmn.model import checkpoint

        checkpoint.record(folder, name=options["record"], figures=safe)
    click.echo(json.dumps(safe, indent=2) if options["as_json"] else tree_text(safe))
