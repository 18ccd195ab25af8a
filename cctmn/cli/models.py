"""Commands on model folders: import, show, verify, evaluate and calibrate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from cctmn.cli.common import (
    NearestGroup,
    TerminalReporter,
    finite,
    join_options,
    label_map_option,
    tree_text,
)
from cctmn.errors import ConfigError


@click.group(cls=NearestGroup)
def models() -> None:
    """Import, show, verify and calibrate models."""


@models.command(
    "import",
    epilog="""\b
Example:
  cctmn models import classification_model.pth -o model
""",
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o",
    "--out",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Model folder to write.",
)
@click.option(
    "--lesions",
    type=click.Choice(["merge", "ggo"]),
    help="Meaning of the lesion class, if there is only one.",
)
@click.option("--as-classifier", is_flag=True, help="Add an untrained module S to a detector.")
@click.option("--seed", default=0, show_default=True, help="Seed of the untrained module S.")
@click.option("--overwrite", is_flag=True, help="Replace another model in DIR.")
def models_import(
    file: Path, *, out: Path, lesions: str | None, as_classifier: bool, seed: int, overwrite: bool
) -> None:
    """Convert a published checkpoint.

    FILE is one of the author's .pth files. It is read without running any code from it.
    """
    from cctmn.model import checkpoint, legacy

    net, card = legacy.import_checkpoint(file, lesions=lesions)
    model = checkpoint.LoadedModel(net, card)
    if as_classifier:
        model = checkpoint.classifier_from_detector(model, seed=seed)
    if not overwrite:
        checkpoint.check_free(out, net=model.net, card=model.card)
    card = checkpoint.save(model.net, out, card=model.card)
    click.echo(f"{out}: {card.kind} {card.name}, model id {card.model_id}", err=True)
    for note in card.notes:
        click.echo(f"note: {note}", err=True)


@models.command(
    "show",
    epilog="""\b
Example:
  cctmn models show cctmn:demo
""",
)
@click.argument("folder", metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def models_show(folder: str, *, as_json: bool) -> None:
    """Print the card of MODEL."""
    from dataclasses import asdict

    from cctmn.data import set_record
    from cctmn.model.card import read_card

    card = asdict(read_card(folder))
    if as_json:
        click.echo(json.dumps(card, indent=2))
        return
    if "set" in card["calibration"]:
        card["calibration"]["set"] = set_record.summary(card["calibration"]["set"])
    if "sets" in card["provenance"]:
        sets = card["provenance"]["sets"].items()
        card["provenance"]["sets"] = {name: set_record.summary(one) for name, one in sets}
    click.echo(tree_text(card))


@models.command(
    "verify",
    epilog="""\b
Example:
  cctmn models verify model
""",
)
@click.argument("folder", metavar="MODEL")
def models_verify(folder: str) -> None:
    """Check MODEL against its hashes.

    The exit code is 4 if a hash differs or the weights cannot be loaded.
    """
    from cctmn.model import checkpoint

    card = checkpoint.load(folder).card
    click.echo(f"{folder}: sound, sha256 {card.weights_sha256}")


@models.command(
    "calibrate",
    epilog="""\b
Example:
  cctmn models calibrate model out --labels validation.csv
""",
)
@click.argument("folder", metavar="MODEL")
@click.argument("scored", metavar="SCORED")
@click.option("--labels", required=True, metavar="LABELS", help="Labels of validation slices.")
@join_options
@label_map_option
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=finite,
    metavar="FRACTION",
    help="Fraction of sick patients where the model will be used; default: as in LABELS.",
)
@click.option("--overwrite", is_flag=True, help="Replace a calibration on other labels.")
def models_calibrate(
    folder: str,
    scored: str,
    *,
    labels: str,
    key: str,
    root: str | None,
    label_map: tuple[str, ...],
    prevalence: float | None,
    overwrite: bool,
) -> None:
    """Fit the temperature and patient rule of MODEL.

    SCORED holds the predictions of MODEL for validation slices. The result goes into the card of
    MODEL: later runs of `score` divide the logits by the temperature, and `evaluate` judges
    patients by the rule.
    """
    from cctmn.data.class_names import parse_label_map
    from cctmn.evaluate.fit_calibration import Joining, calibrate

    joining = Joining(key=key, root=root, label_map=parse_label_map(label_map))
    fitted = calibrate(
        folder,
        out=scored,
        labels=labels,
        joining=joining,
        prevalence=prevalence,
        overwrite=overwrite,
        report=TerminalReporter(quiet=False),
    )
    click.echo(tree_text(fitted))


@models.command(
    "evaluate",
    epilog="""\b
Example:
  cctmn models evaluate cctmn:demo --slices slices
""",
)
@click.argument("folder", metavar="MODEL")
@click.option("--lesions", metavar="DATA", help="Slices with masks, as for `train detector`.")
@click.option("--slices", metavar="DATA", help="Slices with classes, as for `train classifier`.")
@click.option("--split", metavar="FILE", help="List of names that selects from DATA.")
@label_map_option
@click.option("--record", metavar="NAME", help="Write the metrics into the card under this name.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def models_evaluate(
    folder: str,
    *,
    lesions: str | None,
    slices: str | None,
    split: str | None,
    label_map: tuple[str, ...],
    record: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL on labelled slices.

    Lesions give average precision, classes give accuracy.
    """
    if (lesions is None) == (slices is None):
        raise ConfigError("nothing to measure on; give --lesions DATA or --slices DATA")

    from cctmn.data.class_names import parse_label_map
    from cctmn.train import measure
    from cctmn.train.datasets import Data

    data = Data(lesions or slices or "", split, label_map=parse_label_map(label_map))
    reporter = TerminalReporter(quiet=False)
    of_kind = measure.classes if lesions is None else measure.detections
    metrics = of_kind(folder, data=data, report=reporter)
    # JSON has no NaN.
    safe = {k: None if math.isnan(v) else round(v, 4) for k, v in metrics.items()}
    if record:
        from cctmn.model import checkpoint

        checkpoint.record(folder, name=record, figures=safe)
    click.echo(json.dumps(safe, indent=2) if as_json else tree_text(safe))
