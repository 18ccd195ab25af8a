"""Output folders like those of a scoring run, written without one: fast, and with any logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import schema
from cctmn.numerics import Numerics

CLASSES = ("control", "pneumonia", "covid")
FILE_ROWS = 128  # as a GPU run commits


def write_output(
    out: Path,
    names: Sequence[str],
    logits_NC: np.ndarray,
    *,
    images: Path | None = None,
    errors: Mapping[str, str] | None = None,
    model_id: str = "standin",
    columns: Mapping[str, Sequence[Any]] | None = None,
    classes: Sequence[str] = CLASSES,
    numerics: Numerics | None = None,
) -> None:
    """Write predictions of these names; `errors` has codes by name, "pending" for no row.

    A detector has no classes. Without `numerics` it looks like one of an older version.
    """
    (out / "predictions").mkdir(parents=True)
    (out / "private/inventory").mkdir(parents=True)
    errors = errors or {}
    ids = [f"{i:032x}" for i in range(len(names))]
    base = (images or out.parent / "images").absolute()
    inventory = [
        dict.fromkeys(schema.INVENTORY.names)
        | {"slice_id": slice_id, "uri": (base / name).as_uri(), "member": "", "frame": 0}
        | {"container": "", "offset": 0, "frames": 1, "occurrence": 0, "flags": []}
        | dict.fromkeys(("packed_size", "size", "object_size"), _size(base / name))
        | {"error_code": ""}
        for slice_id, name in zip(ids, names, strict=True)
    ]
    table = pa.Table.from_pylist(inventory, schema=schema.INVENTORY)
    pq.write_table(table, out / "private/inventory/g000000-000000.parquet")
    rows = []
    for i, (slice_id, name) in enumerate(zip(ids, names, strict=True)):
        code = errors.get(name, "")
        if code == "pending":
            continue
        row: dict[str, Any] = {"slice_id": slice_id, "error_code": code, "model_id": model_id}
        row |= {"abstained": False, "flags": [], "lesions": [], "num_lesions": 0, "frame": 0}
        if not code:
            lesion = {"x0": 8, "y0": 8, "x1": 30, "y1": 24, "score": 0.9, "label": "lesion"}
            row |= {"rows": 64, "cols": 64, "lesions": [lesion], "num_lesions": 1}
            row |= {f"logit_{c}": logits_NC[i, k] for k, c in enumerate(classes)}
            row |= {name: values[i] for name, values in (columns or {}).items()}
        rows.append(row)
    for n, start in enumerate(range(0, len(rows), FILE_ROWS)):
        part = pa.Table.from_pylist(
            rows[start : start + FILE_ROWS], schema=schema.predictions(classes)
        )
        if numerics:
            metadata = part.schema.metadata | numerics.as_metadata("a processor")
            part = part.replace_schema_metadata(metadata)
        pq.write_table(part, out / f"predictions/part-{n:05d}.parquet")
    manifest = {
        "model": {"model_id": model_id, "name": "stand-in", "activation": "sigmoid"},
        "fingerprint": "f" * 64,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def study(
    patients: int = 40, *, most: int = 20, seed: int = 0, skill: float = 2.0
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names as COVIDx-CT has them, logits and classes; a patient's errors are correlated."""
    rng = np.random.default_rng(seed)
    names, logits, truth = [], [], []
    for patient in range(patients):
        label = patient % 3
        shift = rng.normal(size=3)
        for number in range(rng.integers(1, most + 1)):
            prefix = ("Normal", "CP", "NCP")[label]
            names.append(f"{prefix}_{patient}_{patient + 500}_{number:04d}.png")
            logits.append(rng.normal(size=3) + shift + skill * np.eye(3)[label])
            truth.append(label)
    return names, np.array(logits), np.array(truth)


def write_labels(path: Path, names: Sequence[str], truth: Sequence[int], **columns: Any) -> Path:
    """Write a CSV of uri, label, patient and further columns."""
    lines = [",".join(["uri", "label", "patient", *columns])]
    for i, (name, label) in enumerate(zip(names, truth, strict=True)):
        extra = [str(values[i]) for values in columns.values()]
        lines.append(",".join([name, CLASSES[label], name.split("_")[1], *extra]))
    path.write_text("\n".join(lines) + "\n")
    return path
