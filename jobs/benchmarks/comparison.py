"""A comparison of two things that were measured in turn, and the table of all of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """One line: a figure of ours and of theirs from one run; less is better."""

    name: str
    ours: float
    theirs: float
    target: float  # smallest ratio that is wanted
    spread: float = 0.0  # of ours: interquartile range / median
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """How many times less ours is; of times, how many times faster."""
        return self.theirs / self.ours

    @property
    def ok(self) -> bool:
        """Whether the target is reached."""
        return self.ratio >= self.target

    def as_json(self) -> dict[str, Any]:
        """The fields and what follows from them, with three digits."""
        numbers = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratio}
        numbers |= {"spread": self.spread, "target": self.target}
        rounded = {name: float(f"{value:.3g}") for name, value in numbers.items()}
        return {"name": self.name, "unit": self.unit, **rounded, "ok": self.ok}


def of_samples(
    name: str, ours: Sequence[float], theirs: Sequence[float], *, target: float, unit: str = "s"
) -> Comparison:
    """Compare the medians of two samples of two values at least."""
    low, middle, high = statistics.quantiles(ours, n=4)
    spread = (high - low) / middle
    return Comparison(name, middle, statistics.median(theirs), target, spread, unit)


def show(lines: Iterable[Comparison], *, as_json: bool) -> None:
    """Print a table, each line as soon as it is measured, or JSON with the key `lines`."""
    if as_json:
        print(json.dumps({"lines": [line.as_json() for line in lines]}))
        return
    print(f"{'':56} {'ours':>9} {'theirs':>9} {'unit':7} {'ratio':>6} {'spread':>6} {'target':>6}")
    for line in lines:
        numbers = f"{line.ours:9.3g} {line.theirs:9.3g} {line.unit:7} {line.ratio:6.2f}"
        numbers += f" {100 * line.spread:4.0f} % {line.target:6.2f}"
        print(f"{line.name:56} {numbers}  {'ok' if line.ok else 'below target'}", flush=True)
