"""Detection metrics that take weights: how often the bootstrap drew each image.

Predictions and true lesions are matched once. The published AP, COCO's AP and FROC of any weights
follow from that; with all weights 1 they equal those of detection.py and of COCO's own tools.

Reads: predicted and true lesions of each image.
Writes: metrics by name, and the FROC curve.

Shape suffixes: I images, D detections by falling score, T IoU thresholds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import detection
from cctmn.metrics.detection import AP50, AP75, Instances, Kind
from cctmn.metrics.metric import FROC_RATES

Floats = NDArray[np.float64]

RECALLS: Final = np.linspace(0, 1, 101)  # COCO's points
CURVE_POINTS: Final = 200


@dataclass(frozen=True, eq=False)
class Ranked:
    """Detections of one class or of all classes by falling score, and whether each is a hit."""

    hit_TD: NDArray[np.bool_]  # at each IoU threshold
    image_D: NDArray[np.int64]  # index of the image
    num_true_I: Floats  # true lesions per image
    ends: NDArray[np.int64]  # the last detection of each score: no threshold divides equal scores

    def counts(self, weights_BI: Floats, *, threshold: int) -> tuple[Floats, Floats, Floats]:
        """Return true and false positives above each score (B x D), and true lesions (B)."""
        weights_BD = weights_BI[:, self.image_D]
        true_BD = np.cumsum(weights_BD * self.hit_TD[threshold], axis=1)
        return true_BD, np.cumsum(weights_BD, axis=1) - true_BD, weights_BI @ self.num_true_I

    def coco_ap(self, weights_BI: Floats, *, threshold: int) -> Floats:
        """Return COCO's interpolated average precision; nan where there is no true lesion."""
        true_BD, false_BD, num_true_B = self.counts(weights_BI, threshold=threshold)
        if not self.image_D.size:
            return np.where(num_true_B > 0, 0.0, np.nan)
        precision_BD = true_BD / (true_BD + false_BD + np.spacing(1))
        best_BD = np.maximum.accumulate(precision_BD[:, ::-1], axis=1)[:, ::-1]
        ap_B = np.full(len(num_true_B), np.nan)
        for b in np.flatnonzero(num_true_B > 0):
            rank = np.searchsorted(true_BD[b] / num_true_B[b], RECALLS, side="left")
            reached = rank < len(self.image_D)
            ap_B[b] = best_BD[b, rank[reached]].sum() / len(RECALLS)
        return ap_B


@dataclass(frozen=True, eq=False)
class Matches:
    """Predictions and true lesions of all images, matched once."""

    image_ap_TI: Floats
    by_class: tuple[Ranked, ...]
    all_classes: Ranked  # one ranking; a hit has the right class

    @classmethod
    def from_instances(
        cls,
        predicted: Sequence[Instances],
        truth: Sequence[Instances],
        *,
        classes: tuple[str, ...],
        kind: Kind,
    ) -> Matches:
        """Match predictions and true lesions by the published rule and by COCO's."""
        images = len(predicted)
        evaluated = detection.matched(predicted, truth, classes=classes, kind=kind).evalImgs
        by_class = []
        for k in range(len(classes)):
            num_true_I = np.array([(one.labels_M == k + 1).sum() for one in truth], np.float64)
            of_class = evaluated[k * images : (k + 1) * images]
            by_class.append(_detections(of_class, num_true_I))
        return cls(
            image_ap_TI=detection.image_aps(predicted, truth, kind=kind),
            by_class=tuple(_ranked([one]) for one in by_class),
            all_classes=_ranked(by_class),
        )

    def metrics(self, weights_BI: Floats) -> dict[str, Floats]:
        """Return `image_ap50 image_ap75 image_map` and `coco_*` of B resamples."""
        image_BT = weights_BI @ self.image_ap_TI.T / weights_BI.sum(axis=1, keepdims=True)
        thresholds = range(len(detection.IOUS))
        coco_BTC = np.stack(
            [
                np.stack([one.coco_ap(weights_BI, threshold=t) for t in thresholds], axis=1)
                for one in self.by_class
            ],
            axis=2,
        )
        known_BTC = np.isfinite(coco_BTC)
        # A resample without any true lesion has no COCO AP.
        with np.errstate(invalid="ignore"):
            coco_BT = np.where(known_BTC, coco_BTC, 0).sum(axis=2) / known_BTC.sum(axis=2)
        values = {}
        for rule, ap_BT in (("image", image_BT), ("coco", coco_BT)):
            values[f"{rule}_ap50"], values[f"{rule}_ap75"] = ap_BT[:, AP50], ap_BT[:, AP75]
            values[f"{rule}_map"] = ap_BT.mean(axis=1)
        return values

    def froc(self, weights_BI: Floats) -> dict[str, Floats]:
        """Return the detected fraction of the true lesions at each point of FROC_RATES.

        `at_1` is the fraction at one false positive per image on average, and so on; `mean` is the
        mean of the points. A lesion is detected at an IoU of 0.5 with the right class. False
        positives are counted on the images that are compared, which are those with lesions.
        """
        true_BD, false_BD, num_true_B = self._at_thresholds(weights_BI)
        images_B = weights_BI.sum(axis=1)
        points = []
        for rate in FROC_RATES:
            allowed_BD = false_BD <= rate * images_B[:, None]
            best_B = np.where(allowed_BD, true_BD, 0).max(axis=1, initial=0)
            with np.errstate(invalid="ignore"):
                points.append(best_B / num_true_B)
        named = {f"at_{rate:g}": p for rate, p in zip(FROC_RATES, points, strict=True)}
        return named | {"mean": np.mean(points, axis=0)}

    def _at_thresholds(self, weights_BI: Floats) -> tuple[Floats, Floats, Floats]:
        """Return true and false positives at each threshold between different scores."""
        true_BD, false_BD, num_true_B = self.all_classes.counts(weights_BI, threshold=AP50)
        ends = self.all_classes.ends
        return true_BD[:, ends], false_BD[:, ends], num_true_B

    def froc_curve(self) -> dict[str, list[float]]:
        """Return the FROC curve up to the last point of FROC_RATES.

        x is false positives per image, y the detected fraction of the true lesions.
        """
        images = self.image_ap_TI.shape[1]
        unit_BI = np.ones((1, images))
        [true_D], [false_D], [num_true] = self._at_thresholds(unit_BI)
        kept = np.flatnonzero(false_D <= FROC_RATES[-1] * images)
        if kept.size:
            kept = kept[np.unique(np.linspace(0, len(kept) - 1, CURVE_POINTS).astype(int))]
        x, y = false_D[kept] / images, true_D[kept] / max(num_true, 1)
        return {
            "x": [0.0, *(round(float(v), 5) for v in x)],
            "y": [0.0, *(round(float(v), 5) for v in y)],
        }


@dataclass(frozen=True, eq=False)
class _Detections:
    """Detections of one class in the order of the images."""

    hit_TD: NDArray[np.bool_]
    score_D: list[float]
    image_D: list[int]
    num_true_I: Floats


def _detections(evaluated: Sequence[dict[str, Any] | None], num_true_I: Floats) -> _Detections:
    """Gather COCO's matches of one class; an image without lesions of the class is None."""
    hits, score_D, image_D = [np.zeros((len(detection.IOUS), 0), bool)], [], []
    for index, image in enumerate(evaluated):
        if image is not None:
            hits.append(np.asarray(image["dtMatches"]) > 0)
            score_D += image["dtScores"]
            image_D += [index] * len(image["dtScores"])
    return _Detections(np.concatenate(hits, axis=1), score_D, image_D, num_true_I)


def _ranked(classes: Sequence[_Detections]) -> Ranked:
    """Rank the detections of these classes together."""
    score_D = np.array([score for one in classes for score in one.score_D], np.float64)
    hit_TD = np.concatenate([one.hit_TD for one in classes], axis=1)
    image_D = np.array([index for one in classes for index in one.image_D], np.int64)
    # COCO sorts with a stable sort too.
    order = np.argsort(-score_D, kind="mergesort")
    num_true_I = np.sum([one.num_true_I for one in classes], axis=0)
    ranked_D = score_D[order]
    ends = np.flatnonzero(np.append(np.diff(ranked_D) != 0, True)) if len(ranked_D) else order
    return Ranked(hit_TD[:, order], image_D[order], num_true_I, ends)
