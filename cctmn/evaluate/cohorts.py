"""Metrics by cohort: sex, scanner, slice thickness, or any column of the labels or predictions.

A cohort of fewer than ten patients is hidden, with its size and its values: a metric of three
people describes those people and not a cohort, and a rare value may identify them. So is a metric
within a cohort, such as the sensitivity to a class that three of its patients have.

Reads: a sample, and the values of one or more columns.
Writes: one cell for each combination of values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn.errors import ConfigError
from cctmn.evaluate.disclosure import publishable
from cctmn.metrics.intervals import ClassifiedSample, proportion
from cctmn.metrics.metric import cohort_catalogue

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
    numbers = _as_numbers(column) if different > MOST_NUMBERS else None
    if numbers is not None:
        return _quarters(numbers)
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and different > MOST_NUMBERS):
        return _quarters(column) if different > MOST_NUMBERS else _text(column)
    if different > MOST_VALUES:
        raise ConfigError(
            f"--by {name}: {different:,} different values are too many for cohorts; choose a "
            f"column with at most {MOST_VALUES}"
        )
    return _text(column)


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of text as numbers if every value is one, as in a CSV; None otherwise."""
    if not pa.types.is_string(column.type):
        return None
    try:
        numbers = [float(text) if text else None for text in column.to_pylist()]
    except ValueError:
        return None
    return pa.chunked_array([numbers], pa.float64())


def tables(
    columns: Mapping[tuple[str, ...], Sequence[Sequence[str]]],
    sample: ClassifiedSample,
    *,
    known_N: NDArray[np.bool_],
    without_abstained_N: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Return the section `cohorts`: for the columns of each table, one cell per combination.

    `columns` holds the cohort of each scored slice for each column of a table. `known_N` says
    whether the patient of a slice is known, and `without_abstained_N` which slices have metrics of
    their own beside those of all. Metrics are hidden in all tables together (`disclosure.py`).
    """
    cells = [cell for names, values in columns.items() for cell in _cells(names, values)]
    keys = [(i, name) for i, cell in enumerate(cells) for name in cell.metrics(sample)]
    sums_SN = np.array([cells[i].members(name, sample) for i, name in keys])
    wholes = [_Cell((), (), np.ones(len(sample.truth_N), np.bool_))]
    if without_abstained_N is not None:
        wholes.append(_Cell((), (), without_abstained_N))
    place = {key: s for s, key in enumerate(keys)}
    tables_of: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for (i, name), s in place.items():
        tables_of.setdefault((cells[i].columns, name), []).append(s)
    shown_S = publishable(
        sums_SN,
        always_TN=np.array([w.members(n, sample) for w in wholes for n in w.metrics(sample)]),
        parts=[(place[i, "accuracy"], s) for (i, _), s in place.items()],
        partitions=list(tables_of.values()),
        group_N=sample.group_N,
        known_N=known_N,
    )
    shown: list[set[str]] = [set() for _ in cells]
    for (i, name), is_shown in zip(keys, shown_S, strict=True):
        if is_shown:
            shown[i].add(name)
    return [
        {
            "by": list(names),
            "cells": _shown(
                [(c, s) for c, s in zip(cells, shown, strict=True) if c.columns == names], sample
            ),
        }
        for names in columns
    ]


@dataclass(frozen=True, eq=False)
class _Cell:
    """The slices of one combination of values."""

    columns: tuple[str, ...]
    values: tuple[str, ...]
    in_N: NDArray[np.bool_]

    def metrics(self, sample: ClassifiedSample) -> list[str]:
        """Return the metrics that are defined here: accuracy, and sensitivities of classes."""
        names = ["accuracy", *(f"sensitivity.{name}" for name in sample.classes)]
        return [name for name in names if self.members(name, sample).any()]

    def members(self, metric: str, sample: ClassifiedSample) -> NDArray[np.bool_]:
        """Return the slices that a metric is computed from, as a mask over all N."""
        _, _, of_class = metric.partition(".")
        if not of_class:
            return self.in_N
        return self.in_N & (sample.truth_N == sample.classes.index(of_class))


def _cells(columns: tuple[str, ...], values: Sequence[Sequence[str]]) -> list[_Cell]:
    keys = list(zip(*values, strict=True))
    numbers = {key: i for i, key in enumerate(sorted(set(keys)))}
    number_N = np.array([numbers[key] for key in keys], np.int64)
    return [_Cell(columns, key, number_N == i) for key, i in numbers.items()]


def _shown(
    cells: Sequence[tuple[_Cell, set[str]]], sample: ClassifiedSample
) -> list[dict[str, Any]]:
    """Return the entries of a table: those that are shown, and a last one that counts the rest."""
    entries: list[dict[str, Any]] = [
        {
            "values": list(cell.values),
            "hidden": False,
            "slices": int(cell.in_N.sum()),
            "patients": len(np.unique(sample.group_N[cell.in_N])),
            "metrics": _metrics(cell, names, sample),
        }
        for cell, names in cells
        if names
    ]
    if hidden := len(cells) - len(entries):
        width = len(cells[0][0].values)
        entries.append({"values": [f"{hidden} more", *[""] * (width - 1)], "hidden": True})
    return entries


def _metrics(cell: _Cell, names: set[str], sample: ClassifiedSample) -> dict[str, Any]:
    right_N = sample.predicted_N == sample.truth_N
    metrics = {}
    for name, description in cohort_catalogue(sample.classes).items():
        if name in names:
            of_N = cell.members(name, sample)
            right_G, n_G = (
                np.bincount(sample.group_N[kept_N], minlength=sample.groups).astype(np.float64)
                for kept_N in (of_N & right_N, of_N)
            )
            metric = proportion(right_G, n_G, name=(name, description), has_naive=False)
            metrics[name] = metric.as_json()
    return metrics


def _text(column: pa.ChunkedArray) -> list[str]:
    return ["unknown" if v is None or v == "" else f"{v}" for v in column.to_pylist()]


def _quarters(column: pa.ChunkedArray) -> list[str]:
    """Return the quarter of each number. The outer ones are open: an age of 97 names somebody."""
    numbers_N = np.array([np.nan if v is None else v for v in column.to_pylist()], np.float64)
    known_N = numbers_N[np.isfinite(numbers_N)]
    edges = [f"{edge:.3g}" for edge in np.unique(np.quantile(known_N, [0.25, 0.5, 0.75]))]
    quarter_N = np.searchsorted(np.array(edges, np.float64), numbers_N, side="right")
    names = [f"below {edges[0]}"]
    names += [f"{low} to below {high}" for low, high in itertools.pairwise(edges)]
    names += [f"{edges[-1]} or more"]
    # The number keeps the quarters in order when they are sorted as text.
    return [
        f"{i + 1}. {names[i]}" if np.isfinite(v) else "unknown"
        for i, v in zip(quarter_N, numbers_N, strict=True)
    ]
