"""Stage 2, COVID-CT-Mask-Net: the detector, and module S that reads its ranked boxes.

It gives one logit per image class and slice. Stage 2 has no detection losses and leaves batch norm
on its running statistics, so the detector inside stays in eval mode. `inference` runs a trained
classifier and adds the lesions that its detector alone would report.

Shape suffixes: B slices, H W px, C image classes, N ranked boxes, F width of module S.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cctmn.model import ranking
from cctmn.model.backbone import Size
from cctmn.model.box_layers import ChannelsLastBoxLayers
from cctmn.model.card import Arch
from cctmn.model.detector import Detector, RoiAlignFactory


class Classifier(nn.Module):
    """Detector and module S of an `Arch` with image classes (paper, section 3).

    `roi_align` is passed on to the detector.
    """

    def __init__(self, arch: Arch, *, roi_align: RoiAlignFactory | None = None) -> None:
        super().__init__()
        assert arch.image_classes, "an Arch without image classes describes a detector"
        self.arch = arch
        self.detector = Detector(arch, roi_align=roi_align)
        self.module_s = nn.Sequential(
            nn.Linear(5 * arch.ranked, arch.hidden),
            nn.ReLU(),
            nn.Linear(arch.hidden, arch.hidden),
            nn.ReLU(),
            nn.Linear(arch.hidden, len(arch.image_classes)),
        )

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of module S; the detector stays in eval mode (see the module docstring)."""
        super().train(mode)
        self.detector.eval()
        return self

    def forward(self, x_B3HW: Tensor, *, sizes: list[Size]) -> Tensor:
        """Logits (B x C) of slices padded by `inference.normalise_and_pad`; `sizes` before padding.

        Gradients reach module S, box head and backbone; proposals carry none, as in torchvision.
        """
        features_BN5 = self.ranked_features(x_B3HW, sizes=sizes)
        return torch.stack([self.module_s(features_N5.flatten()) for features_N5 in features_BN5])

    def ranked_features(self, x_B3HW: Tensor, *, sizes: list[Size]) -> Tensor:
        """The input of module S (B x N x 5), with gradients to box head and backbone.

        The ranking considers every proposal, but the result depends only on the N that it chooses.
        So the box head runs a second time on those alone, and RoIAlign's slow backward pass is
        limited to them.
        """
        detector, count = self.detector, self.arch.ranked
        features = detector.backbone(x_B3HW)
        # 1. Choose boxes, without gradients.
        with torch.no_grad():
            layers = ChannelsLastBoxLayers(detector.roi_heads.box_head)
            outputs = detector.box_outputs(x_B3HW, features, sizes=sizes, box_layers=layers)
            candidates = [output.candidates() for output in outputs]
            chosen = [ranking.choose(one, count=count) for one in candidates]
            proposals = [
                output.proposals_P4[one.proposals_R[keep]]
                for output, one, keep in zip(outputs, candidates, chosen, strict=True)
            ]
        # 2. The box head on the chosen boxes, with gradients.
        logits, deltas = detector.box_head(features, proposals, sizes=sizes)
        # 3. Score and deltas of the class that each box was chosen for.
        rows: list[Tensor] = []
        counts = [keep.numel() for keep in chosen]
        parts = zip(
            candidates,
            chosen,
            torch.split(logits, counts),
            torch.split(deltas, counts),
            strict=True,
        )
        for one, keep, logits_NK, deltas_N4K in parts:
            own = torch.arange(keep.numel(), device=keep.device), one.labels_R[keep]
            scores_N = logits_NK.softmax(-1)[own]
            deltas_N4 = deltas_N4K.reshape(*logits_NK.shape, 4)[own]
            rows.append(ranking.ranked_features(scores_N, deltas_N4=deltas_N4, count=count))
        return torch.stack(rows)
