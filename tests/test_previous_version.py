"""Folders that an earlier version wrote are resumed, evaluated, reported and loaded.

Reads: tests/assets/previous, see its README for how each part was made.
"""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cctmn import tables
from cctmn.model import checkpoint
from tests.commands import call
from tests.train.small import small_arch, small_card, write_slices

PREVIOUS = Path(__file__).parent / "assets" / "previous"
TRAIN = (
    *("--set", "variant=s", "--set", "ranked=16", "--set", "hidden=8"),
    *("--set", "optim.lr=0.001", "--set", "optim.batch_size=2"),
    *("--set", "hardware.workers=1", "--set", "hardware.threads=1"),
    *("--set", "hardware.checkpoint_s=0"),
)


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A copy of the scoring output."""
    return Path(shutil.copytree(PREVIOUS / "scored", tmp_path / "scored"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A copy of the training output."""
    with tarfile.open(PREVIOUS / "trained.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "trained"


def constant_detector(folder: Path) -> Path:
    """Write the detector that the training run started from."""
    card = small_card(small_arch())
    net = checkpoint.fresh(card.arch, seed=1)
    with torch.no_grad():
        for weights in net.parameters():
            weights.fill_(0.01 if weights.ndim == 1 else 0.0)
    checkpoint.save(net, folder, card=card)
    return folder


@pytest.mark.slow
def test_scoring_output_is_resumed_and_evaluated(
    s3: Any, cluster: str, scored: Path, tmp_path: Path
) -> None:
    s3.bucket("previous")
    s3.upload("previous", "archive.zip", (PREVIOUS / "archive.zip").read_bytes())
    before = read_json(scored / "manifest.json")
    assert (before["counts"]["ok"], before["counts"]["pending"]) == (5, 4)
    rows_before = {row["slice_id"]: row for row in tables.rows((scored / "predictions").as_uri())}

    done = call("score", "s3://previous/archive.zip", "-o", scored, "-m", "cctmn:demo")
    assert done.returncode == 0, done.stderr
    assert "begun by version 1 of the reader" in done.stderr
    after = read_json(scored / "manifest.json")
    assert after["counts"] == {
        "inventory": 9,
        "ok": 8,
        "passed_over": 1,  # notes.txt
        "error": 0,
        "pending": 0,
    }
    assert after["last_run"]["slices"] == 4
    assert after["fingerprint"] == before["fingerprint"]
    assert after["identity"] == before["answers"]
    rows = {row["slice_id"]: row for row in tables.rows((scored / "predictions").as_uri())}
    assert len(rows) == 9
    assert {key: rows[key] for key in rows_before} == rows_before

    labels = PREVIOUS / "labels.csv"
    evaluated = call(
        *("evaluate", scored, "--labels", labels, "--no-gallery"),
        *("-o", tmp_path / "evaluation", "--resamples", "100"),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 10_000


def test_unfinished_scoring_output_is_evaluated_to_the_same_values(
    scored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation"
    done = call(
        *("evaluate", scored, "--labels", PREVIOUS / "labels.csv", "--no-gallery"),
        *("-o", out, "--resamples", "100"),
    )
    assert done.returncode == 0, done.stderr
    now, before = (read_json(folder / "metrics.json") for folder in (out, PREVIOUS / "evaluation"))
    values, earlier = values_of(now), values_of(before)
    assert {name: values[name] for name in earlier} == earlier


def values_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the value of each metric of slices and lesions of a metrics.json, by its id.

    The rule for patients is another one since 0.1.0, and patients of several classes count.
    """
    metrics = document["metrics" if "metrics" in document else "figures"]
    return {
        name: metric["value"] for name, metric in metrics.items() if not name.startswith("patient.")
    }


def test_evaluation_is_reported(tmp_path: Path) -> None:
    folder = shutil.copytree(PREVIOUS / "evaluation", tmp_path / "evaluation")
    done = call("report", folder)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in (tmp_path / "evaluation" / "report.html").read_text().lower()


def test_scoring_output_of_another_model_is_still_refused(
    s3: Any, scored: Path, trained: Path
) -> None:
    done = call("score", "s3://previous/archive.zip", "-o", scored, "-m", trained / "model")
    assert done.returncode == 2, done.stderr
    assert "weights_sha256" in done.stderr
    assert read_json(scored / "manifest.json")["counts"]["pending"] == 4


def test_model_is_loaded(trained: Path) -> None:
    loaded = checkpoint.load(trained / "model")
    assert loaded.card.trained
    assert loaded.card.arch.image_classes == ("control", "pneumonia", "covid")
    assert loaded.card.provenance["epoch"] == 1
    validation = loaded.card.validation
    assert validation["value"] == validation["metrics"][validation["chosen_by"]]
    assert (validation["chosen_by"], validation["slices"]) == ("accuracy", 3)


@pytest.mark.slow
def test_training_run_is_resumed(cluster: str, trained: Path, tmp_path: Path) -> None:
    slices = write_slices(tmp_path / "slices", count=6, seed=1)
    valid = write_slices(tmp_path / "slices-valid", count=3, seed=2)
    before = read_json(trained / "manifest.json")
    first_steps = (trained / "steps.csv").read_text().splitlines()
    assert (before["epochs"], len(first_steps)) == (1, 4)

    done = call(
        *("train", "classifier", "--data", slices, "--split", slices / "split.txt"),
        *("--valid", valid, "-m", constant_detector(tmp_path / "detector"), "-o", trained),
        *TRAIN,
        *("--set", "optim.epochs=2"),
    )
    assert done.returncode == 0, done.stderr
    after = read_json(trained / "manifest.json")
    assert "resuming from epoch 1; next is epoch 2 of 2" in done.stderr
    assert "chosen by validation accuracy" in done.stderr
    assert "on 3 slices of 3 patients" in done.stderr
    assert after["epochs"] == 2
    assert after["fingerprint"] == before["fingerprint"]
    assert after["identity"] == before["answers"]
    # The first epoch is kept as it was, and only the second was trained.
    steps = (trained / "steps.csv").read_text().splitlines()
    assert (steps[:4], len(steps)) == (first_steps, 7)
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["val_loss"] == ""
    assert float(rows[1]["val_loss"]) > 0
