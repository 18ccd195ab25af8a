"""The evaluation of a folder as one page: `report.html`, which needs no network and no script.

In: a folder with metrics.json and, for the gallery, private/cases/<slice_id>.png; local or on S3.
Out: the page's text (`render`), or the page beside metrics.json (`write`). The same folder gives
the same text.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cctmn import store
from cctmn.report import gallery, papers, plots, published, sections
from cctmn.report.figures import Figure, count, number
from cctmn.report.metrics import FILE, Metrics, read
from cctmn.report.plots import Line

REPORT: Final = "report.html"
TEMPLATE: Final = "report.html.j2"
STYLE: Final = "report.css"
PICTURES: Final = "private/cases"
SECTIONS: Final = ("made", "model", "labels", "accounting", "comparison", "audit", "detection")
LISTS: Final = {"audit": ("sets", "pairs")}  # keys below which there are lists of sections
HERE: Final = Path(__file__).parent


def render(folder: str) -> str:
    """The report of an evaluation folder as HTML. Raises DataError where there is none."""
    metrics = read(folder)
    context = _context(metrics, folder=store.to_uri(folder))
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(soft=soft, count=count)
    style = Markup((HERE / STYLE).read_text(encoding="utf-8"))  # noqa: S704  our own file
    return environment.get_template(TEMPLATE).render(context, style=style)


def write(folder: str) -> str:
    """Put the report into the folder and return its URI; with pictures in it, its mode is 0600."""
    text = render(folder)
    uri = store.join(store.to_uri(folder), REPORT)
    # What came out of private/ stays as private as it was.
    store.put(uri, text.encode(), private="data:image/png" in text)
    return uri


def soft(text: object) -> Markup:
    """Text that may break after _ . + and /, so that a long name does not widen its column."""
    escaped = str(escape(text))
    for sign in "_+./":
        escaped = escaped.replace(sign, f"{sign}<wbr>")
    return Markup(escaped)  # noqa: S704  escaped above


def _lenient(value: Any) -> Any:
    """The same, but a key that is absent reads as null: most are optional."""
    if isinstance(value, dict):
        return defaultdict(lambda: None, {key: _lenient(part) for key, part in value.items()})
    return [_lenient(part) for part in value] if isinstance(value, list) else value


def _section(metrics: Metrics, name: str) -> dict[str, Any]:
    found: dict[str, Any] = _lenient(metrics.section(name))
    lines = [line for key in LISTS.get(name, ()) for line in found.get(key) or []]
    if not all(isinstance(one, dict) for one in (found, *lines)):
        raise TypeError("names and values are expected")
    return found


def _context(metrics: Metrics, *, folder: str) -> dict[str, Any]:
    part = metrics.part
    section = {
        name: part(name, build=functools.partial(_section, metrics, name)) for name in SECTIONS
    }
    model = section["model"]
    cohorts = part("cohorts", build=lambda: sections.cohorts(metrics))
    context: dict[str, Any] = {
        "metrics_file": FILE,
        "doi": published.DOI,
        "classes": metrics.classes,
        "title": str(metrics.data.get("title") or f"Evaluation of {model['name'] or 'a model'}"),
        "made": section["made"],
        "model": model,
        "labels": section["labels"],
        "accounting": section["accounting"],
        "level": part("bootstrap", build=lambda: _level(metrics)),
        "warnings": part("warnings", build=lambda: _warnings(metrics)),
        "headline": sections.headline(metrics),
        "funnel": part("accounting", build=lambda: sections.funnel(metrics)),
        "worst_case": sections.worst_case(metrics),
        "tables": part("labels, training, model_size", build=lambda: papers.tables(metrics)),
        "confusion": part("confusion", build=lambda: _by_level(metrics, _confusion)),
        "by_class": _by_level(metrics, _by_class),
        "overall": _by_level(metrics, _overall),
        "curves": part("curves", build=lambda: _by_level(metrics, _curves)),
        "reliability": part("curves", build=lambda: _reliability(metrics)),
        "calibration": metrics.below("calibration."),
        "froc": part("curves", build=lambda: _froc(metrics)),
        "detection": metrics.below("detection."),
        "detection_of": section["detection"],
        "cohorts": cohorts,
        "comparison": section["comparison"],
        "differences": sections.differences(metrics),
        "gallery": part("cases", build=lambda: _gallery(metrics, folder)),
        "audit": section["audit"],
        "provenance": part("model, labels, versions", build=lambda: sections.provenance(metrics)),
        "figures": list(metrics.figures.values()),
        "cohort_figures": [
            f for cohort in cohorts for cell in cohort.cells for f in cell.figures if f
        ],
    }
    return context | {"absent": _absent(context)}


def _by_level(metrics: Metrics, build: Callable[[Metrics, str], Any]) -> dict[str, Any]:
    return {level: build(metrics, level) for level in ("slice", "patient")}


def _confusion(metrics: Metrics, level: str) -> tuple[sections.Truth, ...]:
    return sections.confusion(metrics, level=level)


def _by_class(metrics: Metrics, level: str) -> list[tuple[str, list[Figure | None]]]:
    return sections.by_class(metrics, level=level)


def _overall(metrics: Metrics, level: str) -> list[sections.Measure]:
    return sections.overall(metrics, level=level)


def _level(metrics: Metrics) -> str:
    level = number(metrics.section("bootstrap").get("level"))
    return f"{100 * (0.95 if level is None else level):.0f} %"


def _warnings(metrics: Metrics) -> list[str]:
    """What a reader must know first; the evaluation says it, once."""
    return [str(text) for text in metrics.section("warnings") or ()]


def _curves(metrics: Metrics, level: str) -> list[tuple[str, Markup]]:
    """(caption, SVG) of the ROC and PR plots of a level that have a curve."""
    found = []
    for kind, draw, caption in (
        ("roc", plots.roc, "ROC, each class against the rest"),
        ("pr", plots.pr, "Precision and recall, each class against the rest"),
    ):
        lines = _lines(metrics, f"{level}.{kind}.")
        if lines:
            names = ", ".join(one.name for one in lines)
            label = f"{caption}, {level}s: {names}. The figures are in the table beside."
            svg = draw(lines, name=f"{level}-{kind}", label=label)
            found.append((caption, Markup(svg)))  # noqa: S704  our own SVG, texts escaped
    return found


def _lines(metrics: Metrics, prefix: str) -> list[Line]:
    curves = metrics.section("curves")
    found = [
        plots.line(name, index=index, points=curves[prefix + name])
        for index, name in enumerate(metrics.classes)
        if curves.get(prefix + name)
    ]
    return [one for one in found if one is not None]


def _reliability(metrics: Metrics) -> dict[str, Any] | None:
    points = metrics.section("curves").get("reliability")
    if not points or not points["confidence"]:
        return None
    rows = [
        (number(stated), number(right), None if n is None else int(n))
        for stated, right, n in zip(
            points["confidence"], points["accuracy"], points["n"], strict=True
        )
    ]
    label = "Reliability: share right over stated probability; the same numbers are in the table."
    svg = plots.reliability(points, name="reliability", label=label)
    return {"rows": rows, "svg": Markup(svg)}  # noqa: S704  our own SVG, texts escaped


def _froc(metrics: Metrics) -> Markup | None:
    points = metrics.section("curves").get("froc")
    curve = plots.line("lesions", index=0, points=points) if points else None
    if curve is None:
        return None
    label = "FROC: share of lesions found over false positives an image."
    return Markup(plots.froc(curve, name="froc", label=label))  # noqa: S704  as above


def _gallery(metrics: Metrics, folder: str) -> gallery.Gallery:
    def picture(name: str) -> bytes | None:
        return store.read_optional(store.join(folder, PICTURES, name))

    return gallery.build(metrics.section("cases"), classes=metrics.classes, read=picture)


def _absent(context: dict[str, Any]) -> list[str]:
    """The parts that this run did not evaluate, by name."""
    there = {
        "calibration": context["calibration"] or context["reliability"],
        "lesion detection": context["detection"],
        "patient level": context["overall"]["patient"] or context["confusion"]["patient"],
        "cohorts": context["cohorts"],
        "comparison with another model": context["comparison"],
        "gallery of cases": context["gallery"].walls,
        "audit of shared patients": context["audit"],
    }
    return [name for name, found in there.items() if not found]
