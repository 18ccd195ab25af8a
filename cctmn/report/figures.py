"""Figures as the page shows them: value, interval, and the row of the appendix that they come from.

In: entries of metrics.json. Out: Figure with texts and an anchor. Whatever is shown goes through
here, so that every number on the page can be a link to the row that holds it in full.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

DASH: Final = "–"  # what stands where a figure is not defined
RAW: Final = ("brier", "nll")  # losses, no shares: shown as they are, not in per cent
SIGNED: Final = "difference."
UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Figure:
    """One entry of `figures`."""

    id: str
    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    naive_low: float | None = None
    naive_high: float | None = None
    n: int | None = None
    patients: int | None = None
    method: str = ""

    @property
    def anchor(self) -> str:
        """Id of the appendix row; the figure's own id wherever that is a valid one."""
        return anchor(self.id)

    @property
    def is_share(self) -> bool:
        """Whether it is shown in per cent."""
        return not any(part in RAW for part in self.id.split("."))

    def text(self, digits: int = 1) -> str:
        """The value: per cent without the sign, or a loss with three decimals."""
        return self._show(self.value, digits=digits)

    def interval(self, digits: int = 1) -> str:
        """`low–high`, "" where there is none."""
        return self._range((self.low, self.high), digits=digits)

    def naive(self, digits: int = 1) -> str:
        """The interval that takes slices for independent, "" where there is none."""
        return self._range((self.naive_low, self.naive_high), digits=digits)

    @property
    def times_narrower(self) -> float | None:
        """How often the naive interval fits into the one over patients."""
        if self.low is None or self.high is None:
            return None
        if self.naive_low is None or self.naive_high is None or self.naive_high <= self.naive_low:
            return None
        return (self.high - self.low) / (self.naive_high - self.naive_low)

    def _range(self, ends: tuple[float | None, float | None], *, digits: int) -> str:
        low, high = ends
        if low is None or high is None:
            return ""
        joiner = " to " if self.id.startswith(SIGNED) else DASH
        return f"{self._show(low, digits=digits)}{joiner}{self._show(high, digits=digits)}"

    def _show(self, number: float | None, *, digits: int) -> str:
        if number is None:
            return DASH
        text = f"{100 * number:.{digits}f}" if self.is_share else f"{number:.3f}"
        if not self.id.startswith(SIGNED):
            return text
        text = text.removeprefix("-") if not float(text) else text  # no minus zero
        return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def anchor(name: str) -> str:
    """`m-<name>` as an id that HTML and a link's fragment take unchanged, one for each name."""
    return "m-" + UNSAFE.sub(lambda found: f"~{ord(found[0]):x}", name)


def figure(name: str, *, entry: Mapping[str, Any]) -> Figure:
    """An entry of metrics.json; what is not finite is not defined."""
    numbers = ("value", "low", "high", "naive_low", "naive_high")
    return Figure(
        id=name,
        what=str(entry.get("what") or name),
        n=whole(entry.get("n")),
        patients=whole(entry.get("patients")),
        method=str(entry.get("method") or ""),
        **{key: number(entry.get(key)) for key in numbers},
    )


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if value is None:
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A count, or None."""
    return None if value is None else int(value)


def count(value: int | None) -> str:
    """A count with its thousands apart."""
    return DASH if value is None else f"{value:,}"
