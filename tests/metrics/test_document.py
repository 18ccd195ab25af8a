"""metrics.json: its schema, its ids, and files of older formats."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest

from cctmn.evaluate import run
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics import document
from cctmn.metrics.intervals import Resampling
from cctmn.metrics.metric import Metric, catalogue
from tests.evaluate.outputs import CLASSES, study, write_labels, write_output
from tests.makers import png
from tests.report import made

VALIDATOR = jsonschema.Draft202012Validator(document.SCHEMA)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The metrics.json of an evaluation of classes with every option."""
    folder = tmp_path_factory.mktemp("document")
    names, logits, truth = study()
    (folder / "images").mkdir()
    for i, name in enumerate(names):
        (folder / "images" / name).write_bytes(png(i))
    write_output(folder / "out", names, logits, images=folder / "images")
    write_output(folder / "other", names, logits + 0.1, model_id="other")
    sex = ["F" if int(n.split("_")[1]) % 2 else "M" for n in names]
    labels = str(write_labels(folder / "labels.csv", names, truth, sex=sex))
    run.evaluate(
        EvaluationOptions(
            out=str(folder / "out"),
            labels=labels,
            to=str(folder / "eval"),
            against=str(folder / "other"),
            training=labels,
            by=(("sex",),),
            resampling=Resampling(resamples=100),
        )
    )
    return json.loads((folder / "eval/metrics.json").read_text())


def errors(content: dict) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(content)]


def test_an_evaluation_follows_the_schema(written):
    assert errors(written) == []
    assert document.unknown(written) == []
    assert {"comparison", "cohorts", "audit", "cases"} <= written.keys()


def test_every_id_of_classes_is_written(written):
    expected = {
        name
        for name in catalogue(CLASSES)
        if not name.startswith(("detection.", "worst_case.detection.", "without_abstained."))
    }
    assert written["metrics"].keys() == expected
    assert all(
        metric["description"] == catalogue(CLASSES)[name]
        for name, metric in written["metrics"].items()
    )


def test_the_fixture_of_the_report_follows_the_schema():
    content = made.metrics(cases=1)
    assert errors(content) == []
    assert document.unknown(content) == []


def test_unknown_sections_and_ids_are_refused(written):
    content = copy.deepcopy(written)
    entry = content["metrics"]["slice.accuracy"]
    content["figures"] = {}
    content["metrics"]["slice.acuracy"] = entry
    content["metrics"]["slice.ppv.flu"] = entry
    content["cohorts"][0]["cells"][0]["metrics"]["ppv.covid"] = entry
    assert document.unknown(content) == [
        "cohorts.ppv.covid",
        "figures",
        "metrics.slice.acuracy",
        "metrics.slice.ppv.flu",
    ]
    assert any("'figures'" in error for error in errors(content))


def test_every_section_has_a_description():
    assert all(section["description"] for section in document.SECTIONS.values())


def test_a_metric_is_read_as_it_was_written(written):
    for name, entry in written["metrics"].items():
        metric = Metric.from_json(name, entry=entry)
        assert metric.id == name
        assert metric.as_json() == entry


def test_format_1_is_translated():
    content = made.metrics(cases=1)
    older = made.format_1(content)
    translated = document.parse(json.dumps(older).encode())
    assert translated == content


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "not valid JSON"),
        (b"[]", "format None, this version of cctmn reads 1 and 2"),
        (b'{"format": 7}', "format 7, this version"),
        (b'{"format": true}', "format True, this version"),
    ],
)
def test_other_data_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        document.parse(data)
