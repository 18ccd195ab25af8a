"""Output folders of `cctmn score` for its report: plausible, written without a scoring job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import rle, schema, studies
from cctmn.contract import InputContract
from cctmn.model.probabilities import probabilities

CLASSES = ("control", "pneumonia", "covid")
RULE = studies.StudyRule("softmax")
FILE_ROWS = 128  # as a GPU run commits


def a_slice(
    study: str | None, z: float | None, *, sick: float = 0.0, **values: Any
) -> dict[str, Any]:
    """A scored slice; `sick` is the logit of covid, and that of control is 0."""
    logits = np.array([0.0, -6.0, sick])
    row: dict[str, Any] = {"study_key": study, "series_key": study and f"{study}-1"}
    row |= {"patient_key": study and f"p-{study}", "slice_z_mm": z, "frame": 0}
    row |= {"rows": 64, "cols": 64, "spacing_row_mm": 0.7, "spacing_col_mm": 0.7}
    row |= {"flags": [], "abstained": False, "error_code": "", "model_id": "m", "lesions": []}
    row |= {"num_lesions": 0, "t_decode_ms": 8.0, "t_score_ms": 40.0}
    row |= {f"logit_{name}": value for name, value in zip(CLASSES, logits, strict=True)}
    p = probabilities(logits, activation="softmax")
    row |= {f"p_{name}": value for name, value in zip(CLASSES, p, strict=True)}
    row |= {"pred_class": CLASSES[int(logits.argmax())]}
    if sick > 0:
        row["lesions"] = [
            {"x0": 8, "y0": 8, "x1": 30, "y1": 24, "score": 0.9, "label": "ggo", "mask_px": 200}
        ]
        row["num_lesions"] = 1
    return row | values


def an_error(study: str | None, code: str) -> dict[str, Any]:
    row = a_slice(study, None) | {"error_code": code, "pred_class": None}
    return row | {f"{kind}_{name}": None for kind in ("p", "logit") for name in CLASSES}


def scan(study: str, slices: int, *, sick: float, **values: Any) -> list[dict[str, Any]]:
    """A scan with a lesion in its middle third."""
    return [
        a_slice(study, 2.5 * n, sick=sick if slices / 3 <= n < 2 * slices / 3 else -4.0, **values)
        for n in range(slices)
    ]


def with_mask(row: dict[str, Any], px: int) -> dict[str, Any]:
    mask = np.zeros(64 * 64, np.uint8)
    mask[:px] = 1
    masks = [one["counts"] for one in rle.encode([mask.reshape(64, 64)])] if px else []
    return row | {"lesion_masks": masks}


def write(
    out: Path,
    rows: Sequence[dict[str, Any]],
    *,
    masks: bool = False,
    table: bool = True,
    without: Sequence[str] = (),
    **manifest: Any,
) -> Path:
    """Write predictions, the studies unless `table` is False, and a manifest; OUT.

    Older versions wrote predictions `without` some columns.
    """
    (out / "predictions").mkdir(parents=True)
    kind = schema.predictions(CLASSES, masks=masks)
    for i, row in enumerate(rows):
        row.setdefault("slice_id", f"{i:032x}")
    for number, start in enumerate(range(0, len(rows), FILE_ROWS)):
        part = pa.Table.from_pylist(list(rows[start : start + FILE_ROWS]), kind)
        pq.write_table(
            part.drop_columns(list(without)), out / f"predictions/part-{number:05d}.parquet"
        )
    if table:
        studies.write(out.absolute().as_uri(), rule=RULE)
    described = {
        "model_id": "m",
        "name": "stand-in",
        "activation": "softmax",
        "trained": True,
        "notes": ["Made for tests."],
        "calibration": {},
        "input": InputContract(size_px=64, max_size_px=128).to_card(),
    }
    content = {
        "complete": True,
        "counts": {"pending": 0},
        "exit_code": 0,
        "last_run": {"slices": len(rows), "elapsed_s": 10.0},
        "model": described,
        "fingerprint": "f" * 64,
    }
    (out / "manifest.json").write_text(json.dumps(content | manifest))
    return out


def many(out: Path, *, num_studies: int, slices: int, seed: int = 0) -> Path:
    """Write an archive of equal scans, fast enough for the size of a hospital's."""
    rng = np.random.default_rng(seed)
    number = num_studies * slices
    study_N = np.repeat(np.arange(num_studies), slices)
    logits_NC = rng.normal(size=(number, 3)) + rng.normal(size=(num_studies, 3))[study_N]
    p_NC = probabilities(logits_NC, activation="softmax")
    keys = np.array([f"{i * 2654435761 % 2**32:032x}" for i in range(num_studies)])
    lesion = {"x0": 8, "y0": 8, "x1": 30, "y1": 24, "score": 0.9, "label": "ggo", "mask_px": None}
    lesions = [[lesion] * n for n in rng.poisson(1.0, number)]
    columns: dict[str, Any] = {
        "slice_id": [f"{i:032x}" for i in range(number)],
        "study_key": keys[study_N],
        "series_key": np.char.add(keys[study_N], "s"),
        "patient_key": np.char.add(keys[study_N], "p"),
        "frame": np.zeros(number, int),
        "slice_z_mm": np.tile(np.arange(slices) * 0.7, num_studies),
        "rows": np.full(number, 512),
        "cols": np.full(number, 512),
        "spacing_row_mm": np.full(number, 0.7),
        "spacing_col_mm": np.full(number, 0.7),
        "pred_class": np.array(CLASSES)[logits_NC.argmax(axis=1)],
        "num_lesions": [len(one) for one in lesions],
        "lesions": lesions,
        "flags": [["small"] if n % 7 == 0 else [] for n in range(number)],
        "abstained": np.zeros(number, bool),
        "error_code": [""] * number,
        "model_id": ["m"] * number,
    }
    for index, name in enumerate(CLASSES):
        columns |= {f"p_{name}": p_NC[:, index], f"logit_{name}": logits_NC[:, index]}
    kind = schema.predictions(CLASSES)
    arrays = {
        field.name: pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(number, field.type)
        for field in kind
    }
    table = pa.table(arrays, schema=kind)
    write(out, [])
    for part, start in enumerate(range(0, number, FILE_ROWS)):
        pq.write_table(table[start : start + FILE_ROWS], out / f"predictions/p{part:06d}.parquet")
    studies.write(out.absolute().as_uri(), rule=RULE)
    return out
