"""Verdicts on criteria by subgroup: no number of few patients follows from what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cctmn.evaluate import verdicts
from cctmn.evaluate.criteria import Criteria, Criterion, OperatingPoint, Rules
from cctmn.metrics.binary import BinarySample, Conditions

AT = Conditions(0.5, 0.1)


def judged(
    columns: dict[str, Sequence[str]], *criteria: tuple[str, str], sick: Sequence[bool]
) -> dict[tuple[str, tuple[str, ...]], dict[str, Any]]:
    """Judge (metric, by) pairs, one observation per patient; return rows by metric and values."""
    n = len(sick)
    sample = BinarySample(
        np.where(sick, 0.9, 0.1), np.array(sick), np.arange(n), np.ones(n, np.int64)
    )

    def subgroups(names: Sequence[str], **_: str) -> list[tuple[str, ...]]:
        return list(zip(*(columns[name] for name in names), strict=True))

    observed: Any = SimpleNamespace(
        sample=sample, known_N=np.ones(n, np.bool_), subgroups=subgroups
    )
    asked = tuple(Criterion(metric=metric, at_least=0.1, by=by) for metric, by in criteria)
    file = Criteria("c.toml", "", Rules(), OperatingPoint(), asked)
    return {
        (row["metric"], tuple(row["values"])): row for row in verdicts.judge(file, observed, at=AT)
    }


def sites(**sizes: int) -> list[str]:
    return [name for name, size in sizes.items() for _ in range(size)]


def shown(rows: dict[Any, dict[str, Any]]) -> set[Any]:
    return {key for key, row in rows.items() if row["patients"] is not None}


def test_subgroups_of_enough_patients_are_all_shown() -> None:
    rows = judged({"site": sites(a=60, b=60)}, ("accuracy", "site"), sick=[True, False] * 60)
    assert shown(rows) == {("accuracy", ("a",)), ("accuracy", ("b",))}


@pytest.mark.parametrize("small", [{"c": 4}, {"c": 4, "d": 5}])
def test_a_further_subgroup_is_withheld_where_the_small_ones_follow(small: dict[str, int]) -> None:
    site = sites(a=60, b=31, **small)
    rows = judged({"site": site}, ("accuracy", "site"), sick=[i % 2 == 0 for i in range(len(site))])
    assert shown(rows) == {("accuracy", ("a",))}
    assert rows["accuracy", ("b",)]["verdict"] == "pass"


def test_small_subgroups_of_ten_patients_together_need_no_further_one() -> None:
    site = sites(a=60, b=30, c=5, d=5)
    rows = judged({"site": site}, ("accuracy", "site"), sick=[i % 2 == 0 for i in range(100)])
    assert shown(rows) == {("accuracy", ("a",)), ("accuracy", ("b",))}


def test_the_sensitivity_of_few_does_not_follow_from_accuracy_and_specificity() -> None:
    """Site b has three sick patients, and enough patients."""
    sick = [True] * 30 + [False] * 30 + [True] * 3 + [False] * 40
    criteria = (("accuracy", "site"), ("specificity", "site"))
    rows = judged({"site": sites(a=60, b=43)}, *criteria, sick=sick)
    of_b = {metric for metric, values in shown(rows) if values == ("b",)}
    assert len(of_b) <= 1


def test_a_small_cell_does_not_follow_from_the_table_of_its_column() -> None:
    """Women of site b are four; the women less those of site a are they."""
    sex = ["F"] * 34 + ["M"] * 60
    site = sites(a=30, b=4) + sites(a=30, b=30)
    criteria = (("accuracy", "sex"), ("accuracy", "sex,site"))
    sick = [i % 2 == 0 for i in range(94)]
    rows = judged({"sex": sex, "site": site}, *criteria, sick=sick)
    assert not {("accuracy", ("F",)), ("accuracy", ("F", "a"))} <= shown(rows)
