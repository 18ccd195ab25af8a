"""The class that a label means: names, synonyms, the user's map, and numbers, which mean none."""

from __future__ import annotations

import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.class_names import class_indices, find_class, parse_label_map
from cctmn.errors import ConfigError, DataError


def line(row: int) -> str:
    return f"line {row + 2}"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("COVID-19", "covid"),
        ("COVID\u201119", "covid"),
        ("COVID19", "covid"),
        ("covid_19 pneumonia", "covid"),
        ("SARS-CoV-2", "covid"),
        ("NCP", "covid"),
        ("pCT", "covid"),
        ("Healthy", "control"),
        ("Normal", "control"),
        ("nCT", "control"),
        ("CAP", "pneumonia"),
        ("CP", "pneumonia"),
        ("common pneumonia", "pneumonia"),
    ],
)
def test_synonyms_find_their_class_in_any_order_of_the_classes(label: str, name: str) -> None:
    for classes in (COVIDX_CLASSES, COVIDX_CLASSES[::-1]):
        index = find_class(label, classes)
        assert index is not None
        assert classes[index] == name


def test_synonyms_find_classes_that_a_model_names_otherwise() -> None:
    classes = ("COVID-19", "Normal", "CP")
    assert [find_class(label, classes) for label in ("ncp", "control", "pneumonia")] == [0, 1, 2]


@pytest.mark.parametrize("label", ["negative", "positive", "viral pneumonia", "non-covid", "other"])
def test_uncertain_names_are_no_synonyms(label: str) -> None:
    assert find_class(label, COVIDX_CLASSES) is None


def test_the_name_of_a_class_comes_before_a_synonym() -> None:
    assert find_class("Normal", ("control", "normal")) == 1
    assert find_class("healthy", ("control", "normal")) is None
    assert find_class("1", ("0", "1")) == 1


def test_a_number_is_refused_with_the_option_that_explains_it() -> None:
    for number in ("0", "1", "2.0", "-1", "07"):
        with pytest.raises(DataError, match=r"line 3: a label is a number.*--label-map 0=CLASS"):
            class_indices(["covid", number], classes=("covid", "control"), where=line)


def test_a_map_gives_numbers_their_class_however_pandas_writes_them() -> None:
    label_map = parse_label_map(["0=control,1=CP", "2=COVID-19"])
    labels = ["0", "1.0", "2.", "2", "0.0"]
    indices, notes = class_indices(
        labels, classes=("covid", "pneumonia", "control"), label_map=label_map, where=line
    )
    assert indices == [2, 1, 0, 0, 2]
    assert notes == []


def test_a_map_comes_before_names() -> None:
    label_map = parse_label_map(["covid = control", "=x=covid"])
    assert find_class("COVID", COVIDX_CLASSES, label_map=label_map) == 0
    assert find_class("=x", COVIDX_CLASSES, label_map=label_map) == 2


@pytest.mark.parametrize("texts", [["0"], ["0="], ["=covid"], [""], ["0=control,"]])
def test_a_map_without_label_and_class_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="not LABEL=CLASS; write 0=control"):
        parse_label_map(texts)


def test_a_map_with_two_classes_of_a_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="a label has two classes; keep one"):
        parse_label_map(["0=control", "0.0=covid"])


def test_a_map_to_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="0=flu: not a class of the model; choose from control"):
        class_indices(["0"], classes=COVIDX_CLASSES, label_map={"0": "flu"}, where=line)


def test_synonyms_are_noted_and_other_spellings_of_a_name_are_not() -> None:
    labels = ["COVID", "COVID-19", " control ", "CAP", "CAP"]
    _, notes = class_indices(labels, classes=COVIDX_CLASSES, where=line)
    assert notes == ["Labels read as synonyms of classes: COVID-19 as covid, CAP as pneumonia."]


def test_an_unknown_label_is_apart_from_the_text_that_a_log_gets() -> None:
    with pytest.raises(DataError) as caught:
        class_indices(["Jane Doe"], classes=COVIDX_CLASSES, where=line)
    assert "Jane" not in caught.value.text
    assert caught.value.names == "Jane Doe"


def test_an_empty_label_is_refused_with_its_line() -> None:
    with pytest.raises(DataError, match="line 3: no label; fill it in"):
        class_indices(["covid", ""], classes=COVIDX_CLASSES, where=line)
