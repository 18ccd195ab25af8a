"""Cohorts of few patients cannot be computed from what is shown, by any sum and difference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cctmn.evaluate import cohorts
from cctmn.metrics.intervals import ClassifiedSample

CLASSES = ("control", "covid")
TABLES = (("sex",), ("site",), ("site", "sex"), ("kernel",))


def made(seed: int, patients: int = 90) -> tuple[ClassifiedSample, dict[str, np.ndarray]]:
    """Slices of patients with a sex and a site each; the kernel differs within a patient."""
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    truth_N = rng.choice(2, patients, p=[0.7, 0.3])[group_N]
    score_NC = rng.dirichlet([1, 1], len(group_N)) + 0.8 * np.eye(2)[truth_N]
    none = np.empty(0, np.int64)
    sample = ClassifiedSample(CLASSES, truth_N, score_NC, group_N, patients, none, none)
    of_patients = {
        "sex": rng.choice(["F", "M"], patients, p=[0.3, 0.7]),
        "site": rng.choice(["A", "B", "C", "D"], patients, p=[0.5, 0.3, 0.12, 0.08]),
    }
    columns = {name: values[group_N] for name, values in of_patients.items()}
    return sample, columns | {"kernel": rng.choice(["soft", "lung"], len(group_N), p=[0.1, 0.9])}


def tables(
    sample: ClassifiedSample, columns: dict[str, np.ndarray], known_N: np.ndarray | None = None
) -> list[dict[str, Any]]:
    return cohorts.tables(
        {names: [columns[name].tolist() for name in names] for names in TABLES},
        sample,
        known_N=np.ones(len(sample.truth_N), np.bool_) if known_N is None else known_N,
    )


def sums(sample: ClassifiedSample, columns: dict[str, np.ndarray]) -> dict[tuple, np.ndarray]:
    """Every sum that could be shown, as a vector over the slices: (table, values, metric)."""
    of_metric = {"accuracy": np.ones(len(sample.truth_N), np.bool_)}
    of_metric |= {f"sensitivity.{c}": sample.truth_N == k for k, c in enumerate(CLASSES)}
    every = {((), (), name): of_N for name, of_N in of_metric.items()}
    for names in TABLES:
        for values in itertools.product(*(np.unique(columns[name]) for name in names)):
            pairs = zip(names, values, strict=True)
            in_N = np.all([columns[name] == value for name, value in pairs], axis=0)
            for metric, of_N in of_metric.items():
                every[names, tuple(map(str, values)), metric] = in_N & of_N
    return every


def shown(result: list[dict[str, Any]]) -> list[tuple]:
    return [
        (tuple(table["by"]), tuple(cell["values"]), metric)
        for table in result
        for cell in table["cells"]
        for metric in cell.get("metrics", {})
    ]


@pytest.mark.parametrize("seed", range(12))
def test_no_small_cohort_is_a_sum_of_what_is_shown(seed: int) -> None:
    sample, columns = made(seed)
    every = sums(sample, columns)
    published = shown(tables(sample, columns))
    assert published
    total = [key for key in every if not key[0]]
    known = np.array([every[key] for key in [*total, *published]], float)
    rank = np.linalg.matrix_rank(known)
    small = {
        key: of_N
        for key, of_N in every.items()
        if of_N.any() and len(np.unique(sample.group_N[of_N])) < 10
    }
    assert small
    # Small cohorts of one table together, if they are few patients still.
    for (one, of_N), (other, others_N) in itertools.combinations(list(small.items()), 2):
        together_N = of_N | others_N
        is_few = len(np.unique(sample.group_N[together_N])) < 10
        if is_few and (one[0], one[2]) == (other[0], other[2]):
            small[one[0], (one[1], other[1]), one[2]] = together_N
    for key, of_N in small.items():
        assert key not in published
        assert np.linalg.matrix_rank(np.vstack([known, of_N])) == rank + 1, key
    # Nor is what remains of one cohort without the shown ones inside it a few patients.
    for one, other in itertools.permutations(known.astype(bool), 2):
        left_N = one & ~other
        if left_N.any() and not (other & ~one).any():
            assert len(np.unique(sample.group_N[left_N])) >= 10


def sums_of_few(published: np.ndarray, total: np.ndarray, group_N: np.ndarray) -> list:
    """Return all sets of slices of few patients whose sum follows from the published sums.

    Slices that are in the same published sums are taken together.
    """
    _, first, cell_N = np.unique(published, axis=1, return_index=True, return_inverse=True)
    members = [frozenset(group_N[cell_N == i].tolist()) for i in range(len(first))]
    few = [i for i, names in enumerate(members) if len(names) < 10]
    sums, always = published[:, first].astype(float), total[:, first].astype(float)
    found = []
    for size in range(1, len(few) + 1):
        for chosen in itertools.combinations(few, size):
            if len(frozenset().union(*(members[i] for i in chosen))) < 10:
                of_cells = np.isin(np.arange(len(first)), chosen).astype(float)
                if follows(of_cells, sums) and not follows(of_cells, always):
                    found.append(chosen)
    return found


def follows(one: np.ndarray, others: np.ndarray) -> bool:
    return bool(np.abs(one @ np.linalg.pinv(others) @ others - one).max() < 1e-7)


@pytest.mark.parametrize("seed", [22, 33, 53, 42, 49, 117])
@pytest.mark.parametrize(
    "by", [(("site", "sex"),), (("site",), ("sex",)), (("site",), ("kernel",))]
)
def test_no_sum_over_few_patients_follows_from_several_sums(
    seed: int, by: tuple[tuple[str, ...], ...]
) -> None:
    """All of a class less two cohorts, or a cohort without the two classes that it shows."""
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(50, 150))
    group_N = np.arange(patients)
    classes = ("control", "covid", "pneumonia")
    truth_N, none = rng.choice(3, patients, p=[0.3, 0.2, 0.5]), np.empty(0, np.int64)
    sample = ClassifiedSample(classes, truth_N, np.eye(3)[truth_N], group_N, patients, none, none)
    columns = {
        "sex": rng.choice(["F", "M"], patients, p=[0.25, 0.75]),
        "site": rng.choice(["A", "B", "C"], patients, p=[0.6, 0.28, 0.12]),
        "kernel": rng.choice(["soft", "lung"], patients, p=[0.15, 0.85]),
    }
    result = cohorts.tables(
        {names: [columns[name].tolist() for name in names] for names in by},
        sample,
        known_N=np.ones(patients, np.bool_),
    )
    of_metric = {"accuracy": np.ones(patients, np.bool_)}
    of_metric |= {f"sensitivity.{name}": truth_N == k for k, name in enumerate(classes)}
    published = [
        np.all([columns[c] == v for c, v in zip(names, values, strict=True)], axis=0)
        & of_metric[metric]
        for names, values, metric in shown(result)
    ]
    assert published
    total = np.array(list(of_metric.values()))
    assert not sums_of_few(np.vstack([total, *published]), total, group_N)


def test_what_is_shown_without_abstained_slices_is_a_sum_too() -> None:
    """All women but five are abstained, so the rest without the men would be those five."""
    group_N, women_N = np.arange(60), np.arange(60) < 25
    truth_N, none = group_N % 2, np.empty(0, np.int64)
    sample = ClassifiedSample(CLASSES, truth_N, np.eye(2)[truth_N], group_N, 60, none, none)
    sexes = np.where(women_N, "F", "M").tolist()
    known_N, kept_N = np.ones(60, np.bool_), ~women_N | (group_N < 5)
    [table] = cohorts.tables({("sex",): [sexes]}, sample, known_N=known_N)
    assert len(table["cells"]) == 2
    assert not any(cell["hidden"] for cell in table["cells"])
    [table] = cohorts.tables(
        {("sex",): [sexes]}, sample, known_N=known_N, without_abstained_N=kept_N
    )
    assert all(cell["hidden"] for cell in table["cells"])


def test_what_need_not_be_hidden_is_shown() -> None:
    """All four cells have 20 patients, so all are shown with all metrics."""
    group_N, truth_N = np.arange(80), np.arange(80) % 2
    none = np.empty(0, np.int64)
    sample = ClassifiedSample(CLASSES, truth_N, np.eye(2)[truth_N], group_N, 80, none, none)
    site = np.repeat(["A", "B"], 40)
    result = cohorts.tables({("site",): [site.tolist()]}, sample, known_N=np.ones(80, np.bool_))
    [cells] = [table["cells"] for table in result]
    assert [len(cell["metrics"]) for cell in cells] == [3, 3]
    assert [cell["patients"] for cell in cells] == [40, 40]


def test_small_cohorts_together_are_hidden_too() -> None:
    """Of 100, 100, 5 and 4 patients: the rest of all without both large ones is nine patients."""
    group_N = np.arange(209)
    truth_N, none = group_N % 2, np.empty(0, np.int64)
    sample = ClassifiedSample(CLASSES, truth_N, np.eye(2)[truth_N], group_N, 209, none, none)
    site = np.repeat(["A", "B", "C", "D"], [100, 100, 5, 4])
    [table] = cohorts.tables({("site",): [site.tolist()]}, sample, known_N=np.ones(209, np.bool_))
    assert [cell["values"] for cell in table["cells"]] == [["B"], ["3 more"]]


def test_slices_of_unknown_patients_are_hidden() -> None:
    sample, columns = made(3)
    assert shown(tables(sample, columns))
    assert not shown(tables(sample, columns, known_N=np.zeros(len(sample.truth_N), np.bool_)))


def test_numbers_of_a_csv_are_divided_too() -> None:
    texts = pa.chunked_array([[str(age) for age in range(20, 90)] + ["", None]])
    quarters = cohorts.values_of(texts, name="age")
    assert len(set(quarters)) == 5
    assert quarters[-2:] == ["unknown", "unknown"]
    few = pa.chunked_array([["1", "2", "1.5", None]])
    assert cohorts.values_of(few, name="stage") == ["1", "2", "1.5", "unknown"]


def test_the_outer_quarters_of_numbers_name_no_extreme() -> None:
    ages = pa.chunked_array([[31.25, *range(40, 70), 97.5]])
    quarters = cohorts.values_of(ages, name="age")
    assert quarters[0] == "1. below 46.8"
    assert quarters[-1] == "4. 62.2 or more"
    assert not any("31" in text or "97" in text for text in quarters)
