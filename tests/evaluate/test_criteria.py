"""The criteria file of an acceptance test: what is read, and one line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cctmn.errors import ConfigError, ObjectError
from cctmn.evaluate.criteria import read_criteria
from tests.conftest import REPO

TOP = "prevalence = 0.1\n"
POINT = "[operating_point]\nthreshold = 0.5\n"
CRITERION = '[[criteria]]\nmetric = "sensitivity"\nat_least = 0.9\n'
CHOSEN = '[operating_point]\nsensitivity = 0.9\nout = "v"\nlabels = "v.csv"\n'


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "criteria.toml"
    path.write_text(text)
    return str(path)


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (REPO / "docs/accept.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    criteria = read_criteria(written(tmp_path, example))
    assert criteria.point.sensitivity == 0.95
    assert [one.metric for one in criteria.criteria][-2:] == ["lr_negative", "sensitivity"]
    assert criteria.criteria[-1].columns == ("sex",)


def test_defaults_are_two_sided_95_percent_and_ten_patients(tmp_path: Path) -> None:
    rules = read_criteria(written(tmp_path, TOP + POINT + CRITERION)).rules
    assert (rules.two_sided_level, rules.fewest_patients) == (0.95, 10)


def test_a_one_sided_bound_is_the_end_of_a_narrower_interval(tmp_path: Path) -> None:
    text = 'sided = "one"\n' + TOP + POINT + CRITERION
    assert read_criteria(written(tmp_path, text)).rules.two_sided_level == pytest.approx(0.9)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    criteria = read_criteria(written(tmp_path, TOP + CHOSEN + CRITERION))
    assert criteria.below(criteria.point.labels) == (tmp_path / "v.csv").as_uri()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prevalence = ", "not a TOML file"),
        (POINT + CRITERION, "prevalence: missing; add it (number, 0.0001 to 0.9999)"),
        ("prevalence = 10\n" + POINT + CRITERION, "prevalence: 10.0 is above 0.9999; allowed"),
        ("prevalence = '0.1'\n" + POINT + CRITERION, "prevalence: '0.1' is not of type float"),
        ("prevalance = 0.1\n" + POINT + CRITERION, "did you mean prevalence?"),
        (TOP + CRITERION, "operating_point: missing; write a table"),
        (TOP + POINT, "criteria: missing; write a table"),
        ("criteria = []\n" + TOP + POINT, "criteria: missing; write a table"),
        ("criteria = [1]\n" + TOP + POINT, "criteria[1]: not a table; write"),
        ("fewest_patients = 9\n" + TOP + POINT + CRITERION, "fewest_patients: 9 is below 10;"),
        ("level = 95\n" + TOP + POINT + CRITERION, "level: 95.0 is above 0.999;"),
        ("sided = 'both'\n" + TOP + POINT + CRITERION, "sided: 'both' is unknown; allowed: two"),
        (TOP + "[operating_point]\n" + CRITERION, "either threshold or sensitivity; write one"),
        (TOP + POINT + "sensitivity = 0.9\n" + CRITERION, "either threshold or sensitivity;"),
        (TOP + POINT + "labels = 'v.csv'\n" + CRITERION, "operating_point.labels: is for a"),
        (
            TOP + "[operating_point]\nsensitivity = 0.9\nout = 'v'\n" + CRITERION,
            "operating_point.labels: missing;",
        ),
        (TOP + POINT + "unit = 'study'\n" + CRITERION, "operating_point.unit: 'study' is unknown"),
        (TOP + POINT + CRITERION + "at_most = 1\n", "criteria[1].at_most: not for sensitivity;"),
        (TOP + POINT + CRITERION.replace("0.9", "90"), "criteria[1].at_least: 90 is above 1;"),
        (TOP + POINT + CRITERION.replace("0.9", "-1"), "criteria[1].at_least: -1.0 is below 0;"),
        (TOP + POINT + CRITERION.replace("0.9", "nan"), "criteria[1].at_least: nan is below 0;"),
        (TOP + POINT + CRITERION.replace("sensit", "sensib"), "criteria[1].metric: 'sensibivity'"),
        (TOP + POINT + CRITERION * 2 + "by = 'a,,b'\n", "criteria[2].by: an empty name;"),
        (TOP + POINT + CRITERION + "column = 'sex'\n", "criteria[1].column: unknown key"),
        (TOP + POINT + "[[criteria]]\nat_least = 0.9\n", "criteria[1].metric: missing; add it"),
        (TOP + POINT + "[[criteria]]\nmetric = 'ppv'\n", "criteria[1].at_least: missing; add the"),
        (
            TOP + POINT + "[[criteria]]\nmetric = 'lr_negative'\nat_least = 0.2\n",
            "criteria[1].at_least: not for lr_negative; write at_most",
        ),
        (
            TOP + POINT + "[[criteria]]\nmetric = 'lr_positive'\nat_least = inf\n",
            "criteria[1].at_least: not a finite number; write one",
        ),
    ],
)
def test_each_mistake_is_one_line_with_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    place = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_criteria(place)
    line = str(caught.value)
    assert line.startswith(f"{place}: ")
    assert message in line
    assert "\n" not in line


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(ObjectError, match="not found; give a criteria file"):
        read_criteria("nowhere.toml")
