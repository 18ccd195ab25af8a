"""How a slice was acquired and reconstructed, in words that cannot name a patient.

Manufacturer, model, kernel and image type are free text in a DICOM header, and people write names
and dates there. Only words of these lists are kept, in upper case. Any other text is `OTHER`.

Sources of the words: PS3.3 C.8.2.1 and C.8.16.1 for the image type; for the rest the conformance
statements of the manufacturers and the headers of public collections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

OTHER: Final = "OTHER"


@dataclass(frozen=True)
class Acquisition:
    """Scanner and reconstruction; None where the header says nothing."""

    manufacturer: str | None = None
    scanner_model: str | None = None
    kernel: str | None = None
    slice_thickness_mm: float | None = None
    tube_voltage_kv: float | None = None
    image_type: str | None = None
    transfer_syntax: str | None = None  # UID
    instance_number: int | None = None


# The first words of the header's text -> the manufacturer.
_MANUFACTURERS: Final = {
    "GE": "GE",
    "GEMS": "GE",
    "GENERAL ELECTRIC": "GE",
    "SIEMENS": "SIEMENS",
    "PHILIPS": "PHILIPS",
    "PICKER": "PHILIPS",
    "MARCONI": "PHILIPS",
    "TOSHIBA": "TOSHIBA",
    "CANON": "CANON",
    "HITACHI": "HITACHI",
    "FUJI": "FUJIFILM",
    "FUJIFILM": "FUJIFILM",
    "UIH": "UNITED IMAGING",
    "UNITED IMAGING": "UNITED IMAGING",
    "NEUSOFT": "NEUSOFT",
    "NMS": "NEUSOFT",
    "MINFOUND": "MINFOUND",
    "SAMSUNG": "SAMSUNG",
    "NEUROLOGICA": "SAMSUNG",
    "SHIMADZU": "SHIMADZU",
    "ANKE": "ANKE",
    "SINOVISION": "SINOVISION",
    "ELSCINT": "ELSCINT",
    "IMATRON": "GE",
    "AGFA": "AGFA",
    "PLANMED": "PLANMED",
    "CARESTREAM": "CARESTREAM",
}
# Words of model names. One number is kept behind them.
_MODEL_WORDS: Final = frozenset(
    """
    LIGHTSPEED BRIGHTSPEED HISPEED OPTIMA DISCOVERY REVOLUTION GENESIS PROSPEED CTI QXI VCT PRO PLUS
    RT ULTRA ELITE SELECT EVO ACT ACTS ACE MAXIMA EXPERT APEX FRONTIER GSI HD ES STE MI IQ NXI DXI
    SOMATOM SENSATION EMOTION DEFINITION FORCE FLASH EDGE DRIVE PERSPECTIVE SCOPE SPIRIT CONFIDENCE
    BIOGRAPH HORIZON VISION MCT TRUEPOINT NAEOTOM ALPHA GO TOP ALL UP NOW SIM OPEN VOLUME ZOOM AS
    DUO SYMBIA INTEVO EXCEL POWER PEAK CITO X
    BRILLIANCE INGENUITY ICT IQON INCISIVE ACCESS SPECTRAL GEMINI GXL TF MX8000 IDT AURA VEREOS BIG
    BORE PRECEDENCE SECURA TOMOSCAN MX CORE PET
    AQUILION ONE PRIME ALEXION ACTIVION ASTEION LIGHTNING LIGHTENING PRECISION CELESTEION LB CXL CX
    SP MULTI SUPER INSIGHT SERVE
    SUPRIA SCENARIA ECLOS PRESTO ROBUSTO FCT SPEEDIA UCT UMI NEUVIZ SCINTCARE ANATOM BODYTOM CERETOM
    OMNITOM INSITUM DUAL PRUDENT GLORY EPOCH VIEW CT SYSTEM SCANNER
    """.split()  # noqa: SIM905
)
_NUMBER: Final = re.compile(r"[A-Z]{0,3}\d{1,3}[A-Z]{0,2}")
_MODEL_NUMBER: Final = re.compile(
    r"MX8000|BIOGRAPH\d{1,3}|LIGHTSPEED\d{1,3}|NEUVIZ\d{1,3}|UCT\d{3}"
)

# Reconstruction kernels, each form as a whole. Siemens writes B31f, I70f\3, Br40d\3 and Qr40;
# Toshiba and Canon FC52; Philips one or two letters; United Imaging B_SHARP_C; GE and Hitachi words
# and numbers.
_KERNELS: Final = re.compile(
    r"(?P<siemens>[ABDHIQSTU][A-Z]?(?P<sharpness>\d{2})[A-Z]{0,2})(\\[1-5])?"
    r"|(?P<toshiba>F[CL](?P<toshiba_number>\d{2})[A-Z]?)"
    r"|(?P<philips>Y?[A-FL]|Y[A-E]|UA|UB|UC|IMR\d)"
    r"|(?P<united>[BCHN]_(?P<united_word>V?SOFT|V?SHARP|STANDARD|DETAIL)_[A-E]{1,2})"
    r"|(?P<word>STANDARD|STND|SOFT|CHEST|DETAIL|LUNG|LUNG2|BONE|BONE ?PLUS\d?|EDGE|ULTRA|SMOOTH"
    r"|SHARP|HIGH|MEDIUM|BODY)([ _-]?[1-9A-C])?"
    r"|(?P<number>\d{1,2})"
)
# Kernels that show the lung parenchyma: GE's words, Siemens from 50 on (B50 to B80, Bl57, I70),
# Toshiba's groups 50 (lung) and 80 (high resolution), Philips L, YB, YC and D.
_LUNG_WORDS: Final = ("LUNG", "BONE", "EDGE", "SHARP", "HIGH")
_LUNG_SIEMENS: Final = 50
_LUNG_TOSHIBA: Final = frozenset("58")
_LUNG_PHILIPS: Final = frozenset({"L", "D", "YB", "YC", "YD"})

_SPLIT: Final = re.compile(r"[^A-Z0-9]+")


def manufacturer(text: str) -> str | None:
    """Return the manufacturer that a header's text names."""
    words = _words(text)
    names = (_MANUFACTURERS.get(" ".join(words[:count])) for count in (2, 1))
    return next((name for name in names if name), _other(text))


def scanner_model(text: str) -> str | None:
    """Return the known words of a model's name, and one number among them.

    The text must begin with a known word.
    """
    kept: list[str] = []
    numbers = 0
    for word in _words(text):
        is_known = bool(word in _MODEL_WORDS or _MODEL_NUMBER.fullmatch(word))
        is_number = not is_known and bool(_NUMBER.fullmatch(word))
        if not kept and not is_known:
            break
        if is_known or (is_number and not numbers):
            kept.append(word)
        numbers += is_number
    return " ".join(kept) or _other(text)


def kernel(text: str) -> str | None:
    """Return the name of a reconstruction kernel, with the strength that Siemens adds."""
    name = text.strip().upper()
    return name if _KERNELS.fullmatch(name) else _other(text)


def is_lung_kernel(name: str | None) -> bool:
    """Return whether a kernel is sharp enough to show the lung itself; False if not known."""
    match = _KERNELS.fullmatch(name or "")
    if match is None:
        return False
    if match["siemens"]:
        return int(match["sharpness"]) >= _LUNG_SIEMENS
    if match["toshiba"]:
        return match["toshiba_number"][0] in _LUNG_TOSHIBA
    if match["united"]:
        return match["united_word"].endswith("SHARP")
    return match["philips"] in _LUNG_PHILIPS or (match["word"] or "").startswith(_LUNG_WORDS)


def _words(text: str) -> list[str]:
    return [word for word in _SPLIT.split(text.upper()) if word]


def _other(text: str) -> str | None:
    return OTHER if text.strip() else None
