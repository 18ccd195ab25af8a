"""Names that the model, the settings and the data share, without importing anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Image classes of COVIDx-CT, in the order of the logits.
COVIDX_CLASSES: Final = ("control", "pneumonia", "covid")
# The class without a disease; all other classes are diseases.
CONTROL: Final = "control"

# Lesion classes (label 1 and up) for each way to read the masks (method.md, stage 1).
LESION_MODES: Final[Mapping[str, tuple[str, ...]]] = {
    "both": ("ggo", "consolidation"),
    "merge": ("lesion",),
    "ggo": ("ggo",),
}

BACKBONES: Final = ("resnet18", "resnet34", "resnet50")

# The columns by which labels are joined with predictions: of slices, or the Patient ID of a header.
JOIN_KEYS: Final = ("name", "uri", "slice_id", "patient")
