"""Metrics as text: value, interval, and the anchor of the row in the appendix that holds both.

Every number on the page goes through here, so that each can be a link to the row that holds it in
full.
"""

from __future__ import annotations

import re
from typing import Final

from cctmn.metrics.metric import Metric

DASH: Final = "–"  # stands for a metric that is not defined
# Losses are not proportions, so they are not shown in per cent.
LOSSES: Final = ("calibration.brier", "calibration.nll")
_SIGNED: Final = "difference."
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def value_text(metric: Metric, digits: int = 1) -> str:
    """Return the value: per cent without the sign, or a loss with three decimals."""
    return _number_text(metric, metric.value, digits=digits)


def interval_text(metric: Metric, digits: int = 1) -> str:
    """Return `low–high`, "" for a metric without an interval."""
    return _range_text(metric, metric.low, metric.high, digits=digits)


def naive_text(metric: Metric, digits: int = 1) -> str:
    """Return the interval that treats slices as independent, "" for a metric without one."""
    return _range_text(metric, metric.naive_low, metric.naive_high, digits=digits)


def is_proportion(metric: Metric) -> bool:
    """Return whether the metric is shown in per cent."""
    return metric.id not in LOSSES


def times_narrower(metric: Metric) -> float | None:
    """Return the width of the interval over patients divided by that of the naive interval."""
    if metric.low is None or metric.high is None:
        return None
    if metric.naive_low is None or metric.naive_high is None:
        return None
    naive_width = metric.naive_high - metric.naive_low
    return (metric.high - metric.low) / naive_width if naive_width > 0 else None


def anchor(metric_id: str) -> str:
    """Return the id of a metric's row in the appendix, unique and safe in HTML and in links."""
    return "m-" + _UNSAFE.sub(lambda match: f"~{ord(match[0]):x}", metric_id)


def count_text(value: int | None) -> str:
    """Return a count with separators of thousands, or a dash."""
    return DASH if value is None else f"{value:,}"


def _range_text(metric: Metric, low: float | None, high: float | None, *, digits: int) -> str:
    if low is None or high is None:
        return ""
    joiner = " to " if metric.id.startswith(_SIGNED) else DASH
    ends = (_number_text(metric, end, digits=digits) for end in (low, high))
    return joiner.join(ends)


def _number_text(metric: Metric, number: float | None, *, digits: int) -> str:
    if number is None:
        return DASH
    text = f"{100 * number:.{digits}f}" if is_proportion(metric) else f"{number:.3f}"
    if not metric.id.startswith(_SIGNED):
        return text
    if not float(text):
        text = text.removeprefix("-")  # no minus zero
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"
