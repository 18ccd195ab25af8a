"""The other sections of the page, each from its part of metrics.json.

In: metrics. Out: frozen rows that the template lays out; it decides nothing. Positions are per cent
of a strip's width, so that a bar needs neither a plot nor a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn.errors import SLICE_CODES
from cctmn.report.figures import Figure, figure, whole
from cctmn.report.metrics import Metrics

RATES: Final = ("sensitivity", "ppv", "specificity", "auc", "ap")
NOT_SCORED: Final = "not scored yet"  # of slices that are no error rows
OVERALL: Final = ("accuracy", "f1_weighted", "f1_macro")
NAMES: Final = {
    "accuracy": "Accuracy",
    "f1_weighted": "F1, weighted",
    "f1_macro": "F1, macro",
    "sensitivity": "Sensitivity",
    "ppv": "PPV",
    "specificity": "Specificity",
    "auc": "AUC",
    "ap": "AP",
}


@dataclass(frozen=True)
class Strip:
    """Where value and intervals lie on a shared scale: per cent from its left end."""

    dot: float | None = None
    wide: tuple[float, float] | None = None  # left end and width, over patients
    narrow: tuple[float, float] | None = None  # over slices


@dataclass(frozen=True)
class Measure:
    """A figure with its name and, where it has one, its strip."""

    name: str
    figure: Figure
    strip: Strip = Strip()


@dataclass(frozen=True)
class Scale:
    """Measures on one scale; ticks are (per cent from the left, text)."""

    measures: tuple[Measure, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Stage:
    """A step of the funnel, and what fell out before the next: (count, why)."""

    name: str
    what: str
    count: int | None
    share: float  # per cent of what was indexed
    lost: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Share:
    """A cell of a confusion matrix; `shade` is its share of the row, 0..1."""

    count: int
    shade: float
    right: bool = False


@dataclass(frozen=True)
class Truth:
    """A row of a confusion matrix."""

    name: str
    cells: tuple[Share, ...]
    unscored: Share | None
    total: int


@dataclass(frozen=True)
class Cell:
    """A cohort; without figures it is hidden."""

    values: tuple[str, ...]
    hidden: bool
    slices: int | None
    patients: int | None
    figures: tuple[Figure | None, ...]


@dataclass(frozen=True)
class Cohort:
    """The cohorts of one grouping."""

    by: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]


def headline(metrics: Metrics) -> Scale:
    """The figures that a reader looks for first, on one scale that ends at 100 %."""
    wanted = [("Accuracy", "slice.accuracy"), ("F1, weighted", "slice.f1_weighted")]
    wanted += [(f"Sensitivity, {c}", f"slice.sensitivity.{c}") for c in metrics.classes]
    wanted += [("Accuracy, patients", "patient.accuracy")]
    found = [(name, metrics.figures[key]) for name, key in wanted if key in metrics.figures]
    ends = [v for _, f in found for v in (f.low, f.naive_low, f.value) if v is not None]
    start = min(0.9, math.floor(10 * min(ends, default=0.5) - 1e-9) / 10)  # a whole ten per cent
    start = max(0.0, start)
    steps = round(10 * (1 - start))
    step = 1 if steps <= 5 else 2
    ticks = [1 - k / 10 for k in range(0, steps + 1, step)][::-1]
    return Scale(
        tuple(Measure(name, f, _strip(f, start=start, end=1.0)) for name, f in found),
        tuple((100 * (t - start) / (1 - start), f"{100 * t:.0f}") for t in ticks),
    )


def differences(metrics: Metrics) -> Scale:
    """Paired differences, on one scale with 0 in its middle."""
    found = metrics.below("difference.")
    ends = [abs(v) for f in found for v in (f.value, f.low, f.high) if v is not None]
    reach = max(0.01, math.ceil(100 * max(ends, default=0.01) - 1e-9) / 100)
    ticks = ((0.0, f"−{100 * reach:.0f}"), (50.0, "0"), (100.0, f"+{100 * reach:.0f}"))
    measures = []
    for one in found:
        level, _, name = one.id.removeprefix("difference.").partition(".")
        measures.append(
            Measure(f"{label(name)}, {level}s", one, _strip(one, start=-reach, end=reach))
        )
    return Scale(tuple(measures), ticks)


def _strip(one: Figure, *, start: float, end: float) -> Strip:
    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - start) / (end - start)))

    def span(low: float | None, high: float | None) -> tuple[float, float] | None:
        return None if low is None or high is None else (at(low), at(high) - at(low))

    dot = None if one.value is None else at(one.value)
    return Strip(dot, span(one.low, one.high), span(one.naive_low, one.naive_high))


def label(name: str) -> str:
    """`sensitivity.covid` -> `Sensitivity, covid`."""
    first, _, rest = name.partition(".")
    first = NAMES.get(first, first)
    return f"{first}, {rest}" if rest else first


def funnel(metrics: Metrics) -> tuple[Stage, ...]:
    """From what was indexed to what was evaluated."""
    counts = metrics.section("accounting")
    of = {name: whole(counts.get(name)) for name in ("indexed", "scored", "labelled", "evaluated")}
    most = max([value for value in of.values() if value] or [1])
    codes = (counts.get("labelled_errors") or {}).items()
    lost: dict[str, list[tuple[int, str]]] = {
        "indexed": [
            (int(counts.get("errors") or 0), "could not be scored and have an error row"),
            (int(counts.get("pending") or 0), "are not scored yet"),
        ],
        "scored": [
            (int(counts.get("predictions_without_label") or 0), "have no label, so none to compare")
        ],
        "labelled": [
            (int(counts.get("labels_without_prediction") or 0), "find no slice in the archive"),
            *(
                (int(n), f"{code}: {SLICE_CODES.get(code, NOT_SCORED)}")
                for code, n in sorted(codes, key=lambda item: (-int(item[1]), item[0]))
            ),
        ],
    }
    what = {
        "indexed": "slices found in the archive",
        "scored": "slices with a prediction",
        "labelled": "slices with a label",
        "evaluated": "slices that the figures rest on",
    }
    return tuple(
        Stage(
            name,
            what[name],
            value,
            100 * (value or 0) / most,
            tuple((n, why) for n, why in lost.get(name, ()) if n),
        )
        for name, value in of.items()
        if value is not None
    )


def confusion(metrics: Metrics, *, level: str) -> tuple[Truth, ...]:
    """The matrix of slices or patients, () where there is none."""
    found = metrics.section("confusion").get(level)
    if not found:
        return ()
    matrix = [[int(n) for n in row] for row in found["matrix"]]
    size = len(metrics.classes)
    if len(matrix) != size or any(len(row) != size for row in matrix):
        raise ValueError("the matrix does not have a row and a column for each class")
    unscored = found.get("unscored")
    rows = []
    for k, (name, row) in enumerate(zip(metrics.classes, matrix, strict=True)):
        out = None if unscored is None else int(unscored[k])
        total = sum(row) + (out or 0)
        share = [n / total if total else 0.0 for n in row]
        cells = [Share(n, s, i == k) for i, (n, s) in enumerate(zip(row, share, strict=True))]
        last = None if out is None else Share(out, out / total if total else 0.0)
        rows.append(Truth(name, tuple(cells), last, total))
    return tuple(rows)


def by_class(metrics: Metrics, *, level: str) -> list[tuple[str, list[Figure | None]]]:
    """Of every class its rates; [] if there are none."""
    rows = [
        (name, [metrics.figures.get(f"{level}.{rate}.{name}") for rate in RATES])
        for name in metrics.classes
    ]
    return rows if any(f for _, figures in rows for f in figures) else []


def overall(metrics: Metrics, *, level: str) -> list[Measure]:
    """Accuracy and F1 of slices or patients."""
    keys = [(NAMES[key], f"{level}.{key}") for key in OVERALL]
    return [Measure(name, metrics.figures[key]) for name, key in keys if key in metrics.figures]


def worst_case(metrics: Metrics) -> list[tuple[str, Figure, Figure | None]]:
    """Figures with every failure counted as wrong, beside those without."""
    return [
        (
            label(one.id.removeprefix("worst_case.")),
            one,
            metrics.figures.get(one.id.replace("worst_case.", "slice.", 1)),
        )
        for one in metrics.below("worst_case.")
    ]


def cohorts(metrics: Metrics) -> tuple[Cohort, ...]:
    """Every grouping with its cells; their figures get ids, so that the appendix can hold them."""
    return tuple(_cohort(entry) for entry in metrics.section("cohorts") or ())


def _cohort(entry: Mapping[str, Any]) -> Cohort:
    by = tuple(str(name) for name in entry["by"])
    cells: Sequence[Mapping[str, Any]] = entry["cells"]
    keys = list(dict.fromkeys(key for cell in cells for key in cell.get("figures") or {}))
    rows = []
    for cell in cells:
        values = tuple(str(value) for value in cell["values"])
        if len(values) != len(by):
            raise ValueError("a cell does not have one value for each of `by`")
        figures = cell.get("figures") or {}
        where = f"cohort.{'+'.join(by)}.{'+'.join(values)}"
        rows.append(
            Cell(
                values,
                bool(cell.get("hidden")),
                whole(cell.get("slices")),
                whole(cell.get("patients")),
                tuple(
                    figure(f"{where}.{k}", entry=figures[k]) if k in figures else None for k in keys
                ),
            )
        )
    return Cohort(by, tuple(label(key) for key in keys), tuple(rows))


def provenance(metrics: Metrics) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that says where the figures come from, as it stands in the file."""
    groups = {
        "Model": "model",
        "Labels": "labels",
        "Bootstrap": "bootstrap",
        "Detection": "detection",
        "Evaluated with": "versions",
        "Scored with": "scoring",
        "Made": "made",
    }
    found = [(title, _flat(metrics.section(name))) for title, name in groups.items()]
    return [(title, lines) for title, lines in found if lines]


def _flat(section: Mapping[str, Any], *, prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            lines += _flat(value, prefix=f"{prefix}{key} ")
        elif value is not None:
            lines.append((f"{prefix}{key}".replace("_", " "), _plain(value)))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)
