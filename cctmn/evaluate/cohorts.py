"""Metrics by cohort: sex, scanner, slice thickness, or any column of the labels or predictions.

A cohort of fewer than ten patients is hidden, with its size and its values: a metric of three
people describes those people and not a cohort, and a rare value may identify them.

Reads: a sample, and the values of one or more columns.
Writes: one cell for each combination of values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn.errors import ConfigError
from cctmn.metrics import bootstrap
from cctmn.metrics.intervals import ClassifiedSample, Resampling, size_of
from cctmn.metrics.metric import cohort_catalogue

FEWEST_PATIENTS: Final = 10
# A column with more values probably holds names or dates.
MOST_VALUES: Final = 50
# A column with more different numbers is divided at its quartiles.
MOST_NUMBERS: Final = 12


def values_of(column: pa.ChunkedArray, *, name: str) -> list[str]:
    """Return the cohort of each slice as text; null is "unknown".

    Many different numbers are divided at their quartiles. Raises ConfigError for a column that
    cannot define cohorts.
    """
    kind = column.type
    if pa.types.is_nested(kind):
        raise ConfigError(f"--by {name}: the column holds lists; choose a column of single values")
    different = pc.count_distinct(column).as_py()
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and different > MOST_NUMBERS):
        return _quarters(column) if different > MOST_NUMBERS else _text(column)
    if different > MOST_VALUES:
        raise ConfigError(
            f"--by {name}: {different:,} different values are too many for cohorts; choose a "
            f"column with at most {MOST_VALUES}"
        )
    return _text(column)


def cells(
    sample: ClassifiedSample, columns: Sequence[Sequence[str]], *, by: Resampling
) -> list[dict[str, Any]]:
    """Return one cell for each combination of values of the scored slices, sorted by value."""
    keys = list(zip(*columns, strict=True))
    shown: list[dict[str, Any]] = []
    hidden = 0
    for key in sorted(set(keys)):
        kept_N = np.array([k == key for k in keys], np.bool_)
        part = _part(sample, kept_N)
        if part.groups < FEWEST_PATIENTS:
            hidden += 1
            continue
        shown.append(
            {
                "values": list(key),
                "hidden": False,
                "slices": len(part.truth_N),
                "patients": part.groups,
                "metrics": _metrics(part, by),
            }
        )
    if hidden:
        shown.append({"values": [f"{hidden} more", *[""] * (len(columns) - 1)], "hidden": True})
    return shown


def _part(sample: ClassifiedSample, kept_N: NDArray[np.bool_]) -> ClassifiedSample:
    numbers, group_N = np.unique(sample.group_N[kept_N], return_inverse=True)
    none = np.empty(0, np.int64)
    return ClassifiedSample(
        classes=sample.classes,
        truth_N=sample.truth_N[kept_N],
        score_NC=sample.score_NC[kept_N],
        group_N=group_N.astype(np.int64),
        groups=len(numbers),
        unscored_truth=none,
        unscored_group=none,
    )


def _metrics(part: ClassifiedSample, by: Resampling) -> dict[str, Any]:
    statistic = part.rates()
    resampled = bootstrap.bootstrap(part.groups, statistic, resamples=by.resamples, seed=by.seed)
    values = statistic(np.ones((1, part.groups)))
    return {
        name: bootstrap.make_metric(
            float(values[name][0]),
            name=(name, description),
            over_patients=resampled[name],
            size=size_of(part, name),
        ).as_json()
        for name, description in cohort_catalogue(part.classes).items()
        if np.isfinite(values[name][0])
    }


def _text(column: pa.ChunkedArray) -> list[str]:
    return ["unknown" if v is None or v == "" else f"{v}" for v in column.to_pylist()]


def _quarters(column: pa.ChunkedArray) -> list[str]:
    numbers_N = np.array([np.nan if v is None else v for v in column.to_pylist()], np.float64)
    known_N = numbers_N[np.isfinite(numbers_N)]
    edges = np.unique(np.quantile(known_N, [0, 0.25, 0.5, 0.75, 1]))
    quarter_N = np.searchsorted(edges[1:-1], numbers_N, side="right")
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    # The number keeps the quarters in order when they are sorted as text.
    return [
        f"{i + 1}. {names[i]}" if np.isfinite(v) else "unknown"
        for i, v in zip(quarter_N, numbers_N, strict=True)
    ]
