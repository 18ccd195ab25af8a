"""The paper's evaluation at full count, without its pictures or weights.

    python -m tests.rerun SPLIT [--exclude LIST] -o DIR [--limit N]

Every slice of the split becomes a small synthetic PNG of its own under the split's own name, and
the real chain runs on them: labels as the manifest, index, Ray scoring (by a stand-in for the
network), join, bootstrap, report. What is asserted is what a rerun must not lose: the count, the
shares of the classes, no row lost or doubled. `make rerun` calls it.
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cctmn import store, tables
from cctmn.data import labels
from cctmn.evaluate import run as evaluation
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.report import render
from cctmn.score import run as scoring
from tests.makers import stand_in

SIDE_PX = 64


def write_picture(path: Path, *, label: int, number: int, patient_shift: float) -> None:
    """A grey body with lungs, whose halves and noise lead the stand-in to the class, mostly.

    The stand-in's logits are means of the upper and the lower half and the spread, over 100.
    """
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j]
    grey = np.where(x**2 + y**2 < 0.8, 200.0, 20.0)
    grey -= 110 * ((np.abs(np.abs(x) - 0.4) < 0.25) & (np.abs(y) < 0.5))
    tilt = 14 * (1, -1, 0)[label] + patient_shift + rng.normal(0, 10)
    grey += np.where(y < 0, tilt, -tilt) + rng.normal(0, 8, grey.shape)
    if label == 2:
        grey = 128 + (grey - 128) * 1.5 - 60
    buffer = io.BytesIO()
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    path.write_bytes(buffer.getvalue())


def make_pictures(table: pa.Table, folder: Path) -> None:
    """One file a line of the table; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = {"control": 0, "pneumonia": 1, "covid": 2}
    columns = (table[name].to_pylist() for name in ("uri", "label", "patient"))
    for number, (name, label, patient) in enumerate(zip(*columns, strict=True)):
        if not (folder / name).exists():
            shift = float(np.random.default_rng(int(patient)).normal(0, 8))
            write_picture(folder / name, label=classes[label], number=number, patient_shift=shift)


def rerun(
    split: Path,
    folder: Path,
    *,
    exclude: Path | None = None,
    limit: int | None = None,
    resamples: int = 2000,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Labels, pictures, scores, figures, report; returns metrics.json, all counts asserted."""
    clock = time.monotonic()

    def step(what: str) -> None:
        nonlocal clock
        report(f"{time.monotonic() - clock:7.1f} s  {what}")
        clock = time.monotonic()

    table, strange = labels.covidx_ct(str(split), exclude=None if exclude is None else str(exclude))
    assert not strange
    table = table if limit is None else table.take(range(0, len(table), len(table) // limit))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "labels.csv"
    manifest.write_bytes(labels.to_bytes(table, parquet=False))
    step(f"{len(table):,} labels")
    make_pictures(table, folder / "images")
    step("pictures")
    out = folder / "out"
    job = scoring.ScoreJob(
        [str(manifest)], out=str(out), source=stand_in(), root=str(folder / "images")
    )
    summary = scoring.score(job)
    step(f"indexed and scored: {summary.counts.ok:,} ok")
    metrics = evaluation.evaluate(
        EvaluationOptions(
            out=str(out),
            labels=str(manifest),
            to=str(folder / "evaluation"),
            resampling=Resampling(resamples=resamples),
        )
    )
    step("evaluated")
    render.write(str(folder / "evaluation"))
    step("report")
    check(table, out, metrics)
    return metrics


def check(table: pa.Table, out: Path, metrics: dict[str, Any]) -> None:
    """No slice lost, none doubled, the classes in their numbers."""
    expected = Counter(table["label"].to_pylist())
    ids = [
        slice_id
        for file in tables.parquet_files(store.to_uri(str(out / "predictions")))
        for slice_id in tables.read(file, ["slice_id"])["slice_id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == len(table), (len(ids), len(set(ids)), len(table))
    counts = metrics["accounting"]
    for step in ("indexed", "scored", "labelled", "evaluated"):
        assert counts[step] == len(table), (step, counts)
    assert counts["errors"] == counts["pending"] == counts["predictions_without_label"] == 0
    assert metrics["labels"]["by_class"] == dict(expected)
    matrix = metrics["confusion"]["slice"]["matrix"]
    assert [sum(row) for row in matrix] == [expected[name] for name in metrics["classes"]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path)
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="about this many slices, evenly drawn")
    asked = parser.parse_args()
    began = time.monotonic()
    metrics = rerun(asked.split, asked.out, exclude=asked.exclude, limit=asked.limit)
    shares = ", ".join(f"{n:,} {name}" for name, n in metrics["labels"]["by_class"].items())
    evaluated = metrics["accounting"]["evaluated"]
    print(f"{evaluated:,} slices evaluated ({shares}), none lost, none doubled")
    print(f"{time.monotonic() - began:.0f} s in all; report: {asked.out}/evaluation/report.html")


if __name__ == "__main__":
    main()
