"""The temperature and the patient rule: fitted, kept in the card, and used when scoring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cctmn.errors import ConfigError, DataError, ModelError
from cctmn.evaluate import run
from cctmn.evaluate.fit_calibration import calibrate
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.model.card import CARD, read_card
from cctmn.score.models import open_source
from cctmn.score.prepare import PREPARED
from cctmn.score.scorer import score
from tests.commands import call, one_line
from tests.evaluate.outputs import study, write_labels, write_output
from tests.makers import StandIn


@pytest.fixture
def model(tmp_path: Path, fresh_model: Path) -> Path:
    return Path(shutil.copytree(fresh_model, tmp_path / "model"))


def set_apart(model: Path) -> dict:
    """The calibration of a card without the record of its set, which has a key of its own."""
    return {k: v for k, v in read_card(model).calibration.items() if k != "set"}


def validation(folder: Path, model: Path, *, sharpness: float = 4.0) -> tuple[str, str]:
    names, logits, truth = study(90, most=30, skill=1.0)
    model_id = read_card(model).model_id
    write_output(folder / "valid", names, logits * sharpness, model_id=model_id)
    return str(folder / "valid"), str(write_labels(folder / "valid.csv", names, truth))


def test_calibrate_writes_the_card_and_evaluation_uses_it(tmp_path, model):
    out, labels = validation(tmp_path, model)
    before = read_card(model)
    assert (before.temperature, before.top_m) == (1.0, None)
    result = calibrate(str(model), out=out, labels=labels)
    card = read_card(model)
    assert card.temperature == result["temperature"] > 2
    assert card.top_m == result["top_m"] in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
    assert result["loss_after"] < result["loss_before"]
    assert (result["slices"], result["patients"]) == (result["slices"], 90)
    assert card.weights_sha256 == before.weights_sha256
    # An evaluation takes both from the card, and warns that these labels are not a test.
    options = EvaluationOptions(
        out=out,
        labels=labels,
        to=str(tmp_path / "e"),
        model=str(model),
        gallery=False,
        resampling=Resampling(resamples=100),
    )
    metrics = run.evaluate(options)
    assert metrics["model"]["temperature"] == card.temperature
    assert metrics["model"]["top_m"] == card.top_m
    assert any("90 patients and" in text and "not a test" in text for text in metrics["warnings"])
    assert metrics["independence"]["sets"]["calibration"]["patients"] == 90
    raw = run.evaluate(EvaluationOptions(**(vars(options) | {"model": None, "overwrite": True})))
    ece = [m["metrics"]["calibration.ece"]["value"] for m in (metrics, raw)]
    assert ece[0] < ece[1]
    assert any("was not fitted on validation patients" in text for text in raw["warnings"])


def test_scoring_divides_by_the_temperature_and_the_fingerprint_changes(tmp_path, model):
    plain = open_source(str(model))
    out, labels = validation(tmp_path, model)
    calibrate(str(model), out=out, labels=labels)
    source = open_source(str(model))
    assert "temperature" not in plain.identity
    assert source.identity == plain.identity | {"temperature": source.temperature}
    assert source.described["calibration"]["temperature"] == source.temperature
    row = dict.fromkeys(PREPARED.names) | {"error_code": "", "flags": [], "t_decode_ms": 0.0}
    row |= {"pixels": bytes(range(64)) * 64, "input_rows": 64, "input_cols": 64}
    row |= {"to_stored": [1, 0, 0, 0, 1, 0], "slice_id": "a", "rows": 64, "cols": 64}
    table = pa.Table.from_pylist([row], schema=PREPARED)
    rows = [
        score(table, scorer=StandIn(), source=s, batch_size=1, ranked_boxes=False).to_pylist()[0]
        for s in (plain, source)
    ]
    assert rows[0]["logit_covid"] == rows[1]["logit_covid"]
    for one, temperature in zip(rows, (1.0, source.temperature), strict=True):
        expected = 1 / (1 + np.exp(-one["logit_covid"] / temperature))
        assert one["p_covid"] == pytest.approx(expected, rel=1e-6)
    assert source.described["parameters"] > 1_000_000


def test_cards_without_calibration_are_read(model):
    card = json.loads((model / CARD).read_text())
    del card["calibration"]
    (model / CARD).write_text(json.dumps(card))
    assert read_card(model).temperature == 1.0
    for wrong in (
        {"temperature": 0},
        {"temperature": "2"},
        {"top_m": 0},
        {"top_m": 1.5},
        {"patient_slope": -1},
    ):
        (model / CARD).write_text(json.dumps(card | {"calibration": wrong}))
        with pytest.raises(ModelError, match="calibration"):
            read_card(model)


def test_unusable_models_and_labels_raise_one_line(tmp_path, model):
    _, labels = validation(tmp_path, model)
    names, logits, _ = study(90, most=30, skill=1.0)
    demo = read_card("cctmn:demo").model_id
    write_output(tmp_path / "demo", names, logits * 4, model_id=demo)
    with pytest.raises(ModelError, match="ships with cctmn"):
        calibrate("cctmn:demo", out=str(tmp_path / "demo"), labels=labels)
    write_output(tmp_path / "other", *study(5)[:2])
    with pytest.raises(ConfigError, match="its predictions are of model standin"):
        calibrate(str(model), out=str(tmp_path / "other"), labels=labels)
    names, logits, truth = study(9)
    sure = 9.0 * np.eye(3)[truth]
    write_output(tmp_path / "sure", names, sure, model_id=read_card(model).model_id)
    write_labels(tmp_path / "sure.csv", names, truth)
    with pytest.raises(DataError, match="no temperature between"):
        calibrate(str(model), out=str(tmp_path / "sure"), labels=str(tmp_path / "sure.csv"))
    assert read_card(model).calibration == {}


def test_a_calibration_on_other_labels_is_not_replaced_unasked(tmp_path, model):
    out, labels = validation(tmp_path, model)
    first = calibrate(str(model), out=out, labels=labels)
    assert calibrate(str(model), out=out, labels=labels) == first
    other = tmp_path / "other.csv"
    other.write_text(Path(labels).read_text() + "\n")
    with pytest.raises(ModelError, match=r"calibrated on other labels; .* --overwrite"):
        calibrate(str(model), out=out, labels=str(other))
    assert set_apart(model) == first
    replaced = calibrate(str(model), out=out, labels=str(other), overwrite=True)
    assert replaced["labels"] == "other.csv"


def test_a_map_says_what_labels_of_validation_slices_mean(tmp_path, model):
    out, labels = validation(tmp_path, model)
    numbers = tmp_path / "numbers.csv"
    text = Path(labels).read_text()
    for number, name in enumerate(("control", "pneumonia", "covid")):
        text = text.replace(f",{name},", f",{number},")
    numbers.write_text(text)
    one_line(
        call("models", "calibrate", model, out, "--labels", numbers),
        code=2,
        message="a label is a number",
    )
    mapped = ("--label-map", "0=control,1=CP,2=COVID-19")
    done = call("models", "calibrate", model, out, "--labels", numbers, *mapped)
    assert done.returncode == 0
    by_numbers = set_apart(model)
    assert calibrate(str(model), out=out, labels=labels, overwrite=True) == by_numbers | {
        "labels": "valid.csv",
        "labels_sha256": read_card(model).calibration["labels_sha256"],
    }


def evaluated(folder: Path, model: Path, names, logits, truth) -> dict:
    write_output(folder / "out", names, logits, model_id=read_card(model).model_id)
    labels = write_labels(folder / "labels.csv", names, truth)
    options = EvaluationOptions(
        out=str(folder / "out"),
        labels=str(labels),
        to=str(folder / "e"),
        model=str(model),
        gallery=False,
        resampling=Resampling(resamples=100),
    )
    return run.evaluate(options)


def test_patients_of_the_calibration_are_recognised_in_another_file_of_labels(tmp_path, model):
    out, labels = validation(tmp_path, model)
    calibrate(str(model), out=out, labels=labels)
    names, logits, truth = study(90, most=30, skill=1.0)
    some = [i for i, name in enumerate(names) if int(name.split("_")[1]) % 3 == 0][::-1]
    some += [i for i, name in enumerate(names) if int(name.split("_")[1]) == 1]
    part = evaluated(tmp_path, model, [names[i] for i in some], logits[some], truth[some])
    shared = part["independence"]["sets"]["calibration"]
    assert (shared["patients"], shared["recorded_patients"]) == (31, 90)
    assert shared["is_sampled"]  # its slices are more than 500
    assert 0 < shared["slices"] < len(some)
    [warning] = [text for text in part["warnings"] if "calibration set" in text]
    assert "31 patients and" in warning


def test_independence_is_said_where_it_holds_and_where_nobody_knows(tmp_path, model):
    out, labels = validation(tmp_path, model)
    calibrate(str(model), out=out, labels=labels)
    names, logits, truth = study(20)
    names = [name.replace("_", "_9", 1) for name in names]
    other = evaluated(tmp_path, model, names, logits, truth)
    assert other["independence"]["sets"]["calibration"]["patients"] == 0
    first, second = other["independence"]["notes"]
    assert "the sets of training and validation was not checked" in first
    assert "no patient and no slice of this set are in the calibration set (90 patients" in second
    assert not any("not a test" in text for text in other["warnings"])


def test_labels_of_patients_fit_the_rule_alone(tmp_path, model):
    out, labels = validation(tmp_path, model)
    text = Path(labels).read_text().replace("label", "patient_label", 1)
    (tmp_path / "patients.csv").write_text(text)
    lines: list[str] = []
    fitted = calibrate(
        str(model),
        out=out,
        labels=str(tmp_path / "patients.csv"),
        report=lambda text, *, transient=False, names="": lines.append(text),
    )
    assert fitted["temperature"] == 1
    assert "loss_after" not in fitted
    assert fitted["patient_slope"] > 0
    assert any("only the rule for patients is fitted" in line for line in lines)


def test_a_stated_prevalence_moves_the_rule_by_bayes(tmp_path, model):
    out, labels = validation(tmp_path, model)
    plain = calibrate(str(model), out=out, labels=labels)
    rare = calibrate(str(model), out=out, labels=labels, prevalence=0.05)
    seen = plain["validation_prevalence"]
    assert seen == pytest.approx(2 / 3, abs=0.01)
    odds = (0.05 / 0.95) / (seen / (1 - seen))
    moved = rare["patient_intercept"] - plain["patient_intercept"]
    assert moved == pytest.approx(np.log(odds), abs=1e-3)
    assert rare["patient_slope"] == plain["patient_slope"]
    assert (rare["prevalence"], "prevalence" in plain) == (0.05, False)


def test_show_counts_the_members_of_recorded_sets(tmp_path, model):
    out, labels = validation(tmp_path, model)
    calibrate(str(model), out=out, labels=labels)
    text = call("models", "show", model).stdout
    assert "patients: 90, by 90 keyed hashes" in text
    assert max(map(len, text.splitlines())) < 400
