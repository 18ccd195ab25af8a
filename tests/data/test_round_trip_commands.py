"""The commands: what `cctmn labels covidx-ct` writes is trained on, scored and evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import call
from tests.train.small import detector_folder, write_slices


def cctmn(*args: object) -> None:
    done = call(*args)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_labels_are_trained_on_scored_and_evaluated(cluster: str, tmp_path: Path) -> None:
    images = write_slices(tmp_path / "images", count=12, seed=1)
    model = detector_folder(tmp_path)
    for suffix in ("csv", "parquet"):
        table = tmp_path / f"labels.{suffix}"
        cctmn("labels", "covidx-ct", images / "split.txt", "-o", table)
        assert table.exists()
    csv_table, table = tmp_path / "labels.csv", tmp_path / "labels.parquet"
    one = ("--set", "actors=1")
    trained, scored = tmp_path / "trained", tmp_path / "scored"
    settings = ("--set", "optim.epochs=1", "--set", "hardware.workers=1")
    data = ("--data", table, "--root", images, "-m", model)
    cctmn("train", "classifier", *data, *settings, "-q", "-o", trained)
    cctmn("score", csv_table, "--root", images, "-m", trained / "model", "-q", "-o", scored, *one)
    evaluated = tmp_path / "evaluated"
    cctmn("evaluate", scored, "--labels", table, "--resamples", 100, "-q", "-o", evaluated)
    assert (evaluated / "metrics.json").exists()
