"""Ids of patients, compared as a person would compare them.

The same id reaches two tables through different systems. One may write an umlaut as one character
and the other as two (Unicode's forms NFC and NFD), and one may use capitals.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def nfc(text: str) -> str:
    """Return the text in Unicode's composed form, in which an umlaut is one character."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Return a text that is the same for all spellings in case and Unicode form."""
    # Folding the case may take composed characters apart again.
    return nfc(nfc(text).casefold())


def spelling_notes(patients: Sequence[str]) -> list[str]:
    """Return notes on ids that differ in Unicode form or in case alone; they name nobody."""
    written = set(patients) - {""}
    composed = {nfc(patient) for patient in written}
    people = {folded(patient) for patient in composed}
    notes = []
    if forms := len(written) - len(composed):
        notes.append(
            f"{forms:,} ids of patients differ from another in their Unicode form alone; each "
            "counts as the same patient."
        )
    if cases := len(composed) - len(people):
        notes.append(
            f"{cases:,} ids of patients differ from another in case alone; each counts as a "
            "patient of its own, so if they are the same, the intervals are too narrow."
        )
    return notes
