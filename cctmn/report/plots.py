"""Curves as SVG inside the page: ROC, precision and recall, reliability, FROC, net benefit.

Each plot is `<svg>` text for a column of 360 px, so that a phone shows it without scaling. Colours
are variables of the page's style sheet, text uses the page's font, ids contain the name of the
plot, and the same points always give the same text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cctmn.metrics.metric import number

WIDTH_PX, HEIGHT_PX = 360, 330  # a phone's column; matplotlib's 72 dpi make a point a px
TEXT_PX, SMALL_PX = 12, 11

# Stand-ins that the style sheet replaces, so that one SVG serves light, dark and paper.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
CLASSES: Final = tuple(f"#0a0a0{k}" for k in range(6))
VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{k})" for k, colour in enumerate(CLASSES)},
}
DASHES: Final = (  # in line widths; told apart without colour
    (0, ()),
    (0, (5, 2)),
    (0, (1.2, 1.6)),
    (0, (7, 2, 1.2, 2)),
    (0, (10, 3)),
    (0, (4, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
RC: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cctmn",
    "font.family": ["DejaVu Sans"],  # ships with matplotlib; wider than what browsers take
    "font.size": TEXT_PX,
    "axes.linewidth": 1.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL_PX,
    "ytick.labelsize": SMALL_PX,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called a$b$c
    "path.simplify": True,
}
NAMES_END: Final = 0.56  # width of the corner with the legend, in parts of the plot
NAME_Y, ROW_Y, ROW_PX = 0.05, 0.075, 18  # the lowest name, and from one to the next
MOST_FALSE: Final = 8.0  # false positives per image at which a FROC curve usually ends
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A curve and its name; `index` fixes colour and dashes, the same in every plot."""

    name: str
    index: int
    x: Floats
    y: Floats


def line(name: str, *, index: int, points: Mapping[str, Sequence[Any]]) -> Line | None:
    """A curve by rising x, None without two known points. Raises ValueError for odd lengths."""
    x, y = (np.array([_nan(v) for v in points[key]], np.float64) for key in ("x", "y"))
    if x.shape != y.shape:
        raise ValueError("x and y differ in length")
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2:
        return None
    order = np.argsort(x[known], kind="stable")
    return Line(name, index, x[known][order], y[known][order])


def roc(lines: Sequence[Line], *, name: str, label: str) -> str:
    """Sensitivity over false positive rate."""
    with matplotlib.rc_context(RC):
        figure, axes = _named(lines, left=False)
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=1, zorder=0.9)
        _shares(axes, x="1 − specificity, %", y="sensitivity, %")
        return _svg(figure, name=name, label=label)


def pr(lines: Sequence[Line], *, name: str, label: str) -> str:
    """Positive predictive value over sensitivity."""
    with matplotlib.rc_context(RC):
        figure, axes = _named(lines, left=True)
        _shares(axes, x="sensitivity, %", y="positive predictive value, %")
        return _svg(figure, name=name, label=label)


def reliability(points: Mapping[str, Sequence[Any]], *, name: str, label: str) -> str:
    """Share right over stated probability, with the slices of each bin below."""
    stated, right, slices = (
        np.array([_nan(v) for v in points[key]], np.float64)
        for key in ("confidence", "accuracy", "n")
    )
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH_PX / 72, (HEIGHT_PX + 70) / 72))
        axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        figure.subplots_adjust(left=0.155, right=0.97, top=0.975, bottom=0.125, hspace=0.09)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHES[1])
        axes.text(
            0.40, 0.46, "calibrated", rotation=42, ha="center", va="center", color=MUTED,
            fontsize=SMALL_PX,
        )  # fmt: skip
        axes.plot(stated, right, color=CLASSES[0], linewidth=1.6, marker="o", markersize=5)
        _shares(axes, x="", y="observed accuracy, %")
        axes.tick_params(labelbottom=False)
        below.vlines(stated, 0, slices, color=CLASSES[0], linewidth=2.5)
        most = float(np.nanmax(slices)) if np.isfinite(slices).any() else 1.0
        below.set(ylim=(0, most * 1.08), yticks=[0, most], yticklabels=["0", _short(most)])
        below.set_xlabel("probability of the predicted class, %")
        below.set_ylabel("n")
        return _svg(figure, name=name, label=label)


def froc(curve: Line, *, name: str, label: str) -> str:
    """Lesions found over false positives per image."""
    with matplotlib.rc_context(RC):
        figure, axes = _axes()
        axes.plot([1, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHES[1])
        axes.text(1.12, 0.03, "1 per image", color=MUTED, fontsize=SMALL_PX)
        axes.plot(curve.x, curve.y, color=CLASSES[0], linewidth=1.8, drawstyle="steps-post")
        _shares(axes, x="false positives per image", y="detected lesions, %")
        end = min(MOST_FALSE, max(2.0, float(curve.x.max())))
        ticks = [tick for tick in (0, 1, 2, 4, 6, 8) if tick <= end]
        axes.set(xlim=(0, end), xticks=ticks, xticklabels=[str(tick) for tick in ticks])
        return _svg(figure, name=name, label=label)


def net_benefit(lines: Sequence[Line], *, threshold: float, name: str, label: str) -> str:
    """Net benefit over threshold probability, with a mark at the threshold of the test.

    Treating everybody falls far below 0, where nothing is of use, so the plot ends there.
    """
    most = max(float(one.y.max()) for one in lines)
    with matplotlib.rc_context(RC):
        figure, axes = _axes(14 + ROW_PX * len(lines))
        if 0 <= threshold <= 1:
            axes.axvline(threshold, color=MUTED, linewidth=1)
            side = "right" if threshold > 0.6 else "left"
            x = threshold - 0.02 if side == "right" else threshold + 0.02
            axes.text(
                x, 0.96, "threshold", ha=side, va="top", color=MUTED, fontsize=SMALL_PX,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        for row, one in enumerate(lines):
            axes.plot(one.x, one.y, linewidth=1.8, **_look(one))
            _legend_row(axes, one, at=(0.03, _below(row)))
        _shares(axes, x="threshold probability, %", y="net benefit")
        high = max(most, 1e-3) * 1.12
        ticks = MaxNLocator(5).tick_values(0, high)
        ticks = [float(tick) for tick in ticks if 0 <= tick <= high]
        axes.set(ylim=(-0.15 * high, high), yticks=ticks, yticklabels=[f"{t:g}" for t in ticks])
        return _svg(figure, name=name, label=label)


def _axes(below_px: int = 0) -> tuple[Figure, Axes]:
    """One plot, with room for a list of names below it."""
    height_px = HEIGHT_PX + below_px
    figure = Figure(figsize=(WIDTH_PX / 72, height_px / 72))
    axes = figure.subplots()
    top, bottom = 1 - 10 / height_px, (50 + below_px) / height_px
    figure.subplots_adjust(left=0.155, right=0.97, top=top, bottom=bottom)
    return figure, axes


def _shares(axes: Axes, *, x: str, y: str) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    names = [f"{100 * tick:.0f}" for tick in ticks]
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xticks=ticks, yticks=ticks)
    axes.set(xticklabels=names, yticklabels=names, xlabel=x, ylabel=y)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _named(lines: Sequence[Line], *, left: bool) -> tuple[Figure, Axes]:
    """Return the curves with a legend: in the corner below them, or under the plot where a curve
    runs through that corner.

    Nothing but the legend's samples leads to a name: a line or a dot on a curve would look like an
    operating point.
    """
    free = not any(_crosses(one, rows=len(lines), left=left) for one in lines)
    figure, axes = _axes(0 if free else 14 + ROW_PX * len(lines))
    x = 0.03 if left or not free else 1 - NAMES_END
    for row, one in enumerate(lines):
        axes.plot(one.x, one.y, linewidth=1.8, clip_on=False, **_look(one))
        y = NAME_Y + ROW_Y * (len(lines) - 1 - row) if free else _below(row)
        _legend_row(axes, one, at=(x, y))
    return figure, axes


def _below(row: int) -> float:
    """Return the place of a row of a legend under the plot, in parts of the height of the plot."""
    return -(62 + ROW_PX * row) / (HEIGHT_PX - 60)


def _crosses(one: Line, *, rows: int, left: bool) -> bool:
    x = np.linspace(0, NAMES_END, 50) if left else np.linspace(1 - NAMES_END, 1, 50)
    return bool((np.interp(x, one.x, one.y) < NAME_Y + ROW_Y * rows).any())


def _legend_row(axes: Axes, one: Line, *, at: tuple[float, float]) -> None:
    """Draw a piece of a curve's line and its name, in parts of the plot."""
    x, y = at
    place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "zorder": 3}
    axes.plot([x, x + 0.13], [y, y], linewidth=1.8, **place, **_look(one))
    axes.text(
        x + 0.16,
        y,
        one.name,
        va="center_baseline",
        fontsize=SMALL_PX,
        **place,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.2},  # over grid and diagonal
    )


def _look(one: Line) -> dict[str, Any]:
    return {"color": CLASSES[one.index % 6], "linestyle": DASHES[one.index % 6]}


def _svg(figure: Figure, *, name: str, label: str) -> str:
    """The figure as an element of the page: no size, no foreign names, no id that another has."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # a letter that DejaVu lacks is drawn by the browser
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index("</metadata>") + len("</metadata>") :]
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w.-]+)[\")]", body))
    body = re.sub(
        r' id="([\w.-]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        body,
    )
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    size = re.search(r'viewBox="([^"]*)"', text)
    assert size is not None
    body = re.sub(r"\s*\n\s*", " ", body)
    return f'<svg class="plot" viewBox="{size[1]}" role="img" aria-label="{escape(label)}">{body}'


def _nan(value: Any) -> float:
    found = number(value)
    return float("nan") if found is None else found


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:,.0f}"
