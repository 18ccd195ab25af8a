"""How far a figure may be off: the bootstrap over patients, paired where two models are compared.

In: the patient of every slice and a function from weights to figures. Out: the figures of every
resample, and intervals. Slices of one patient resemble each other, so whole patients are drawn; a
draw of single slices is what the naive interval does, several times too narrow.

Shape suffixes: N slices, G patients (groups), B resamples of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL: Final = 0.95
RESAMPLES: Final = 2000  # the ends of a 95 % interval then rest on 50 resamples each
CHUNK_VALUES: Final = 1 << 19  # weights held at once: 4 MiB of float64, which a core's cache holds
MOST_UNDEFINED: Final = 0.1  # share of resamples without a value above which there is no interval

Values = Mapping[str, NDArray[np.float64]]  # figure -> one value a resample
Statistic = Callable[[NDArray[np.float64]], Values]  # weights B x G -> values B


class Size(NamedTuple):
    """On how much a figure rests."""

    n: int  # slices, or patients at their own level
    patients: int


@dataclass(frozen=True)
class Figure:
    """A value, its interval over patients and over slices, and on how much they rest."""

    what: str
    value: float | None  # None: not defined, such as the PPV of a class never predicted
    low: float | None = None
    high: float | None = None
    naive_low: float | None = None  # as if slices were independent
    naive_high: float | None = None
    n: int = 0  # slices or patients that the figure counts
    patients: int = 0
    method: str = "bootstrap over patients"

    def as_json(self) -> dict[str, Any]:
        """The entry of metrics.json, rounded to what 2000 resamples can tell and more."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def group(names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number the patients of the slices: index of each slice's, and how many there are.

    A slice of unknown patient ("") counts as one of its own.
    """
    numbers: dict[str, int] = {}
    known = [name or f"\0{i}" for i, name in enumerate(names)]  # no name holds a zero byte
    index = np.array([numbers.setdefault(name, len(numbers)) for name in known], np.int64)
    return index, len(numbers)


def draws(groups: int, *, resamples: int, seed: int, width: int) -> Iterator[NDArray[np.float64]]:
    """How often each group was drawn, in chunks B x G; all resamples together.

    `width` is the length of the longest array that a resample will need. The draws do not depend
    on it, so that figures of slices and of patients from one seed belong to the same patients.
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
    """The values of every figure in every resample of the groups."""
    parts = [
        statistic(weights_BG)
        for weights_BG in draws(groups, resamples=resamples, seed=seed, width=width)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile interval; None if the figure is undefined in too many resamples."""
    known = values[np.isfinite(values)]
    if not known.size or known.size < (1 - MOST_UNDEFINED) * values.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact(right: bool, groups: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval for a share of which all (or, not `right`, none) were met.

    A bootstrap of data without a single error has no width: what never occurred is never drawn.
    """
    bound = float(stats.beta.ppf((1 - level) / 2, groups, 1))
    return (bound, 1.0) if right else (0.0, 1 - bound)


def figure(
    what: str,
    value: float,
    *,
    over_patients: NDArray[np.float64],
    over_slices: NDArray[np.float64] | None = None,
    size: Size,
    share: bool = True,
) -> Figure:
    """A figure with its intervals; one patient alone has none.

    `share`: it lies between 0 and 1, where it may be met by a sample without a single error.
    """
    n, patients = size
    if not np.isfinite(value):
        return Figure(what, None, n=n, patients=patients, method="not defined")
    found = interval(over_patients) if patients > 1 else None
    method = "bootstrap over patients" if found else "too few patients for an interval"
    if share and found and found[0] == found[1] == value and value in (0, 1):
        found = exact(value == 1, patients)
        method = "Clopper-Pearson over patients (no error seen)"
    low, high = found or (None, None)
    naive = None if over_slices is None else interval(over_slices)
    naive_low, naive_high = naive or (None, None)
    return Figure(what, float(value), low, high, naive_low, naive_high, n, patients, method)
