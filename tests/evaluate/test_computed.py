"""Device and precision of predictions in an evaluation, a calibration and an acceptance test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cctmn.evaluate import run
from cctmn.evaluate.fit_calibration import calibrate
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.model.card import read_card
from cctmn.numerics import Computed, Numerics, calibration_note, described
from tests.commands import call
from tests.evaluate.outputs import study, write_labels, write_output

FLOAT32, BFLOAT16 = Numerics("cpu", "float32"), Numerics("cuda", "bfloat16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Predictions of one study in float32 and in bfloat16, and by an older version."""
    names, logits, truth = study(patients=12)
    for name, numerics in (("float32", FLOAT32), ("bfloat16", BFLOAT16), ("older", None)):
        write_output(tmp_path / name, names, logits, numerics=numerics)
    write_labels(tmp_path / "labels.csv", names, truth)
    return tmp_path


def evaluated(folder: Path, out: str, **changes: Any) -> dict[str, Any]:
    options = EvaluationOptions(
        out=str(folder / out),
        labels=str(folder / "labels.csv"),
        to=str(folder / "evaluation"),
        gallery=False,
        resampling=Resampling(resamples=100),
        **changes,
    )
    return run.evaluate(options)


def test_metrics_say_how_the_predictions_were_computed(folder: Path) -> None:
    metrics = evaluated(folder, "float32")
    assert described(metrics["scoring"]) == "float32 on CPUs (a processor)"
    assert not any("computed" in text for text in metrics["warnings"])


def test_the_command_and_its_report_show_it(folder: Path) -> None:
    words = ("--labels", folder / "labels.csv", "--no-gallery", "--resamples", "100")
    done = call("evaluate", folder / "bfloat16", *words)
    assert "predictions: bfloat16 on GPUs (a processor)" in done.stderr
    page = (folder / "bfloat16/evaluation/report.html").read_text()
    assert "Predictions: bfloat16 on GPUs (a processor)." in page


def test_predictions_of_an_older_version_are_said_to_have_no_record(folder: Path) -> None:
    metrics = evaluated(folder, "older")
    assert described(metrics["scoring"]) == "device and precision not recorded"
    assert not any("recorded" in text for text in metrics["warnings"])


def test_a_mixed_output_gives_a_warning(folder: Path) -> None:
    for name, rows in (("bfloat16", "float32 on CPUs"), ("older", "not recorded")):
        out = shutil.copytree(folder / "float32", folder / f"with-{name}")
        first = min((folder / name / "predictions").iterdir())
        shutil.copy(first, out / "predictions" / "another.parquet")
        computed = run.read_scored(str(out)).computed
        assert len(computed.notes) == 1
        assert rows in computed.notes[0]


def test_a_comparison_of_two_precisions_gives_a_warning(folder: Path) -> None:
    metrics = evaluated(folder, "float32", against=str(folder / "bfloat16"))
    assert metrics["comparison"]["precision"] == "bfloat16"
    [text] = [text for text in metrics["warnings"] if "computed" in text]
    assert "float32 on CPUs, those of the other model in bfloat16 on GPUs" in text
    one, same = Computed((FLOAT32,)), Computed((FLOAT32,), {"x": 1})
    assert not one.difference(same, ours="", theirs="")


def test_runs_side_by_side_show_their_precision(folder: Path) -> None:
    words = ("--labels", folder / "labels.csv", "--no-gallery", "--resamples", "100")
    for name in ("float32", "bfloat16"):
        assert call("evaluate", folder / name, *words).returncode == 0
    other = folder / "bfloat16/evaluation"
    assert call("report", folder / "float32/evaluation", "--with", other).returncode == 0
    page = (folder / "float32/evaluation/report.html").read_text()
    assert "predictions computed in" in page
    assert "bfloat16 on GPUs (a processor)" in page


def test_a_calibration_records_how_its_scores_were_computed(
    folder: Path, fresh_model: Path
) -> None:
    model = shutil.copytree(fresh_model, folder / "model")
    names, logits, truth = study(patients=30, seed=1)
    model_id = read_card(model).model_id
    write_output(folder / "valid", names, logits, model_id=model_id, numerics=FLOAT32)
    labels = write_labels(folder / "valid.csv", names, truth)
    calibrate(str(model), out=str(folder / "valid"), labels=str(labels))
    fitted = read_card(model).calibration
    assert Numerics.read(fitted) == FLOAT32
    assert calibration_note(fitted, [FLOAT32]) == []
    [note] = calibration_note(fitted, [BFLOAT16])
    assert "calibrated on scores computed in float32 on CPUs" in note
    assert calibration_note({}, [BFLOAT16]) == []  # a card of an older version
