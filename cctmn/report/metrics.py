"""metrics.json of an evaluation, checked as far as a report needs it.

In: the folder of an evaluation, local or on S3. Out: Metrics. A file that is missing, broken or of
another format is the user's and one line; so is a section that is not as it should be, which is
found where it is read: see `part`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cctmn import store
from cctmn.errors import DataError
from cctmn.report.figures import Figure, figure

FORMAT: Final = 1
FILE: Final = "metrics.json"
AGAIN: Final = "run `cctmn evaluate` again"

T = TypeVar("T")


@dataclass(frozen=True)
class Metrics:
    """What was measured. `data` is the whole file; sections that are absent read as empty."""

    uri: str
    data: dict[str, Any]
    classes: tuple[str, ...]
    figures: dict[str, Figure]

    def section(self, name: str) -> Any:
        """A section of the file, {} where it is absent or null."""
        return self.data.get(name) or {}

    def below(self, prefix: str) -> list[Figure]:
        """The figures whose id starts with it, in the order of the file."""
        return [figure for name, figure in self.figures.items() if name.startswith(prefix)]

    def part(self, name: str, *, build: Callable[[], T]) -> T:
        """What `build` makes of a section; one line of DataError if the section is malformed."""
        try:
            return build()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{self.uri}: `{name}` is malformed ({error!r}); {AGAIN}") from error


def read(folder: str) -> Metrics:
    """The metrics of an evaluation folder."""
    uri = store.join(store.to_uri(folder), FILE)
    raw = store.read_optional(uri)
    if raw is None:
        raise DataError(f"{folder}: no {FILE} in this folder; run `cctmn evaluate` first")
    try:
        data = json.loads(raw)
    except ValueError:  # what is not UTF-8 is one too
        raise DataError(f"{uri}: no valid JSON; {AGAIN}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise DataError(f"{uri}: format {found!r}, this version reads {FORMAT}; {AGAIN}")
    metrics = Metrics(uri, data, (), {})
    return metrics.part("classes, figures, accounting", build=lambda: _checked(metrics))


def _checked(metrics: Metrics) -> Metrics:
    data = metrics.data
    classes = tuple(str(name) for name in data["classes"])
    if isinstance(data["classes"], str) or not isinstance(data["accounting"], dict):
        raise TypeError("classes: list of names, accounting: counts by name")
    figures = {name: figure(name, entry=entry) for name, entry in data["figures"].items()}
    return Metrics(metrics.uri, data, classes, figures)
