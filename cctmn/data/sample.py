"""A training list drawn at random from labelled slices, so many per class, over all its patients.

The paper trained on 3,000 slices of COVIDx-CT: 1,000 per class, randomised across patients.

Reads: a split file of COVIDx-CT, or a table of labels, local or on S3.
Returns: the chosen lines or rows, as they were written.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.class_names import canonical
from cctmn.data.covidx import read_split
from cctmn.data.files import read_text
from cctmn.data.labels import to_bytes
from cctmn.data.patients import folded
from cctmn.errors import DataError
from cctmn.user_table import UserTable, is_table, line_of, read_user_table

LIST_SUFFIX: Final = ".txt"


@dataclass(frozen=True)
class DrawnClass:
    """What was drawn of one class."""

    name: str
    slices: int
    patients: int  # a slice of unknown patient counts as one


@dataclass(frozen=True, eq=False)
class DrawnList:
    """A training list that was drawn, in the order of the whole list."""

    classes: list[DrawnClass]
    unknown: int  # drawn slices of unknown patient
    lines: list[str] | None  # of a split file
    table: pa.Table | None  # of a table

    def content(self, *, parquet: bool = False) -> bytes:
        """Return the list in the format of the whole list: text lines, or a table."""
        if self.lines is not None:
            return ("\n".join(self.lines) + "\n").encode()
        return to_bytes(self.table, parquet=parquet)


class _Slice(NamedTuple):
    """A slice of the whole list."""

    name: str
    label: str  # a class, by cctmn's name where it has one
    patient: str  # "" if unknown

    @property
    def person(self) -> tuple[str, str]:
        """The patient, or the slice itself if its patient is unknown."""
        return ("patient", folded(self.patient)) if self.patient else ("slice", self.name)


def draw_list(place: str, *, per_class: int, seed: int) -> DrawnList:
    """Draw `per_class` slices of every class of a split file or table of labels.

    Raises ObjectError if it cannot be read, and DataError if it is neither, if a slice is listed
    twice, or if a class has fewer slices.
    """
    if place.lower().endswith(LIST_SUFFIX):
        slices = [
            _Slice(line.key, COVIDX_CLASSES[line.label], line.patient)
            for line in read_split(place, classes=COVIDX_CLASSES)
        ]
        # A line that is not empty gives one slice, or the file is refused.
        lines = [line for line in read_text(place).splitlines() if line.strip()]
        table = None
    elif is_table(place):
        table = read_user_table(place, hint="give a table of labels")
        slices, lines = _of_table(table), None
    else:
        raise DataError(
            "not a list of labels; give a .csv or .parquet, or a .txt split of COVIDx-CT", place
        )
    rows = draw_rows(slices, per_class=per_class, seed=seed, where=place)
    drawn = [slices[row] for row in rows]
    people = {label: {s.person for s in drawn if s.label == label} for label in _labels(drawn)}
    return DrawnList(
        classes=[
            DrawnClass(label, sum(s.label == label for s in drawn), len(of_class))
            for label, of_class in people.items()
        ],
        unknown=sum(not s.patient for s in drawn),
        lines=None if lines is None else [lines[row] for row in rows],
        table=None if table is None else table.table.take(pa.array(rows, pa.int64())),
    )


def _of_table(given: UserTable) -> list[_Slice]:
    names, labels = given.slices(), given.column("label")
    has_patient = "patient" in given.table.column_names
    patients = given.column("patient") if has_patient else [""] * len(names)
    seen: set[str] = set()
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        where = f"{given.place} line {line_of(row)}"
        if not label:
            raise DataError("no label; fill it in, or leave the slice out", where)
        if name in seen:
            raise DataError("a slice is listed before; keep one line per slice", where, name)
        seen.add(name)
    return [
        _Slice(name, canonical(label), patient)
        for name, label, patient in zip(names, labels, patients, strict=True)
    ]


def draw_rows(slices: Sequence[_Slice], *, per_class: int, seed: int, where: str) -> list[int]:
    """Return the rows of `per_class` slices of each class, in order.

    The patients of a class are shuffled, and so are the slices of each. The first slice of every
    patient is taken, then the second of every patient that has one, and so on: a patient with many
    slices gives no more than another, as long as the others have any. A slice of unknown patient is
    a patient of its own. Raises DataError if a class has fewer slices.
    """
    drawn: list[int] = []
    for label in _labels(slices):
        of_people: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, one in enumerate(slices):
            if one.label == label:
                of_people[one.person].append(row)
        count = sum(map(len, of_people.values()))
        if count < per_class:
            # A column of another content may hold names, which no log shows.
            known = label in COVIDX_CLASSES
            raise DataError(
                f"{f'the class {label}' if known else 'a class'} has {count:,} slices, fewer than "
                f"{per_class:,}; lower --per-class, or add slices of this class",
                where,
                "" if known else label,
            )
        # By hashes and not by a generator, whose stream may change with numpy.
        people = sorted(of_people, key=lambda person: _hash(seed, *person))
        turns: list[tuple[int, int, int]] = []
        for position, person in enumerate(people):
            own = sorted(of_people[person], key=lambda row: _hash(seed, "slice", slices[row].name))
            turns += [(turn, position, row) for turn, row in enumerate(own)]
        drawn += [row for _, _, row in sorted(turns)[:per_class]]
    return sorted(drawn)


def _labels(slices: Sequence[_Slice]) -> list[str]:
    """Return the classes of the slices: those of COVIDx-CT in its order, then others."""
    known = {name: number for number, name in enumerate(COVIDX_CLASSES)}
    return sorted(
        {one.label for one in slices}, key=lambda name: (known.get(name, len(known)), name)
    )


def _hash(*parts: object) -> bytes:
    # A file name on disk need not be UTF-8.
    return hashlib.sha256("|".join(map(str, parts)).encode(errors="surrogateescape")).digest()
