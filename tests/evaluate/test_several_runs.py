"""From labels to one page: two evaluations of the same labels, and one of other labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call, one_line
from tests.evaluate.outputs import CLASSES, write_output

NAMES = [f"{k % 3}_{k // 3}_1_{k:04d}.png" for k in range(60)]


def evaluated(folder: Path, *, seed: int, labels: Path) -> Path:
    logits_NC = np.random.default_rng(seed).normal(size=(len(NAMES), 3))
    logits_NC[np.arange(len(NAMES)), np.arange(len(NAMES)) % 3] += 2
    write_output(folder, NAMES, logits_NC, model_id=f"model{seed}")
    done = call(
        *("evaluate", folder, "--labels", labels, "--resamples", 100, "--no-gallery", "-q"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "evaluation"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    return tmp_path / "labels.txt"


def test_two_scored_outputs_are_reported_side_by_side(tmp_path: Path, labels: Path) -> None:
    one, two = (evaluated(tmp_path / str(k), seed=k, labels=labels) for k in range(2))
    done = call("report", one, "--with", two)
    assert done.returncode == 0, done.stderr
    page = (one / "report.html").read_text()
    for run in (one, two):
        accuracy = json.loads((run / "metrics.json").read_text())["metrics"]["slice.accuracy"]
        assert f"{100 * accuracy['value']:.2f}" in page.split('id="runs"')[1]
    assert CLASSES[2] in page


def test_an_output_with_other_labels_is_refused(tmp_path: Path, labels: Path) -> None:
    one = evaluated(tmp_path / "0", seed=0, labels=labels)
    other = tmp_path / "half.txt"
    other.write_text("\n".join(NAMES[:30]))
    two = evaluated(tmp_path / "1", seed=1, labels=other)
    done = call("report", one, "--with", two)
    one_line(done, code=2, message="has other labels (30 slices) than the first run (60)")


def test_a_page_of_several_runs_names_no_patient(tmp_path: Path, labels: Path) -> None:
    one, two = (evaluated(tmp_path / str(k), seed=k, labels=labels) for k in range(2))
    assert call("report", one, "--with", two).returncode == 0
    page = (one / "report.html").read_text()
    assert not [name for name in NAMES if name.removesuffix(".png") in page]
    assert str(tmp_path) not in page
