"""A yes-or-no decision at a threshold: its metrics with confidence bounds, and its decision curve.

Sensitivity, specificity and accuracy are proportions over patients, with exact intervals. A
likelihood ratio is the quotient of two of them, and its bounds are recovered from theirs on the
logarithmic scale (MOVER: Zou and Donner, Statistics in Medicine 2008;27:1693-1702). The predictive
values follow from the likelihood ratios by Bayes' theorem, and so do their bounds. The area under
the ROC curve has the interval of a proportion with the variance of a bootstrap over patients.

Reads: score, truth and patient of each observation, which is a patient or a slice.
Writes: estimates with their bounds, a threshold, and the net benefit by threshold.

Shape suffixes: N observations, G patients, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import bootstrap
from cctmn.metrics.classification import Ranking, areas
from cctmn.metrics.proportions import LEVEL, Interval, cluster_interval, effective_interval

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Scores of observations that have none: a sick one is never called sick, a healthy one always, so
# both count as wrong at every threshold from 0 to 1.
MISSED: Final = -1.0
FALSE_ALARM: Final = 2.0

NAMES: Final[Mapping[str, str]] = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "lr_positive": "Positive likelihood ratio",
    "lr_negative": "Negative likelihood ratio",
    "auc": "Area under the ROC curve",
}
# Metrics that are not fractions.
RATIOS: Final = ("lr_positive", "lr_negative")
# Metrics of which smaller values are better, so that their upper bound counts.
SMALLER_IS_BETTER: Final = ("lr_negative",)


@dataclass(frozen=True, eq=False)
class BinarySample:
    """Observations with a score, their truth, and the patient and number of slices of each."""

    score_N: Floats  # probability of the positive class; MISSED or FALSE_ALARM without one
    positive_N: NDArray[np.bool_]
    group_N: Indices
    slices_N: Indices

    def part(self, kept_N: NDArray[np.bool_]) -> BinarySample:
        """Return the observations of a mask."""
        return BinarySample(
            self.score_N[kept_N],
            self.positive_N[kept_N],
            self.group_N[kept_N],
            self.slices_N[kept_N],
        )

    @property
    def patients(self) -> int:
        """The number of patients."""
        return len(np.unique(self.group_N))


@dataclass(frozen=True)
class Conditions:
    """Where a metric is measured: threshold, prevalence, and the level of a two-sided interval."""

    threshold: float  # a score of at least this is positive
    prevalence: float
    level: float = LEVEL


@dataclass(frozen=True)
class Estimate:
    """A value with both ends of its interval, None without one, and what it is computed from.

    A value may be infinite, and nan where it is not defined. `fewest` is the number of patients,
    or the smaller of the numbers of positive and negative ones if the metric needs both.
    """

    value: float
    low: float | None
    high: float | None
    patients: int
    slices: int
    fewest: int


def estimate(sample: BinarySample, metric: str, *, at: Conditions) -> Estimate:
    """Return a metric of NAMES. Accuracy is that of the sample, at the sample's own prevalence."""
    positives = sample.part(sample.positive_N)
    negatives = sample.part(~sample.positive_N)
    if metric in ("sensitivity", "specificity", "accuracy"):
        used = {"sensitivity": positives, "specificity": negatives}.get(metric, sample)
        value, ends = _rate(used, at=at, level=at.level)
        fewest = used.patients
    else:
        used, fewest = sample, min(positives.patients, negatives.patients)
        value, ends = (
            _area(sample, fewest=fewest, level=at.level)
            if metric == "auc"
            else _combined(positives, negatives, metric=metric, at=at)
        )
    low, high = ends or (None, None)
    return Estimate(value, low, high, used.patients, int(used.slices_N.sum()), fewest)


def threshold_for(sample: BinarySample, *, sensitivity: float) -> float | None:
    """Return the highest threshold that reaches the sensitivity.

    The result is None if no threshold does, because positive observations have no score.
    """
    score_P = np.sort(sample.score_N[sample.positive_N])[::-1]
    # Rounding must not ask for one more: 0.95 of 20 is 19.
    needed = math.ceil(sensitivity * len(score_P) - 1e-9)
    if not len(score_P) or score_P[max(needed, 1) - 1] == MISSED:
        return None
    return float(score_P[max(needed, 1) - 1])


def decision_curve(sample: BinarySample, *, prevalence: float) -> dict[str, list[float]]:
    """Return the net benefit at threshold probabilities of 1 to 99 %.

    Net benefit is P(true positive) - P(false positive) * t / (1 - t) at the threshold probability t
    (Vickers and Elkin, Med Decis Making 2006;26:565-574), here at the stated prevalence, with the
    sensitivity and specificity of the sample. `treat_all` calls everybody sick; calling nobody sick
    has a net benefit of 0. The result is empty without positive or without negative observations.
    """
    if sample.positive_N.all() or not sample.positive_N.any():
        return {}
    threshold_T = np.arange(1, 100) / 100
    called_TN = sample.score_N >= threshold_T[:, None]
    sensitivity_T = called_TN[:, sample.positive_N].mean(axis=1)
    false_T = called_TN[:, ~sample.positive_N].mean(axis=1)
    odds_T = threshold_T / (1 - threshold_T)
    curves = {
        "threshold": threshold_T,
        "model": prevalence * sensitivity_T - (1 - prevalence) * false_T * odds_T,
        "treat_all": prevalence - (1 - prevalence) * odds_T,
    }
    return {name: [round(float(v), 6) for v in values] for name, values in curves.items()}


def _rate(sample: BinarySample, *, at: Conditions, level: float) -> tuple[float, Interval | None]:
    """Return the fraction of observations that are decided rightly, and its interval."""
    right_N = (sample.score_N >= at.threshold) == sample.positive_N
    if not len(right_N):
        return math.nan, None
    _, group_N = np.unique(sample.group_N, return_inverse=True)
    right_G, n_G = (np.bincount(group_N, w).astype(np.float64) for w in (right_N, None))
    return float(right_N.mean()), cluster_interval(right_G, n_G, level=level)


def _combined(
    positives: BinarySample, negatives: BinarySample, *, metric: str, at: Conditions
) -> tuple[float, Interval | None]:
    """Return a likelihood ratio or a predictive value, and its interval."""
    sensitivity, of_positives = _rate(positives, at=at, level=at.level)
    specificity, of_negatives = _rate(negatives, at=at, level=at.level)
    found = _Proportion(sensitivity, *(of_positives or (math.nan, math.nan)))
    cleared = _Proportion(specificity, *(of_negatives or (math.nan, math.nan)))
    shared = np.intersect1d(positives.group_N, negatives.group_N).size > 0
    positive = metric in ("ppv", "lr_positive")
    pair = (found, cleared.complement()) if positive else (found.complement(), cleared)
    low, value, high = _quotient(*pair, independent=not shared)
    odds = at.prevalence / (1 - at.prevalence)
    if metric == "ppv":
        low, value, high = (_probability(ratio * odds) for ratio in (low, value, high))
    elif metric == "npv":
        # A smaller ratio leaves fewer sick among the negative.
        high, value, low = (1 - _probability(ratio * odds) for ratio in (low, value, high))
    return value, None if of_positives is None or of_negatives is None else (low, high)


class _Proportion(NamedTuple):
    value: float
    low: float
    high: float

    def complement(self) -> _Proportion:
        return _Proportion(1 - self.value, 1 - self.high, 1 - self.low)


def _quotient(
    top: _Proportion, bottom: _Proportion, *, independent: bool
) -> tuple[float, float, float]:
    """Return the lower bound, value and upper bound of a quotient of two proportions.

    If both are estimated from different patients, the distances of the bounds add like standard
    deviations. Otherwise, and where a proportion of 0 has no logarithm, the most unfavourable ends
    of both are combined, which holds for any correlation and is wider.
    """
    value = _ratio(top.value, bottom.value)
    low, high = _ratio(top.low, bottom.high), _ratio(top.high, bottom.low)
    if independent and top.value > 0 and bottom.value > 0:
        below = math.hypot(math.log(top.value / top.low), math.log(bottom.high / bottom.value))
        above = math.hypot(math.log(top.high / top.value), math.log(bottom.value / bottom.low))
        low, high = value * math.exp(-below), value * math.exp(above)
    return low, value, high


def _probability(odds: float) -> float:
    return 1.0 if odds == math.inf else odds / (1 + odds)


def _area(sample: BinarySample, *, fewest: int, level: float) -> tuple[float, Interval | None]:
    """Return the area under the ROC curve and its interval, as `cctmn evaluate` computes it."""
    if not fewest:
        return math.nan, None
    _, group_N = np.unique(sample.group_N, return_inverse=True)
    ranking = Ranking.from_scores(sample.score_N, sample.positive_N)

    def statistic(weights_BG: Floats) -> dict[str, Floats]:
        return {"auc": areas(ranking, weights_BG[:, group_N])[0]}

    value = float(statistic(np.ones((1, sample.patients)))["auc"][0])
    resampled = bootstrap.bootstrap(sample.patients, statistic, width=len(group_N))["auc"]
    variance = bootstrap.variance(resampled, groups=fewest)
    return value, effective_interval(
        value, variance=variance, n=len(group_N), patients=fewest, level=level
    )


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return math.inf if part > 0 else math.nan
