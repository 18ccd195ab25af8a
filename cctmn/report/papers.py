"""The paper's tables, with this run's row beside the published ones.

This file decides which table gets a row of this run: Tables 4 and 5 always have one for slices,
Table 7 only for the very set of 58,782 slices, Table 9 only for two classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cctmn.metrics.document import PAPER_REMAINING, PAPER_TEST
from cctmn.metrics.metric import Metric, whole
from cctmn.report import published
from cctmn.report.evaluation import Evaluation
from cctmn.report.numbers import DASH, count_text
from cctmn.report.published import CONTROL, COVID, PNEUMONIA, Classified

RATES: Final = (
    ("COVID-19 sensitivity", f"slice.sensitivity.{COVID}"),
    ("pneumonia sensitivity", f"slice.sensitivity.{PNEUMONIA}"),
    ("control sensitivity", f"slice.sensitivity.{CONTROL}"),
    ("accuracy", "slice.accuracy"),
    ("F1, weighted", "slice.f1_weighted"),
)
BEST: Final = ("COVID-19 sensitivity", "accuracy", "F1, weighted")  # columns of Table 5

# iCTCF's test slices: COVID-19 and control. Its list is not public in full, so the counts tell it.
ICTCF: Final = "ictcf-test"
ICTCF_TEST: Final = [3701, 9275]


@dataclass(frozen=True)
class TableCell:
    """A text, or a metric of this run."""

    text: str = ""
    metric: Metric | None = None


@dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    name: str
    cells: tuple[TableCell, ...]
    source: str = "this run"
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the paper; `gap` says why there is no row of this run."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    gap: str = ""

    @property
    def missing(self) -> str:
        """A sentence on the published values that are not available."""
        return published.MISSING[self.number]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the numbers."""
        return published.NOTES[self.number]


def tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return Tables 1, 4, 5, 6, 7 and 9."""
    slices = whole(evaluation.section("labels").get("slices"))
    return (
        _sizes(evaluation, slices),
        _variants(evaluation),
        _methods(evaluation, slices),
        _segmentation(evaluation),
        _remaining(evaluation),
        _two_classes(evaluation),
    )


def _sizes(evaluation: Evaluation, slices: int | None) -> Table:
    training = whole(evaluation.section("training").get("slices"))
    parameters = whole(evaluation.section("model_size").get("parameters"))
    ratio = f"{slices / training:.3g}" if slices and training else DASH
    size = f"{parameters / 1e6:.2f} M" if parameters else DASH
    ours = TableRow(
        _name(evaluation), _cells(count_text(training), count_text(slices), ratio, size), ours=True
    )
    theirs = [
        TableRow(row.name, _cells(row.training, row.test, row.ratio, row.parameters), row.source)
        for row in published.TABLE_1
    ]
    columns = ("training slices", "test slices", "test / training", "parameters")
    return Table(1, "Sizes of data and models", columns, (ours, *theirs))


def _variants(evaluation: Evaluation) -> Table:
    is_same = _is_set(evaluation, PAPER_TEST)
    ours = (_ours(evaluation, [key for _, key in RATES]),) if is_same else ()
    rows = (*ours, *map(_published, published.TABLE_4))
    columns = tuple(name for name, _ in RATES)
    return Table(4, "COVID-CT-Mask-Net by variant, %", columns, rows, _gap(evaluation, PAPER_TEST))


def _methods(evaluation: Evaluation, slices: int | None) -> Table:
    keys = dict(RATES)
    ours = _ours(evaluation, [keys[name] for name in BEST])
    ours = TableRow(ours.name, (TableCell(count_text(slices)), *ours.cells), ours=True)
    theirs = [
        TableRow(
            row.name,
            _cells(row.test, *map(_percent_text, (row.covid, row.accuracy, row.f1))),
            row.source,
        )
        for row in published.TABLE_5
    ]
    rows = (ours, *theirs) if _is_set(evaluation, PAPER_TEST) else tuple(theirs)
    gap = _gap(evaluation, PAPER_TEST)
    return Table(5, "Other methods, %", ("test slices", *BEST), rows, gap)


def _segmentation(evaluation: Evaluation) -> Table:
    keys = [f"detection.mask.image_{part}" for part in ("ap50", "ap75", "map")]
    rows = [
        TableRow(row.name, _cells(*map(_percent_text, (row.ap50, row.ap75, row.mean))), row.source)
        for row in published.TABLE_6
    ]
    measured = any(key in evaluation.metrics for key in keys)
    if measured:
        rows.insert(0, _ours(evaluation, keys))
    gap = "" if measured else "Lesion masks were not evaluated in this run."
    columns = ("AP at IoU 0.50", "AP at IoU 0.75", "mAP, 0.50 to 0.95")
    return Table(6, "Segmentation of lesions, AP per image, %", columns, tuple(rows), gap)


def _remaining(evaluation: Evaluation) -> Table:
    is_same = _is_set(evaluation, PAPER_REMAINING)
    rows = (_ours(evaluation, [key for _, key in RATES]),) if is_same else ()
    title = "The remaining 58,782 slices of COVIDx-CT’s training split, %"
    columns = tuple(name for name, _ in RATES)
    return Table(7, title, columns, rows, _gap(evaluation, PAPER_REMAINING))


def _two_classes(evaluation: Evaluation) -> Table:
    two = len(evaluation.classes) == 2
    counts = evaluation.section("labels").get("by_class") or {}
    is_same = two and _classified(evaluation) and sorted(counts.values()) == ICTCF_TEST
    keys = [f"slice.sensitivity.{name}" for name in evaluation.classes]
    ours = _ours(evaluation, [*keys, "slice.accuracy", "slice.f1_weighted"])
    columns = (*(f"{name} sensitivity" for name in evaluation.classes), "accuracy", "F1, weighted")
    gap = "" if is_same else _gap(evaluation, ICTCF)
    if _classified(evaluation) and not two:
        gap = f"This model has {len(evaluation.classes)} classes, so it has no row here."
    return Table(9, "iCTCF, two classes, %", columns, (ours,) if is_same else (), gap)


def _classified(evaluation: Evaluation) -> bool:
    return "slice.accuracy" in evaluation.metrics


def _is_set(evaluation: Evaluation, name: str) -> bool:
    """Return whether classes were evaluated on this published set of slices, and on all of it."""
    return _classified(evaluation) and evaluation.section("labels").get("known_set") == name


def _gap(evaluation: Evaluation, name: str) -> str:
    """Return why this run has no row among those of a published set, "" if it has one."""
    if not _classified(evaluation):
        return "Classes were not evaluated in this run."
    if _is_set(evaluation, name):
        return ""
    slices = whole(evaluation.section("labels").get("slices")) or 0
    return f"This run evaluated other slices ({count_text(slices)}), so it has no row here."


def _ours(evaluation: Evaluation, keys: list[str]) -> TableRow:
    cells = tuple(TableCell(DASH, evaluation.metrics.get(key)) for key in keys)
    return TableRow(_name(evaluation), cells, ours=True)


def _published(row: Classified) -> TableRow:
    values = map(_percent_text, (row.covid, row.pneumonia, row.control, row.accuracy, row.f1))
    return TableRow(row.name, _cells(*values), row.source)


def _cells(*texts: str) -> tuple[TableCell, ...]:
    return tuple(TableCell(text or DASH) for text in texts)


def _percent_text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _name(evaluation: Evaluation) -> str:
    return str(evaluation.section("model").get("name") or "this model")
