"""metrics.json as an evaluation writes it: invented but plausible, with every section."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cctmn.evaluate.lesion_cases import outline
from cctmn.metrics import document
from cctmn.phantom import draw

CLASSES = ("control", "pneumonia", "covid")
PICTURE_PX = 256
OPTIM = {"lr": 1e-5, "weight_decay": 1e-3, "batch_size": 8, "epochs": 50}
OPTIM_1 = {"lr": 1e-5, "weight_decay": 1e-3, "batch_size": 1, "epochs": 100}
LESIONS = {draw.GGO: "ggo", draw.CONSOLIDATION: "consolidation"}


def metrics(*, classes: Sequence[str] = CLASSES, seed: int = 0, cases: int = 8) -> dict[str, Any]:
    """Return every section, for any classes."""
    rng = np.random.default_rng(seed)
    slices, patients = 21_191, 426
    fractions = rng.dirichlet([8] * len(classes))
    matrix = _matrix(rng, (fractions * slices).astype(int), accuracy=0.93)
    of_patients = _matrix(rng, (fractions * patients).astype(int), accuracy=0.95)
    unscored = rng.integers(0, 30, len(classes))
    metrics_by_id = {
        **_rates(matrix, classes, level="slice", patients=patients, rng=rng),
        **_rates(of_patients, classes, level="patient", patients=patients, rng=rng),
        **_worst(matrix, unscored, classes, patients=patients, rng=rng),
        "calibration.ece": _metric(0.021, "expected calibration error", n=slices, rng=rng),
        "calibration.brier": _metric(0.118, "Brier score", n=slices, rng=rng),
        "calibration.nll": _metric(0.214, "negative log-likelihood", n=slices, rng=rng),
        **_detection(rng),
        **_differences(classes, rng=rng),
    }
    return {
        "format": document.FORMAT,
        "made": {"cctmn": "0.1.0", "at": "2026-11-24T22:40:00Z"},
        "title": "COVIDx-CT test split, ResNet-34 t1",
        "classes": list(classes),
        "model": {
            "model_id": "9f31c02ab77e",
            "name": "resnet34-t1, S + batch norm",
            "activation": "sigmoid",
            "temperature": 1.3,
            "top_m": 5,
            "trained": True,
            "calibrated_on": "val_COVIDx_CT-1.txt",
            "backbone": "resnet34, truncation 1",
            "ranked": 128,
            "hidden": 512,
            "mask_head": True,
            "lesion_classes": ["ggo", "consolidation"],
            "lesions": {"min_score": 0.05, "nms_iou": 0.5, "max": 128},
            "training": {
                "stage": "classifier",
                "settings": {"variant": "s+bn", "loss": "bce", "optim": OPTIM},
                "slices": 3000,
                "valid_slices": 21_036,
                "epoch": 47,
                "started_from": {
                    "stage": "detector",
                    "settings": {"variant": "full", "init": "imagenet", "optim": OPTIM_1},
                    "slices": 650,
                    "valid_slices": 100,
                    "epoch": 93,
                },
            },
            "intended_use": "Research only; not a medical device.",
        },
        "labels": {
            "name": "test_COVIDx_CT-1.txt",
            "sha256": hashlib.sha256(b"labels").hexdigest(),
            "slices": slices,
            "patients": patients,
            "by_class": dict(zip(classes, map(int, fractions * slices), strict=True)),
            "key": "name",
            "unknown_patients": 0,
            "known_set": document.PAPER_TEST,
        },
        "bootstrap": {"resamples": 2000, "seed": 0, "level": 0.95},
        "accounting": {
            "indexed": 22_004,
            "scored": 21_911,
            "errors": 93,
            "pending": 0,
            "labelled": 21_262,
            "evaluated": slices,
            "labels_without_prediction": 12,
            "predictions_without_label": 649,
            "labelled_errors": {"truncated": 41, "localizer": 23, "invalid_rescale": 7},
            "abstained": 118,
            "mixed_patients": 3,
        },
        "metrics": metrics_by_id,
        "confusion": {
            "slice": {"matrix": matrix.tolist(), "unscored": unscored.tolist()},
            "patient": {"matrix": of_patients.tolist(), "unscored": [0] * len(classes)},
        },
        "curves": _curves(classes, rng=rng),
        "cohorts": _cohorts(classes, rng=rng),
        "audit": {
            "sets": [
                {"name": "train_split_classification.txt", "slices": 3000, "patients": 608},
                {"name": "test_COVIDx_CT-1.txt", "slices": slices, "patients": patients},
            ],
            "pairs": [
                {
                    "a": "train_split_classification.txt",
                    "b": "test_COVIDx_CT-1.txt",
                    "patients": 0,
                    "scans": 0,
                    "files": None,
                    "pixels": None,
                    "slices": 0,
                }
            ],
            "warnings": [],
        },
        "detection": {
            "images": 100,
            "patients": 43,
            "joined": 98,
            "missing": 1,
            "errors": 1,
            "without_lesion": 4,
            "unreadable": 0,
            "lesions": 311,
            "froc_of": "mask",
            "masks_sha256": hashlib.sha256(b"masks").hexdigest(),
            "note": None,
        },
        "comparison": {
            "model_id": "04be7714aa19",
            "name": "resnet18-t1",
            "n": slices,
            "patients": patients,
        },
        "cases": {
            "misses": [detailed(_case(k, classes, wrong=True)) for k in range(cases)],
            "false_alarms": [_case(cases + k, classes, wrong=True) for k in range(cases)],
            "hits": [_case(2 * cases + k, classes, wrong=False) for k in range(cases)],
            "lowest_ap": [_image(3 * cases + k) for k in range(min(2, cases))],
            "false_boxes": [],
            "missed_patients": [_patient(4 * cases, classes)] if cases else [],
            "false_alarm_patients": [],
        },
        "training": {"slices": 3000},
        "model_size": {"parameters": 11_450_000, "module_s": 592_387, "batch_norm": 9_856},
        "warnings": [
            "58,782-slice set shares 606 of 608 sampled patients with training: not independent",
            "118 evaluated slices are outside what the model is made for",
        ],
        "versions": {"cctmn": "0.1.0", "numpy": "2.3.5", "scipy": "1.16.3"},
        "scoring": {
            "fingerprint": hashlib.sha256(b"job").hexdigest(),
            "versions": {"cctmn": "0.1.0", "torch": "2.14.1", "ray": "2.60.0"},
        },
    }


def minimum() -> dict[str, Any]:
    """Return only what a report needs."""
    return {
        "format": document.FORMAT,
        "classes": [],
        "metrics": {},
        "accounting": {"indexed": 3, "scored": 2, "errors": 1, "pending": 0},
        "curves": None,
        "cases": None,
    }


def guessing(classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    """Return a model that guesses: its curves run through the corner meant for their names."""
    content = metrics(classes=classes, cases=1)
    for name, curve in content["curves"].items():
        if ".roc." in name:
            curve["y"] = curve["x"]
        elif ".pr." in name:
            curve["y"] = [0.2] * len(curve["x"])
    return content


def folder(
    path: Path, content: dict[str, Any], *, pictures: bool = True, leave_out: int = 1
) -> str:
    """Write an evaluation folder; the first `leave_out` cases have no picture."""
    private = path / "private" / "cases"
    private.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(content))
    entries = [one for kind in (content.get("cases") or {}).values() for one in kind]
    cases = [case for one in entries for case in one.get("slices", [one])]
    for k, case in enumerate(cases[leave_out:] if pictures else []):
        (private / f"{case['slice_id']}.png").write_bytes(picture(k + leave_out))
    return str(path)


def picture(seed: int, *, side_px: int = PICTURE_PX) -> bytes:
    """Return a phantom slice as an 8-bit grey PNG in a lung window."""
    grey = np.clip((_phantom(seed).hu + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).resize((side_px, side_px)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _phantom(seed: int) -> draw.PhantomSlice:
    rng = np.random.default_rng(seed)
    finding = (draw.COVID, draw.PNEUMONIA)[seed % 2]
    patient = draw.Patient.drawn(rng, finding=finding)
    return draw.visible_slice(patient, rng=rng)


def _case(seed: int, classes: Sequence[str], *, wrong: bool) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    truth = int(rng.integers(len(classes)))
    predicted = (truth + 1 + int(rng.integers(len(classes) - 1))) % len(classes) if wrong else truth
    p = rng.uniform(0.001, 0.3, len(classes))
    p[predicted] = rng.uniform(0.6, 0.999)
    drawn = _phantom(seed)
    lesions = []
    for label, name in LESIONS.items():
        marked, _ = ndimage.label(drawn.labels == label)
        for rows, cols in ndimage.find_objects(marked):
            lesions.append(
                {
                    "x0": float(cols.start),
                    "y0": float(rows.start),
                    "x1": float(cols.stop),
                    "y1": float(rows.stop),
                    "score": float(rng.uniform(0.1, 0.99)),
                    "label": name,
                }
            )
    size = int(drawn.hu.shape[0])
    return {
        "slice_id": hashlib.sha256(str(seed).encode()).hexdigest()[:32],
        "truth": classes[truth],
        "predicted": classes[predicted],
        "p": {name: float(x) for name, x in zip(classes, p, strict=True)},
        "rows": size,
        "cols": size,
        "lesions": sorted(lesions, key=lambda one: -one["score"]),
    }


def detailed(case: dict[str, Any], **display: Any) -> dict[str, Any]:
    """Return a case with what an evaluation adds if it can read the slice."""
    shown = dict.fromkeys(("transpose", "flip_rows", "flip_cols"), False)
    shown |= {"is_oriented": True, "window_center_hu": -600, "window_width_hu": 1500}
    return case | {
        "patient_key": hashlib.sha256(case["slice_id"].encode()).hexdigest()[:32],
        "slice_z_mm": -120.5,
        "spacing_row_mm": 0.7,
        "spacing_col_mm": 0.7,
        "flags": ["lossy"],
        "display": shown | display,
    }


def _image(seed: int) -> dict[str, Any]:
    """Return an image with lesion masks, of a detector without classes."""
    case = detailed(_case(seed, CLASSES, wrong=False))
    for name in ("truth", "predicted", "p"):
        del case[name]
    marked, count = ndimage.label(np.isin(_phantom(seed).labels, list(LESIONS)))
    true_lesions = [
        {"x0": 1.0, "y0": 1.0, "x1": 9.0, "y1": 9.0, "label": "ggo"}
        | {"outline": outline(marked == number)}
        for number in range(1, count + 1)
    ]
    outcome = {"ap50": 0.25, "missed": 1, "false_boxes": 2}
    return case | outcome | {"true_lesions": true_lesions}


def _patient(seed: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return a missed patient with two of seven deciding slices."""
    slices = [detailed(_case(seed + k, classes, wrong=True)) for k in range(2)]
    for one in slices:
        del one["truth"]
    return {
        "patient_key": slices[0]["patient_key"],
        "truth": classes[-1],
        "predicted": classes[0],
        "p": slices[0]["p"],
        "deciding": 7,
        "slices": slices,
    }


def _metric(
    value: float,
    description: str,
    *,
    rng: np.random.Generator,
    n: int = 21_191,
    patients: int = 426,
) -> dict[str, Any]:
    half = max(0.002, 2 * float(np.sqrt(max(value * (1 - value), 0.001) / patients)))
    naive = half / float(rng.uniform(3, 6))
    return {
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half * 0.8),
        "naive_low": max(0.0, value - naive),
        "naive_high": min(1.0, value + naive * 0.9),
        "n": n,
        "patients": patients,
        "method": "bootstrap over patients",
        "description": description,
    }


def _matrix(rng: np.random.Generator, true: np.ndarray, *, accuracy: float) -> np.ndarray:
    size = len(true)
    rows = []
    for k, n in enumerate(true):
        p = np.full(size, (1 - accuracy) / max(1, size - 1)) * rng.uniform(0.3, 1.7, size)
        p[k] = 0
        p[k] = 1 - p.sum()
        rows.append(rng.multinomial(n, p))
    return np.array(rows)


def _rates(
    matrix: np.ndarray,
    classes: Sequence[str],
    *,
    level: str,
    patients: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    total, right = int(matrix.sum()), np.diag(matrix)
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * right / (true + predicted)
    values = {
        "accuracy": right.sum() / total,
        "f1_weighted": (true * f1).sum() / total,
        "f1_macro": f1.mean(),
    }
    for k, name in enumerate(classes):
        values[f"sensitivity.{name}"] = right[k] / true[k]
        values[f"ppv.{name}"] = right[k] / predicted[k]
        values[f"specificity.{name}"] = 1 - (predicted[k] - right[k]) / (total - true[k])
        values[f"auc.{name}"] = 0.98
        values[f"ap.{name}"] = 0.96
    return {
        f"{level}.{key}": _metric(
            float(value), f"{key.replace('.', ', ')}, {level}s", n=total, rng=rng, patients=patients
        )
        for key, value in values.items()
    }


def _worst(
    matrix: np.ndarray,
    unscored: np.ndarray,
    classes: Sequence[str],
    *,
    patients: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    true, right = matrix.sum(axis=1) + unscored, np.diag(matrix)
    values = {"accuracy": right.sum() / true.sum(), "f1_weighted": right.sum() / true.sum()}
    values |= {f"sensitivity.{name}": right[k] / true[k] for k, name in enumerate(classes)}
    return {
        f"worst_case.{key}": _metric(float(v), f"{key}, every failure wrong", rng=rng)
        for key, v in values.items()
    }


def _detection(rng: np.random.Generator) -> dict[str, Any]:
    values = {
        "mask.image_ap50": 0.581,
        "mask.image_ap75": 0.447,
        "mask.image_map": 0.431,
        "mask.coco_ap50": 0.512,
        "mask.coco_ap75": 0.377,
        "mask.coco_map": 0.361,
        "box.image_ap50": 0.602,
        "box.image_map": 0.44,
        "box.coco_ap50": 0.533,
        "froc.at_1": 0.612,
        "froc.mean": 0.588,
    }
    return {
        f"detection.{key}": _metric(value, f"lesions, {key}", rng=rng, n=98, patients=43)
        | {"naive_low": None, "naive_high": None}
        for key, value in values.items()
    }


def _differences(classes: Sequence[str], *, rng: np.random.Generator) -> dict[str, Any]:
    values = {"slice.accuracy": 0.013, "slice.f1_weighted": -0.012, "slice.f1_macro": -0.004}
    values |= {f"slice.sensitivity.{name}": float(rng.normal(0, 0.01)) for name in classes}
    return {
        f"difference.{key}": {
            "value": value,
            "low": value - 0.009,
            "high": value + 0.01,
            "naive_low": None,
            "naive_high": None,
            "n": 21_191,
            "patients": 426,
            "method": "paired bootstrap over patients",
            "description": f"difference of {key}",
        }
        for key, value in values.items()
    }


def _curves(classes: Sequence[str], *, rng: np.random.Generator) -> dict[str, Any]:
    curves: dict[str, Any] = {}
    x = np.linspace(0, 1, 200)
    for level in ("slice", "patient"):
        for k, name in enumerate(classes):
            bend = 0.03 + 0.04 * k + (0.03 if level == "patient" else 0)
            roc = x**bend
            pr = 1 - (0.12 + 0.05 * k) * x**8 - 0.55 * x**40
            if level == "patient":  # few patients make steps
                roc, pr = np.round(roc * 30) / 30, np.round(pr * 60) / 60
            curves[f"{level}.roc.{name}"] = {"x": x.tolist(), "y": roc.tolist()}
            curves[f"{level}.pr.{name}"] = {"x": x.tolist(), "y": pr.tolist()}
    confidence = np.sort(np.concatenate([rng.uniform(0.4, 0.9, 6), rng.uniform(0.9, 1, 9)]))
    right = np.clip(confidence - rng.uniform(0, 0.08, 15), 0, 1)
    curves["reliability"] = {
        "confidence": confidence.tolist(),
        "accuracy": right.tolist(),
        "n": [1413] * 14 + [1409],
    }
    false = np.linspace(0, 11, 200)
    curves["froc"] = {"x": false.tolist(), "y": (0.85 * (1 - np.exp(-1.1 * false))).tolist()}
    return curves


def _cohorts(classes: Sequence[str], *, rng: np.random.Generator) -> list[dict[str, Any]]:
    def cell(*values: str, hidden: bool = False) -> dict[str, Any]:
        if hidden:
            return {"values": list(values), "hidden": True}
        of_cell = {"accuracy": _metric(float(rng.uniform(0.88, 0.95)), "accuracy", rng=rng)}
        of_cell |= {
            f"sensitivity.{name}": _metric(float(rng.uniform(0.85, 0.97)), "sensitivity", rng=rng)
            for name in classes
        }
        return {
            "values": list(values),
            "hidden": False,
            "slices": int(rng.integers(2000, 9000)),
            "patients": int(rng.integers(40, 200)),
            "metrics": of_cell,
        }

    return [
        {"by": ["sex"], "cells": [cell("F"), cell("M"), cell("unknown", hidden=True)]},
        {
            "by": ["age", "scanner"],
            "cells": [
                cell("under 40", "Siemens"),
                cell("40 to 64", "Siemens"),
                cell("65 and over", "GE", hidden=True),
            ],
        },
    ]


def format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Return the same content as the first format of metrics.json had it."""

    def figures(metrics_by_id: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {("what" if key == "description" else key): value for key, value in one.items()}
            for name, one in metrics_by_id.items()
        }

    older = {key: value for key, value in content.items() if key != "metrics"}
    older |= {"format": 1, "figures": figures(content["metrics"])}
    older["labels"] = {k: v for k, v in content["labels"].items() if k != "known_set"}
    older["cohorts"] = [
        {
            "by": grouping["by"],
            "cells": [
                {k: v for k, v in cell.items() if k != "metrics"}
                | ({"figures": figures(cell["metrics"])} if "metrics" in cell else {})
                for cell in grouping["cells"]
            ],
        }
        for grouping in content["cohorts"]
    ]
    return older
