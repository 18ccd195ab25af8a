"""Stage 1, the Mask R-CNN lesion detector, built from torchvision's public parts.

In training it gives the five losses, in eval mode the raw box-head output of each slice, from which
`ranking` makes lesions and ranked boxes. `inference` turns these into predictions.

Shape suffixes: B slices, H W px, P proposals, K classes with background, M lesions, A anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import clip_boxes_to_image

from cctmn.model import ranking
from cctmn.model.backbone import CHANNELS, Backbone, Size
from cctmn.model.card import LESION_MAX, LESION_MIN_SCORE, LESION_NMS_IOU, Arch
from cctmn.model.constants import (
    ANCHOR_SIZES_PX,
    ASPECT_RATIOS,
    MASK_CELLS,
    MASK_LAYERS,
    PROPOSALS,
    ROI_BACKGROUND_IOU,
    ROI_CELLS,
    ROI_FOREGROUND_IOU,
    ROI_POSITIVE,
    ROI_SAMPLES,
    ROI_WIDTH,
    RPN_BACKGROUND_IOU,
    RPN_FOREGROUND_IOU,
    RPN_NMS_IOU,
    RPN_POSITIVE,
    RPN_SAMPLES,
)
from cctmn.model.roi_align import RoiAlign

# The two layers of the box head: from pooled features, P x C x S x S, to P x ROI_WIDTH.
BoxLayers = Callable[[Tensor], Tensor]
# Builds the pooling layer of a head from an Arch and the number of cells per side. The layer takes
# feature maps, one tensor of boxes per slice, and the sizes of the slices.
RoiAlignFactory = Callable[[Arch, int], nn.Module]


class Float32RPNHead(rpn.RPNHead):
    """torchvision's head, whose logits and deltas are float32 under autocast too.

    bfloat16 has 8 bits of precision: a box that is decoded in it moves by up to 2 px, its logit
    ties with others, and both losses of the RPN lose what they compare.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits and deltas of each level."""
        logits, deltas = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in deltas]


class RankedRPN(rpn.RegionProposalNetwork):
    """torchvision's RPN, except that proposals are ranked by the raw objectness logit.

    The sigmoid of large logits saturates in float32, and the ties would reorder proposals
    (method.md, parity). Ties keep the order of the anchors. No proposal is dropped for its size:
    the author's smallest side is 0 px, so boxes without area take places among the proposals. The
    box head makes nothing of them, for a box that is decoded from one has no area either.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The proposals of each slice, P x 4, by falling logit; in training also the losses.

        In eval mode only the anchors with the highest logits are decoded: a few thousand of a
        ResNet-50's 652,800.
        """
        if self.training:
            proposals, losses = super().forward(images, features, targets)
            return proposals, losses
        maps = list(features.values())
        logits, deltas = self.head(maps)
        ranking.check_finite(*logits, *deltas)
        anchors_A4 = self.anchor_generator(images, maps)[0]  # the same for each slice of the batch
        by_level = [per_anchor(x, width=1)[..., 0] for x in logits]
        levels = [logits_BA.shape[1] for logits_BA in by_level]
        logits_BA = torch.cat(by_level, dim=1)
        deltas_BA4 = torch.cat([per_anchor(x, width=4) for x in deltas], dim=1)
        chosen = []
        for logits_A, deltas_A4, size in zip(
            logits_BA, deltas_BA4, images.image_sizes, strict=True
        ):
            index, groups = self._highest(logits_A, levels=levels)
            boxes = self.box_coder.decode(deltas_A4[index], [anchors_A4[index]])[:, 0]
            chosen.append(self._best(boxes, logits=logits_A[index], groups=groups, size=size)[0])
        return chosen, {}

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[Size],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The proposals of each slice that NMS keeps, of B x A x 4, and their logits, falling.

        torchvision calls this in training, with the decoded boxes of all anchors.
        """
        logits_BA = objectness.detach().reshape(proposals.shape[0], -1)
        ranking.check_finite(logits_BA, proposals)
        chosen = []
        for boxes_A4, logits_A, size in zip(proposals, logits_BA, image_shapes, strict=True):
            index, groups = self._highest(logits_A, levels=num_anchors_per_level)
            chosen.append(
                self._best(boxes_A4[index], logits=logits_A[index], groups=groups, size=size)
            )
        return [boxes for boxes, _ in chosen], [logits for _, logits in chosen]

    def _highest(self, logits_A: Tensor, *, levels: list[int]) -> tuple[Tensor, Tensor]:
        """The anchors with the highest logits of each level, and their levels."""
        best, level_of, start = [], [], 0
        for level, anchors in enumerate(levels):
            of_level = ranking.top(logits_A[start : start + anchors], count=self.pre_nms_top_n())
            best.append(of_level + start)
            level_of.append(torch.full_like(of_level, level))
            start += anchors
        return torch.cat(best), torch.cat(level_of)

    def _best(
        self, boxes: Tensor, *, logits: Tensor, groups: Tensor, size: Size
    ) -> tuple[Tensor, Tensor]:
        """The boxes, clipped to the slice, that NMS within their level keeps, and their logits."""
        boxes = clip_boxes_to_image(boxes, size)
        keep = ranking.nms_per_class(
            boxes,
            scores_R=logits,
            labels_R=groups,
            num_labels=len(self.anchor_generator.sizes),
            iou=self.nms_thresh,
        )
        keep = keep[: self.post_nms_top_n()]
        return boxes[keep], logits[keep]


def per_anchor(x_BNHW: Tensor, *, width: int) -> Tensor:
    """Order the head's output of one level by anchor: B x A x `width`."""
    return x_BNHW.permute(0, 2, 3, 1).reshape(len(x_BNHW), -1, width)


@dataclass(frozen=True, eq=False)
class BoxOutput:
    """The box head's raw output for one slice, before any threshold or NMS."""

    logits_PK: Tensor
    deltas_P4K: Tensor
    proposals_P4: Tensor
    size_px: Size

    def candidates(self) -> ranking.Candidates:
        """The decoded box of every proposal and lesion class."""
        return ranking.candidates(
            self.logits_PK,
            deltas_P4K=self.deltas_P4K,
            proposals_P4=self.proposals_P4,
            size_px=self.size_px,
        )


class Detector(nn.Module):
    """Mask R-CNN of an `Arch`, whose image classes are not used here.

    `roi_align` builds the pooling layer of a head; a faster one may take its place.
    """

    def __init__(self, arch: Arch, *, roi_align: RoiAlignFactory | None = None) -> None:
        super().__init__()
        self.arch = arch
        make_roi_align = roi_align or RoiAlign
        self.backbone = Backbone(arch)
        levels = len(arch.layers)
        anchors = AnchorGenerator((ANCHOR_SIZES_PX,) * levels, (ASPECT_RATIOS,) * levels)
        self.rpn = RankedRPN(
            anchors,
            Float32RPNHead(CHANNELS, anchors.num_anchors_per_location()[0]),
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
                "mask_roi_pool": make_roi_align(arch, MASK_CELLS),
                "mask_head": MaskRCNNHeads(CHANNELS, layers, dilation=1),
                "mask_predictor": MaskRCNNPredictor(layers[-1], layers[-1], classes),
            }
        self.roi_heads = roi_heads.RoIHeads(
            make_roi_align(arch, ROI_CELLS),
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

    @property
    def lesion_nms_iou(self) -> float:
        """The NMS threshold by which reported lesions are chosen; the ranked boxes have their own.

        The weights do not hold it: `checkpoint.load` takes it from the card.
        """
        return float(self.roi_heads.nms_thresh)

    @lesion_nms_iou.setter
    def lesion_nms_iou(self, iou: float) -> None:
        self.roi_heads.nms_thresh = iou

    def forward(
        self, x_B3HW: Tensor, *, sizes: list[Size], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of a training step, by torchvision's names.

        `x_B3HW` is normalised and padded by `inference.normalise_and_pad`, and `sizes` are those
        before padding. A target has boxes (M x 4 px, float), labels (M, int64, from 1) and, with a
        mask head, masks (M x H x W, uint8).
        """
        assert self.training, "in eval mode call box_outputs"
        features = self.backbone(x_B3HW)
        proposals, losses = self.rpn(ImageList(x_B3HW, sizes), features, targets)
        _, roi_losses = self.roi_heads(features, proposals, sizes, targets)
        return {**losses, **roi_losses}

    def box_outputs(
        self,
        x_B3HW: Tensor,
        features: dict[str, Tensor],
        *,
        sizes: list[Size],
        box_layers: BoxLayers | None = None,
    ) -> list[BoxOutput]:
        """The raw box-head output of each slice from its feature maps, in eval mode.

        `box_layers` may take the place of the network's own. Raises ModelError if a value is not
        finite.
        """
        assert not self.rpn.training, "batch statistics would mix the slices of a batch"
        every, _ = self.rpn(ImageList(x_B3HW, sizes), features)
        # A proposal without area makes no box with area, whatever its deltas.
        proposals = [boxes_P4[ranking.has_area(boxes_P4)] for boxes_P4 in every]
        logits, deltas = self.box_head(features, proposals, sizes=sizes, box_layers=box_layers)
        ranking.check_finite(logits, deltas)
        counts = [len(p) for p in proposals]
        parts = zip(
            torch.split(logits, counts), torch.split(deltas, counts), proposals, sizes, strict=True
        )
        return [BoxOutput(*part) for part in parts]

    def box_head(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        *,
        sizes: list[Size],
        box_layers: BoxLayers | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits (P x K) and encoded deltas (P x 4K) of the boxes (P x 4) of all slices."""
        pooled = self.roi_heads.box_roi_pool(features, boxes, sizes)
        layers = self.roi_heads.box_head if box_layers is None else box_layers
        logits, deltas = self.roi_heads.box_predictor(layers(pooled))
        return logits, deltas
