"""Labels and predictions of unusual kinds: right numbers or one line, and never a crash."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import call, one_line
from tests.evaluate.outputs import CLASSES, write_output

NUM = 12
NAMES = [f"i{i:02d}.png" for i in range(NUM)]
TRUTH = [i % 3 for i in range(NUM)]


def scored(folder: Path, names: list[str] = NAMES, **changes: Any) -> Path:
    """An output whose model is right on every slice."""
    logits_NC = 8.0 * np.eye(3)[TRUTH[: len(names)]] - 4.0
    write_output(folder / "out", names, logits_NC, **changes)
    return folder / "out"


def labels_of(
    folder: Path, names: list[str] = NAMES, labels: list[str] | None = None, per_patient: int = 2
) -> Path:
    labels = labels or [CLASSES[label] for label in TRUTH]
    rows = [
        f"{name},{label},P{i // per_patient}"
        for i, (name, label) in enumerate(zip(names, labels, strict=False))
    ]
    (folder / "labels.csv").write_text("\n".join(["uri,label,patient", *rows]) + "\n")
    return folder / "labels.csv"


def evaluate(out: Path, labels: Path, *more: object, to: Path) -> subprocess.CompletedProcess[str]:
    return call("evaluate", out, "--labels", labels, "-o", to, "--resamples", 100, *more)


def metrics(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return result


def accuracy(folder: Path) -> float:
    return float(metrics(folder)["metrics"]["slice.accuracy"]["value"])


# --- without reference material


def test_numbers_need_a_map_and_then_mean_what_it_says(tmp_path: Path) -> None:
    out, numbers = scored(tmp_path), [f"{2 - label}.0" for label in TRUTH]
    labels = labels_of(tmp_path, labels=numbers)
    done = evaluate(out, labels, to=tmp_path / "e")
    one_line(done, code=2, message="a label is a number, and nothing says which class it means")
    mapped = ("--label-map", "2=control,1=CP", "--label-map", "0=covid")
    assert evaluate(out, labels, *mapped, to=tmp_path / "e").returncode == 0
    assert accuracy(tmp_path / "e") == 1


def test_names_that_differ_in_case_are_joined_with_a_note(tmp_path: Path) -> None:
    out = scored(tmp_path)
    labels = labels_of(tmp_path, names=[name.upper() for name in NAMES])
    done = evaluate(out, labels, to=tmp_path / "e")
    assert "12 labels were joined with slices whose names differ in case" in done.stderr
    assert accuracy(tmp_path / "e") == 1


def test_names_in_another_unicode_form_are_joined(tmp_path: Path) -> None:
    out = scored(tmp_path, names=["Mu\u0308ller.png", *NAMES[1:]])
    labels = labels_of(tmp_path, names=["M\u00fcller.png", *NAMES[1:]])
    assert evaluate(out, labels, to=tmp_path / "e").returncode == 0
    assert metrics(tmp_path / "e")["accounting"]["labels_without_prediction"] == 0


def test_the_authors_names_are_joined_with_published_ones(tmp_path: Path) -> None:
    out = scored(tmp_path, names=["nCT1.jpg", "Normal_1_2_3.png", "pCT3.jpg"])
    labels = labels_of(
        tmp_path,
        names=["0_nCT1.jpg", "0_1_2_3.png", "2_pCT3.jpg"],
        labels=["control", "pneumonia", "covid"],
    )
    assert evaluate(out, labels, to=tmp_path / "e").returncode == 0
    assert accuracy(tmp_path / "e") == 1


def test_names_whose_spelling_is_not_unique_are_not_joined(tmp_path: Path) -> None:
    out = scored(tmp_path, names=["a.png", "A.png", "b.png"])
    labels = labels_of(tmp_path, names=["a.PNG", "b.png"])
    assert evaluate(out, labels, to=tmp_path / "e").returncode == 0
    assert metrics(tmp_path / "e")["accounting"]["labels_without_prediction"] == 1


@pytest.mark.parametrize(
    ("changed", "near"),
    [
        (lambda name: name.replace(".png", ".jpg"), "differ in their suffix alone"),
        (lambda name: f"images\\{name}", "differ in their folders alone; write /"),
    ],
)
def test_a_near_miss_is_named(tmp_path: Path, changed: Any, near: str) -> None:
    labels = labels_of(tmp_path, names=[changed(name) for name in NAMES])
    one_line(evaluate(scored(tmp_path), labels, to=tmp_path / "e"), code=2, message=near)


def test_two_unicode_forms_of_a_patient_are_one_patient(tmp_path: Path) -> None:
    out, labels = scored(tmp_path), labels_of(tmp_path)
    lines = labels.read_text().splitlines()
    patients = [("M\u00fcller", "Mu\u0308ller")[i % 2] for i in range(NUM)]
    rows = [
        f"{line.rpartition(',')[0]},{p}{i // 2}"
        for i, (line, p) in enumerate(zip(lines[1:], patients, strict=True))
    ]
    labels.write_text("\n".join([lines[0], *rows]), encoding="utf-8")
    done = evaluate(out, labels, to=tmp_path / "e")
    assert "6 ids of patients differ from another in their Unicode form alone" in done.stderr
    assert metrics(tmp_path / "e")["labels"]["patients"] == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_a_logit_that_is_not_finite_names_the_slice(tmp_path: Path, value: float | None) -> None:
    logits: list[float | None] = [4.0] * NUM
    logits[3] = value
    out = scored(tmp_path, columns={"logit_covid": logits})
    done = evaluate(out, labels_of(tmp_path), to=tmp_path / "e")
    one_line(done, code=2, message=f"a score that is not a number: {3:032x}; score them again")


def test_a_slice_without_a_label_that_speaks_for_its_patient_is_named_too(tmp_path: Path) -> None:
    keys = [f"{i // 2:032x}" for i in range(NUM)]
    columns = dict.fromkeys(("patient_key", "study_key", "series_key"), keys)
    out = scored(
        tmp_path, columns=columns | {"logit_covid": [np.nan if i == 3 else 4 for i in range(NUM)]}
    )
    left = [name for name in NAMES if name != NAMES[3]]
    labels = labels_of(tmp_path, names=left, labels=["covid"] * len(left), per_patient=1)
    done = evaluate(out, labels, to=tmp_path / "e")
    one_line(done, code=2, message=f"a score that is not a number: {3:032x}; score them again")


def test_a_healthy_set_without_an_error_has_an_empty_gallery(tmp_path: Path) -> None:
    names = NAMES[0::3]
    write_output(tmp_path / "out", names, 8.0 * np.eye(3)[[0] * 4] - 4.0)
    labels = labels_of(tmp_path, names=names, labels=["control"] * 4, per_patient=1)
    assert evaluate(tmp_path / "out", labels, to=tmp_path / "e").returncode == 0
    result = metrics(tmp_path / "e")
    assert not any(result["cases"].values())
    specificity = result["metrics"]["slice.specificity.covid"]
    assert (specificity["value"], specificity["patients"]) == (1, 4)
    assert specificity["method"].startswith("Clopper-Pearson over patients")


def test_a_set_of_error_rows_alone_is_one_line(tmp_path: Path) -> None:
    out = scored(tmp_path, errors=dict.fromkeys(NAMES, "truncated"))
    done = evaluate(out, labels_of(tmp_path), to=tmp_path / "e")
    one_line(done, code=2, message="no labelled slice has scores, so nothing can be measured")


@pytest.mark.parametrize("patient", ["P0", ""])
@pytest.mark.parametrize("number", [0, 2])
def test_a_set_of_one_slice_is_measured(tmp_path: Path, number: int, patient: str) -> None:
    out = scored(tmp_path)
    (tmp_path / "labels.csv").write_text(
        f"uri,label,patient\n{NAMES[number]},{CLASSES[number]},{patient}\n"
    )
    assert evaluate(out, tmp_path / "labels.csv", to=tmp_path / "e").returncode == 0
    assert accuracy(tmp_path / "e") == 1


def test_a_label_that_is_a_name_stays_out_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CCTMN_LOG")
    done = evaluate(
        scored(tmp_path), labels_of(tmp_path, labels=["Jane Doe"] * NUM), to=tmp_path / "e"
    )
    assert done.returncode == 2
    assert "Jane" not in done.stdout + done.stderr


# --- the cases of the reference material


@pytest.fixture
def case(shared: Path) -> Path:
    folder = shared / "cases/evaluation"
    if not folder.is_dir():
        pytest.skip("the reference material has no folder cases/evaluation")
    return folder


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ("semicolon", "Few patients (control 4"),
        ("header_case", "Few patients (control 4"),
        ("covid19", "COVID-19 as covid"),
        ("ext_case", "30 labels were joined"),
        ("nfd", "10 ids of patients differ"),
    ],
)
def test_the_cases_of_label_tables(case: Path, tmp_path: Path, table: str, note: str) -> None:
    folder = case / "label_tables"
    done = evaluate(folder / "out", folder / f"{table}.csv", to=tmp_path / "e")
    assert done.returncode == 0
    assert note in done.stderr
    result = metrics(tmp_path / "e")
    assert result["labels"]["patients"] == 10
    assert result["accounting"]["evaluated"] == 30


@pytest.mark.parametrize(
    ("folder", "table", "label_map"),
    [
        ("digit_labels", "labels.csv", "0=control,1=covid"),
        ("label_tables", "float_labels.csv", "0=control,1=pneumonia,2=covid"),
    ],
)
def test_the_cases_of_numbers(
    case: Path, tmp_path: Path, folder: str, table: str, label_map: str
) -> None:
    out, labels = case / folder / "out", case / folder / table
    one_line(evaluate(out, labels, to=tmp_path / "e"), code=2, message="--label-map")
    done = evaluate(out, labels, "--label-map", label_map, to=tmp_path / "e")
    assert done.returncode == 0
    assert accuracy(tmp_path / "e") > 0.8


def test_the_case_of_a_logit_that_is_not_a_number(case: Path, tmp_path: Path) -> None:
    folder = case / "nan_logit"
    done = evaluate(folder / "out", folder / "labels.csv", to=tmp_path / "e")
    one_line(done, code=2, message=f"not a number: {3:032x}")


def test_the_case_of_a_healthy_set(case: Path, tmp_path: Path) -> None:
    folder = case / "all_control_right"
    assert evaluate(folder / "out", folder / "labels.csv", to=tmp_path / "e").returncode == 0
    specificity = metrics(tmp_path / "e")["metrics"]["slice.specificity.covid"]
    assert (specificity["value"], specificity["patients"]) == (1, 20)
    assert specificity["low"] == pytest.approx(0.8316, abs=1e-4)


def test_the_case_of_error_rows_alone(case: Path, tmp_path: Path) -> None:
    folder = case / "all_errors"
    done = evaluate(folder / "out", folder / "labels.csv", to=tmp_path / "e")
    one_line(done, code=2, message="no labelled slice has scores")


def test_the_case_of_few_negatives(case: Path, tmp_path: Path) -> None:
    folder = case / "few_negatives"
    assert evaluate(folder / "out", folder / "labels.csv", to=tmp_path / "e").returncode == 0
    measured = metrics(tmp_path / "e")["metrics"]
    same = ("value", "low", "high", "n", "patients")
    specificity, sensitivity = (
        {key: measured[f"slice.{name}"][key] for key in same}
        for name in ("specificity.covid", "sensitivity.control")
    )
    assert specificity == sensitivity
    assert (sensitivity["n"], sensitivity["patients"]) == (9, 3)
    assert sensitivity["low"] == pytest.approx(0.2924, abs=1e-4)
    for name in ("auc.covid", "ap.covid", "auc.control", "f1_macro"):
        assert measured[f"slice.{name}"]["low"] <= sensitivity["low"]
        assert measured[f"slice.{name}"]["fewest_patients"] == 3


def test_the_case_of_one_error(case: Path, tmp_path: Path) -> None:
    folder = case / "one_error"
    ends = []
    for out in ("out_no_error", "out"):
        done = evaluate(folder / out, folder / "labels.csv", to=tmp_path / out)
        assert done.returncode == 0
        metric = metrics(tmp_path / out)["metrics"]["slice.sensitivity.covid"]
        ends.append((metric["low"], metric["high"]))
    (low, high), (low_of_one, high_of_one) = ends
    assert (low, high) == (pytest.approx(0.4782, abs=1e-4), 1)
    assert low_of_one <= low
    assert high_of_one - low_of_one >= high - low - 1e-6


def test_the_case_of_a_cohort_of_three(case: Path, tmp_path: Path) -> None:
    folder = case / "cohort_subtract"
    done = evaluate(folder / "out", folder / "labels.csv", "--by", "sex", to=tmp_path / "e")
    assert done.returncode == 0
    [table] = metrics(tmp_path / "e")["cohorts"]
    assert table["cells"] == [{"values": ["2 more"], "hidden": True}]


def test_the_case_of_a_metric_of_one_patient(case: Path, tmp_path: Path) -> None:
    folder = case / "cohort_one_patient"
    done = evaluate(folder / "out", folder / "labels.csv", "--by", "sex", to=tmp_path / "e")
    assert done.returncode == 0
    [table] = metrics(tmp_path / "e")["cohorts"]
    for cell in table["cells"]:
        assert all(m["patients"] >= 10 for m in cell.get("metrics", {}).values())


def test_the_case_of_a_calibrated_model(case: Path, tmp_path: Path) -> None:
    folder = case / "ece_calibrated"
    assert evaluate(folder / "out", folder / "labels.csv", to=tmp_path / "e").returncode == 0
    measured = metrics(tmp_path / "e")["metrics"]
    ece, chance = measured["calibration.ece"], measured["calibration.ece_by_chance"]
    assert (ece["low"], ece["method"]) == (0, "bootstrap over patients, without its bias")
    assert ece["value"] == pytest.approx(0.1, abs=0.03)
    assert chance["low"] < ece["value"] < chance["high"]
