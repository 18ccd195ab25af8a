"""`labels`, `evaluate`, `report` and `models calibrate` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import call, one_line
from tests.evaluate.outputs import study, write_labels, write_output

SPLIT = "Normal_7_70_0001.png 0 1 2 30 40\nCP_8_80_0002.png 1 0 0 9 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names, logits, truth = study(30)
    write_output(tmp_path / "out", names, logits)
    write_labels(tmp_path / "labels.csv", names, truth)
    (tmp_path / "split.txt").write_text(SPLIT)
    return tmp_path


def test_labels_go_to_stdout_or_a_file(folder: Path) -> None:
    done = call("labels", "covidx-ct", folder / "split.txt")
    assert done.stdout.splitlines()[1] == '"Normal_7_70_0001.png","control","7","70",1,2,30,40'
    assert done.stderr.strip() == "2 slices of 2 patients: 1 control, 1 pneumonia"
    done = call("labels", "covidx-ct", folder / "split.txt", "-o", folder / "l.parquet")
    assert (done.returncode, done.stdout) == (0, "")
    again = call("labels", "audit", folder / "split.txt", folder / "l.parquet", "--json")
    assert json.loads(again.stdout)["pairs"][0]["patients"] == 2
    text = call("labels", "audit", folder / "split.txt", folder / "l.parquet").stdout
    assert "share 2 patients, 2 scans, 2 slices" in text
    named = call("labels", "audit", folder / "split.txt", folder / "l.parquet", "--names")
    shared = f'"{folder / "split.txt"}","{folder / "l.parquet"}","patients","7"'
    assert shared in named.stdout


def test_unknown_names_to_exclude_are_reported(folder: Path) -> None:
    (folder / "list.txt").write_text("1_8_80_0002.png\n2_1_1_1.png\n")
    done = call("labels", "covidx-ct", folder / "split.txt", "--exclude", folder / "list.txt")
    assert "1 names of the excluded are not in the split (2_1_1_1.png)" in done.stderr
    assert "(2_1_1_1.png)" in done.stderr


def test_evaluate_writes_metrics_and_a_report(folder: Path) -> None:
    args = [folder / "out", "--labels", folder / "labels.csv", "--resamples", 200]
    done = call("evaluate", *args, "--by", "patient_key", "--no-gallery")
    assert done.returncode == 0, done.stderr
    assert "accuracy, slices" in done.stderr
    assert "accuracy, patients" in done.stderr
    written = folder / "out/evaluation"
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["cohorts"][0]["cells"][0]["values"] == ["unknown"]
    first = (written / "report.html").read_text()
    (written / "report.html").unlink()
    done = call("report", written)
    assert done.stdout.strip() == (written / "report.html").as_uri()
    assert (written / "report.html").read_text() == first
    quiet = call("evaluate", *args, "-o", folder / "e", "--no-gallery", "-q", "--json")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["metrics"] == metrics["metrics"]
    # --to is the older name of --out
    older = call("evaluate", *args, "--to", folder / "older", "--no-gallery", "-q")
    assert older.returncode == 0
    assert (folder / "older/metrics.json").exists()
    other = call("evaluate", *args, "-o", folder / "e", "--no-gallery", "--seed", 1, "--json")
    low = json.loads(other.stdout)["metrics"]["slice.auc.covid"]["low"]
    assert low != metrics["metrics"]["slice.auc.covid"]["low"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["labels", "covidx-ct", "none.txt"], "not found"),
        (["labels", "covidx-ct", "split.txt", "-o", "l.xlsx"], "give a .csv or .parquet"),
        (["labels", "audit", "labels.csv"], "give two or more"),
        (["labels", "audit", "labels.csv", "notes.md"], "give a .csv or .parquet"),
        (["evaluate", "out", "--labels", "none.csv"], "not found; give a labels table"),
        (["evaluate", "nowhere", "--labels", "labels.csv"], "holds no predictions"),
        (["evaluate", "out", "--labels", "strange.csv"], "a label is none of the classes"),
        (["evaluate", "out", "--labels", "columns.csv"], "no column label"),
        (["evaluate", "out", "--labels", "foreign.csv"], "no label has a prediction"),
        (["evaluate", "out", "--labels", "labels.csv", "--key", "slice_id"], "no column slice_id"),
        (["evaluate", "out", "--labels", "labels.csv", "-m", "cctmn:demo"], "give the model that"),
        (["evaluate", "out", "--labels", "labels.csv", "--by", "age"], "no such column"),
        (["evaluate", "out", "--labels", "labels.csv", "--against", "split.txt"], "no predictions"),
        (["report", "nowhere"], "metrics.json"),
        (
            ["models", "calibrate", "cctmn:demo", "out", "--labels", "labels.csv"],
            "of model standin",
        ),
    ],
)
def test_error_of_the_user_is_one_line(
    folder: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.md").write_text("notes")
    (folder / "strange.csv").write_text("uri,label\na.png,flu\n")
    (folder / "columns.csv").write_text("uri,class\na.png,covid\n")
    (folder / "foreign.csv").write_text("uri,label\na.png,covid\n")
    monkeypatch.chdir(folder)
    one_line(call(*args), code=2, message=message)
    assert not (folder / "out/evaluation").exists()
