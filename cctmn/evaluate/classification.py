"""Classes of images, true and predicted, in; confusion matrix and the published figures out.

The figures follow from the matrix alone: processes add up their matrices and summarise once.

Shape suffixes: N images, C classes; a confusion matrix has rows of truth, columns of prediction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion(
    truth_N: NDArray[np.integer], predicted_N: NDArray[np.integer], *, classes: int
) -> NDArray[np.int64]:
    """How many images of class i (row) were called j (column); classes count from 0."""
    assert truth_N.shape == predicted_N.shape, (truth_N.shape, predicted_N.shape)
    counts = np.zeros((classes, classes), dtype=np.int64)
    for called in (truth_N, predicted_N):  # a negative class would count from the end
        assert not called.size or 0 <= called.min() <= called.max() < classes
    np.add.at(counts, (truth_N, predicted_N), 1)
    return counts


def summary(confusion_CC: NDArray[np.int64], *, classes: tuple[str, ...]) -> dict[str, float]:
    """`accuracy`, `f1` and, of every class, `sensitivity_<class>` and `ppv_<class>`, all 0..1.

    `f1` is the mean F1 of the classes, each with its share of the images as weight. A figure that
    divides by nothing is nan: the sensitivity of a class without images, the PPV of a class that
    was never predicted; the F1 of the latter is 0.
    """
    assert confusion_CC.shape == (len(classes), len(classes)), confusion_CC.shape
    right_C = confusion_CC.diagonal()
    true_C, predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    images = true_C.sum()
    with np.errstate(invalid="ignore"):  # 0 / 0 is the nan that was promised
        sensitivity_C, ppv_C = right_C / true_C, right_C / predicted_C
        accuracy = right_C.sum() / images
        # Harmonic mean of the two above, and 0 where one of them is not defined.
        f1_C = 2 * right_C / np.maximum(true_C + predicted_C, 1)
        f1 = (true_C / images * f1_C).sum()
    return {
        "accuracy": float(accuracy),
        "f1": float(f1),
        **{f"sensitivity_{name}": float(sensitivity_C[k]) for k, name in enumerate(classes)},
        **{f"ppv_{name}": float(ppv_C[k]) for k, name in enumerate(classes)},
    }
