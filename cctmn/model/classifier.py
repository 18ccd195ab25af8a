"""Stage 2, COVID-CT-Mask-Net: the detector, and module S that reads its ranked boxes.

In: normalised slices. Out: one logit per image class and slice, or by `predict` finished
predictions with the lesions that the detector alone would report. Stage 2 has no detection losses
and leaves batch norm on its running statistics, so the detector inside stays in eval mode.

Shape suffixes: B slices, H W px, C image classes, N ranked boxes, F width of module S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
        features_BN5 = self.ranked(x_B3HW, sizes=sizes)
        return torch.stack([self.module_s(features_N5.flatten()) for features_N5 in features_BN5])

    def ranked(self, x_B3HW: Tensor, *, sizes: list[Size]) -> Tensor:
        """What module S reads (B x N x 5), with gradients to box head and backbone.

        The ranking looks at every proposal, but only the N it chooses move the answer: the box head
        runs on those a second time, and RoIAlign's slow backward pass on no others.
        """
        detector, count = self.detector, self.arch.ranked
        features = detector.backbone(x_B3HW)
        with torch.no_grad():
            outputs = detector.read_boxes(x_B3HW, features, sizes=sizes)
            found = [output.candidates() for output in outputs]
            chosen = [ranking.choose(one, count=count) for one in found]
            proposals = [
                output.proposals_P4[one.proposals_R[keep]]
                for output, one, keep in zip(outputs, found, chosen, strict=True)
            ]
        logits, deltas = detector.box_output(features, proposals, sizes=sizes)
        rows: list[Tensor] = []
        start = 0
        for one, keep in zip(found, chosen, strict=True):
            end = start + keep.numel()
            if start == end:
                # Zeros with a gradient: the other workers wait for that of every weight.
                rows.append(deltas.new_zeros(count, 5) + 0 * (logits.sum() + deltas.sum()))
                continue
            own = torch.arange(count, device=keep.device), one.labels_R[keep]
            scores_N = logits[start:end].softmax(-1)[own]
            deltas_N4 = deltas[start:end].reshape(count, -1, 4)[own]
            rows.append(torch.cat([scores_N[:, None], deltas_N4], dim=1))
            start = end
        return torch.stack(rows)

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
        outputs, features = self.detector.boxes(x_B3HW, sizes=sizes)
        found = [output.candidates() for output in outputs]
        scored = [self._score(one) for one in found]
        ranking.check_finite(*(logits_C for logits_C, _, _ in scored))
        predictions = self.detector.lesions(features, found=found, sizes=sizes)
        return [
            replace(
                prediction,
                logits_C=logits_C.cpu().numpy(),
                ranked_N5=features_N5.cpu().numpy(),
                ranked_boxes_N4=boxes_N4.cpu().numpy(),
            )
            for prediction, (logits_C, features_N5, boxes_N4) in zip(
                predictions, scored, strict=True
            )
        ]
