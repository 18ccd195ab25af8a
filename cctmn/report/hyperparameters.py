"""The paper's Tables 2 and 3: the hyperparameters of both stages, from the cards of the models.

A part of them is the same for every model of cctmn and stands in `model.constants`. The others are
in the card, as metrics.json repeats it; an entry that a card lacks is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cctmn.model import constants
from cctmn.report import published
from cctmn.report.numbers import DASH
from cctmn.report.runs import Run

FIXED: Final = "fixed"
NO_STAGE_2: Final = "no stage 2"  # of a detector

Values = Mapping[str, str]  # by the name of the row; "" where the card lacks it


def rows(runs: Sequence[Run], *, stage: str) -> list[tuple[str, tuple[str, ...], str, str]]:
    """Return (hyperparameter, a value for each run, published value, its source) of a stage."""
    values_of = _detector if stage == "detector" else _classifier
    theirs = published.TABLE_2 if stage == "detector" else published.TABLE_3
    of_runs = [values_of(run) for run in runs]
    lines = []
    for name in of_runs[0]:
        known = theirs.get(name)
        value, source = (known.value, known.source) if known else (DASH, "")
        lines.append((name, tuple(values[name] or DASH for values in of_runs), value, source))
    return lines


def gap(runs: Sequence[Run], *, stage: str) -> str:
    """Return what the cards lack, in a sentence for the runs that lack the same."""
    values_of: Callable[[Run], Values]
    values_of = _detector if stage == "detector" else _classifier
    lacking: dict[str, list[str]] = {}
    for run in runs:
        missing = [name for name, value in values_of(run).items() if not value]
        if stage == "classifier" and not run.evaluation.classes:
            lacking.setdefault("stage 2, because it is a detector", []).append(run.name)
        elif missing:
            lacking.setdefault(", ".join(missing), []).append(run.name)
    return " ".join(
        f"The card of {' and that of '.join(names)} lacks: {entries}."
        for entries, names in lacking.items()
    )


def _detector(run: Run) -> Values:
    model = run.evaluation.section("model")
    rule = model.get("lesions") or {}
    training = _of_stage(model.get("training"), "detector")
    return {
        "backbone": _text(model.get("backbone")),
        "lesion classes": _text(model.get("lesion_classes")),
        "anchor sizes, px": _fixed(constants.ANCHOR_SIZES_PX),
        "anchor aspect ratios": _fixed(constants.ASPECT_RATIOS),
        "RPN IoU, positive and negative": _fixed(
            (constants.RPN_FOREGROUND_IOU, constants.RPN_BACKGROUND_IOU)
        ),
        "RPN batch, positive fraction": _fixed((constants.RPN_SAMPLES, constants.RPN_POSITIVE)),
        "RPN NMS": _fixed(constants.RPN_NMS_IOU),
        "RPN output, training and test": _fixed(tuple(constants.PROPOSALS.values())),
        "RoI IoU, positive and negative": _fixed(
            (constants.ROI_FOREGROUND_IOU, constants.ROI_BACKGROUND_IOU)
        ),
        "RoI batch, positive fraction": _fixed((constants.ROI_SAMPLES, constants.ROI_POSITIVE)),
        "RoI NMS": _text(rule.get("nms_iou")),
        "RoI score": f"above {score}" if (score := _text(rule.get("min_score"))) else "",
        "RoI output": _text(rule.get("max")),
        **_of_training(training, initial=True),
    }


def _classifier(run: Run) -> Values:
    model = run.evaluation.section("model")
    training = _of_stage(model.get("training"), "classifier")
    values = {
        "RPN NMS": _fixed(constants.RPN_NMS_IOU),
        "RPN output": _fixed(constants.PROPOSALS["testing"]),
        "RoI NMS": _fixed(constants.RANKED_NMS_IOU),
        "RoI score": f"above {_fixed(constants.RANKED_MIN_SCORE)}",
        "ranked boxes (N)": _text(model.get("ranked")),
        "width of S (F)": _text(model.get("hidden")),
        "image classes": _text(run.evaluation.classes),
        "loss": _text(_settings(training).get("loss")),
        **_of_training(training, initial=False),
    }
    return values if run.evaluation.classes else dict.fromkeys(values, NO_STAGE_2)


def _of_training(training: Mapping[str, Any], *, initial: bool) -> Values:
    settings = _settings(training)
    optim = settings.get("optim") or {}
    weights = {"initial weights": _text(settings.get("init"))} if initial else {}
    return {
        "training slices": _text(training.get("slices")),
        "validation slices": _text(training.get("valid_slices")),
        "trained weights": _text(settings.get("variant")),
        **weights,
        "optimiser": _fixed("Adam"),
        "learning rate": _text(optim.get("lr")),
        "weight decay": _text(optim.get("weight_decay")),
        "batch size": _text(optim.get("batch_size")),
        "epochs": _text(optim.get("epochs")),
        "epoch of these weights": _text(training.get("epoch")),
    }


def _of_stage(training: Any, stage: str) -> Mapping[str, Any]:
    """Return the training of a stage: of this model, or of one that it started from."""
    while isinstance(training, Mapping):
        if training.get("stage") == stage:
            return training
        training = training.get("started_from")
    return {}


def _settings(training: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = training.get("settings") or {}
    if not isinstance(settings, Mapping) or not isinstance(settings.get("optim") or {}, Mapping):
        raise TypeError("settings of training must be names and values")
    return settings


def _fixed(value: Any) -> str:
    return f"{_text(value)} ({FIXED})"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
