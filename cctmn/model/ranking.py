"""Ranked boxes and lesions, both chosen from the box head's raw output of one slice.

Module S classifies the ranked boxes, and the lesions are reported. Both follow from the same
output, so that a classifier reports lesions by exactly the detector's rule. All functions are pure,
and ties keep their order.

Shape suffixes: P proposals, K classes with background, R candidates (a proposal and a class),
N ranked boxes, M lesions, 4 box (x0 y0 x1 y1 px), 5 feature (score, 4 encoded deltas).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms

from cctmn.errors import ModelError
from cctmn.model.card import LESION_MAX, LESION_MIN_SCORE, LESION_NMS_IOU
from cctmn.model.constants import RANKED_MIN_SCORE, RANKED_NMS_IOU

# Scale of the encoded deltas; torchvision's RoIHeads use the same.
BOX_WEIGHTS: Final = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Every proposal as every lesion class, clipped to the slice, less boxes without area."""

    scores_R: Tensor
    labels_R: Tensor
    boxes_R4: Tensor
    deltas_R4: Tensor
    proposals_R: Tensor  # index of the proposal that each came from
    num_classes: int  # lesion classes; labels are 1..num_classes


def check_finite(*values: Tensor) -> None:
    """Raise ModelError if a value is NaN or infinite, which no 8-bit slice does to a sound model.

    The result is read from the device once for all values.
    """
    if values and not bool(torch.stack([value.isfinite().all() for value in values]).all()):
        raise ModelError("the model yields values that are not finite; its weights are unusable")


def has_area(boxes_X4: Tensor) -> Tensor:
    """Which boxes, in a tensor of any shape, have both sides above 0 px; the author keeps these."""
    return (boxes_X4[..., 2:] > boxes_X4[..., :2]).all(-1)


def top(scores_R: Tensor, *, count: int) -> Tensor:
    """Indices of the `count` highest scores, falling; of equal scores the first ones are taken.

    The scores must not be NaN. torch.topk chooses arbitrarily among ties, and a full stable sort of
    a ResNet-50's half million anchors costs several times as much as this.
    """
    if scores_R.numel() > count:
        least = scores_R.topk(count).values[-1]
        at_least = torch.where(scores_R >= least)[0]
    else:
        at_least = torch.arange(scores_R.numel(), device=scores_R.device)
    order = scores_R[at_least].argsort(descending=True, stable=True)
    return at_least[order[:count]]


def nms_per_class(
    boxes_R4: Tensor, *, scores_R: Tensor, labels_R: Tensor, num_labels: int, iou: float
) -> Tensor:
    """Indices that survive NMS among boxes of their label, by falling score, ties in given order.

    Labels lie below `num_labels`. Boxes are compared label by label and not through torchvision's
    batched_nms: that shifts the boxes of each label by a number taken from the largest box, and the
    rounding decides borderline pairs.
    """
    if num_labels == 1:
        in_order = nms(boxes_R4, scores_R, iou).sort().values
    else:
        kept = []
        for label in range(num_labels):
            of_label = torch.where(labels_R == label)[0]
            kept.append(of_label[nms(boxes_R4[of_label], scores_R[of_label], iou)])
        in_order = torch.cat(kept).sort().values
    return in_order[scores_R[in_order].argsort(descending=True, stable=True)]


def candidates(
    logits_PK: Tensor,
    *,
    deltas_P4K: Tensor,
    proposals_P4: Tensor,
    size_px: tuple[int, int],
) -> Candidates:
    """Decode the box head's output for one slice; `size_px` is its height and width."""
    count, classes = logits_PK.shape
    scores_PC = logits_PK.softmax(-1)[:, 1:]  # C: without background
    boxes_PK4 = BoxCoder(BOX_WEIGHTS).decode(deltas_P4K, [proposals_P4]).reshape(count, classes, 4)
    boxes_R4 = clip_boxes_to_image(boxes_PK4[:, 1:].reshape(-1, 4), size_px)
    deltas_R4 = deltas_P4K.reshape(count, classes, 4)[:, 1:].reshape(-1, 4)
    labels_R = torch.arange(1, classes, device=logits_PK.device).repeat(count)
    proposals_R = torch.arange(count, device=logits_PK.device).repeat_interleave(classes - 1)
    keep = has_area(boxes_R4)
    return Candidates(
        scores_PC.reshape(-1)[keep],
        labels_R[keep],
        boxes_R4[keep],
        deltas_R4[keep],
        proposals_R[keep],
        classes - 1,
    )


def choose(candidates: Candidates, *, count: int) -> Tensor:
    """Indices of the N = `count` candidates that module S reads, by falling score.

    If fewer survive NMS, they are repeated evenly: of K survivors, row i is survivor i * K // N, so
    the order stays. The author repeats them at random lengths. Without any survivor the result is
    empty.
    """
    scores_R, boxes_R4 = candidates.scores_R.detach(), candidates.boxes_R4.detach()
    keep = torch.where(scores_R > RANKED_MIN_SCORE)[0]
    keep = keep[
        nms_per_class(
            boxes_R4[keep],
            scores_R=scores_R[keep],
            labels_R=candidates.labels_R[keep] - 1,
            num_labels=candidates.num_classes,
            iou=RANKED_NMS_IOU,
        )
    ][:count]
    if 0 < keep.numel() < count:
        keep = keep[torch.arange(count, device=keep.device) * keep.numel() // count]
    return keep


def ranked_features(scores_N: Tensor, *, deltas_N4: Tensor, count: int) -> Tensor:
    """The input of module S (`count` x 5) from the scores and deltas of the chosen boxes.

    If no box was chosen, all rows are zero. Gradients flow through scores and deltas, also then (as
    zeros): in distributed training the other workers wait for a gradient of every weight.
    """
    return pad_rows(torch.cat([scores_N[:, None], deltas_N4], dim=1), count=count)


def pad_rows(rows_NX: Tensor, *, count: int) -> Tensor:
    """Append rows of zeros until there are `count`; `choose` gives `count` rows or none."""
    return F.pad(rows_NX, (0, 0, 0, count - len(rows_NX))) if len(rows_NX) < count else rows_NX


def lesions(
    candidates: Candidates, *, nms_iou: float = LESION_NMS_IOU
) -> tuple[Tensor, Tensor, Tensor]:
    """The reported lesions by falling score: boxes_M4, scores_M, labels_M (from 1).

    Of two overlapping lesions of one class, the second is dropped if their IoU exceeds `nms_iou`.
    """
    likely = torch.where(candidates.scores_R > LESION_MIN_SCORE)[0]
    boxes, scores = candidates.boxes_R4[likely], candidates.scores_R[likely]
    labels = candidates.labels_R[likely]
    keep = nms_per_class(
        boxes,
        scores_R=scores,
        labels_R=labels - 1,
        num_labels=candidates.num_classes,
        iou=nms_iou,
    )[:LESION_MAX]
    return boxes[keep], scores[keep], labels[keep]
