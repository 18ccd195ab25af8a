"""The cases of an evaluation: images with lesion masks, and patients with their deciding slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cctmn import store, studies
from cctmn.evaluate import patient_cases, run
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics import document
from cctmn.metrics.detection import ImageOutcome, Instances, image_outcome
from cctmn.metrics.intervals import Resampling
from cctmn.report import render
from tests.evaluate.outputs import CLASSES, write_output
from tests.evaluate.test_patient_sample import archive, evaluated, labels
from tests.makers import png

# The mask of every image is this box.
HIT = {"x0": 8.0, "y0": 8.0, "x1": 30.0, "y1": 24.0, "score": 0.9, "label": "lesion"}
FALSE = HIT | {"x0": 40.0, "x1": 60.0}
DETECTED = {
    "1_0.png": [HIT],
    "1_1.png": [],
    "1_2.png": [FALSE],
    "2_0.png": [HIT, FALSE, FALSE | {"score": 0.6}, FALSE | {"score": 0.2}],
    "3_0.png": [HIT | {"score": 0.3}],
}


def detected(folder: Path, *, classes: tuple[str, ...]) -> EvaluationOptions:
    """Write images with masks and the predictions of a model for them."""
    data = folder / "data"
    for part in ("imgs", "masks"):
        (data / part).mkdir(parents=True)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:30] = 2
    for i, name in enumerate(DETECTED):
        (data / "imgs" / name).write_bytes(png(i))
        Image.fromarray(mask).save(data / "masks" / name)
    write_output(
        folder / "out",
        list(DETECTED),
        np.zeros((len(DETECTED), 3)),
        images=data / "imgs",
        columns={"lesions": list(DETECTED.values()), "flags": [["lossy"]] * len(DETECTED)},
        classes=classes,
    )
    path = folder / "out/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["lesion_classes"] = ["lesion"]
    path.write_text(json.dumps(manifest))
    return EvaluationOptions(
        out=str(folder / "out"),
        to=str(folder / "eval"),
        masks=str(data),
        resampling=Resampling(resamples=100),
        overwrite=True,
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("detector")
    return folder, run.evaluate(detected(folder, classes=()))


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [list(DETECTED)[int(case["slice_id"], 16)] for case in cases]


def test_a_detector_without_classes_has_its_worst_images(detector: Any) -> None:
    _, result = detector
    cases = result["cases"]
    assert names(cases["lowest_ap"]) == ["1_1.png"]
    assert names(cases["false_boxes"]) == ["2_0.png", "1_2.png"]
    found = [(c["ap50"], c["missed"], c["false_boxes"]) for c in cases["false_boxes"]]
    assert found == [(1.0, 0, 2), (0.0, 1, 1)]


def test_a_case_with_masks_has_the_true_lesions(detector: Any) -> None:
    _, result = detector
    [case] = result["cases"]["lowest_ap"]
    [true] = case["true_lesions"]
    assert (true["x0"], true["y0"], true["x1"], true["y1"]) == (8, 8, 30, 24)
    assert true["outline"] == "M8 8H30M8 24H30M8 8V24M30 8V24"
    assert true["label"] == "lesion"


def test_metrics_json_of_a_detector_follows_the_schema_and_names_nobody(detector: Any) -> None:
    folder, result = detector
    jsonschema.validate(result, document.SCHEMA)
    text = json.dumps(result)
    assert not any(name in text for name in DETECTED)
    assert str(folder) not in text


def test_the_report_of_a_detector_shows_its_cases(detector: Any) -> None:
    folder, _ = detector
    text = render.render(str(folder / "eval"))
    assert "Worst images by their lesions" in text
    assert "Most false boxes" in text
    assert "This file holds 3 pictures" in text
    assert "<span>predicted</span>" not in text


def test_without_a_gallery_there_are_no_cases(tmp_path: Path) -> None:
    options = detected(tmp_path, classes=())
    options = EvaluationOptions(**(vars(options) | {"gallery": False}))
    assert "cases" not in run.evaluate(options)
    assert not (tmp_path / "eval/private").exists()


def test_cases_by_class_show_the_true_lesions_where_masks_are_given(tmp_path: Path) -> None:
    options = detected(tmp_path, classes=CLASSES)
    lines = [f"{name},covid,{name[0]}" for name in DETECTED]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["name,label,patient", *lines]))
    result = run.evaluate(EvaluationOptions(**(vars(options) | {"labels": str(path)})))
    assert {"misses", "lowest_ap", "missed_patients"} <= result["cases"].keys()
    for case in result["cases"]["misses"]:
        assert [one["label"] for one in case["true_lesions"]] == ["lesion"]
    jsonschema.validate(result, document.SCHEMA)


def box(*boxes: tuple[float, float, float]) -> Instances:
    """Lesions of one row: left edge, right edge, score."""
    return Instances(
        masks=[],
        labels_M=np.ones(len(boxes), np.int64),
        scores_M=np.array([score for _, _, score in boxes], np.float32),
        boxes_M4=np.array([[x0, 0, x1, 1] for x0, x1, _ in boxes], np.float32).reshape(-1, 4),
    )


def test_only_detections_of_the_least_score_hit_or_are_false() -> None:
    truth = box((0, 10, 1), (20, 30, 1))
    predicted = box((20, 30, 0.4), (0, 10, 0.9), (12, 18, 0.5), (40, 50, 0.1))
    outcome = image_outcome(predicted, truth, kind="box", least_score=0.5)
    assert outcome == ImageOutcome(ap50=pytest.approx((1 + 2 / 3) / 2), missed=1, false=1)
    assert image_outcome(box(), truth, kind="box", least_score=0.5) == ImageOutcome(0.0, 2, 0)
    assert image_outcome(predicted, box(), kind="box", least_score=0.5) == ImageOutcome(0.0, 0, 2)


def test_patients_have_the_slices_that_decided(tmp_path: Path) -> None:
    """Of patient 0, which is healthy, and patient 1, which is sick, the labels say the opposite."""
    rows = archive(tmp_path)
    studies.write(store.to_uri(str(tmp_path / "out")), rule=studies.StudyRule("sigmoid"))
    table = pq.read_table(tmp_path / "out/studies/studies.parquet").to_pylist()
    decided = {row["patient_key"]: row for row in sorted(table, key=lambda r: -r["p_control"])}
    for row in rows:
        row["sick"] = {"P0": 2, "P1": 0}.get(row["patient"], row["sick"])
    labels(tmp_path, rows, "uri", "label", "patient", "patient_label")
    cases = evaluated(tmp_path, gallery=True)["cases"]
    [missed], [alarmed] = cases["missed_patients"], cases["false_alarm_patients"]
    assert (missed["truth"], missed["predicted"]) == ("covid", "control")
    assert (alarmed["truth"], alarmed["predicted"]) == ("control", "pneumonia")
    for patient in (missed, alarmed):
        expected = decided[patient["patient_key"]]["deciding_slices"]
        shown = [one["slice_id"] for one in patient["slices"]]
        assert shown == expected[: patient_cases.SLICES]
        assert patient["deciding"] == len(expected)
        assert all("slice_z_mm" in one for one in patient["slices"])
