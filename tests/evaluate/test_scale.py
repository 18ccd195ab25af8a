"""The 58,782 slices at full count: evaluated and reported within 90 s and 2 GiB on two cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPO
from tests.evaluate.outputs import write_labels, write_output

pytestmark = pytest.mark.slow

CLASS_SLICES = (26_201, 21_061, 11_520)
CLASS_PATIENTS = (200, 420, 242)  # 862, as there


def remaining() -> tuple[list[str], np.ndarray, np.ndarray]:
    """As many slices and patients as the published set has; a patient's slices err together."""
    rng = np.random.default_rng(0)
    names, truth, shifts = [], [], []
    first = 0
    for label, (slices, patients) in enumerate(zip(CLASS_SLICES, CLASS_PATIENTS, strict=True)):
        shift_GC = rng.normal(0, 1.5, (patients, 3))
        for i in range(slices):
            patient = i % patients
            prefix = ("Normal", "CP", "NCP")[label]
            names.append(f"{prefix}_{first + patient}_{first + patient}_{i:05d}.png")
            truth.append(label)
            shifts.append(shift_GC[patient])
        first += patients
    logits = rng.normal(size=(len(names), 3)) + np.array(shifts) + 3 * np.eye(3)[truth]
    return names, logits, np.array(truth)


@pytest.mark.timeout(400)
def test_full_count_in_little_memory(tmp_path: Path) -> None:
    names, logits, truth = remaining()
    write_output(tmp_path / "out", names, logits)
    write_labels(tmp_path / "labels.csv", names, truth)
    words = ["cctmn.cli", "evaluate", str(tmp_path / "out"), "--labels"]
    words += [str(tmp_path / "labels.csv"), "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.peak", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    peak_gib = int(done.stderr.split("peak_kib")[1]) / (1 << 20)
    print(f"{peak_gib:.2f} GiB")
    assert peak_gib < 2
    metrics = json.loads((tmp_path / "out/evaluation/metrics.json").read_text())
    assert metrics["bootstrap"]["resamples"] == 2000
    accuracy = metrics["metrics"]["slice.accuracy"]
    assert (accuracy["n"], accuracy["patients"]) == (58_782, 862)
    ours, naive = (accuracy[f"{k}high"] - accuracy[f"{k}low"] for k in ("", "naive_"))
    assert ours > 3 * naive
    report = (tmp_path / "out/evaluation/report.html").read_text()
    assert "58,782" in report
