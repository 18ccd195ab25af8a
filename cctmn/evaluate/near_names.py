"""Labels whose names differ from those of their slices by spelling alone.

Systems write the same file name in capitals or not, an umlaut as one or as two characters, and the
author's lists put a class digit before a name. Such a label is joined where its slice is certain:
no other label and no other slice has that spelling.

Reads: the names in labels and in the inventory.
Returns: the names that belong together, and the reason why others do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from cctmn.data.patients import folded
from cctmn.data.slice_names import parse_name


def same_slices(wanted: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Return the known name of each wanted name that differs from it by spelling alone.

    A spelling that several names share is left out.
    """
    left, there = _by(_spelling, wanted), _by(_spelling, known)
    return {
        names[0]: there[spelling][0]
        for spelling, names in left.items()
        if len(names) == 1 and len(there.get(spelling, ())) == 1
    }


def joined_note(count: int) -> str:
    """Return the note on labels that were joined so."""
    return (
        f"{count:,} labels were joined with slices whose names differ in case, Unicode form or "
        "the name of the class alone."
    )


def hint(wanted: Sequence[str], known: Collection[str], *, key: str) -> str:
    """Return how the names of labels differ from those of slices, "" if they are not alike."""
    folders = "write / between folders" if key == "name" else "use --key name, or another --root"
    for text, spelling in (
        ("several names differ in case or Unicode form alone; correct them", _spelling),
        (f"the names differ in their folders alone; {folders}", _base),
        ("the names differ in their suffix alone; write the names of the scored files", _stem),
    ):
        if _by(spelling, wanted).keys() & _by(spelling, known).keys():
            return text
    return ""


def _by(spelling: Callable[[str], str], names: Collection[str]) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[spelling(name)].append(name)
    return groups


def _spelling(name: str) -> str:
    # With --key uri a folder belongs to the name, and parse_name would ignore it.
    named = None if "/" in name else parse_name(name)
    return named.key if named else folded(name)


def _base(name: str) -> str:
    """Return the name without folders, those of Windows too."""
    return folded(name.replace("\\", "/").rpartition("/")[2])


def _stem(name: str) -> str:
    return _base(name).rpartition(".")[0] or _base(name)
