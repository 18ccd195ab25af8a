"""Whether the evaluated patients and slices are those that the model was fitted on.

The card keeps a record of the sets that its weights, its best epoch, its temperature and its rule
for patients came from. Every evaluation compares its labels with them, and says what it could not
compare: a number on slices that the model has seen says little.

Reads: the labels, and the records of the card.
Writes: a section of metrics.json, lines for the terminal, and warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cctmn.data.labels import Labels
from cctmn.data.set_record import Members, Shared, compare

# The sets that a card may record, and what each decided.
SETS: Final[Mapping[str, str]] = {
    "training": "the weights",
    "validation": "the best epoch",
    "calibration": "the temperature and the rule for patients",
}


@dataclass(frozen=True)
class Independence:
    """The comparison with each recorded set, what is said of it, and what a reader must know."""

    section: dict[str, Any]
    lines: list[str]
    warnings: list[str]


def members_of(labels: Labels) -> Members:
    """Return the patients and slices of labels, as records of sets hold them."""
    columns = labels.table.column_names
    column = next((c for c in ("uri", "name", "slice_id") if c in columns), None)
    names = labels.table[column].to_pylist() if column else labels.patient
    return Members.of(labels.patient, names)


def check(labels: Labels, records: Mapping[str, Any], *, needed: tuple[str, ...]) -> Independence:
    """Compare the labels with the recorded sets; `needed` are those that the model was fitted on.

    A set that is needed and has no record gives a line, since nobody checked it.
    """
    members = members_of(labels)
    section: dict[str, Any] = {}
    lines, warnings = [], []
    if missing := [name for name in needed if name not in records]:
        lines.append(
            f"independence of the sets of {_listed(missing)} was not checked: the model's card has "
            "no record of them"
        )
    for name in (name for name in SETS if name in records):
        shared = compare(records[name], members)
        section[name] = asdict(shared)
        lines.append(_line(name, shared))
        if shared.patients or shared.slices:
            warnings.append(
                f"{_counts(shared)} of this set are in the {name} set, which chose {SETS[name]}: "
                "the metrics here are not a test of it."
            )
    notes = [f"{line[0].upper()}{line[1:]}." for line in lines]
    return Independence({"sets": section, "notes": notes}, lines, warnings)


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _line(name: str, shared: Shared) -> str:
    recorded = f"{shared.recorded_patients:,} patients, {shared.recorded_slices:,} slices"
    sampled = "; a random sample of it was compared" if shared.is_sampled else ""
    seen = _counts(shared) if shared.patients or shared.slices else "no patient and no slice"
    return f"independence: {seen} of this set are in the {name} set ({recorded}{sampled})"


def _counts(shared: Shared) -> str:
    at_least = "at least " if shared.is_sampled else ""
    return f"{at_least}{shared.patients:,} patients and {shared.slices:,} slices"
