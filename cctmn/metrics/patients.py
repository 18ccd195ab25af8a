"""From slices to patients: the mean of a patient's m highest probabilities of each class.

Most slices of a patient show no lesion, and such slices are not in the training data. A mean over
all slices would therefore hide the few that show lesions.

Reads: probabilities of slices, and the patient of each.
Writes: probabilities of patients, and the m that suits validation patients best.

Shape suffixes: N slices, G patients, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Used where no validation has chosen another.
TOP_M: Final = 10
CANDIDATES: Final = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)


def top_mean(p_NC: Floats, group_N: NDArray[np.int64], *, groups: int, m: int) -> Floats:
    """Return the mean of each patient's m highest probabilities of each class, G x C.

    A patient with fewer than m slices has the mean of all; one without a slice has 0.
    """
    count_G = np.bincount(group_N, minlength=groups)
    first_G = np.concatenate([[0], np.cumsum(count_G)[:-1]])
    means_GC = np.empty((groups, p_NC.shape[1]))
    for c in range(p_NC.shape[1]):
        order_N = np.lexsort((-p_NC[:, c], group_N))  # by patient, then by falling probability
        ranked_N = p_NC[order_N, c]
        rank_N = np.arange(len(ranked_N)) - first_G[group_N[order_N]]
        kept_N = np.where(rank_N < m, ranked_N, 0)
        means_GC[:, c] = np.bincount(group_N[order_N], kept_N, minlength=groups)
    return means_GC / np.clip(count_G, 1, m)[:, None]


def class_of(
    truth_N: NDArray[np.int64], group_N: NDArray[np.int64], *, groups: int
) -> NDArray[np.int64]:
    """Return the class of each patient, -1 for one whose slices have several classes."""
    low_G = np.full(groups, np.iinfo(np.int64).max)
    high_G = np.full(groups, -1)
    np.minimum.at(low_G, group_N, truth_N)
    np.maximum.at(high_G, group_N, truth_N)
    return np.where(low_G == high_G, low_G, -1)


def choose_m(
    p_NC: Floats,
    truth_N: NDArray[np.int64],
    group_N: NDArray[np.int64],
    *,
    groups: int,
    candidates: Sequence[int] = CANDIDATES,
) -> int | None:
    """Return the m of the highest patient accuracy; a tie goes to the lowest Brier score.

    The result is None if every patient has slices of several classes.
    """
    truth_G = class_of(truth_N, group_N, groups=groups)
    known_G = truth_G >= 0
    hot_GC = np.eye(p_NC.shape[1])[truth_G[known_G]]

    def merit(m: int) -> tuple[float, float, int]:
        p_GC = top_mean(p_NC, group_N, groups=groups, m=m)[known_G]
        right = float((p_GC.argmax(axis=1) == truth_G[known_G]).mean())
        return right, -float(((p_GC - hot_GC) ** 2).sum(axis=1).mean()), -m

    return max(candidates, key=merit) if known_G.any() else None
