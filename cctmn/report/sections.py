"""The sections of the page, each made from its part of metrics.json.

Everything is decided here; the template only lays out the frozen rows. Positions are per cent of
the width of a strip, so that a bar needs neither a plot nor a script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cctmn.errors import SLICE_CODES
from cctmn.metrics.metric import Metric, whole
from cctmn.report.evaluation import Evaluation

RATES: Final = ("sensitivity", "ppv", "specificity", "auc", "ap")
NOT_SCORED: Final = "not scored yet"  # the reason for a slice without an error code
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
    """Positions of value and intervals on a shared scale, in per cent from its left end."""

    dot: float | None = None
    wide: tuple[float, float] | None = None  # left end and width, over patients
    narrow: tuple[float, float] | None = None  # over slices


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the name that the page shows and, where it has one, its strip."""

    name: str
    metric: Metric
    strip: Strip = Strip()


@dataclass(frozen=True)
class Scale:
    """Metrics on one scale; ticks are (per cent from the left, text)."""

    rows: tuple[NamedMetric, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Stage:
    """A step of the accounting, and the slices that drop out before the next: (count, reason)."""

    name: str
    description: str
    count: int | None
    percent: float  # of the indexed slices
    dropped: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class MatrixCell:
    """A cell of a confusion matrix; `fraction` is its part of the row, 0..1."""

    count: int
    fraction: float
    correct: bool = False


@dataclass(frozen=True)
class MatrixRow:
    """A row of a confusion matrix: the cases of one true class."""

    name: str
    cells: tuple[MatrixCell, ...]
    unscored: MatrixCell | None
    total: int


@dataclass(frozen=True)
class Cohort:
    """The slices with one combination of values. A hidden cohort has no metrics."""

    values: tuple[str, ...]
    hidden: bool
    slices: int | None
    patients: int | None
    metrics: tuple[Metric | None, ...]


@dataclass(frozen=True)
class Grouping:
    """The cohorts by one or more columns; `headings` are those of the metrics."""

    by: tuple[str, ...]
    headings: tuple[str, ...]
    cohorts: tuple[Cohort, ...]


def headline(evaluation: Evaluation) -> Scale:
    """Return the metrics that a reader looks for first, on one scale that ends at 100 %."""
    of_classes = [f"sensitivity.{name}" for name in evaluation.classes]
    wanted = [
        (f"{label(name)}, {level}s", f"{level}.{name}")
        for level, overall in (("patient", ["accuracy"]), ("slice", ["accuracy", "f1_weighted"]))
        for name in (*overall, *of_classes)
    ]
    metrics = evaluation.metrics
    rows = [(name, metrics[id_]) for name, id_ in wanted if id_ in metrics]
    ends = [v for _, m in rows for v in (m.low, m.naive_low, m.value) if v is not None]
    # The scale starts at a whole ten per cent, at 90 % at the latest.
    start = min(0.9, math.floor(10 * min(ends, default=0.5) - 1e-9) / 10)
    start = max(0.0, start)
    steps = round(10 * (1 - start))
    step = 1 if steps <= 5 else 2
    ticks = [1 - k / 10 for k in range(0, steps + 1, step)][::-1]
    return Scale(
        tuple(NamedMetric(name, m, _strip(m, start=start, end=1.0)) for name, m in rows),
        tuple((100 * (t - start) / (1 - start), f"{100 * t:.0f}") for t in ticks),
    )


def differences(evaluation: Evaluation) -> Scale:
    """Return the paired differences, on one scale with 0 in its middle."""
    metrics = evaluation.metrics_of("difference.")
    ends = [abs(v) for m in metrics for v in (m.value, m.low, m.high) if v is not None]
    reach = max(0.01, math.ceil(100 * max(ends, default=0.01) - 1e-9) / 100)
    ticks = ((0.0, f"−{100 * reach:.0f}"), (50.0, "0"), (100.0, f"+{100 * reach:.0f}"))
    rows = []
    for metric in metrics:
        level, _, name = metric.id.removeprefix("difference.").partition(".")
        strip = _strip(metric, start=-reach, end=reach)
        rows.append(NamedMetric(f"{label(name)}, {level}s", metric, strip))
    return Scale(tuple(rows), ticks)


def _strip(metric: Metric, *, start: float, end: float) -> Strip:
    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - start) / (end - start)))

    def span(low: float | None, high: float | None) -> tuple[float, float] | None:
        return None if low is None or high is None else (at(low), at(high) - at(low))

    dot = None if metric.value is None else at(metric.value)
    return Strip(dot, span(metric.low, metric.high), span(metric.naive_low, metric.naive_high))


def label(name: str) -> str:
    """Return the heading of a metric: `Sensitivity, covid` for `sensitivity.covid`."""
    first, _, rest = name.partition(".")
    first = NAMES.get(first, first)
    return f"{first}, {rest}" if rest else first


def funnel(evaluation: Evaluation) -> tuple[Stage, ...]:
    """Return the steps from indexed to evaluated slices."""
    counts = evaluation.section("accounting")
    descriptions = {
        "indexed": "slices in the archive",
        "scored": "slices with a prediction",
        "labelled": "slices with a label",
        "evaluated": "slices that the metrics are computed from",
    }

    def count(name: str) -> int:
        return int(counts.get(name) or 0)

    codes = (counts.get("labelled_errors") or {}).items()
    dropped: dict[str, list[tuple[int, str]]] = {
        "indexed": [
            (
                count("passed_over"),
                "are rightly not scored: no CT slices, or localizers and the like",
            ),
            (count("errors"), "could not be scored and have an error row"),
            (count("pending"), "are not scored yet"),
        ],
        "scored": [(count("predictions_without_label"), "have no label to compare with")],
        "labelled": [
            (count("labels_without_prediction"), "have no slice in the archive"),
            *(
                (int(n), f"{code}: {SLICE_CODES.get(code, NOT_SCORED)}")
                for code, n in sorted(codes, key=lambda item: (-int(item[1]), item[0]))
            ),
        ],
    }
    values = {name: whole(counts.get(name)) for name in descriptions}
    most = max([value for value in values.values() if value] or [1])
    return tuple(
        Stage(
            name,
            descriptions[name],
            value,
            100 * (value or 0) / most,
            tuple((n, reason) for n, reason in dropped.get(name, ()) if n),
        )
        for name, value in values.items()
        if value is not None
    )


def confusion(evaluation: Evaluation, *, level: str) -> tuple[MatrixRow, ...]:
    """Return the confusion matrix of slices or patients, () if there is none."""
    section = evaluation.section("confusion").get(level)
    if not section:
        return ()
    matrix = [[int(n) for n in row] for row in section["matrix"]]
    size = len(evaluation.classes)
    if len(matrix) != size or any(len(row) != size for row in matrix):
        raise ValueError("the matrix does not have a row and a column for each class")
    unscored = section.get("unscored")
    rows = []
    for k, (name, row) in enumerate(zip(evaluation.classes, matrix, strict=True)):
        num_unscored = None if unscored is None else int(unscored[k])
        total = sum(row) + (num_unscored or 0)

        def cell(n: int, total: int = total, *, correct: bool = False) -> MatrixCell:
            return MatrixCell(n, n / total if total else 0.0, correct)

        rows.append(
            MatrixRow(
                name,
                tuple(cell(n, correct=i == k) for i, n in enumerate(row)),
                None if num_unscored is None else cell(num_unscored),
                total,
            )
        )
    return tuple(rows)


def by_class(evaluation: Evaluation, *, level: str) -> list[tuple[str, list[Metric | None]]]:
    """Return each class with its metrics, [] if there are none."""
    rows = [
        (name, [evaluation.metrics.get(f"{level}.{rate}.{name}") for rate in RATES])
        for name in evaluation.classes
    ]
    return rows if any(m for _, metrics in rows for m in metrics) else []


def overall(evaluation: Evaluation, *, level: str) -> list[NamedMetric]:
    """Return accuracy and F1 of slices or patients."""
    names = [(NAMES[name], f"{level}.{name}") for name in OVERALL]
    metrics = evaluation.metrics
    return [NamedMetric(name, metrics[id_]) for name, id_ in names if id_ in metrics]


def worst_case(evaluation: Evaluation) -> list[tuple[str, Metric, Metric | None]]:
    """Return the worst-case metrics of classification, each beside the plain one.

    Those of detection are in the section on lesions.
    """
    pairs = _beside_slices(evaluation, prefix="worst_case.")
    return [pair for pair in pairs if not pair[1].id.startswith("worst_case.detection.")]


def without_abstained(evaluation: Evaluation) -> list[tuple[str, Metric, Metric | None]]:
    """Return the metrics of slices without the abstained ones, each beside the plain one."""
    return _beside_slices(evaluation, prefix="without_abstained.")


def _beside_slices(
    evaluation: Evaluation, *, prefix: str
) -> list[tuple[str, Metric, Metric | None]]:
    return [
        (
            label(metric.id.removeprefix(prefix)),
            metric,
            evaluation.metrics.get(metric.id.replace(prefix, "slice.", 1)),
        )
        for metric in evaluation.metrics_of(prefix)
    ]


def detection(evaluation: Evaluation) -> list[tuple[str, Metric]]:
    """Return the metrics of lesions with their short ids, the worst case last."""
    prefixes = ("detection.", "worst_case.detection.")
    return [
        (metric.id.replace("detection.", "", 1), metric)
        for prefix in prefixes
        for metric in evaluation.metrics_of(prefix)
    ]


def cohorts(evaluation: Evaluation) -> tuple[Grouping, ...]:
    """Return every grouping; its metrics get ids of their own, for the appendix."""
    return tuple(_grouping(entry) for entry in evaluation.section("cohorts") or ())


def _grouping(entry: Mapping[str, Any]) -> Grouping:
    by = tuple(str(name) for name in entry["by"])
    cells: Sequence[Mapping[str, Any]] = entry["cells"]
    names = list(dict.fromkeys(name for cell in cells for name in cell.get("metrics") or {}))
    rows = []
    for cell in cells:
        values = tuple(str(value) for value in cell["values"])
        if len(values) != len(by):
            raise ValueError("a cell does not have one value for each of `by`")
        entries = cell.get("metrics") or {}
        prefix = f"cohort.{'+'.join(by)}.{'+'.join(values)}"
        rows.append(
            Cohort(
                values,
                bool(cell.get("hidden")),
                whole(cell.get("slices")),
                whole(cell.get("patients")),
                tuple(
                    Metric.from_json(f"{prefix}.{name}", entry=entries[name])
                    if name in entries
                    else None
                    for name in names
                ),
            )
        )
    return Grouping(by, tuple(label(name) for name in names), tuple(rows))


def provenance(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the entries that say where the numbers come from, as they stand in the file."""
    sections = {
        "Model": "model",
        "Labels": "labels",
        "Bootstrap": "bootstrap",
        "Detection": "detection",
        "Evaluated with": "versions",
        "Scored with": "scoring",
        "Made": "made",
    }
    groups = [(title, _flat(evaluation.section(name))) for title, name in sections.items()]
    return [(title, lines) for title, lines in groups if lines]


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
