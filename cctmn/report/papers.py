"""The paper's tables with this run's row beside the published ones.

In: metrics. Out: tables of cells, each a text or a figure with its interval. Which row of ours goes
where is decided here: a slice-level result stands in Tables 4 and 5 always, in 7 only on the very
set of 58,782 slices, in 9 only with two classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cctmn.report import published
from cctmn.report.figures import DASH, Figure, count, whole
from cctmn.report.metrics import Metrics
from cctmn.report.published import CONTROL, COVID, PNEUMONIA, Classified

RATES: Final = (
    ("COVID-19 sensitivity", f"slice.sensitivity.{COVID}"),
    ("pneumonia sensitivity", f"slice.sensitivity.{PNEUMONIA}"),
    ("control sensitivity", f"slice.sensitivity.{CONTROL}"),
    ("accuracy", "slice.accuracy"),
    ("F1, weighted", "slice.f1_weighted"),
)
BEST: Final = ("COVID-19 sensitivity", "accuracy", "F1, weighted")  # columns of Table 5


@dataclass(frozen=True)
class Cell:
    """A text, or a figure of this run."""

    text: str = ""
    figure: Figure | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    cells: tuple[Cell, ...]
    source: str = "this run"
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the paper; `gap` says why a row of ours is not there."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    gap: str = ""

    @property
    def missing(self) -> str:
        """Where the published values are not at hand."""
        return published.MISSING[self.number]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know beside the numbers."""
        return published.NOTES[self.number]


def tables(metrics: Metrics) -> tuple[Table, ...]:
    """Tables 1, 4, 5, 6, 7 and 9."""
    slices = whole(metrics.section("labels").get("slices"))
    return (
        _sizes(metrics, slices),
        _variants(metrics),
        _methods(metrics, slices),
        _segmentation(metrics),
        _remaining(metrics, slices),
        _two_classes(metrics),
    )


def _sizes(metrics: Metrics, slices: int | None) -> Table:
    training = whole(metrics.section("training").get("slices"))
    parameters = whole(metrics.section("model_size").get("parameters"))
    ratio = f"{slices / training:.3g}" if slices and training else DASH
    size = f"{parameters / 1e6:.2f} M" if parameters else DASH
    ours = Row(_name(metrics), _cells(count(training), count(slices), ratio, size), ours=True)
    theirs = [
        Row(row.name, _cells(row.training, row.test, row.ratio, row.parameters), row.source)
        for row in published.TABLE_1
    ]
    columns = ("training slices", "test slices", "test / training", "parameters")
    return Table(1, "Sizes of data and models", columns, (ours, *theirs))


def _variants(metrics: Metrics) -> Table:
    ours = (_ours(metrics, [key for _, key in RATES]),) if _classified(metrics) else ()
    rows = (*ours, *map(_published, published.TABLE_4))
    columns = tuple(name for name, _ in RATES)
    return Table(4, "COVID-CT-Mask-Net by variant, %", columns, rows, _gap(metrics))


def _methods(metrics: Metrics, slices: int | None) -> Table:
    keys = dict(RATES)
    ours = _ours(metrics, [keys[name] for name in BEST])
    ours = Row(ours.name, (Cell(count(slices)), *ours.cells), ours=True)
    theirs = [
        Row(row.name, _cells(row.test, *map(_share, (row.covid, row.accuracy, row.f1))), row.source)
        for row in published.TABLE_5
    ]
    rows = (ours, *theirs) if _classified(metrics) else tuple(theirs)
    return Table(5, "Other methods, %", ("test slices", *BEST), rows, _gap(metrics))


def _segmentation(metrics: Metrics) -> Table:
    keys = [f"detection.mask.image_{part}" for part in ("ap50", "ap75", "map")]
    rows = [
        Row(row.name, _cells(*map(_share, (row.ap50, row.ap75, row.mean))), row.source)
        for row in published.TABLE_6
    ]
    measured = any(key in metrics.figures for key in keys)
    if measured:
        rows.insert(0, _ours(metrics, keys))
    gap = "" if measured else "Lesion masks were not evaluated in this run."
    columns = ("AP at IoU 0.50", "AP at IoU 0.75", "mAP, 0.50 to 0.95")
    return Table(6, "Segmentation of lesions, AP per image, %", columns, tuple(rows), gap)


def _remaining(metrics: Metrics, slices: int | None) -> Table:
    same = slices == published.REMAINING_SLICES
    rows = (_ours(metrics, [key for _, key in RATES]),) if same else ()
    gap = "" if same else f"This run has {count(slices or 0)} labelled slices, so no row here."
    title = "The remaining 58,782 slices of COVIDx-CT’s training split, %"
    return Table(7, title, tuple(name for name, _ in RATES), rows, gap)


def _two_classes(metrics: Metrics) -> Table:
    two = len(metrics.classes) == 2 and _classified(metrics)
    keys = [f"slice.sensitivity.{name}" for name in metrics.classes]
    rows = (_ours(metrics, [*keys, "slice.accuracy", "slice.f1_weighted"]),) if two else ()
    columns = (*(f"{name} sensitivity" for name in metrics.classes), "accuracy", "F1, weighted")
    gap = "" if two else f"This model has {len(metrics.classes)} classes, so it has no row here."
    gap = gap if _classified(metrics) else _gap(metrics)
    return Table(9, "iCTCF, two classes, %", columns, rows, gap)


def _classified(metrics: Metrics) -> bool:
    return "slice.accuracy" in metrics.figures


def _gap(metrics: Metrics) -> str:
    return "" if _classified(metrics) else "Classes were not evaluated in this run."


def _ours(metrics: Metrics, keys: list[str]) -> Row:
    found = tuple(Cell(DASH, metrics.figures.get(key)) for key in keys)
    return Row(_name(metrics), found, ours=True)


def _published(row: Classified) -> Row:
    shares = map(_share, (row.covid, row.pneumonia, row.control, row.accuracy, row.f1))
    return Row(row.name, _cells(*shares), row.source)


def _cells(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text or DASH) for text in texts)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _name(metrics: Metrics) -> str:
    return str(metrics.section("model").get("name") or "this model")
