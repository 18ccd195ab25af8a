"""What `ranking` does for one slice, for all slices of a batch at sizes that the host knows.

What a slice has too few of is filled up with rows that are marked as invalid.

Shape suffixes: B slices, R candidates (a proposal and a class), C lesion classes, X any rows,
4 box (x0 y0 x1 y1 px).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torchvision.ops import nms

from cctmn.model.waits import host_waits

# NMS compares each box with all others of its call, in a bit table of this size squared: 34 MB.
NMS_BOXES: Final = 16_384


@dataclass(frozen=True, eq=False)
class Rows:
    """As many boxes of each slice, by falling score, of which the invalid ones come last."""

    index_BX: Tensor
    valid_BX: Tensor

    def of(self, values_BR: Tensor) -> Tensor:
        """The values of these rows, B x X or B x X x 4, with zeros in invalid rows."""
        index, valid = self.index_BX, self.valid_BX
        if values_BR.ndim == 3:
            index = index[..., None].expand(-1, -1, values_BR.shape[2])
            valid = valid[..., None]
        return values_BR.gather(1, index).masked_fill(~valid, 0)


@dataclass(frozen=True, eq=False)
class BatchCandidates:
    """`ranking.Candidates` of all slices, with those that do not count marked as invalid."""

    scores_BR: Tensor
    boxes_BR4: Tensor
    deltas_BR4: Tensor
    valid_BR: Tensor
    num_classes: int  # candidate r has the label 1 + r % num_classes
    span_px: int  # above every coordinate

    def best(self, *, min_score: float, iou: float, count: int) -> Rows:
        """The `count` best candidates above a score that survive NMS within their class."""
        valid_BR = self.valid_BR & (self.scores_BR > min_score)
        labels_C = torch.arange(self.num_classes, device=valid_BR.device)
        kept_BR = nms_in_groups(
            torch.where(valid_BR[..., None], self.boxes_BR4, 0.0),
            scores_BX=self.scores_BR,
            groups_X=labels_C.repeat(valid_BR.shape[1] // self.num_classes),
            num_groups=self.num_classes,
            span_px=self.span_px,
            iou=iou,
        )
        return best_first(self.scores_BR, kept_BR & valid_BR, count=count)


def nms_in_groups(
    boxes_BX4: Tensor,
    *,
    scores_BX: Tensor,
    groups_X: Tensor,
    num_groups: int,
    span_px: int,
    iou: float,
) -> Tensor:
    """Which boxes survive NMS among those of their slice and group, B x X.

    All coordinates are at least 0 and below `span_px`. A box without area neither drops another nor
    is dropped. The boxes of each slice and group are shifted to a place of their own. In float64
    the shift rounds coordinates by less than 2^-28 px.
    """
    batch, count, _ = boxes_BX4.shape
    place_BX = torch.arange(batch, device=boxes_BX4.device)[:, None] * num_groups + groups_X
    shifted_BX4 = boxes_BX4.double() + (place_BX * span_px)[..., None]
    scores_BX = scores_BX.double()  # torchvision wants both alike
    kept_BX = torch.zeros_like(scores_BX, dtype=torch.bool)
    slices = max(1, NMS_BOXES // count)
    for first in range(0, batch, slices):
        part = slice(first, first + slices)
        with host_waits():
            keep = nms(shifted_BX4[part].flatten(0, 1), scores_BX[part].flatten(), iou)
        kept_BX[part].view(-1).index_fill_(0, keep, True)
    return kept_BX


def best_first(scores_BX: Tensor, kept_BX: Tensor, *, count: int) -> Rows:
    """At most `count` rows of each slice by falling score, ties in the given order."""
    falling = scores_BX.masked_fill(~kept_BX, -torch.inf).sort(dim=1, descending=True, stable=True)
    return Rows(falling.indices[:, :count], falling.values[:, :count] > -torch.inf)


def clip(boxes_X4: Tensor, limits_X4: Tensor) -> Tensor:
    """Boxes within their slice; its limits are its width and height, twice."""
    return boxes_X4.clamp(min=0).minimum(limits_X4)
