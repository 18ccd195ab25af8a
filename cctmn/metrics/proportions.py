"""Intervals of proportions over patients, which cover what they say with few patients too.

Slices of one patient resemble each other, so the patient is the unit that was drawn. The interval
is the exact binomial one at an effective sample size: the number of independent slices that would
estimate the proportion as well (Korn and Graubard 1998, Survey Methodology 24, 193-201). Without
any error the slices say nothing about how alike they are within a patient, and the interval is that
of Clopper and Pearson over patients. No interval is narrower than that one, so that one error more
never makes an interval narrower.

tests/metrics/test_proportions.py has the coverage by simulation.

Reads: for each patient, how many observations there are and how many of them are right.
Writes: intervals.

Shape suffixes: G patients.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL: Final = 0.95
# A variance between fewer patients says too little. Only a sample without any error, where nothing
# is estimated, has an interval then.
FEWEST_PATIENTS: Final = 5
# With fewer patients than this an interval is wide, and a reader is told of how many it is.
FEW_PATIENTS: Final = 30
# A value this close to 0 or 1 holds no error: sums of floats miss by less.
_EXACT: Final = 1e-9

Interval = tuple[float, float]


def clopper_pearson(right: float, n: float, *, level: float = LEVEL) -> Interval:
    """Return the exact binomial interval for `right` of `n` observations, which may be fractions.

    Raises no error for n of 0, where every proportion is possible.
    """
    tail = (1 - level) / 2
    low = 0.0 if right <= 0 else float(stats.beta.ppf(tail, right, n - right + 1))
    high = 1.0 if right >= n else float(stats.beta.ppf(1 - tail, right + 1, n - right))
    return low, high


def cluster_interval(
    right_G: NDArray[np.float64], n_G: NDArray[np.float64], *, level: float = LEVEL
) -> Interval | None:
    """Return the interval of sum(right_G) / sum(n_G); None if the patients are too few for one.

    Patients without observations are left out. With one observation each, this is the interval of
    Clopper and Pearson.
    """
    right_G, n_G = right_G[n_G > 0], n_G[n_G > 0]
    patients, n = len(n_G), float(n_G.sum())
    if not patients:
        return None
    value = float(right_G.sum()) / n
    variance = 0.0
    if patients > 1:
        between = float(((right_G - value * n_G) ** 2).sum())
        variance = patients / (patients - 1) * between / n**2
    return effective_interval(value, variance=variance, n=n, patients=patients, level=level)


def effective_interval(
    value: float, *, variance: float, n: float, patients: int, level: float = LEVEL
) -> Interval | None:
    """Return the interval of a value in 0..1 with this variance over patients.

    `n` is the number of observations, which the effective sample size does not exceed. Returns None
    for fewer than FEWEST_PATIENTS patients, unless the value is 0 or 1.
    """
    assert -_EXACT <= value <= 1 + _EXACT, value
    if has_no_error(value):
        low, high = clopper_pearson(round(value) * patients, patients, level=level)
        return (low, high) if patients > 1 else None
    if patients < FEWEST_PATIENTS:
        return None
    effective = n
    if variance > 0 and n > 1:
        quantile = (1 + level) / 2
        student = stats.t.ppf(quantile, n - 1) / stats.t.ppf(quantile, patients - 1)
        effective = value * (1 - value) / variance * n / (n - 1) * student**2
    effective = min(effective, n)
    low, high = clopper_pearson(value * effective, effective, level=level)
    if value >= 0.5:
        return max(0.0, min(low, high - _least_width(patients, level))), high
    return low, min(1.0, max(high, low + _least_width(patients, level)))


def difference_interval(
    value: float, *, variance: float, patients: int, differing: int, level: float = LEVEL
) -> Interval | None:
    """Return the interval of a difference of two proportions on the same patients, in -1..1.

    `differing` patients have observations on which the two differ; only they tell the variance, so
    they set the degrees of freedom. Without any, the interval is as wide as the proportion of such
    patients that may have been missed. No interval is narrower than that of a proportion without
    any error, so that one difference in every patient does not make it a point.
    """
    if patients < FEWEST_PATIENTS or not math.isfinite(value):
        return None
    freedom = max(differing - 1, 1)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    least = _least_width(patients, level)
    half = max(half, least if differing <= 1 else least / 2)
    low, high = max(-1.0, value - half), min(1.0, value + half)
    # An end that is cut off at 1 or -1 leaves the other one where it has to be.
    return (min(low, high - least), high) if value > 0 else (low, max(high, low + least))


def has_no_error(value: float) -> bool:
    """Return whether a proportion is 0 or 1, but for the rounding of floats."""
    return min(abs(value), abs(1 - value)) < _EXACT


def _least_width(patients: int, level: float) -> float:
    """Return the width of the interval of so many patients without any error."""
    low, high = clopper_pearson(patients, patients, level=level)
    return high - low
