"""What is evaluated, and what a part of an evaluation answers with.

In: what the command line was told. Out: an EvaluationJob for the parts (classes, lesions), the
model as they know it, a Part for each to answer with, and the tables that stay in private/.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv

from cctmn import store
from cctmn.evaluate.join import Scored
from cctmn.metrics import patients
from cctmn.metrics.bootstrap import Figure
from cctmn.metrics.intervals import Resampling
from cctmn.model.card import read_card

FEW_PATIENTS: Final = 30  # below, a percentile interval covers less than it says


@dataclass(frozen=True)
class EvaluationJob:
    """What to evaluate, by which labels, and where the figures go."""

    out: str  # a scoring run's output
    to: str  # DIR
    labels: str | None = None  # classes of slices
    masks: str | None = None  # a folder of slices with lesion masks, as CNCB has them
    mask_split: str | None = None  # list of names that selects from it
    key: str = "name"  # name, uri or slice_id
    root: str | None = None  # what the labels' relative uris are below
    model: str | None = None  # of which the predictions must be; its card's temperature and m
    against: str | None = None  # another output, of the same slices
    training: str | None = None  # labels or split file of what the model was trained on
    by: tuple[tuple[str, ...], ...] = ()  # columns of each table of cohorts
    resampling: Resampling = field(default_factory=Resampling)
    gallery: bool = True


@dataclass(frozen=True)
class Part:
    """Sections of metrics.json, its figures by id, and what a reader must know before them."""

    sections: dict[str, Any]
    figures: dict[str, Figure]
    warnings: list[str]


def model_of(scored: Scored, folder: str | None) -> dict[str, Any]:
    """What is known of the model, from the manifest and from the card that was asked for."""
    described = scored.model
    if folder is not None:
        card = read_card(folder)
        scored.check_model(card, where=folder)
        described = described | card.described
    calibration = described.get("calibration") or {}
    return described | {
        "name": described.get("name") or described["model_id"],
        "activation": described.get("activation") or "sigmoid",
        "temperature": float(calibration.get("temperature", 1.0)),
        "top_m": int(calibration.get("top_m", patients.TOP_M)),
        "calibrated_on": calibration.get("labels"),
    }


def few_patients(count: int) -> list[str]:
    """A warning where intervals rest on few patients."""
    rough = 0 < count < FEW_PATIENTS
    return [f"Only {count} patients: intervals over them are rough."] if rough else []


def put_names(columns: dict[str, list[str]], *, folder: str, name: str) -> None:
    """Write a CSV that names people or files into the folder's private/."""
    buffer = io.BytesIO()
    pacsv.write_csv(pa.table({k: pa.array(v, pa.string()) for k, v in columns.items()}), buffer)
    store.put(store.join(folder, "private", name), buffer.getvalue(), private=True)


def file_name(place: str) -> str:
    """The last part of a path or URI, which a report may name."""
    return place.rstrip("/").rpartition("/")[2]
