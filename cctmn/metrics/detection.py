"""Average precision of lesion detection (0..1): the published rule, and COCO's.

The published AP is the mean of one AP per image, by a rule of its own (`image_ap`). COCO's AP pools
the detections of all images and matches them differently. The two differ and have different names.
Masks are run-length encoded at once, because 128 masks of 512 x 512 px are 33 MB per slice.

Reads: predicted and true lesions of each image.
Writes: metrics by name.

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

Kind = Literal["mask", "box"]  # the shapes whose overlap is measured

# Computed from hundredths, not as 0.5 + 0.05 n, so that an IoU exactly at a threshold equals it.
IOUS: Final = tuple(hundredths / 100 for hundredths in range(50, 100, 5))
AP50: Final = IOUS.index(0.5)
AP75: Final = IOUS.index(0.75)


@dataclass(frozen=True, eq=False)
class Instances:
    """The lesions of one image, predicted or true. The masks have the size of the image.

    All fields are plain values, so that they can be gathered from several processes.
    """

    masks: list[dict[str, Any]]  # COCO's compressed run lengths, see `encode`
    labels_M: NDArray[np.int64]  # from 1, into the lesion classes
    scores_M: NDArray[np.float32]  # 0..1, in any order; ones for true lesions, never read
    boxes_M4: NDArray[np.float32] | None = (
        None  # x0 y0 x1 y1 px; None where only masks are compared
    )

    def __post_init__(self) -> None:
        assert len(self.labels_M) == len(self.scores_M)
        assert self.boxes_M4 is None or len(self.boxes_M4) == len(self.labels_M)
        assert len(self.masks) == len(self.labels_M) or self.boxes_M4 is not None

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """The boxes in COCO's form: corner, width and height."""
        assert self.boxes_M4 is not None
        boxes_M4 = self.boxes_M4.astype(np.float64)
        return np.concatenate([boxes_M4[:, :2], boxes_M4[:, 2:] - boxes_M4[:, :2]], axis=1)


def image_ap(predicted: Instances, truth: Instances, *, iou: float) -> float:
    """Return the published AP of one image at one threshold, with all classes in one ranking.

    It is 1 if there is neither a true nor a predicted lesion, and 0 if there is only one of the
    two. Otherwise each true lesion is matched to the prediction of its class with the largest
    overlap, if that overlap is MORE than `iou`; the score does not matter. All other predictions
    are false. AP is the area under precision by recall, where the precision at a recall is the best
    at this recall or a higher one.
    """
    return _ap(_overlaps(predicted, truth), iou=iou)


def summary(
    predicted: Sequence[Instances], truth: Sequence[Instances], *, classes: tuple[str, ...]
) -> dict[str, float]:
    """Return `image_ap50 image_ap75 image_map` as published and `coco_ap50 coco_ap75 coco_map`.

    `map` is the mean over the thresholds 0.50:0.05:0.95. COCO averages over the classes that have
    true lesions; its values are nan if there are none, and so is `coco_ap50_<class>` of a class
    without true lesions.
    """
    assert len(predicted) == len(truth) > 0, (len(predicted), len(truth))
    image = [float(np.mean(aps_I)) for aps_I in image_aps(predicted, truth)]
    coco = _coco_precision(predicted, truth, classes=classes)
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
    predicted: Sequence[Instances], truth: Sequence[Instances], *, kind: Kind = "mask"
) -> NDArray[np.float64]:
    """Return the published AP of every image at each threshold of IOUS."""
    overlaps = [_overlaps(*pair, kind=kind) for pair in zip(predicted, truth, strict=True)]
    return np.array([[_ap(iou_MT, iou=iou) for iou_MT in overlaps] for iou in IOUS])


@dataclass(frozen=True)
class ImageOutcome:
    """How the detections of one image compare with its true lesions at an IoU above 0.5."""

    ap50: float  # the published AP, of detections of any score
    missed: int  # true lesions without a detection of their class
    false: int  # detections without a true lesion of their class


def image_outcome(
    predicted: Instances, truth: Instances, *, kind: Kind, least_score: float
) -> ImageOutcome:
    """Compare one image; only detections of `least_score` or more hit, miss or are false."""
    iou_MT = _overlaps(predicted, truth, kind=kind)
    kept_M = np.sort(predicted.scores_M)[::-1] >= least_score
    hit_MT = iou_MT[kept_M] > IOUS[AP50]
    return ImageOutcome(
        _ap(iou_MT, iou=IOUS[AP50]),
        int((~hit_MT.any(axis=0)).sum()),
        int((~hit_MT.any(axis=1)).sum()),
    )


def _overlaps(
    predicted: Instances, truth: Instances, *, kind: Kind = "mask"
) -> NDArray[np.float64]:
    """Return the IoU (M x T) of predictions, by falling score, and true lesions.

    The IoU of lesions of different classes is 0.
    """
    shape = len(predicted.labels_M), len(truth.labels_M)
    if 0 in shape:
        return np.zeros(shape)
    if kind == "box":
        iou_MT = rle.iou(predicted.boxes_xywh, truth.boxes_xywh, [False] * shape[1])
    else:
        # For two sizes pycocotools returns an IoU of -1, which would count as a miss.
        assert len({tuple(mask["size"]) for mask in (*predicted.masks, *truth.masks)}) == 1
        iou_MT = rle.iou(predicted.masks, truth.masks, [False] * shape[1])
    iou_MT[predicted.labels_M[:, None] != truth.labels_M] = 0
    return iou_MT[np.argsort(-predicted.scores_M, kind="stable")]


def _ap(iou_MT: NDArray[np.float64], *, iou: float) -> float:
    num_predicted, num_true = iou_MT.shape
    if not num_predicted or not num_true:
        return float(num_predicted == num_true)
    # Among equal overlaps the better ranked prediction is matched; the author's unstable sort
    # leaves the choice open. A prediction matched to several lesions (which must overlap each
    # other) is one hit.
    matched_T = iou_MT.argmax(axis=0)
    hit_M = np.zeros(num_predicted, dtype=bool)
    hit_M[matched_T[iou_MT.max(axis=0) > iou]] = True
    precision_M = np.cumsum(hit_M) / np.arange(1, num_predicted + 1)
    best_M = np.maximum.accumulate(precision_M[::-1])[::-1]
    # Recall grows by 1 / num_true at every hit.
    return float(best_M[hit_M].sum() / num_true)


def _coco_precision(
    predicted: Sequence[Instances], truth: Sequence[Instances], *, classes: tuple[str, ...]
) -> NDArray[np.float64]:
    """Return precision, thresholds x 101 recalls x classes; -1 for a class without lesions."""
    evaluation = matched(predicted, truth, classes=classes)
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


def matched(
    predicted: Sequence[Instances],
    truth: Sequence[Instances],
    *,
    classes: tuple[str, ...],
    kind: Kind = "mask",
) -> COCOeval:
    """Return COCO's own matching of predictions and truth at each of IOUS, not yet accumulated."""
    # pycocotools prints its progress to stdout, where cctmn writes data alone.
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, classes=classes, kind=kind),
            _coco(predicted, classes=classes, kind=kind),
            iouType="segm" if kind == "mask" else "bbox",
        )
        evaluation.params.iouThrs = np.array(IOUS)
        # COCO's limit of 100 detections per image and class would cut our 128. COCO's own summary
        # allows 100 only (it returns -1 otherwise), so the means are computed here.
        evaluation.params.maxDets = [max(1, *(len(one.labels_M) for one in predicted))]
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
                    # From 1: COCOeval takes a match with 0 for no match.
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "score": score,
                    "iscrowd": 0,
                }
                | placed
            )
    coco = COCO()
    coco.dataset = {
        # pycocotools requires these sizes but does not use them; run lengths hold their own.
        "images": [{"id": number, "height": 0, "width": 0} for number in range(len(images))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _known_mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
