"""The published rows equal their sources, and each table has the right row of this run."""

from __future__ import annotations

from typing import Any

import pytest

from cctmn.metrics.document import PAPER_REMAINING
from cctmn.metrics.metric import Metric
from cctmn.report import papers, published, runs
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
    return {table.number: table for table in papers.tables((runs.single(evaluation),))}


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


def test_the_matrix_of_the_history_gives_the_papers_row_but_its_f1() -> None:
    older = row(published.TABLE_4, "The same as a matrix, 21,182 slices")
    assert sum(map(sum, published.OLDER)) == 21_182
    best = published.BEST
    rates = [round(getattr(older, k), 1) for k in ("covid", "pneumonia", "control", "accuracy")]
    assert rates == [90.8, 91.6, 92.1, 91.7]
    assert round(older.accuracy, 2) == best.accuracy
    assert round(older.f1, 2) == 91.72 != best.f1


def test_the_later_models_matrix_gives_its_published_accuracy() -> None:
    assert tuple(map(sum, published.SINGLE_SHOT)) == TEST_SLICES
    single_shot = row(published.LATER_4, "Single Shot Model")
    assert round(single_shot.accuracy, 2) == 96.75
    assert single_shot.f1 == pytest.approx(96.76, abs=0.02)


def test_later_models_stand_under_a_heading_of_their_own() -> None:
    for number in (4, 6, 9):
        headings = [heading for heading, _ in tables()[number].contexts]
        assert headings[-1] == published.LATER_HEADING
        assert "later models of other architectures by the same author" in headings[-1]
        names = {one.name for one in tables()[number].rows}
        assert "LSTM with attention" not in names


def test_the_order_of_an_unnamed_source_follows_from_its_f1() -> None:
    """F1 weighted by class size is close to the accuracy, which sensitivities give."""
    lstm = row(published.LATER_9, "LSTM with attention")
    correct = 9275 * lstm.control + 3701 * lstm.covid
    assert correct / 12_976 == pytest.approx(lstm.f1, abs=0.01)
    swapped = 9275 * lstm.covid + 3701 * lstm.control
    assert swapped / 12_976 != pytest.approx(lstm.f1, abs=0.1)


def test_an_ap_stands_beside_its_limits() -> None:
    table = tables()[6]
    assert table.columns[-2:] == ("score above", "NMS")
    limits = {one.name: [cell.text for cell in one.cells[-2:]] for one in table.rows}
    assert limits["resnet34-t1, S + batch norm"] == ["0.05", "0.5"]
    assert limits["Merged lesions, ResNet-50"] == ["0.05", "0.5"]
    assert limits["Mask R-CNN, both lesions"] == ["–", "–"]
    older = dict(table.contexts)[published.OLDER_HEADING]
    assert [cell.text for cell in older[2].cells] == ["67.16", "42.97", "45.01", "–", "–"]


def test_table_8_has_the_counts_of_ictcf() -> None:
    rows = {one.name: [cell.text for cell in one.cells] for one in tables()[8].rows}
    assert rows == {"training": ["300", "300", "600"], "test": ["9,275", "3,701", "12,976"]}
    labels = {"slices": 12_976, "by_class": {"control": 9275, "covid": 3701}}
    own = tables(classes=("control", "covid"), labels=labels)[8].rows[0]
    assert (own.ours, own.name) == (True, "test, resnet34-t1, S + batch norm")
    assert [cell.text for cell in own.cells] == ["9,275", "3,701", "12,976"]


def test_training_slices_come_from_the_card_without_a_training_set() -> None:
    model = {"name": "net", "training_slices": 600}
    assert tables(training=None, model=model)[1].rows[0].cells[0].text == "600"
    assert tables(model=model)[1].rows[0].cells[0].text == "3,000"


def test_tables_2_and_3_come_from_the_card() -> None:
    result = tables()
    detector, classifier = (
        {one.name: [cell.text for cell in one.cells] for one in result[number].rows}
        for number in (2, 3)
    )
    assert detector["learning rate"] == ["1e-05", "1e-05"]
    assert detector["epochs"] == ["100", "100"]
    assert detector["training slices"] == ["650", "650"]
    assert detector["anchor sizes, px"] == ["2, 4, 8, 16, 32 (fixed)", "2, 4, 8, 16, 32"]
    assert detector["RoI NMS"] == ["0.5", "0.5"]
    assert classifier["epochs"] == ["50", "50"]
    assert classifier["trained weights"] == ["s+bn", "s, s+bn, all"]
    assert classifier["ranked boxes (N)"] == ["128", "256; lightweight 128"]
    assert not result[2].gap
    assert not result[3].gap


def test_what_a_card_lacks_is_named() -> None:
    model = {"name": "imported", "lesions": {"min_score": 0.05, "nms_iou": 0.5, "max": 128}}
    result = tables(model=model)
    assert result[2].gap.startswith("The card of imported lacks: backbone, lesion classes, ")
    assert "learning rate" in result[2].gap
    assert "RoI NMS" not in result[2].gap
    assert "loss, training slices" in result[3].gap
    lacking = {one.name: one.cells[0].text for one in result[3].rows}
    assert lacking["learning rate"] == "–"


def test_published_hyperparameters_equal_the_constants() -> None:
    """What is fixed in cctmn is what the author published."""
    for number in (2, 3):
        for one in tables()[number].rows:
            own, theirs = (cell.text for cell in one.cells)
            if own.endswith(" (fixed)"):
                assert own.removesuffix(" (fixed)") == theirs, one.name


def test_every_published_row_names_its_source() -> None:
    sources = {
        *(published.PAPER, published.REPOSITORY, published.MATRIX, published.CODE),
        *(published.HISTORY, published.HISTORY_MATRIX, published.LATER, published.LATER_MATRIX),
    }
    for number, table in tables().items():
        rows = [*table.rows, *(row for _, group in table.contexts for row in group)]
        known = {*sources, "–"} if number in (2, 3) else sources
        assert all(one.ours or one.source in known for one in rows)
        assert "image" in table.missing


def test_notes_warn_of_known_discrepancies() -> None:
    notes = " ".join(note for result in published.NOTES.values() for note in result)
    for output in ("91.72", "92.24", "have no interval", "per image", "606 of the 608"):
        assert output in notes


def test_each_table_has_at_most_one_row_of_this_run() -> None:
    result = tables()
    ours = {number: [one for one in table.rows if one.ours] for number, table in result.items()}
    assert {number: len(rows) for number, rows in ours.items()} == {
        1: 1, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 0, 8: 0, 9: 0,
    }  # fmt: skip
    cells = ours[4][0].cells
    ids = [cell.metric.id for cell in cells if cell.metric]
    assert ids == [key for _, key in papers.RATES]
    sizes = [cell.text for cell in ours[1][0].cells]
    assert sizes == ["3,000", "21,191", "7.06", "11.45 M", "0.59 M", "0.60 M"]
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
    assert "evaluated 3 classes" in tables()[9].gap
    classes = ("control", "covid")
    assert "other slices" in tables(classes=classes)[9].gap
    labels = {"slices": 12_976, "by_class": {"control": 9275, "covid": 3701}}
    two = tables(classes=classes, labels=labels)[9]
    assert two.columns[:2] == ("control sensitivity", "COVID-19 sensitivity")
    assert [one.ours for one in two.rows] == [True]
    assert not two.gap


def test_table_6_without_masks_says_so() -> None:
    table = tables(metrics={})[6]
    assert not any(one.ours for one in table.rows)
    assert "did not evaluate lesion masks" in table.gap
