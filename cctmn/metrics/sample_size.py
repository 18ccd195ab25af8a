"""How many patients a proportion needs, for an interval of a wanted width or a bound to show.

The interval is the exact one of Clopper and Pearson, with which `cctmn accept` judges patients.
Several slices per patient count less than as many patients: the design effect says how much.

Writes: numbers of patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from cctmn.errors import ConfigError
from cctmn.metrics.proportions import FEWEST_PATIENTS

LARGEST: Final = 1_000_000
# Beyond this many standard deviations a binomial count has a probability of less than 1e-15.
_SPREAD: Final = 9.0


@dataclass(frozen=True)
class Clusters:
    """Slices per patient, and how alike those of a patient are (intraclass correlation)."""

    slices: float
    icc: float

    @property
    def design_effect(self) -> float:
        """How many slices are worth one independent observation (Kish, Survey Sampling, 1965)."""
        return 1 + (self.slices - 1) * self.icc


def expected_width(n: int, *, proportion: float, level: float) -> float:
    """Return the mean width of the interval over the binomial distribution of n observations."""
    spread = _SPREAD * math.sqrt(n * proportion * (1 - proportion)) + _SPREAD
    first, last = max(0, int(n * proportion - spread)), min(n, int(n * proportion + spread))
    x = np.arange(first, last + 1)
    tail = (1 - level) / 2
    # At the ends one parameter is 0, where the bound is 0 or 1.
    low = np.where(x == 0, 0.0, stats.beta.ppf(tail, np.maximum(x, 1), n - x + 1))
    high = np.where(x == n, 1.0, stats.beta.ppf(1 - tail, x + 1, np.maximum(n - x, 1)))
    return float((stats.binom.pmf(x, n, proportion) * (high - low)).sum())


def for_width(proportion: float, *, width: float, level: float) -> int:
    """Return the smallest number of observations whose expected width is at most `width`."""
    return _smallest(
        lambda n: expected_width(n, proportion=proportion, level=level) <= width,
        remedy="give a larger width",
    )


def for_bound(proportion: float, *, bound: float, level: float, power: float) -> int:
    """Return the number from which on the lower bound is at least `bound` with this power.

    The power rises and falls with each further observation, as counts are whole numbers
    (Chernick and Liu, The American Statistician 2002;56:149-155). From this number on it is never
    below the stated one. `level` is that of the two-sided interval.
    """
    assert bound < proportion
    tail = (1 - level) / 2
    # The normal approximation says where to look.
    spreads = [math.sqrt(p * (1 - p)) for p in (bound, proportion)]
    wanted = stats.norm.isf(tail) * spreads[0] + stats.norm.ppf(power) * spreads[1]
    most = 64 + 2 * int((wanted / (proportion - bound)) ** 2)
    while most <= 2 * LARGEST:
        n = np.arange(1, most + 1)
        # The bound is reached by k hits if k or more are unlikely under it; `short` is k - 1.
        short = stats.binom.isf(tail, n, bound)
        lacking = np.flatnonzero(stats.binom.sf(short, n, proportion) < power)
        last = int(n[lacking[-1]]) if len(lacking) else 0
        # The second half of the numbers shows that the power does not fall again.
        if last <= most / 2:
            return max(last + 1, FEWEST_PATIENTS)
        most *= 2
    raise _too_many("give a lower bound that is further from the expected value")


def patients_with(observations: int, *, clusters: Clusters, level: float) -> int:
    """Return the number of patients whose slices are worth as many independent observations.

    As the interval does, this takes the variance from patients, with Student's t distribution.
    """
    z = stats.norm.ppf((1 + level) / 2)
    each = clusters.slices / clusters.design_effect

    def enough(patients: int) -> bool:
        t = stats.t.ppf((1 + level) / 2, patients - 1)
        return bool(patients * each * (z / t) ** 2 >= observations)

    return _smallest(enough, remedy="give a larger width")


def in_all(patients: int, *, prevalence: float) -> int:
    """Return the number of patients of whom so many are expected to be of the class."""
    # Rounding must not ask for one more: 20 of 0.1 is 200.
    return math.ceil(patients / prevalence - 1e-9)


def _smallest(enough: Callable[[int], bool], *, remedy: str) -> int:
    """Return the smallest number that is enough, which every larger one must be too."""
    low, high = FEWEST_PATIENTS - 1, FEWEST_PATIENTS
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST:
            raise _too_many(remedy)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _too_many(remedy: str) -> ConfigError:
    return ConfigError(f"more than {LARGEST:,} patients would be needed; {remedy}")
