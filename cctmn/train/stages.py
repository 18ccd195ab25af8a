"""What differs between the two stages of a training run, in one class each.

A `TrainStage` gives the initial net, the labelled slices, the task of the loop, and what the card
of the trained model says. `train/run.py` and `train/distributed.py` treat both stages alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.contract import InputContract
from cctmn.data.lesions import LesionSample
from cctmn.data.slices import SliceSample
from cctmn.model.card import Card
from cctmn.model.checkpoint import LoadedModel
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.reporter import Reporter
from cctmn.train import datasets, initial
from cctmn.train.datasets import Data
from cctmn.train.tasks import CachedTask, ClassifierTask, DetectorTask, Task

Samples = tuple[LesionSample, ...] | tuple[SliceSample, ...]

# (net, slices, "slices" or "valid") -> slices x 5 N, the input of module S
RankedFeatures = Callable[[Classifier, Sequence[SliceSample], str], Tensor]


class TrainStage(Protocol):
    """One of the two stages, with its settings and the model folder to start from."""

    @property
    def name(self) -> str:
        """`detector` or `classifier`."""

    @property
    def config(self) -> DetectorConfig | ClassifierConfig:
        """The settings of the stage."""

    @property
    def classes_setting(self) -> str:
        """The setting that names the classes of the labelled slices."""

    @property
    def activation(self) -> str | None:
        """How the trained model's logits become probabilities; None: as before the training."""

    def start(self) -> LoadedModel:
        """Return the net to start from. Raises ModelError or ConfigError if it does not fit."""

    def download_weights(self, start: LoadedModel) -> LoadedModel:
        """Return the net with the weights that must be downloaded; after the data are checked."""

    def read(self, data: Data, *, card: Card, report: Reporter) -> Samples:
        """Return the labelled slices that can be read. Raises DataError if there are none."""

    def task(
        self,
        net: Detector | Classifier,
        slices: Sequence[Any],
        valid: Sequence[Any],
        *,
        contract: InputContract,
        features: RankedFeatures,
    ) -> Task:
        """Return the task of the training loop."""


@dataclass(frozen=True)
class DetectorStage:
    """Stage 1, from slices with lesion masks."""

    config: DetectorConfig
    model: str | None
    name: str = "detector"
    classes_setting: str = "lesions"
    activation: str | None = None  # a detector has no image classes

    def start(self) -> LoadedModel:
        """Return the detector in the model folder, or a new one."""
        return initial.detector(self.config, model=self.model)

    def download_weights(self, start: LoadedModel) -> LoadedModel:
        """Fill the backbone of a new detector with ImageNet weights, if the settings ask so."""
        return initial.with_imagenet(start, config=self.config) if self.model is None else start

    def read(self, data: Data, *, card: Card, report: Reporter) -> tuple[LesionSample, ...]:
        """Return the slices that have a lesion of the model's classes."""
        return datasets.with_lesions(data, card=card, report=report)

    def task(
        self,
        net: Detector | Classifier,
        slices: Sequence[LesionSample],
        valid: Sequence[LesionSample],
        *,
        contract: InputContract,
        features: RankedFeatures,  # noqa: ARG002 - stage 2 alone has ranked features
    ) -> DetectorTask:
        """Return the task of Mask R-CNN."""
        assert isinstance(net, Detector)
        return DetectorTask(net, slices, valid, contract, self.config.variant)


@dataclass(frozen=True)
class ClassifierStage:
    """Stage 2, from slices with an image class."""

    config: ClassifierConfig
    model: str | None
    name: str = "classifier"
    classes_setting: str = "classes"

    @property
    def activation(self) -> str:
        """The activation that the loss was made for."""
        return {"bce": "sigmoid", "cross-entropy": "softmax"}[self.config.loss]

    def start(self) -> LoadedModel:
        """Return the detector in the model folder with a new module S, or a classifier to tune."""
        return initial.classifier(self.config, model=self.model)

    def download_weights(self, start: LoadedModel) -> LoadedModel:
        """Return the start as it is: a detector comes with its weights."""
        return start

    def read(self, data: Data, *, card: Card, report: Reporter) -> tuple[SliceSample, ...]:
        """Return the slices that have an image class."""
        classes = self.config.classes
        return datasets.with_classes(data, classes=classes, card=card, report=report)

    def task(
        self,
        net: Detector | Classifier,
        slices: Sequence[SliceSample],
        valid: Sequence[SliceSample],
        *,
        contract: InputContract,
        features: RankedFeatures,
    ) -> ClassifierTask | CachedTask:
        """Return the task of the classifier, or of module S alone on cached ranked features.

        With the variant `s` the input of module S never changes, so it is computed only once.
        """
        assert isinstance(net, Classifier)
        if self.config.variant != "s" or not self.config.cached:
            return ClassifierTask(net, slices, valid, contract, self.config)
        parts = {"slices": slices, "valid": valid}
        tables = [features(net, part, name) for name, part in parts.items()]
        labels = [torch.tensor([one.label for one in part]) for part in parts.values()]
        return CachedTask(net, tables[0], labels[0], tables[1], labels[1], self.config.loss)


def stage_of(config: DetectorConfig | ClassifierConfig, *, model: str | None = None) -> TrainStage:
    """Return the stage that these settings belong to; `model` is the folder to start from."""
    if isinstance(config, DetectorConfig):
        return DetectorStage(config, model)
    return ClassifierStage(config, model)
