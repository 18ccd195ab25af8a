"""Labels of training tables: numbers need a map, which both training and measuring take."""

from __future__ import annotations

from pathlib import Path

import pytest

from cctmn.errors import DataError
from cctmn.model.card import read_card
from cctmn.train import datasets
from cctmn.train.datasets import Data
from tests.commands import call, one_line
from tests.conftest import RecordingReporter
from tests.makers import png

CLASSES = ("covid", "control")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "l.csv").write_text("uri,label,patient\na.png,0,1\nb.png,1,2\n")
    return tmp_path / "l.csv"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            ("train", "classifier", "-m", "cctmn:demo", "-o", "OUT", "--data"),
            marks=pytest.mark.slow,
        ),
        ("models", "evaluate"),
    ],
)
def test_commands_refuse_numbers_without_a_map(
    table: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    words += [str(table)] if words[0] == "train" else ["cctmn:demo", "--slices", str(table)]
    one_line(call(*words), code=2, message="say it with --label-map 0=CLASS")


def test_a_map_says_what_numbers_mean(table: Path, reporter: RecordingReporter) -> None:
    data = Data(str(table), label_map={"0": "control", "1": "covid"})
    card = read_card("cctmn:demo")
    samples = datasets.with_classes(data, classes=CLASSES, card=card, report=reporter)
    assert [sample.label for sample in samples] == [1, 0]


def test_synonyms_are_reported(table: Path, reporter: RecordingReporter) -> None:
    table.write_text("uri,label,patient\na.png,COVID-19,1\nb.png,healthy,2\n")
    card = read_card("cctmn:demo")
    datasets.with_classes(Data(str(table)), classes=CLASSES, card=card, report=reporter)
    assert any("COVID-19 as covid, healthy as control" in line for line in reporter.lines)


def test_slices_with_masks_take_no_map(tmp_path: Path, reporter: RecordingReporter) -> None:
    data = Data(str(tmp_path), label_map={"0": "control"})
    with pytest.raises(DataError, match="--label-map is for classified slices"):
        datasets.with_lesions(data, card=read_card("cctmn:demo"), report=reporter)


def test_measuring_takes_the_map(table: Path) -> None:
    done = call("models", "evaluate", "cctmn:demo", "--slices", table, "--label-map", "0=CP,1=NCP")
    assert done.returncode == 0
    assert "accuracy" in done.stdout
