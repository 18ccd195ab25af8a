"""The options of an evaluation, and the result of each of its two parts.

The part on classes (`slice_metrics.py`) and the part on lesions (`lesion_metrics.py`) both take
`EvaluationOptions` and return a `Part`. The helpers here serve both.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from cctmn import store
from cctmn.metrics.intervals import Resampling
from cctmn.metrics.metric import Metric
from cctmn.metrics.proportions import FEW_PATIENTS, FEWEST_PATIENTS


@dataclass(frozen=True)
class EvaluationOptions:
    """The predictions to evaluate, the truth to compare them with, and the output folder."""

    out: str  # output folder of a scoring run
    to: str  # folder for metrics.json, the report and private/
    labels: str | None = None  # classes of slices
    masks: str | None = None  # a folder of slices with lesion masks, as CNCB has them
    mask_split: str | None = None  # list of names that selects from it
    key: str = "name"  # one of config.JOIN_KEYS
    root: str | None = None  # base folder or prefix for relative URIs in the labels
    label_map: Mapping[str, str] = field(default_factory=dict)  # classes that labels mean
    model: str | None = None  # the model that scored `out`; its card has its calibration
    against: str | None = None  # output folder of another model on the same slices
    training: str | None = None  # labels or split file of the training set
    by: tuple[tuple[str, ...], ...] = ()  # columns of each table of cohorts
    resampling: Resampling = field(default_factory=Resampling)
    gallery: bool = True
    overwrite: bool = False  # replace another evaluation in `to`


# Returns the true lesions of a slice_id as metrics.json holds them, None where they are not known.
TrueLesions = Callable[[str], list[dict[str, Any]] | None]


@dataclass(frozen=True)
class Part:
    """Sections of metrics.json, metrics by id, and warnings that a reader must see first."""

    sections: dict[str, Any]
    metrics: dict[str, Metric]
    warnings: list[str]
    true_lesions: TrueLesions | None = None


def few_patients(counts: Mapping[str, int]) -> list[str]:
    """Return a warning that names the groups of few patients; `counts` are patients by group."""
    few = [f"{group} {count}" for group, count in counts.items() if 0 < count < FEW_PATIENTS]
    warning = (
        f"Few patients ({', '.join(few)}): the intervals that rest on them are wide, and a metric "
        f"with an error has none below {FEWEST_PATIENTS} patients."
    )
    return [warning] if few else []


def put_names(columns: dict[str, list[str]], *, folder: str, name: str) -> None:
    """Write a CSV that names patients or files into the folder's private/."""
    buffer = io.BytesIO()
    pacsv.write_csv(pa.table({k: pa.array(v, pa.string()) for k, v in columns.items()}), buffer)
    store.put(store.join(folder, "private", name), buffer.getvalue(), private=True)


def file_name(place: str) -> str:
    """Return the last part of a path or URI, which a report may show."""
    return place.rstrip("/").rpartition("/")[2]
