"""The published rows equal their sources, and each table has the right row of this run."""

from __future__ import annotations

from typing import Any

import pytest

from cctmn.metrics.document import PAPER_REMAINING
from cctmn.metrics.metric import Metric
from cctmn.report import papers, published
from cctmn.report.evaluation import Evaluation
from tests.report import made

# Slices of each class in COVIDx-CT's test split, in the order of published.ORDER.
TEST_SLICES = (9450, 7395, 4346)


def tables(**changes: Any) -> dict[int, papers.Table]:
    content = made.metrics(classes=changes.pop("classes", made.CLASSES), cases=0) | changes
    metrics = {
        name: Metric.from_json(name, entry=entry) for name, entry in content["metrics"].items()
    }
    evaluation = Evaluation("", content, tuple(content["classes"]), metrics)
    return {table.number: table for table in papers.tables(evaluation)}


def row(table: tuple[Any, ...], name: str) -> Any:
    (match,) = [one for one in table if one.name == name]
    return match


def test_best_row_has_the_values_of_the_papers_text() -> None:
    best = published.BEST
    assert (best.covid, best.pneumonia, best.control) == (90.80, 91.62, 92.10)
    assert (best.accuracy, best.f1) == (91.66, 91.50)
    assert row(published.TABLE_6, "Mask R-CNN, both lesions").mean == 35.2
    assert best.source == published.PAPER


@pytest.mark.parametrize(
    ("name", "covid", "accuracy"),
    [("Both lesion masks", 93.88, 95.64), ("Merged lesion masks", 92.68, 96.33)],
)
def test_matrices_give_the_metrics_of_the_repository(
    name: str, covid: float, accuracy: float
) -> None:
    result = row(published.TABLE_4, name)
    assert round(result.covid, 2) == covid
    assert round(result.accuracy, 2) == accuracy


def test_matrices_have_the_class_sizes_of_the_test_split() -> None:
    for matrix in (published.BOTH_MASKS, published.MERGED_MASKS):
        assert tuple(map(sum, matrix)) == TEST_SLICES
    assert sum(TEST_SLICES) == 21_191


@pytest.mark.parametrize(
    ("name", "follows"),
    [("ResNet-18 t1", 93.95), ("ResNet-34 t1", 92.24)],  # the latter is published as 92.89
)
def test_accuracy_follows_from_sensitivities(name: str, follows: float) -> None:
    result = row(published.TABLE_4, name)
    sensitivities = (result.control, result.pneumonia, result.covid)
    correct = sum(n * percent for n, percent in zip(TEST_SLICES, sensitivities, strict=True))
    assert correct / sum(TEST_SLICES) == pytest.approx(follows, abs=0.011)


def test_every_published_row_names_its_source() -> None:
    sources = {published.PAPER, published.REPOSITORY, published.MATRIX}
    for table in tables().values():
        assert all(one.ours or one.source in sources for one in table.rows)
        assert "image" in table.missing


def test_notes_warn_of_known_discrepancies() -> None:
    notes = " ".join(note for result in published.NOTES.values() for note in result)
    for output in ("91.72", "92.24", "have no interval", "per image", "606 of the 608"):
        assert output in notes


def test_each_table_has_at_most_one_row_of_this_run() -> None:
    result = tables()
    ours = {number: [one for one in table.rows if one.ours] for number, table in result.items()}
    assert {number: len(rows) for number, rows in ours.items()} == {
        1: 1, 4: 1, 5: 1, 6: 1, 7: 0, 9: 0,
    }  # fmt: skip
    cells = ours[4][0].cells
    ids = [cell.metric.id for cell in cells if cell.metric]
    assert ids == [key for _, key in papers.RATES]
    assert [cell.text for cell in ours[1][0].cells] == ["3,000", "21,191", "7.06", "11.45 M"]
    assert ours[6][0].cells[0].metric
    assert ours[6][0].cells[0].metric.id == "detection.mask.image_ap50"


def test_a_run_on_other_slices_has_no_row_beside_the_published_ones() -> None:
    result = tables(labels={"slices": 500, "by_class": {}})
    for number in (4, 5, 7):
        assert not any(one.ours for one in result[number].rows)
        assert "other slices (500)" in result[number].gap


def test_table_7_needs_the_known_set() -> None:
    labels = {"slices": 58_782, "known_set": PAPER_REMAINING}
    assert [one.ours for one in tables(labels=labels)[7].rows] == [True]
    assert not tables(labels=labels)[7].gap


def test_table_9_needs_two_classes_and_the_slices_of_ictcf() -> None:
    assert "has 3 classes" in tables()[9].gap
    classes = ("control", "covid")
    assert "other slices" in tables(classes=classes)[9].gap
    labels = {"slices": 12_976, "by_class": {"control": 9275, "covid": 3701}}
    two = tables(classes=classes, labels=labels)[9]
    assert two.columns[:2] == ("control sensitivity", "covid sensitivity")
    assert [one.ours for one in two.rows] == [True]
    assert not two.gap


def test_table_6_without_masks_says_so() -> None:
    table = tables(metrics={})[6]
    assert not any(one.ours for one in table.rows)
    assert "not evaluated" in table.gap
