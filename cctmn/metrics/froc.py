"""Detection figures that take weights: how often each image was drawn by the bootstrap.

In: lesions found and there, image by image. Out: the published AP, COCO's AP and FROC for any
weights, from one pairing of predictions and truth. With all weights 1 they are what detection.py
and COCO's own tools give.

Shape suffixes: I images, D detections by falling score, T IoU thresholds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import detection
from cctmn.metrics.detection import AP50, AP75, Instances, Kind

Floats = NDArray[np.float64]

RECALLS: Final = np.linspace(0, 1, 101)  # COCO's points
FALSE_AN_IMAGE: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # the usual points of FROC
CURVE_POINTS: Final = 200


@dataclass(frozen=True, eq=False)
class Ranked:
    """Detections of one class or of all, and whether each is a hit at each threshold."""

    hit_TD: NDArray[np.bool_]
    image_D: NDArray[np.int64]
    there_I: Floats  # true lesions an image

    def counts(self, weights_BI: Floats, *, threshold: int) -> tuple[Floats, Floats, Floats]:
        """True and false positives above each score (B x D), and true lesions (B)."""
        weights_BD = weights_BI[:, self.image_D]
        true_BD = np.cumsum(weights_BD * self.hit_TD[threshold], axis=1)
        return true_BD, np.cumsum(weights_BD, axis=1) - true_BD, weights_BI @ self.there_I

    def coco_ap(self, weights_BI: Floats, *, threshold: int) -> Floats:
        """COCO's interpolated average precision; nan where the truth has no lesion."""
        true_BD, false_BD, there_B = self.counts(weights_BI, threshold=threshold)
        if not self.image_D.size:
            return np.where(there_B > 0, 0.0, np.nan)
        precision_BD = true_BD / (true_BD + false_BD + np.spacing(1))
        best_BD = np.maximum.accumulate(precision_BD[:, ::-1], axis=1)[:, ::-1]
        ap_B = np.full(len(there_B), np.nan)
        for b in np.flatnonzero(there_B > 0):
            place = np.searchsorted(true_BD[b] / there_B[b], RECALLS, side="left")
            reached = place < len(self.image_D)
            ap_B[b] = best_BD[b, place[reached]].sum() / len(RECALLS)
        return ap_B


@dataclass(frozen=True, eq=False)
class Matches:
    """Predictions and truth of all images, paired once."""

    image_ap_TI: Floats
    of_class: tuple[Ranked, ...]
    whole: Ranked  # all classes in one ranking; a hit is of the right class

    @classmethod
    def of(
        cls,
        found: Sequence[Instances],
        truth: Sequence[Instances],
        *,
        classes: tuple[str, ...],
        kind: Kind,
    ) -> Matches:
        """Pair them by the published rule and by COCO's."""
        images = len(found)
        evaluated = detection.matched(found, truth, classes=classes, kind=kind).evalImgs
        parts = []
        for k in range(len(classes)):
            there_I = np.array([(one.labels_M == k + 1).sum() for one in truth], np.float64)
            hits, scores, places = [np.zeros((len(detection.IOUS), 0), bool)], [], []
            for i, image in enumerate(evaluated[k * images : (k + 1) * images]):
                if image is not None:
                    hits.append(np.asarray(image["dtMatches"]) > 0)
                    scores += image["dtScores"]
                    places += [i] * len(image["dtScores"])
            parts.append((np.concatenate(hits, axis=1), scores, places, there_I))
        merged = (
            np.concatenate([hits for hits, *_ in parts], axis=1),
            [score for _, scores, *_ in parts for score in scores],
            [place for *_, places, _ in parts for place in places],
            sum((there_I for *_, there_I in parts), np.zeros(images)),
        )
        return cls(
            image_ap_TI=detection.image_aps(found, truth, kind=kind),
            of_class=tuple(_ranked(*part) for part in parts),
            whole=_ranked(*merged),
        )

    def figures(self, weights_BI: Floats) -> dict[str, Floats]:
        """`image_ap50 image_ap75 image_map` and `coco_*`, of B resamples."""
        image_BT = weights_BI @ self.image_ap_TI.T / weights_BI.sum(axis=1, keepdims=True)
        thresholds = range(len(detection.IOUS))
        coco_BTC = np.stack(
            [
                np.stack([one.coco_ap(weights_BI, threshold=t) for t in thresholds], axis=1)
                for one in self.of_class
            ],
            axis=2,
        )
        known_BTC = np.isfinite(coco_BTC)
        with np.errstate(invalid="ignore"):  # a draw without any lesion has no COCO AP
            coco_BT = np.where(known_BTC, coco_BTC, 0).sum(axis=2) / known_BTC.sum(axis=2)
        found = {}
        for rule, ap_BT in (("image", image_BT), ("coco", coco_BT)):
            found[f"{rule}_ap50"], found[f"{rule}_ap75"] = ap_BT[:, AP50], ap_BT[:, AP75]
            found[f"{rule}_map"] = ap_BT.mean(axis=1)
        return found

    def froc(self, weights_BI: Floats) -> dict[str, Floats]:
        """`at_1` and so on: share of lesions found (IoU 0.5, right class) where an image has that
        many false positives on average; `mean` of FALSE_AN_IMAGE.
        """
        true_BD, false_BD, there_B = self.whole.counts(weights_BI, threshold=AP50)
        images_B = weights_BI.sum(axis=1)
        points = []
        for rate in FALSE_AN_IMAGE:
            allowed_BD = false_BD <= rate * images_B[:, None]
            best_B = np.where(allowed_BD, true_BD, 0).max(axis=1, initial=0)
            with np.errstate(invalid="ignore"):
                points.append(best_B / there_B)
        named = {f"at_{rate:g}": p for rate, p in zip(FALSE_AN_IMAGE, points, strict=True)}
        return named | {"mean": np.mean(points, axis=0)}

    def froc_curve(self) -> dict[str, list[float]]:
        """x: false positives an image, y: share of lesions found; up to the last of the points."""
        images = self.image_ap_TI.shape[1]
        [true_D], [false_D], [there] = self.whole.counts(np.ones((1, images)), threshold=AP50)
        shown = np.flatnonzero(false_D <= FALSE_AN_IMAGE[-1] * images)
        kept = (
            shown[np.unique(np.linspace(0, len(shown) - 1, CURVE_POINTS).astype(int))]
            if (shown.size)
            else shown
        )
        x, y = false_D[kept] / images, true_D[kept] / max(there, 1)
        return {
            "x": [0.0, *(round(float(v), 5) for v in x)],
            "y": [0.0, *(round(float(v), 5) for v in y)],
        }


def _ranked(
    hit_TD: NDArray[np.bool_], scores: list[float], places: list[int], there_I: Floats
) -> Ranked:
    order = np.argsort(-np.array(scores, np.float64), kind="mergesort")  # COCO's own, stable
    return Ranked(hit_TD[:, order], np.array(places, np.int64)[order], there_I)
