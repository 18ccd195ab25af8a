"""A bootstrap over patients, for metrics that are not proportions and for paired differences.

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

from cctmn.metrics.metric import Metric, Size
from cctmn.metrics.proportions import (
    FEWEST_PATIENTS,
    LEVEL,
    Interval,
    effective_interval,
    has_no_error,
)

TOO_FEW: Final = "too few patients for an interval"
UNKNOWN: Final = "no interval: the resamples are all alike, or too few define the metric"
# metrics.json keeps six digits. Resamples that differ by less do not differ.
_LEAST_WIDTH: Final = 1e-6
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


def interval(values: NDArray[np.float64], *, level: float = LEVEL) -> Interval | None:
    """Return the percentile interval.

    It is None if too many resamples leave the metric undefined, or if all give the same: then the
    resamples do not tell how far off the value may be.
    """
    known = values[np.isfinite(values)]
    if not known.size or known.size < (1 - MOST_UNDEFINED) * values.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)) if high - low > _LEAST_WIDTH else None


def make_metric(
    value: float,
    *,
    name: tuple[str, str],
    over_patients: NDArray[np.float64],
    over_slices: NDArray[np.float64] | None = None,
    size: Size,
    is_bounded: bool = True,
) -> Metric:
    """Return a metric with intervals from its resamples. `name` is the id and the description.

    A metric that `is_bounded` lies in 0..1, and its interval is that of a proportion with the
    variance of the resamples (`proportions.effective_interval`). Others have percentile intervals.
    """
    if not np.isfinite(value):
        return undefined(name, size=size)
    if is_bounded:
        ends = _effective(value, over_patients, n=size.n, patients=size.fewest_patients)
        naive = None if over_slices is None else _effective(value, over_slices, n=size.n)
        method = method_of(value, otherwise="Korn-Graubard, variance by bootstrap over patients")
    else:
        enough = size.fewest_patients >= FEWEST_PATIENTS
        ends = interval(over_patients) if enough else None
        naive = None if over_slices is None else interval(over_slices)
        method = "bootstrap over patients"
    return with_intervals(value, name=name, ends=ends, naive=naive, size=size, method=method)


def with_intervals(
    value: float,
    *,
    name: tuple[str, str],
    ends: Interval | None,
    naive: Interval | None,
    size: Size,
    method: str,
) -> Metric:
    """Return a metric with these intervals; without one over patients, `method` says why."""
    if not np.isfinite(value):
        return undefined(name, size=size)
    id_, description = name
    low, high = ends or (None, None)
    naive_low, naive_high = naive or (None, None)
    return Metric(
        id_,
        description,
        float(value),
        low=low,
        high=high,
        naive_low=naive_low,
        naive_high=naive_high,
        **size._asdict(),
        method=method if ends else TOO_FEW if size.fewest_patients < FEWEST_PATIENTS else UNKNOWN,
    )


def undefined(name: tuple[str, str], *, size: Size) -> Metric:
    """Return a metric without a value, such as the PPV of a class that is never predicted."""
    id_, description = name
    return Metric(id_, description, None, **size._asdict(), method="not defined")


def method_of(value: float, *, otherwise: str) -> str:
    """Return the name of the method of an interval, which differs where no error was seen."""
    return "Clopper-Pearson over patients (no error seen)" if has_no_error(value) else otherwise


def variance(values: NDArray[np.float64], *, groups: int) -> float:
    """Return the variance of a metric over this many groups, from its resamples.

    Resamples of G groups vary by (G - 1) / G of what a new draw of groups does.
    """
    known = values[np.isfinite(values)]
    return float(known.var()) * groups / (groups - 1) if known.size and groups > 1 else 0.0


def _effective(
    value: float, values: NDArray[np.float64], *, n: int, patients: int | None = None
) -> Interval | None:
    groups = n if patients is None else patients
    undefined_fraction = 1 - np.isfinite(values).mean()
    if undefined_fraction > MOST_UNDEFINED and not has_no_error(value):
        return None
    return effective_interval(value, variance=variance(values, groups=groups), n=n, patients=groups)
