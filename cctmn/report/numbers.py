"""Numbers as text: a metric with its interval and the anchor of its row, counts, probabilities.

Every metric on the page goes through here, so that each can be a link to the row that holds it in
full.
"""

from __future__ import annotations

import math
import re
from typing import Final

from cctmn.metrics.bootstrap import TOO_FEW
from cctmn.metrics.metric import Metric
from cctmn.metrics.proportions import FEW_PATIENTS

DASH: Final = "–"  # stands for a metric that is not defined
# Losses and coefficients are not proportions, so they are not shown in per cent.
LOSSES: Final = ("calibration.brier", "calibration.nll")
_COEFFICIENT: Final = re.compile(r"(patient_)?calibration\.(intercept|slope)\.")
# Digits after the point beyond which the ends of an interval are called equal.
_MOST_DIGITS: Final = 4
SHORT: Final = 8  # digits of a keyed pseudonym that a table shows
_SIGNED: Final = "difference."
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def value_text(metric: Metric, digits: int = 1) -> str:
    """Return the value: per cent without the sign, or a loss with three decimals."""
    return _number_text(metric, metric.value, digits=digits)


def interval_text(metric: Metric, digits: int = 1) -> str:
    """Return `low–high`, why there is none, or "" for a metric that is not defined."""
    if metric.low is None and metric.method == TOO_FEW:
        return "too few patients"
    return _range_text(metric, metric.low, metric.high, digits=digits)


def naive_text(metric: Metric, digits: int = 1) -> str:
    """Return the interval that treats slices as independent, "" for a metric without one."""
    return _range_text(metric, metric.naive_low, metric.naive_high, digits=digits)


def few_text(metric: Metric) -> str:
    """Return the number of patients that the interval rests on, "" if they are not few."""
    patients = metric.fewest_patients
    if patients is None or metric.value is None or patients >= FEW_PATIENTS:
        return ""
    return f"{patients} patient{'' if patients == 1 else 's'}"


def is_proportion(metric: Metric) -> bool:
    """Return whether the metric is shown in per cent."""
    return metric.id not in LOSSES and not _COEFFICIENT.match(metric.id)


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


def decimal_text(value: float | None, digits: int = 1) -> str:
    """Return a number with separators of thousands, or a dash."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value + 0.0:,.{digits}f}".replace("-", "−")


def length_text(value_px: float) -> str:
    """Return a length of a drawing, without decimals if it is whole."""
    return f"{value_px:.1f}".removesuffix(".0")


def percent_text(probability: float | None) -> str:
    """Return a probability in per cent; only 0 and 1 themselves are shown as 0 and 100."""
    if probability is None or not math.isfinite(probability):
        return DASH
    text = f"{100 * probability:.1f}"
    if text == "100.0" and probability < 1:
        return ">99.9"
    return "<0.1" if text == "0.0" and probability > 0 else text


def short_key(key: str | None) -> str:
    """Return the beginning of a keyed pseudonym, which is enough to tell studies apart by eye."""
    return DASH if not key else key if len(key) <= SHORT else f"{key[:SHORT]}…"


def _range_text(metric: Metric, low: float | None, high: float | None, *, digits: int) -> str:
    """Return both ends, with as many more digits as it takes to tell them apart."""
    if low is None or high is None:
        return ""
    has_sign = metric.id.startswith(_SIGNED) or _COEFFICIENT.match(metric.id)
    joiner = " to " if has_sign else DASH
    for more in range(max(1, _MOST_DIGITS - digits + 1)):
        ends = [_number_text(metric, end, digits=digits + more) for end in (low, high)]
        if ends[0] != ends[1]:
            return joiner.join(ends)
    return ""


def _number_text(metric: Metric, number: float | None, *, digits: int) -> str:
    if number is None:
        return DASH
    text = f"{100 * number:.{digits}f}" if is_proportion(metric) else f"{number:.3f}"
    if is_proportion(metric) and float(text) == 100 and number < 1:
        text = f">{100 - 10**-digits:.{digits}f}"  # only a metric without an error reads 100
    if not metric.id.startswith(_SIGNED):
        return text.replace("-", "−")
    if not float(text.removeprefix(">")):
        text = text.removeprefix("-")  # no minus zero
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"
