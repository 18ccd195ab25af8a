"""All metrics of a classifier at one level, slices or patients, with their intervals.

Proportions such as a sensitivity have intervals of their own (`proportions.py`). The other metrics
of a sample come from one set of resamples.

Reads: true classes, scores, and the patient of each slice.
Writes: metrics by id.

Shape suffixes: N slices, G patients, C classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import bootstrap, classification, proportions
from cctmn.metrics.bootstrap import RESAMPLES, Values
from cctmn.metrics.calibration import Binned, recalibration
from cctmn.metrics.classification import Ranking
from cctmn.metrics.metric import (
    CALIBRATION,
    UNBOUNDED,
    WORST_CASE,
    Metric,
    Size,
    catalogue,
    kind_of,
)

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Level = Literal["slice", "patient"]

_WORST: Final = "worst_case."


@dataclass(frozen=True)
class Resampling:
    """The number of resamples and the seed of the random draws."""

    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ClassifiedSample:
    """Slices or patients with true class and scores, and those that have a label but no scores."""

    classes: tuple[str, ...]
    truth_N: Indices
    score_NC: Floats  # probabilities
    group_N: Indices  # the patient of each
    groups: int
    unscored_truth: Indices
    unscored_group: Indices
    decided_N: Indices | None = None  # the predicted class, where it is not that of the largest

    @property
    def predicted_N(self) -> Indices:  # noqa: N802 - a shape suffix
        """The predicted class: that of the largest score, unless a rule has decided."""
        return self.score_NC.argmax(axis=1) if self.decided_N is None else self.decided_N

    def ungrouped(self) -> ClassifiedSample:
        """Return the sample with every slice as a group of its own, for the naive bootstrap."""
        scored, unscored = len(self.truth_N), len(self.unscored_truth)
        index = np.arange(scored + unscored)
        return replace(
            self,
            group_N=index[:scored],
            groups=scored + unscored,
            unscored_group=index[scored:],
        )

    def counts(self) -> Floats:
        """Return the confusion matrix of each group, G x C x (C + 1).

        The last column counts slices without scores.
        """
        classes = len(self.classes)
        counts_G = np.zeros((self.groups, classes, classes + 1))
        np.add.at(counts_G, (self.group_N, self.truth_N, self.predicted_N), 1)
        np.add.at(counts_G[..., classes], (self.unscored_group, self.unscored_truth), 1)
        return counts_G

    def proportions(self) -> dict[str, tuple[Floats, Floats]]:
        """Return, for each metric that is a proportion, the right slices and all slices of each
        patient (G each).

        The ids of the worst case, in which a slice without scores is wrong, begin with
        `worst_case.`.
        """
        full, classes = self.counts(), len(self.classes)
        matrix, unscored = full[..., :classes], full[..., classes]
        counted = classification.proportions(matrix, classes=self.classes)
        worst = classification.proportions(matrix, classes=self.classes, unscored_C=unscored)
        kept = {f"{_WORST}{k}": v for k, v in worst.items() if kind_of(k) in WORST_CASE}
        return counted | kept

    def rates(self) -> Callable[[Floats], Values]:
        """Return a statistic: the metrics of the confusion matrix, and their worst case."""
        classes = len(self.classes)
        counts_GX = self.counts().reshape(self.groups, -1)

        def statistic(weights_BG: Floats) -> Values:
            full = (weights_BG @ counts_GX).reshape(-1, classes, classes + 1)
            matrix, unscored = full[..., :classes], full[..., classes]
            plain = classification.rates(matrix, classes=self.classes)
            worst = classification.rates(matrix, classes=self.classes, unscored_C=unscored)
            kept = {f"{_WORST}{k}": v for k, v in worst.items() if kind_of(k) in WORST_CASE}
            return plain | kept

        return statistic

    def rankings(self) -> dict[str, Ranking]:
        """Return the ranking of each class against the rest."""
        return {
            name: Ranking.from_scores(self.score_NC[:, k], self.truth_N == k)
            for k, name in enumerate(self.classes)
        }


def measure(
    sample: ClassifiedSample, *, by: Resampling, level: Level, binned: Binned | None = None
) -> dict[str, Metric]:
    """Return every metric of a sample by its id, with intervals over patients.

    Slices get naive intervals too, and the worst case in which every slice without scores is
    wrong. `binned` adds the ECE, the Brier score and the loss.
    """
    of_slices = level == "slice"
    counted = sample.proportions()
    values = _statistic(sample, binned)(np.ones((1, sample.groups)))
    over_groups = _bootstrap(sample, binned, by)
    over_slices = _bootstrap(sample.ungrouped(), binned, by) if of_slices else {}
    descriptions = catalogue(sample.classes)
    measured = {}
    for name, value in values.items():
        if name.startswith(_WORST) and not of_slices:
            continue
        id_ = _id(name, level)
        if name in counted:
            right_G, n_G = counted[name]
            measured[id_] = proportion(
                right_G, n_G, name=(id_, descriptions[id_]), has_naive=of_slices
            )
        else:
            measured[id_] = bootstrap.make_metric(
                float(value[0]),
                name=(id_, descriptions[id_]),
                over_patients=over_groups[name],
                over_slices=over_slices.get(name),
                size=size_of(sample, name),
                is_bounded=name not in UNBOUNDED,
            )
    if binned is not None:
        resampled = over_groups["ece"], over_slices.get("ece")
        measured |= _ece(sample, binned, measured["calibration.ece"], resampled, by=by)
    return measured | _recalibration(sample, level=level)


def _ece(
    sample: ClassifiedSample,
    binned: Binned,
    ece: Metric,
    resampled: tuple[Floats, Floats | None],
    *,
    by: Resampling,
) -> dict[str, Metric]:
    """Return the ECE with an interval that allows for its bias, and what chance gives of it.

    `resampled` holds the ECE of resamples of patients and of slices.
    """
    by_chance_B = binned.ece_by_chance(
        sample.group_N, groups=sample.groups, resamples=by.resamples, seed=by.seed
    )
    usual = bootstrap.interval(by_chance_B)
    most = float(by_chance_B.max()) if usual is None else usual[1]
    assert ece.value is not None
    over_patients_B, over_slices_B = resampled
    over_patients = None if ece.low is None else _unbiased(ece.value, over_patients_B, usual=most)
    naive = (
        None
        if ece.naive_low is None or over_slices_B is None
        else _unbiased(ece.value, over_slices_B, usual=most)
    )
    id_ = "calibration.ece_by_chance"
    chance = bootstrap.with_intervals(
        float(by_chance_B.mean()),
        name=(id_, catalogue(sample.classes)[id_]),
        ends=usual if ece.low is not None else None,
        naive=None,
        size=size_of(sample, "ece"),
        method="random signs of the patients' errors",
    )
    allowing = bootstrap.with_intervals(
        ece.value,
        name=(ece.id, ece.description),
        ends=over_patients,
        naive=naive,
        size=size_of(sample, "ece"),
        method="bootstrap over patients, without its bias",
    )
    return {ece.id: allowing, id_: chance}


def _unbiased(value: float, resampled_B: Floats, *, usual: float) -> proportions.Interval | None:
    """Return the interval of an ECE, which is larger in a resample than in the sample.

    The lower end is the upper percentile reflected at the value, and 0 where chance usually gives
    as much. The upper end is as far above the value as that percentile is above the mean of the
    resamples; their lower percentile is often above the value and says nothing.
    """
    ends = bootstrap.interval(resampled_B)
    if ends is None:
        return None
    _, high = ends
    low = max(0.0, 2 * value - high) if value > usual else 0.0
    return min(low, value), min(1.0, value + max(0.0, high - float(np.nanmean(resampled_B))))


def _recalibration(sample: ClassifiedSample, *, level: Level) -> dict[str, Metric]:
    """Return the calibration intercept and slope of each class."""
    descriptions = catalogue(sample.classes)
    metrics = {}
    for k, name in enumerate(sample.classes):
        size = size_of(sample, f"auc.{name}")
        fits = recalibration(
            sample.score_NC[:, k],
            sample.truth_N == k,
            group_N=sample.group_N,
            fewest=size.fewest_patients,
        )
        for kind, fit in fits.items():
            prefix = "calibration" if level == "slice" else "patient_calibration"
            id_ = f"{prefix}.{kind}.{name}"
            metrics[id_] = bootstrap.with_intervals(
                fit.value,
                name=(id_, descriptions[id_]),
                ends=None if fit.low is None or fit.high is None else (fit.low, fit.high),
                naive=None,
                size=size,
                method="logistic regression, variance over patients",
            )
    return metrics


def proportion(
    right_G: Floats, n_G: Floats, *, name: tuple[str, str], has_naive: bool = True
) -> Metric:
    """Return the metric that is right_G of n_G slices, summed over the patients."""
    n, right, patients = float(n_G.sum()), float(right_G.sum()), int((n_G > 0).sum())
    size = Size(int(n), patients, patients)
    if not n:
        return bootstrap.undefined(name, size=size)
    naive = proportions.clopper_pearson(right, n) if has_naive and n > 1 else None
    return bootstrap.with_intervals(
        right / n,
        name=name,
        ends=proportions.cluster_interval(right_G, n_G),
        naive=naive,
        size=size,
        method=bootstrap.method_of(right / n, otherwise="Korn-Graubard over patients"),
    )


def without_abstained(sample: ClassifiedSample, *, by: Resampling) -> dict[str, Metric]:
    """Return the metrics of slices of a sample without abstained ones, by ids of their own."""
    descriptions = catalogue(sample.classes)
    metrics = {}
    for metric in measure(sample, by=by, level="slice").values():
        if metric.id.startswith("slice."):
            id_ = metric.id.replace("slice.", "without_abstained.", 1)
            metrics[id_] = replace(metric, id=id_, description=descriptions[id_])
    return metrics


def size_of(sample: ClassifiedSample, name: str) -> Size:
    """Return how many slices and patients a metric is computed from, and the fewer of the patients
    that it compares.

    Those of a sensitivity are of the class; every other metric here is computed from all slices.
    """
    kind, _, of_class = name.removeprefix(_WORST).partition(".")
    group_N, truth_N = sample.group_N, sample.truth_N
    if name.startswith(_WORST):
        group_N = np.concatenate([group_N, sample.unscored_group])
        truth_N = np.concatenate([truth_N, sample.unscored_truth])
    if kind == "sensitivity":
        group_N = group_N[truth_N == sample.classes.index(of_class)]
    patients = len(np.unique(group_N))
    fewest = patients
    if kind in ("auc", "ap"):
        is_class = truth_N == sample.classes.index(of_class)
        fewest = min(len(np.unique(group_N[is_class])), len(np.unique(group_N[~is_class])))
    if kind == "f1_macro":
        fewest = min(len(np.unique(group_N[truth_N == k])) for k in np.unique(truth_N))
    return Size(len(group_N), patients, fewest)


def _id(name: str, level: Level) -> str:
    """Return the id of a metric: worst_case.*, calibration.*, slice.* or patient.*."""
    if name.startswith(_WORST):
        return name
    return f"calibration.{name}" if name in CALIBRATION else f"{level}.{name}"


def _statistic(sample: ClassifiedSample, binned: Binned | None) -> Callable[[Floats], Values]:
    rates, rankings = sample.rates(), sample.rankings()

    def statistic(weights_BG: Floats) -> Values:
        values = dict(rates(weights_BG))
        weights_BN = weights_BG[:, sample.group_N]
        for name, ranking in rankings.items():
            auc_B, ap_B = classification.areas(ranking, weights_BN)
            values |= {f"auc.{name}": auc_B, f"ap.{name}": ap_B}
        if binned is not None:
            values |= binned.metrics(weights_BG, group_N=sample.group_N)
        return values

    return statistic


def _bootstrap(
    sample: ClassifiedSample, binned: Binned | None, by: Resampling
) -> dict[str, Floats]:
    return bootstrap.bootstrap(
        sample.groups,
        _statistic(sample, binned),
        resamples=by.resamples,
        seed=by.seed,
        width=len(sample.truth_N),
    )
