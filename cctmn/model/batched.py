"""The forward pass of several slices at once, as a GPU wants it.

A GPU is idle while it waits for the host, so the host asks it for as little as possible. There is
one upload and one download per batch. In between, all slices and pyramid levels share each
operation, at sizes that the host knows beforehand: what a slice has too few of is filled up with
rows that are marked as invalid. The host waits only inside `host_waits`: for each NMS, because
torchvision's kernel returns as many rows as it keeps; for RoIAlign of several pyramid levels; for
the largest number of lesions, if masks are asked for; and for the download.

The rules are those of `ranking` and `detector`, and so are ties and the steps of the arithmetic.
NMS compares boxes in float64 here, where slices are told apart by shifting their boxes.

Shape suffixes: B slices, H W px, A anchors of a level, P proposals, K classes with background,
C lesion classes, R candidates (a proposal and a class), M lesions, N ranked boxes, S cells of a
mask, 4 box (x0 y0 x1 y1 px), 5 feature (score, 4 encoded deltas), X any rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from cctmn.contract import MEAN, STD
from cctmn.model import ranking
from cctmn.model.backbone import Size
from cctmn.model.batched_ranking import (
    BatchCandidates,
    Rows,
    best_first,
    clip,
    nms_in_groups,
)
from cctmn.model.card import LESION_MAX, LESION_MIN_SCORE
from cctmn.model.classifier import Classifier
from cctmn.model.constants import RANKED_MIN_SCORE, RANKED_NMS_IOU
from cctmn.model.detector import BoxLayers, Detector, per_anchor
from cctmn.model.waits import host_waits

ANCHOR_SHAPES: Final = 8  # for which anchors are kept; 10 MB each for a ResNet-50


class BatchedNet:
    """The network of a `Predictor` for batches of one padded shape.

    `features` gives the feature maps of normalised slices in float32, and `box_layers` the two
    layers of the box head. On CUDA, a batch is filled up to a power of two with blank slices, so
    that cuDNN meets few shapes.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        classifier: Classifier | None,
        lesion_nms_iou: float,
        features: Callable[[Tensor], dict[str, Tensor]],
        box_layers: BoxLayers | None,
    ) -> None:
        self._detector = detector
        self._classifier = classifier
        self._nms_iou = lesion_nms_iou
        self._features = features
        self._box_layers = box_layers
        self._device = next(detector.parameters()).device
        self._anchors: dict[Size, list[Tensor]] = {}
        self._staging = torch.empty(0, dtype=torch.uint8)
        # The value of each grey level in each channel: a table rounds alike on every device.
        levels_256 = torch.arange(256).float() / 255
        normalised = (levels_256[:, None] - torch.tensor(MEAN)) / torch.tensor(STD)
        self._normalised_256x3 = normalised.to(self._device)
        # A tensor, for a GPU multiplies by the rounded reciprocal of a number of the host.
        self._box_weights_4 = torch.tensor(ranking.BOX_WEIGHTS).to(self._device)

    def predict(
        self, images: Sequence[Tensor], *, shape: Size, masks: bool
    ) -> list[dict[str, NDArray[Any]]]:
        """The fields of a `Prediction` of each uint8 slice (H x W); `shape` is the padded one.

        `masks` asks for mask logits. Raises ModelError if the model yields values that are not
        finite.
        """
        x_B3HW, limits_B4 = self._upload(images, shape=shape)
        features = self._features(x_B3HW)
        checked: list[Tensor] = []  # every value of these must be finite
        proposals, valid = self._proposals(x_B3HW, features, limits_B4=limits_B4, checked=checked)
        candidates = self._candidates(
            features,
            proposals,
            valid_BP=valid,
            limits_B4=limits_B4,
            span_px=max(shape) + 1,
            checked=checked,
        )

        # 1. Lesions.
        lesions = candidates.best(min_score=LESION_MIN_SCORE, iou=self._nms_iou, count=LESION_MAX)
        boxes_BM4 = lesions.of(candidates.boxes_BR4)
        labels_BM = lesions.index_BX % candidates.num_classes + 1
        parts = {
            "count": lesions.valid_BX.sum(1),
            "boxes_M4": boxes_BM4,
            "scores_M": lesions.of(candidates.scores_BR),
            "labels_M": labels_BM,
        }

        # 2. Module S.
        if self._classifier is not None:
            parts |= self._classified(self._classifier, candidates)
            checked.append(parts["logits_C"])

        # 3. Mask head, on as many lesions per slice as the slice with most of them has.
        mask_logits: Tensor | None = None
        if masks and self._detector.roi_heads.has_mask():
            with host_waits():
                most = int(parts["count"].amax())
            mask_logits = self._masks(
                features, boxes_BM4[:, :most], labels_BM=labels_BM[:, :most], size=shape
            )
        return _download(parts, mask_logits, checked=checked, slices=len(images))

    def _upload(self, images: Sequence[Tensor], *, shape: Size) -> tuple[Tensor, Tensor]:
        """Normalised and padded slices (B x 3 x H x W), and the limits of their boxes (B x 4)."""
        height, width = shape
        count = self._num_filled(len(images))
        pixels = count * height * width
        if self._staging.numel() < pixels + 16 * count:
            self._staging = torch.empty(
                pixels + 16 * count, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
            )
        # 1. Pixels and limits, one after the other.
        packed = self._staging[: pixels + 16 * count]
        host_BHW = packed[:pixels].view(count, height, width)
        limits = torch.tensor([(width, height, width, height)] * count, dtype=torch.float32)
        for i, image in enumerate(images):
            rows, columns = image.shape
            host_BHW[i, :rows, :columns].copy_(image)
            limits[i] = torch.tensor((columns, rows, columns, rows))
        host_BHW[len(images) :].zero_()
        packed[pixels:].copy_(limits.view(torch.uint8).flatten())
        # 2. One copy. The download ends after it, so that the next batch may overwrite the host's.
        on_device = packed.to(self._device, non_blocking=True)
        grey_BHW = on_device[:pixels].view(count, height, width)
        limits_B4 = on_device[pixels:].view(torch.float32).view(count, 4)
        # 3. What is outside a slice is zero after it was normalised.
        x_BHW3 = F.embedding(grey_BHW.int(), self._normalised_256x3)
        if any(tuple(image.shape) != shape for image in images):
            row_H, column_W = (torch.arange(n, device=self._device) for n in shape)
            row_in_BH1 = (row_H < limits_B4[:, 3:])[:, :, None]
            column_in_B1W = (column_W < limits_B4[:, 2:3])[:, None, :]
            x_BHW3 = torch.where((row_in_BH1 & column_in_B1W)[..., None], x_BHW3, 0.0)
        return x_BHW3.permute(0, 3, 1, 2), limits_B4

    def _num_filled(self, count: int) -> int:
        """The size of a batch with the blank slices that fill it up."""
        return 1 << (count - 1).bit_length() if self._device.type == "cuda" else count

    def _proposals(
        self,
        x_B3HW: Tensor,
        features: dict[str, Tensor],
        *,
        limits_B4: Tensor,
        checked: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The proposals of each slice (B x P x 4), and which of them are valid (B x P)."""
        rpn = self._detector.rpn
        maps = list(features.values())
        logits, deltas = rpn.head(maps)
        checked += [*logits, *deltas]
        # 1. The anchors with the highest logits of each level; a stable sort keeps ties in order.
        scores, chosen, anchors, groups = [], [], [], []
        for level, anchors_A4 in enumerate(self._anchors_of(x_B3HW, maps)):
            logits_BA = per_anchor(logits[level], width=1)[..., 0]
            falling = logits_BA.sort(dim=1, descending=True, stable=True)
            index_BX = falling.indices[:, : rpn.pre_nms_top_n()]
            scores.append(falling.values[:, : rpn.pre_nms_top_n()])
            deltas_BA4 = per_anchor(deltas[level], width=4)
            chosen.append(deltas_BA4.gather(1, index_BX[..., None].expand(-1, -1, 4)))
            anchors.append(anchors_A4[index_BX])
            groups.append(torch.full(index_BX.shape[1:], level, device=index_BX.device))
        scores_BX = torch.cat(scores, dim=1)
        decoded = self._decode(torch.cat(chosen, dim=1), torch.cat(anchors, dim=1))
        boxes_BX4 = clip(decoded, limits_B4[:, None])
        # 2. NMS within each level, then the best of all levels.
        kept_BX = nms_in_groups(
            boxes_BX4,
            scores_BX=scores_BX,
            groups_X=torch.cat(groups),
            num_groups=len(groups),
            span_px=max(x_B3HW.shape[-2:]) + 1,
            iou=rpn.nms_thresh,
        )
        best = best_first(scores_BX, kept_BX, count=rpn.post_nms_top_n())
        proposals_BP4 = best.of(boxes_BX4)
        # Invalid rows are boxes of zeros, so they have no area either.
        valid_BP = ranking.has_area(proposals_BP4)
        return proposals_BP4.masked_fill(~valid_BP[..., None], 0), valid_BP

    def _anchors_of(self, x_B3HW: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each level (A x 4), which all slices of one padded shape share."""
        height, width = x_B3HW.shape[-2:]
        if (height, width) not in self._anchors:
            if len(self._anchors) >= ANCHOR_SHAPES:
                self._anchors.clear()
            generator = self._detector.rpn.anchor_generator
            of_slice = generator(ImageList(x_B3HW[:1], [(height, width)]), maps)[0]
            per_cell = generator.num_anchors_per_location()
            counts = [m.shape[2] * m.shape[3] * n for m, n in zip(maps, per_cell, strict=True)]
            self._anchors[height, width] = list(of_slice.split(counts))
        return self._anchors[height, width]

    def _candidates(
        self,
        features: dict[str, Tensor],
        proposals_BP4: Tensor,
        *,
        valid_BP: Tensor,
        limits_B4: Tensor,
        span_px: int,
        checked: list[Tensor],
    ) -> BatchCandidates:
        batch, count, _ = proposals_BP4.shape
        logits, deltas = self._detector.box_head(
            features,
            list(proposals_BP4.unbind()),
            sizes=[],  # the pooling layer has its scales
            box_layers=self._box_layers,
        )
        checked += [logits, deltas]
        classes = logits.shape[1] - 1
        scores_BPC = logits.view(batch, count, -1).softmax(-1)[..., 1:]
        deltas_BPC4 = deltas.view(batch, count, -1, 4)[:, :, 1:]
        decoded = self._decode(deltas_BPC4 / self._box_weights_4, proposals_BP4[:, :, None])
        boxes_BPC4 = clip(decoded, limits_B4[:, None, None])
        valid_BPC = valid_BP[..., None] & ranking.has_area(boxes_BPC4)
        return BatchCandidates(
            scores_BPC.flatten(1),
            boxes_BPC4.flatten(1, 2),
            deltas_BPC4.flatten(1, 2),
            valid_BPC.flatten(1),
            num_classes=classes,
            span_px=span_px,
        )

    def _decode(self, deltas_X4: Tensor, boxes_X4: Tensor) -> Tensor:
        """The boxes that deltas without weights make of others, as torchvision's BoxCoder does.

        BoxCoder itself uploads a number each time that it is called.
        """
        size_X2 = boxes_X4[..., 2:] - boxes_X4[..., :2]
        centre_X2 = boxes_X4[..., :2] + 0.5 * size_X2
        largest = self._detector.rpn.box_coder.bbox_xform_clip
        new_centre_X2 = deltas_X4[..., :2] * size_X2 + centre_X2
        half_X2 = 0.5 * (deltas_X4[..., 2:].clamp(max=largest).exp() * size_X2)
        return torch.cat([new_centre_X2 - half_X2, new_centre_X2 + half_X2], dim=-1)

    def _classified(self, classifier: Classifier, candidates: BatchCandidates) -> dict[str, Tensor]:
        """Logits, and what module S made them from."""
        count = classifier.arch.ranked
        best = candidates.best(min_score=RANKED_MIN_SCORE, iou=RANKED_NMS_IOU, count=count)
        # Of K survivors, row i is survivor i * K // N, as `ranking.choose` has it.
        survivors_B1 = best.valid_BX.sum(1, keepdim=True)
        row_N = torch.arange(count, device=survivors_B1.device)
        row_BN = row_N * survivors_B1 // count
        chosen = Rows(
            best.index_BX.gather(1, row_BN), (survivors_B1 > 0).expand(-1, count).contiguous()
        )
        features_BN5 = torch.cat(
            [
                chosen.of(candidates.scores_BR)[..., None],
                chosen.of(candidates.deltas_BR4),
            ],
            dim=2,
        )
        return {
            "logits_C": classifier.module_s(features_BN5.flatten(1)),
            "ranked_features_N5": features_BN5,
            "ranked_boxes_N4": chosen.of(candidates.boxes_BR4),
        }

    def _masks(
        self, features: dict[str, Tensor], boxes_BM4: Tensor, *, labels_BM: Tensor, size: Size
    ) -> Tensor:
        """The mask logits of the lesions' own classes, B x M x 1 x S x S."""
        batch, most, _ = boxes_BM4.shape
        heads = self._detector.roi_heads
        pooled = heads.mask_roi_pool(features, list(boxes_BM4.unbind()), [size] * batch)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        every = torch.arange(batch * most, device=logits.device)
        own: Tensor = logits[every, labels_BM.flatten(), None]
        return own.view(batch, most, *own.shape[1:])


def _download(
    parts: Mapping[str, Tensor],
    mask_logits: Tensor | None,
    *,
    checked: Sequence[Tensor],
    slices: int,
) -> list[dict[str, NDArray[Any]]]:
    """Copy all results to the host at once, as float32, and take those of each slice.

    float32 holds labels and counts exactly. The smallest and largest value of each tensor of
    `checked` come along: they are not finite if any value is not.
    """
    extremes = [end for tensor in checked for end in torch.aminmax(tensor)]
    every = [*parts.values(), *([] if mask_logits is None else [mask_logits])]
    packed = torch.cat([torch.stack(extremes), *(part.reshape(-1).float() for part in every)])
    with host_waits():
        flat = packed.cpu().numpy()
    ends = np.cumsum([len(extremes), *(part.numel() for part in every)])
    of_extremes, *arrays = np.split(flat, ends[:-1])
    ranking.check_finite(torch.from_numpy(of_extremes))
    shaped = [array.reshape(part.shape) for array, part in zip(arrays, every, strict=True)]
    by_name = dict(zip(parts, shaped, strict=False))
    results = []
    for i in range(slices):
        fields = {name: array[i] for name, array in by_name.items()}
        count = int(fields.pop("count"))
        for name in ("boxes_M4", "scores_M", "labels_M"):
            fields[name] = fields[name][:count]
        if mask_logits is not None:
            fields["mask_logits_M1SS"] = shaped[-1][i, :count]
        results.append(fields)
    return results
