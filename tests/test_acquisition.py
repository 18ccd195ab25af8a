"""Of a header's free text, only the words that name a scanner are kept."""

from __future__ import annotations

import pytest

from cctmn import acquisition


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("SIEMENS", "SIEMENS"),
        ("Siemens Healthineers", "SIEMENS"),
        ("Philips Medical Systems", "PHILIPS"),
        ("TOSHIBA_MEC", "TOSHIBA"),
        ("CANON_MEC", "CANON"),
        ("UIH", "UNITED IMAGING"),
        ("United Imaging Healthcare", "UNITED IMAGING"),
        ("Dr. Siemens", "OTHER"),
        ("", None),
    ],
)
def test_manufacturers(text: str, name: str | None) -> None:
    assert acquisition.manufacturer(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LightSpeed VCT", "LIGHTSPEED VCT"),
        ("SOMATOM Definition AS+", "SOMATOM DEFINITION AS"),
        ("Biograph40_mCT 4R", "BIOGRAPH40 MCT 4R"),
        ("Sensation 64", "SENSATION 64"),
        ("Aquilion ONE", "AQUILION ONE"),
        ("uCT 760", "UCT 760"),
        ("HiSpeed CT/i", "HISPEED CT"),
        ("Sensation 64 Jane Roe 19570312", "SENSATION 64"),
        ("Sensation 64 19 57 12", "SENSATION 64"),
        ("Jane Roe Sensation 64", "OTHER"),
        (" ", None),
    ],
)
def test_scanner_models(text: str, name: str | None) -> None:
    assert acquisition.scanner_model(text) == name


@pytest.mark.parametrize(
    ("text", "name", "lung"),
    [
        ("LUNG", "LUNG", True),
        ("BONEPLUS", "BONEPLUS", True),
        ("STANDARD", "STANDARD", False),
        ("B70f", "B70F", True),
        ("Bl57d\\3", "BL57D\\3", True),
        ("Br38f\\3", "BR38F\\3", False),
        ("D40s", "D40S", False),
        ("FC52", "FC52", True),
        ("FC18", "FC18", False),
        ("YC", "YC", True),
        ("B", "B", False),
        ("B_SHARP_C", "B_SHARP_C", True),
        ("B_SOFT_B", "B_SOFT_B", False),
        ("11", "11", False),
        ("Roe^Jane", "OTHER", False),
        ("", None, False),
    ],
)
def test_kernels(text: str, name: str | None, lung: bool) -> None:
    assert acquisition.kernel(text) == name
    assert acquisition.is_lung_kernel(name) == lung
