"""Intervals by a bootstrap over patients, paired where two models are compared.

Slices of one patient resemble each other, so whole patients are drawn. A bootstrap that draws
single slices gives the naive interval, which is several times too narrow.

Reads: the patient of every slice, and a function from weights to metrics.
Writes: every metric in every resample, and intervals.

Shape suffixes: N slices, G patients (groups), B resamples of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cctmn.metrics.metric import Metric, Size

LEVEL: Final = 0.95
# Each end of a 95 % interval then rests on 50 resamples.
RESAMPLES: Final = 2000
# Weights held at once: 4 MiB of float64, which fit into the cache of a core.
CHUNK_VALUES: Final = 1 << 19
# A metric that is undefined in a larger fraction of the resamples has no interval.
MOST_UNDEFINED: Final = 0.1

Values = Mapping[str, NDArray[np.float64]]  # id of a metric -> one value per resample
Statistic = Callable[[NDArray[np.float64]], Values]  # weights B x G -> values B


def group_patients(names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Return the index of each slice's patient, and the number of patients.

    A slice whose patient is unknown ("") counts as a patient of its own.
    """
    numbers: dict[str, int] = {}
    # No patient's name holds a zero byte.
    known = [name or f"\0{i}" for i, name in enumerate(names)]
    index = np.array([numbers.setdefault(name, len(numbers)) for name in known], np.int64)
    return index, len(numbers)


def draws(groups: int, *, resamples: int, seed: int, width: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group was drawn, in chunks B x G that add up to all resamples.

    `width` is the length of the longest array that a resample needs. The draws do not depend on
    it, so that metrics of slices and of patients from one seed belong to the same patients.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_VALUES // max(groups, width))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = np.stack([rng.integers(0, groups, groups) for _ in range(size)])
        flat = (drawn + groups * np.arange(size)[:, None]).ravel()
        yield np.bincount(flat, minlength=size * groups).reshape(size, groups).astype(np.float64)


def bootstrap(
    groups: int,
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    width: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Return the value of every metric in every resample of the groups."""
    parts = [
        statistic(weights_BG)
        for weights_BG in draws(groups, resamples=resamples, seed=seed, width=width)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval, or None if too many resamples leave the metric undefined."""
    known = values[np.isfinite(values)]
    if not known.size or known.size < (1 - MOST_UNDEFINED) * values.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_interval(groups: int, *, proportion: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact binomial interval for an observed proportion of 0 or 1.

    It is that of Clopper and Pearson. A bootstrap has no width there: it never draws an error that
    did not occur.
    """
    assert proportion in (0, 1), proportion
    bound = float(stats.beta.ppf((1 - level) / 2, groups, 1))
    return (bound, 1.0) if proportion == 1 else (0.0, 1 - bound)


def make_metric(
    value: float,
    *,
    name: tuple[str, str],
    over_patients: NDArray[np.float64],
    over_slices: NDArray[np.float64] | None = None,
    size: Size,
    is_proportion: bool = True,
) -> Metric:
    """Return a metric with its intervals; a single patient allows none.

    `name` is the id and the description. A metric that `is_proportion` lies between 0 and 1, and
    gets an exact interval where the sample holds no error at all.
    """
    id_, description = name
    n, patients = size
    if not np.isfinite(value):
        return Metric(id_, description, None, n=n, patients=patients, method="not defined")
    ends = interval(over_patients) if patients > 1 else None
    method = "bootstrap over patients" if ends else "too few patients for an interval"
    if is_proportion and ends and ends[0] == ends[1] == value and value in (0, 1):
        ends = exact_interval(patients, proportion=int(value))
        method = "Clopper-Pearson over patients (no error seen)"
    low, high = ends or (None, None)
    naive = None if over_slices is None else interval(over_slices)
    naive_low, naive_high = naive or (None, None)
    return Metric(
        id_,
        description,
        float(value),
        low=low,
        high=high,
        naive_low=naive_low,
        naive_high=naive_high,
        n=n,
        patients=patients,
        method=method,
    )
