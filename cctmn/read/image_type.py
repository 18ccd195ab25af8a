"""What an image is, by the words of its DICOM header: a slice, a localizer, or derived from slices.

Image Type and its companions are free in practice: scanners write "CT_SOM5 MIP", "MAX_IP",
"SCREEN SAVE" or "MIP-THICK". Their values are therefore compared word by word, in any case, and
every word also together with the next one, so that MAX_IP and MAX IP are one word.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

from pydicom.dataset import Dataset

from cctmn.acquisition import OTHER
from cctmn.errors import SliceError
from cctmn.read.header import values_of

# PS3.3 C.8.16.1, C.8.16.3 and C.8.2.1, and what scanners write there. Words without separators.
LOCALIZER_WORDS: Final = frozenset(
    "LOCALIZER LOCALISER SCOUT TOPOGRAM TOPO SURVIEW SCANOGRAM SCANO".split()  # noqa: SIM905
)
# Not a slice in HU of a body as it is: projections, renderings, maps, curved planes, pages.
MAP_WORDS: Final = frozenset(
    # Projections and renderings
    "MIP MAXIP MINIP MAXIMUM MINIMUM MAXIMUMIP MINIMUMIP PROJECTION VOLREN VRT SSD "  # noqa: SIM905
    "VOLUMERENDER VOLUMERENDERING SURFACERENDER RENDERED CURVEDMPR CPR CURVED "
    # Maps: perfusion, dual energy, differences
    "PERFUSION CBF CBV RCBF RCBV MTT TTP TMAX PBV PERMEABILITY SUBTRACTION DIFFERENCE DIVISION "
    "MULTIPLICATION ADDITION MASKED STDDEVIATION STATISTICS MATDECOMP MATFRACTIONAL MATMODIFIED "
    "MATREMOVED MATVALUEBASED EFFATOMICNUM EFFATOMICNUMBER ZEFF ELECTRONDENSITY IODINE ATTENUATION "
    "CALCIUMSCORE CASCORE FUSION FUSED "
    # Pages
    "DOSE DOSEINFO DOSEREPORT PROTOCOL PROT PATIENTPROTOCOL SCREENSAVE SCREENSHOT SCREENCAPTURE "
    "REPORT GRAPH".split()
)
# Words that say nothing against a slice.
_PLAIN_WORDS: Final = frozenset(
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL NONE VOLUME RESAMPLED OTHER CT CTSOM "  # noqa: SIM905
    "SPI SEQ HELIX HELICAL SPIRAL SEQUENCE STANDARD MONO MONOE".split()
)
_KNOWN_WORDS: Final = LOCALIZER_WORDS | MAP_WORDS | _PLAIN_WORDS | {"MPR", "REFORMATTED", "AVERAGE"}
_MOST_VALUES: Final = 8  # PS3.3 defines four; scanners write up to six
_SEPARATORS: Final = re.compile(r"[^A-Z0-9]+")
_NUMBERED: Final = re.compile(r"(?:SOM|MONOE?|ED|KEV|KV|E)?\d{1,3}(?:KEV|KV)?")


def words_of(values: list[object]) -> list[str]:
    """Return the words of the values, in upper case."""
    text = " ".join(str(value) for value in values).upper()
    return [word for word in _SEPARATORS.split(text) if word]


def check_words(values: list[object]) -> frozenset[str]:
    """Return the flag `derived` if a derived image has words that are not known.

    Raises SliceError for a localizer or a derived map.
    """
    words = words_of(values)
    known = {*words, *(first + second for first, second in itertools.pairwise(words))}
    if known & LOCALIZER_WORDS:
        raise SliceError("localizer")
    if known & MAP_WORDS:
        raise SliceError("derived_map")
    unknown = [w for w in words if w not in _PLAIN_WORDS and not _NUMBERED.fullmatch(w)]
    return frozenset({"derived"}) if "DERIVED" in words and unknown else frozenset()


def check_object(dataset: Dataset) -> frozenset[str]:
    """Check the words of a whole object."""
    return check_words(values_of(dataset, "ImageType") + _technique(dataset))


def check_frame(frame_type: Dataset, dataset: Dataset) -> frozenset[str]:
    """Check the words of one frame: its own frame type, else those of the object."""
    own = values_of(frame_type, "FrameType") + _technique(frame_type)
    return check_words(own or values_of(dataset, "ImageType") + _technique(dataset))


def known_words(frame_type: Dataset, dataset: Dataset) -> str | None:
    """Return the known words of an image type, its values joined by backslashes as in a header.

    A value without a known word is OTHER. None if there is no image type.
    """
    values = values_of(frame_type, "FrameType") or values_of(dataset, "ImageType")
    names = [
        " ".join(w for w in words_of([value]) if w in _KNOWN_WORDS or _NUMBERED.fullmatch(w))
        for value in values[:_MOST_VALUES]
    ]
    return "\\".join(name or OTHER for name in names) or None


def _technique(dataset: Dataset) -> list[object]:
    """Return how the pixels were computed from a volume (PS3.3 C.8.16.2.1.4), as values."""
    technique = values_of(dataset, "VolumeBasedCalculationTechnique")
    return [value for value in technique if str(value).strip().upper() != "NONE"]
