"""Stage 2, COVID-CT-Mask-Net: the detector without masks, and module S that reads its boxes.

In: normalised slices. Out: one logit per image class and slice, or by `predict` finished
predictions with the lesions that the detector alone would report. Stage 2 has no detection losses
and leaves batch norm on its running statistics, so the detector inside stays in eval mode.

Shape suffixes: B slices, H W px, C image classes, N ranked boxes, F width of module S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cctmn.model import ranking
from cctmn.model.card import Arch
from cctmn.model.detector import Detector
from cctmn.model.predict import Prediction, Size, predict_each


class Classifier(nn.Module):
    """Detector and module S of an `Arch` with image classes (paper, section 3)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        assert arch.image_classes, "an Arch without image classes is a detector's"
        self.arch = arch
        self.detector = Detector(arch)
        self.module_s = nn.Sequential(
            nn.Linear(5 * arch.ranked, arch.hidden),
            nn.ReLU(),
            nn.Linear(arch.hidden, arch.hidden),
            nn.ReLU(),
            nn.Linear(arch.hidden, len(arch.image_classes)),
        )

    def train(self, mode: bool = True) -> Classifier:
        """As nn.Module's, but the detector stays in eval mode (module docstring)."""
        super().train(mode)
        self.detector.eval()
        return self

    def forward(self, x_B3HW: Tensor, *, sizes: list[Size]) -> Tensor:
        """Logits (B x C) of slices padded as by `predict.prepare`; `sizes` before padding.

        Gradients reach module S, box head and backbone; proposals carry none, as in torchvision.
        """
        outputs, _ = self.detector.boxes(x_B3HW, sizes=sizes)
        return torch.stack([self._score(output.candidates())[0] for output in outputs])

    def predict(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> list[Prediction]:
        """Logits and lesions of uint8 slices H x W at the model's input size (short side 512 px).

        Raises ModelError if the model yields values that are not finite.
        """
        device = next(self.parameters()).device
        return predict_each(images, run=self._run, device=device)

    def _score(self, found: ranking.Candidates) -> tuple[Tensor, Tensor, Tensor]:
        # Slice by slice: in a matrix product over the batch, a row's rounding hangs on the others.
        features_N5, boxes_N4 = ranking.ranked(found, count=self.arch.ranked)
        return self.module_s(features_N5.flatten()), features_N5, boxes_N4

    def _run(self, x_B3HW: Tensor, sizes: list[Size]) -> list[Prediction]:
        outputs, _ = self.detector.boxes(x_B3HW, sizes=sizes)
        return [self._predict(output.candidates()) for output in outputs]

    def _predict(self, found: ranking.Candidates) -> Prediction:
        logits_C, features_N5, ranked_boxes_N4 = self._score(found)
        ranking.check_finite(logits_C)
        boxes_M4, scores_M, labels_M = ranking.lesions(found)
        return Prediction(
            logits_C=logits_C.cpu().numpy(),
            boxes_M4=boxes_M4.cpu().numpy(),
            scores_M=scores_M.cpu().numpy(),
            labels_M=labels_M.cpu().numpy(),
            mask_px_M=None,
            ranked_N5=features_N5.cpu().numpy(),
            ranked_boxes_N4=ranked_boxes_N4.cpu().numpy(),
        )
