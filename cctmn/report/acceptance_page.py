"""The result of an acceptance test as one page to print and sign; it needs no network, no script.

The same result always gives the same page.

Reads: the content of acceptance.json.
Writes: acceptance.html beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from cctmn import store
from cctmn.evaluate import verdicts
from cctmn.evaluate.criteria import ANY_DISEASE
from cctmn.metrics.binary import NAMES, RATIOS
from cctmn.numerics import described
from cctmn.report import plots, templates
from cctmn.report.numbers import DASH

PAGE: Final = "acceptance.html"
TEMPLATE: Final = "acceptance.html.j2"
STYLES: Final = ("base.css", "acceptance.css")
MARKS: Final = {
    verdicts.ACCEPTED: "accepted",
    verdicts.FAIL: "failed",
    verdicts.TOO_FEW: "few",
}


@dataclass(frozen=True)
class JudgedRow:
    """A criterion, or a subgroup of one, as the page shows it."""

    name: str
    subgroup: str  # "" for all patients
    required: str
    value: str
    bound: str
    patients: int | None
    slices: int | None
    verdict: str
    mark: str  # class of the style sheet
    reason: str


def write(folder: str, *, content: Mapping[str, Any]) -> str:
    """Write the page of an acceptance.json into the folder and return its URI."""
    uri = store.join(store.to_uri(folder), PAGE)
    store.put(uri, render(content).encode())
    return uri


def render(content: Mapping[str, Any]) -> str:
    """Return the page of an acceptance.json as HTML."""
    rows = [_row(row) for row in content["criteria"]]
    point = content["operating_point"]
    context = {
        "content": content,
        "computed": described(content["predictions"]),
        "rows": rows,
        "mark": MARKS[content["verdict"]],
        "conclusion": _conclusion(content["verdict"], rows),
        "bounds": bounds_text(content["rules"]),
        "positive": positive_text(point["positive"]),
        "units": "patients" if point["unit"] == "patient" else "slices",
        "threshold": f"{point['threshold']:.6g}",
        "curve": _curve(content),
    }
    return templates.render(TEMPLATE, context, styles=STYLES)


def lines(content: Mapping[str, Any]) -> list[str]:
    """Return one line of text per criterion, for the terminal."""
    return [
        f"{row.verdict}: {row.name}{f', {row.subgroup}' if row.subgroup else ''} {row.required}: "
        f"{row.value} (bound {row.bound}); {row.reason}"
        for row in map(_row, content["criteria"])
    ]


def bounds_text(rules: Mapping[str, Any]) -> str:
    """Return which bounds are compared with the required values."""
    level = f"{100 * rules['level']:g} %"
    if rules["sided"] == "one":
        return f"one-sided {level} confidence bounds"
    return f"ends of two-sided {level} confidence intervals"


def positive_text(positive: str) -> str:
    """Return the class to detect in words."""
    return "any disease" if positive == ANY_DISEASE else positive


def _row(row: Mapping[str, Any]) -> JudgedRow:
    metric, smaller = row["metric"], "at_most" in row
    values = [value for value in row["values"] if value]
    if row["hidden"]:
        subgroup = f"{' and '.join(row['by'])}: {values[0]}"
    else:
        subgroup = ", ".join(f"{n}: {v}" for n, v in zip(row["by"], values, strict=True))
    limit = row["at_most"] if smaller else row["at_least"]
    shown = row["patients"] is not None
    return JudgedRow(
        name=NAMES[metric],
        subgroup=subgroup,
        required=("≤ " if smaller else "≥ ") + _limit_text(metric, limit),
        value=_value_text(metric, row["value"]) if shown else DASH,
        bound=_bound_text(metric, row["bound"], up=smaller) if shown else DASH,
        patients=row["patients"],
        slices=row["slices"],
        verdict=row["verdict"],
        mark=MARKS[row["verdict"]],
        reason=row["reason"],
    )


def _limit_text(metric: str, value: float) -> str:
    return f"{value:g}" if metric in RATIOS else f"{100 * value:.6g} %"


def _value_text(metric: str, value: float | None) -> str:
    if value is None:
        return "∞" if metric in RATIOS else "not defined"
    return f"{value:.3f}" if metric in RATIOS else f"{100 * value:.2f} %"


def _bound_text(metric: str, value: float | None, *, up: bool) -> str:
    """Return a bound rounded to the side on which it misses the required value."""
    if value is None:
        return "∞"
    digits, scale = (3, 1) if metric in RATIOS else (2, 100)
    # The nearer rounding removes what only floating point has added.
    steps = round(value * scale * 10**digits, 6)
    rounded = (math.ceil(steps) if up else math.floor(steps)) / 10**digits
    return f"{rounded:.{digits}f}" + ("" if metric in RATIOS else " %")


def _conclusion(verdict: str, rows: list[JudgedRow]) -> str:
    """Return the verdict in one sentence."""
    counts = {mark: sum(row.mark == mark for row in rows) for mark in MARKS.values()}
    if verdict == verdicts.ACCEPTED:
        return f"All {len(rows)} criteria are met." if len(rows) > 1 else "The criterion is met."
    parts = [
        f"{counts[mark]} of {len(rows)} {'criterion' if len(rows) == 1 else 'criteria'} {text}"
        for mark, text in (
            ("failed", "not met"),
            ("few", "not judged, for lack of patients"),
        )
        if counts[mark]
    ]
    return "; ".join(parts) + "."


def _curve(content: Mapping[str, Any]) -> Markup | None:
    """Return the decision curve as SVG, None if it could not be computed."""
    curve = content["decision_curve"]
    if not curve:
        return None
    threshold = content["operating_point"]["threshold"]
    x = curve["threshold"]
    drawn = [
        plots.line(name, index=index, points={"x": x, "y": y})
        for index, (name, y) in enumerate(
            (
                ("the model", curve["model"]),
                ("everybody called positive", curve["treat_all"]),
                ("nobody called positive", [0.0] * len(x)),
            )
        )
    ]
    label = (
        "Decision curve: net benefit by threshold probability, of the model, of calling everybody "
        "positive and of calling nobody positive. The numbers are in acceptance.json."
    )
    known = [one for one in drawn if one is not None]
    svg = plots.net_benefit(known, threshold=threshold, name="decision", label=label)
    return Markup(svg)  # noqa: S704  our own SVG, texts escaped
