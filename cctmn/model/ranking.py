"""From the box head's raw output to the two lists that are read from it.

In: class logits, encoded boxes and proposals of one slice. Out: the ranked boxes that module S
classifies, and the lesions that are reported; both follow from the same output, so that a
classifier reports lesions by exactly the detector's rule. Pure functions, ties kept in order.

Shape suffixes: P proposals, K classes with background, R candidates (a proposal and a class),
N ranked boxes, M lesions, 4 box (x0 y0 x1 y1 px), 5 feature (score, 4 encoded deltas).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms

from cctmn.errors import ModelError
from cctmn.model.card import LESION_MAX, LESION_MIN_SCORE, LESION_NMS_IOU

RANKED_NMS_IOU: Final = 0.75  # method.md, stage 2
RANKED_MIN_SCORE: Final = -0.01  # method.md, stage 2: below any probability, so all are accepted
# Scale of the encoded deltas; torchvision's RoIHeads use the same.
BOX_WEIGHTS: Final = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Every proposal as every lesion class, clipped to the slice, boxes without area dropped."""

    scores_R: Tensor
    labels_R: Tensor
    boxes_R4: Tensor
    deltas_R4: Tensor
    proposals_R: Tensor  # index of the proposal that each came from


def check_finite(*values: Tensor) -> None:
    """Raise ModelError if a value is NaN or infinite: no 8-bit slice does that to a sound model."""
    if not all(bool(value.isfinite().all()) for value in values):
        raise ModelError("the model yields values that are not finite; its weights are unusable")


def has_area(boxes_R4: Tensor) -> Tensor:
    """Mask of the boxes whose sides are both above 0 px, the only ones that the author keeps."""
    return (boxes_R4[:, 2] > boxes_R4[:, 0]) & (boxes_R4[:, 3] > boxes_R4[:, 1])


def top(scores_R: Tensor, *, count: int) -> Tensor:
    """Indices of the `count` highest scores, falling; of equal ones the first. No NaN.

    torch.topk picks among ties as it likes, and a full stable sort of a ResNet-50's half million
    anchors costs several times as much as this.
    """
    if scores_R.numel() > count:
        least = scores_R.topk(count).values[-1]
        at_least = torch.where(scores_R >= least)[0]
    else:
        at_least = torch.arange(scores_R.numel(), device=scores_R.device)
    order = scores_R[at_least].argsort(descending=True, stable=True)
    return at_least[order[:count]]


def suppress(boxes_R4: Tensor, *, scores_R: Tensor, groups_R: Tensor, iou: float) -> Tensor:
    """Indices that survive NMS within their group, by falling score, ties in their given order.

    Group by group and not through torchvision's batched_nms: that shifts the boxes of each group
    by a number taken from the largest box, and the rounding decides borderline pairs.
    """
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes_R4.device)]
    for group in sorted(set(groups_R.tolist())):
        of_group = torch.where(groups_R == group)[0]
        kept.append(of_group[nms(boxes_R4[of_group], scores_R[of_group], iou)])
    in_order = torch.cat(kept).sort().values
    return in_order[scores_R[in_order].argsort(descending=True, stable=True)]


def candidates(
    logits_PK: Tensor,
    *,
    deltas_P4K: Tensor,
    proposals_P4: Tensor,
    size_px: tuple[int, int],
) -> Candidates:
    """Decode the box head's output for one slice of `size_px` (height, width)."""
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
    )


def choose(found: Candidates, *, count: int) -> Tensor:
    """Indices of the candidates that module S sees, by falling score: N = `count`, or none at all.

    Fewer than N survivors are spread evenly: with K of them row i repeats survivor i * K // N, so
    the order stays. The author repeats at random lengths.
    """
    scores_R, boxes_R4 = found.scores_R.detach(), found.boxes_R4.detach()
    keep = torch.where(scores_R > RANKED_MIN_SCORE)[0]
    keep = keep[
        suppress(
            boxes_R4[keep],
            scores_R=scores_R[keep],
            groups_R=found.labels_R[keep],
            iou=RANKED_NMS_IOU,
        )
    ][:count]
    if 0 < keep.numel() < count:
        keep = keep[torch.arange(count, device=keep.device) * keep.numel() // count]
    return keep


def ranked(found: Candidates, *, count: int) -> tuple[Tensor, Tensor]:
    """The input of module S: features_N5 by falling score, and their boxes_N4. N = `count`.

    Without any survivor all rows are zero. Gradients flow through scores and deltas, not through
    the choice.
    """
    keep = choose(found, count=count)
    if keep.numel() == 0:
        return found.deltas_R4.new_zeros(count, 5), found.boxes_R4.new_zeros(count, 4)
    features_N5 = torch.cat([found.scores_R[keep, None], found.deltas_R4[keep]], dim=1)
    return features_N5, found.boxes_R4[keep].detach()


def lesions(found: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """The reported lesions by falling score: boxes_M4, scores_M, labels_M (from 1)."""
    likely = torch.where(found.scores_R > LESION_MIN_SCORE)[0]
    boxes, scores, labels = found.boxes_R4[likely], found.scores_R[likely], found.labels_R[likely]
    keep = suppress(boxes, scores_R=scores, groups_R=labels, iou=LESION_NMS_IOU)[:LESION_MAX]
    return boxes[keep], scores[keep], labels[keep]
