"""Stage 1, the Mask R-CNN lesion detector, built from torchvision's public parts.

In: normalised slices. Out: in training the five losses, else each slice's raw box-head output
(from which `ranking` makes lesions and ranked boxes) or, by `predict`, finished predictions.
The constants are the author's (method.md, stage 1).

Shape suffixes: B slices, H W px, P proposals, K classes with background, M lesions, A anchors,
S cells of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.poolers import initLevelMapper

from cctmn.model import ranking
from cctmn.model.backbone import CHANNELS, Backbone
from cctmn.model.card import LESION_MAX, LESION_MIN_SCORE, LESION_NMS_IOU, Arch
from cctmn.model.predict import Prediction, Size, predict_each

ANCHOR_SIZES_PX: Final = (2, 4, 8, 16, 32)
ASPECT_RATIOS: Final = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)  # height / width

RPN_FOREGROUND_IOU: Final = 0.7
RPN_BACKGROUND_IOU: Final = 0.3
RPN_SAMPLES: Final = 256  # anchors a slice in the loss
RPN_POSITIVE: Final = 0.75  # of them
RPN_NMS_IOU: Final = 0.75
PROPOSALS: Final = {"training": 2000, "testing": 1000}  # per level before NMS, per slice after it

ROI_FOREGROUND_IOU: Final = 0.75
ROI_BACKGROUND_IOU: Final = 0.5  # what lies between is ignored
ROI_SAMPLES: Final = 256
ROI_POSITIVE: Final = 0.75
ROI_CELLS: Final = 7
ROI_SAMPLING: Final = 2
ROI_WIDTH: Final = 128  # of both fully connected layers

MASK_CELLS: Final = 14  # the predictor doubles them to 28
MASK_LAYERS: Final = {"resnet18": (128,), "resnet34": (128,), "resnet50": (256,) * 4}
# Of the logit, pasted without a sigmoid: the published mask is what exceeds 0.5 there, which is a
# probability of 0.62, and its areas are 4 % smaller than those of torchvision's own rule.
MASK_LOGIT: Final = 0.5


class RankedRPN(rpn.RegionProposalNetwork):
    """torchvision's RPN, but proposals are ranked by the raw objectness logit.

    Their sigmoid saturates in float32, and the ties reorder proposals (method.md, parity). Only
    boxes without area are dropped, and ties keep the order of the anchors.
    """

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[Size],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Proposals (B x A x 4) -> per slice those left by NMS and their logits, falling."""
        logits_BA = objectness.detach().reshape(proposals.shape[0], -1)
        ranking.check_finite(logits_BA, proposals)
        chosen = [
            self._best(boxes_A4, logits_A=logits_A, size=size, levels=num_anchors_per_level)
            for boxes_A4, logits_A, size in zip(proposals, logits_BA, image_shapes, strict=True)
        ]
        return [boxes for boxes, _ in chosen], [logits for _, logits in chosen]

    def _best(
        self, boxes_A4: Tensor, *, logits_A: Tensor, size: Size, levels: list[int]
    ) -> tuple[Tensor, Tensor]:
        best, level_of, start = [], [], 0
        for level, anchors in enumerate(levels):
            of_level = ranking.top(logits_A[start : start + anchors], count=self.pre_nms_top_n())
            best.append(of_level + start)
            level_of.append(torch.full_like(of_level, level))
            start += anchors
        index, groups = torch.cat(best), torch.cat(level_of)
        boxes, logits = clip_boxes_to_image(boxes_A4[index], size), logits_A[index]
        area = ranking.has_area(boxes)
        boxes, logits, groups = boxes[area], logits[area], groups[area]
        keep = ranking.suppress(boxes, scores_R=logits, groups_R=groups, iou=self.nms_thresh)
        keep = keep[: self.post_nms_top_n()]
        return boxes[keep], logits[keep]


@dataclass(frozen=True, eq=False)
class BoxOutput:
    """The box head's raw output for one slice, before any threshold or NMS."""

    logits_PK: Tensor
    deltas_P4K: Tensor
    proposals_P4: Tensor
    size_px: Size

    def candidates(self) -> ranking.Candidates:
        """Decoded boxes of every proposal and lesion class. Raises ModelError if not finite."""
        ranking.check_finite(self.logits_PK, self.deltas_P4K)
        return ranking.candidates(
            self.logits_PK,
            deltas_P4K=self.deltas_P4K,
            proposals_P4=self.proposals_P4,
            size_px=self.size_px,
        )


class Detector(nn.Module):
    """Mask R-CNN of an `Arch`; its image classes, if any, do not matter here."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = Backbone(arch)
        levels = len(arch.layers)
        anchors = AnchorGenerator((ANCHOR_SIZES_PX,) * levels, (ASPECT_RATIOS,) * levels)
        self.rpn = RankedRPN(
            anchors,
            rpn.RPNHead(CHANNELS, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=RPN_FOREGROUND_IOU,
            bg_iou_thresh=RPN_BACKGROUND_IOU,
            batch_size_per_image=RPN_SAMPLES,
            positive_fraction=RPN_POSITIVE,
            pre_nms_top_n=PROPOSALS,
            post_nms_top_n=PROPOSALS,
            nms_thresh=RPN_NMS_IOU,
        )
        classes = 1 + len(arch.lesion_classes)
        masks = {}
        if arch.mask_head:
            layers = MASK_LAYERS[arch.backbone]
            masks = {
                "mask_roi_pool": _roi_align(arch, cells=MASK_CELLS),
                "mask_head": MaskRCNNHeads(CHANNELS, layers, dilation=1),
                "mask_predictor": MaskRCNNPredictor(layers[-1], layers[-1], classes),
            }
        self.roi_heads = roi_heads.RoIHeads(
            _roi_align(arch, cells=ROI_CELLS),
            TwoMLPHead(CHANNELS * ROI_CELLS**2, ROI_WIDTH),
            FastRCNNPredictor(ROI_WIDTH, classes),
            fg_iou_thresh=ROI_FOREGROUND_IOU,
            bg_iou_thresh=ROI_BACKGROUND_IOU,
            batch_size_per_image=ROI_SAMPLES,
            positive_fraction=ROI_POSITIVE,
            bbox_reg_weights=ranking.BOX_WEIGHTS,
            score_thresh=LESION_MIN_SCORE,
            nms_thresh=LESION_NMS_IOU,
            detections_per_img=LESION_MAX,
            **masks,
        )

    def forward(
        self, x_B3HW: Tensor, *, sizes: list[Size], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of a training step, by torchvision's names.

        `x_B3HW` as `predict.prepare` pads it, `sizes` before padding; a target has boxes (M x 4 px,
        float), labels (M, int64, from 1) and with a mask head masks (M x H x W, uint8).
        """
        assert self.training, "in eval mode call predict or boxes"
        features = self.backbone(x_B3HW)
        proposals, losses = self.rpn(ImageList(x_B3HW, sizes), features, targets)
        _, roi_losses = self.roi_heads(features, proposals, sizes, targets)
        return {**losses, **roi_losses}

    def boxes(
        self, x_B3HW: Tensor, *, sizes: list[Size]
    ) -> tuple[list[BoxOutput], dict[str, Tensor]]:
        """Each slice's raw box-head output, and the feature maps it was read from. Eval mode."""
        assert not self.training, "batch statistics would mix the slices of a batch"
        features = self.backbone(x_B3HW)
        return self.read_boxes(x_B3HW, features, sizes=sizes), features

    def read_boxes(
        self, x_B3HW: Tensor, features: dict[str, Tensor], *, sizes: list[Size]
    ) -> list[BoxOutput]:
        """Each slice's raw box-head output from its feature maps. Eval mode."""
        proposals, _ = self.rpn(ImageList(x_B3HW, sizes), features)
        logits, deltas = self.box_output(features, proposals, sizes=sizes)
        counts = [len(p) for p in proposals]
        parts = zip(
            torch.split(logits, counts), torch.split(deltas, counts), proposals, sizes, strict=True
        )
        return [BoxOutput(*part) for part in parts]

    def box_output(
        self, features: dict[str, Tensor], boxes: list[Tensor], *, sizes: list[Size]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (P x K) and encoded deltas (P x 4K) of all slices' boxes (P x 4 each)."""
        pooled = self.roi_heads.box_roi_pool(features, boxes, sizes)
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, deltas

    def predict(self, images: Sequence[NDArray[np.uint8] | Tensor]) -> list[Prediction]:
        """Lesions of uint8 slices H x W at the model's input size (short side 512 px).

        Raises ModelError if the model yields values that are not finite.
        """
        device = next(self.parameters()).device
        return predict_each(images, run=self._run, device=device)

    def _run(self, x_B3HW: Tensor, sizes: list[Size]) -> list[Prediction]:
        outputs, features = self.boxes(x_B3HW, sizes=sizes)
        found = [output.candidates() for output in outputs]
        return self.lesions(features, found=found, sizes=sizes)

    def lesions(
        self,
        features: dict[str, Tensor],
        *,
        found: list[ranking.Candidates],
        sizes: list[Size],
    ) -> list[Prediction]:
        """The reported lesions of each slice, with mask areas if there is a mask head."""
        chosen = [ranking.lesions(one) for one in found]
        predictions = [
            Prediction(
                logits_C=None,
                boxes_M4=boxes.cpu().numpy(),
                scores_M=scores.cpu().numpy(),
                labels_M=labels.cpu().numpy(),
                mask_px_M=None,
                mask_logits_M1SS=None,
                ranked_N5=None,
                ranked_boxes_N4=None,
            )
            for boxes, scores, labels in chosen
        ]
        if not self.roi_heads.has_mask():
            return predictions
        return [
            replace(
                prediction,
                mask_px_M=np.asarray(areas, dtype=np.int64),
                mask_logits_M1SS=logits.cpu().numpy(),
            )
            for prediction, (logits, areas) in zip(
                predictions, self._masks(features, found=chosen, sizes=sizes), strict=True
            )
        ]

    def _masks(
        self,
        features: dict[str, Tensor],
        *,
        found: list[tuple[Tensor, Tensor, Tensor]],
        sizes: list[Size],
    ) -> list[tuple[Tensor, list[int]]]:
        """Mask logits (M x 1 x 28 x 28) of each slice's lesions, and the areas in px."""
        heads = self.roi_heads
        pooled = heads.mask_roi_pool(features, [boxes for boxes, _, _ in found], sizes)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        own = torch.cat([labels for _, _, labels in found])
        masks = logits[torch.arange(len(own), device=own.device), own, None].split(
            [len(labels) for _, _, labels in found]
        )
        return [
            (logits_M1SS, [int(mask.sum()) for mask in paste(logits_M1SS, boxes_M4, size=size)])
            for (boxes_M4, _, _), logits_M1SS, size in zip(found, masks, sizes, strict=True)
        ]


def paste(logits_M1SS: Tensor, boxes_M4: Tensor, *, size: Size) -> Iterator[Tensor]:
    """Each lesion's mask (H x W, bool) on the slice.

    One at a time: 128 of them pasted at once are 134 MB.
    """
    for logits_1SS, box_4 in zip(logits_M1SS, boxes_M4, strict=True):
        pasted = roi_heads.paste_masks_in_image(logits_1SS[None], box_4[None], size)
        yield pasted[0, 0] > MASK_LOGIT


def _roi_align(arch: Arch, *, cells: int) -> MultiScaleRoIAlign:
    """RoIAlign over all levels, its scales fixed here.

    torchvision would infer them from the first slice that it sees and keep them for all others.
    """
    levels = [str(i) for i in range(len(arch.layers))]
    pool = MultiScaleRoIAlign(levels, output_size=cells, sampling_ratio=ROI_SAMPLING)
    pool.scales = [1 / stride for stride in arch.strides_px]
    exponents = [stride.bit_length() - 1 for stride in arch.strides_px]
    pool.map_levels = initLevelMapper(exponents[0], exponents[-1])
    return pool
