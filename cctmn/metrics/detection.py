"""Lesions found and lesions there, image by image in; average precisions (0..1) out.

The published AP is the mean of one AP an image, by a rule of its own (`image_ap`). COCO's pools the
detections of all images and pairs them otherwise, so the two differ and go by their own names.
Masks are run-length encoded at once: 128 of 512 x 512 px would be 33 MB a slice.

Shape suffixes: M predictions of an image by falling score, T its true lesions; masks H x W px.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["mask", "box"]  # what overlaps

# Hundredths, not 0.5 + 0.05 n: an IoU that is exactly at a threshold then compares as equal.
IOUS: Final = tuple(hundredths / 100 for hundredths in range(50, 100, 5))
AP50: Final = IOUS.index(0.5)
AP75: Final = IOUS.index(0.75)


@dataclass(frozen=True, eq=False)
class Instances:
    """The lesions of one image, as predicted or as drawn by hand; the masks have the image's size.

    Plain values, so that they can be gathered from several processes.
    """

    masks: list[dict[str, Any]]  # COCO's compressed run lengths, see `encode`
    labels_M: NDArray[np.int64]  # from 1, into the lesion classes
    scores_M: NDArray[np.float32]  # 0..1, in any order; of truth: ones, and never read
    boxes_M4: NDArray[np.float32] | None = None  # x0 y0 x1 y1 px; None where masks alone count

    def __post_init__(self) -> None:
        assert len(self.labels_M) == len(self.scores_M)
        assert self.boxes_M4 is None or len(self.boxes_M4) == len(self.labels_M)
        assert len(self.masks) == len(self.labels_M) or self.boxes_M4 is not None

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """COCO's form of the boxes: corner and sides."""
        assert self.boxes_M4 is not None
        boxes_M4 = self.boxes_M4.astype(np.float64)
        return np.concatenate([boxes_M4[:, :2], boxes_M4[:, 2:] - boxes_M4[:, :2]], axis=1)


def encode(masks_MHW: NDArray[np.uint8] | NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Run lengths of masks; whatever is not 0 belongs to the lesion."""
    # One by one: the column order that the encoder asks for would otherwise copy the whole stack.
    return [rle.encode(np.asfortranarray(mask_HW != 0).view(np.uint8)) for mask_HW in masks_MHW]


def image_ap(found: Instances, truth: Instances, *, iou: float) -> float:
    """The published AP of one image at one threshold, all classes in one ranking.

    1 if nothing is there and nothing is found, 0 if only one of the two. Otherwise every true
    lesion takes, of the predictions of its class that overlap it by MORE than `iou`, the one that
    overlaps it most, whatever that one's score. Predictions nobody took are false. AP is the area
    under precision by recall, where precision is the best at this recall or a higher one.
    """
    return _ap(_overlaps(found, truth), iou=iou)


def summary(
    found: Sequence[Instances], truth: Sequence[Instances], *, classes: tuple[str, ...]
) -> dict[str, float]:
    """`image_ap50 _ap75 _map` as published, `coco_ap50 _ap75 _map` by COCO; map: 0.50:0.05:0.95.

    COCO averages over the classes that the truth has; without any its values are nan, and so is
    `coco_ap50_<class>` of a class that the truth lacks.
    """
    assert len(found) == len(truth) > 0, (len(found), len(truth))
    image = [float(np.mean(aps_I)) for aps_I in image_aps(found, truth)]
    coco = _coco_precision(found, truth, classes=classes)
    return {
        "image_ap50": image[AP50],
        "image_ap75": image[AP75],
        "image_map": float(np.mean(image)),
        "coco_ap50": _known_mean(coco[AP50]),
        "coco_ap75": _known_mean(coco[AP75]),
        "coco_map": _known_mean(coco),
        **{f"coco_ap50_{name}": _known_mean(coco[AP50, :, k]) for k, name in enumerate(classes)},
    }


def image_aps(
    found: Sequence[Instances], truth: Sequence[Instances], *, kind: Kind = "mask"
) -> NDArray[np.float64]:
    """The published AP of every image at each of IOUS."""
    overlaps = [_overlaps(*pair, kind=kind) for pair in zip(found, truth, strict=True)]
    return np.array([[_ap(iou_MT, iou=iou) for iou_MT in overlaps] for iou in IOUS])


def _overlaps(found: Instances, truth: Instances, *, kind: Kind = "mask") -> NDArray[np.float64]:
    """IoU of predictions, by falling score, and true lesions: M x T; 0 where the classes differ."""
    shape = len(found.labels_M), len(truth.labels_M)
    if 0 in shape:
        return np.zeros(shape)
    if kind == "box":
        iou_MT = rle.iou(found.boxes_xywh, truth.boxes_xywh, [False] * shape[1])
    else:
        # Of two sizes pycocotools makes an IoU of -1, which would pass for a miss.
        assert len({tuple(mask["size"]) for mask in (*found.masks, *truth.masks)}) == 1
        iou_MT = rle.iou(found.masks, truth.masks, [False] * shape[1])
    iou_MT[found.labels_M[:, None] != truth.labels_M] = 0
    return iou_MT[np.argsort(-found.scores_M, kind="stable")]


def _ap(iou_MT: NDArray[np.float64], *, iou: float) -> float:
    found, there = iou_MT.shape
    if not found or not there:
        return float(found == there)
    # Of equal overlaps the better ranked; the author leaves that to an unstable sort. A prediction
    # that several lesions take (they would have to overlap one another) is one hit.
    taken_T = iou_MT.argmax(axis=0)
    hit_M = np.zeros(found, dtype=bool)
    hit_M[taken_T[iou_MT.max(axis=0) > iou]] = True
    precision_M = np.cumsum(hit_M) / np.arange(1, found + 1)
    best_M = np.maximum.accumulate(precision_M[::-1])[::-1]
    return float(best_M[hit_M].sum() / there)  # recall grows by 1 / there at every hit


def _coco_precision(
    found: Sequence[Instances], truth: Sequence[Instances], *, classes: tuple[str, ...]
) -> NDArray[np.float64]:
    """IoU threshold x 101 recalls x class; -1 where a class is not in the truth."""
    evaluation = matched(found, truth, classes=classes)
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


def matched(
    found: Sequence[Instances],
    truth: Sequence[Instances],
    *,
    classes: tuple[str, ...],
    kind: Kind = "mask",
) -> COCOeval:
    """COCO's own pairing of predictions and truth at each of IOUS, not yet accumulated."""
    with redirect_stdout(io.StringIO()):  # it reports its progress there
        evaluation = COCOeval(
            _coco(truth, classes=classes, kind=kind),
            _coco(found, classes=classes, kind=kind),
            iouType="segm" if kind == "mask" else "bbox",
        )
        evaluation.params.iouThrs = np.array(IOUS)
        # COCO's 100 an image and class would cut our 128. Its own summary knows 100 only (it gives
        # -1 for others), hence the means are ours.
        evaluation.params.maxDets = [max(1, *(len(one.labels_M) for one in found))]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


def _coco(images: Sequence[Instances], *, classes: tuple[str, ...], kind: Kind) -> COCO:
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(images):
        labels, scores = one.labels_M.tolist(), one.scores_M.tolist()
        shapes = one.masks if kind == "mask" else one.boxes_xywh.tolist()
        for shape, label, score in zip(shapes, labels, scores, strict=True):
            assert 1 <= label <= len(classes), label
            placed = (
                {"segmentation": shape, "area": int(rle.area(shape))}
                if kind == "mask"
                else {"bbox": shape, "area": shape[2] * shape[3]}
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: COCOeval takes a match with 0 for none
                    "image_id": number,
                    "category_id": label,
                    "score": score,
                    "iscrowd": 0,
                }
                | placed
            )
    coco = COCO()
    coco.dataset = {
        # Sizes are asked for and not used: run lengths know their own.
        "images": [{"id": number, "height": 0, "width": 0} for number in range(len(images))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _known_mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
