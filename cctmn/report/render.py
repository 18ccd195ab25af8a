"""The evaluation of a folder as one page: `report.html`, which needs no network and no script.

The same folder always gives the same text.

Reads: a folder, local or on S3, with metrics.json and, for the gallery, private/cases/*.png.
Writes: report.html beside metrics.json.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

from markupsafe import Markup

from cctmn import store
from cctmn.metrics import document
from cctmn.metrics.metric import Metric, number
from cctmn.numerics import described
from cctmn.report import gallery, papers, plots, published, runs, sections, templates
from cctmn.report.evaluation import Evaluation, read
from cctmn.report.plots import Line
from cctmn.report.runs import Run

REPORT: Final = "report.html"
TEMPLATE: Final = "report.html.j2"
STYLES: Final = ("base.css", "cases.css", "report.css")
PICTURES: Final = "private/cases"
# Sections that the template reads by key, without a type of their own.
SECTIONS: Final = (
    "made",
    "model",
    "labels",
    "accounting",
    "comparison",
    "independence",
    "audit",
    "detection",
)
LISTS: Final = {"audit": ("sets", "pairs")}  # keys of these sections that hold lists of tables


def render(folder: str, *, others: Sequence[str] = ()) -> str:
    """Return the report of an evaluation folder as HTML, with the runs in `others` beside it.

    Raises DataError if there is no evaluation, or one of the others is of other labels.
    """
    evaluation = read(folder)
    if others:
        compared = runs.read_runs(evaluation, folder=folder, others=others)
    else:
        compared = (runs.single(evaluation),)
    context = _context(compared, folder=store.to_uri(folder))
    return templates.render(TEMPLATE, context, styles=STYLES)


def write(folder: str, *, others: Sequence[str] = ()) -> str:
    """Write the report into the folder and return its URI; `others` are the runs beside it.

    A report with pictures gets mode 0600, like the pictures in private/.
    """
    text = render(folder, others=others)
    uri = store.join(store.to_uri(folder), REPORT)
    store.put(uri, text.encode(), private="data:image/png" in text)
    return uri


def _lenient(value: Any) -> Any:
    """Return the value with tables in which an absent key reads as null: most are optional."""
    if isinstance(value, dict):
        return defaultdict(lambda: None, {key: _lenient(part) for key, part in value.items()})
    return [_lenient(part) for part in value] if isinstance(value, list) else value


def _section(evaluation: Evaluation, name: str) -> dict[str, Any]:
    section: dict[str, Any] = _lenient(evaluation.section(name))
    entries = [entry for key in LISTS.get(name, ()) for entry in section.get(key) or []]
    if not all(isinstance(table, dict) for table in (section, *entries)):
        raise TypeError("names and values are expected")
    return section


def _context(compared: Sequence[Run], *, folder: str) -> dict[str, Any]:
    """Return everything that the template shows, by its name there; the first run is the page's."""
    evaluation = compared[0].evaluation
    build = evaluation.build
    section = {
        name: build(name, make=functools.partial(_section, evaluation, name)) for name in SECTIONS
    }
    model = section["model"]
    groupings = build("cohorts", make=lambda: sections.cohorts(evaluation))
    context: dict[str, Any] = {
        "metrics_file": document.FILE,
        "doi": published.DOI,
        "classes": evaluation.classes,
        "title": str(
            evaluation.content.get("title") or f"Evaluation of {model['name'] or 'a model'}"
        ),
        "made": section["made"],
        "model": model,
        "labels": section["labels"],
        "computed": build("scoring", make=lambda: described(evaluation.section("scoring"))),
        "accounting": section["accounting"],
        "level": build("bootstrap", make=lambda: _level(evaluation)),
        "warnings": build("warnings", make=lambda: list(map(str, evaluation.section("warnings")))),
        "headline": sections.headline(evaluation),
        "funnel": build("accounting", make=lambda: sections.funnel(evaluation)),
        "worst_case": sections.worst_case(evaluation),
        "without_abstained": sections.without_abstained(evaluation),
        "tables": _tables(compared),
        "runs": [run.name for run in compared],
        "side_by_side": _side_by_side(compared),
        "other_warnings": runs.warnings(compared),
        "limits": build("model", make=lambda: compared[0].limits),
        "confusion": build("confusion", make=lambda: _by_level(evaluation, _confusion)),
        "by_class": _by_level(evaluation, _by_class),
        "overall": _by_level(evaluation, _overall),
        "curves": build("curves", make=lambda: _by_level(evaluation, _curves)),
        "reliability": build("curves", make=lambda: _reliability(evaluation)),
        "calibration": [
            *evaluation.metrics_of("calibration."),
            *evaluation.metrics_of("patient_calibration."),
        ],
        "froc": build("curves", make=lambda: _froc(evaluation)),
        "detection": sections.detection(evaluation),
        "detection_of": section["detection"],
        "groupings": groupings,
        "comparison": section["comparison"],
        "differences": sections.differences(evaluation),
        "gallery": build("cases", make=lambda: _gallery(evaluation, folder)),
        "independence": section["independence"],
        "audit": section["audit"],
        "provenance": build(
            "model, labels, versions", make=lambda: sections.provenance(evaluation)
        ),
        "metrics": list(evaluation.metrics.values()),
        "cohort_metrics": [
            metric
            for grouping in groupings
            for cohort in grouping.cohorts
            for metric in cohort.metrics
            if metric
        ],
        "other_metrics": runs.appendix(compared),
    }
    return context | {"absent": _absent(context)}


def _tables(compared: Sequence[Run]) -> tuple[papers.Table, ...]:
    """Return the paper's tables. Raises DataError with the file of the run that is malformed."""
    for run in compared:
        run.evaluation.build(
            "labels, training, model, model_size",
            make=functools.partial(papers.tables, (run,)),
        )
    return papers.tables(compared)


def _side_by_side(compared: Sequence[Run]) -> tuple[runs.ComparedRow, ...]:
    """Return the table of several runs. Raises DataError as `_tables` does."""
    for run in compared:
        run.evaluation.build(
            "labels, training, detection, accounting",
            make=functools.partial(runs.side_by_side, (run, run)),
        )
    return runs.side_by_side(compared)


def _by_level(evaluation: Evaluation, build: Callable[[Evaluation, str], Any]) -> dict[str, Any]:
    return {level: build(evaluation, level) for level in ("slice", "patient")}


def _confusion(evaluation: Evaluation, level: str) -> tuple[sections.MatrixRow, ...]:
    return sections.confusion(evaluation, level=level)


def _by_class(evaluation: Evaluation, level: str) -> list[tuple[str, list[Metric | None]]]:
    return sections.by_class(evaluation, level=level)


def _overall(evaluation: Evaluation, level: str) -> list[sections.NamedMetric]:
    return sections.overall(evaluation, level=level)


def _level(evaluation: Evaluation) -> str:
    level = number(evaluation.section("bootstrap").get("level"))
    return f"{100 * (0.95 if level is None else level):.0f} %"


def _curves(evaluation: Evaluation, level: str) -> list[tuple[str, Markup]]:
    """Return (caption, SVG) of the ROC and PR plots of a level that have a curve."""
    drawn = []
    for kind, draw, caption in (
        ("roc", plots.roc, "ROC, each class against the rest"),
        ("pr", plots.pr, "Precision and recall, each class against the rest"),
    ):
        lines = _lines(evaluation, f"{level}.{kind}.")
        if lines:
            names = ", ".join(one.name for one in lines)
            label = f"{caption}, {level}s: {names}. The areas are in the table."
            svg = draw(lines, name=f"{level}-{kind}", label=label)
            drawn.append((caption, Markup(svg)))  # noqa: S704  our own SVG, texts escaped
    return drawn


def _lines(evaluation: Evaluation, prefix: str) -> list[Line]:
    curves = evaluation.section("curves")
    lines = [
        plots.line(name, index=index, points=curves[prefix + name])
        for index, name in enumerate(evaluation.classes)
        if curves.get(prefix + name)
    ]
    return [one for one in lines if one is not None]


def _reliability(evaluation: Evaluation) -> dict[str, Any] | None:
    points = evaluation.section("curves").get("reliability")
    if not points or not points["confidence"]:
        return None
    rows = [
        (number(probability), number(accuracy), None if n is None else int(n))
        for probability, accuracy, n in zip(
            points["confidence"], points["accuracy"], points["n"], strict=True
        )
    ]
    label = "Reliability: accuracy by predicted probability. The same numbers are in the table."
    svg = plots.reliability(points, name="reliability", label=label)
    return {"rows": rows, "svg": Markup(svg)}  # noqa: S704  our own SVG, texts escaped


def _froc(evaluation: Evaluation) -> Markup | None:
    points = evaluation.section("curves").get("froc")
    curve = plots.line("lesions", index=0, points=points) if points else None
    if curve is None:
        return None
    label = "FROC: detected fraction of the lesions by false positives per image."
    return Markup(plots.froc(curve, name="froc", label=label))  # noqa: S704  as above


def _gallery(evaluation: Evaluation, folder: str) -> gallery.Gallery:
    def picture(name: str) -> bytes | None:
        return store.read_optional(store.join(folder, PICTURES, name))

    return gallery.build(evaluation.section("cases"), classes=evaluation.classes, read=picture)


def _absent(context: dict[str, Any]) -> list[str]:
    """Return the names of the parts that this run did not evaluate."""
    present = {
        "calibration": context["calibration"] or context["reliability"],
        "lesion detection": context["detection"],
        "patient level": context["overall"]["patient"] or context["confusion"]["patient"],
        "cohorts": context["groupings"],
        "comparison with another model": context["comparison"],
        "gallery of cases": context["gallery"].groups or context["gallery"].walls,
        "audit of shared patients": context["audit"],
    }
    return [name for name, content in present.items() if not content]
