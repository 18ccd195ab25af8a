"""Confusion matrices, the published metrics that follow from them, and ROC and PR curves.

The metrics depend on the matrix alone, so that processes can add up their matrices and summarise
once. Every function also takes weights (how often a slice was drawn), so that the bootstrap calls
the same code.

Reads: true and predicted classes of images, or scores.
Writes: metrics (0..1) by name, points of curves.

Shape suffixes: N images, C classes, B resamples; a confusion matrix has rows of truth, columns of
prediction, leading axes (...) for resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# More points than a plot of 300 px can show apart.
CURVE_POINTS: Final = 200


def confusion(
    truth_N: NDArray[np.integer], predicted_N: NDArray[np.integer], *, classes: int
) -> NDArray[np.int64]:
    """Count the images of class i (row) that were predicted as j (column); classes start at 0."""
    assert truth_N.shape == predicted_N.shape, (truth_N.shape, predicted_N.shape)
    counts = np.zeros((classes, classes), dtype=np.int64)
    # numpy would count a negative class from the end.
    for given_N in (truth_N, predicted_N):
        assert not given_N.size or 0 <= given_N.min() <= given_N.max() < classes
    np.add.at(counts, (truth_N, predicted_N), 1)
    return counts


def proportions(
    confusion_CC: NDArray[Any], *, classes: tuple[str, ...], unscored_C: NDArray[Any] | None = None
) -> dict[str, tuple[Floats, Floats]]:
    """Return, for each metric that is a proportion, how many images are right and of how many.

    This is the one place that says which images a metric is computed from: those of the class for
    `sensitivity.<class>`, those predicted as it for `ppv.<class>`, those of the other classes for
    `specificity.<class>`, all for `accuracy`. Matrices may have leading axes (... x C x C), which
    both numbers then have too. `unscored_C` counts the images of each true class that have no
    prediction; they are wrong.
    """
    assert confusion_CC.shape[-2:] == (len(classes),) * 2, confusion_CC.shape
    right_C = np.diagonal(confusion_CC, axis1=-2, axis2=-1)
    true_C, predicted_C = confusion_CC.sum(axis=-1), confusion_CC.sum(axis=-2)
    if unscored_C is not None:
        true_C = true_C + unscored_C
    images = true_C.sum(axis=-1)
    negative_C = images[..., None] - true_C
    of_class = {
        "sensitivity": (right_C, true_C),
        "ppv": (right_C, predicted_C),
        "specificity": (negative_C - (predicted_C - right_C), negative_C),
    }
    counted = {"accuracy": (right_C.sum(axis=-1), images)}
    for kind, (right, of) in of_class.items():
        counted |= {f"{kind}.{name}": (right[..., k], of[..., k]) for k, name in enumerate(classes)}
    return counted


def rates(
    confusion_CC: NDArray[Any], *, classes: tuple[str, ...], unscored_C: NDArray[Any] | None = None
) -> dict[str, Floats]:
    """Return the metrics of a confusion matrix: those of `proportions`, and two of F1.

    `f1_weighted` is the mean F1 of the classes, weighted by their number of images (paper, eq. 3);
    `f1_macro` is the unweighted mean over the classes that occur. A metric that divides by zero is
    nan: the sensitivity of a class without images, the PPV of a class that was never predicted. The
    F1 of such a class is 0.
    """
    counted = proportions(confusion_CC, classes=classes, unscored_C=unscored_C)
    right_C, true_C, predicted_C = (
        np.stack([counted[f"{kind}.{name}"][number] for name in classes], axis=-1)
        for kind, number in (("sensitivity", 0), ("sensitivity", 1), ("ppv", 1))
    )
    occurring_C = true_C + predicted_C > 0
    # 0 / 0 is the nan that the docstring promises.
    with np.errstate(invalid="ignore"):
        metrics = {name: right / of for name, (right, of) in counted.items()}
        # Harmonic mean of sensitivity and PPV, and 0 where one of them is not defined.
        f1_C = 2 * right_C / np.where(occurring_C, true_C + predicted_C, 1)
        weighted = (true_C * f1_C).sum(axis=-1) / true_C.sum(axis=-1)
        macro = f1_C.sum(axis=-1) / occurring_C.sum(axis=-1)
    return {
        "accuracy": metrics.pop("accuracy"),
        "f1_weighted": weighted,
        "f1_macro": macro,
    } | metrics


def summary(confusion_CC: NDArray[np.int64], *, classes: tuple[str, ...]) -> dict[str, float]:
    """Return `accuracy`, `f1` (weighted) and each class's `sensitivity_<class>`, `ppv_<class>`."""
    metrics = rates(confusion_CC, classes=classes)
    wanted = {"accuracy": "accuracy", "f1": "f1_weighted"}
    for kind in ("sensitivity", "ppv"):
        wanted |= {f"{kind}_{name}": f"{kind}.{name}" for name in classes}
    return {key: float(metrics[name]) for key, name in wanted.items()}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images sorted by falling score of one class.

    After one sort, sums of weights give the curve of every resample.
    """

    order_N: NDArray[np.int64]
    positive_N: NDArray[np.bool_]  # whether the image is of the class, in that order
    ends: NDArray[np.int64]  # index of the last image of each group of equal scores

    @classmethod
    def from_scores(cls, score_N: Floats, positive_N: NDArray[np.bool_]) -> Ranking:
        """Rank the images; equal scores stay together, because no threshold separates them."""
        order_N = np.argsort(-score_N, kind="stable")
        ranked_N = score_N[order_N]
        ends = np.flatnonzero(np.append(np.diff(ranked_N) != 0, True)) if len(ranked_N) else order_N
        return cls(order_N, positive_N[order_N], ends)

    def counts(self, weights_BN: Floats) -> tuple[Floats, Floats]:
        """Return true and false positives (B x T each) above every threshold, strictest first."""
        ranked_BN = weights_BN[:, self.order_N]
        true_BN = np.cumsum(ranked_BN * self.positive_N, axis=1)
        all_BN = np.cumsum(ranked_BN, axis=1)
        if len(self.ends) < len(self.order_N):
            true_BN, all_BN = true_BN[:, self.ends], all_BN[:, self.ends]
        return true_BN, all_BN - true_BN


def areas(ranking: Ranking, weights_BN: Floats) -> tuple[Floats, Floats]:
    """Return the area under the ROC curve (trapezia) and average precision, B of each.

    Both are nan where there is no positive or no negative image. Average precision is the area
    under the steps of precision by recall, without interpolation.
    """
    true_BT, false_BT = ranking.counts(weights_BN)
    positives_B, negatives_B = true_BT[:, -1], false_BT[:, -1]
    rise_BT = np.diff(true_BT, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Pair the positives of each threshold with the negatives below it; equal scores count half.
        pairs_B = np.einsum("bt,bt->b", rise_BT, negatives_B[:, None] - false_BT)
        pairs_B += 0.5 * np.einsum("bt,bt->b", rise_BT, np.diff(false_BT, axis=1, prepend=0))
        precision_BT = true_BT / np.maximum(true_BT + false_BT, 1)
        auc_B = pairs_B / (positives_B * negatives_B)
        ap_B = np.einsum("bt,bt->b", rise_BT, precision_BT) / positives_B
    return auc_B, ap_B


def curves(ranking: Ranking) -> dict[str, dict[str, list[float]]]:
    """Return the curves `roc` (x: 1 - specificity, y: sensitivity) and `pr` (x: recall, y: PPV).

    Each is thinned evenly to CURVE_POINTS. The result is empty where there is no positive or no
    negative image.
    """
    [true_T], [false_T] = ranking.counts(np.ones((1, len(ranking.order_N))))
    if not true_T[-1] or not false_T[-1]:
        return {}
    sensitivity_T, fallout_T = true_T / true_T[-1], false_T / false_T[-1]
    # Thin along the length of the curve: its steep part would otherwise keep three points.
    length_T = np.cumsum(np.abs(np.diff(sensitivity_T + fallout_T, prepend=0)))
    wanted = np.linspace(0, length_T[-1], CURVE_POINTS)
    kept = np.unique(np.searchsorted(length_T, wanted).clip(max=len(length_T) - 1))
    roc = {"x": [0.0, *fallout_T[kept]], "y": [0.0, *sensitivity_T[kept]]}
    pr = {"x": sensitivity_T[kept], "y": (true_T / (true_T + false_T))[kept]}
    return {
        name: {axis: [round(float(v), 5) for v in values] for axis, values in curve.items()}
        for name, curve in (("roc", roc), ("pr", pr))
    }
