"""The difference of two models on the same slices, in the same resamples of their patients.

Reads: the samples of both models.
Writes: differences by id, with intervals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import bootstrap
from cctmn.metrics.bootstrap import Values
from cctmn.metrics.intervals import ClassifiedSample, Resampling, size_of
from cctmn.metrics.metric import COMPARED, Metric, catalogue, kind_of
from cctmn.metrics.proportions import Interval, difference_interval


def difference(
    one: ClassifiedSample, other: ClassifiedSample, *, by: Resampling
) -> dict[str, Metric]:
    """Return one model's metrics of slices minus the other's, by id."""
    assert one.groups == other.groups
    assert (one.truth_N == other.truth_N).all()
    values, over_patients = _differences(one, other, by)
    _, over_slices = _differences(one.ungrouped(), other.ungrouped(), by)
    descriptions = catalogue(one.classes)
    measured = {}
    for name, value in values.items():
        id_ = f"difference.slice.{name}"
        measured[id_] = bootstrap.with_intervals(
            value,
            name=(id_, descriptions[id_]),
            ends=over_patients[name],
            naive=over_slices[name],
            size=size_of(one, name),
            method="paired bootstrap over patients",
        )
    return measured


def _differences(
    one: ClassifiedSample, other: ClassifiedSample, by: Resampling
) -> tuple[dict[str, float], dict[str, Interval | None]]:
    """Return each difference and its interval over the groups."""
    ours, theirs = one.rates(), other.rates()

    def statistic(weights_BG: NDArray[np.float64]) -> Values:
        first, second = ours(weights_BG), theirs(weights_BG)
        return {k: first[k] - second[k] for k in first if kind_of(k) in COMPARED}

    values = {k: float(v[0]) for k, v in statistic(np.ones((1, one.groups))).items()}
    resampled = bootstrap.bootstrap(
        one.groups, statistic, resamples=by.resamples, seed=by.seed, width=len(one.truth_N)
    )
    differs_N = one.predicted_N != other.predicted_N
    ends = {}
    for name, value in values.items():
        _, _, of_class = name.partition(".")
        counts_N = one.truth_N == one.classes.index(of_class) if of_class else True
        patients = size_of(one, name).fewest_patients
        ends[name] = difference_interval(
            value,
            variance=bootstrap.variance(resampled[name], groups=patients),
            patients=patients,
            differing=len(np.unique(one.group_N[differs_N & counts_N])),
        )
    return values, ends
