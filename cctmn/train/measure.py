"""The quality of a model on labelled slices, computed as training does for validation slices.

Everything runs in this process. The results can be written into the model's card.
"""

from __future__ import annotations

from cctmn.contract import InputContract
from cctmn.data.lesions import read_lesions
from cctmn.errors import ConfigError
from cctmn.metrics import detection
from cctmn.model import checkpoint
from cctmn.model.classifier import Classifier
from cctmn.model.inference import Predictor
from cctmn.reporter import Reporter, silent
from cctmn.train import datasets, tasks
from cctmn.train.datasets import Data


def detections(model: str, *, data: Data, report: Reporter = silent) -> dict[str, float]:
    """Average precision of the model's masks on CNCB-like slices, per image and COCO's."""
    loaded = checkpoint.load(model)
    arch = loaded.card.arch
    if not arch.mask_head:
        raise ConfigError(
            "has no mask head, so there is nothing to compare; give one with masks", model
        )
    samples = datasets.with_lesions(data, card=loaded.card, report=report)
    contract = InputContract.from_card(loaded.card.input)
    predictor, pairs = Predictor(loaded.net), []
    for done, sample in enumerate(samples, start=1):
        truth = read_lesions(sample, lesion_classes=arch.lesion_classes, contract=contract)
        pairs += tasks.compared(predictor, [truth])
        report(f"{done}/{len(samples)}", transient=True)
    predicted, true = zip(*pairs, strict=True)
    return detection.summary(predicted, true, classes=arch.lesion_classes)


def classes(model: str, *, data: Data, report: Reporter = silent) -> dict[str, float]:
    """Accuracy, F1, and sensitivity and PPV of each class, on slices with image classes."""
    loaded = checkpoint.load(model)
    if not isinstance(loaded.net, Classifier):
        raise ConfigError("is a detector; it has no image classes to compare", model)
    names = loaded.card.arch.image_classes
    samples = datasets.with_classes(data, classes=names, card=loaded.card, report=report)
    contract = InputContract.from_card(loaded.card.input)
    predictor, pairs = Predictor(loaded.net), []
    for done, sample in enumerate(samples, start=1):
        pairs.append(tasks.classified(predictor, sample, contract=contract))
        report(f"{done}/{len(samples)}", transient=True)
    return tasks.class_metrics(pairs, classes=names)
