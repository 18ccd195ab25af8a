"""metrics.json: its sections, as data, and how files of older formats are read.

`cctmn evaluate` writes the file and `cctmn report` reads it. `SCHEMA` is a JSON Schema of format 2
with a sentence for each section; the ids of metrics are those of `metric.catalogue`. Format 1 used
other keys (`figures`, `what`), and `parse` translates them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cctmn.metrics.case_schema import CASES
from cctmn.metrics.json_schema import (
    COUNT,
    COUNT_OR_NULL,
    COUNTS,
    NUMBER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    object_of,
)
from cctmn.metrics.metric import catalogue, cohort_catalogue

FILE: Final = "metrics.json"
FORMAT: Final = 2
READABLE: Final = (1, 2)

# The value of labels.known_set for the 58,782 slices of the paper's Table 7.
PAPER_REMAINING: Final = "covidx-ct-train-remaining"
# Its value for the 21,191 test slices of COVIDx-CT, which Tables 4 and 5 are about.
PAPER_TEST: Final = "covidx-ct-test"
# Files of format 1 did not name the set; its number of slices recognises it.
_SET_OF_SLICES: Final = {58_782: PAPER_REMAINING, 21_191: PAPER_TEST}

_SHARED: Final = ("patients", "scans", "slices", "files", "pixels")


METRIC: Final = object_of(
    "A value with its intervals and sample size.",
    {
        "description": TEXT,
        "value": NUMBER_OR_NULL,
        "low": NUMBER_OR_NULL,
        "high": NUMBER_OR_NULL,
        "naive_low": NUMBER_OR_NULL,
        "naive_high": NUMBER_OR_NULL,
        "n": COUNT,
        "patients": COUNT,
        "fewest_patients": COUNT,
        "method": TEXT,
    },
    optional=("fewest_patients",),
)
_CURVE: Final = object_of(
    "Points of a curve.",
    {name: {"type": "array", "items": {"type": "number"}} for name in ("x", "y")},
)
_MATRIX: Final = object_of(
    "A confusion matrix: rows are true classes, columns predicted ones; `unscored` counts slices "
    "or patients of each true class without scores.",
    {
        "matrix": {"type": "array", "items": {"type": "array", "items": COUNT}},
        "unscored": {"type": "array", "items": COUNT},
    },
)
# How scores were computed, where that is recorded: `devices` counts rows by name of the device.
COMPUTED: Final[Mapping[str, Any]] = {
    "device": TEXT,
    "precision": TEXT,
    "devices": {"type": "object", "additionalProperties": COUNT},
}
SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "format": {"description": "Version of this format.", "const": FORMAT},
    "made": object_of("Version of cctmn and time (UTC).", {"cctmn": TEXT, "at": TEXT}),
    "title": {"description": "Title of the report.", **TEXT},
    "classes": {
        "description": "Image classes in the order of the logits; empty for a detector.",
        **TEXTS,
    },
    "model": {
        "description": "The evaluated model: id, name, activation, the temperature that the "
        "logits were divided by, and further entries of its card.",
        "type": "object",
        "properties": {
            "model_id": TEXT,
            "name": TEXT,
            "activation": {"enum": ["sigmoid", "softmax"]},
            "temperature": {"type": "number", "exclusiveMinimum": 0},
            "top_m": {"type": "integer", "minimum": 1},
            "patient_intercept": {"type": "number"},
            "patient_slope": {"type": "number", "minimum": 0},
            "calibrated_on": TEXT_OR_NULL,
        },
        "required": ["model_id", "name", "activation", "temperature", "top_m", "calibrated_on"],
    },
    "model_size": object_of(
        "Number of parameters: all, those of module S (0 in a detector), and of batch norm.",
        dict.fromkeys(("parameters", "module_s", "batch_norm"), COUNT_OR_NULL),
        optional=("module_s", "batch_norm"),
    ),
    "bootstrap": object_of(
        "How the intervals were made.",
        {"resamples": COUNT, "seed": {"type": "integer"}, "level": {"type": "number"}},
    ),
    "accounting": object_of(
        "Number of slices from indexed to evaluated, and of those that dropped out on the way.",
        {
            "indexed": COUNT,
            "scored": COUNT,
            "passed_over": COUNT,
            "errors": COUNT,
            "pending": COUNT,
            "labelled": COUNT,
            "evaluated": COUNT,
            "labels_without_prediction": COUNT,
            "predictions_without_label": COUNT,
            "labelled_errors": {"description": "By error code, or `pending`.", **COUNTS},
            "abstained": COUNT,
            "several_diseases": {
                "description": "Patients with labelled slices of several diseases; each counts "
                "by the disease of most slices.",
                **COUNT,
            },
            "mixed_patients": {
                "description": "In files of older versions: patients with slices of several "
                "classes, which were excluded from patient-level metrics.",
                **COUNT,
            },
        },
        optional=(
            "passed_over",
            "labelled",
            "evaluated",
            "labels_without_prediction",
            "predictions_without_label",
            "labelled_errors",
            "abstained",
            "several_diseases",
            "mixed_patients",
        ),
    ),
    "labels": object_of(
        "The labels: file name and hash, and their number by class.",
        {
            "name": TEXT,
            "sha256": TEXT,
            "slices": COUNT,
            "patients": COUNT,
            "unknown_patients": {"description": "Slices whose patient is unknown.", **COUNT},
            "by_class": COUNTS,
            "key": TEXT,
            "known_set": {
                "description": "Name of a published set that these slices are.",
                "enum": [PAPER_REMAINING, PAPER_TEST, None],
            },
        },
    ),
    "training": {
        "description": "Number of training slices, where it is known.",
        "anyOf": [{"type": "null"}, object_of("Training set.", {"slices": COUNT})],
    },
    "confusion": object_of(
        "Confusion matrices of slices and of patients.",
        {"slice": _MATRIX, "patient": _MATRIX},
        optional=("patient",),
    ),
    "curves": {
        "description": "Curves by id: <level>.roc.<class> (x: 1 - specificity, y: sensitivity), "
        "<level>.pr.<class> (x: sensitivity, y: PPV), froc (x: false positives per image, y: "
        "detected fraction of the lesions), and reliability by bin.",
        "type": "object",
        "properties": {
            "froc": _CURVE,
            "reliability": object_of(
                "Mean probability of the predicted class, accuracy and slices of each bin.",
                {
                    "confidence": {"type": "array", "items": {"type": "number"}},
                    "accuracy": {"type": "array", "items": {"type": "number"}},
                    "n": {"type": "array", "items": COUNT},
                },
            ),
        },
        "patternProperties": {r"^(slice|patient)\.(roc|pr)\.[a-z0-9_]+$": _CURVE},
        "additionalProperties": False,
    },
    "comparison": object_of(
        "The other model, and the slices and patients that both models scored.",
        {"model_id": TEXT, "name": TEXT, "n": COUNT, "patients": COUNT, **COMPUTED},
        optional=tuple(COMPUTED),
    ),
    "cohorts": {
        "description": "Metrics by cohort; those of fewer than ten patients are hidden, and those "
        "from which they could be computed.",
        "type": "array",
        "items": object_of(
            "A grouping by one or more columns.",
            {
                "by": TEXTS,
                "cells": {
                    "type": "array",
                    "items": object_of(
                        "One combination of values.",
                        {
                            "values": TEXTS,
                            "hidden": {"type": "boolean"},
                            "slices": COUNT,
                            "patients": COUNT,
                            "metrics": {"type": "object", "additionalProperties": METRIC},
                        },
                        optional=("slices", "patients", "metrics"),
                    ),
                },
            },
        ),
    },
    "audit": object_of(
        "Patients, scans, slices, files and pictures that two sets share; null: not compared.",
        {
            "sets": {
                "type": "array",
                "items": object_of(
                    "A set.",
                    {"name": TEXT}
                    | dict.fromkeys(
                        ("slices", "patients", "unknown_patients", "unreadable"), COUNT
                    ),
                    optional=("unknown_patients", "unreadable"),
                ),
            },
            "pairs": {
                "type": "array",
                "items": object_of(
                    "Two sets.",
                    {"a": TEXT, "b": TEXT} | dict.fromkeys(_SHARED, COUNT_OR_NULL),
                ),
            },
            "warnings": TEXTS,
        },
    ),
    "independence": object_of(
        "How many patients and slices of the labels are in the sets that the model was fitted on, "
        "by the records of its card; `notes` says what was compared.",
        {
            "sets": {
                "type": "object",
                "additionalProperties": object_of(
                    "A recorded set.",
                    dict.fromkeys(
                        ("patients", "slices", "recorded_patients", "recorded_slices"), COUNT
                    )
                    | {"is_sampled": {"type": "boolean"}},
                ),
            },
            "notes": TEXTS,
        },
    ),
    "cases": CASES,
    "detection": object_of(
        "Images with lesion masks: how many, how many have a prediction, and why others have none.",
        {
            "images": COUNT,
            "patients": COUNT,
            "joined": COUNT,
            "missing": COUNT,
            "errors": COUNT,
            "without_lesion": COUNT,
            "unreadable": COUNT,
            "lesions": COUNT,
            "froc_of": {"enum": ["box", "mask"]},
            "masks_sha256": {"description": "Hash of the masks, whatever their names.", **TEXT},
            "note": TEXT_OR_NULL,
        },
        optional=("masks_sha256",),
    ),
    "metrics": {
        "description": "Every metric by its id, see `metric.catalogue`.",
        "type": "object",
        "additionalProperties": METRIC,
    },
    "warnings": {"description": "What a reader must know before any number.", **TEXTS},
    "versions": {
        "description": "Libraries of the evaluation.",
        "type": "object",
        "additionalProperties": TEXT_OR_NULL,
    },
    "scoring": object_of(
        "Fingerprint and libraries of the scoring run, and the device and precision of its scores, "
        "with the number of rows by name of the device.",
        {"fingerprint": TEXT_OR_NULL, "versions": {"type": "object"}, **COMPUTED},
        optional=tuple(COMPUTED),
    ),
}
# Sections that every evaluation has. The others depend on its options.
REQUIRED: Final = (
    "format",
    "made",
    "title",
    "classes",
    "model",
    "model_size",
    "bootstrap",
    "accounting",
    "curves",
    "metrics",
    "warnings",
    "versions",
    "scoring",
)
SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "metrics.json of cctmn",
    "type": "object",
    "properties": SECTIONS,
    "required": list(REQUIRED),
    "additionalProperties": False,
}


def unknown(content: Mapping[str, Any]) -> list[str]:
    """Return sections and ids of metrics that the format does not have, in alphabetical order."""
    classes = content["classes"]
    of_cohorts = [
        cell.get("metrics", {})
        for grouping in content.get("cohorts") or ()
        for cell in grouping["cells"]
    ]
    known_ids, cohort_ids = catalogue(classes), cohort_catalogue(classes)
    names = {name for name in content if name not in SECTIONS}
    names |= {f"metrics.{id_}" for id_ in content["metrics"] if id_ not in known_ids}
    names |= {f"cohorts.{id_}" for cell in of_cohorts for id_ in cell if id_ not in cohort_ids}
    return sorted(names)


def parse(data: bytes) -> dict[str, Any]:
    """Return the content of a metrics.json as format 2.

    Raises ValueError, with the reason as its text, for data that is not JSON or has an unreadable
    format. Sections are not checked here.
    """
    try:
        content = json.loads(data)
    except ValueError:  # includes data that is not UTF-8
        raise ValueError("not valid JSON") from None
    version = content.get("format") if isinstance(content, dict) else None
    if version not in READABLE or isinstance(version, bool):
        readable = " and ".join(map(str, READABLE))
        raise ValueError(f"format {version!r}, this version of cctmn reads {readable}")
    return content if version == FORMAT else _from_format_1(content)


def _from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Translate format 1, leaving malformed sections as they are for the reader to report."""
    translated = {key: value for key, value in content.items() if key != "figures"}
    translated["format"] = FORMAT
    if "figures" in content:
        translated["metrics"] = _metrics_from_format_1(content["figures"])
    cohorts = content.get("cohorts")
    if isinstance(cohorts, list):
        translated["cohorts"] = [_cohort_from_format_1(one) for one in cohorts]
    labels = content.get("labels")
    if isinstance(labels, dict) and labels.get("slices") in _SET_OF_SLICES:
        translated["labels"] = {**labels, "known_set": _SET_OF_SLICES[labels["slices"]]}
    return translated


def _metrics_from_format_1(figures: Any) -> Any:
    if not isinstance(figures, dict):
        return figures
    return {
        id_: {("description" if key == "what" else key): value for key, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for id_, entry in figures.items()
    }


def _cohort_from_format_1(grouping: Any) -> Any:
    if not isinstance(grouping, dict) or not isinstance(grouping.get("cells"), list):
        return grouping
    cells = [
        {
            ("metrics" if key == "figures" else key): (
                _metrics_from_format_1(value) if key == "figures" else value
            )
            for key, value in cell.items()
        }
        if isinstance(cell, dict)
        else cell
        for cell in grouping["cells"]
    ]
    return {**grouping, "cells": cells}
