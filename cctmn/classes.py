"""Names of classes that several parts of cctmn share, without importing anything heavy."""

from __future__ import annotations

from typing import Final

# Image classes of COVIDx-CT, in the order of the logits.
COVIDX_CLASSES: Final = ("control", "pneumonia", "covid")
