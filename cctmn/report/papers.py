"""The paper's tables, with a row for each run beside the published ones.

This file decides which table gets a row of a run: Tables 4 and 5 only for the test slices of
COVIDx-CT, Table 7 only for the very set of 58,782 slices, Tables 8 and 9 only for iCTCF's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cctmn.metrics.document import PAPER_REMAINING, PAPER_TEST
from cctmn.metrics.metric import Metric, whole
from cctmn.report import hyperparameters, published
from cctmn.report.numbers import DASH, count_text
from cctmn.report.published import CONTROL, COVID, PNEUMONIA, Classified, Segmented, Value
from cctmn.report.runs import Run

RATES: Final = (
    ("COVID-19 sensitivity", f"slice.sensitivity.{COVID}"),
    ("pneumonia sensitivity", f"slice.sensitivity.{PNEUMONIA}"),
    ("control sensitivity", f"slice.sensitivity.{CONTROL}"),
    ("accuracy", "slice.accuracy"),
    ("F1, weighted", "slice.f1_weighted"),
)
BEST: Final = ("COVID-19 sensitivity", "accuracy", "F1, weighted")  # columns of Table 5
TWO_CLASSES: Final = (
    "control sensitivity",
    "COVID-19 sensitivity",
    "accuracy",
    "F1, weighted",
)  # columns of Table 9

# iCTCF's test slices: COVID-19 and control. Its list is not public in full, so the counts tell it.
ICTCF: Final = "ictcf-test"
ICTCF_TEST: Final = {CONTROL: 9275, COVID: 3701}


@dataclass(frozen=True)
class TableCell:
    """A text, or a metric of a run."""

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
    """A table of the paper; `gap` says why there is no row of a run.

    `contexts` are rows below, each group with a heading that says why it stands apart.
    """

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    gap: str = ""
    contexts: tuple[tuple[str, tuple[TableRow, ...]], ...] = ()
    row_heading: str = "model"

    @property
    def missing(self) -> str:
        """A sentence on the published values that are not available."""
        return published.MISSING[self.number]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the numbers."""
        return published.NOTES[self.number]


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return Tables 1 to 9 with a row for each of the runs, where it has one."""
    return (
        _sizes(runs),
        _hyperparameters(runs, number=2, stage="detector", title="Hyperparameters of Mask R-CNN"),
        _hyperparameters(
            runs, number=3, stage="classifier", title="Hyperparameters of COVID-CT-Mask-Net"
        ),
        _variants(runs),
        _methods(runs),
        _segmentation(runs),
        _remaining(runs),
        _ictcf_counts(runs),
        _two_classes(runs),
    )


def _sizes(runs: Sequence[Run]) -> Table:
    theirs = [
        TableRow(
            row.name,
            _cells(
                row.training,
                row.test,
                row.ratio,
                row.parameters,
                row.module_s,
                row.with_batch_norm,
            ),
            row.source,
        )
        for row in published.TABLE_1
    ]
    columns = (
        "training slices",
        "test slices",
        "test / training",
        "parameters",
        "trainable: S",
        "trainable: S + batch norm",
    )
    return Table(1, "Sizes of data and models", columns, (*map(_own_sizes, runs), *theirs))


def _own_sizes(run: Run) -> TableRow:
    slices, training = _labelled(run), _training(run)
    size = run.evaluation.section("model_size")
    parameters, module_s, norms = (
        whole(size.get(key)) for key in ("parameters", "module_s", "batch_norm")
    )
    both = module_s + norms if module_s and norms is not None else None
    texts = (
        count_text(training),
        count_text(slices),
        f"{slices / training:.3g}" if slices and training else DASH,
        *(f"{n / 1e6:.2f} M" if n else DASH for n in (parameters, module_s, both)),
    )
    return _row(run, _cells(*texts))


def _hyperparameters(runs: Sequence[Run], *, number: int, stage: str, title: str) -> Table:
    rows = tuple(
        TableRow(name, _cells(*values, value), source or DASH)
        for name, values, value, source in hyperparameters.rows(runs, stage=stage)
    )
    columns = (*(run.name for run in runs), "published")
    gap = hyperparameters.gap(runs, stage=stage)
    return Table(number, title, columns, rows, gap, row_heading="hyperparameter")


def _variants(runs: Sequence[Run]) -> Table:
    keys = [key for _, key in RATES]
    ours = [
        _row(run, (TableCell(run.variant or DASH), *_metrics(run, keys)))
        for run in runs
        if _is_set(run, PAPER_TEST)
    ]
    columns = ("trained", *(name for name, _ in RATES))
    return Table(
        4,
        "COVID-CT-Mask-Net by variant, %",
        columns,
        (*ours, *map(_published, published.TABLE_4)),
        _gap(runs, PAPER_TEST),
        ((published.LATER_HEADING, tuple(map(_published, published.LATER_4))),),
    )


def _methods(runs: Sequence[Run]) -> Table:
    keys = [dict(RATES)[name] for name in BEST]
    ours = [
        _row(run, (TableCell(count_text(_labelled(run))), *_metrics(run, keys)))
        for run in runs
        if _is_set(run, PAPER_TEST)
    ]
    theirs = [
        TableRow(
            row.name,
            _cells(row.test, *map(_percent_text, (row.covid, row.accuracy, row.f1))),
            row.source,
        )
        for row in published.TABLE_5
    ]
    columns = ("test slices", *BEST)
    return Table(5, "Other methods, %", columns, (*ours, *theirs), _gap(runs, PAPER_TEST))


def _segmentation(runs: Sequence[Run]) -> Table:
    keys = [f"detection.mask.image_{part}" for part in ("ap50", "ap75", "map")]
    measured = [run for run in runs if any(map(run.metric, keys))]
    ours = [_row(run, (*_metrics(run, keys), *_cells(*run.limits))) for run in measured]
    reason = "did not evaluate lesion masks, so there is no row here."
    unmeasured = {run.name: reason for run in runs if run not in measured}
    columns = ("AP at IoU 0.50", "AP at IoU 0.75", "mAP, 0.50 to 0.95", "score above", "NMS")
    return Table(
        6,
        "Segmentation of lesions, AP per image, %",
        columns,
        (*ours, *map(_segmented, published.TABLE_6)),
        _about(unmeasured, runs=runs),
        (
            (published.OLDER_HEADING, tuple(map(_segmented, published.OLDER_6))),
            (published.LATER_HEADING, tuple(map(_segmented, published.LATER_6))),
        ),
    )


def _remaining(runs: Sequence[Run]) -> Table:
    keys = [key for _, key in RATES]
    ours = [_row(run, _metrics(run, keys)) for run in runs if _is_set(run, PAPER_REMAINING)]
    title = "The remaining 58,782 slices of COVIDx-CT’s training split, %"
    columns = tuple(name for name, _ in RATES)
    return Table(7, title, columns, tuple(ours), _gap(runs, PAPER_REMAINING))


def _ictcf_counts(runs: Sequence[Run]) -> Table:
    counts = (*ICTCF_TEST.values(), sum(ICTCF_TEST.values()))
    ours = [
        replace(_row(run, _cells(*map(count_text, counts))), name=f"test, {run.name}")
        for run in runs
        if _is_set(run, ICTCF)
    ]
    theirs = [
        TableRow(
            row.name,
            _cells(*map(count_text, (row.control, row.covid, row.control + row.covid))),
            row.source,
        )
        for row in published.TABLE_8
    ]
    columns = ("control", "COVID-19", "all")
    rows = (*ours, *theirs)
    return Table(8, "Slices of iCTCF", columns, rows, _gap(runs, ICTCF), row_heading="set")


def _two_classes(runs: Sequence[Run]) -> Table:
    keys = [dict(RATES)[name] for name in TWO_CLASSES]
    ours = [_row(run, _metrics(run, keys)) for run in runs if _is_set(run, ICTCF)]
    later = [
        TableRow(
            row.name,
            _cells(*map(_percent_text, (row.control, row.covid, row.accuracy, row.f1))),
            row.source,
        )
        for row in published.LATER_9
    ]
    return Table(
        9,
        "iCTCF, two classes, %",
        TWO_CLASSES,
        tuple(ours),
        _gap(runs, ICTCF),
        ((published.LATER_HEADING, tuple(later)),),
    )


def _is_set(run: Run, name: str) -> bool:
    """Return whether classes were evaluated on this published set of slices, and on all of it."""
    labels = run.evaluation.section("labels")
    if name == ICTCF:
        counts = labels.get("by_class") or {}
        return run.is_classified and counts == ICTCF_TEST
    return run.is_classified and labels.get("known_set") == name


def _gap(runs: Sequence[Run], name: str) -> str:
    """Return why runs have no row among those of a published set, "" if all have one."""
    reasons = {run.name: reason for run in runs if (reason := _reason(run, name))}
    return _about(reasons, runs=runs)


def _reason(run: Run, name: str) -> str:
    if not run.is_classified:
        return "did not evaluate classes, so there is no row here."
    if _is_set(run, name):
        return ""
    classes = len(run.evaluation.classes)
    if name == ICTCF and classes != len(ICTCF_TEST):
        return f"evaluated {classes} classes, so there is no row here."
    slices = count_text(_labelled(run) or 0)
    return f"evaluated other slices ({slices}), so there is no row here."


def _about(reasons: Mapping[str, str], *, runs: Sequence[Run]) -> str:
    """Return a sentence for each reason that follows the names of its runs."""
    sentences = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, one in reasons.items() if one == reason]
        subject = ", ".join(names)
        if len(names) == len(runs):
            subject = "This run" if len(runs) == 1 else "These runs"
        sentences.append(f"{subject} {reason}")
    return " ".join(sentences)


def _labelled(run: Run) -> int | None:
    return whole(run.evaluation.section("labels").get("slices"))


def _training(run: Run) -> int | None:
    of_card = run.evaluation.section("model").get("training_slices")
    return whole(run.evaluation.section("training").get("slices") or of_card)


def _row(run: Run, cells: tuple[TableCell, ...]) -> TableRow:
    source = run.prefix.rstrip(".").replace("-", " ") or "this run"
    return TableRow(run.name, cells, source, ours=True)


def _metrics(run: Run, keys: Iterable[str]) -> tuple[TableCell, ...]:
    return tuple(TableCell(DASH, run.metric(key)) for key in keys)


def _published(row: Classified) -> TableRow:
    values = map(_percent_text, (row.covid, row.pneumonia, row.control, row.accuracy, row.f1))
    return TableRow(row.name, _cells(row.trained, *values), row.source)


def _segmented(row: Segmented) -> TableRow:
    values = map(_percent_text, (row.ap50, row.ap75, row.mean))
    return TableRow(row.name, _cells(*values, row.min_score, row.nms), row.source)


def _cells(*texts: str) -> tuple[TableCell, ...]:
    return tuple(TableCell(text or DASH) for text in texts)


def _percent_text(value: Value) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.2f}"
