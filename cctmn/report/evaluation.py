"""metrics.json of an evaluation, checked as far as a report needs it.

A file that is missing, damaged or of another format raises one line for the user. A malformed
section raises one line too, when it is read; see `Evaluation.build`.

Reads: metrics.json in a folder, local or on S3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cctmn import store
from cctmn.errors import CctmnError, DataError
from cctmn.metrics import document
from cctmn.metrics.metric import Metric

RERUN: Final = "run `cctmn evaluate` again"

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its metrics.json describes it."""

    uri: str
    content: dict[str, Any]  # the whole file, in the current format
    classes: tuple[str, ...]
    metrics: dict[str, Metric]

    def section(self, name: str) -> Any:
        """Return a section of the file, {} if it is absent or null."""
        return self.content.get(name) or {}

    def metrics_of(self, prefix: str) -> list[Metric]:
        """Return the metrics whose id starts with the prefix, in the order of the file."""
        return [metric for id_, metric in self.metrics.items() if id_.startswith(prefix)]

    def build(self, sections: str, *, make: Callable[[], T]) -> T:
        """Return `make()`, which reads these sections. Raises DataError if one is malformed."""
        try:
            return make()
        except CctmnError:
            raise
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"`{sections}` is malformed ({error!r}); {RERUN}", self.uri) from error


def is_evaluation(folder: str) -> bool:
    """Return whether the folder holds an evaluation, of any format."""
    return store.look_up(store.join(store.to_uri(folder), document.FILE)) is not None


def read(folder: str) -> Evaluation:
    """Read the evaluation in a folder. Raises DataError if there is none, or it cannot be read."""
    uri = store.join(store.to_uri(folder), document.FILE)
    data = store.read_optional(uri)
    if data is None:
        raise DataError(f"no {document.FILE} in this folder; run `cctmn evaluate` first", folder)
    try:
        content = document.parse(data)
    except ValueError as error:
        raise DataError(f"{error}; {RERUN}", uri) from None
    raw = Evaluation(uri, content, (), {})
    return raw.build("classes, metrics, accounting", make=lambda: _checked(raw))


def _checked(raw: Evaluation) -> Evaluation:
    content = raw.content
    classes = tuple(str(name) for name in content["classes"])
    if isinstance(content["classes"], str) or not isinstance(content["accounting"], dict):
        raise TypeError("classes must be a list of names, accounting a table of counts")
    metrics = {id_: Metric.from_json(id_, entry=entry) for id_, entry in content["metrics"].items()}
    return Evaluation(raw.uri, content, classes, metrics)
