"""Figures by cohort: sex, scanner, slice thickness, whatever column the labels or predictions have.

In: a sample and columns. Out: one cell for each combination of their values. Cells of fewer than
ten patients are hidden, their sizes and values too: a figure on three people is about them, not
about a cohort, and a rare value may name them.
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
from cctmn.metrics.intervals import Resampling, Sample, size_of, words

FEWEST_PATIENTS: Final = 10
MOST_VALUES: Final = 50  # of a column; more is a column of names or dates
MOST_NUMBERS: Final = 12  # different numbers; more are cut into quarters
SHOWN: Final = ("accuracy", "sensitivity")


def values_of(column: pa.ChunkedArray, *, name: str) -> list[str]:
    """The value of each slice as text: numbers of many kinds as quarters, null as "unknown".

    Raises ConfigError for a column that makes no cohorts.
    """
    kind = column.type
    if pa.types.is_nested(kind):
        raise ConfigError(f"--by {name}: a list makes no cohorts; choose another column")
    different = pc.count_distinct(column).as_py()
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and different > MOST_NUMBERS):
        return _quarters(column) if different > MOST_NUMBERS else _text(column)
    if different > MOST_VALUES:
        raise ConfigError(
            f"--by {name}: {different:,} different values make no cohorts; choose a column of at "
            f"most {MOST_VALUES}"
        )
    return _text(column)


def cells(
    sample: Sample, columns: Sequence[Sequence[str]], *, by: Resampling
) -> list[dict[str, Any]]:
    """One cell for each combination of values that occurs among the scored slices, sorted."""
    keys = list(zip(*columns, strict=True))
    found: list[dict[str, Any]] = []
    hidden = 0
    for key in sorted(set(keys)):
        kept_N = np.array([k == key for k in keys], np.bool_)
        part = _part(sample, kept_N)
        if part.groups < FEWEST_PATIENTS:
            hidden += 1
            continue
        found.append(
            {
                "values": list(key),
                "hidden": False,
                "slices": len(part.truth_N),
                "patients": part.groups,
                "figures": _figures(part, by),
            }
        )
    if hidden:
        found.append({"values": [f"{hidden} more", *[""] * (len(columns) - 1)], "hidden": True})
    return found


def _part(sample: Sample, kept_N: NDArray[np.bool_]) -> Sample:
    numbers, group_N = np.unique(sample.group_N[kept_N], return_inverse=True)
    none = np.empty(0, np.int64)
    return Sample(
        sample.classes,
        sample.truth_N[kept_N],
        sample.score_NC[kept_N],
        group_N.astype(np.int64),
        len(numbers),
        none,
        none,
    )


def _figures(part: Sample, by: Resampling) -> dict[str, Any]:
    statistic = part.rates()
    drawn = bootstrap.bootstrap(part.groups, statistic, resamples=by.resamples, seed=by.seed)
    values = statistic(np.ones((1, part.groups)))
    shown = [name for name in values if name.split(".")[0] in SHOWN]
    return {
        name: bootstrap.figure(
            f"{words(name)}, slices",
            float(values[name][0]),
            over_patients=drawn[name],
            size=size_of(part, name),
        ).as_json()
        for name in shown
        if np.isfinite(values[name][0])
    }


def _text(column: pa.ChunkedArray) -> list[str]:
    return ["unknown" if v is None or v == "" else f"{v}" for v in column.to_pylist()]


def _quarters(column: pa.ChunkedArray) -> list[str]:
    numbers_N = np.array([np.nan if v is None else v for v in column.to_pylist()], np.float64)
    known_N = numbers_N[np.isfinite(numbers_N)]
    edges = np.unique(np.quantile(known_N, [0, 0.25, 0.5, 0.75, 1]))
    place_N = np.searchsorted(edges[1:-1], numbers_N, side="right")
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    # the number keeps them in order when sorted as text
    return [
        f"{i + 1}. {names[i]}" if np.isfinite(v) else "unknown"
        for i, v in zip(place_N, numbers_N, strict=True)
    ]
