"""`accept` and `samplesize` as a user runs them: results, exit codes, refusals and privacy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cctmn.data.set_record import Members, record
from cctmn.numerics import Numerics
from cctmn.pseudonym import pseudonym
from tests.commands import call, one_line
from tests.evaluate.outputs import CLASSES, write_labels, write_output

CANARY = "Mustermann"
PATIENTS = 60
NOT_CHECKED = (
    "Independence of the sets of training and validation was not checked: the model's card has no "
    "record of them."
)
SLICES = 3
FIXED = "[operating_point]\nthreshold = 0.5\n"
CHOSEN = '[operating_point]\nsensitivity = 0.9\nout = "valid/out"\nlabels = "valid/labels.csv"\n'


def make_set(folder: Path, *, prefix: str, wrong: int = 2, seed: int = 0, **more: Any) -> None:
    """Scored slices of patients, two thirds of them sick; `wrong` patients look like healthy."""
    rng = np.random.default_rng(seed)
    patients = [p for p in range(PATIENTS) for _ in range(SLICES)]
    names = [f"{prefix}_{prefix}{p}_{i:04d}.png" for i, p in enumerate(patients)]
    truth = [p % 3 for p in patients]
    shown = [0 if p < 3 * wrong else p % 3 for p in patients]
    logits = 6 * np.eye(3)[shown] - 3 + rng.normal(scale=0.3, size=(len(names), 3))
    folder.mkdir()
    write_output(folder / "out", names, logits, **more)
    sex = ["FM"[p % 2] for p in patients]
    site = ["rare" if p < 4 else "usual" for p in patients]
    write_labels(folder / "labels.csv", names, truth, sex=sex, site=site)


def criteria(folder: Path, *bounds: str, point: str = FIXED, top: str = "") -> Path:
    """Each bound is "metric at_least [by]"; a "<" before the number makes it at_most."""
    text = top + "prevalence = 0.2\n" + point
    for bound in bounds:
        metric, limit, *by = bound.split()
        key = "at_most" if limit.startswith("<") else "at_least"
        text += f'[[criteria]]\nmetric = "{metric}"\n{key} = {limit.removeprefix("<")}\n'
        text += f'by = "{by[0]}"\n' if by else ""
    path = folder / "criteria.toml"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(tmp_path / "test", prefix="t")
    return tmp_path


def accept(folder: Path, path: Path, *args: object) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, the result and the page."""
    test = folder / "test"
    done = call(
        "accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "a", *args
    )
    result = folder / "a/acceptance.json"
    assert result.exists(), done.stderr
    page = (folder / "a/acceptance.html").read_text()
    return done.returncode, json.loads(result.read_text()), page


def test_a_model_that_meets_every_criterion_passes(folder: Path) -> None:
    path = criteria(folder, "sensitivity 0.75", "specificity 0.8", "lr_negative <0.3", "auc 0.8")
    code, result, page = accept(folder, path)
    assert (code, result["verdict"]) == (0, "pass")
    assert [row["verdict"] for row in result["criteria"]] == ["pass"] * 4
    assert "<b>Pass</b><p>All 4 criteria are met.</p>" in page
    first = result["criteria"][0]
    # Of 40 sick patients, the four that look healthy are missed.
    assert first["value"] == pytest.approx(36 / 40)
    assert first["bound"] == pytest.approx(0.763, abs=0.001)


def test_one_criterion_that_is_not_met_fails(folder: Path) -> None:
    path = criteria(folder, "sensitivity 0.95", "specificity 0.8")
    code, result, page = accept(folder, path)
    assert (code, result["verdict"]) == (5, "fail")
    assert [row["verdict"] for row in result["criteria"]] == ["fail", "pass"]
    assert "<b>Fail</b><p>1 of 2 criteria not met.</p>" in page
    assert "the lower bound is below the required value" in page


def test_too_few_patients_is_neither_pass_nor_fail(folder: Path) -> None:
    path = criteria(folder, "sensitivity 0.5", "specificity 0.5", top="fewest_patients = 30\n")
    code, result, page = accept(folder, path)
    assert (code, result["verdict"]) == (6, "too few patients")
    few = result["criteria"][1]
    assert few["verdict"] == "too few patients"
    assert {few[key] for key in ("value", "bound", "patients", "slices")} == {None}
    assert "fewer than 30 patients without it" in page


def test_a_failure_outweighs_a_lack_of_patients(folder: Path) -> None:
    path = criteria(folder, "sensitivity 0.99", "specificity 0.5", top="fewest_patients = 30\n")
    assert accept(folder, path)[0] == 5


def test_every_subgroup_is_judged(folder: Path) -> None:
    _, result, page = accept(folder, criteria(folder, "accuracy 0.7 sex"))
    assert [row["values"] for row in result["criteria"]] == [["F"], ["M"]]
    assert {row["patients"] for row in result["criteria"]} == {30}
    assert "sex: F" in page


def test_a_small_subgroup_is_hidden_with_its_value_and_size(folder: Path) -> None:
    code, result, page = accept(folder, criteria(folder, "accuracy 0.7 site"))
    usual, hidden = result["criteria"]
    assert (code, hidden["hidden"], hidden["verdict"]) == (6, True, "too few patients")
    assert "rare" not in page + json.dumps(result)
    assert hidden["patients"] is None
    assert (usual["values"], usual["verdict"]) == (["usual"], "pass")


def test_numbers_from_which_a_hidden_subgroup_follows_are_withheld(folder: Path) -> None:
    """All patients less those of the usual site are the four of the rare one."""
    usual = accept(folder, criteria(folder, "accuracy 0.7 site"))[1]["criteria"][0]
    assert {usual[key] for key in ("value", "bound", "patients", "slices")} == {None}
    assert "numbers withheld: those of fewer than 10 patients would follow" in usual["reason"]


def test_a_hidden_subgroup_leaves_the_numbers_of_criteria_for_all(folder: Path) -> None:
    path = criteria(folder, "accuracy 0.7", "accuracy 0.7 site")
    assert accept(folder, path)[1]["criteria"][0]["patients"] == PATIENTS


def test_a_slice_can_be_the_unit(folder: Path) -> None:
    point = FIXED + 'unit = "slice"\npositive = "covid"\n'
    code, result, _ = accept(folder, criteria(folder, "sensitivity 0.5", point=point))
    [row] = result["criteria"]
    assert (code, row["patients"], row["slices"]) == (0, 20, 60)
    assert result["tested"]["positive"] == 60


def test_the_threshold_is_chosen_on_validation_patients(folder: Path) -> None:
    make_set(folder / "valid", prefix="v", wrong=0, seed=1)
    code, result, page = accept(folder, criteria(folder, "sensitivity 0.5", point=CHOSEN))
    point = result["operating_point"]
    assert code == 0
    assert 0.9 < point["threshold"] < 1
    assert result["notes"] == [NOT_CHECKED]
    assert point["chosen_on"]["patients"] == PATIENTS
    assert point["chosen_on"]["labels_sha256"] in page


def test_few_validation_patients_are_noted(folder: Path) -> None:
    make_set(folder / "valid", prefix="v", seed=1)
    labels = folder / "valid/labels.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:31]))
    _, result, _ = accept(folder, criteria(folder, "sensitivity 0.5", point=CHOSEN))
    few = "The threshold was chosen on only 6 positive patients."
    assert result["notes"] == [few, NOT_CHECKED]


@pytest.mark.parametrize(
    ("prefix", "same_file", "message"),
    [
        ("v", True, "the same file as the tested labels; choose the threshold on other patients"),
        ("t", False, "shares 60 patients and 180 slices with the tested labels; choose the"),
    ],
)
def test_validation_data_of_the_test_are_refused(
    folder: Path, prefix: str, same_file: bool, message: str
) -> None:
    make_set(folder / "valid", prefix=prefix, seed=1)
    tested, labels = folder / "test/labels.csv", folder / "valid/labels.csv"
    point = CHOSEN
    if same_file:
        point = point.replace("valid/", "test/")
    else:
        labels.write_text(labels.read_text() + "\n")
        assert labels.read_bytes() != tested.read_bytes()
    path = criteria(folder, "sensitivity 0.5", point=point)
    done = call("accept", path, folder / "test/out", "--labels", tested, "-o", folder / "a")
    one_line(done, code=2, message=message)
    assert not (folder / "a").exists()


def test_the_same_patients_in_one_output_are_refused_without_names(folder: Path) -> None:
    """Labels that name no patient still share keyed ids of patients in the same output."""
    out = folder / "dicom"
    names = [f"s{i}.png" for i in range(120)]
    truth = [1 if (i // 2) % 2 else 0 for i in range(120)]
    logits = 6 * np.eye(3)[truth] - 3
    keys = [f"{i // 2:016x}" for i in range(120)]
    out.mkdir()
    write_output(out / "out", names, logits, columns={"patient_key": keys, "study_key": keys})
    for name, first in (("a", 0), ("b", 1)):
        rows = [f"{names[i]},{CLASSES[truth[i]]}" for i in range(first, 120, 2)]
        (out / f"{name}.csv").write_text("uri,label\n" + "\n".join(rows) + "\n")
    point = CHOSEN.replace("valid/out", "dicom/out").replace("valid/labels", "dicom/a")
    path = criteria(folder, "sensitivity 0.5", point=point)
    done = call("accept", path, out / "out", "--labels", out / "b.csv", "-o", folder / "a")
    one_line(done, code=2, message="shares 60 patients with the tested labels")


def test_validation_predictions_of_another_model_are_refused(folder: Path) -> None:
    make_set(folder / "valid", prefix="v", seed=1, model_id="other")
    path = criteria(folder, "sensitivity 0.5", point=CHOSEN)
    test = folder / "test"
    done = call("accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "a")
    one_line(done, code=2, message="its predictions are of another model; score the validation")


def test_a_model_that_was_calibrated_on_the_tested_labels_is_refused(folder: Path) -> None:
    test = folder / "test"
    path = criteria(folder, "sensitivity 0.5")
    _, result, _ = accept(folder, path)
    manifest = json.loads((test / "out/manifest.json").read_text())
    manifest["model"]["calibration"] = {"labels_sha256": result["labels"]["sha256"]}
    (test / "out/manifest.json").write_text(json.dumps(manifest))
    done = call("accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "b")
    one_line(done, code=2, message="calibrated on these very labels; test it on other patients")


def test_patients_on_whom_the_model_was_fitted_are_refused(folder: Path) -> None:
    test = folder / "test"
    names, patients = zip(
        *(
            (line.split(",")[0], line.split(",")[2])
            for line in (test / "labels.csv").read_text().splitlines()[1:6]
        ),
        strict=True,
    )
    kept = json.dumps({"validation": record(Members.of(patients, names))})
    (test / "out/private/fitted_on.json").write_text(kept)
    path = criteria(folder, "sensitivity 0.5")
    done = call("accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "b")
    one_line(done, code=2, message="are in the validation set, which chose the best epoch")
    assert not (folder / "b").exists()


def test_patients_without_a_score_count_as_wrong(tmp_path: Path) -> None:
    names = [f"t_t{p}_{i:04d}.png" for i, p in enumerate(range(PATIENTS)) for _ in [0]]
    failed = dict.fromkeys(names[:6], "decode_error")
    truth = [p % 3 for p in range(PATIENTS)]
    (tmp_path / "test").mkdir()
    logits = 6 * np.eye(3)[truth] - 3
    write_output(tmp_path / "test/out", names, logits, errors=failed)
    write_labels(tmp_path / "test/labels.csv", names, truth)
    path = criteria(tmp_path, "sensitivity 0.5", "specificity 0.5", "auc 0.5")
    _, result, page = accept(tmp_path, path)
    values = [row["value"] for row in result["criteria"]]
    # Of 40 sick patients four have no score, of 20 healthy ones two.
    assert values == pytest.approx([0.9, 0.9, 0.81])
    assert "6 labelled patients without a usable score count as wrong." in page


def test_a_threshold_chosen_in_another_precision_is_noted(tmp_path: Path) -> None:
    make_set(tmp_path / "test", prefix="t", numerics=Numerics("cpu", "float32"))
    make_set(tmp_path / "valid", prefix="v", seed=1, numerics=Numerics("cpu", "bfloat16"))
    _, result, page = accept(tmp_path, criteria(tmp_path, "sensitivity 0.5", point=CHOSEN))
    [note] = [note for note in result["notes"] if "computed" in note]
    assert "float32 on CPUs" in note
    assert "bfloat16 on CPUs" in note
    assert result["predictions"]["precision"] == "float32"
    assert "<dt>computed in</dt><dd>float32 on CPUs (a processor)</dd>" in page


def test_the_result_names_its_inputs_by_their_hashes(folder: Path) -> None:
    path = criteria(folder, "sensitivity 0.5", top='title = "Our <test>"\n')
    _, result, page = accept(folder, path)
    labels = (folder / "test/labels.csv").read_bytes()
    assert result["criteria_file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result["labels"]["sha256"] == hashlib.sha256(labels).hexdigest()
    assert result["predictions"]["fingerprint"] == "f" * 64
    for digest in ("criteria_file", "labels", "predictions"):
        assert result[digest]["sha256"] in page
    assert "Our &lt;test&gt;" in page
    for heading in ("name", "role", "date", "signature"):
        assert f'<th scope="col">{heading}</th>' in page


def test_a_changed_prediction_changes_its_hash(tmp_path: Path) -> None:
    hashes = []
    for name, wrong in (("one", 2), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        make_set(tmp_path / name / "test", prefix="t", wrong=wrong)
        path = criteria(tmp_path / name, "sensitivity 0.1")
        hashes.append(accept(tmp_path / name, path)[1]["predictions"]["sha256"])
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_another_test_in_the_folder_is_kept(folder: Path) -> None:
    first = accept(folder, criteria(folder, "sensitivity 0.5"))[1]
    assert accept(folder, criteria(folder, "sensitivity 0.5"))[0] == 0
    path = criteria(folder, "sensitivity 0.6")
    test = folder / "test"
    done = call("accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "a")
    one_line(done, code=2, message="holds the result of another acceptance test; give another -o")
    again = accept(folder, path, "--overwrite")[1]
    assert again["criteria_file"] != first["criteria_file"]


@pytest.mark.parametrize(
    ("bound", "point", "message"),
    [
        ("sensitivity 0.5 age", FIXED, "criteria[1].by: age: no such column; there are"),
        ("sensitivity 0.5 uri", FIXED, "criteria[1].by: uri: 180 different values are too many"),
        ("ppv 0.5", FIXED + "positive = 'flu'\n", "'flu' is not a class of the model; write any"),
    ],
)
def test_what_the_data_do_not_have_is_one_line_with_the_key(
    folder: Path, bound: str, point: str, message: str
) -> None:
    path, test = criteria(folder, bound, point=point), folder / "test"
    done = call("accept", path, test / "out", "--labels", test / "labels.csv", "-o", folder / "a")
    one_line(done, code=2, message=message)
    assert str(path) in done.stderr
    assert not (folder / "a").exists()


def test_patients_cannot_be_judged_where_none_is_known(folder: Path) -> None:
    labels = folder / "test/labels.csv"
    lines = [line.split(",")[:2] for line in labels.read_text().splitlines()]
    labels.write_text("\n".join(map(",".join, lines)) + "\n")
    path = criteria(folder, "sensitivity 0.5")
    done = call("accept", path, folder / "test/out", "--labels", labels, "-o", folder / "a")
    one_line(done, code=2, message="the patient of every slice is unknown; add a column patient")


def test_no_file_and_no_message_names_a_patient(tmp_path: Path) -> None:
    make_set(tmp_path / "test", prefix=CANARY)
    make_set(tmp_path / "valid", prefix=f"{CANARY}v", seed=1)
    bounds = ("sensitivity 0.5", "accuracy 0.5 sex", "accuracy 0.5 site")
    test = tmp_path / "test"
    done = call(
        *("accept", criteria(tmp_path, *bounds, point=CHOSEN), test / "out"),
        *("--labels", test / "labels.csv", "-o", tmp_path / "a", "--json"),
    )
    assert done.returncode == 6
    written = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"acceptance.json", "acceptance.html"}
    for text in [done.stdout, done.stderr, *(path.read_text() for path in written)]:
        assert CANARY not in text


def test_a_sample_size_for_a_width_says_patients_of_the_class_and_in_all() -> None:
    args = ("samplesize", "--expected", 0.9, "--width", 0.1, "--prevalence", 0.2)
    lines = call(*args).stdout.splitlines()
    assert lines[0] == "155 patients of the class"
    assert lines[1].startswith("775 patients in all")
    assert json.loads(call(*args, "--json").stdout) == {"patients_of_class": 155, "patients": 775}


def test_a_sample_size_of_slices_counts_their_design_effect() -> None:
    args = ("samplesize", "--expected", 0.9, "--width", 0.1)
    done = call(*args, "--slices-per-patient", 30, "--icc", 0.3)
    assert "(design effect 9.7: their slices are worth 155 independent ones)" in done.stdout


def test_a_one_sided_bound_needs_fewer_patients() -> None:
    args = ("samplesize", "--expected", 0.95, "--lower-bound", 0.9, "--json")
    two, one = (json.loads(call(*args, "--sided", side).stdout) for side in ("two", "one"))
    assert one["patients_of_class"] < two["patients_of_class"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "either --width or --lower-bound is needed; give one"),
        (["--width", 0.1, "--lower-bound", 0.8], "either --width or --lower-bound is needed"),
        (["--lower-bound", 0.95], "not below the expected value; give a smaller one"),
        (["--width", 0.1, "--icc", 0.3], "belong together; give both or neither"),
        (["--width", 0.1, "--sided", "one"], "an interval has two sides; leave it out"),
        (["--lower-bound", 0.8, "--sided", "one", "--level", 0.4], "needs more than 0.5; raise"),
        (["--lower-bound", "nan"], "--lower-bound nan: not a finite number"),
        (["--width", 0.1, "--prevalence", "nan"], "--prevalence nan: not a finite number"),
        (["--width", 0.1, "--slices-per-patient", "inf", "--icc", 0], "inf: not a finite number"),
    ],
)
def test_a_sample_size_that_is_not_defined_is_refused(args: list[object], message: str) -> None:
    one_line(call("samplesize", "--expected", 0.9, *args), code=2, message=message)


def make_dicom(folder: Path, *, first: int, key: bytes = b"k" * 32) -> None:
    """Scored slices of studies, and a table with one row per patient of the header."""
    patients = [first + p for p in range(40) for _ in range(SLICES)]
    truth = [1 if p % 2 else 0 for p in patients]
    keys = [pseudonym(key, "patient", f"P{p}") for p in patients]
    names = [f"{first}_{i}.dcm" for i in range(len(patients))]
    folder.mkdir()
    write_output(
        folder / "out",
        names,
        6 * np.eye(3)[truth] - 3,
        columns={"patient_key": keys, "study_key": keys, "series_key": keys},
    )
    (folder / "out/private/key").write_bytes(key)
    rows = [f"P{first + p},{CLASSES[(first + p) % 2]}" for p in range(40)]
    (folder / "labels.csv").write_text("patient,patient_label\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize(("first", "code"), [(100, 0), (20, 2)])
def test_tables_of_patients_are_joined_and_compared(tmp_path: Path, first: int, code: int) -> None:
    make_dicom(tmp_path / "test", first=0)
    make_dicom(tmp_path / "valid", first=first, key=b"v" * 32)
    path = criteria(tmp_path, "sensitivity 0.5", point=CHOSEN + 'key = "patient"\n')
    labels = tmp_path / "test/labels.csv"
    args = ("--labels", labels, "--key", "patient", "-o", tmp_path / "a")
    done = call("accept", path, tmp_path / "test/out", *args)
    assert done.returncode == code, done.stderr
    if code:
        one_line(done, code=2, message="shares 20 patients")
    else:
        [row] = json.loads((tmp_path / "a/acceptance.json").read_text())["criteria"]
        assert (row["patients"], row["slices"], row["value"]) == (20, 60, 1.0)
