"""What a run leaves for people: whole tables, also after a break, and what TensorBoard reads."""

from __future__ import annotations

import csv
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from cctmn.config import Hardware, Optim
from cctmn.train import distributed, loop, record
from cctmn.train import run as train_run
from cctmn.train.loop import History, World
from cctmn.train.tasks import CachedTask
from tests.train.small import Kept, classifier, small_card


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def masked(data: bytes) -> int:
    """TensorFlow's checksum of a record."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path: Path) -> dict[str, dict[int, float]]:
    """Value by step of each curve: records of length, its checksum, an Event and its checksum."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    data = path.read_bytes()
    at = 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        body = data[at + 12 : at + 12 + length]
        assert crc == masked(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + length) == (masked(body),)
        event = Event.FromString(body)
        for value in event.summary.value:
            assert event.step not in curves[value.tag]
            curves[value.tag][event.step] = value.simple_value
        at += 16 + length
    return curves


def run(place: Path, kept: Kept, *, epochs: int) -> History:
    """Epochs of module S alone, with a record after each."""
    features, labels = torch.eye(4, 80), torch.tensor([0, 1, 2, 0])
    task = CachedTask(classifier(), features, labels, features, labels, "bce")
    report = kept.report

    def recorded(history: History, written: Any) -> None:
        report(history, written)
        record.write(history, f"file://{place}")

    kept.report = recorded
    history = loop.run(
        task,
        card=small_card(task.net.arch),
        optim=Optim(epochs=epochs, batch_size=2),
        hardware=Hardware(checkpoint_s=0),
        world=World(),
        hooks=kept,
    )
    kept.report = report
    return history


def test_a_continued_run_has_one_record_without_gaps(tmp_path, caplog):
    kept = Kept(tmp_path / "kept")
    run(tmp_path / "out", kept, epochs=1)
    history = run(tmp_path / "out", kept, epochs=3)

    rows = table(tmp_path / "out" / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == list(history.rows[0])
    assert {
        "loss",
        "val_loss",
        "val_accuracy",
        "val_f1",
        "val_sensitivity_covid",
        "steps_per_s",
    } <= set(rows[0])
    steps = table(tmp_path / "out" / "steps.csv")
    assert [row["step"] for row in steps] == [str(step) for step in range(1, 7)]
    assert list(steps[0]) == ["step", "loss", "loss_class"]
    for read, written in (
        (rows, [list(row.values()) for row in history.rows]),
        (steps, [[n, *v] for n, v in enumerate(zip(*history.losses.values(), strict=True), 1)]),
    ):
        numbers = [[float(value) for value in row.values()] for row in read]
        for one, other in zip(numbers, written, strict=True):
            assert one == pytest.approx(other, rel=1e-6, nan_ok=True)

    (file,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert "tfevents" in file.name
    curves = events(file)
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(curves["train/loss"].values()) == pytest.approx(history.losses["loss"])
    accuracies = [row["val_accuracy"] for row in history.rows]
    assert curves["epoch/val_accuracy"] == pytest.approx(dict(enumerate(accuracies, start=1)))
    assert "epoch/epoch" not in curves
    assert not caplog.records  # tensorboardX warns of every nan


def test_epochs_of_an_earlier_version_have_an_empty_validation_loss(tmp_path):
    rows = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_loss": 0.4, "val_accuracy": 0.5}]
    record.write(History(rows=rows, losses={"loss": [1.0]}), f"file://{tmp_path}")
    assert table(tmp_path / "metrics.csv") == [
        {"epoch": "1", "val_loss": "", "val_accuracy": "0.5"},
        {"epoch": "2", "val_loss": "0.4", "val_accuracy": "0.5"},
    ]


def test_the_command_says_once_that_it_resumes_and_names_the_validation_metrics(tmp_path):
    said: list[str] = []

    def report(text: str, *, transient: bool = False, names: str = "") -> None:
        said.extend([] if transient else [text])

    rows = [{"epoch": 1, "loss": 2.0, "val_accuracy": 0.5}]
    record.write(History(rows=rows, losses={}), f"file://{tmp_path}")
    with train_run._progress_reported(f"file://{tmp_path}", report):
        now = {"resumed": 1, "epochs": 2, "epoch": 2, "loss": 1.5, "step": 3, "steps": 4}
        text = json.dumps({**now, "steps_per_s": 1.0, "left_s": 1.0})
        (tmp_path / distributed.PROGRESS).write_text(text)
        rows.append({"epoch": 2, "loss": 1.25, "val_loss": 0.75, "val_accuracy": 0.5})
        record.write(History(rows=rows, losses={}), f"file://{tmp_path}")
    assert said == [
        "resuming from epoch 1; next is epoch 2 of 2",
        "epoch 2: training loss 1.250; validation: loss 0.750  accuracy 0.500",
    ]


def test_a_long_run_is_thinned_for_tensorboard_only(tmp_path):
    losses = [float(step) for step in range(4500)]
    history = History(rows=[{"epoch": 1, "val_accuracy": float("nan")}], losses={"loss": losses})
    record.write(history, f"file://{tmp_path}")
    assert len(table(tmp_path / "steps.csv")) == 4500
    curve = events(next((tmp_path / "tensorboard").iterdir()))["train/loss"]
    assert len(curve) == 1500
    assert curve == {step: step - 1 for step in range(1, 4501, 3)}
    assert table(tmp_path / "metrics.csv")[0]["val_accuracy"] == "nan"
