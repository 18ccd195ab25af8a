"""Slice names of the public data sets, and the class, patient and scan that each contains.

COVIDx-CT v2 and v3 collect slices of seven data sets, which all name their slices differently. The
author's lists have names of their own for the slices of COVIDx-CT v1 and of iCTCF: 0_1728_1013_0023
is Normal_1728_1013_0023, and 0_nCT7705 is nCT7705. A slice has one key under all its names.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.class_names import canonical
from cctmn.data.files import stem

# CNCB, from which all of v1 comes.
_CNCB: Final = re.compile(
    r"(?P<label>\d|normal|cp|ncp)_(?P<patient>[^_]+)_(?P<scan>[^_]+)_(?P<slice>[^_]+)",
    re.IGNORECASE,
)
# iCTCF as the author's lists name it, and as it is published. It says nothing of patients.
_ICTCF: Final = re.compile(r"(?:(?P<digit>\d)_)?(?P<folder>[np]CT)(?P<slice>\d+)", re.IGNORECASE)
# The patients are spelled as in metadata.csv of COVIDx-CT v3. The names contain no certain class.
_OTHERS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<patient>COVIDCTMD-(P|cap|normal)\d+)-IM\d+",
        r"(?P<patient>LIDC-IDRI-\d+)-(?P<scan>[\d.]+)-\d+",
        r"(?P<patient>volume-covid19-A-\d+(_\d+)?)_ct-\d+",
        # COVID-CTset
        r"[a-z0-9]+_(?P<patient>patient\d+)_SR_(?P<scan>\d+)_IM\d+",
        r"(?P<patient>coronacases_\d+)-\d+",
        r"(?P<patient>radiopaedia_\d+_\d+)_(?P<scan>\d+)-\d+",
    )
)


class SliceName(NamedTuple):
    """The parts of a name; a part that the name does not contain is empty."""

    label: str
    patient: str
    scan: str
    key: str
    # a second class, which contradicts the first
    other_label: str = ""


def parse_name(name: str) -> SliceName | None:
    """Return the parts of a name of a public data set; None for any other name."""
    text = stem(name)
    if match := _CNCB.fullmatch(text):
        label = of_split(match["label"])
        patient, scan = match["patient"], match["scan"]
        # The patient numbers of CNCB are unique over its classes, so the number alone identifies
        # the patient. Should another set use a number twice, its splits are refused and not mixed.
        return SliceName(label, patient, scan, f"{label}_{patient}_{scan}_{match['slice']}")
    if match := _ICTCF.fullmatch(text):
        folder = canonical(match["folder"])
        label = folder if match["digit"] is None else of_split(match["digit"])
        key = f"ictcf_{folder}_{match['slice']}"
        return SliceName(label, "", "", key, "" if label == folder else folder)
    for pattern in _OTHERS:
        if match := pattern.fullmatch(text):
            return SliceName("", match["patient"], match.groupdict().get("scan", ""), text)
    return None


def of_split(label: str) -> str:
    """Return cctmn's name of a class that a split file gives by digit or prefix."""
    return COVIDX_CLASSES[int(label)] if label in ("0", "1", "2") else canonical(label)
