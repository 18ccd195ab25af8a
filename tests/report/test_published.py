"""The published rows: that they are what the sources report, and which of ours stands where."""

from __future__ import annotations

from typing import Any

import pytest

from cctmn.report import papers, published
from cctmn.report.figures import figure
from cctmn.report.metrics import Metrics
from tests.report import made


def tables(**changes: Any) -> dict[int, papers.Table]:
    content = made.metrics(classes=changes.pop("classes", made.CLASSES), cases=0) | changes
    figures = {name: figure(name, entry=entry) for name, entry in content["figures"].items()}
    metrics = Metrics("", content, tuple(content["classes"]), figures)
    return {table.number: table for table in papers.tables(metrics)}


def row(table: tuple[Any, ...], name: str) -> Any:
    (found,) = [one for one in table if one.name == name]
    return found


def test_papers_text() -> None:
    best = published.BEST
    assert (best.covid, best.pneumonia, best.control) == (90.80, 91.62, 92.10)
    assert (best.accuracy, best.f1) == (91.66, 91.50)
    assert row(published.TABLE_6, "Mask R-CNN, both lesions").mean == 35.2
    assert best.source == published.PAPER


@pytest.mark.parametrize(
    ("name", "covid", "accuracy"),
    [("Both lesion masks", 93.88, 95.64), ("Merged lesion masks", 92.68, 96.33)],
)
def test_matrices_give_what_the_repository_says(name: str, covid: float, accuracy: float) -> None:
    found = row(published.TABLE_4, name)
    assert round(found.covid, 2) == covid
    assert round(found.accuracy, 2) == accuracy


def test_matrices_are_of_the_test_split() -> None:
    for matrix in (published.BOTH_MASKS, published.MERGED_MASKS):
        assert tuple(map(sum, matrix)) == published.TEST_SLICES
    assert sum(published.TEST_SLICES) == 21_191


@pytest.mark.parametrize(
    ("name", "follows"),
    [("ResNet-18 t1", 93.95), ("ResNet-34 t1", 92.24)],  # the latter is published as 92.89
)
def test_accuracy_that_follows_from_sensitivities(name: str, follows: float) -> None:
    found = row(published.TABLE_4, name)
    shares = (found.control, found.pneumonia, found.covid)
    right = sum(n * share for n, share in zip(published.TEST_SLICES, shares, strict=True))
    assert right / sum(published.TEST_SLICES) == pytest.approx(follows, abs=0.011)


def test_every_published_row_names_its_source() -> None:
    sources = {published.PAPER, published.REPOSITORY, published.MATRIX}
    for table in tables().values():
        assert all(one.ours or one.source in sources for one in table.rows)
        assert "image" in table.missing


def test_notes_that_must_stand() -> None:
    notes = " ".join(note for found in published.NOTES.values() for note in found)
    for said in ("91.72", "92.24", "has no interval", "per image", "606 of the 608"):
        assert said in notes


def test_our_rows() -> None:
    found = tables()
    ours = {number: [one for one in table.rows if one.ours] for number, table in found.items()}
    assert {number: len(rows) for number, rows in ours.items()} == {
        1: 1, 4: 1, 5: 1, 6: 1, 7: 0, 9: 0,
    }  # fmt: skip
    cells = ours[4][0].cells
    ids = [cell.figure.id for cell in cells if cell.figure]
    assert ids == [key for _, key in papers.RATES]
    assert [cell.text for cell in ours[1][0].cells] == ["3,000", "21,191", "7.06", "11.45 M"]
    assert ours[6][0].cells[0].figure
    assert ours[6][0].cells[0].figure.id == "detection.mask.image_ap50"


def test_the_remaining_set_and_two_classes() -> None:
    labels = {"slices": 58_782}
    assert [one.ours for one in tables(labels=labels)[7].rows] == [True]
    two = tables(classes=("control", "covid"))[9]
    assert two.columns[:2] == ("control sensitivity", "covid sensitivity")
    assert [one.ours for one in two.rows] == [True]
    assert not two.gap


def test_without_masks_table_6_says_so() -> None:
    table = tables(figures={})[6]
    assert not any(one.ours for one in table.rows)
    assert "not evaluated" in table.gap
