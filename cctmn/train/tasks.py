"""The two stages as the training loop sees them: inputs, losses and validation metrics.

A `Task` gives the losses of a micro-batch, which are differentiated, and the metrics of the
validation slices. It knows nothing of workers, checkpoints or Ray.

Shape suffixes: B slices, H W px, M lesions, N ranked boxes, C image classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from cctmn.config import ClassifierConfig
from cctmn.contract import InputContract
from cctmn.data.lesions import LesionSample, LesionSlice, read_lesions
from cctmn.data.slices import SliceSample, read_slice
from cctmn.metrics import classification, detection
from cctmn.model import frozen_conv
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.model.inference import Prediction, Predictor, normalise_and_pad, paste
from cctmn.rle import encode

AT_ONCE: Final = 16  # slices that are validated together; on a GPU they run as one batch

Losses = dict[str, Tensor]
Compared = tuple[detection.Instances, detection.Instances]  # predicted, true


class Validated(NamedTuple):
    """What one validation slice gives; small and picklable, so workers can exchange it."""

    output: Any  # what `compute_metrics` reads
    loss: float  # the training loss of this slice, in eval mode but for sampled proposals


class Task(Protocol):
    """One stage."""

    best_metric: str  # the metric by which the best epoch is chosen; higher is better
    module: nn.Module  # its forward pass is what the gradients run through
    count: int  # training slices
    valid_count: int

    @property
    def net(self) -> Detector | Classifier:
        """The whole net, of which `module` may be a part."""

    def read(self, index: int) -> Any:
        """Read training slice `index` as CPU tensors."""

    def losses(self, module: nn.Module, batch: Sequence[Any], *, device: torch.device) -> Losses:
        """Mean losses of a batch of slices; `module` is the task's own, perhaps wrapped."""

    def train(self) -> None:
        """Put the net into the mode that training needs."""

    def validate(self, indices: Sequence[int]) -> list[Validated]:
        """Return the outputs and losses of these validation slices; the net is in eval mode."""

    def compute_metrics(self, outputs: Sequence[Any]) -> dict[str, float]:
        """Metrics of the whole validation set; `outputs` are those of `validate`, in order."""


@dataclass(eq=False)
class DetectorTask:
    """Stage 1: the five losses of Mask R-CNN; validated by both kinds of average precision."""

    net: Detector
    slices: Sequence[LesionSample]
    valid: Sequence[LesionSample]
    contract: InputContract
    variant: str

    best_metric: str = "image_map"

    def __post_init__(self) -> None:
        self.module: nn.Module = self.net
        self.count, self.valid_count = len(self.slices), len(self.valid)
        if self.variant == "heads":
            self.net.backbone.requires_grad_(requires_grad=False)

    def train(self) -> None:
        """Use training mode, except for the frozen backbone of `heads`: it keeps its statistics."""
        self.net.train()
        if self.variant == "heads":
            self.net.backbone.eval()

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Picture (H x W, uint8), masks (M x H x W, uint8), labels (M)."""
        return _tensors(self._read(self.slices[index]))

    def _read(self, sample: LesionSample) -> LesionSlice:
        classes = self.net.arch.lesion_classes
        return read_lesions(sample, lesion_classes=classes, contract=self.contract)

    def losses(
        self,
        module: nn.Module,
        batch: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        device: torch.device,
    ) -> Losses:
        """Return the five losses under torchvision's names."""
        x_B3HW, sizes = _stack([pixels for pixels, _, _ in batch], device=device)
        targets = [
            _target(masks.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            for _, masks, labels in batch
        ]
        losses: Losses = module(x_B3HW, sizes=sizes, targets=targets)
        return losses

    def validate(self, indices: Sequence[int]) -> list[Validated]:
        """Return the lesions that the net reports with the true ones, and the sum of the losses."""
        predictor, validated = Predictor(self.net), []
        for part in _parts(indices):
            truths = [self._read(self.valid[index]) for index in part]
            pairs = compared(predictor, truths)
            for index, truth, pair in zip(part, truths, pairs, strict=True):
                validated.append(Validated(pair, self._validation_loss(truth, seed=index)))
        return validated

    def _validation_loss(self, lesions: LesionSlice, *, seed: int) -> float:
        """Return the sum of the five losses of a slice.

        torchvision computes them in training mode only. The backbone stays in eval mode, so its
        batch norm uses and keeps its running statistics. The sampled anchors and RoIs follow from
        `seed`, so that two epochs differ by their weights alone.
        """
        device = next(self.net.parameters()).device
        self.net.train()
        self.net.backbone.eval()
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            losses = self.losses(self.net, [_tensors(lesions)], device=device)
        self.net.eval()
        return float(sum(losses.values()))

    def compute_metrics(self, outputs: Sequence[Compared]) -> dict[str, float]:
        """Return the per-image and COCO's average precision."""
        predicted, truth = zip(*outputs, strict=True)
        return detection.summary(predicted, truth, classes=self.net.arch.lesion_classes)


def _tensors(lesions: LesionSlice) -> tuple[Tensor, Tensor, Tensor]:
    """Picture (H x W, uint8), masks (M x H x W, uint8), labels (M)."""
    pixels, masks_MHW, labels_M = lesions.pixels, lesions.masks_MHW, lesions.labels_M
    return torch.from_numpy(pixels), torch.from_numpy(masks_MHW), torch.from_numpy(labels_M)


def compared(predictor: Predictor, truths: Sequence[LesionSlice]) -> list[Compared]:
    """Return the lesions that a net reports on slices, and the true ones; it has a mask head."""
    pixels = [truth.pixels for truth in truths]
    predictions = predictor.predict(pixels, areas=False, masks=True)
    return [
        (_reported(prediction, truth), _true(truth))
        for prediction, truth in zip(predictions, truths, strict=True)
    ]


def _reported(prediction: Prediction, truth: LesionSlice) -> detection.Instances:
    assert prediction.mask_logits_M1SS is not None, (
        "a net without a mask head has no masks to compare"
    )
    pasted = paste(
        torch.from_numpy(prediction.mask_logits_M1SS),
        torch.from_numpy(prediction.boxes_M4),
        size=(truth.pixels.shape[0], truth.pixels.shape[1]),
    )
    return detection.Instances(
        masks=[rle for mask in pasted for rle in encode(mask.numpy()[None])],
        labels_M=prediction.labels_M,
        scores_M=prediction.scores_M,
    )


def _true(truth: LesionSlice) -> detection.Instances:
    return detection.Instances(
        masks=encode(truth.masks_MHW),
        labels_M=truth.labels_M,
        scores_M=np.ones(len(truth.labels_M), np.float32),
    )


def _parts(indices: Sequence[int]) -> list[Sequence[int]]:
    """Divide the slices to validate into those that are read and predicted at once."""
    return [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]


def _stack(
    pictures: Sequence[Tensor], *, device: torch.device
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return one padded batch (B x 3 x H x W) and the sizes before padding."""
    prepared = [normalise_and_pad(picture, device=device) for picture in pictures]
    height, width = (max(x.shape[side] for x, _ in prepared) for side in (1, 2))
    x_B3HW = torch.stack(
        [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x, _ in prepared]
    )
    return x_B3HW.contiguous(memory_format=torch.channels_last), [size for _, size in prepared]


def _target(masks_MHW: Tensor, labels_M: Tensor) -> dict[str, Tensor]:
    """Return the target of torchvision's heads. Boxes end one px past the last pixel."""
    if len(labels_M) == 0:
        boxes_M4 = masks_MHW.new_zeros((0, 4), dtype=torch.float32)
    else:
        boxes_M4 = masks_to_boxes(masks_MHW) + masks_MHW.new_tensor([0, 0, 1, 1]).float()
    return {"boxes": boxes_M4, "labels": labels_M, "masks": masks_MHW}


CRITERIA: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    # three sigmoids against the one-hot class (method.md, stage 2)
    "bce": lambda logits_BC, labels_B: F.binary_cross_entropy_with_logits(
        logits_BC, F.one_hot(labels_B, logits_BC.shape[1]).float()
    ),
    "cross-entropy": F.cross_entropy,
}


def choose_weights(net: Classifier, *, variant: str) -> None:
    """Mark what a variant of stage 2 trains: s, s+bn or all.

    `all` leaves out the RPN, whose proposals carry no gradient, and a kept mask head.
    """
    net.requires_grad_(requires_grad=False)
    net.module_s.requires_grad_()
    trained: dict[str, list[nn.Module]] = {
        "s": [],
        "s+bn": [m for m in net.detector.modules() if isinstance(m, nn.BatchNorm2d)],
        "all": [
            net.detector.backbone,
            net.detector.roi_heads.box_head,
            net.detector.roi_heads.box_predictor,
        ],
    }
    for module in trained[variant]:
        module.requires_grad_()


class _ClassTask:
    """The common part of both tasks of stage 2: training mode and metrics."""

    net: Classifier
    best_metric: str = "accuracy"

    def train(self) -> None:
        """Use training mode; batch norm keeps its running statistics."""
        self.net.train()

    def compute_metrics(self, outputs: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Accuracy, F1, and sensitivity and PPV of each class."""
        return class_metrics(outputs, classes=self.net.arch.image_classes)


@dataclass(eq=False)
class ClassifierTask(_ClassTask):
    """Stage 2: the loss of the image class, through the ranked boxes into the detector."""

    net: Classifier
    slices: Sequence[SliceSample]
    valid: Sequence[SliceSample]
    contract: InputContract
    config: ClassifierConfig

    def __post_init__(self) -> None:
        self.module: nn.Module = self.net
        self.count, self.valid_count = len(self.slices), len(self.valid)
        choose_weights(self.net, variant=self.config.variant)
        for part in (self.net.detector.backbone, self.net.detector.rpn.head):
            frozen_conv.use_for_frozen(part)

    def read(self, index: int) -> tuple[Tensor, int]:
        """Picture (H x W, uint8) and class."""
        sample = self.slices[index]
        return torch.from_numpy(read_slice(sample.image, contract=self.contract)), sample.label

    def losses(
        self, module: nn.Module, batch: Sequence[tuple[Tensor, int]], *, device: torch.device
    ) -> Losses:
        """Binary cross-entropy with logits, or cross-entropy."""
        x_B3HW, sizes = _stack([pixels for pixels, _ in batch], device=device)
        labels_B = torch.tensor([label for _, label in batch], device=device)
        logits_BC = module(x_B3HW, sizes=sizes).float()
        return {"loss_class": CRITERIA[self.config.loss](logits_BC, labels_B)}

    def validate(self, indices: Sequence[int]) -> list[Validated]:
        """Return the true and predicted class of each slice, and the loss."""
        predictor, validated = Predictor(self.net), []
        for part in _parts(indices):
            samples = [self.valid[index] for index in part]
            logits_BC = _logits(predictor, samples, contract=self.contract)
            for sample, logits_C in zip(samples, logits_BC, strict=True):
                one = _validated(logits_C, label=sample.label, loss=self.config.loss)
                validated.append(one)
        return validated


def classified(
    predictor: Predictor, sample: SliceSample, *, contract: InputContract
) -> tuple[int, int]:
    """Return the true and the predicted class of one slice."""
    return sample.label, int(_logits(predictor, [sample], contract=contract)[0].argmax())


def _logits(
    predictor: Predictor, samples: Sequence[SliceSample], *, contract: InputContract
) -> Tensor:
    """Return the logits of slices, B x C."""
    pictures = [read_slice(sample.image, contract=contract) for sample in samples]
    predictions = predictor.predict(pictures, areas=False)
    logits = [one.logits_C for one in predictions if one.logits_C is not None]
    return torch.from_numpy(np.stack(logits))


def _validated(logits_C: Tensor, *, label: int, loss: str) -> Validated:
    """Return the true and the predicted class of a slice, and its loss."""
    value = CRITERIA[loss](logits_C[None].float(), torch.tensor([label]))
    return Validated((label, int(logits_C.argmax())), float(value))


@dataclass(eq=False)
class CachedTask(_ClassTask):
    """Stage 2, module S alone: nothing before it changes, so its input is computed once."""

    net: Classifier
    features: Tensor  # slices x 5 N
    labels: Tensor
    valid_features: Tensor
    valid_labels: Tensor
    loss: str

    def __post_init__(self) -> None:
        self.module: nn.Module = self.net.module_s
        self.count, self.valid_count = len(self.features), len(self.valid_features)
        choose_weights(self.net, variant="s")

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Ranked boxes and class."""
        return self.features[index], self.labels[index]

    def losses(
        self, module: nn.Module, batch: Sequence[tuple[Tensor, Tensor]], *, device: torch.device
    ) -> Losses:
        """Return the class loss, as `ClassifierTask` does."""
        features, labels_B = (torch.stack(part).to(device) for part in zip(*batch, strict=True))
        return {"loss_class": CRITERIA[self.loss](module(features).float(), labels_B)}

    def validate(self, indices: Sequence[int]) -> list[Validated]:
        """Return the true and predicted class of each slice, and the loss."""
        device = next(self.module.parameters()).device
        validated = []
        for index in indices:
            with torch.inference_mode():
                logits_C = self.module(self.valid_features[index].to(device)).cpu()
            label = int(self.valid_labels[index])
            validated.append(_validated(logits_C, label=label, loss=self.loss))
        return validated


def class_metrics(
    outputs: Sequence[tuple[int, int]], *, classes: tuple[str, ...]
) -> dict[str, float]:
    """Metrics of pairs of true and predicted class."""
    truth_N, predicted_N = np.array(outputs).T
    matrix_CC = classification.confusion(truth_N, predicted_N, classes=len(classes))
    return classification.summary(matrix_CC, classes=classes)
