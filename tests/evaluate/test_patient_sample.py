"""Patients of an evaluation: the same numbers as OUT/studies, and labels of patients."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cctmn import store, studies
from cctmn.errors import ConfigError, DataError
from cctmn.evaluate import run
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.pseudonym import pseudonym
from tests.evaluate.outputs import CLASSES, write_output

KEY = b"k" * 32
SLICES = 20  # of each series


def archive(folder: Path, *, patients: int = 12) -> list[dict[str, Any]]:
    """Write OUT: each patient has a thin and a thick series that contradicts it, every third two
    studies; the disease of two of three patients is on four slices of the thin one.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for patient in range(patients):
        sick = patient % 3
        for number in range(2 if patient % 3 == 1 else 1):
            study = f"study{patient}{number}"
            for series, mm in (("thin", 1.0), ("thick", 5.0)):
                for n in range(int(SLICES * 5 / mm)):
                    shows = series == "thin" and 40 <= n < 44 and number == 0
                    true = sick if shows else 0
                    seen = (sick + 1) % 3 if series == "thick" else true
                    row = {"study_key": study, "series_key": f"{study}{series}", "true": true}
                    row |= {"patient": f"P{patient}", "sick": sick, "slice_z_mm": n * mm}
                    rows.append(row | {"logits": rng.normal(size=3) + 8 * np.eye(3)[seen] - 4})
    columns = {name: [r[name] for r in rows] for name in ("study_key", "series_key", "slice_z_mm")}
    columns["patient_key"] = [pseudonym(KEY, "patient", r["patient"]) for r in rows]
    names = [f"{i}.dcm" for i in range(len(rows))]
    logits_NC = np.array([r["logits"] for r in rows])
    write_output(folder / "out", names, logits_NC, columns=columns)
    (folder / "out/private/key").write_bytes(KEY)
    return [row | {"uri": name} for row, name in zip(rows, names, strict=True)]


def labels(folder: Path, rows: list[dict[str, Any]], *columns: str) -> None:
    of_row = {
        "label": lambda row: CLASSES[row["true"]],
        "patient_label": lambda row: CLASSES[row["sick"]],
    }
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(
            [of_row[c](row) if c in of_row else row[c] for c in columns] for row in rows
        )


def evaluated(folder: Path, **options: Any) -> dict[str, Any]:
    settings = {"out": str(folder / "out"), "labels": str(folder / "labels.csv")}
    settings |= {"to": str(folder / "eval"), "gallery": False, "overwrite": True}
    return run.evaluate(
        EvaluationOptions(**(settings | options), resampling=Resampling(resamples=100))
    )


def patients_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "eval/private/patients.csv").open(newline="") as file:
        return {row["patient"]: row for row in csv.DictReader(file)}


def test_patients_have_the_numbers_of_their_studies(tmp_path: Path) -> None:
    """Of the labels, a few slices per patient are enough: the study is more than those."""
    rows = archive(tmp_path)
    rule = studies.StudyRule("sigmoid")
    studies.write(store.to_uri(str(tmp_path / "out")), rule=rule)
    table = pq.read_table(tmp_path / "out/studies/studies.parquet").to_pylist()
    by_key = {row["study_key"]: row for row in table}
    labels(tmp_path, rows[::7], "uri", "label", "patient", "patient_label")
    metrics = evaluated(tmp_path)["metrics"]
    assert metrics["patient.accuracy"]["value"] == 1
    assert metrics["patient.accuracy"]["patients"] == 12
    made = patients_of(tmp_path)
    assert len(made) == 12
    for row in made.values():
        keys = row["study_keys"].split()
        sickest = min((by_key[key] for key in keys), key=lambda study: study["p_control"])
        for name in CLASSES:
            assert float(row[f"p_{name}"]) == pytest.approx(sickest[f"p_{name}"], abs=1e-6)
        assert row["pred_class"] == sickest["pred_class"] == row["label"]
        assert int(row["num_used"]) == sum(by_key[key]["num_used"] for key in keys)


def test_without_patient_label_the_sickest_labelled_slice_counts(tmp_path: Path) -> None:
    rows = archive(tmp_path)
    labels(tmp_path, rows, "uri", "label", "patient")
    evaluated(tmp_path)
    assert {r["patient"]: CLASSES[r["sick"]] for r in rows} == {
        name: row["label"] for name, row in patients_of(tmp_path).items()
    }


def test_one_row_per_patient_labels_all_slices_of_the_patient(tmp_path: Path) -> None:
    rows = archive(tmp_path)
    once = list({row["patient"]: row for row in rows}.values())
    absent = {"patient": "elsewhere", "sick": 1}
    labels(tmp_path, [*once, absent], "patient", "patient_label")
    result = evaluated(tmp_path, key="patient")
    assert result["metrics"]["patient.accuracy"]["patients"] == 12
    assert result["metrics"]["patient.accuracy"]["value"] == 1
    assert result["accounting"]["labels_without_prediction"] == 1
    assert any("labels are of patients" in text for text in result["warnings"])
    assert "P0" not in json.dumps(result)


def test_a_patient_with_two_labels_is_refused(tmp_path: Path) -> None:
    rows = archive(tmp_path, patients=3)
    rows[0]["sick"] = 2
    labels(tmp_path, rows, "uri", "label", "patient", "patient_label")
    with pytest.raises(DataError, match="1 patients have several values in patient_label"):
        evaluated(tmp_path)
    assert not (tmp_path / "eval").exists()


def test_tables_of_patients_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    rows = archive(tmp_path, patients=3)
    labels(tmp_path, rows, "patient", "patient_label")
    with pytest.raises(DataError, match="several rows; keep one row per patient"):
        evaluated(tmp_path, key="patient")
    labels(tmp_path, rows[:1], "patient", "patient_label")
    with pytest.raises(ConfigError, match="compared by slice"):
        evaluated(tmp_path, key="patient", against=str(tmp_path / "out"))
    (tmp_path / "out/private/key").unlink()
    with pytest.raises(DataError, match="OUT/private/key"):
        evaluated(tmp_path, key="patient")


def test_a_study_with_slices_of_several_patients_is_divided(tmp_path: Path) -> None:
    """Some archives give all patients one study UID."""
    rows = archive(tmp_path, patients=3)
    for path in (tmp_path / "out/predictions").iterdir():
        table = pq.read_table(path)
        same = [["one"] * len(table)] * 2
        for name, column in zip(("study_key", "series_key"), same, strict=True):
            table = table.set_column(table.column_names.index(name), name, [column])
        pq.write_table(table, path)
    labels(tmp_path, rows, "uri", "label", "patient")
    evaluated(tmp_path)
    assert {row["study_keys"] for row in patients_of(tmp_path).values()} == {"one"}
    assert len(patients_of(tmp_path)) == 3
