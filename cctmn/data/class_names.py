"""The class that a label means: by its name, by a synonym, or by the option --label-map.

Data sets spell the same class in many ways, and number their classes in different orders. A known
synonym is read, with a note. A bare number is refused, because a table does not say which class it
means, and a wrong guess turns every metric round without any sign of it.

Reads: labels as a table writes them, the classes of a model, and what the user says of labels.
Returns: indices into the classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cctmn.errors import ConfigError, DataError

# Labels to class names, as --label-map gives them. The keys are as `_plain` writes them.
LabelMap = Mapping[str, str]
NO_MAP: Final[LabelMap] = MappingProxyType({})
OPTION: Final = "--label-map"

# Names that mean one class for certain, as `_letters` writes them; the first is cctmn's own. NCP
# and CP are the prefixes of COVIDx-CT, pCT and nCT the folders of iCTCF. "Negative" and "positive"
# are not here: they may be the result of a test of anything.
_SYNONYMS: Final = (
    ("control", "controls", "normal", "healthy", "healthycontrol", "healthycontrols", "nct"),
    ("pneumonia", "cp", "cap", "commonpneumonia", "communityacquiredpneumonia"),
    (
        "covid",
        "covid19",
        "covidpneumonia",
        "covid19pneumonia",
        "sarscov2",
        "sarscov2pneumonia",
        "2019ncov",
        "ncp",
        "novelcoronaviruspneumonia",
        "pct",
    ),
)
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def parse_label_map(texts: Iterable[str]) -> dict[str, str]:
    """Return the map of texts such as `0=control,1=covid`.

    Raises ConfigError for a text without LABEL=CLASS, or a label that is given two classes.
    """
    label_map: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            label, equals, name = (word.strip() for word in part.rpartition("="))
            if not (equals and label and name):
                raise ConfigError(f"{OPTION} {text}: not LABEL=CLASS; write 0=control,1=covid")
            if label_map.setdefault(_plain(label), name) != name:
                raise ConfigError(f"{OPTION} {text}: a label has two classes; keep one of them")
    return label_map


def check_label_map(label_map: LabelMap, *, classes: tuple[str, ...]) -> None:
    """Raise ConfigError if the map names a class that is not one of these."""
    for label, name in label_map.items():
        if find_class(name, classes) is None:
            raise ConfigError(
                f"{OPTION} {label}={name}: not a class of the model; choose from "
                f"{', '.join(classes)}"
            )


def check_no_numbers(label_map: LabelMap, *, split: str) -> None:
    """Raise ConfigError if the map gives numbers a meaning that a split file gives them already."""
    if any(_NUMBER.fullmatch(label) for label in label_map):
        raise ConfigError(
            f"{OPTION} maps numbers, but in a split file 0 is control, 1 pneumonia and 2 covid; "
            "map these names, or give a table",
            split,
        )


def canonical(label: str) -> str:
    """Return cctmn's name of a class of COVIDx-CT for any of its synonyms; others in lower case."""
    letters = _letters(label)
    return next((names[0] for names in _SYNONYMS if letters in names), label.lower())


def find_class(label: str, classes: tuple[str, ...], *, label_map: LabelMap = NO_MAP) -> int | None:
    """Return the index of the class that a label means, or None if that is not certain.

    The map comes first, then the name of a class, then a synonym.
    """
    label = label_map.get(_plain(label), label)
    group = next((names for names in _SYNONYMS if _letters(label) in names), ())
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == label,
        lambda name: _plain(name) == _plain(label),
        lambda name: _letters(name) == _letters(label) != "",
        lambda name: _letters(name) in group,
    )
    for test in tests:
        match [i for i, name in enumerate(classes) if test(name)]:
            case [index]:
                return index
            case [_, _, *_]:
                return None
    return None


def class_index(
    label: str, *, where: str, classes: tuple[str, ...], label_map: LabelMap = NO_MAP
) -> int:
    """Return the index of the class that a label means.

    Raises DataError if it is not certain which one, with the label apart from the text, because a
    column of the wrong name may hold names of patients.
    """
    index = find_class(label, classes, label_map=label_map)
    if index is not None:
        return index
    if not label:
        raise DataError("no label; fill it in, or leave the slice out", where)
    if _NUMBER.fullmatch(label):
        raise DataError(
            "a label is a number, and nothing says which class it means; say it with "
            f"{OPTION} 0=CLASS,1=CLASS, where the classes are {', '.join(classes)}",
            where,
            label,
        )
    raise DataError(
        f"a label is none of the classes {', '.join(classes)}; say which one it means with "
        f"{OPTION} LABEL=CLASS, or leave the slice out",
        where,
        label,
    )


def class_indices(
    labels: Sequence[str],
    *,
    classes: tuple[str, ...],
    label_map: LabelMap = NO_MAP,
    where: Callable[[int], str],
) -> tuple[list[int], list[str]]:
    """Return the index of each label's class, and a note on the synonyms among the labels.

    `where` gives the place of a row for errors. Raises DataError as `class_index` does.
    """
    check_label_map(label_map, classes=classes)
    known: dict[str, int] = {}
    for row, label in enumerate(labels):
        if label not in known:
            known[label] = class_index(
                label, where=where(row), classes=classes, label_map=label_map
            )
    return [known[label] for label in labels], synonym_notes(
        known, classes=classes, label_map=label_map
    )


def synonym_notes(
    known: Mapping[str, int], *, classes: tuple[str, ...], label_map: LabelMap = NO_MAP
) -> list[str]:
    """Return a note on the labels that are synonyms of their class: one, or none."""
    synonyms = [
        f"{label} as {classes[index]}"
        for label, index in known.items()
        if _plain(label) not in label_map and _plain(label) != _plain(classes[index])
    ]
    return [f"Labels read as synonyms of classes: {', '.join(synonyms)}."] if synonyms else []


def _plain(label: str) -> str:
    """Return a label without case and outer blanks; 2.0, as pandas writes 2, becomes 2."""
    label = unicodedata.normalize("NFC", label.strip()).casefold()
    whole, _, fraction = label.partition(".")
    return whole if _NUMBER.fullmatch(label) and not fraction.strip("0") else label


def _letters(label: str) -> str:
    """Return a label without case, blanks, underscores, hyphens and dashes."""
    return re.sub(r"[\s_\-\u2010-\u2015]+", "", _plain(label))
