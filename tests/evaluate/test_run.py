"""An evaluation from an output folder and labels: metrics, accounting, errors, privacy."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from cctmn.data.labels import identities, read_table
from cctmn.errors import ConfigError, DataError, ResumeError
from cctmn.evaluate import known_sets, run
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.document import PAPER_REMAINING
from cctmn.metrics.intervals import Resampling
from cctmn.metrics.patients import TOP_M
from cctmn.report import render
from tests.evaluate.outputs import CLASSES, study, write_labels, write_output
from tests.makers import png

FEW = Resampling(resamples=200)


def options(folder: Path, **changes) -> EvaluationOptions:
    settings = {
        "out": str(folder / "out"),
        "labels": str(folder / "labels.csv"),
        "to": str(folder / "eval"),
        "resampling": FEW,
        "overwrite": True,
    }
    return EvaluationOptions(**(settings | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Two errors, a pending slice, a label without prediction, two predictions without label."""
    folder = tmp_path_factory.mktemp("evaluate")
    names, logits, truth = study()
    (folder / "images").mkdir()
    for i, name in enumerate(names):
        (folder / "images" / name).write_bytes(png(i))
    errors = {names[0]: "truncated", names[1]: "truncated", names[2]: "pending"}
    write_output(folder / "out", names, logits, images=folder / "images", errors=errors)
    sex = ["F" if int(n.split("_")[1]) % 2 else "M" for n in names]
    site = ["small" if int(n.split("_")[1]) < 5 else "large" for n in names]
    lost = [*names[:-2], "CP_900_1_0001.png"]
    write_labels(
        folder / "labels.csv", lost, [*truth[:-2], 1], sex=[*sex, "F"], site=[*site, "large"]
    )
    lines: list[str] = []
    result = run.evaluate(
        options(folder, by=(("sex",), ("site", "sex")), training=str(folder / "labels.csv")),
        report=lambda text, *, transient=False, names="": lines.append(f"{text} ({names})"),
    )
    assert any("1 labels without a prediction (CP_900_1_0001.png)" in line for line in lines)
    assert any("2 predictions without a label" in line for line in lines)
    return folder, result


def test_accounting_adds_up(whole):
    _, result = whole
    names, _, _ = study()
    counts = result["accounting"]
    assert counts["indexed"] == len(names)
    assert counts["indexed"] == counts["scored"] + counts["errors"] + counts["pending"]
    assert counts["errors"] == 2
    assert counts["pending"] == 1
    assert counts["labelled"] == len(names) - 2 + 1
    assert counts["labels_without_prediction"] == 1
    assert counts["predictions_without_label"] == 2
    assert counts["labelled_errors"] == {"pending": 1, "truncated": 2}
    lost = counts["labels_without_prediction"] + sum(counts["labelled_errors"].values())
    assert counts["evaluated"] == counts["labelled"] - lost


def test_metrics_equal_sklearns(whole):
    _, result = whole
    _, logits, truth = study()
    logits, truth = logits[3:-2], truth[3:-2]
    predicted, p = logits.argmax(axis=1), 1 / (1 + np.exp(-logits))
    value = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert value["slice.accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted), abs=1e-6)
    for k, name in enumerate(CLASSES):
        auc = sk.roc_auc_score(truth == k, p[:, k])
        assert value[f"slice.auc.{name}"] == pytest.approx(auc, abs=1e-6)
    assert result["confusion"]["slice"]["matrix"] == sk.confusion_matrix(truth, predicted).tolist()
    assert sum(result["confusion"]["slice"]["unscored"]) == 4
    evaluated, labelled = len(truth), len(truth) + 4
    worst = value["slice.accuracy"] * evaluated / labelled
    assert value["worst_case.accuracy"] == pytest.approx(worst, abs=1e-6)


def test_patients_are_judged_by_the_slices_of_most_evidence(whole):
    _, result = whole
    names, logits, truth = study()
    p = 1 / (1 + np.exp(-logits))
    patient = np.array([n.split("_")[1] for n in names])
    right = []
    for one in dict.fromkeys(patient[3:-2]):
        rows = np.flatnonzero(patient == one)
        rows = rows[(rows >= 3) & (rows < len(names) - 2)]
        share = p[rows] / p[rows].sum(axis=1, keepdims=True)
        top = share[np.argsort(share[:, 0])[:TOP_M]].mean(axis=0)
        called = 0 if top[0] > 0.5 else 1 + top[1:].argmax()
        right.append(called == truth[rows[0]])
    metric = result["metrics"]["patient.accuracy"]
    assert metric["value"] == pytest.approx(np.mean(right), abs=1e-6)
    assert metric["n"] == metric["patients"] == len(right)
    assert metric["naive_low"] is None


def test_intervals_contain_the_value_and_are_wider_than_naive_ones(whole):
    _, result = whole
    for name, metric in result["metrics"].items():
        if metric["low"] is not None and "ece" not in name:
            assert metric["low"] <= metric["value"] <= metric["high"], name
    accuracy = result["metrics"]["slice.accuracy"]
    naive = accuracy["naive_high"] - accuracy["naive_low"]
    assert accuracy["high"] - accuracy["low"] > 1.5 * naive
    names, _, _ = study()
    assert accuracy["patients"] == len({name.split("_")[1] for name in names[3:-2]})


def test_cohorts_hide_small_cells(whole):
    _, result = whole
    by_sex, by_both = result["cohorts"]
    assert [cell["values"] for cell in by_sex["cells"]] == [["F"], ["M"]]
    assert all(cell["patients"] >= 10 for cell in by_sex["cells"])
    # Of the 13 patients of a class, fewer than ten are of one sex.
    assert by_sex["cells"][0]["metrics"].keys() == {"accuracy"}
    # The large site less its patients of one sex would be the small one's.
    hidden = [cell for cell in by_both["cells"] if cell["hidden"]]
    assert [cell["values"] for cell in hidden] == [["4 more", ""]]
    assert "small" not in json.dumps(result["cohorts"])
    assert all(cell.keys() == {"values", "hidden"} for cell in hidden)


def test_gallery_has_one_slice_per_patient(whole):
    folder, result = whole
    names, logits, truth = study()
    by_id = {f"{i:032x}": i for i in range(len(names))}
    for kind in ("misses", "false_alarms", "hits"):
        cases = result["cases"][kind]
        patients = [names[by_id[case["slice_id"]]].split("_")[1] for case in cases]
        assert len(set(patients)) == len(patients)
        assert cases
        for case in cases:
            i = by_id[case["slice_id"]]
            assert case["truth"] == CLASSES[truth[i]]
            assert case["predicted"] == CLASSES[logits[i].argmax()]
            assert (case["truth"] == case["predicted"]) == (kind == "hits")
            assert (case["truth"] == "control") == (kind == "false_alarms")
            picture = folder / "eval/private/cases" / f"{case['slice_id']}.png"
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert picture.stat().st_mode & 0o077 == 0


def test_names_stay_in_private(whole):
    folder, result = whole
    text = json.dumps(result)
    names, _, _ = study()
    assert not any(name in text for name in names)
    assert str(folder) not in text
    assert (folder / "eval/metrics.json").read_text() == json.dumps(result, indent=2) + "\n"
    text = (folder / "eval/private/unjoined.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["problem"] for row in rows].count("prediction without label") == 2
    assert {row["name"] for row in rows} >= {"CP_900_1_0001.png"}


def test_audit_reports_a_set_that_equals_the_training_set(whole):
    folder, result = whole
    [pair] = result["audit"]["pairs"]
    assert pair["patients"] == result["labels"]["patients"]
    assert any("not independent" in text for text in result["warnings"])
    assert result["training"]["slices"] == result["labels"]["slices"]
    assert "patients" in (folder / "eval/private/audit.csv").read_text()


def test_two_models_are_compared_in_the_same_resamples(tmp_path):
    names, logits, truth = study()
    write_output(tmp_path / "out", names, logits)
    better = logits + 1.5 * np.eye(3)[truth]
    write_output(tmp_path / "other", names, better, model_id="better", errors={names[5]: "corrupt"})
    write_labels(tmp_path / "labels.csv", names, truth)
    result = run.evaluate(options(tmp_path, against=str(tmp_path / "other"), gallery=False))
    kept = np.arange(len(names)) != 5
    expected = (logits.argmax(1) == truth)[kept].mean() - (better.argmax(1) == truth)[kept].mean()
    metric = result["metrics"]["difference.slice.accuracy"]
    assert metric["value"] == pytest.approx(expected, abs=1e-6)
    assert metric["low"] < metric["value"] < metric["high"] < 0
    alone = result["metrics"]["slice.accuracy"]
    assert (
        metric["high"] - metric["low"] < alone["high"] - alone["low"]
    )  # both models are resampled together
    assert result["comparison"] == {
        "model_id": "better",
        "name": "stand-in",
        "n": len(names) - 1,
        "patients": 40,
    }
    same = run.evaluate(options(tmp_path, against=str(tmp_path / "out"), gallery=False))
    zero = same["metrics"]["difference.slice.accuracy"]
    assert zero["value"] == 0
    assert zero["high"] == -zero["low"] > 0


def test_joins_by_uri_and_slice_id(tmp_path):
    names, logits, truth = study(12)
    write_output(tmp_path / "out", names, logits)
    write_labels(tmp_path / "labels.csv", names, truth)
    by_name = run.evaluate(options(tmp_path, gallery=False))
    by_uri = run.evaluate(
        options(tmp_path, gallery=False, key="uri", root=str(tmp_path / "images"))
    )
    ids = [f"{i:032x}" for i in range(len(names))]
    lines = [
        f"{i},{CLASSES[t]},{n.split('_')[1]}" for i, n, t in zip(ids, names, truth, strict=True)
    ]
    (tmp_path / "ids.csv").write_text("\n".join(["slice_id,label,patient", *lines]))
    for file in (tmp_path / "out/private/inventory").iterdir():
        file.unlink()
    by_id = run.evaluate(
        options(tmp_path, gallery=False, key="slice_id", labels=str(tmp_path / "ids.csv"))
    )
    assert by_name["metrics"] == by_uri["metrics"] == by_id["metrics"]
    with pytest.raises(DataError, match="join by --key slice_id"):
        run.evaluate(options(tmp_path, gallery=False))


def test_names_that_match_several_slices_are_refused(tmp_path):
    names, logits, truth = study(12)
    write_output(
        tmp_path / "out",
        [*(f"a/{n}" for n in names), f"b/{names[0]}"],
        np.vstack([logits, logits[:1]]),
    )
    write_labels(tmp_path / "labels.csv", names, truth)
    with pytest.raises(DataError, match=r"1 labels match more than one slice.*--key uri"):
        run.evaluate(options(tmp_path, gallery=False))


def test_labels_without_patients_give_a_warning(tmp_path):
    names, logits, truth = study(12)
    write_output(tmp_path / "out", names, logits)
    lines = [f"{n},{CLASSES[t]}" for n, t in zip(names, truth, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    result = run.evaluate(options(tmp_path, gallery=False))
    assert any("intervals are too narrow" in text for text in result["warnings"])
    assert "patient.accuracy" not in result["metrics"]
    accuracy = result["metrics"]["slice.accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (accuracy["naive_low"], accuracy["naive_high"])


def test_patients_come_from_the_header_if_labels_have_none(tmp_path):
    names, logits, truth = study(12)
    keys = [n.split("_")[1] for n in names]
    write_output(tmp_path / "out", names, logits, columns={"patient_key": keys})
    lines = [f"{n},{CLASSES[t]}" for n, t in zip(names, truth, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
    result = run.evaluate(options(tmp_path, gallery=False))
    assert result["labels"]["patients"] == 12
    assert result["metrics"]["patient.accuracy"]["n"] == 12


def test_a_known_set_is_named_and_gives_a_warning(tmp_path, monkeypatch):
    names, logits, truth = study(12)
    write_output(tmp_path / "out", names, logits)
    write_labels(tmp_path / "labels.csv", names, truth)
    assert run.evaluate(options(tmp_path, gallery=False))["labels"]["known_set"] is None
    [known] = (k for k in known_sets.KNOWN_SETS.values() if k.name == PAPER_REMAINING)
    table, _ = read_table(str(tmp_path / "labels.csv"))
    these = {known_sets.identity_hash(identities(table)): known}
    monkeypatch.setattr(known_sets, "KNOWN_SETS", these)
    result = run.evaluate(options(tmp_path, gallery=False))
    assert result["labels"]["known_set"] == PAPER_REMAINING
    assert any("606 of the 608 patients" in text for text in result["warnings"])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("uri,label\na.png,lymphoma\n", DataError, "a label is none of the classes"),
        ("uri,class\na.png,covid\n", DataError, "no column label"),
        ("file,label\na.png,covid\n", DataError, "add uri, name, slice_id or patient"),
        ("uri,label\n", DataError, "holds no row"),
        ("uri,label\nnowhere.png,covid\n", DataError, "no label has a prediction"),
        ("uri,label\na.png,covid\na.png,covid\n", DataError, "listed more than once"),
        ("uri,label\n,covid\n", DataError, "line 2 has no"),
        ("uri,label\na.png\n", DataError, "not a CSV table"),
        ("uri,uri,label\na,a,covid\n", DataError, "two columns have the same name"),
    ],
)
def test_unusable_labels_raise_one_line(tmp_path, text, error, message):
    names, logits, _ = study(4)
    write_output(tmp_path / "out", names, logits)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(error, match=message):
        run.evaluate(options(tmp_path))
    assert not (tmp_path / "eval").exists()


def test_unusable_outputs_raise_one_line(tmp_path, fresh_model):
    names, logits, truth = study(9)
    write_labels(tmp_path / "labels.csv", names, truth)
    with pytest.raises(DataError, match="holds no predictions"):
        run.evaluate(options(tmp_path))
    write_output(tmp_path / "out", names, logits)
    with pytest.raises(ConfigError, match=r"are of model standin, .* give the model that scored"):
        run.evaluate(options(tmp_path, model=str(fresh_model)))
    with pytest.raises(ConfigError, match=r"--by age: no such column; there are .*label"):
        run.evaluate(options(tmp_path, by=(("age",),)))
    many = [f"note {i}" for i in range(len(names))]
    write_labels(tmp_path / "labels.csv", names, truth, note=many)
    with pytest.raises(ConfigError, match=r"--by note: \d+ different values are too many"):
        run.evaluate(options(tmp_path, by=(("note",),)))


def test_another_evaluation_is_not_replaced_unasked(tmp_path):
    names, logits, truth = study(30)
    write_output(tmp_path / "out", names, logits)
    write_labels(tmp_path / "labels.csv", names, truth)
    first = options(tmp_path, overwrite=False)
    run.evaluate(first)
    run.evaluate(first)
    other = replace(first, labels=str(write_labels(tmp_path / "other.csv", names, truth)))
    before = (Path(first.to) / "metrics.json").read_bytes()
    with pytest.raises(ResumeError, match=r"holds another evaluation, .* --overwrite"):
        run.evaluate(other)
    assert (Path(first.to) / "metrics.json").read_bytes() == before
    assert "other.csv" in run.evaluate(replace(other, overwrite=True))["title"]


def whole_scans(folder: Path, *, label: str) -> Path:
    """Patients of 20 slices, 5 of them sick in the sick; labels of each slice or patient."""
    names, logits, labels = [], [], []
    for patient in range(12):
        sick = 2 * (patient % 2)
        for n in range(20):
            seen = sick if n < 5 else 0
            names.append(f"{CLASSES[sick]}_{patient}_{n}.png")
            logits.append(4.0 * np.eye(3)[seen] - 2)
            labels.append(seen if label == "slice" else sick)
    write_output(folder / "out", names, np.array(logits))
    write_labels(folder / "labels.csv", names, labels)
    return folder


@pytest.mark.parametrize("label", ["slice", "patient"])
def test_sick_patients_of_whole_scans_are_found_and_none_is_left_out(label, tmp_path):
    result = run.evaluate(options(whole_scans(tmp_path, label=label), gallery=False))
    for name in ("accuracy", "sensitivity.covid", "sensitivity.control"):
        metric = result["metrics"][f"patient.{name}"]
        assert metric["value"] == 1
    assert result["metrics"]["patient.accuracy"]["patients"] == 12
    assert result["confusion"]["patient"]["matrix"] == [[6, 0, 0], [0, 0, 0], [0, 0, 6]]


def test_abstained_slices_say_nothing_about_a_patient(tmp_path):
    """Patient 0 is clean but for slices without a lung, and of patient 2 there are no others."""
    names = [f"control_{patient}_{n}.png" for patient in range(3) for n in range(6)]
    abstained = [patient == 2 or (patient == 0 and n < 5) for patient in range(3) for n in range(6)]
    logits = np.array([4.0 * np.eye(3)[2 if out else 0] - 2 for out in abstained])
    write_output(tmp_path / "out", names, logits, columns={"abstained": abstained})
    write_labels(tmp_path / "labels.csv", names, [0] * 18)
    result = run.evaluate(options(tmp_path, gallery=False))
    assert result["metrics"]["slice.accuracy"]["value"] == pytest.approx(7 / 18, abs=1e-6)
    assert result["metrics"]["without_abstained.accuracy"]["value"] == 1
    assert result["metrics"]["without_abstained.accuracy"]["n"] == 7
    assert "With and without abstained slices" in render.render(str(tmp_path / "eval"))
    assert result["confusion"]["patient"]["matrix"][0] == [2, 0, 0]
    assert result["confusion"]["patient"]["unscored"][0] == 1


def test_cohorts_of_abstained_slices_take_the_place_of_metrics_without_them(tmp_path):
    """Three patients are abstained: the metrics of the others would tell theirs."""
    names, logits, truth = study(30)
    abstained = [int(name.split("_")[1]) < 3 for name in names]
    write_output(tmp_path / "out", names, logits, columns={"abstained": abstained})
    write_labels(tmp_path / "labels.csv", names, truth)
    result = run.evaluate(options(tmp_path, by=(("abstained",),), gallery=False))
    assert result["cohorts"][0]["cells"] == [{"values": ["2 more"], "hidden": True}]
    assert not [name for name in result["metrics"] if name.startswith("without_abstained")]
    assert not any("without them too" in text for text in result["warnings"])
